"""With a real memory limit, every frame is delivered or counted, and no task waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_UNDER_A_LIMIT = """
import asyncio, resource, socket
from aiotuntap import AsyncTuntap

COUNT = 6000

def limit(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + more, -1))

def frame(number):
    return bytes([255] * 6 + [2] + [0] * 5 + [0x88, 0xB5]) + number.to_bytes(4, "big") + bytes(1400)

async def main():
    async with AsyncTuntap("lim%d", mode="tap", read_buffer=(2 * COUNT, 0)) as tun:
        await tun.configure(up=True, txqueuelen=2 * COUNT)
        queue = tun.queues[0]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer:
            peer.bind((tun.name, 0))
            await asyncio.sleep(0)
            sent = [frame(number) for number in range(COUNT)]  # while there is memory
            unlimited = resource.getrlimit(resource.RLIMIT_AS)
            limit(2 << 20)
            for number in range(COUNT):  # far more than there is memory for; the loop buffers what it can
                peer.send(sent[number])
                if not number % 100:
                    await asyncio.sleep(0)
            kept, numbers, errors = [], [], 0
            while len(numbers) + queue.stats.frames_dropped < COUNT:
                try:
                    frames = queue.read_frames_nowait()
                except MemoryError:
                    errors += 1
                    kept.clear()
                    continue
                try:
                    kept.append(frames)
                    numbers += [int.from_bytes(each[14:18], "big") for each in frames]
                except MemoryError:  # for this list itself
                    kept.clear()
                    numbers += [int.from_bytes(each[14:18], "big") for each in frames]
            kept.clear()
            sent.clear()
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
            reader = asyncio.ensure_future(queue.read_frame())
            await asyncio.sleep(0.01)
            peer.send(frame(COUNT))
            assert await asyncio.wait_for(reader, 10) == frame(COUNT)
        in_order = numbers == sorted(set(numbers))
        print(errors > 0, in_order, len(numbers) + queue.stats.frames_dropped, queue.stats.frames_dropped < 10)

asyncio.run(main())
"""


@pytest.mark.parametrize("extension", ["0", ""])
def test_a_real_limit_of_memory_loses_no_frame(extension: str) -> None:
    # With more than one arena, the C library has address space in reserve that no limit touches.
    environment = os.environ | {"AIOTUNTAP_EXTENSION": extension, "MALLOC_ARENA_MAX": "1"}
    run = subprocess.run(
        [sys.executable, "-c", _UNDER_A_LIMIT], capture_output=True, text=True, timeout=50, env=environment, check=False
    )
    assert run.stdout.split() == ["True", "True", "6000", "True"], run.stderr


_EACH_ALLOCATION_FAILS = """
import asyncio, socket
import _testcapi
from aiotuntap.udp import UdpStream

async def main():
    failed = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        async with UdpStream("127.0.0.1:0", peer.getsockname()) as stream:
            for first in range(20):
                sent = [b"%d" % number for number in range(5)]
                for each in sent:
                    peer.sendto(each, (stream.local.host, stream.local.port))
                while len(stream._buffer) < 5:
                    await asyncio.sleep(0)
                got = []
                _testcapi.set_nomemory(first, first + 1)
                try:
                    got = stream.read_frames_nowait(2)
                except MemoryError:
                    failed += 1
                finally:
                    _testcapi.remove_mem_hooks()
                got += stream.read_frames_nowait()
                assert got == sent, (first, got)
    print(failed > 0)

asyncio.run(main())
"""


def test_a_part_of_the_buffer_is_taken_whole_or_not_at_all() -> None:
    pytest.importorskip("_testcapi", reason="this Python comes without its own tests")
    run = subprocess.run(
        [sys.executable, "-c", _EACH_ALLOCATION_FAILS], capture_output=True, text=True, timeout=50, check=False
    )
    assert run.stdout == "True\n", run.stderr
