"""`link()` and all of `configure`, with ip(8) and sysfs as the second opinion."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, DeviceGoneError, SetupError
from aiotuntap._netlink import link as _link
from aiotuntap._netlink import messages as _messages
from aiotuntap._netlink import requests as _requests
from aiotuntap._netlink import socket as _socket
from aiotuntap._netlink.socket import RouteError, RouteSocket
from aiotuntap.testing import example_frame

from .support import (
    ip,
    link,
    named_netns,
    needs_root,
    renames_while_up,
    settle,
    tap,
    tap_with_peer,
    tun,
    tun_info,
    turn_on_ipv6,
    unique,
)


def routes(name: str, *family: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ip(*family, "-j", "route", "show", "dev", name))
    return found


@needs_root
async def test_link_agrees_with_ip() -> None:
    async with tap(queues=4) as interface:
        await interface.queues[0].disable()
        await interface.configure(mtu=1450, addresses=["10.30.0.1/24", "10.31.0.1/16"], txqueuelen=321)
        await interface.set_owner(12345)
        await interface.set_group("nogroup")
        await interface.set_persist(True)
        try:
            seen, shown = await interface.link(), link(interface.name)
            info = shown["linkinfo"]["info_data"]
            assert (seen.index, seen.name, seen.mtu) == (shown["ifindex"], shown["ifname"], shown["mtu"])
            assert (seen.mac, seen.txqueuelen) == (shown["address"], shown["txqlen"])
            assert seen.up and seen.carrier and seen.kind == "tun" and seen.mode == "tap" == info["type"]
            assert (seen.queues, seen.disabled_queues) == (info["numqueues"], info["numdisabled"]) == (3, 1)
            assert (seen.owner, seen.group) == (12345, 65534) and info["user"] == 12345
            assert seen.persistent and seen.multi_queue and not seen.packet_info and not seen.vnet_header
            assert set(seen.addresses) == {"10.30.0.1/24", "10.31.0.1/16"}
        finally:
            await interface.set_persist(False)


async def test_counters_are_the_kernels() -> None:
    async with tap_with_peer() as (interface, peer):
        await interface.queues[0].write_frames([example_frame(number) for number in range(7)])
        for number in range(3):
            peer.send(example_frame(number))
        await interface.queues[0].read_frames(3)
        counters, shown = (await interface.link()).counters, link(interface.name)["stats64"]
        assert (counters.rx_packets, counters.rx_bytes) == (shown["rx"]["packets"], shown["rx"]["bytes"]) == (7, 7 * 60)
        assert (counters.tx_packets, counters.tx_bytes) == (shown["tx"]["packets"], shown["tx"]["bytes"]) == (3, 3 * 60)


async def test_tun_flags_as_sysfs_would_show_them() -> None:
    async with AsyncTuntap(unique(), mode="tun", packet_info=True, vnet_header=True, multi_queue=False) as interface:
        seen = await interface.link()
        assert seen.mode == "tun" and seen.packet_info and seen.vnet_header and not seen.multi_queue
        assert seen.mac is None and seen.queues is None
        # A sysfs mounted in this namespace, since the one of the machine shows the machine's interfaces.
        script = f"mount -t sysfs sysfs /sys && cat /sys/class/net/{interface.name}/tun_flags"
        flags = int(subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, check=True).stdout, 16)
        assert flags & 0x4000 and not flags & 0x1000 and flags & 1


async def test_link_of_a_deleted_interface() -> None:
    async with tap() as interface:
        ip("link", "del", interface.name)
        with pytest.raises(DeviceGoneError):
            await interface.link()


async def test_routes() -> None:
    async with tun() as interface:
        wanted = ["10.50.0.0/16", "default via 10.11.12.9", "10.51.0.0/16 via 10.11.12.9 metric 7", "10.11.12.77"]
        for _ in range(2):  # what is there already is no error
            await interface.configure(routes=wanted)
        found = {(each["dst"], each.get("gateway"), each.get("metric")) for each in routes(interface.name)}
        assert found >= {
            ("10.50.0.0/16", None, None),
            ("default", "10.11.12.9", None),
            ("10.51.0.0/16", "10.11.12.9", 7),
            ("10.11.12.77", None, None),
        }


async def test_ipv6_routes() -> None:
    async with tun() as interface:
        with open(f"/proc/sys/net/ipv6/conf/{interface.name}/disable_ipv6", "w") as sysctl:
            sysctl.write("0")
        await interface.configure(
            addresses=["fd00:50::1/64"],
            routes=["fd00:51::/48", "default via fd00:50::2", "fd00:52::/64 via fd00:50::2 metric 3"],
        )
        found = {(each["dst"], each.get("gateway")) for each in routes(interface.name, "-6")}
        assert found >= {("fd00:51::/48", None), ("default", "fd00:50::2"), ("fd00:52::/64", "fd00:50::2")}


@pytest.mark.parametrize(
    "route",
    [
        "",
        "nonsense",
        "10.0.0.1/8",
        "10.0.0.0/8 via",
        "10.0.0.0/8 via fd00::1",
        "10.0.0.0/8 dev eth0",
        "10.0.0.0/8 metric x",
    ],
)
async def test_invalid_routes(route: str) -> None:
    async with tun() as interface:
        with pytest.raises(ValueError, match="route"):
            await interface.configure(routes=[route], mtu=1000)
        assert link(interface.name)["mtu"] == 1500


async def test_a_route_that_the_kernel_refuses() -> None:
    async with tun() as interface:
        with pytest.raises(SetupError, match="cannot set route of .* to 10.0.0.0/8 via 172.16.0.1: .*gateway"):
            await interface.configure(routes=["10.0.0.0/8 via 172.16.0.1"])


async def test_master() -> None:
    bridge = unique("br")
    ip("link", "add", bridge, "type", "bridge")
    try:
        async with tap() as interface:
            await interface.configure(master=bridge)
            assert link(interface.name)["master"] == bridge
            assert (await interface.link()).master == bridge
            await interface.configure(master="")
            assert "master" not in link(interface.name) and (await interface.link()).master is None
            with pytest.raises(
                SetupError,
                match="cannot set master of .* to 'nobr0': no such interface .*'ip link add nobr0 type bridge'",
            ) as caught:
                await interface.configure(master="nobr0")
            assert caught.value.errno == errno.ENODEV
    finally:
        ip("link", "del", bridge)


async def test_name() -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:  # down, as kernels before 6.2 want it
        new = unique("new")
        await interface.configure(up=True)
        if not renames_while_up():
            with pytest.raises(SetupError, match="set it down first") as caught:
                await interface.configure(name=new)
            assert caught.value.errno == errno.EBUSY and interface.name != new
            await interface.configure(up=False)
        await interface.configure(name=new, mtu=1400)
        assert interface.name == new and link(new)["mtu"] == 1400
        await interface.add_queues()
        assert tun_info(new)["numqueues"] == 2
        for wrong in ("", "x" * 16, "a%d", "a/b"):
            with pytest.raises(ValueError, match="name"):
                await interface.configure(name=wrong)
        with pytest.raises(
            SetupError, match="cannot set name of .* to lo: File exists; another interface has this name"
        ):
            await interface.configure(name="lo")


async def test_moving_with_configure() -> None:
    with named_netns() as first, named_netns() as second:
        async with tap(queues=2) as interface:
            own = os.stat("/proc/thread-self/ns/net").st_ino
            for netns in (first, f"/run/netns/{second}"):
                waiting = asyncio.ensure_future(interface.queues[0].read_frame())
                await settle()
                await interface.configure(netns=netns, addresses=["10.60.0.1/24"], up=True, routes=["10.61.0.0/16"])
                assert not waiting.done()
                waiting.cancel()
                assert interface.netns == netns
                where = Path(netns).name
                shown = link(interface.name, "-n", where)
                assert "UP" in shown["flags"] and interface.index == shown["ifindex"]
                before = shown["linkinfo"]["info_data"]["numqueues"]
                (added,) = await interface.add_queues()
                assert tun_info(interface.name, "-n", where)["numqueues"] == before + 1
                assert interface.name not in ip("link")
                await added.write_frame(example_frame(1))
                assert (await interface.link()).counters.rx_packets > 0
                assert "10.61.0.0/16" in ip("-n", where, "route")
            with pytest.raises(SetupError, match="'ip netns add nowhere' makes it"):
                await interface.configure(netns="nowhere", mtu=1000)
            assert link(interface.name, "-n", second)["mtu"] == 1500
            assert os.stat("/proc/thread-self/ns/net").st_ino == own


async def test_tuntaps_of_a_namespace() -> None:
    with named_netns() as name:
        assert await _link.tuntaps(name) == []
        async with (
            AsyncTuntap("a0", mode="tap", netns=name, queues=3) as one,
            AsyncTuntap("b0", mode="tun", netns=name, multi_queue=False) as other,
        ):
            await one.configure(addresses=["10.70.0.1/24"])
            found = await _link.tuntaps(name)
            assert [(each.name, str(each.mode), each.queues) for each in found] == [
                ("a0", "tap", 3),
                ("b0", "tun", None),
            ]
            assert found[0].addresses == ("10.70.0.1/24",) and found[1].index == other.index


def test_an_interrupted_dump_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    done, interrupted = (_messages.Message(3, flags, 1, b"\0\0\0\0") for flags in (2, 0x12))
    tries = 0

    def ask(_socket: RouteSocket, _request: bytearray, ignore: int | None = None) -> list[_messages.Message]:
        nonlocal tries
        tries += 1
        return [_messages.Message(20, 2, 1, bytes([tries % 256])), done if tries == 3 else interrupted]

    monkeypatch.setattr(RouteSocket, "ask", ask)
    with RouteSocket(None) as route:
        (answer,) = route.dump(_requests.dump_addresses())
        assert answer.body == b"\3"
        with pytest.raises(SetupError, match="changes all the time"):
            route.dump(_requests.dump_addresses())


async def test_links_are_found_while_others_come_and_go() -> None:
    """The kernel interrupts dumps for this; whether it does in this run is up to chance."""
    churn = await asyncio.create_subprocess_shell(
        "for i in $(seq 40); do ip link add churn0 type bridge; ip link del churn0; done", stderr=subprocess.DEVNULL
    )
    try:
        async with tap() as interface:
            while churn.returncode is None:
                assert interface.name in [each.name for each in await _link.tuntaps(None)]
                await asyncio.sleep(0)
    finally:
        await churn.wait()


async def test_a_listing_takes_one_dump_of_links_and_one_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = RouteSocket.ask

    def count(route: RouteSocket, request: bytearray, ignore: int | None = None) -> list[_messages.Message]:
        answers = ask(route, request, ignore)
        asked.append(len(answers))
        return answers

    async with contextlib.AsyncExitStack() as stack:
        several = [await stack.enter_async_context(AsyncTuntap(unique(), mode="tap")) for _ in range(12)]
        for number, each in enumerate(several):
            await each.configure(addresses=[f"10.71.{number}.1/24", f"10.72.{number}.1/24"])
        monkeypatch.setattr(RouteSocket, "ask", count)
        found = {link.name: link.addresses for link in await _link.tuntaps(None)}
        assert len(asked) == 2
        for number, each in enumerate(several):
            assert found[each.name] == (f"10.71.{number}.1/24", f"10.72.{number}.1/24")
        asked.clear()
        link = await several[3].link()
        assert link.addresses == found[link.name]
        # The interface itself, then its two addresses and the end of the list, picked out by the kernel.
        assert asked == [1, 3]


async def test_addresses_where_the_kernel_does_not_pick_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 4.20, or without the socket option: it sends those of all interfaces, and all routes."""
    monkeypatch.setattr(_socket, "_NETLINK_GET_STRICT_CHK", 0x7FFF)
    async with tun() as one, tap() as other:
        await other.configure(addresses=["10.73.0.1/24"], routes=["10.74.0.0/16"])
        assert (await one.link()).addresses == ("10.11.12.1/24",)
        assert (await other.link()).addresses == ("10.73.0.1/24",)
        await one.configure(routes=["10.75.0.0/16"])
        assert [each["dst"] for each in routes(one.name)] == ["10.11.12.0/24", "10.75.0.0/16"]


@contextlib.contextmanager
def before_changes(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None]) -> Iterator[None]:
    """*fault* runs each time before the kernel is asked to change something."""
    ask = RouteSocket.ask

    def fault_and_ask(route: RouteSocket, request: bytearray, ignore: int | None = None) -> list[_messages.Message]:
        if int.from_bytes(request[4:6], sys.byteorder) in (16, 20, 24):  # RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE
            fault()
        return ask(route, request, ignore)

    with monkeypatch.context() as patched:
        patched.setattr(RouteSocket, "ask", fault_and_ask)
        yield


def refuse() -> None:
    raise AssertionError("the kernel is asked to change something")


class Renamer:
    """A program that gives an interface one new name after the other, or two by turns."""

    def __init__(self, name: str, *, fresh: bool) -> None:
        names = [unique("rn") for _ in range(2)] if not fresh else []
        code = f"""
            import fcntl, itertools, socket, struct, sys
            sock, old = socket.socket(), {name!r}
            for number in itertools.count():
                new = {names!r}[number % 2] if {names!r} else f"rn{{number}}"
                fcntl.ioctl(sock, 0x8923, struct.pack("16s16s8x", old.encode(), new.encode()))  # SIOCSIFNAME
                old = new
                if number == 0:
                    print(flush=True)
        """
        self.process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        assert self.process.poll() is None
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("fresh", [False, True], ids=["two names", "new names"])
async def test_renamed_while_it_looks(fresh: bool) -> None:
    """The kernel finds nothing by a name of a moment ago: that is no deletion."""
    async with AsyncTuntap(unique(), mode="tap") as interface:
        index = interface.index
        with Renamer(interface.name, fresh=fresh):
            for number in range(30):
                await interface.configure(mtu=1000 + number)
                link = await interface.link()
                assert (link.index, link.mtu) == (index, 1000 + number)
            async with asyncio.timeout(5):
                async for event in interface.watch():
                    assert event.link.index == index
                    break


async def test_another_interface_took_the_name_meanwhile() -> None:
    """An interface that was found by name must still be our own before it is changed."""
    async with AsyncTuntap(unique(), mode="tap") as interface, AsyncTuntap(unique(), mode="tap") as stranger:
        old = interface.name
        ip("link", "set", old, "name", unique("new"))
        ip("link", "set", stranger.name, "name", old)
        told = [old]  # as the descriptor said a moment ago, and from then on as it says now

        @contextlib.contextmanager
        def where() -> Iterator[tuple[str, None]]:
            yield told.pop() if told else interface.name, None

        for index in (0, interface.index):
            assert (await _link.look(where, index)).index == interface.index
            told.append(old)
        told.clear()
        assert (await _link.look(where, stranger.index)).index == interface.index


async def test_moved_while_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    def move() -> None:
        ip("link", "set", interface.name, "netns", name, check=False)  # the second time it is there

    with named_netns() as name:
        async with tap() as interface:
            with before_changes(monkeypatch, move):
                await interface.configure(mtu=1234, addresses=["10.76.0.1/24"])
            shown = link(interface.name, "-n", name)
            assert shown["mtu"] == 1234 and shown["ifindex"] == interface.index
            assert (await interface.link()).addresses == ("10.76.0.1/24",)


async def test_deleted_while_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    def delete() -> None:
        ip("link", "del", interface.name, check=False)

    async with tap() as interface:
        with before_changes(monkeypatch, delete), pytest.raises(DeviceGoneError):
            await interface.configure(mtu=1234)


async def test_values_that_are_set_already_are_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = unique("br")
    ip("link", "add", bridge, "type", "bridge")
    try:
        async with AsyncTuntap(unique(), mode="tap") as interface:
            wanted: dict[str, Any] = {
                "up": True,
                "mtu": 1400,
                "mac": "02:00:00:00:00:AA",
                "addresses": ["10.77.0.1/24", "10.77.1.1/32"],
                "routes": ["10.78.0.0/16", "default via 10.77.0.2 metric 5", "10.79.0.1"],
                "txqueuelen": 77,
                "name": unique("is"),
                "master": bridge,
                "netns": f"/proc/{os.getpid()}/ns/net",
            }
            await interface.configure(**wanted)
            with before_changes(monkeypatch, refuse):
                await interface.configure(**wanted)
            assert link(interface.name)["mtu"] == 1400
    finally:
        ip("link", "del", bridge)


async def test_ipv6_settings_are_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncTuntap(unique(), mode="tun") as interface:
        turn_on_ipv6(interface.name)
        wanted: dict[str, Any] = {
            "up": True,
            "addresses": ["fd00:50:0::1/64", "FD00:51::0001/128"],
            "routes": ["fd00:52::/48", "default via fd00:50::2", "fd00:53::/64 metric 7"],
        }
        await interface.configure(**wanted)
        with before_changes(monkeypatch, refuse):
            await interface.configure(**wanted)
            await interface.configure(routes=["fd00:52::/48 metric 1024"])  # the kernel's own metric


async def test_a_route_that_another_interface_has() -> None:
    """EEXIST of another route is no reason to do without this one."""
    async with tun() as one, tap() as other:
        await other.configure(addresses=["10.81.0.1/24"])
        await one.configure(routes=["10.82.0.0/16"])
        await other.configure(routes=["10.82.0.0/16"])
        assert "10.82.0.0/16" in [each["dst"] for each in routes(other.name)]


async def test_enodev_for_another_interface() -> None:
    """An MTU below 1280 takes IPv6 off an interface, and the kernel then calls it no such device."""
    async with AsyncTuntap(unique(), mode="tun") as interface:
        turn_on_ipv6(interface.name)
        await interface.configure(mtu=1000, up=True)
        with pytest.raises(SetupError, match="cannot set (address|route) of"):
            await interface.configure(routes=["fd00:54::/48"], addresses=["fd00:54::1/64"])


async def test_renaming_while_up_where_the_kernel_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RouteError(errno.EBUSY, os.strerror(errno.EBUSY))

    async with tap() as interface:
        with (
            before_changes(monkeypatch, refuse),
            pytest.raises(SetupError, match=r"busy; before Linux 6.2 .*configure\(up=False, name='n0'\)") as caught,
        ):
            await interface.configure(name="n0")
        assert caught.value.errno == errno.EBUSY


async def test_renaming_while_up() -> None:
    """It works from Linux 6.2 on; before, what the message says works."""
    async with tap() as interface:
        new = unique("new")
        try:
            await interface.configure(name=new)
        except SetupError as error:
            assert error.errno == errno.EBUSY and f"configure(up=False, name={new!r})" in str(error)
            await interface.configure(up=False, name=new)
        assert interface.name == new
