"""`UdpStream` against plain sockets: batches, with and without segmentation, addresses, errors, closing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest

from aiotuntap import (
    DeviceGoneError,
    InvalidFrameError,
    LinkDownError,
    PacketStream,
    QueueClosedError,
    SetupError,
    udp,
)
from aiotuntap._datagrams import SOL_UDP, UDP_GRO, UDP_SEGMENT
from aiotuntap._descriptor import DescriptorStream
from aiotuntap._engine import NATIVE, PYTHON
from aiotuntap._netns import Namespace
from aiotuntap._udp_socket import SocketOptions, make_socket
from aiotuntap.testing import check_packet_stream
from aiotuntap.udp import Address, UdpStream

from .support import (
    idle_share,
    inside,
    ip,
    make_room,
    named_netns,
    receive_from,
    settle,
    tap,
    turn_on_ipv6,
    until,
    watched_fds,
)

pytestmark = pytest.mark.usefixtures("engine")

HOSTS = ["127.0.0.1", "[::1]"]


@pytest.fixture(autouse=True)
def loopback_has_ipv6() -> None:
    with open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "w") as file:
        file.write("0")


def free_ports(host: str, count: int = 2) -> list[int]:
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in socks:
            sock.bind((host.strip("[]"), 0))
        return [sock.getsockname()[1] for sock in socks]


@asynccontextmanager
async def pair(host: str = "127.0.0.1", **options: Any) -> AsyncIterator[tuple[UdpStream, UdpStream]]:
    one, other = (f"{host}:{port}" for port in free_ports(host))
    async with UdpStream(one, other, **options) as left, UdpStream(other, one, **options) as right:
        yield left, right


@contextlib.contextmanager
def plain_socket(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.setblocking(False)
        yield sock


async def read_all(stream: UdpStream, count: int) -> list[bytes]:
    got: list[bytes] = []
    async with asyncio.timeout(10):
        while len(got) < count:
            got += await stream.read_frames()
    return got


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
async def test_it_is_a_packet_stream(host: str) -> None:
    async with pair(host) as (stream, _):
        assert isinstance(stream, PacketStream)
    await check_packet_stream(lambda: pair(host), sizes=(18, 65507))


async def test_it_is_one_without_segmentation(engine: object) -> None:
    await check_packet_stream(lambda: pair(gso=False, gro=False), sizes=(18, 65507))


# -- batches -----------------------------------------------------------------------------------------------------------


def messages_stay_whole(host: str) -> bool:
    """Whether loopback hands over a message of several datagrams as one. Linux 5.10 segments it before."""
    with plain_socket(host.strip("[]")) as peer, plain_socket(host.strip("[]")) as sock:
        peer.setsockopt(SOL_UDP, UDP_GRO, 1)
        sock.sendmsg([b"abcd"], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 2))], 0, peer.getsockname())
        return len(peer.recv(100)) == 4


@pytest.mark.parametrize("host", HOSTS)
async def test_datagrams_of_one_size_leave_and_come_in_one_message(host: str) -> None:
    async with pair(host) as (left, right):
        sent = [bytes([number]) * 1400 for number in range(40)] + [b"the last one is shorter"]
        await left.write_frames(sent)
        assert await read_all(right, 41) == sent
        assert (left.stats.super_frames_written, left.stats.frames_coalesced) == (1, 41)
        expected = (1, 41) if messages_stay_whole(host) else (0, 0)
        assert (right.stats.super_frames_read, right.stats.segments_made) == expected
        assert left.stats.frames_written == right.stats.frames_read == 41


async def test_any_receiver_gets_the_datagrams() -> None:
    with plain_socket() as peer:
        async with UdpStream("", peer.getsockname()) as stream:
            sent = [bytes([number]) * size for number, size in enumerate([700] * 70 + [5, 0, 5, 5, 9, 9, 2, 2, 0, 0])]
            await stream.write_frames(sent)
            assert [(await receive_from(peer))[0] for _ in sent] == sent
            # 64 of 700 bytes (63 with Linux 5.10), the others with the 5 that is shorter, 5 and 5, 9 and 9 and 2; each of
            # no bytes is alone.
            assert stream.stats.super_frames_written == 4
            assert stream.stats.frames_coalesced == 64 + 7 + 2 + 3


async def test_any_sender_may_send_several_in_one_message() -> None:
    with plain_socket() as peer:
        async with UdpStream("127.0.0.1:0", peer.getsockname()) as stream:
            peer.sendmsg(
                [b"ab" * 100, b"cd" * 100, b"e"],
                [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 200))],
                0,
                (stream.local.host, stream.local.port),
            )
            assert await read_all(stream, 3) == [b"ab" * 100, b"cd" * 100, b"e"]


async def test_without_gso_and_gro_every_datagram_is_one_message() -> None:
    async with pair(gso=False, gro=False) as (left, right):
        sent = [bytes([number]) * 900 for number in range(100)]
        await left.write_frames(sent)
        assert await read_all(right, 100) == sent
        assert left.stats.super_frames_written == right.stats.super_frames_read == 0


async def test_frames_of_all_kinds() -> None:
    async with pair() as (left, right):
        await left.write_frames(
            [b"1234", bytearray(b"5678"), memoryview(b"abcdefgh")[::2], [b"x", b"yz"], (b"q",), b"w"]
        )
        assert await read_all(right, 6) == [b"1234", b"5678", b"aceg", b"xyz", b"q", b"w"]
        await left.write_frame([b"in ", b"pieces"])
        left.write_frame_nowait(bytearray(b"now"))
        assert left.write_frames_nowait([b"a", [b"b", b"c"], b"d", [b""]]) == 4
        assert await read_all(right, 6) == [b"in pieces", b"now", b"a", b"bc", b"d", b""]
        assert left.stats.frames_written == 12


async def test_what_is_not_a_datagram() -> None:
    async with pair() as (left, right):
        with pytest.raises(TypeError, match="not int"):
            await left.write_frames([b"before", 5, b"behind"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="several frames"):
            await left.write_frames(b"one")  # type: ignore[arg-type]
        assert await read_all(right, 1) == [b"before"]


@pytest.mark.parametrize("host", HOSTS)
async def test_the_largest_datagram_and_one_more(host: str) -> None:
    largest = 65507 if host == "127.0.0.1" else 65527
    async with pair(host) as (left, right):
        with pytest.raises(InvalidFrameError, match=f"at most {largest} bytes, not {largest + 1}") as caught:
            await left.write_frames([b"a", bytes(largest + 1), bytes(largest)])
        assert caught.value.indexes == (1,)
        assert await read_all(right, 2) == [b"a", bytes(largest)]
        assert left.stats.frames_refused == 1


async def test_a_batch_of_any_mixture_is_sent_alike_by_both_engines() -> None:
    if NATIVE is None:
        pytest.fail("both engines are compared: the C extension is missing")
    generator = random.Random(7)
    with plain_socket() as peer:
        make_room(peer)
        for _ in range(40):
            sizes = [generator.choice([0, 1, 400, 400, 400, 1400, 1400, 1400, 1400, 9000]) for _ in range(100)]
            frames: list[Any] = [generator.randbytes(size) for size in sizes]
            frames[generator.randrange(100)] = [b"in pieces"]
            largest, together = generator.choice([1400, 65507]), generator.choice([0, 500, 65507])
            outcomes = []
            for engine in (NATIVE, PYTHON):
                with plain_socket() as sock:
                    sock.connect(peer.getsockname())
                    start, most = 5, 90
                    outcomes.append(engine.send_batch(sock, largest, together, start, most, frames, None))
                    for frame in frames[start : start + outcomes[-1][0]]:
                        assert (await receive_from(peer))[0] == frame
            assert outcomes[0] == outcomes[1]
            assert outcomes[0][0] > 0 or outcomes[0][1] == -1


# -- where the kernel cannot -------------------------------------------------------------------------------------------


def refuse_runs(stream: UdpStream, number: int, larger_than: int = 0) -> list[int]:
    """The kernel refuses messages with several datagrams. Returns the sizes of the runs that were tried."""
    tried: list[int] = []
    engine = stream._engine

    def send_batch(
        sock: socket.socket, largest: int, together: int, start: int, most: int, frames: Sequence[Any], to: bytes | None
    ) -> tuple[int, int, int, int, int]:
        if together >= len(frames[start]) > larger_than and len(frames) > start + 1 and most > 1:
            tried.append(len(frames[start]))
            return 0, number, 2, 0, 0
        return engine.send_batch(sock, largest, 0, start, 1, frames, to)

    stream._engine = replace(engine, send_batch=send_batch)
    return tried


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
async def test_datagrams_that_cannot_be_sent_together_are_sent_one_by_one(number: int) -> None:
    async with pair() as (left, right):
        tried = refuse_runs(left, number)
        sent = [bytes([value]) * 500 for value in range(20)]
        for _ in range(3):
            await left.write_frames(sent)
            assert await read_all(right, 20) == sent
        times = 2 if number == errno.EMSGSIZE else 1  # of a connected socket, it might have been an ICMP error
        assert tried == [500] * times  # and not again
        assert left.stats.super_frames_refused == 1
        assert left.stats.frames_written == 60
        if number != errno.EIO:  # smaller ones have a chance
            await left.write_frames([b"ab", b"cd"])
            assert tried == [500] * times + [2] * times


async def test_a_kernel_that_counts_the_headers_gets_one_datagram_less() -> None:
    async with pair() as (left, right):
        engine = left._engine

        def send_batch(
            sock: socket.socket, largest: int, together: int, start: int, most: int, frames: Sequence[Any], to: Any
        ) -> tuple[int, int, int, int, int]:
            if most >= 64 <= len(frames) - start:
                return 0, errno.EINVAL, 64, 0, 0
            return engine.send_batch(sock, largest, together, start, most, frames, to)

        left._engine = replace(engine, send_batch=send_batch)
        sent = [bytes([number]) * 100 for number in range(130)]
        await left.write_frames(sent)
        assert await read_all(right, 130) == sent
        assert (left.stats.super_frames_written, left.stats.super_frames_refused) == (3, 0)


async def test_it_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as (left, right):
        engine = left._engine
        refuse_runs(left, errno.EIO)
        await left.write_frames([b"ab", b"cd"])
        left._engine = engine
        await left.write_frames([b"ab", b"cd"])
        assert left.stats.super_frames_written == 0
        later = monotonic() + 11
        monkeypatch.setattr("aiotuntap.udp.monotonic", lambda: later)
        await left.write_frames([b"ab", b"cd"])
        assert left.stats.super_frames_written == 1
        assert await read_all(right, 6) == [b"ab", b"cd"] * 3


@contextlib.contextmanager
def two_namespaces(mtu: int = 1500) -> Iterator[tuple[str, str]]:
    """Joined by a veth: 10.77.0.1, fd77::1 and fd77::11 in the first, 10.77.0.2 and fd77::2 in the other."""
    with named_netns() as one, named_netns() as other:
        ip("-n", one, "link", "add", "u0", "mtu", str(mtu), "type", "veth", "peer", "name", "u1", "netns", other)
        ip("-n", other, "link", "set", "u1", "mtu", str(mtu))
        turn_on_ipv6("u0", one)
        turn_on_ipv6("u1", other)
        for netns, name, number in ((one, "u0", 1), (other, "u1", 2)):
            ip("-n", netns, "link", "set", "lo", "up")
            ip("-n", netns, "address", "add", f"10.77.0.{number}/24", "dev", name)
            ip("-n", netns, "address", "add", f"10.77.0.{number}{number}/24", "dev", name)
            for host in (number, f"{number}{number}"):
                ip("-n", netns, "address", "add", f"fd77::{host}/64", "dev", name, "nodad")
            ip("-n", netns, "link", "set", name, "up")
        yield one, other


async def test_datagrams_over_the_mtu_arrive() -> None:
    with two_namespaces() as (one, other):
        async with (
            UdpStream("10.77.0.1:7000", "10.77.0.2:7000", netns=one) as left,
            UdpStream("10.77.0.2:7000", "10.77.0.1:7000", netns=other) as right,
        ):
            sent = [bytes([value]) * 1700 for value in range(10)]
            await left.write_frames(sent)
            assert await read_all(right, 10) == sent
            assert left.stats.super_frames_refused == 1
            await left.write_frames(sent)
            assert await read_all(right, 10) == sent
            assert left.stats.super_frames_refused == 1


async def test_a_small_mtu_to_one_address_does_not_affect_other_addresses() -> None:
    with two_namespaces() as (one, other):
        ip("-n", one, "route", "add", "10.77.0.22/32", "dev", "u0", "mtu", "1200")
        async with UdpStream("10.77.0.1:0", netns=one) as stream, UdpStream(":7005", netns=other) as peer:
            sent = [bytes([value]) * 1400 for value in range(3)]
            for _ in range(2):
                for host in ("10.77.0.22", "10.77.0.2"):
                    await stream.write_datagrams(sent, f"{host}:7005")
                    got: list[bytes] = []
                    while len(got) < 3:
                        got += [data for data, _ in await peer.read_datagrams()]
                    assert got == sent
            assert (stream.stats.super_frames_refused, stream.stats.super_frames_written) == (1, 2)


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["10.77.0.11", "fd77::11"])
async def test_a_reply_is_sent_from_the_address_that_was_written_to(host: str) -> None:
    with two_namespaces() as (one, other):
        async with UdpStream(":7001", netns=one) as server, UdpStream("", (host, 7001), netns=other) as client:
            await client.write_frames([b"question", b"question", b"?"])
            got = await server.read_datagrams()
            assert [data for data, _ in got] == [b"question", b"question", b"?"]
            address = got[0][1]
            assert (address.local, address.port) == (host, client.local.port)
            await server.write_datagrams([b"answer 1", b"answer 2"], address)
            # A connected socket gets it from that address alone.
            assert await read_all(client, 2) == [b"answer 1", b"answer 2"]
            # The address is gone: the kernel chooses another one.
            ip("-n", one, "address", "del", f"{host}/{64 if ':' in host else 24}", "dev", "u0")
            await server.write_datagrams([b"answer 3", b"answer 4"], address)
            assert server.stats.frames_written == 4


@pytest.mark.parametrize("host", ["10.77.0.11", "fd77::11"])
async def test_a_reply_is_not_sent_from_another_local_address(host: str) -> None:
    with two_namespaces() as (one, other):
        async with UdpStream(":7001", netns=one) as server, UdpStream(netns=other) as client:
            await client.write_datagrams([b"question"], (host, 7001))
            ((_, address),) = await server.read_datagrams()
            ip("-n", one, "-6" if ":" in host else "-4", "rule", "add", "from", host, "prohibit")
            for answer in ([b"answer", b"answer"], [[b"in ", b"pieces"]]):
                with pytest.raises(InvalidFrameError, match="Permission denied"):
                    await server.write_datagrams(answer, address)
            assert (server.stats.frames_written, server.stats.icmp_errors) == (0, 0)


async def test_an_address_of_a_family_that_the_socket_does_not_have() -> None:
    for local, remote in (("127.0.0.1:0", "[::1]:9"), ("127.0.0.1:0", "[fe80::1%1]:9")):
        async with UdpStream(local) as stream:
            for datagrams in ([b"x"], [b"x", b"x"], [[b"in ", b"pieces"]]):
                with pytest.raises(InvalidFrameError, match="not supported"):
                    await stream.write_datagrams(datagrams, remote)


async def test_both_families_on_one_socket_and_one_address_for_a_sender() -> None:
    async with UdpStream() as server, UdpStream("127.0.0.1:0") as four, UdpStream("[::1]:0") as six:
        for client, host in ((four, "127.0.0.1"), (six, "[::1]")):
            await client.write_datagrams([b"hello"], f"{host}:{server.local.port}")
            ((data, address),) = await server.read_datagrams()
            assert data == b"hello"
            assert address.remote == client.local
            assert address.local == host.strip("[]")
            assert server.write_datagrams_nowait([b"answer"], address) == 1
            assert [data for data, _ in await client.read_datagrams()] == [b"answer"]
            await client.write_datagrams([b"again"], (host.strip("[]"), server.local.port))
            assert (await server.read_datagrams())[0][1] is address


async def test_many_senders_in_one_batch() -> None:
    async with UdpStream("127.0.0.1:0") as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(plain_socket()) for _ in range(50)]
            for number, client in enumerate(clients):
                client.sendto(b"%d" % number, (server.local.host, server.local.port))
            got: list[tuple[bytes, Address]] = []
            while len(got) < 50:
                got += await server.read_datagrams()
            assert [(int(data), address.port) for data, address in got] == [
                (number, client.getsockname()[1]) for number, client in enumerate(clients)
            ]


async def test_what_a_signal_handler_raises_meanwhile_is_not_lost() -> None:
    class Stop(BaseException): ...

    class Addresses(udp._Addresses):
        def __missing__(self, data: bytes) -> Address:
            if not signalled:
                signalled.append(data)
                signal.raise_signal(signal.SIGUSR1)
            return super().__missing__(data)

    def stop(*_: object) -> None:
        raise Stop

    signalled: list[bytes] = []
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with plain_socket() as sock:
            async with UdpStream("127.0.0.1:0") as stream:
                stream._addresses = Addresses()
                sock.sendto(b"hello", ("127.0.0.1", stream.local.port))
                with pytest.raises(Stop):
                    stream.read_datagrams_nowait()
                assert stream.stats.frames_read + stream.stats.frames_dropped == 1
                sock.sendto(b"again", ("127.0.0.1", stream.local.port))
                got = [data for data, _ in stream.read_datagrams_nowait()]
                assert got == [b"hello", b"again"][stream.stats.frames_dropped :]
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_a_link_local_address() -> None:
    with two_namespaces() as (one, other):
        for netns, name in ((one, "u0"), (other, "u1")):
            ip("-n", netns, "address", "add", "fe80::5/64" if name == "u0" else "fe80::6/64", "dev", name, "nodad")
        async with (
            UdpStream("[fe80::5%u0]:7002", netns=one) as server,
            UdpStream("", "[fe80::5%u1]:7002", netns=other) as client,
        ):
            await client.write_frame(b"hello")
            ((_, address),) = await server.read_datagrams()
            assert address.scope == inside(one, lambda: socket.if_nametoindex("u0"))
            await server.write_datagrams([b"answer", b"answer"], address)
            assert await read_all(client, 2) == [b"answer", b"answer"]


async def test_a_stream_in_another_namespace_leaves_the_thread_where_it_is() -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    with named_netns() as netns:
        async with UdpStream("127.0.0.1:7003", netns=netns):
            assert os.stat("/proc/thread-self/ns/net").st_ino == before
            async with UdpStream("127.0.0.1:7003"):
                pass


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_icmp_errors_are_counted_and_lose_nothing() -> None:
    here, there = free_ports("127.0.0.1")
    async with UdpStream(f"127.0.0.1:{here}", f"127.0.0.1:{there}") as stream:
        for _ in range(20):
            await stream.write_frames([b"nobody", b"listens"])
            stream.write_frame_nowait(b"nobody")
            await asyncio.sleep(0)
        await until(lambda: stream.stats.icmp_errors > 0)
        assert stream.stats.frames_written == 60
        async with UdpStream(f"127.0.0.1:{there}", f"127.0.0.1:{here}") as peer:
            await stream.write_frames([b"somebody", b"does"])
            assert await read_all(peer, 2) == [b"somebody", b"does"]
            await peer.write_frame(b"yes")
            assert await stream.read_frame() == b"yes"


async def test_an_icmp_error_interrupts_a_single_datagram() -> None:
    here, there = free_ports("127.0.0.1")
    async with UdpStream(f"127.0.0.1:{here}", f"127.0.0.1:{there}") as stream:
        for _ in range(5):
            await stream.write_frame([b"in ", b"pieces"])
            await stream.write_frame(b"")
            await stream.write_frames([[b"in ", b"pieces"], [b""], b""])
            stream.write_frame_nowait([b"in ", b"pieces"])
            assert stream.write_frames_nowait([[b"in ", b"pieces"], b"", [b"x"]]) == 3
        assert stream.stats.frames_written == 45
        assert stream.stats.icmp_errors > 0


def send_unreachable(code: int, here: int, there: int) -> None:
    """An ICMP error about a datagram between two ports of 127.0.0.1, perhaps with an MTU of 1200."""
    local = socket.inet_aton("127.0.0.1")
    about = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 36, 0, 0x4000, 64, 17, 0, local, local)
    about += struct.pack("!HHHH", here, there, 16, 0) + bytes(8)
    header = struct.pack("!BBHHH", 3, code, 0, 0, 1200 if code == 4 else 0)
    total = sum(struct.unpack(f"!{len(header + about) // 2}H", header + about))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = 0xFFFF - (total & 0xFFFF) - (total >> 16)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.sendto(header[:2] + struct.pack("!H", checksum) + header[4:] + about, ("127.0.0.1", 0))


@pytest.mark.parametrize("code", [2, 4], ids=["no such protocol", "too large"])
async def test_an_icmp_error_does_not_keep_datagrams_apart(code: int) -> None:
    with named_netns() as netns:
        async with (
            UdpStream("127.0.0.1:7006", "127.0.0.1:7007", netns=netns) as stream,
            UdpStream("127.0.0.1:7007", netns=netns) as peer,
        ):
            inside(netns, lambda: send_unreachable(code, 7006, 7007))
            await stream.write_frames([bytes(500)] * 4)
            assert [data for data, _ in await peer.read_datagrams()] == [bytes(500)] * 4
            assert (stream.stats.icmp_errors, stream.stats.super_frames_refused) == (1, 0)
            await stream.write_frames([bytes(500)] * 4)
            assert stream.stats.frames_coalesced >= 7


async def test_a_reader_waits_on_through_icmp_errors() -> None:
    here, there = free_ports("127.0.0.1")
    async with UdpStream(f"127.0.0.1:{here}", f"127.0.0.1:{there}") as stream:
        reader = asyncio.ensure_future(stream.read_frames())
        await stream.write_frame(b"nobody listens")
        await until(lambda: stream.stats.icmp_errors == 1)
        assert not reader.done()
        assert await idle_share() < 0.2
        with plain_socket() as peer:
            peer.close()
        async with UdpStream(f"127.0.0.1:{there}", f"127.0.0.1:{here}") as peer_stream:
            await peer_stream.write_frame(b"hello")
            assert await reader == [b"hello"]


async def test_datagrams_behind_an_icmp_error_are_read_and_so_are_later_ones() -> None:
    """libuv stops watching a socket at an error, also where datagrams came with it."""
    here, there = free_ports("127.0.0.1")
    async with UdpStream(f"127.0.0.1:{here}", f"127.0.0.1:{there}") as stream:
        for number in range(5):
            await settle()
            stream.write_frame_nowait(b"nobody listens")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:  # the loop does not poll in between
                peer.bind(("127.0.0.1", there))
                peer.connect(("127.0.0.1", here))
                peer.send(b"%d" % number)
                if number % 2:
                    stream.write_frame_nowait(b"this one meets the error")
                assert await asyncio.wait_for(stream.read_frame(), 10) == b"%d" % number
                reader = asyncio.ensure_future(stream.read_frame())
                await settle()
                peer.send(b"later")
                assert await asyncio.wait_for(reader, 10) == b"later"
        assert stream.stats.icmp_errors == 5


async def test_an_icmp_error_that_a_writer_meets_before_the_loop_tells_of_it() -> None:
    """Both were ready in one poll, and the writer was called first."""
    here, there = free_ports("127.0.0.1")
    loop = asyncio.get_running_loop()
    first, other = os.pipe()
    try:
        async with UdpStream(f"127.0.0.1:{here}", f"127.0.0.1:{there}") as stream:
            reader = asyncio.ensure_future(stream.read_frame())
            await settle()

            def write() -> None:
                os.read(first, 1)
                stream.write_frame_nowait(b"this one meets the error")

            loop.add_reader(first, write)
            await settle()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                os.write(other, b"x")
                stream.write_frame_nowait(b"nobody listens")
                peer.bind(("127.0.0.1", there))
                await until(lambda: stream.stats.icmp_errors == 1)
                await settle()
                peer.sendto(b"later", ("127.0.0.1", here))
                assert await asyncio.wait_for(reader, 5) == b"later"
            loop.remove_reader(first)
    finally:
        os.close(first)
        os.close(other)


async def test_no_route_is_reported_and_does_not_end_the_stream() -> None:
    with two_namespaces() as (one, other):
        async with (
            UdpStream("", "10.77.0.2:7004", netns=one) as stream,
            UdpStream("10.77.0.2:7004", netns=other) as peer,
            UdpStream(netns=one) as server,
        ):
            ip("-n", one, "link", "set", "u0", "down")
            for write in (stream.write_frames([b"lost", b"lost"]), stream.write_frame(b"lost")):
                with pytest.raises(LinkDownError, match="try again when there is a route"):
                    await write
            with pytest.raises(LinkDownError) as caught:
                await server.write_datagrams([b"lost"] * 3, "10.99.0.1:5")
            assert "3 of 3 frames were not written" in caught.value.__notes__[0]
            ip("-n", one, "link", "set", "u0", "up")
            await stream.write_frames([b"found"])
            assert (await peer.read_datagrams())[0][0] == b"found"


async def test_a_datagram_that_is_refused_is_named() -> None:
    async with UdpStream("127.0.0.1:0") as stream:
        with pytest.raises(InvalidFrameError, match="broadcast"):
            await stream.write_datagrams([b"x"], "255.255.255.255:9")
        assert stream.stats.frames_refused == 1


async def test_datagrams_that_there_was_no_memory_for_are_counted() -> None:
    class Full(dict[bytes, Address]):
        def __missing__(self, data: bytes) -> Address:
            raise MemoryError

    async with UdpStream("127.0.0.1:0") as stream, UdpStream("", stream.local) as peer:
        addresses, stream._addresses = stream._addresses, Full()  # type: ignore[assignment]
        await peer.write_frames([b"lost", b"lost", b"too"])
        with pytest.raises(MemoryError):
            stream.read_datagrams_nowait()
        assert (stream.stats.frames_read, stream.stats.frames_dropped) == (0, 3)
        stream._addresses = addresses
        await peer.write_frame(b"kept")
        assert [data for data, _ in await stream.read_datagrams()] == [b"kept"]


async def test_methods_for_the_other_kind_of_stream() -> None:
    async with UdpStream("127.0.0.1:0") as stream, pair() as (left, _):
        for call in (stream.read_frame, stream.read_frames, lambda: stream.write_frames([b"x"])):
            with pytest.raises(RuntimeError, match="no remote: use read_datagrams"):
                await call()
        for now in (stream.read_frame_nowait, stream.read_frames_nowait, lambda: stream.write_frame_nowait(b"x")):
            with pytest.raises(RuntimeError, match="no remote: use read_datagrams"):
                now()
        with pytest.raises(RuntimeError, match=r"has a remote, 127.0.0.1:\d+: use read_frames"):
            await left.read_datagrams()
        with pytest.raises(RuntimeError, match="use write_frames"):
            await left.write_datagrams([b"x"], "127.0.0.1:9")
        with pytest.raises(RuntimeError, match="use read_frames_nowait"):
            left.read_datagrams_nowait()


@pytest.mark.parametrize(
    ("arguments", "number", "words"),
    [
        (("203.0.113.7:5",), errno.EADDRNOTAVAIL, r"cannot bind 203\.0\.113\.7:5: .* not an address of this machine"),
        (("[fd00::7]:5",), errno.EADDRNOTAVAIL, r"cannot bind \[fd00::7\]:5: "),
        (("[fe80::7]:5",), errno.EINVAL, r"cannot bind \[fe80::7\]:5: .*; a link-local address needs its interface"),
        (("", "203.0.113.7:5"), errno.ENETUNREACH, r"cannot connect to 203\.0\.113\.7:5: .* no route"),
        (("", "127.255.255.255:5"), errno.EACCES, "cannot connect to .*; UdpStream does not send to broadcast"),
        (("", "[fe80::7]:5"), errno.EINVAL, r"cannot connect to \[fe80::7\]:5: .*; .* needs its interface"),
    ],
)
async def test_addresses_that_cannot_be_used(arguments: tuple[str, ...], number: int, words: str) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        await UdpStream(*arguments).open()
    assert caught.value.errno == number


async def test_a_loopback_address_that_sends_to_another_machine() -> None:
    async with tap() as interface:
        await interface.configure(addresses=["10.78.0.1/24"])
        with pytest.raises(SetupError, match=r"cannot connect to 10\.78\.0\.2:9: .*; a loopback address reaches only"):
            await UdpStream("127.0.0.1:0", "10.78.0.2:9").open()


async def test_a_port_that_is_taken() -> None:
    async with UdpStream("127.0.0.1:0", reuse_port=True) as one:
        with pytest.raises(SetupError, match="reuse_port=True"):
            await UdpStream(one.local).open()
        async with UdpStream(one.local, reuse_port=True) as two:
            assert two.local == one.local


async def test_a_mark() -> None:
    async with UdpStream("127.0.0.1:0", mark=77) as stream:
        assert stream._sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 77
        await stream.set_mark(0)
        assert stream._sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0
        await stream.set_mark(0xFFFFFFFE)
        assert stream._sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK, 4) == struct.pack("=I", 0xFFFFFFFE)
        with pytest.raises(ValueError, match="0xFFFFFFFF, not 4294967296"):
            await stream.set_mark(1 << 32)
    with pytest.raises(QueueClosedError):
        await stream.set_mark(1)
    async with UdpStream("127.0.0.1:0", mark=0x80000000):
        pass


def test_a_mark_takes_a_privilege() -> None:
    program = """
import asyncio
from aiotuntap import SetupError
from aiotuntap.udp import UdpStream
async def main():
    try:
        await UdpStream("127.0.0.1:0", mark=1).open()
    except PermissionError as error:
        print(isinstance(error, SetupError), error)
    async with UdpStream("127.0.0.1:0", mark=0) as stream:
        await stream.set_mark(0)
        print("the same mark")
asyncio.run(main())
"""
    command = ["setpriv", "--bounding-set=-net_admin,-net_raw", "--inh-caps=-all", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "True" in done.stdout, done.stderr
    assert "cannot mark datagrams with 1" in done.stdout
    assert "CAP_NET_ADMIN" in done.stdout
    assert "the same mark" in done.stdout, done.stderr


# -- life and death ----------------------------------------------------------------------------------------------------


async def test_before_it_is_open_and_after() -> None:
    stream = UdpStream("127.0.0.1:0", "127.0.0.1:9")
    for call in (stream.read_frame, lambda: stream.write_frame(b"x"), lambda: stream.write_frames([b"x"])):
        with pytest.raises(RuntimeError, match="await open"):
            await call()
    for now in (stream.read_frame_nowait, lambda: stream.write_frame_nowait(b"x"), lambda: stream.local):
        with pytest.raises(RuntimeError, match="await open"):
            now()
    assert (stream.closed, stream.fileno(), stream.stats.frames_read) == (False, -1, 0)
    assert await stream.open() is stream
    await settle()
    assert stream.fileno() in watched_fds()
    assert repr(stream).startswith("<UdpStream 127.0.0.1:")
    with pytest.raises(RuntimeError, match="opened before"):
        await stream.open()
    await stream.aclose()
    await stream.aclose()
    assert (stream.closed, stream.fileno()) == (True, -1)
    for call in (stream.read_frame, lambda: stream.write_frame(b"x"), lambda: stream.write_frames([b"x"])):
        with pytest.raises(QueueClosedError):
            await call()
    assert [frame async for frame in stream] == []
    never = UdpStream()
    await never.aclose()
    for use in (never.read_datagrams(), never.write_datagrams([b"x"], "127.0.0.1:9"), never.set_mark(1)):
        with pytest.raises(QueueClosedError):
            await use
    with pytest.raises(RuntimeError, match="closed before it was opened"):
        await never.open()


async def test_closed_or_opened_again_while_it_opens() -> None:
    stream = UdpStream("127.0.0.1:0")
    opening = asyncio.ensure_future(stream.open())
    await asyncio.sleep(0)
    await stream.aclose()
    with pytest.raises(QueueClosedError, match=r"closed while open\(\) was running"):
        await opening

    stream = UdpStream("127.0.0.1:0")
    outcomes = await asyncio.gather(stream.open(), stream.open(), return_exceptions=True)
    assert sorted(map(repr, map(type, outcomes))) == sorted(map(repr, (UdpStream, RuntimeError)))
    assert any("called twice" in str(outcome) for outcome in outcomes)
    await stream.aclose()


@pytest.mark.parametrize("cancels", [0, 3])
async def test_closing_waits_for_the_socket_that_is_being_opened(monkeypatch: pytest.MonkeyPatch, cancels: int) -> None:
    go = threading.Event()

    def slow(*arguments: Any) -> socket.socket:
        go.wait(10)
        return make_socket(*arguments)

    monkeypatch.setattr("aiotuntap.udp.make_socket", slow)
    fds = set(os.listdir("/proc/self/fd"))
    stream = UdpStream("127.0.0.1:0")
    opening = asyncio.ensure_future(stream.open())
    await settle()
    closing = asyncio.ensure_future(stream.aclose())
    for _ in range(cancels):
        await settle()
        closing.cancel()
    await settle()
    assert not closing.done()
    go.set()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    assert closing.cancelled() == bool(cancels)
    assert set(os.listdir("/proc/self/fd")) == fds
    with pytest.raises(QueueClosedError, match="closed while"):
        await opening


async def test_closing_wakes_waiting_readers() -> None:
    async with pair() as (left, right):
        readers = [asyncio.ensure_future(left.read_frame()) for _ in range(3)]
        await asyncio.sleep(0)
        fd = left.fileno()
        await left.aclose()
        assert fd not in watched_fds()
        for reader in readers:
            with pytest.raises(QueueClosedError):
                await reader
        await right.write_frame(b"nobody")


async def test_a_duplicate_that_lives_does_not_keep_the_loop_busy() -> None:
    async with pair() as (left, right):
        copied = os.dup(left.fileno())
        try:
            await left.aclose()
            await right.write_frames([b"to the duplicate"] * 10)
            assert await idle_share() < 0.2
        finally:
            os.close(copied)


async def test_a_descriptor_closed_by_something_else_ends_it() -> None:
    async with pair() as (left, _):
        left._loop.remove_reader(left.fileno())
        left._flowing = False
        left._sock.close()
        for call in (left.write_frame(b"x"), left.write_frame(b"x")):
            with pytest.raises(DeviceGoneError, match="other code has closed the descriptor"):
                await call


async def test_cancelled_while_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    fds = set(os.listdir("/proc/self/fd"))
    go, made = threading.Event(), threading.Event()

    def slowly(options: SocketOptions, netns: Namespace) -> socket.socket:
        sock = make_socket(options, netns)
        made.set()
        go.wait(5)
        return sock

    monkeypatch.setattr(udp, "make_socket", slowly)
    opening = asyncio.ensure_future(UdpStream("127.0.0.1:0").open())
    while not made.is_set():
        await asyncio.sleep(0.01)
    opening.cancel()
    await asyncio.sleep(0)
    opening.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: set(os.listdir("/proc/self/fd")) <= fds)


async def test_opening_that_fails_at_the_end_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: UdpStream) -> None:
        raise OSError(errno.ENOSPC, "fs.epoll.max_user_watches")

    monkeypatch.setattr(UdpStream, "_resume", refuse)
    stream = UdpStream("127.0.0.1:0")
    with pytest.raises(SetupError, match="cannot poll a UDP socket: .*max_user_watches"):
        await stream.open()
    assert (stream.closed, stream.fileno()) == (True, -1)
    with pytest.raises(QueueClosedError):
        await stream.write_datagrams([b"x"], "127.0.0.1:9")


async def test_no_memory_when_it_opens_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(DescriptorStream, "__init__", refuse)
    fds = set(os.listdir("/proc/self/fd"))
    stream = UdpStream("127.0.0.1:0")
    with pytest.raises(MemoryError):
        await stream.open()
    assert set(os.listdir("/proc/self/fd")) == fds
    assert (stream.closed, stream.fileno()) == (True, -1)
    with pytest.raises(QueueClosedError):
        await stream.read_datagrams()
    await stream.aclose()


async def test_a_forgotten_stream_is_closed_with_a_warning() -> None:
    threads = set(threading.enumerate())
    stream: UdpStream | None = await UdpStream("127.0.0.1:0").open()
    assert stream is not None
    fd = stream.fileno()
    for thread in set(threading.enumerate()) - threads:  # the one that opened it may not have ended yet
        thread.join(10)
    with pytest.warns(ResourceWarning, match="unclosed <UdpStream 127"):
        del stream
        gc.collect()
    assert fd not in watched_fds()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_it_is_not_copied() -> None:
    async with UdpStream("127.0.0.1:0") as stream:
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copy(stream)


async def test_use_from_another_thread_raises() -> None:
    async with pair() as (left, _):
        errors: list[BaseException] = []

        def use() -> None:
            for call in (
                left.read_frame_nowait,
                lambda: left.write_frame_nowait(b"x"),
                lambda: left.write_frames_nowait([]),
            ):
                try:
                    call()
                except RuntimeError as error:
                    errors.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert len(errors) == 3
        assert all("thread" in str(error) for error in errors)


async def test_a_full_buffer_stops_reading_and_an_idle_one_costs_nothing() -> None:
    async with pair(read_buffer=(20, 5), gro=False) as (left, right):
        sent = [b"%04d" % number for number in range(100)]
        for frame in sent:
            await left.write_frame(frame)
        await until(lambda: right.fileno() not in watched_fds())
        assert await idle_share() < 0.2
        assert await read_all(right, 100) == sent
        await settle()
        assert right.fileno() in watched_fds()


@pytest.mark.parametrize("connected", [False, True])
async def test_a_buffer_of_large_datagrams_is_full_before_it_has_many(connected: bool) -> None:
    one, other = (f"127.0.0.1:{port}" for port in free_ports("127.0.0.1"))
    async with (
        UdpStream(one, other, gso=False) as left,
        UdpStream(other, one if connected else None, gro=False, read_buffer=1000) as right,
    ):
        sent = 0
        await settle()
        while right.fileno() in watched_fds() and sent < 200:
            await left.write_frame(b"%04d" % sent + bytes(60_000))
            sent += 1
            await settle(2)
        assert 60 < sent < 2 * 64 + 10  # 4 MiB, and a batch
        got: list[bytes] = []
        while len(got) < sent:
            async with asyncio.timeout(10):
                got += await right.read_frames() if connected else [data for data, _ in await right.read_datagrams()]
        assert [int(data[:4]) for data in got] == list(range(sent))
        await settle()
        assert right.fileno() in watched_fds()


async def test_a_small_send_buffer_makes_a_writer_wait() -> None:
    """The way leads over a TAP interface whose frames are read slowly."""
    async with tap() as interface:
        await interface.configure(addresses=["10.78.0.1/24"])
        subprocess.run(
            ["ip", "neigh", "add", "10.78.0.2", "lladdr", "02:00:00:00:00:09", "dev", interface.name], check=True
        )
        async with UdpStream("10.78.0.1:0", "10.78.0.2:9", gso=False) as stream:
            stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            sent = [bytes([number]) * 1400 for number in range(30)]
            writer = asyncio.ensure_future(stream.write_frames(sent))
            while not writer.done():
                frames = await interface.queues[0].read_frames(1)
                assert len(frames) == 1
                await asyncio.sleep(0.001)
            await writer
            assert stream.stats.frames_written == 30


async def test_a_writer_without_kernel_memory_pauses_between_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers ENOBUFS to a datagram in more fragments than the send buffer holds: the socket is writable."""
    tries = 0
    original = UdpStream._write_closely

    def count(self: UdpStream, number: int, frame: Any, to: bytes | None = None) -> int:
        nonlocal tries
        tries += 1
        return original(self, number, frame, to)

    monkeypatch.setattr(UdpStream, "_write_closely", count)
    ip("link", "set", "lo", "mtu", "1500")
    try:
        async with UdpStream("127.0.0.1:0") as peer, UdpStream("", peer.local) as stream:
            stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            large = [bytes([number]) * 60000 for number in range(2)]
            with pytest.raises(BlockingIOError):
                stream.write_frame_nowait(large[0])
            assert stream.write_frames_nowait(large) == 0
            writers = [
                asyncio.ensure_future(stream.write_frame(large[0])),
                asyncio.ensure_future(stream.write_frames([large[1]])),
            ]
            tries, began = 0, monotonic()
            await asyncio.sleep(0.2)
            assert 0 < tries <= len(writers) * (1 + (monotonic() - began) / 0.005)
            assert not any(writer.done() for writer in writers)
            stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            await asyncio.wait_for(asyncio.gather(*writers), 10)
            got: list[bytes] = []
            while len(got) < 2:
                got += [data for data, _ in await asyncio.wait_for(peer.read_datagrams(), 10)]
            assert sorted(got) == large

            stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            writer = asyncio.ensure_future(stream.write_frame(large[0]))
            await settle()
            await stream.aclose()
            with pytest.raises(QueueClosedError):
                await asyncio.wait_for(writer, 10)
    finally:
        ip("link", "set", "lo", "mtu", "65536")


async def test_a_flood_leaves_time_for_others() -> None:
    async with pair() as (left, right):
        stop = False
        ticks = 0

        async def read() -> None:
            while not stop:
                await right.read_frames()

        async def write() -> None:
            batch = [bytes(1000)] * 60
            while not stop:
                await left.write_frames(batch)

        tasks = [asyncio.ensure_future(read()), asyncio.ensure_future(write())]
        end = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.001)
            ticks += 1
        stop = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert ticks >= 5


@pytest.mark.parametrize("what", ["read", "write"])
async def test_a_loop_closed_in_the_middle_leaves_nothing(what: str) -> None:
    def run() -> None:
        loop = asyncio.new_event_loop()
        stream = loop.run_until_complete(UdpStream("127.0.0.1:0", "127.0.0.1:9").open())
        task = loop.create_task(stream.read_frame() if what == "read" else stream.write_frames([b"x"] * 1000))
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        with contextlib.suppress(BaseException):
            task.get_coro().close()
        del task
        with contextlib.closing(asyncio.new_event_loop()) as other:
            other.run_until_complete(stream.aclose())
        assert stream.fileno() == -1

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.01)
