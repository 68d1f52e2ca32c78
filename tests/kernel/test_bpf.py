"""Steering and filter programs in the kernel, by which queue gets which frame, and how much of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aiotuntap import AsyncTuntap, SetupError, bpf
from aiotuntap.testing import example_frame

from .support import PacketPeer, link, needs_root, tap, tap_with_peer, tun

pytestmark = needs_root

ROOT = Path(__file__).parents[2]
QUEUES = 3
FIELD = 36


def frame(number: int, field: int = 0, size: int = 60) -> bytes:
    """An Ethernet frame with *field* where the destination port would be."""
    data = example_frame(number, size)
    return data[:FIELD] + field.to_bytes(2) + data[FIELD + 2 :]


def take(interface: AsyncTuntap) -> list[list[bytes]]:
    """The frames waiting on each queue. The kernel queues a frame before the sending call returns."""
    taken: list[list[bytes]] = []
    for queue in interface.queues:
        taken.append([])
        try:
            while True:
                taken[-1].append(queue.read_frame_nowait())
        except BlockingIOError:
            pass
    return taken


def dropped(interface: AsyncTuntap) -> int:
    count: int = link(interface.name)["stats64"]["tx"]["dropped"]
    return count


def udp(port: int) -> bytes:
    """An Ethernet frame with an IPv4/UDP packet, one flow for each port."""
    ip_header = bytes.fromhex("4500002e000040004011") + bytes(2) + bytes([10, 0, 0, 1, 10, 0, 0, 2])
    return b"\xff" * 6 + b"\x02\0\0\0\0\x01\x08\0" + ip_header + port.to_bytes(2) + b"\0\7\0\x1a\0\0" + bytes(18)


async def test_constant_puts_every_frame_on_one_queue_and_wraps() -> None:
    async with tap_with_peer(queues=QUEUES) as (interface, peer):
        for queue in (0, 1, 2, 3, 5, 65535):
            with bpf.constant(queue) as program:
                await interface.set_steering(program.fileno())
            sent = [frame(number, number) for number in range(12)]
            for each in sent:
                peer.send(each)
            got = take(interface)
            assert got[queue % QUEUES] == sent and sum(map(len, got)) == len(sent), queue


async def test_a_field_spreads_frames_exactly_and_outlives_its_descriptor() -> None:
    async with tap_with_peer(queues=QUEUES) as (interface, peer):
        values = [*range(30), 255, 256, 4660, 13330, 65534, 65535]
        sent = [frame(number, value) for number, value in enumerate(values)]
        with bpf.by_field(FIELD) as program:
            await interface.set_steering(program.fileno())
            for turn in range(2):
                if turn:
                    program.close()
                for each in sent:
                    peer.send(each)
                expected = [
                    [each for each, value in zip(sent, values, strict=True) if value % QUEUES == queue]
                    for queue in range(QUEUES)
                ]
                assert take(interface) == expected


async def test_frames_too_short_for_the_field_go_to_the_first_queue() -> None:
    async with tap_with_peer(queues=QUEUES) as (interface, peer):
        with bpf.by_field(FIELD) as program:
            await interface.set_steering(program.fileno())
        for size in (FIELD, FIELD + 1):
            peer.send(frame(1, 1, size)[:size])
        assert [len(each) for each in take(interface)] == [2, 0, 0]


async def test_a_field_in_tun_mode_counts_from_the_ip_header() -> None:
    async with tun(queues=QUEUES) as interface:
        with bpf.by_field(22) as program:
            await interface.set_steering(program.fileno())
        with PacketPeer(interface.name, 0x0800, tun=True) as peer:
            for port in range(9):
                packet = udp(0)[14:]
                peer.socket.sendto(packet[:22] + port.to_bytes(2) + packet[24:], (interface.name, 0x0800))
        got = take(interface)
        assert [[packet[23] for packet in each] for each in got] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


async def test_the_cpu_chooses() -> None:
    before = os.sched_getaffinity(0)
    async with tap_with_peer(queues=QUEUES) as (interface, peer):
        with bpf.by_cpu() as program:
            await interface.set_steering(program.fileno())
        try:
            for cpu in sorted(before)[:8]:
                os.sched_setaffinity(0, {cpu})
                for number in range(10):
                    peer.send(frame(number))
                assert [len(each) for each in take(interface)] == [
                    10 if queue == cpu % QUEUES else 0 for queue in range(QUEUES)
                ]
        finally:
            os.sched_setaffinity(0, before)


async def test_none_restores_the_kernels_choice() -> None:
    async with tap(queues=QUEUES) as interface:
        with PacketPeer(interface.name, 0x0800) as peer:

            def spread() -> list[int]:
                for port in range(1000, 1064):
                    peer.send(udp(port))
                return [len(each) for each in take(interface)]

            without = spread()
            assert sum(without) == 64 and 0 not in without
            with bpf.constant(1) as program:
                await interface.set_steering(program.fileno())
            assert spread() == [0, 64, 0]
            await interface.set_steering(None)
            assert spread() == without


async def test_a_filter_drops_cuts_and_goes() -> None:
    async with tap_with_peer() as (interface, peer):
        sent = frame(7, size=200)
        before = dropped(interface)
        with bpf.keep(0) as program:
            await interface.set_filter(program.fileno())
        for _ in range(5):
            peer.send(sent)
        assert take(interface) == [[]]
        assert dropped(interface) == before + 5
        for size in (1, 14, 60, 199, 200, 201, 70000):
            with bpf.keep(size) as program:
                await interface.set_filter(program.fileno())
            peer.send(sent)
            assert take(interface) == [[sent[:size]]]
        with bpf.keep(0) as program:
            await interface.set_filter(program.fileno())
        await interface.set_filter(None)
        peer.send(sent)
        assert take(interface) == [[sent]]
        assert dropped(interface) == before + 5


async def test_a_descriptor_that_is_not_a_program_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tap_with_peer(queues=QUEUES) as (interface, peer):
        with bpf.constant(2) as program:
            await interface.set_steering(program.fileno())
            closed = program.fileno()
        monkeypatch.setattr(bpf, "SOCKET_FILTER", 6)  # BPF_PROG_TYPE_XDP
        with open(os.devnull) as file, bpf.constant(1) as wrong_type:
            for fd, number in (
                (closed + 100, errno.EBADF),
                (file.fileno(), errno.EINVAL),
                (wrong_type.fileno(), errno.EINVAL),
            ):
                for change, setting in ((interface.set_steering, "steering"), (interface.set_filter, "filter")):
                    with pytest.raises(SetupError, match=setting) as caught:
                        await change(fd)
                    assert caught.value.errno == number
        peer.send(frame(1))
        assert [len(each) for each in take(interface)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("instructions", "number", "says"),
    [
        ([bpf.EXIT], errno.EACCES, "R0 !read_ok"),
        ([bpf.Instruction(0x28), bpf.EXIT], errno.EACCES, "R6 !read_ok"),
        ([bpf.Instruction(0xB7)], errno.EINVAL, "last insn is not an exit or jmp"),
        ([bpf.Instruction(0x85, immediate=99999), bpf.EXIT], errno.EINVAL, "invalid func"),
    ],
)
def test_a_refused_program_raises_with_the_verifiers_log(
    instructions: list[bpf.Instruction], number: int, says: str
) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SetupError) as caught:
        bpf.Program(instructions).load()
    assert caught.value.errno == number
    assert says in str(caught.value)
    assert os.listdir("/proc/self/fd") == before


def test_without_privilege_the_error_says_which() -> None:
    code = (
        "import os, aiotuntap.bpf as bpf; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: bpf.by_cpu().load()\n"
        "except PermissionError as error: print(error.errno, error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    if Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip() == "0":
        assert run.stdout == ""  # this kernel lets everybody load programs
        return
    assert run.stdout.startswith(f"{errno.EPERM} ")
    assert "CAP_BPF" in run.stdout and "kernel.unprivileged_bpf_disabled" in run.stdout


def test_signals_do_not_keep_a_program_from_being_loaded() -> None:
    """The verifier gives up with EAGAIN when a signal is pending."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    started = time.perf_counter()
    for _ in range(20):
        bpf.by_cpu().load().close()
    interval = max(0.0002, (time.perf_counter() - started) / 10)  # one program is loaded in half of it
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    try:
        while len(seen) < 300:
            bpf.by_cpu().load().close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_kernel_without_the_call_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "syscall_number", lambda: 100000)
    with pytest.raises(SetupError, match="CONFIG_BPF_SYSCALL") as caught:
        bpf.by_cpu().load()
    assert caught.value.errno == errno.ENOSYS


def test_the_descriptor_is_closed_once_and_never_inherited() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with bpf.constant(0) as program:
        fd = program.fileno()
        assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:bpf-prog"
        assert not os.get_inheritable(fd)
        assert "prog_type:\t1\n" in Path(f"/proc/self/fdinfo/{fd}").read_text()
        with pytest.raises(RuntimeError, match="loaded already"):
            program.load()
    program.close()
    with pytest.raises(ValueError, match="not loaded"):
        program.fileno()
    with program:  # again
        program.fileno()
    forgotten = bpf.by_cpu().load()
    del forgotten
    assert len(os.listdir("/proc/self/fd")) == before
