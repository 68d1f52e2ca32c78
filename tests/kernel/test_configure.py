"""Addresses, routes and IPv6 that `configure` sets and removes, with ip(8) and packets as the second opinion."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, DeviceGoneError, SetupError
from aiotuntap._netlink import ipv6 as _ipv6
from aiotuntap._netlink.socket import RouteSocket, in_namespace

from .support import ip, named_netns, needs_root, tap, tun, unique
from .test_link import before_changes, refuse
from .test_ownership import LOOPS, NOBODY, as_nobody, make_persistent, open_node, run

_ = open_node


def addresses(name: str) -> list[dict[str, Any]]:
    """What ``ip -j address show`` says, the kernel's own link-local ones left out."""
    (found,) = json.loads(ip("-j", "address", "show", "dev", name))
    return [each for each in found["addr_info"] if not each["local"].startswith("fe80::")]


def routes(name: str) -> set[tuple[Any, ...]]:
    """Destination, gateway, table, metric, source and MTU of the routes that the kernel did not make by itself."""
    found = set()
    for family in ("-4", "-6"):
        for each in json.loads(ip(family, "-j", "-d", "route", "show", "table", "all", "dev", name) or "[]"):
            if each.get("protocol") == "kernel" or each.get("type") != "unicast":
                continue
            mtu = (each.get("metrics") or [{}])[0].get("mtu")
            words = each.get("gateway"), each.get("table", "main"), each.get("metric"), each.get("prefsrc"), mtu
            found.add((each["dst"], *words))
    return found


@contextlib.asynccontextmanager
async def both_families(**options: Any) -> Any:
    async with AsyncTuntap(unique(), mode="tap", **options) as interface:
        await interface.configure(ipv6=True, up=True)
        yield interface


# -- the words that ip takes -------------------------------------------------------------------------------------------


async def test_words_of_addresses() -> None:
    async with both_families() as interface:
        wanted = [
            "10.0.0.1 peer 10.0.0.2/32",
            "10.1.0.1/24 brd + metric 77 noprefixroute",
            "10.2.0.1/24 scope link",
            "fd00::1/64 nodad",
            "fd00:1::1 peer fd00:1::2/128 nodad noprefixroute",
        ]
        await interface.configure(addresses=wanted)
        found = {each["local"]: each for each in addresses(interface.name)}
        assert len(found) == len(wanted)
        assert (found["10.0.0.1"]["address"], found["10.0.0.1"]["prefixlen"]) == ("10.0.0.2", 32)
        second = found["10.1.0.1"]
        assert (second["broadcast"], second["metric"], second["noprefixroute"]) == ("10.1.0.255", 77, True)
        assert found["10.2.0.1"]["scope"] == "link" and found["10.0.0.1"]["scope"] == "global"
        assert found["fd00::1"]["nodad"] and found["fd00::1"]["prefixlen"] == 64
        assert found["fd00:1::1"]["address"] == "fd00:1::2" and found["fd00:1::1"]["noprefixroute"]


async def test_words_of_routes() -> None:
    async with both_families() as interface:
        await interface.configure(
            addresses=["10.0.0.1/24", "10.0.0.5/24", "fd00::1/64 nodad"],
            routes=[
                "10.1.0.0/16 via 10.0.0.2 table 51820 src 10.0.0.5 metric 100 mtu 1400",
                "default via 10.0.0.9",
                "default via fd00::9 table 100",
                "fd00:1::/48 src fd00::1 mtu 1300 metric 7",
                "10.2.0.0/16 via 172.16.0.1 onlink",
                "10.3.0.7",
            ],
        )
        assert routes(interface.name) == {
            ("10.1.0.0/16", "10.0.0.2", "51820", 100, "10.0.0.5", 1400),
            ("default", "10.0.0.9", "main", None, None, None),
            ("default", "fd00::9", "100", 1024, None, None),
            ("fd00:1::/48", None, "main", 7, "fd00::1", 1300),
            ("10.2.0.0/16", "172.16.0.1", "main", None, None, None),
            ("10.3.0.7", None, "main", None, None, None),
        }


async def test_an_address_without_its_prefix_length() -> None:
    async with tun() as interface:
        with pytest.raises(ValueError, match="write '10.0.0.1/32'"):
            await interface.configure(addresses=["10.0.0.1"], mtu=1000)
        assert (await interface.link()).mtu == 1500


async def test_what_link_shows_is_what_configure_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with both_families() as interface:
        wanted = ("10.0.0.1 peer 10.0.0.2/32", "10.1.0.1/24", "fd00::1/64")
        await interface.configure(addresses=[*wanted[:2], "fd00::1/64 nodad"])
        await interface.ready()
        link = await interface.link()
        assert set(link.addresses) >= set(wanted) and link.ipv6
        with before_changes(monkeypatch, refuse):
            await interface.configure(addresses=link.addresses, replace=True)


# -- only what differs -------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "up": True,
    "ipv6": True,
    "mtu": 1400,
    "mac": "02:00:00:00:00:AA",
    "txqueuelen": 77,
    "master": "",
    "addresses": ["10.0.0.1 peer 10.0.0.2/32", "10.1.0.1/24 metric 7 brd +", "10.1.0.2/24", "fd00::1/64 nodad"],
    "routes": [
        "10.2.0.0/16 via 10.1.0.9 table 51820 src 10.1.0.1 metric 100 mtu 1300",
        "default via 10.1.0.9",
        "10.3.0.0/16",
        "10.5.0.0/16 via 172.16.0.1 onlink",
        "default via fd00::2",
        "default via fd00::3",
        "fd00:1::/48 src fd00::1",
        "fd00:2::/48 metric 7 mtu 1290",
        "10.4.0.0/16 table local",
    ],
}


async def test_everything_that_is_so_already(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:
        await interface.configure(**EVERYTHING)
        await interface.ready()
        before = ip("address", "show", "dev", interface.name), routes(interface.name)
        with before_changes(monkeypatch, refuse):
            await interface.configure(**EVERYTHING)
            await interface.configure(**EVERYTHING, replace=True)
            await interface.configure(
                routes=["10.1.0.0/24 metric 7", "fd00::/64 metric 256"]
            )  # as the kernel made them
        assert (ip("address", "show", "dev", interface.name), routes(interface.name)) == before


@needs_root
@LOOPS
def test_its_owner_may_ask_for_everything_that_is_so_already(
    open_node: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    name = make_persistent(loop, owner=NOBODY, group=None)

    async def configure(settings: dict[str, Any]) -> str:
        async with AsyncTuntap(name, mode="tap", queues=2) as interface:
            await interface.configure(**settings)
            await interface.ready()
            return "done"

    def refused(settings: dict[str, Any]) -> str:
        answer = as_nobody(open_node, lambda: run(lambda: configure(settings), loop))
        assert answer.startswith("SetupPermissionError"), answer
        return answer

    try:
        run(lambda: configure(EVERYTHING), loop)
        for settings in (
            *({each: EVERYTHING[each]} for each in EVERYTHING),
            EVERYTHING,
            EVERYTHING | {"replace": True},
        ):
            assert as_nobody(open_node, lambda: run(lambda: configure(settings), loop)) == "done", settings  # noqa: B023
        advice = "; it takes CAP_NET_ADMIN in the user namespace of its namespace"
        answer = refused({"addresses": ["10.1.0.1/24"], "replace": True})
        assert "cannot remove address 10.0.0.1 peer 10.0.0.2/32 from" in answer and answer.endswith(advice)
        answer = refused({"routes": ["default via 10.1.0.9"], "replace": True})
        assert "cannot remove route 10." in answer and answer.endswith(advice)
        answer = refused({"ipv6": False})
        assert f"cannot turn off IPv6 of {name!r}: " in answer and answer.endswith(advice)
        assert refused({"addresses": ["10.1.0.1/24 metric 8"]}).endswith(advice)
    finally:
        ip("link", "del", name)


async def test_what_differs_in_a_word_is_changed() -> None:
    async with both_families() as interface:
        for number in (1400, 1300):
            await interface.configure(
                addresses=[f"10.0.0.1/24 metric {number}", f"fd00::1/{number // 100 * 8} nodad"],
                routes=[f"10.1.0.0/16 mtu {number}", f"fd00:1::/48 mtu {number}", f"10.2.0.0/16 table {number}"],
            )
        found = {(each["local"], each["prefixlen"], each.get("metric")) for each in addresses(interface.name)}
        assert found == {("10.0.0.1", 24, 1300), ("fd00::1", 104, None)}
        assert routes(interface.name) == {
            ("10.1.0.0/16", None, "main", None, None, 1300),
            ("fd00:1::/48", None, "main", 1024, None, 1300),
            ("10.2.0.0/16", None, "1400", None, None, None),
            ("10.2.0.0/16", None, "1300", None, None, None),
        }


# -- exactly these -----------------------------------------------------------------------------------------------------


async def test_replacing() -> None:
    async with both_families() as interface, tap() as stranger:
        await stranger.configure(addresses=["10.9.0.1/24"], routes=["10.8.0.0/16"])
        theirs = ip("address", "show", "dev", stranger.name), routes(stranger.name)
        await interface.configure(**{each: EVERYTHING[each] for each in ("addresses", "routes")})
        await interface.configure(
            addresses=["10.1.0.2/24", "10.7.0.1/24", "fd00::7/64 nodad"],
            routes=["10.3.0.0/16", "10.6.0.0/16 via 10.7.0.9", "default via fd00::3"],
            replace=True,
        )
        found = {(each["local"], each["prefixlen"]) for each in addresses(interface.name)}
        assert found == {("10.1.0.2", 24), ("10.7.0.1", 24), ("fd00::7", 64)}
        assert routes(interface.name) == {
            ("10.3.0.0/16", None, "main", None, None, None),
            ("10.6.0.0/16", "10.7.0.9", "main", None, None, None),
            ("default", "fd00::3", "main", 1024, None, None),
        }
        assert (ip("address", "show", "dev", stranger.name), routes(stranger.name)) == theirs


async def test_what_is_not_given_is_not_replaced() -> None:
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24"], routes=["10.1.0.0/16"])
        await interface.configure(replace=True, mtu=1400)
        assert len(addresses(interface.name)) == len(routes(interface.name)) == 1
        await interface.configure(routes=["10.2.0.0/16"], replace=True)
        assert len(addresses(interface.name)) == 1 and {each[0] for each in routes(interface.name)} == {"10.2.0.0/16"}
        await interface.configure(addresses=["10.0.0.1/24", "10.0.1.1/24"], replace=True)
        assert len(addresses(interface.name)) == 2 and len(routes(interface.name)) == 1
        await interface.configure(addresses=[], routes=[])
        assert len(addresses(interface.name)) == 2 and len(routes(interface.name)) == 1


async def test_replacing_by_nothing_leaves_what_is_the_kernels() -> None:
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24", "fd00::1/64 nodad"], routes=["10.1.0.0/16", "fd00:1::/48"])
        await interface.ready()
        (own,) = [each for each in (await interface.link()).addresses if each.startswith("fe80::")]
        await interface.configure(addresses=[], routes=[], replace=True)
        assert (await interface.link()).addresses == (own,)
        assert routes(interface.name) == set() and "fe80::/64" in ip("-6", "route", "show", "dev", interface.name)


def _router_advertisement(prefix: str, source: str) -> bytes:
    """That of a router which gives out addresses of *prefix* and leads everywhere: RFC 4861."""
    router, everybody = (ipaddress.IPv6Address(each).packed for each in (source, "ff02::1"))
    option = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + ipaddress.IPv6Address(prefix).packed
    message = bytearray(struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option)
    pseudo = router + everybody + struct.pack(">II", len(message), 58) + message
    total = sum(int.from_bytes(pseudo[at : at + 2]) for at in range(0, len(pseudo), 2))
    total = (total & 0xFFFF) + (total >> 16)
    message[2:4] = (0xFFFF - ((total & 0xFFFF) + (total >> 16))).to_bytes(2)
    packet = struct.pack(">IHBB", 6 << 28, len(message), 58, 255) + router + everybody + message
    return bytes.fromhex("333300000001 020000000099 86dd") + packet


async def test_replacing_leaves_what_a_router_brought() -> None:
    async with both_families() as interface:
        await interface.configure(addresses=["fd00::1/64 nodad"], routes=["fd00:1::/48"])
        await interface.ready()
        await interface.queues[0].write_frame(_router_advertisement("fd00:2::", "fe80::99"))
        async with asyncio.timeout(10):
            while not any(each.startswith("fd00:2:") for each in (await interface.link()).addresses):
                await asyncio.sleep(0.01)
        before = ip("-6", "route", "show", "default", "dev", interface.name)
        assert "proto ra" in before
        await interface.configure(addresses=["fd00::2/64 nodad"], routes=["fd00:3::/48"], replace=True)
        left = [each for each in (await interface.link()).addresses if not each.startswith("fe80:")]
        assert len(left) == 2 and "fd00::2/64" in left and "fd00:2:" in "".join(left)
        found = {each[0] for each in routes(interface.name)}
        assert found == {"default", "fd00:3::/48"}


async def test_replacing_a_primary_address_by_its_secondary() -> None:
    """With a primary IPv4 address the kernel removes those of its subnet that came after it."""
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24"])
        await interface.configure(
            addresses=["10.0.0.3/24", "10.0.0.2/24"], routes=["10.1.0.0/16 src 10.0.0.2"], replace=True
        )
        assert {each["local"] for each in addresses(interface.name)} == {"10.0.0.2", "10.0.0.3"}
        assert {each[4] for each in routes(interface.name)} == {"10.0.0.2"}


@pytest.mark.parametrize("replace", [False, True])
async def test_changing_a_primary_address_keeps_its_secondaries(replace: bool) -> None:
    """They go with it, whoever set them, and are set again as they were: only what is asked for changes."""
    async with both_families() as interface:
        promote = Path(f"/proc/sys/net/ipv4/conf/{interface.name}/promote_secondaries")  # which some systems turn on
        await asyncio.to_thread(promote.write_text, "0")
        await interface.configure(addresses=["10.0.0.1/24", "10.0.0.2/24 metric 7", "10.0.1.1/24"])
        ip("address", "add", "10.0.0.3/24", "brd", "10.0.0.77", "dev", interface.name)
        asked = ["10.0.0.1/24 metric 5"] + ["10.0.0.2/24", "10.0.0.3/24", "10.0.1.1/24"] * replace
        await interface.configure(addresses=asked, replace=replace)
        there = {each["local"]: each for each in addresses(interface.name)}
        assert list(there) == ["10.0.1.1", "10.0.0.1", "10.0.0.2", "10.0.0.3"]
        assert [there[f"10.0.0.{number}"].get("metric") for number in (1, 2, 3)] == [5, 7, None]
        assert there["10.0.0.3"]["broadcast"] == "10.0.0.77" and "secondary" in there["10.0.0.3"]


async def test_routes_stay_when_an_address_is_refused() -> None:
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24"], routes=["10.1.0.0/16"])
        await interface.configure(mtu=1000)
        with pytest.raises(SetupError):
            await interface.configure(addresses=["fd00::1/64", "10.0.0.2/24"], replace=True)
        assert "10.1.0.0/16" in {each[0] for each in routes(interface.name)}


async def test_routes_stay_when_addresses_are_replaced() -> None:
    """With the last IPv4 address the kernel removes every IPv4 route."""
    async with both_families() as interface:
        await interface.configure(
            addresses=["10.0.0.1/24", "fd00::1/64 nodad"],
            routes=["10.1.0.0/16", "10.2.0.0/16 via 10.0.0.9 table 7", "10.3.0.0/16 src 10.0.0.1", "fd00:1::/48"],
        )
        await interface.configure(addresses=["10.0.0.2/24", "fd00::2/64 nodad"], replace=True)
        left = {each[0] for each in routes(interface.name)}
        assert left == {"10.1.0.0/16", "10.2.0.0/16", "fd00:1::/48"}  # what names an address that is gone is gone


async def test_routes_stay_when_no_address_does() -> None:
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24", "fd00::1/64 nodad"], routes=["10.1.0.0/16", "fd00:1::/48"])
        await interface.configure(addresses=[], replace=True)
        assert {each[0] for each in routes(interface.name)} == {"10.1.0.0/16", "fd00:1::/48"}


@pytest.mark.parametrize(
    "others",
    [
        ["10.5.0.0/16 tos 8"],
        ["10.5.0.0/16 via inet6 fe80::5"],
        ["10.5.0.0/16 nhid 777"],
        ["fd05::/64 nhid 778"],
        ["10.5.0.0/16 proto bird advmss 1000", "10.5.0.0/16 tos 8 metric 7"],
        ["fd05::/64 nexthop via fd00::4 nexthop via fd00::5 weight 5"],
    ],
    ids=lambda others: others[0],
)
async def test_replacing_routes_that_cannot_be_written(others: list[str]) -> None:
    async with both_families() as interface:
        name = interface.name
        await interface.configure(addresses=["10.0.0.1/24", "fd00::1/64 nodad"])
        if "nhid" in others[0]:  # they go with the interface
            ip("nexthop", "add", "id", "777", "via", "10.0.0.9", "dev", name)
            ip("nexthop", "add", "id", "778", "via", "fd00::9", "dev", name)
        for other in others:
            words = (
                other.replace("via", f"dev {name} via").split() if "nexthop" in other else [*other.split(), "dev", name]
            )
            ip("route", "add", *(words if "nhid" not in other else other.split()))
        await interface.configure(routes=["10.6.0.0/16"], replace=True)
        assert {each[0] for each in routes(name)} == {"10.6.0.0/16"}


async def test_a_route_for_some_packets_is_not_one_for_all() -> None:
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24"])
        ip("route", "add", "10.5.0.0/16", "tos", "8", "dev", interface.name)
        await interface.configure(routes=["10.5.0.0/16"])
        assert len(ip("route", "show", "10.5.0.0/16").splitlines()) == 2


@pytest.mark.parametrize(
    ("kept", "spare"),
    [
        ("fd05::/64 via fd00::2", "fd05::/64"),
        ("10.5.0.0/16 src 10.0.0.1", "10.5.0.0/16"),
        ("10.5.0.0/16 via 10.0.0.2", "10.5.0.0/16 scope global"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
async def test_removing_one_of_two_routes_to_one_destination(kept: str, spare: str, turned: bool) -> None:
    """The kernel takes the first that fits: of a request without a gateway or a source, also one that has it."""
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24", "fd00::1/64 nodad"])
        for route in (spare, kept) if turned else (kept, spare):
            ip("route", "append", *route.split(), "dev", interface.name)
        assert len(routes(interface.name)) == 2
        await interface.configure(routes=[kept], replace=True)
        ((destination, gateway, _, _, source, _),) = routes(interface.name)
        named = kept.split()
        assert (destination, gateway or source) == (named[0], named[2])


async def test_a_route_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another program adds it whenever it is removed."""
    async with both_families() as interface:
        name = interface.name
        await interface.configure(addresses=["10.0.0.1/24"], routes=["10.5.0.0/16", "10.6.0.0/16"])
        ask = RouteSocket.ask

        def ask_and_add(self: RouteSocket, request: bytearray, ignore: int | None = None) -> Any:
            answer = ask(self, request, ignore)
            if struct.unpack_from("=H", request, 4)[0] == 25:
                ip("route", "add", "10.5.0.0/16", "dev", name)
            return answer

        monkeypatch.setattr(RouteSocket, "ask", ask_and_add)
        with pytest.raises(
            SetupError, match=r"cannot remove route 10\.5\.0\.0/16 .*there again.*a program that adds it"
        ):
            await interface.configure(routes=["10.6.0.0/16"], replace=True)
        assert {each[0] for each in routes(name)} == {"10.5.0.0/16", "10.6.0.0/16"}


async def test_what_goes_with_an_address_comes_back_as_it_was() -> None:
    """Addresses of its subnet with label and lifetime, and routes with their protocol and all that they have."""
    async with both_families() as interface:
        name = interface.name
        promote = Path(f"/proc/sys/net/ipv4/conf/{name}/promote_secondaries")
        await asyncio.to_thread(promote.write_text, "0")
        await interface.configure(addresses=["10.0.0.1/24"])
        ip(
            "address",
            "add",
            "10.0.0.2/24",
            "label",
            f"{name}:2",
            "valid_lft",
            "5000",
            "preferred_lft",
            "4000",
            "dev",
            name,
        )
        ip("route", "add", "10.5.0.0/16", "via", "inet6", "fe80::5", "proto", "bird", "advmss", "1000", "dev", name)
        await interface.configure(addresses=["10.0.0.2/24"], replace=True)
        (left,) = [each for each in addresses(name) if each["family"] == "inet"]
        assert (left["local"], left["label"]) == ("10.0.0.2", f"{name}:2") and 3000 < left[
            "preferred_life_time"
        ] <= 4000
        (route,) = json.loads(ip("-j", "-d", "route", "show", "10.5.0.0/16"))
        assert (route["protocol"], route["via"]["host"], route["metrics"]) == ("bird", "fe80::5", [{"advmss": 1000}])


async def test_asked_for_twice() -> None:
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24"] * 2, routes=["10.1.0.0/16"] * 2)
        assert len(addresses(interface.name)) == len(routes(interface.name)) == 1


async def test_replacing_before_it_is_up() -> None:
    async with AsyncTuntap(unique(), mode="tun") as interface:
        await interface.configure(addresses=["10.0.0.1/24"])
        await interface.configure(addresses=["10.0.1.1/24"], routes=[], replace=True)
        assert [each["local"] for each in addresses(interface.name)] == ["10.0.1.1"]


# -- IPv6 on and off ---------------------------------------------------------------------------------------------------


def _forward(on: bool) -> None:
    """A router speaks more by itself: it reports to be in the groups of all routers."""
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text(str(int(on)))


async def test_nothing_is_sent_without_ipv6() -> None:
    _forward(True)
    try:
        async with AsyncTuntap(unique(), mode="tap") as interface:
            Path(f"/proc/sys/net/ipv6/conf/{interface.name}/disable_ipv6").write_text("0")
            assert (await interface.link()).ipv6
            await interface.configure(ipv6=False, addresses=["10.0.0.1/24"], up=True)
            assert not (await interface.link()).ipv6
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    pytest.fail(f"the kernel sent {await interface.queues[0].read_frame()!r}")
            await interface.configure(ipv6=True)
            link = await interface.link()
            assert link.ipv6 and [each[:4] for each in link.addresses if ":" in each] == ["fe80"]
            async with asyncio.timeout(10):
                frame = await interface.queues[0].read_frame()
            assert frame[12:14] == b"\x86\xdd"
            await interface.configure(ipv6=False)
            assert (await interface.link()).addresses == ("10.0.0.1/24",)
    finally:
        _forward(False)


async def test_ipv6_in_another_namespace() -> None:
    with named_netns() as name:
        async with AsyncTuntap(unique(), mode="tun", netns=name) as interface:
            for on in (True, True, False, True):
                await interface.configure(ipv6=on)
                path = f"/proc/sys/net/ipv6/conf/{interface.name}/disable_ipv6"
                assert ip("netns", "exec", name, "cat", path).strip() == str(int(not on))
            await interface.configure(netns="/proc/thread-self/ns/net", ipv6=True, addresses=["fd00::1/64 nodad"])
            assert (await interface.link()).addresses == ("fd00::1/64",)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_without_root(loop: str) -> None:
    code = f"""
        import asyncio, {loop}
        from aiotuntap import AsyncTuntap

        async def main():
            async with AsyncTuntap("t0", mode="tap") as interface:
                await interface.configure(ipv6=False, up=True)
                print((await interface.link()).ipv6)
                await interface.configure(ipv6=True, addresses=["fd00::1/64 nodad", "10.0.0.1/24"], routes=["default"])
                await interface.ready()
                await interface.configure(addresses=["fd00::1/64"], routes=["fd00:1::/64 src fd00::1"], replace=True)
                print(interface.name, [each for each in (await interface.link()).addresses if each[:2] == "fd"])

        {loop}.run(main())
    """
    command = ["unshare", "-Urn", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["False", "t0 ['fd00::1/64']"], done.stderr


@needs_root
def test_settings_that_are_read_only() -> None:
    """As in most containers."""
    code = f"""
        import asyncio
        from aiotuntap import AsyncTuntap

        async def main():
            async with AsyncTuntap({unique()!r}, mode="tap") as interface:
                off = not (await interface.link()).ipv6
                await interface.configure(ipv6=not off)  # as it is
                await interface.configure(ipv6=off)

        asyncio.run(main())
    """
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "'--sysctl net.ipv6.conf.default.disable_ipv6=0'" in done.stderr.splitlines()[-1], done.stderr
    assert "Errno 30" in done.stderr


@pytest.mark.parametrize("on", [False, True])
async def test_below_the_smallest_mtu_of_ipv6_the_kernel_forgets_its_settings(on: bool) -> None:
    async with tap() as interface:
        default = (await interface.link()).ipv6
        await interface.configure(ipv6=on)
        await interface.configure(mtu=1000)
        await interface.configure(mtu=1500)
        assert (await interface.link()).ipv6 is default
        await interface.configure(mtu=1000)
        await interface.configure(mtu=1500, ipv6=on)
        assert (await interface.link()).ipv6 is on


async def test_ipv6_and_an_mtu_that_is_too_small() -> None:
    async with AsyncTuntap(unique(), mode="tun") as interface:
        await interface.configure(mtu=1000, ipv6=False)
        with pytest.raises(SetupError, match="cannot turn on IPv6 of .* MTU of at least 1280, not 1000"):
            await interface.configure(ipv6=True)
        await interface.configure(mtu=1280, ipv6=True)
        assert (await interface.link()).ipv6


@pytest.mark.parametrize("settings", [{"addresses": ["fd00::1/64"]}, {"routes": ["10.0.0.0/8", "fd00::/48"]}])
async def test_off_and_used_at_once(settings: dict[str, Any]) -> None:
    async with tun() as interface:
        with pytest.raises(ValueError, match=r"ipv6=False turns IPv6 off, and fd00::\S+ is of IPv6: leave one"):
            await interface.configure(ipv6=False, mtu=1000, **settings)
        assert (await interface.link()).mtu == 1500


@contextlib.contextmanager
def before_each_look(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None]) -> Iterator[None]:
    """*change* runs between each look at the interface and what follows in `set_ipv6`, with the number of looks."""
    look, looks = RouteSocket.link, 0

    def look_and_change(route: RouteSocket, *, index: int = 0, name: str | None = None) -> Any:
        nonlocal looks
        found = look(route, index=index, name=name)
        looks += 1
        change(looks)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(RouteSocket, "link", look_and_change)
        yield


@pytest.mark.parametrize("when", [1, 2, 3])
async def test_renamed_while_ipv6_is_turned_on(monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """The settings go by name, and another interface takes the name: it is not the one that is changed."""
    async with AsyncTuntap(unique(), mode="tun") as interface, AsyncTuntap(unique(), mode="tun") as stranger:
        old = interface.name

        def take_its_name(looks: int) -> None:
            if looks == when:
                ip("link", "set", old, "name", unique("new"))
                ip("link", "set", stranger.name, "name", old)

        index = interface.index
        with before_each_look(monkeypatch, take_its_name):
            assert await in_namespace(None, lambda route: _ipv6.set_ipv6(route, index, True))
        assert (await interface.link()).ipv6 and not (await stranger.link()).ipv6 and stranger.name == old


@pytest.mark.parametrize("when", [1, 2])
async def test_deleted_while_ipv6_is_turned_on(monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    async with AsyncTuntap(unique(), mode="tun") as interface:
        name, index = interface.name, interface.index

        def delete(looks: int) -> None:
            if looks == when:
                ip("link", "del", name)

        with before_each_look(monkeypatch, delete):
            assert not await in_namespace(None, lambda route: _ipv6.set_ipv6(route, index, True))
        with pytest.raises(DeviceGoneError):
            await interface.configure(ipv6=True)


# -- what the kernel refuses, and what to do ---------------------------------------------------------------------------


async def test_an_ipv6_address_where_ipv6_is_off() -> None:
    async with tun() as interface:
        for settings in ({"addresses": ["fd00::1/64"]}, {"routes": ["fd00::/64"]}):
            with pytest.raises(SetupError, match=r"IPv6 is off on this interface, and configure\(ipv6=True\)"):
                await interface.configure(**settings)  # type: ignore[arg-type]


async def test_a_mac_where_there_is_none() -> None:
    async with tun() as interface:
        with pytest.raises(SetupError, match="to 02:00:00:00:00:01: .*a TUN interface has no MAC address"):
            await interface.configure(mac="02:00:00:00:00:01")


async def test_a_queue_that_is_too_long() -> None:
    """Without a limit of its own, the kernel's answer is the same as to one who has no privilege."""
    async with AsyncTuntap(unique(), mode="tun") as interface:
        with pytest.raises(SetupError, match="set txqueuelen of .* at most") as caught:
            await interface.configure(txqueuelen=600000)
        limit = 32767 if caught.value.errno == errno.ERANGE else 524288
        assert f"at most {limit} frames" in str(caught.value)
        await interface.configure(txqueuelen=limit)
        with pytest.raises(SetupError, match=f"at most {limit} frames"):
            await interface.configure(txqueuelen=limit + 1)
        assert (await interface.link()).txqueuelen == limit


async def test_a_route_while_it_is_down() -> None:
    async with AsyncTuntap(unique(), mode="tun") as interface:
        with pytest.raises(SetupError, match=r"the interface is down: .*configure\(up=True, routes="):
            await interface.configure(routes=["10.0.0.0/8"])


async def test_a_gateway_that_is_not_in_its_subnet() -> None:
    async with both_families() as interface:
        await interface.configure(addresses=["10.0.0.1/24", "fd00::1/64 nodad"])
        for route, gateway in (("10.5.0.0/16", "192.0.2.1"), ("fd05::/64", "fd09::1")):
            with pytest.raises(SetupError, match=rf"{gateway} must be in the subnet .* 'via {gateway} onlink'"):
                await interface.configure(routes=[f"{route} via {gateway}"])
            await interface.configure(routes=[f"{route} via {gateway} onlink"])


async def test_what_is_no_namespace_and_what_has_no_ports() -> None:
    async with tap() as interface:
        with pytest.raises(SetupError, match=r"set netns .* this is not a network namespace") as refused:
            await interface.configure(netns="/proc/self/ns/mnt")
        assert refused.value.errno == errno.EINVAL and interface.netns is None
        with pytest.raises(SetupError, match="set master .* must be a bridge"):
            await interface.configure(master="lo")


async def test_a_source_that_is_tentative() -> None:
    async with both_families() as interface:
        wanted: dict[str, Any] = {"addresses": ["fd00::1/64"], "routes": ["fd00:1::/48 src fd00::1"]}
        with pytest.raises(SetupError, match=r"fd00::1 is tentative: wait with 'await ready\(\)'") as caught:
            await interface.configure(**wanted)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
        assert caught.value.errno == errno.EINVAL
        await interface.ready()
        await interface.configure(**wanted)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"up": 1}, TypeError, "up must be True or False, not 1"),
        ({"ipv6": "no"}, TypeError, "ipv6 must be True or False, not 'no'"),
        ({"mtu": True}, ValueError, "mtu must be a whole number of bytes from 0 to 2147483647, not True"),
        ({"mtu": -1}, ValueError, "mtu must be a whole number of bytes from 0 to 2147483647, not -1"),
        ({"replace": 1}, TypeError, "replace must be True or False, not 1"),
        ({"txqueuelen": "5"}, ValueError, "txqueuelen must be a whole number of frames from .* not '5'"),
        ({"mac": "02-00"}, ValueError, "mac must be six bytes in hexadecimal, .* not '02-00'"),
        ({"mac": b"\2\0\0\0\0\1"}, TypeError, "mac must be a string such as"),
        ({"mac": "01:00:00:00:00:01"}, ValueError, "'01:00:00:00:00:01' is one: its first byte must be even"),
        ({"addresses": 5}, TypeError, "addresses must be a list of strings, not 5"),
        ({"addresses": "10.0.0.1/24"}, TypeError, r"must be a list of strings, .*: write \['10.0.0.1/24'\]"),
        ({"routes": b"10.0.0.0/8"}, TypeError, "must be a list of strings"),
        ({"addresses": [7]}, ValueError, "address 7: it must be a string"),
        ({"addresses": ["fd00::1/64", "fd00::1/128"]}, ValueError, "'fd00::1/64' and 'fd00::1/128' exclude each other"),
        (
            {"routes": ["10.0.0.0/8 mtu 1400", "10.0.0.0/8"]},
            ValueError,
            "'10.0.0.0/8 mtu 1400' and '10.0.0.0/8' exclude",
        ),
        ({"name": "t%d"}, ValueError, "name must be a new name"),
        ({"name": "all"}, ValueError, "interface name must not be 'all': the kernel uses it"),
        ({"master": "br%d"}, ValueError, "master must be the name of an interface, not 'br%d'"),
    ],
)
async def test_values_that_make_no_sense(settings: dict[str, Any], error: type[Exception], match: str) -> None:
    async with AsyncTuntap(unique(), mode="tun") as interface:
        with pytest.raises(error, match=match):
            await interface.configure(**{"mtu": 1000, **settings})
        assert (await interface.link()).mtu == 1500


@pytest.mark.parametrize("name", ["all", "default"])
def test_names_that_are_the_kernels(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"interface name must not be '{name}': the kernel uses it for the settings of all"
    ):
        AsyncTuntap(name, mode="tun")


async def test_where_it_is_when_it_was_moved_and_no_more() -> None:
    with named_netns() as name:
        async with AsyncTuntap(unique(), mode="tun") as interface:
            with pytest.raises(SetupError, match="mtu less than device minimum"):
                await interface.configure(netns=name, mtu=10)
            assert interface.netns == name
            await interface.set_persist(True)
            await interface.remove_queues(*interface.queues)
            await interface.add_queues()  # by name, and so where it is
            assert (await interface.link()).persistent
            await interface.set_persist(False)


async def test_a_namespace_that_is_not_there() -> None:
    """What the caller gave is named once, and no path that it did not give."""
    for work in (AsyncTuntap(unique(), mode="tun", netns="nope").open, None):
        async with AsyncTuntap(unique(), mode="tun") as interface:
            with pytest.raises(SetupError) as caught:
                await (work() if work is not None else interface.configure(netns="nope"))
        assert str(caught.value).endswith(
            "cannot open network namespace 'nope': No such file or directory; 'ip netns add nope' makes it"
        )
        assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize("move", [False, True], ids=["deleted", "moved"])
@pytest.mark.parametrize("request_type", [16, 20, 21, 22, 24, 25, 26])
async def test_gone_at_any_request(monkeypatch: pytest.MonkeyPatch, request_type: int, move: bool) -> None:
    """RTM_NEWLINK, and to add, delete and list addresses and routes: in the middle, the interface is here no more."""
    ask, done = RouteSocket.ask, False
    settings: dict[str, Any] = {
        "up": True,
        "mtu": 1400,
        "addresses": ["10.0.0.2/24", "10.1.0.1/24"],
        "routes": ["10.3.0.0/16"],
        "replace": True,
    }

    def interfere(route: RouteSocket, request: bytearray, ignore: int | None = None) -> Any:
        nonlocal done
        if not done and int.from_bytes(request[4:6], sys.byteorder) == request_type:
            done = True
            ip("link", *(("set", interface.name, "netns", name) if move else ("del", interface.name)))
        return ask(route, request, ignore)

    with named_netns() as name:
        async with AsyncTuntap(unique(), mode="tun") as interface:
            await interface.configure(addresses=["10.0.0.1/24", "10.0.0.2/24"], routes=["10.2.0.0/16"], up=True)
            monkeypatch.setattr(RouteSocket, "ask", interfere)
            if not move:
                with pytest.raises(DeviceGoneError):
                    await interface.configure(**settings)
                    await interface.link()
                assert done
                return
            await interface.configure(**settings)
            link = await interface.link()
            assert done and link.up and set(link.addresses) == {"10.0.0.2/24", "10.1.0.1/24"} and link.mtu == 1400
            assert "10.3.0.0/16" in ip("-n", name, "route")


@pytest.mark.parametrize("work", ["link", "ready", "configure"])
@pytest.mark.parametrize("request_type", [18, 22])
async def test_gone_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch, request_type: int, work: str) -> None:
    ask = RouteSocket.ask

    def interfere(route: RouteSocket, request: bytearray, ignore: int | None = None) -> Any:
        if int.from_bytes(request[4:6], sys.byteorder) == request_type:
            ip("link", "del", interface.name, check=False)
        return ask(route, request, ignore)

    async with tun() as interface:
        monkeypatch.setattr(RouteSocket, "ask", interfere)
        with pytest.raises(DeviceGoneError):
            await getattr(interface, work)()
