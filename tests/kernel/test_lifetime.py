"""Persistence, moving between namespaces, adopting, and configuring."""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, DeviceGoneError, SetupError, _abi, _device
from aiotuntap.testing import example_frame

from .support import PacketPeer, idle_share, ip, link, named_netns, settle, tap, tap_with_peer, tun_info, unique, until


async def test_persistence() -> None:
    async with tap() as interface:
        name = interface.name
        await interface.set_persist(True)
        assert tun_info(name)["persist"]
    try:
        await until(lambda: "NO-CARRIER" in link(name)["flags"])
        async with AsyncTuntap(name, mode="tap", queues=2) as again:
            assert tun_info(name)["persist"] and tun_info(name)["numqueues"] == 2
            assert again.index == link(name)["ifindex"]
        assert name in ip("link")
        with pytest.raises(SetupError, match="mode='tap'"):
            await AsyncTuntap(name, mode="tun").open()
        with pytest.raises(SetupError, match="multi_queue=True"):
            await AsyncTuntap(name, mode="tap", multi_queue=False).open()
        async with AsyncTuntap(name, mode="tap") as last:
            await last.set_persist(False)
        assert name not in ip("link")
    finally:
        ip("link", "del", name, check=False)


async def test_settings_that_outlive_a_process_are_set_on_every_attach() -> None:
    """Someone left a header and offloads on: who comes next without them must get plain frames."""
    async with tap(vnet_header=True) as first:
        name = first.name
        first.queues[0]._file.set_value(_abi.TUNSETOFFLOAD, _abi.TUN_F_CSUM | _abi.TUN_F_TSO4 | _abi.TUN_F_TSO6)
        first.queues[0]._file.set_int(_abi.TUNSETVNETHDRSZ, 24)
        await first.set_persist(True)
    try:
        async with AsyncTuntap(name, mode="tap") as plain:
            run = subprocess.run(["ethtool", "-k", name], capture_output=True, text=True, check=True)
            assert "tcp-segmentation-offload: off" in run.stdout and "tx-checksumming: off" in run.stdout
            assert not tun_info(name)["vnet_hdr"]
            await plain.aclose()
        async with AsyncTuntap(name, mode="tap", vnet_header=True) as headed:
            await headed.configure(up=True)
            with PacketPeer(name) as peer:
                await until_up(peer)
                assert await headed.queues[0].read_frame() == bytes(10) + example_frame(9)
            await headed.set_persist(False)
    finally:
        ip("link", "del", name, check=False)


async def until_up(peer: PacketPeer) -> None:
    """Sends until the carrier of an interface that was opened again is noticed; frames are dropped before that."""
    for _ in range(200):
        try:
            peer.send(example_frame(9))
        except OSError:
            pass
        else:
            await asyncio.sleep(0.01)
            return
        await asyncio.sleep(0.01)


async def test_moving_to_another_namespace_keeps_the_queues_working() -> None:
    with named_netns() as name:
        async with tap_with_peer(queues=2) as (interface, peer):
            assert not peer.receive()
            ip("link", "set", interface.name, "netns", name)
            await interface.configure(up=True, addresses=["10.7.0.1/24"])
            assert (
                json.loads(ip("-n", name, "-j", "addr", "show", interface.name))[0]["addr_info"][0]["local"]
                == "10.7.0.1"
            )
            await interface.add_queues(2)
            assert tun_info(interface.name, "-n", name)["numqueues"] == 4
            assert interface.name not in ip("link")
            await interface.queues[3].write_frame(example_frame(2))
            assert link(interface.name, "-n", name)["stats64"]["rx"]["packets"] == 1


async def test_adopting_inherited_and_received_descriptors() -> None:
    parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    async with tap(queues=3) as interface:
        with parent, child:
            socket.send_fds(parent, [b"x"], [queue.fileno() for queue in interface.queues[:2]])
            _, fds, _, _ = socket.recv_fds(child, 1, 5)
        for fd in fds:
            os.set_inheritable(fd, True)
            os.set_blocking(fd, True)
        adopted = await AsyncTuntap.adopt(fds)
        assert [queue.fileno() for queue in adopted.queues] == fds
        assert (adopted.name, adopted.mode, adopted.index) == (interface.name, "tap", interface.index)
        for fd in fds:
            assert not os.get_blocking(fd) and not os.get_inheritable(fd)
        await interface.aclose()
        assert tun_info(adopted.name)["numqueues"] == 2
        await adopted.add_queues()
        assert tun_info(adopted.name)["numqueues"] == 3
        with PacketPeer(adopted.name) as peer:
            await adopted.queues[0].write_frame(example_frame(1))
            assert await peer.read_frame() == example_frame(1)
        name = adopted.name
        await adopted.aclose()
        assert name not in ip("link")


async def test_what_cannot_be_adopted_stays_the_callers() -> None:
    node = os.open(_abi.NODE, os.O_RDWR)
    reading, writing = os.pipe()
    try:
        async with tap(queues=2) as one, tap() as other:
            good, good_too = (os.dup(queue.fileno()) for queue in one.queues)
            stranger = os.dup(other.queues[0].fileno())
            mine = [node, reading, writing, good, good_too, stranger]
            for fds, error, match in (
                ([node], SetupError, "not a queue attached"),
                ([good, reading], SetupError, f"descriptor {reading} must be open for both"),
                ([good, stranger], SetupError, "must belong to one interface"),
                ([], ValueError, "at least one"),
                ([good, good], ValueError, "must not have a descriptor twice"),
                (["0"], TypeError, "must be a file descriptor"),
            ):
                with pytest.raises(error, match=match):
                    await AsyncTuntap.adopt(fds)  # type: ignore[arg-type]
            wrong: list[tuple[dict[str, Any], str]] = [
                ({"packet_info": True}, "packet_info=False"),
                ({"vnet_header": True}, "vnet_header=False"),
                ({"multi_queue": False}, "multi_queue=True"),
            ]
            for options, match in wrong:
                with pytest.raises(SetupError, match=match):
                    await AsyncTuntap.adopt([good], **options)
            for option in ("name", "mode", "queues", "exclusive"):
                with pytest.raises(TypeError, match=option):
                    await AsyncTuntap.adopt([good], **{option: 1})  # type: ignore[arg-type]
            for fd in mine:
                os.fstat(fd)
            assert tun_info(one.name)["numqueues"] == 2
            for fd in (good, good_too, stranger):
                os.close(fd)
    finally:
        for fd in (node, reading, writing):
            os.close(fd)


async def test_descriptors_in_flight_keep_the_interface() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        interface = await AsyncTuntap(unique(), mode="tap").open()
        left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [interface.queues[0].fileno()]))])
        await interface.aclose()
        assert interface.name in ip("link")
        _, fds, _, _ = socket.recv_fds(right, 1, 1)
        adopted = await AsyncTuntap.adopt(fds)
        assert adopted.name == interface.name
        await adopted.aclose()
        assert adopted.name not in ip("link")


async def test_configure_is_seen_by_ip() -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:
        await interface.configure(
            mtu=1400,
            mac="02:00:00:00:00:07",
            addresses=["10.5.0.1/24", "10.5.0.1/24", "10.6.0.9/32"],
            txqueuelen=4000,
            up=True,
        )
        await interface.configure(addresses=["10.5.0.1/24"])
        await interface.configure()
        state = link(interface.name)
        assert (state["mtu"], state["address"], state["txqlen"]) == (1400, "02:00:00:00:00:07", 4000)
        assert "UP" in state["flags"]
        addresses = json.loads(ip("-j", "addr", "show", interface.name))[0]["addr_info"]
        assert [(each["local"], each["prefixlen"]) for each in addresses] == [
            ("10.6.0.9", 32),
            ("10.5.0.1", 24),
        ] or len(addresses) == 2
        await interface.configure(up=False)
        assert "UP" not in link(interface.name)["flags"]


async def test_configure_ipv6() -> None:
    async with AsyncTuntap(unique(), mode="tun") as interface:
        with open(f"/proc/sys/net/ipv6/conf/{interface.name}/disable_ipv6", "w") as sysctl:
            sysctl.write("0")
        await interface.configure(addresses=["fd00:5::1/64"], up=True)
        await interface.configure(addresses=["fd00:5::1/64"])
        addresses = json.loads(ip("-6", "-j", "addr", "show", interface.name))[0]["addr_info"]
        assert ("fd00:5::1", 64) in [(each["local"], each["prefixlen"]) for each in addresses]


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"mtu": 70000}, SetupError, "cannot set mtu of '{name}' to 70000"),
        ({"mtu": -1}, ValueError, "mtu must be a whole number .*, not -1"),
        ({"mtu": "big"}, ValueError, "mtu must be a whole number .*, not 'big'"),
        ({"txqueuelen": 1.5}, ValueError, "txqueuelen must be a whole number .*, not 1.5"),
        ({"mac": "01:00:00:00:00:01"}, ValueError, "mac must not be a multicast address"),
        ({"mac": "0200.0000.0001"}, ValueError, "mac must be six bytes .*, not '0200.0000.0001'"),
        ({"addresses": ["10.0.0.1/33"]}, ValueError, "address '10.0.0.1/33'"),
        ({"addresses": "10.0.0.1/24"}, TypeError, "a list of strings"),
    ],
)
async def test_configure_names_what_is_wrong(settings: dict[str, object], error: type[Exception], match: str) -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:
        with pytest.raises(error, match=match.format(name=interface.name)):
            await interface.configure(**settings, up=True)  # type: ignore[arg-type]
        assert "UP" not in link(interface.name)["flags"]


def test_configure_without_privilege() -> None:
    name = unique()
    # With an owner: newer kernels refuse to attach to an interface without one.
    ip("tuntap", "add", "mode", "tap", "name", name, "user", str(os.getuid()), "multi_queue")
    code = f"""
import asyncio
from aiotuntap import *
async def main():
    async with AsyncTuntap({name!r}, mode="tap") as tap:
        try:
            await tap.configure(mtu=1400)
        except SetupError as error:
            print(error.errno, isinstance(error, PermissionError), error)
asyncio.run(main())
"""
    try:
        run = subprocess.run(
            ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert run.stdout.startswith(f"{errno.EPERM} True") and "CAP_NET_ADMIN" in run.stdout, run.stderr
    finally:
        ip("link", "del", name)


async def test_threads_stay_where_they_are() -> None:
    """Opening elsewhere and configuring there moves no thread of this process."""
    stop = threading.Event()
    moved: set[str] = set()

    def place(thread: str) -> int:
        return os.stat(f"/proc/self/task/{thread}/ns/net").st_ino

    def watch() -> None:
        while not stop.is_set():
            moved.update(thread for thread, inode in before.items() if place(thread) != inode)
            time.sleep(0.001)

    # A test runner's own threads may live in another namespace than this one.
    before = {thread: place(thread) for thread in os.listdir("/proc/self/task")}
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with named_netns() as name:
            for _ in range(5):
                async with AsyncTuntap("there0", mode="tap", netns=name) as interface:
                    await interface.configure(up=True)
                    await interface.add_queues()
    finally:
        stop.set()
        await asyncio.to_thread(watcher.join)
    assert not moved


async def test_a_path_that_is_not_a_namespace(tmp_path: object) -> None:
    path = f"{tmp_path}/file"
    with open(path, "w"):
        pass
    with pytest.raises(SetupError, match="cannot enter network namespace"):
        await AsyncTuntap(unique(), mode="tap", netns=path).open()


async def test_netlink_works_the_same_while_a_reader_waits() -> None:
    async with tap(queues=2) as interface:
        reader = asyncio.ensure_future(interface.queues[0].read_frame())
        await asyncio.gather(*(interface.configure(mtu=1400 + number) for number in range(5)))
        assert link(interface.name)["mtu"] in range(1400, 1405)
        reader.cancel()
        await settle()


async def test_cancelling_configure_leaks_nothing() -> None:
    async with tap() as interface:
        await interface.configure(mtu=1400)
        before = len(os.listdir("/proc/self/fd"))
        for delay in (0, 0.0001, 0.0005, 0.001, 0.002):
            task = asyncio.ensure_future(interface.configure(mtu=1500, addresses=["10.1.0.1/24"], up=True))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await settle()
        assert len(os.listdir("/proc/self/fd")) == before
        assert await idle_share() < 0.05


async def test_gone_before_it_is_configured() -> None:
    async with tap() as interface:
        ip("link", "del", interface.name)
        with pytest.raises((DeviceGoneError, SetupError)):
            await interface.configure(up=True)
        assert _device.QueueFile(-1).fd == -1
