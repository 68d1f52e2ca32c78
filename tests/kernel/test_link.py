"""`link()` and all of `configure`, with ip(8) and sysfs as the second opinion."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, DeviceGoneError, SetupError
from aiotuntap._netlink import link as _link
from aiotuntap._netlink import socket as _netlink
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


async def test_link_of_what_was_deleted() -> None:
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
async def test_routes_that_make_no_sense(route: str) -> None:
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
            assert (await interface.link()).master == link(bridge)["ifindex"]
            await interface.configure(master="")
            assert "master" not in link(interface.name) and (await interface.link()).master is None
            with pytest.raises(SetupError, match="cannot set master of .* to 'nobr0': no such interface") as caught:
                await interface.configure(master="nobr0")
            assert caught.value.errno == errno.ENODEV
    finally:
        ip("link", "del", bridge)


async def test_name() -> None:
    async with tap() as interface:
        new = unique("new")
        if not renames_while_up():
            with pytest.raises(SetupError, match="cannot set name of") as caught:
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
        with pytest.raises(SetupError, match="cannot set name of .* to lo: File exists"):
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


async def test_an_interrupted_dump_is_repeated() -> None:
    class Route:
        interrupted = False
        tries = 0

    async def request(_command: str, **_filters: object) -> Any:
        async def messages() -> Any:
            Route.tries += 1
            yield Route.tries
            route.interrupted = Route.tries < 3

        return messages()

    route = Route()
    assert await _link.dump(route, request) == [3]
    Route.tries = -1000
    with pytest.raises(SetupError, match="changes all the time"):
        await _link.dump(route, request)


def message(flags: int, size: int = 16) -> bytes:
    return struct.pack("=IHHII", size, 16, flags, 1, 0) + bytes(max((size + 3 & ~3) - 16, 0))


def test_what_an_interrupted_dump_looks_like() -> None:
    assert not _netlink.is_interrupted(b"") and not _netlink.is_interrupted(message(2))
    assert not _netlink.is_interrupted(message(2, 33) + message(2))
    assert _netlink.is_interrupted(message(2, 33) + message(2) + message(0x12))
    assert not _netlink.is_interrupted(message(2, 0)[:15])


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
