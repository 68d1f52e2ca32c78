"""Tests with independent programs: iperf3 (TCP), tcpdump, and ping (checksums)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
from pathlib import Path

import dpkt
import pytest

from aiotuntap import AsyncTuntap, TuntapQueue
from aiotuntap.testing import example_frame

from .support import ip, named_netns, needs_root, socket_in, tap_with_peer

pytestmark = pytest.mark.usefixtures("engine")


async def forward(a: TuntapQueue, b: TuntapQueue) -> None:
    while True:
        await b.write_frames(await a.read_frames())


@contextlib.asynccontextmanager
async def relay(one: AsyncTuntap, other: AsyncTuntap):  # type: ignore[no-untyped-def]
    tasks = []
    for here, there in zip(one.queues, other.queues, strict=True):
        tasks += [asyncio.ensure_future(forward(here, there)), asyncio.ensure_future(forward(there, here))]
    yield
    assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_tcp_and_ping_through_a_forwarder() -> None:
    with named_netns() as left, named_netns() as right:
        async with (
            AsyncTuntap("left0", mode="tun", netns=left, queues=2) as one,
            AsyncTuntap("right0", mode="tun", netns=right, queues=2) as other,
        ):
            await one.configure(addresses=["10.20.0.1/24"], up=True)
            await other.configure(addresses=["10.20.0.2/24"], up=True)
            async with relay(one, other):
                ping = await run(
                    "ip", "netns", "exec", left, "ping", "-c", "20", "-w", "10", "-i", "0.01", "-s", "1400", "10.20.0.2"
                )
                assert " 20 received" in ping and "wrong" not in ping
                server = await asyncio.create_subprocess_exec(
                    "ip", "netns", "exec", right, "iperf3", "-s", "-1", stdout=asyncio.subprocess.DEVNULL
                )
                try:
                    for _ in range(100):
                        if ":5201" in await run("ip", "netns", "exec", right, "ss", "-Hltn"):
                            break
                        await asyncio.sleep(0.02)
                    report = json.loads(
                        await run("ip", "netns", "exec", left, "iperf3", "-c", "10.20.0.2", "-n", "8M", "-P", "2", "-J")
                    )
                    assert report["end"]["sum_received"]["bytes"] > 1_000_000
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        server.terminate()
                    await server.wait()
                assert one.stats.frames_refused == other.stats.frames_refused == 0


async def test_every_byte_arrives() -> None:
    """A megabyte over the kernel's TCP and this forwarder, hash compared."""
    payload = bytes(range(256)) * 4096
    received = hashlib.sha256()
    with named_netns() as left, named_netns() as right:
        async with (
            AsyncTuntap("left0", mode="tap", netns=left) as one,
            AsyncTuntap("right0", mode="tap", netns=right) as other,
        ):
            await one.configure(addresses=["10.21.0.1/24"], up=True)
            await other.configure(addresses=["10.21.0.2/24"], up=True)
            async with relay(one, other):
                listener, client = await asyncio.gather(
                    asyncio.to_thread(socket_in, right, seconds=15), asyncio.to_thread(socket_in, left, seconds=15)
                )
                with listener, client:
                    listener.bind(("10.21.0.2", 4000))
                    listener.listen()

                    def receive() -> None:
                        connection, _ = listener.accept()
                        with connection:
                            while data := connection.recv(65536):
                                received.update(data)

                    def send() -> None:
                        client.connect(("10.21.0.2", 4000))
                        client.sendall(payload)
                        client.shutdown(socket.SHUT_WR)

                    async with asyncio.timeout(20):
                        await asyncio.gather(asyncio.to_thread(receive), asyncio.to_thread(send))
    assert received.digest() == hashlib.sha256(payload).digest()


@needs_root
async def test_tcpdump_sees_what_was_written_and_read(tmp_path: Path) -> None:
    file = tmp_path / "seen.pcap"
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        # A small snapshot length, since tcpdump's buffer is as many frames of that length as fit.
        tcpdump = await asyncio.create_subprocess_exec(
            *(
                "tcpdump",
                "-i",
                interface.name,
                "-U",
                "--immediate-mode",
                "-s",
                "256",
                "-Z",
                "root",
                "-w",
                str(file),
                "ether",
                "proto",
                "0x88b5",
            ),
            stderr=asyncio.subprocess.PIPE,
        )
        assert tcpdump.stderr is not None
        told = b""
        while b"listening on" not in told:
            line = await tcpdump.stderr.readline()
            assert line, told.decode()
            told += line
        written = [example_frame(number, 60 + number) for number in range(50)]
        await queue.write_frames(written)
        for number in range(100, 150):
            peer.send(example_frame(number))
        read = [await queue.read_frame() for _ in range(50)]
        size = 24 + sum(16 + len(frame) for frame in written + read)
        for _ in range(200):
            if len(await asyncio.to_thread(file.read_bytes)) >= size:
                break
            await asyncio.sleep(0.02)
        tcpdump.terminate()
        await tcpdump.wait()
        assert ip("-br", "link", "show", interface.name)
    with file.open("rb") as capture:
        assert [packet for _, packet in dpkt.pcap.Reader(capture)] == written + read
