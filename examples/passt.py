"""Connects a network namespace to the network through passt, without root.

Outside of the namespace, as an ordinary user::

    passt --foreground --ipv4-only --address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --socket /tmp/passt.socket

and inside, in another terminal::

    unshare -Urn sh
    python examples/passt.py net0 /tmp/passt.socket &
    curl http://10.0.2.2:8000/  # a server on 127.0.0.1:8000 of the host

passt is a TCP/IP stack in user space: it turns the packets of the namespace into sockets of an ordinary user. It listens
on a Unix socket and uses the same format as with QEMU: each Ethernet frame follows its length in four bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys

from aiotuntap import AsyncTuntap, InvalidFrameError, LinkDownError, TuntapQueue

#: The largest MTU that passt knows. With it, one frame carries 64 KiB, and neither side has to segment anything.
MTU = 65520
#: The largest frame: an IP packet and the Ethernet header.
LARGEST = 65535 + 14


def split(received: bytes) -> tuple[list[bytes], bytes]:
    """The complete frames, and the remaining bytes. Raises ValueError if this is not a stream of frames."""
    frames, at = [], 0
    while len(received) - at >= 4:
        size = int.from_bytes(received[at : at + 4])
        if size > LARGEST:
            raise ValueError(f"the other end of the socket is not passt: it sent a frame of {size} bytes")
        end = at + 4 + size
        if end > len(received):
            break
        frames.append(received[at + 4 : end])
        at = end
    return frames, received[at:]


async def send(queue: TuntapQueue, writer: asyncio.StreamWriter) -> None:
    while True:
        frames = await queue.read_frames()
        writer.write(b"".join(len(frame).to_bytes(4) + frame for frame in frames))
        await writer.drain()


async def receive(reader: asyncio.StreamReader, queue: TuntapQueue) -> None:
    rest = b""
    while data := await reader.read(1 << 18):
        frames, rest = split(rest + data)
        with contextlib.suppress(LinkDownError, InvalidFrameError):  # the frames are lost
            await queue.write_frames(frames)
    raise ConnectionResetError


async def run(options: argparse.Namespace) -> None:
    main = asyncio.current_task()
    assert main is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, main.cancel)
    try:
        reader, writer = await asyncio.open_unix_connection(options.socket, limit=1 << 20)
    except OSError as error:
        raise OSError(error.errno, f"cannot connect to passt at {options.socket}: {error.strerror}") from error
    with contextlib.closing(writer):
        async with AsyncTuntap(options.name, mode="tap") as tap:
            routes = [f"default via {options.gateway}"]
            await tap.configure(mtu=MTU, addresses=[options.address], routes=routes, up=True)
            print(f"ready: {tap.name} {options.address}", flush=True)
            async with asyncio.TaskGroup() as group:
                group.create_task(send(tap.queues[0], writer))
                group.create_task(receive(reader, tap.queues[0]))


def main() -> int:
    parser = argparse.ArgumentParser(description="Gives this namespace a way out through passt.")
    parser.add_argument("name", help="of the interface, such as net0")
    parser.add_argument("socket", help="where passt listens")
    parser.add_argument("--address", default="10.0.2.15/24", help="the one that passt was given")
    parser.add_argument("--gateway", default="10.0.2.2", help="the one that passt was given")
    options = parser.parse_args()
    status = 0
    try:
        asyncio.run(run(options))
    except* asyncio.CancelledError:
        pass
    except* (ConnectionResetError, BrokenPipeError):
        print(f"{parser.prog}: passt has ended", file=sys.stderr)
        status = 1
    except* (OSError, ValueError) as errors:  # of the interface, of connecting, or of an argument
        print(f"{parser.prog}: {errors.exceptions[0]}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
