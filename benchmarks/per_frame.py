"""CPU time of one frame, as a multiple of a C loop over read(2) or write(2)."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from aiotuntap import AsyncTuntap, TuntapQueue, _turns

from .lab import enter_private_namespace
from .report import LOOPS
from .results import Figure, Table, figure

if TYPE_CHECKING:
    from .native import Loops

_SIZES = (64, 1400)
#: In the kernel's queue at the start of a run: so many that neither waking up nor cold caches count for much.
_FRAMES = 4096
_BATCH = 64
_READ_SIZE = 65664

#: The rows, for reading and for writing.
_ROWS = (
    ["C, `read(2)`", "`read_frames`", "`read_frames`, one batch a turn", "`read_frame`", "a loop over `os.read`"],
    ["C, `write(2)`", "`write_frames`", "`write_frame`", "a loop over `os.write`"],
)

Contestant: TypeAlias = Callable[[], Awaitable[None]]
#: For each contestant, nanoseconds a frame and their ratios to C.
Samples: TypeAlias = dict[str, tuple[list[float], list[float]]]


def packet(size: int) -> bytes:
    """IPv4 with a wrong header checksum: the kernel drops it at the first look, at the same low price for everyone."""
    header = bytearray(20)
    header[0] = 0x45
    header[2:4] = size.to_bytes(2, "big")
    header[8:10] = (64, socket.IPPROTO_UDP)
    header[12:20] = bytes((10, 77, 0, 9, 10, 77, 0, 10))
    return bytes(header) + bytes(size - len(header))


@contextmanager
def one_batch_a_turn() -> Iterator[None]:
    """Ends every time slice at once: each batch is one turn of the loop. It shows what time slices save."""
    usual = _turns.SLICE
    _turns.SLICE = 0.0
    try:
        yield
    finally:
        _turns.SLICE = usual


def _readers(queue: TuntapQueue) -> dict[str, Contestant]:
    fd = queue.fileno()

    async def read_frames() -> None:
        count = 0
        while count < _FRAMES:
            count += len(await queue.read_frames())

    async def read_by_turns() -> None:
        with one_batch_a_turn():
            await read_frames()

    async def read_frame() -> None:
        for _ in range(_FRAMES):
            await queue.read_frame()

    async def plain() -> None:
        read = os.read
        for _ in range(_FRAMES):
            read(fd, _READ_SIZE)

    return {
        "`read_frames`": read_frames,
        "`read_frames`, one batch a turn": read_by_turns,
        "`read_frame`": read_frame,
        "a loop over `os.read`": plain,
    }


def _writers(queue: TuntapQueue, frame: bytes) -> dict[str, Contestant]:
    fd = queue.fileno()

    async def write_frames() -> None:
        for _ in range(_FRAMES // _BATCH):
            await queue.write_frames([frame] * _BATCH)

    async def write_frame() -> None:
        for _ in range(_FRAMES):
            await queue.write_frame(frame)

    async def plain() -> None:
        write = os.write
        for _ in range(_FRAMES):
            write(fd, frame)

    return {"`write_frames`": write_frames, "`write_frame`": write_frame, "a loop over `os.write`": plain}


async def _compete(
    contestants: dict[str, Contestant], prepare: Callable[[], None], c: Callable[[], int], samples: Samples, rounds: int
) -> None:
    """Runs of C and of everyone else by turns: each is compared with the C runs before and after it."""
    clock = time.thread_time_ns

    def run_c() -> float:
        prepare()
        start = clock()
        done = c()
        spent = clock() - start
        assert done == _FRAMES
        return spent / _FRAMES

    # The first run of each warms up: the interpreter specialises what it runs, the kernel fills its caches.
    for number in range(rounds + 1):
        names = random.sample(list(contestants), len(contestants))
        before = run_c()
        for name in names:
            prepare()
            start = clock()
            await contestants[name]()
            spent = (clock() - start) / _FRAMES
            after = run_c()
            if number:
                costs, ratios = samples.setdefault(name, ([], []))
                costs.append(spent)
                ratios.append(2 * spent / (before + after))
                samples.setdefault("C", ([], []))[0].append(after)
            before = after


async def _session(loops: Loops, size: int, rounds: int, read: Samples, written: Samples) -> None:
    frame = packet(size)
    async with AsyncTuntap("bench%d", mode="tun") as tun:
        await tun.configure(up=True, txqueuelen=2 * _FRAMES)
        queue = tun.queues[0]
        fd = queue.fileno()
        # Protocol 0 sends and never receives: a socket that listened would get a copy of each frame written.
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind((tun.name, 0))

            def fill() -> None:
                # Straight from here to the measurement, so that the queue's callback runs within it or not at all.
                while loops.drain(fd, _FRAMES):
                    pass
                assert loops.fill(sender.fileno(), frame, size, _FRAMES) == _FRAMES

            await _compete(_readers(queue), fill, lambda: loops.drain(fd, _FRAMES), read, rounds)
            assert queue.stats.frames_read == 3 * (rounds + 1) * _FRAMES
        await _compete(
            _writers(queue, frame), lambda: None, lambda: loops.flood(fd, frame, size, _FRAMES), written, rounds
        )
        assert queue.stats.frames_written == 2 * (rounds + 1) * _FRAMES


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    enter_private_namespace()
    sessions = 2 if quick else 6
    # Several sessions of each loop by turns: no two objects, and no two interfaces, are laid out alike in memory.
    results: dict[tuple[str, int], tuple[Samples, Samples]] = {
        (loop, size): ({}, {}) for loop in LOOPS for size in _SIZES
    }
    for _ in range(sessions):
        for (name, size), (read, written) in results.items():
            with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
                runner.run(_session(loops, size, rounds, read, written))
    ratios: dict[str, list[Figure | None]] = {}
    costs: dict[str, list[Figure | None]] = {}
    for which, (c, *names) in enumerate(_ROWS):
        cells = [each[which] for each in results.values()]
        costs[c] = [figure(samples["C"][0]) for samples in cells]
        for name in names:
            costs[name] = [figure(samples[name][0]) for samples in cells]
            ratios[name] = [figure(samples[name][1]) for samples in cells]
    heads = [f"{loop}, {size} B" for loop, size in results]
    return [
        Table("CPU time of one frame", "C = 1", dict.fromkeys(heads, 2), ratios),
        Table("CPU time of one frame, nanoseconds", "", {f"{head}, ns": 0 for head in heads}, costs),
    ]
