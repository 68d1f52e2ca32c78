"""A child process that answers ICMP echo requests, or one that sends them.

``KIND NETNS NAME LIBRARY`` makes a TUN interface, prints "ready", and ends by SIGTERM.
``ping NETNS ADDRESS LIBRARY COUNT`` prints the 50th and the 99th percentile of the round trip in nanoseconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
from statistics import quantiles

from aiotuntap import AsyncTuntap

from .lab import enter, open_tun
from .native import Loops
from .report import LOOPS

#: Nanoseconds between a reply and the next request.
_PAUSE = 1_000_000

_READ_SIZE = 65664


def reply_to(request: bytes) -> bytearray | None:
    """The answer to an IPv4 echo request without IP options; None to anything else."""
    if len(request) < 28 or request[0] != 0x45 or request[9] != 1 or request[20] != 8:
        return None
    reply = bytearray(request)
    reply[12:16], reply[16:20] = request[16:20], request[12:16]
    # Type 0 for type 8: the checksum grows by 0x0800, and a carry comes back in at the low end (RFC 1624).
    total = (request[22] << 8 | request[23]) + 0x0800
    reply[20] = 0
    reply[22:24] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    return reply


async def _answer(netns: str, name: str) -> None:
    async with AsyncTuntap(name, mode="tun", netns=netns) as tun:
        queue = tun.queues[0]
        print("ready", flush=True)
        while True:
            reply = reply_to(await queue.read_frame())
            if reply is not None:
                await queue.write_frame(reply)


async def _answer_plainly(netns: str, name: str) -> None:
    """What Python costs with neither a task nor a stream: everything within the callback."""
    fd = open_tun(name, netns)

    def answer() -> None:
        reply = reply_to(os.read(fd, _READ_SIZE))
        if reply is not None:
            os.write(fd, reply)

    asyncio.get_running_loop().add_reader(fd, answer)
    print("ready", flush=True)
    await asyncio.get_running_loop().create_future()


def main(kind: str, netns: str, target: str, library: str, count: str = "0") -> None:
    if kind == "ping":
        enter(netns)
        percentiles = quantiles(Loops(library).ping(target, int(count), _PAUSE), n=100)
        print(percentiles[49], percentiles[98])
    elif kind == "c":
        fd = open_tun(target, netns)
        print("ready", flush=True)
        sys.exit(Loops(library).echo(fd))
    else:
        name, _, loop = kind.partition("-")
        answer = {"aiotuntap": _answer, "plain": _answer_plainly}[name]
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(answer(netns, target))


if __name__ == "__main__":
    main(*sys.argv[1:])
