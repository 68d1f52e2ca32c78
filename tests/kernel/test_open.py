"""Opening: what the kernel is asked for, what it answers, and that a failure leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal

import pytest

from aiotuntap import AsyncTuntap, Mode, Offload, SetupError, _abi, _device, _queue
from aiotuntap._device import AttachError, Options
from aiotuntap._netlink.diagnosis import explain

from .support import (
    anyone_attaches,
    ip,
    link,
    named_netns,
    needs_root,
    offers,
    settle,
    tap,
    tun_info,
    unique,
    until,
    watched_fds,
)


async def refused(expected: int, match: str, name: str, **options: Any) -> SetupError:
    fds = os.listdir("/proc/self/fd")
    with pytest.raises(SetupError, match=match) as caught:
        await AsyncTuntap(name, **options).open()
    assert caught.value.errno == expected
    assert isinstance(caught.value, PermissionError) == (expected in (errno.EPERM, errno.EACCES))
    assert len(os.listdir("/proc/self/fd")) == len(fds)
    return caught.value


@pytest.mark.parametrize("mode", ["tun", Mode.TAP])
async def test_creates_what_was_asked_for(mode: Literal["tun"] | Mode) -> None:
    name = unique()
    async with AsyncTuntap(name, mode=mode) as interface:
        assert interface.name == name
        assert interface.mode == mode
        assert interface.index == socket.if_nametoindex(name)
        assert interface.netns is None
        assert not interface.closed
        (queue,) = interface.queues
        assert queue.enabled and not queue.closed
        assert not os.get_blocking(queue.fileno())
        assert not os.get_inheritable(queue.fileno())
        await settle()
        assert queue.fileno() in watched_fds()
        info = tun_info(name)
        assert (info["type"], info["pi"], info["vnet_hdr"], info["multi_queue"]) == (str(mode), False, False, True)
        assert (info["numqueues"], info["numdisabled"]) == (1, 0)
    assert interface.closed and queue.closed and queue.fileno() == -1
    assert interface.queues == ()
    assert name not in ip("link")


@pytest.mark.parametrize("name", ["", "sw%d"])
async def test_the_kernel_completes_a_template_once_for_all_queues(name: str) -> None:
    async with AsyncTuntap(name, mode="tap", queues=3) as interface:
        assert interface.name == (name or "tap%d") % 0
        assert tun_info(interface.name)["numqueues"] == 3
        async with AsyncTuntap(name, mode="tap") as second:
            assert second.name == (name or "tap%d") % 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"name": "x" * 16}, ValueError, "at most 15 bytes, and 'x{16}' has 16"),
        ({"name": "a/b"}, ValueError, "interface name"),
        ({"mode": "tin"}, ValueError, "mode must be 'tun' or 'tap', not 'tin'"),
        ({"queues": 0}, ValueError, "queues must be at least 1, not 0"),
        ({"queues": "2"}, TypeError, "queues must be a whole number, not '2'"),
        ({"queues": 2, "multi_queue": False}, ValueError, "multi_queue"),
        ({"read_buffer": 0}, ValueError, "read_buffer"),
        ({"read_buffer": (4, 4)}, ValueError, "read_buffer"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        AsyncTuntap(**{"mode": "tun", **options})


def test_mode_is_required() -> None:
    with pytest.raises(TypeError):
        AsyncTuntap("x")  # type: ignore[call-arg]


async def test_opening_twice_and_using_it_unopened() -> None:
    interface = AsyncTuntap(unique(), mode="tun")
    with pytest.raises(RuntimeError, match="not open yet"):
        await interface.add_queues()
    with pytest.raises(RuntimeError, match="not open yet"):
        _ = interface.index
    async with interface:
        with pytest.raises(RuntimeError, match="opened before"):
            await interface.open()
    await interface.aclose()


async def test_opening_can_be_tried_again_after_a_failure() -> None:
    interface = AsyncTuntap(unique(), mode="tun", netns="nowhere-at-all")
    for _ in range(2):
        with pytest.raises(SetupError, match="ip netns add nowhere-at-all") as caught:
            await interface.open()
        assert caught.value.errno == errno.ENOENT


async def test_attaches_to_an_existing_interface() -> None:
    async with tap() as first, AsyncTuntap(first.name, mode="tap", queues=2) as second:
        assert second.name == first.name and second.index == first.index
        assert tun_info(first.name)["numqueues"] == 3


async def test_exclusive_refuses_to_attach() -> None:
    async with tap() as first:
        await refused(errno.EBUSY, "exclusive=True", first.name, mode="tap", exclusive=True)
    async with AsyncTuntap(unique(), mode="tap", exclusive=True, queues=2) as alone:
        assert len(alone.queues) == 2


async def test_names_of_other_interfaces() -> None:
    await refused(errno.EINVAL, "not a TUN/TAP interface", "lo", mode="tun")


@pytest.mark.parametrize(
    ("there", "asked", "match"),
    [
        ({}, {"mode": "tun"}, "exists as a tap interface: open it with mode='tap'"),
        ({}, {"multi_queue": False}, "multi_queue=True"),
        ({"multi_queue": False}, {}, "multi_queue=False"),
        ({}, {"packet_info": True}, "packet_info=False"),
        ({"packet_info": True}, {}, "packet_info=True"),
        ({}, {"vnet_header": True}, "vnet_header=False"),
        ({"vnet_header": True}, {}, "vnet_header=True"),
    ],
)
async def test_a_mismatch_of_options_is_named(there: dict[str, Any], asked: dict[str, Any], match: str) -> None:
    async with tap(**there) as first:
        await refused(errno.EINVAL, match, first.name, **{"mode": "tap", **asked})
        assert tun_info(first.name)["pi"] == bool(there.get("packet_info"))


async def test_a_single_queue_in_use() -> None:
    async with tap(multi_queue=False) as first:
        assert not tun_info(first.name)["multi_queue"]
        await refused(errno.EBUSY, "its only queue is in use", first.name, mode="tap", multi_queue=False)
        with pytest.raises(ValueError, match="can have one queue only, .* multi_queue=False"):
            await first.add_queues()


async def test_256_queues_and_no_more() -> None:
    async with AsyncTuntap(unique(), mode="tap", queues=250) as interface:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(SetupError, match="256 queues") as caught:
            await interface.add_queues(7)
        assert caught.value.errno == errno.E2BIG
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(interface.queues) == tun_info(interface.name)["numqueues"] == 250
        await interface.add_queues(6)
        assert tun_info(interface.name)["numqueues"] == 256
        await refused(errno.E2BIG, "256 queues", interface.name, mode="tap")
        await interface.queues[7].disable()
        await refused(errno.E2BIG, "256 queues", interface.name, mode="tap")
        await interface.remove_queues(interface.queues[7])
        await interface.add_queues()
        assert len({queue.fileno() for queue in interface.queues}) == 256
    await refused(errno.E2BIG, "256 queues", unique(), mode="tun", queues=257)


async def test_no_descriptors_left() -> None:
    import resource

    name = unique()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5, limits[1]))
    try:
        with pytest.raises(SetupError, match="ulimit -n") as caught:
            await AsyncTuntap(name, mode="tap", queues=20).open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE
    assert name not in ip("link")


async def test_missing_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_abi, "NODE", "/dev/net/no-such-node")
    await refused(errno.ENOENT, "mknod", unique(), mode="tun")


@needs_root
async def test_node_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = tmp_path / "tun"
    os.mknod(node, 0o600 | 0o020000, os.makedev(10, 255))  # a minor number that nothing registers
    monkeypatch.setattr(_abi, "NODE", str(node))
    with pytest.raises(SetupError, match="modprobe tun") as caught:
        await AsyncTuntap(unique(), mode="tun").open()
    assert caught.value.errno in (errno.ENODEV, errno.ENXIO)


def without_net_admin(code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code as root without CAP_NET_ADMIN, in this namespace."""
    return subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


CREATE_AND_REPORT = """
    import asyncio, os, sys
    from aiotuntap import *
    async def main():
        fds = len(os.listdir("/proc/self/fd"))
        try:
            async with AsyncTuntap({name!r}, mode="tap"):
                print("attached")
        except SetupError as error:
            print(error.errno, isinstance(error, PermissionError), error)
        assert len(os.listdir("/proc/self/fd")) == fds
    asyncio.run(main())
"""


def test_creating_without_privilege() -> None:
    run = without_net_admin(CREATE_AND_REPORT.format(name=unique()))
    assert run.stdout.startswith(f"{errno.EPERM} True") and "CAP_NET_ADMIN" in run.stdout, run.stderr
    assert "ip tuntap add" in run.stdout


@needs_root
@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        ([], "attached"),
        (["user", "12345"], "belongs to user 12345"),
        (["group", "54321"], "belongs to group 54321"),
        (["user", "0", "group", "54321"], "belongs to user 0 and group 54321"),
        (["user", "0"], "attached"),
    ],
)
def test_attaching_without_privilege_follows_owner_and_group(owner: list[str], expected: str) -> None:
    name = unique()
    ip("tuntap", "add", "mode", "tap", "name", name, "multi_queue", *owner)
    try:
        run = without_net_admin(CREATE_AND_REPORT.format(name=name))
        if not owner and not anyone_attaches():
            expected = "without an owner, and attaching to it takes CAP_NET_ADMIN on this kernel"
        assert expected in run.stdout, run.stdout + run.stderr
        assert tun_info(name)["persist"]
    finally:
        ip("link", "del", name)


async def test_an_interface_without_an_owner_that_only_root_may_open() -> None:
    """Checks the message for a kernel that behaves so, even if this one does not."""
    name = unique()
    ip("tuntap", "add", "mode", "tap", "name", name, "multi_queue")
    try:
        refusal = AttachError(name, PermissionError(errno.EPERM, os.strerror(errno.EPERM)))
        error = await explain(refusal, Options(Mode.TAP), None)
        assert isinstance(error, PermissionError) and error.errno == errno.EPERM
        assert "without an owner, and attaching to it takes CAP_NET_ADMIN on this kernel" in str(error)
        assert f"'ip tuntap add mode tap name {name} user USER multi_queue'" in str(error)
    finally:
        ip("link", "del", name)


async def test_a_queue_that_the_kernel_says_it_attached_but_did_not() -> None:
    """A classic socket filter on the interface makes TUNSETIFF answer 0 without attaching."""
    accept_all = struct.pack("HBBI", 0x06, 0, 0, 0xFFFF)
    import ctypes

    program = ctypes.create_string_buffer(accept_all, len(accept_all))
    fprog = struct.pack("@HP", 1, ctypes.addressof(program))
    async with tap(packet_info=True) as interface:
        fcntl.ioctl(interface.queues[0].fileno(), _abi.TUNATTACHFILTER, fprog)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(SetupError, match="did not attach") as caught:
            await interface.add_queues()
        assert caught.value.errno == errno.EBADFD
        assert len(os.listdir("/proc/self/fd")) == before
        assert tun_info(interface.name)["numqueues"] == 1


@pytest.mark.parametrize("step", ["get_ifreq", "set_value"])
async def test_a_failure_at_any_step_leaves_nothing(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    name = unique()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "made to fail")

    monkeypatch.setattr(_device.QueueFile, step, fail)
    await refused(errno.EIO, "did not attach|cannot set the virtio_net_hdr size", name, mode="tap", queues=2)
    monkeypatch.undo()
    assert name not in ip("link")


async def test_a_failing_registration_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    name = unique()
    resume = _queue.TuntapQueue._resume
    made: list[_queue.TuntapQueue] = []

    def fail_the_third(self: _queue.TuntapQueue) -> None:
        made.append(self)
        if len(made) == 3:
            raise OSError(errno.ENOSPC, "no more watches")
        resume(self)

    monkeypatch.setattr(_queue.TuntapQueue, "_resume", fail_the_third)
    await settle()
    watched = watched_fds()
    with pytest.raises(OSError, match="no more watches"):
        await AsyncTuntap(name, mode="tap", queues=4).open()
    await settle()
    assert watched_fds() == watched
    assert name not in ip("link")


async def test_cancelling_while_it_opens_leaves_nothing() -> None:
    for delay in (0, 0, 0.0001, 0.0003, 0.001, 0.003):
        name = unique()
        interface = AsyncTuntap(name, mode="tap", queues=20)
        task = asyncio.ensure_future(interface.open())
        await asyncio.sleep(delay)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if outcome is interface:
            await interface.aclose()
        else:
            assert isinstance(outcome, asyncio.CancelledError)
        assert name not in ip("link")


async def test_netns_by_name_and_by_path_leaves_this_thread_where_it_is() -> None:
    own = os.stat("/proc/thread-self/ns/net").st_ino
    with named_netns() as name:
        for netns in (name, f"/run/netns/{name}"):
            async with AsyncTuntap("inside0", mode="tap", netns=netns, queues=2) as interface:
                assert interface.netns == netns
                assert tun_info("inside0", "-n", name)["numqueues"] == 2
                assert interface.index == link("inside0", "-n", name)["ifindex"]
                assert "inside0" not in ip("link")
                await interface.configure(addresses=["10.3.0.1/24"], up=True)
                assert (
                    json.loads(ip("-n", name, "-j", "addr", "show", "inside0"))[0]["addr_info"][0]["local"]
                    == "10.3.0.1"
                )
                await interface.add_queues(2)
                assert tun_info("inside0", "-n", name)["numqueues"] == 4
                assert os.stat("/proc/thread-self/ns/net").st_ino == own
        await refused(errno.EINVAL, "not a TUN/TAP interface", "lo", mode="tap", netns=name)


async def test_an_interface_may_have_a_second_name() -> None:
    async with tap() as first:
        ip("link", "property", "add", "dev", first.name, "altname", "another-name-altogether")
        ip("link", "property", "add", "dev", first.name, "altname", f"{first.name}x")
        async with AsyncTuntap(f"{first.name}x", mode="tap", queues=2) as second:
            assert second.name == first.name
            assert tun_info(first.name)["numqueues"] == 3


async def test_without_carrier() -> None:
    async with AsyncTuntap(unique(), mode="tap", carrier=False) as interface:
        await interface.configure(up=True)
        # The kernel tells of a carrier in its own time, up to a second later.
        await until(lambda: "NO-CARRIER" in link(interface.name)["flags"])
        await interface.set_carrier(True)
        await until(lambda: "NO-CARRIER" not in link(interface.name)["flags"])


@pytest.mark.parametrize("mode", list(Mode))
async def test_napi_and_offload_flags_reach_the_kernel(mode: Mode) -> None:
    offload = Offload.CSUM | Offload.TSO4
    if offers(offload | Offload.UDP_TUNNEL):
        offload |= Offload.UDP_TUNNEL
    async with AsyncTuntap(unique(), mode=mode, napi=True, vnet_header=True, offload=offload) as interface:
        assert interface.offload == offload
        flags = interface.queues[0]._file.get_ifreq().flags
        assert flags & _abi.IFF_NAPI and flags & _abi.IFF_VNET_HDR
        size = bytearray(4)
        fcntl.ioctl(interface.queues[0].fileno(), _abi.TUNGETVNETHDRSZ, size)
        assert int.from_bytes(size, sys.byteorder) == (24 if Offload.UDP_TUNNEL in offload else 10)
