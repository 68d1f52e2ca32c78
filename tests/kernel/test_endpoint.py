"""An interface that calls back: as asyncio's datagram endpoints where they meet, and as a queue where it is one."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import gc
import logging
import pickle
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import uvloop

from aiotuntap import (
    AsyncTuntap,
    DeviceGoneError,
    InvalidFrameError,
    LinkDownError,
    Mode,
    Offload,
    QueueClosedError,
    SetupError,
    TuntapProtocol,
    TuntapTransport,
    _tuntap,
    create_tuntap_endpoint,
)
from aiotuntap._device import open_queues
from aiotuntap._transport import _PART
from aiotuntap.testing import example_frame

from ..offload_packets import Packet
from .support import PacketPeer, idle_share, inject, ip, link, settle, tap, unique, until, watched_fds
from .test_transparent import KERNEL, SuperFrames, build, row
from .test_transparent import numbered as payload_of
from .test_writing import congested, unicast

pytestmark = pytest.mark.usefixtures("engine")

Event = object


def numbered(number: int) -> bytes:
    """A frame whose last byte is its number."""
    return example_frame(number, 62)


class Recorder(TuntapProtocol):
    """Records the calls, and then does what the test asks for."""

    def __init__(self, **actions: Callable[[Recorder], object]) -> None:
        self.events: list[Event] = []
        self.frames: list[bytes] = []
        self.actions = actions
        self.transport: Any = None
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def note(self, event: str, *details: object) -> None:
        self.events.append((event, *details) if details else event)
        if event in self.actions:
            self.actions[event](self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.note("made")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)
        self.note("lost", exc and type(exc))

    def frame_received(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.note("frame", frame[-1])

    def datagram_received(self, data: bytes, address: object) -> None:
        self.frame_received(data)

    def error_received(self, exc: Exception) -> None:
        self.note("error", type(exc))

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")


class InBatches(Recorder):
    def frames_received(self, frames: list[bytes]) -> None:
        assert type(frames) is list
        self.frames += frames
        self.note("frames", len(frames))


async def closed(transport: Any, protocol: Recorder) -> Exception | None:
    """Closes, if that has not begun, and waits for the end."""
    transport.close()
    async with asyncio.timeout(10):
        return await protocol.lost


@asynccontextmanager
async def endpoint(
    factory: Callable[[], Recorder] = Recorder, **options: Any
) -> AsyncIterator[tuple[TuntapTransport, Recorder, PacketPeer]]:
    """An endpoint of a TAP interface that is up, and the kernel's side of it."""
    transport, protocol = await create_tuntap_endpoint(factory, unique(), mode="tap", **options)
    try:
        await transport.get_extra_info("interface").configure(up=True)
        with PacketPeer(transport.get_extra_info("name")) as peer:
            yield transport, protocol, peer
    finally:
        await closed(transport, protocol)


async def received(peer: PacketPeer, count: int) -> list[bytes]:
    got: list[bytes] = []
    async with asyncio.timeout(10):
        while len(got) < count:
            got += peer.receive()
            await asyncio.sleep(0.001)
    return got


def reported() -> list[dict[str, Any]]:
    """The contexts with which the loop's exception handler is called from now on."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


def once(error: BaseException) -> Callable[[Recorder], object]:
    """Raises at the first event of its kind."""
    left = [error]

    def throw(_: Recorder) -> None:
        if left:
            raise left.pop()

    return throw


def on_uvloop() -> bool:
    return isinstance(asyncio.get_running_loop(), uvloop.Loop)


# -- the same protocol on a datagram endpoint and on an interface ------------------------------------------------------


class Side:
    """The interface of both kinds of endpoint, for the scenarios."""

    def __init__(self, transport: Any, protocol: Recorder, send: Callable[[bytes], object]) -> None:
        self.transport = transport
        self.protocol = protocol
        self.send = send


@asynccontextmanager
async def of_datagrams(protocol: Recorder) -> AsyncIterator[Side]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: protocol,
            remote_addr=far.getsockname(),
        )
        protocol.events.append("returned")
        if not transport.is_closing():
            far.connect(transport.get_extra_info("sockname"))
        yield Side(transport, protocol, far.send)
        await closed(transport, protocol)


@asynccontextmanager
async def of_frames(protocol: Recorder) -> AsyncIterator[Side]:
    transport, _ = await create_tuntap_endpoint(lambda: protocol, unique(), mode="tap")
    protocol.events.append("returned")
    with contextlib.ExitStack() as stack:
        send: Callable[[bytes], object] = protocol.events.append
        if not transport.is_closing():
            await transport.get_extra_info("interface").configure(up=True)
            send = stack.enter_context(PacketPeer(transport.get_extra_info("name"))).send
        yield Side(transport, protocol, send)
        await closed(transport, protocol)


async def plain_life(side: Side) -> None:
    for number in (1, 2, 3):
        side.send(numbered(number))
    await settle()
    side.transport.close()
    side.protocol.events.append("close returned")
    side.transport.close()
    assert side.transport.is_closing()
    await side.protocol.lost
    side.transport.close()
    side.transport.abort()
    await settle()
    assert side.transport.is_closing() and side.transport.get_protocol() is None


async def abort(side: Side) -> None:
    side.transport.abort()
    side.protocol.events.append("abort returned")
    side.transport.abort()
    await side.protocol.lost


async def ends_itself(side: Side) -> None:
    if not side.transport.is_closing():
        for number in (1, 2, 3):
            side.send(numbered(number))
    await side.protocol.lost
    await settle()


async def goes_on(side: Side) -> None:
    for number in (1, 2, 3):
        side.send(numbered(number))
        await settle(1)
    await settle()


async def wrong_types(side: Side) -> None:
    for wrong in ("text", 7, 1.5, object(), None):
        with pytest.raises(TypeError):
            side.transport.sendto(wrong)
    with pytest.raises(ValueError, match="must be None"):
        side.transport.sendto(b"data", ("192.0.2.1", 5))
    side.transport.close()
    with pytest.raises(TypeError):
        side.transport.sendto("text")
    await side.protocol.lost
    with pytest.raises(TypeError):
        side.transport.sendto("text")


async def writes_after_the_end(side: Side) -> None:
    side.transport.close()
    side.transport.sendto(numbered(1))
    await side.protocol.lost
    side.transport.sendto(numbered(1))
    assert side.transport.get_write_buffer_size() == 0


async def pauses(side: Side) -> None:
    transport = side.transport
    assert transport.is_reading()
    transport.resume_reading()
    transport.pause_reading()
    transport.pause_reading()
    assert not transport.is_reading()
    side.send(numbered(1))
    await settle()
    side.protocol.events.append("still paused")
    transport.resume_reading()
    transport.resume_reading()
    assert transport.is_reading()
    await settle()
    transport.pause_reading()
    transport.close()
    transport.resume_reading()
    transport.pause_reading()
    assert not transport.is_reading()


async def paused_from_the_start(side: Side) -> None:
    side.send(numbered(1))
    await settle()
    side.protocol.events.append("still paused")
    side.transport.resume_reading()
    await settle()


async def limits(side: Side) -> None:
    transport = side.transport
    got = [transport.get_write_buffer_limits()]
    for given in ({"high": 1000}, {"low": 1000}, {"high": 10, "low": 10}, {"high": 0}, {}):
        transport.set_write_buffer_limits(**given)
        got.append(transport.get_write_buffer_limits())
    for wrong in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}):
        with pytest.raises(ValueError, match="high.*>= low"):
            transport.set_write_buffer_limits(**wrong)
    side.protocol.events.append(got)


FIRST: list[Event] = ["made", "returned"]
THREE: list[Event] = [("frame", 1), ("frame", 2), ("frame", 3)]
LOST: list[Event] = [("lost", None)]
LIMITS = [(16384, 65536), (250, 1000), (1000, 4000), (10, 10), (0, 0), (16384, 65536)]

#: What is done, what the protocol does at an event, and all that it is told.
SCENARIOS: dict[str, tuple[Callable[[Side], Awaitable[None]], dict[str, Any], list[Event]]] = {
    "life": (plain_life, {}, [*FIRST, *THREE, "close returned", *LOST]),
    "abort": (abort, {}, [*FIRST, "abort returned", *LOST]),
    "close when made": (
        ends_itself,
        {"made": lambda protocol: protocol.transport.close()},
        ["made", *LOST, "returned"],
    ),
    "abort when made": (
        ends_itself,
        {"made": lambda protocol: protocol.transport.abort()},
        ["made", *LOST, "returned"],
    ),
    "close in frame": (ends_itself, {"frame": lambda protocol: protocol.transport.close()}, [*FIRST, THREE[0], *LOST]),
    "abort in frame": (ends_itself, {"frame": lambda protocol: protocol.transport.abort()}, [*FIRST, THREE[0], *LOST]),
    "made raises": (goes_on, {"made": "boom"}, [*FIRST, *THREE, *LOST]),
    "frame raises": (goes_on, {"frame": "boom"}, [*FIRST, *THREE, *LOST]),
    "lost raises": (goes_on, {"lost": "boom"}, [*FIRST, *THREE, *LOST]),
    "wrong types": (wrong_types, {}, [*FIRST, *LOST]),
    "after the end": (writes_after_the_end, {}, [*FIRST, *LOST]),
    "pauses": (pauses, {}, [*FIRST, "still paused", THREE[0], *LOST]),
    "paused when made": (
        paused_from_the_start,
        {"made": lambda protocol: protocol.transport.pause_reading()},
        [*FIRST, "still paused", THREE[0], *LOST],
    ),
    "limits": (limits, {}, [*FIRST, LIMITS, *LOST]),
}

#: Where uvloop's datagram endpoints are not as asyncio's: they print what a protocol raises, and receive nothing after
#: that; have no way to pause reading; tell other limits; and raise RuntimeError when written to after the end.
UVLOOP_DIFFERS = {
    "made raises",
    "frame raises",
    "lost raises",
    "wrong types",
    "after the end",
    "pauses",
    "paused when made",
    "limits",
}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_an_endpoint_behaves_as_one_of_datagrams(name: str) -> None:
    scenario, actions, events = SCENARIOS[name]
    for kind in [of_frames] if on_uvloop() and name in UVLOOP_DIFFERS else [of_frames, of_datagrams]:
        contexts = reported()
        protocol = Recorder(**{key: once(ValueError("boom")) if act == "boom" else act for key, act in actions.items()})
        async with asyncio.timeout(10), kind(protocol) as side:
            await scenario(side)
        await settle()
        assert (kind.__name__, protocol.events) == (kind.__name__, events)
        errors = [repr(context["exception"]) for context in contexts]
        assert errors == ["ValueError('boom')"] * list(actions.values()).count("boom")


async def test_a_full_socket_and_a_full_send_buffer_are_reported_alike() -> None:
    """Against a datagram socket whose reader is slow."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.bind(f"\0{unique()}")
        far.setblocking(False)
        near = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        near.connect(far.getsockname())
        transport: Any
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            Recorder,
            sock=near,
        )

        async def drain() -> None:
            while not protocol.lost.done():
                with contextlib.suppress(BlockingIOError):
                    far.recv(2000)
                await asyncio.sleep(0.001)

        draining = asyncio.ensure_future(drain())
        expected = await congest(transport, protocol)
        await draining
    async with congested("400kbit") as (_, queue):
        transport, protocol = await create_tuntap_endpoint(Recorder, queue=queue)
        assert await congest(transport, protocol) == expected
    assert expected == ["made", "pause", "resume", "pause", "still there", "resume", ("lost", None)]


async def congest(transport: Any, protocol: Recorder) -> list[Event]:
    """Writes more than there is room for, waits until that is gone, and does it once more to close in the middle."""
    size = len(unicast(0))
    transport.set_write_buffer_limits(high=3 * size, low=size)
    for _ in range(2):
        while protocol.events[-1] != "pause":
            transport.sendto(unicast(1))
        for _ in range(4):
            transport.sendto(unicast(2))
        assert transport.get_write_buffer_size() >= 7 * size
        if protocol.events.count("pause") == 1:
            await until(lambda: protocol.events[-1] == "resume", 20)
    transport.close()
    transport.close()
    assert transport.is_closing() and not protocol.lost.done()
    transport.sendto(unicast(3))  # is taken, as long as others wait before it
    assert transport.get_write_buffer_size() >= 8 * size
    protocol.events.append("still there")
    async with asyncio.timeout(20):
        await protocol.lost
    if isinstance(transport, TuntapTransport):  # asyncio's from 3.13 on keeps 8 bytes for each datagram that waited
        assert transport.get_write_buffer_size() == 0
    return protocol.events


# -- making one --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [ValueError("boom"), asyncio.CancelledError()])
async def test_what_the_factory_raises_is_raised_and_leaves_nothing(wrong: BaseException) -> None:
    await settle()  # uvloop registers descriptors of its own at first
    name, fds = unique(), watched_fds()

    def factory() -> Recorder:
        assert name in ip("link")
        raise wrong

    with pytest.raises(type(wrong)):
        await create_tuntap_endpoint(factory, name, mode="tap")
    assert name not in ip("link") and watched_fds() == fds


async def test_the_factory_is_not_called_for_what_cannot_be_opened() -> None:
    calls: list[object] = []
    for wrong, options in (
        (TypeError, {}),
        (ValueError, {"mode": "foo"}),
        (ValueError, {"mode": "tap", "queues": 0}),
        (TypeError, {"mode": "tap", "remote_addr": 1}),
        (SetupError, {"mode": "tap", "netns": "no-such-namespace"}),
    ):
        with pytest.raises(wrong):
            await create_tuntap_endpoint(lambda: calls.append(1), unique(), **options)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="queues must be 1 for an endpoint, not 2.*queue="):
        await create_tuntap_endpoint(TuntapProtocol, mode="tap", queues=2)
    assert not calls


@pytest.mark.parametrize("turns", [0, 1, 2, 10, "made"])
async def test_cancelled_while_opening_leaves_nothing(turns: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return open_queues(*arguments)

    monkeypatch.setattr(_tuntap, "open_queues", slowly)
    await settle()  # uvloop registers descriptors of its own at first
    interfaces, fds, tasks = socket.if_nameindex(), watched_fds(), asyncio.all_tasks()
    protocols: list[Recorder] = []

    def factory() -> Recorder:
        protocols.append(Recorder())
        return protocols[-1]

    opening = asyncio.ensure_future(create_tuntap_endpoint(factory, unique(), mode="tap"))
    if isinstance(turns, int):
        for _ in range(turns):
            await asyncio.sleep(0)
    else:  # between the factory and the end
        while not protocols:
            await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert (socket.if_nameindex(), watched_fds()) == (interfaces, fds)
    await settle()
    assert asyncio.all_tasks() == tasks
    if turns == "made":
        assert [protocol.events for protocol in protocols] == [["made", ("lost", None)]]


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [Recorder, InBatches])
async def test_frames_come_one_by_one_or_in_batches(factory: type[Recorder]) -> None:
    sent = [numbered(number % 256) for number in range(300)]
    async with endpoint(factory) as (transport, protocol, peer):
        transport.pause_reading()
        for frame in sent:
            peer.send(frame)
        transport.resume_reading()
        await until(lambda: len(protocol.frames) >= 300)
        assert protocol.frames == sent
        if factory is InBatches:
            assert protocol.events == ["made", ("frames", 128), ("frames", 128), ("frames", 44)]
        assert await idle_share() < 0.05


async def test_what_the_queue_had_before_comes_first() -> None:
    async with tap() as interface:
        (queue,) = interface.queues
        with PacketPeer(interface.name) as peer:
            for number in (1, 2):
                peer.send(numbered(number))
            await settle()
            transport, protocol = await create_tuntap_endpoint(Recorder, queue=queue)
            peer.send(numbered(3))
            await settle()
            assert protocol.events == ["made", *THREE]
            await closed(transport, protocol)


async def test_pausing_within_a_batch_keeps_the_rest() -> None:
    async with endpoint(lambda: Recorder(frame=lambda own: own.transport.pause_reading())) as (transport, own, peer):
        for number in range(5):
            peer.send(numbered(number))
        for number in range(5):
            await settle()
            assert own.frames == [numbered(each) for each in range(number + 1)]
            assert await idle_share() < 0.05
            transport.resume_reading()


async def test_a_paused_endpoint_leaves_frames_to_the_kernel_which_drops_them() -> None:
    async with endpoint() as (transport, protocol, peer):
        await transport.get_extra_info("interface").configure(txqueuelen=50)
        transport.pause_reading()
        for number in range(200):
            peer.send(numbered(number))
        await settle()
        assert not protocol.frames
        transport.resume_reading()
        await settle()
        assert protocol.frames == [numbered(number) for number in range(50)]
        assert link(peer.name)["stats64"]["tx"]["dropped"] == 150


async def test_a_slow_protocol_lets_others_run_between_its_frames() -> None:
    """All of a batch in one callback, at a millisecond a frame, would keep everybody else waiting."""
    loop = asyncio.get_running_loop()
    rounds: list[int] = []

    def work(_: Recorder) -> None:
        deadline = loop.time() + 0.001
        while loop.time() < deadline:
            pass

    async with endpoint(lambda: Recorder(frame=work)) as (transport, protocol, peer):
        transport.pause_reading()
        for number in range(100):
            peer.send(numbered(number))
        transport.resume_reading()
        while len(protocol.frames) < 100:
            rounds.append(len(protocol.frames))
            await asyncio.sleep(0)
        assert protocol.frames == [numbered(number) for number in range(100)]
        assert max(after - before for before, after in pairwise(rounds)) <= 10


async def test_a_protocol_can_be_exchanged_in_the_middle() -> None:
    later = InBatches()
    async with endpoint(lambda: Recorder(frame=lambda own: own.transport.set_protocol(later))) as (
        transport,
        first,
        peer,
    ):
        transport.pause_reading()
        for number in range(5):
            peer.send(numbered(number))
        transport.resume_reading()
        await settle()
        assert first.frames == [numbered(0)]
        assert later.frames == [numbered(number) for number in range(1, 5)]
        assert transport.get_protocol() is later
        transport.set_protocol(first)


async def test_no_task_works_for_an_endpoint() -> None:
    tasks = asyncio.all_tasks()
    running: list[object] = []
    others: set[asyncio.Task[Any]] = set()

    def answer(own: Recorder) -> None:
        running.append(asyncio.current_task())
        others.update(asyncio.all_tasks() - tasks)
        own.transport.write_frame(numbered(9))

    async with endpoint(lambda: Recorder(frame=answer)) as (_, protocol, peer):
        for number in range(100):
            peer.send(numbered(number))
        assert len(await received(peer, 100)) == 100
        assert not others and running == [None] * 100
    assert asyncio.all_tasks() == tasks


async def test_somebody_else_may_read_the_queue_meanwhile() -> None:
    async with endpoint() as (transport, protocol, peer):
        queue = transport.get_extra_info("queue")
        for number, pause in ((1, transport.resume_reading), (2, transport.pause_reading)):
            pause()
            reading = asyncio.ensure_future(queue.read_frame())
            await settle()
            peer.send(numbered(number))
            assert await reading == numbered(number)
        peer.send(numbered(3))
        await settle()
        assert not protocol.frames and await idle_share() < 0.05
        transport.resume_reading()
        await settle()
        assert protocol.frames == [numbered(3)]


# -- writing -----------------------------------------------------------------------------------------------------------


async def test_frames_of_every_kind_are_written() -> None:
    async with endpoint() as (transport, protocol, peer):
        frame = numbered(1)
        for written in (frame, bytearray(frame), memoryview(frame), [frame[:14], frame[14:]], (frame[:3], frame[3:])):
            transport.write_frame(written)
            transport.sendto(written)
        transport.write_frames([frame, [frame[:14], frame[14:]], bytearray(frame)])
        transport.write_frames(frame for _ in range(1000))
        assert await received(peer, 1013) == [frame] * 1013
        assert protocol.events == ["made"] and transport.get_write_buffer_size() == 0


async def test_refused_frames_are_reported_and_the_rest_is_written() -> None:
    async with endpoint() as (transport, protocol, peer):
        transport.write_frame(b"short")
        transport.write_frame(bytes(100_000))
        assert protocol.events == ["made"] + [("error", InvalidFrameError)] * 2
        transport.write_frames([numbered(1), b"short", b"", numbered(2), bytes(100_000), b"bad", numbered(3)])
        assert protocol.events == ["made"] + [("error", InvalidFrameError)] * 5
        assert peer.receive() == [numbered(number) for number in (1, 2, 3)]
        with pytest.raises(TypeError, match="not str"):
            transport.write_frames([numbered(4), "text", numbered(5)])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="write_frame takes one"):
            transport.write_frames(numbered(4))  # type: ignore[arg-type]
        assert peer.receive() == [numbered(4)]
        assert transport.is_reading()


async def test_a_refused_frame_among_many_is_the_only_one_left_out() -> None:
    async with endpoint() as (transport, protocol, peer):
        batch = [numbered(number % 256) for number in range(3 * _PART)]
        for place in (0, _PART - 1, _PART, 2 * _PART + 1, 3 * _PART - 1):
            batch[place] = b"short"
        transport.write_frames(batch)
        good = [frame for frame in batch if frame != b"short"]
        assert await received(peer, len(good)) == good
        assert protocol.events == ["made"] + [("error", InvalidFrameError)] * 5


async def test_empty_frames_are_ignored() -> None:
    async with endpoint() as (transport, protocol, peer):
        for empty in (b"", bytearray(), memoryview(b""), [], [b"", b""]):
            transport.write_frame(empty)
            transport.sendto(empty)
        transport.write_frames([b"", numbered(1), b""])
        transport.write_frames([])
        assert protocol.events == ["made"] and peer.receive() == [numbered(1)]


async def test_link_down_is_reported_once_for_each_call_until_up_again() -> None:
    async with endpoint() as (transport, protocol, peer):
        interface = transport.get_extra_info("interface")
        await interface.configure(up=False)
        transport.write_frame(numbered(1))
        transport.write_frames([numbered(2), numbered(3)])
        assert protocol.events == ["made"] + [("error", LinkDownError)] * 2
        assert transport.get_write_buffer_size() == 0 and transport.is_reading()
        await interface.configure(up=True)
        transport.write_frame(numbered(4))
        assert await received(peer, 1) == [numbered(4)]
        peer.send(numbered(5))
        await settle()
        assert protocol.frames == [numbered(5)]


async def test_other_errors_of_the_kernel_are_reported_too() -> None:
    async with endpoint() as (transport, protocol, peer):
        inject(transport.get_extra_info("queue"), judge=lambda frame: errno.ENOBUFS * (frame == numbered(2)))
        transport.write_frame(numbered(2))
        transport.write_frames([numbered(1), numbered(2), numbered(3)])
        assert protocol.events == ["made"] + [("error", OSError)] * 2
        assert peer.receive() == [numbered(1), numbered(3)]


async def test_what_error_received_raises_goes_to_the_handler() -> None:
    contexts = reported()
    async with endpoint(lambda: Recorder(error=once(ValueError("boom")))) as (transport, protocol, peer):
        transport.write_frames([b"short", b"short", numbered(1)])
        assert peer.receive() == [numbered(1)] and protocol.events[1:] == [("error", InvalidFrameError)] * 2
    assert [context["message"] for context in contexts] == ["protocol.error_received() failed"]
    assert contexts[0]["transport"] is transport and contexts[0]["protocol"] is protocol


async def test_a_protocol_may_end_it_all_in_error_received() -> None:
    async with endpoint(lambda: Recorder(error=lambda own: own.transport.abort())) as (transport, protocol, peer):
        transport.write_frames([numbered(1), b"short", numbered(2), b"short"])
        assert peer.receive() == [numbered(1)]
        await protocol.lost
        assert protocol.events == ["made", ("error", InvalidFrameError), ("lost", None)]


async def test_late_frames_are_dropped_and_many_of_them_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with endpoint() as (transport, protocol, peer):
        transport.close()
        caplog.clear()  # asyncio may have found a busy machine slow
        with caplog.at_level(logging.WARNING, "aiotuntap"):
            for _ in range(5):
                transport.write_frame(numbered(1))
            assert not caplog.records
            transport.write_frames([numbered(1), numbered(2)])
        assert [record.name for record in caplog.records] == ["aiotuntap"] * 2
        assert "was written to <TuntapTransport" in caplog.text and not peer.receive()


async def test_a_full_send_buffer_keeps_order_and_asks_to_pause() -> None:
    async with congested("4mbit") as (_, queue):
        written: list[bytes] = []
        offered = inject(queue)
        transport, protocol = await create_tuntap_endpoint(Recorder, queue=queue)
        frames = [unicast(number) for number in range(400)]
        transport.write_frames(frames[:100])
        transport.write_frame(frames[100])
        transport.write_frames(iter(frames[101:]))
        assert protocol.events == ["made", "pause"]
        assert transport.get_write_buffer_size() > 65536
        async with asyncio.timeout(20):
            while transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
        assert protocol.events == ["made", "pause", "resume"]
        written += dict.fromkeys(offered)  # some of them were offered several times
        assert written == frames
        await settle()
        assert not queue._writers
        await closed(transport, protocol)


async def test_refused_frames_in_the_write_buffer_are_reported_and_removed() -> None:
    full = True

    def judge(frame: bytes) -> int:
        return errno.EAGAIN if full else {b"bad": errno.EINVAL, b"down": errno.EIO}.get(frame, 0)

    async with endpoint() as (transport, protocol, peer):
        inject(transport.get_extra_info("queue"), judge=judge)
        for frame in (numbered(1), b"bad", b"", bytes(100_000), numbered(2), b"bad"):
            transport.write_frame(frame)
        assert transport.get_write_buffer_size() == 2 * 62 + 6 + 100_000
        full = False
        assert await received(peer, 2) == [numbered(1), numbered(2)]
        await until(lambda: not transport.get_write_buffer_size())
        assert protocol.events == ["made", "pause", *[("error", InvalidFrameError)] * 3, "resume"]
        full = True
        transport.write_frames([b"down", numbered(3)])
        full = False
        await until(lambda: not transport.get_write_buffer_size())
        assert protocol.events[-1] == ("error", LinkDownError) and not peer.receive()


async def test_a_large_write_buffer_is_written_in_several_turns() -> None:
    full = True
    async with endpoint() as (transport, protocol, _):
        offered = inject(transport.get_extra_info("queue"), judge=lambda _: errno.EAGAIN * full)
        frames = [example_frame(number) for number in range(10 * _PART)]
        transport.write_frames(frames)
        await settle()
        offered.clear()
        full = False
        rounds = [0]
        while transport.get_write_buffer_size():
            rounds.append(len(offered))
            await asyncio.sleep(0)
        rounds.append(len(offered))
        assert offered == frames
        assert max(after - before for before, after in pairwise(rounds)) <= 4 * _PART
        assert protocol.events == ["made", "pause", "resume"]


async def test_what_a_protocol_writes_while_others_wait_comes_behind_them() -> None:
    full = True

    def write_more(own: Recorder) -> None:
        own.transport.write_frame(numbered(9))

    async with endpoint(lambda: Recorder(resume=write_more, error=write_more)) as (transport, protocol, peer):
        inject(
            transport.get_extra_info("queue"),
            judge=lambda frame: errno.EAGAIN * full or errno.EINVAL * (frame == b"bad"),
        )
        transport.set_write_buffer_limits(high=100)
        transport.write_frames([numbered(1), b"bad", numbered(2)])
        full = False
        assert await received(peer, 4) == [numbered(number) for number in (1, 2, 9, 9)]
        await until(lambda: not transport.get_write_buffer_size())
        assert protocol.events == ["made", "pause", ("error", InvalidFrameError), "resume"]


async def test_limits_that_are_lowered_hold_at_once() -> None:
    async with endpoint() as (transport, protocol, _):
        inject(transport.get_extra_info("queue"), judge=lambda _: errno.EAGAIN)
        transport.write_frame(numbered(1))
        assert protocol.events == ["made"]
        transport.set_write_buffer_limits(high=61)
        transport.set_write_buffer_limits(high=60)
        assert protocol.events == ["made", "pause"]
        transport.abort()


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_closing_writes_what_waits_and_aborting_does_not(ending: str) -> None:
    full = True
    async with endpoint() as (transport, protocol, peer):
        queue = transport.get_extra_info("queue")
        inject(queue, judge=lambda _: errno.EAGAIN * full)
        changed = bytearray(numbered(2))
        transport.write_frames([numbered(1), changed])
        changed[:] = bytes(62)  # what is kept is a copy
        getattr(transport, ending)()
        assert transport.is_closing() and not transport.is_reading()
        if ending == "close":
            peer.send(numbered(3))
            await settle()
        full = False
        assert await protocol.lost is None
        assert peer.receive() == ([numbered(1), numbered(2)] if ending == "close" else [])
        assert not protocol.frames
        assert transport.get_write_buffer_size() == 0 and queue.closed and not queue._writers


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_connection_lost_is_called_by_the_loop_when_the_name_is_free(ending: str) -> None:
    name = unique()
    there: list[bool] = []
    for _ in range(2):
        transport, protocol = await create_tuntap_endpoint(
            lambda: Recorder(lost=lambda _: there.append(name in ip("link"))), name, mode="tap", multi_queue=False
        )
        fd = transport.get_extra_info("queue").fileno()
        getattr(transport, ending)()
        assert protocol.events == ["made"] and fd not in watched_fds()
        assert await protocol.lost is None
    assert there == [False, False]


@pytest.mark.parametrize("state", ["reading", "paused", "writing", "writing paused", "full", "closing"])
async def test_deleted(state: str) -> None:
    full = state in ("full", "closing")
    async with endpoint() as (transport, protocol, peer):
        queue = transport.get_extra_info("queue")
        fd = queue.fileno()
        if full:
            inject(queue, judge=lambda _: errno.EAGAIN * full)
            transport.write_frame(numbered(1))
        if state in ("full", "paused", "writing paused"):
            transport.pause_reading()
        if state == "closing":
            transport.close()
        ip("link", "del", peer.name)
        full = False
        if state == "paused":
            await settle()
            assert protocol.events == ["made"] and await idle_share() < 0.05
            transport.resume_reading()
        if "writing" in state:
            transport.write_frame(numbered(1))
            transport.write_frames([numbered(1), numbered(2)])
        async with asyncio.timeout(5):
            error = await protocol.lost
        assert isinstance(error, DeviceGoneError) and error.errno == errno.EBADFD
        await settle()
        assert protocol.events == ["made", ("lost", DeviceGoneError)]
        assert transport.is_closing() and queue.closed and fd not in watched_fds()
        assert await idle_share() < 0.05


@pytest.mark.parametrize("factory", [Recorder, InBatches])
async def test_frames_that_came_before_the_end_are_handed_over_before_it(factory: type[Recorder]) -> None:
    def delete(own: Recorder) -> None:
        if own.frames[0] == numbered(1) and len(own.frames) in (1, 3):
            ip("link", "del", own.transport.get_extra_info("name"), check=False)
            own.transport.write_frame(numbered(9))

    async with endpoint(lambda: factory(frame=delete, frames=delete)) as (transport, protocol, peer):
        transport.pause_reading()
        for number in (1, 2, 3):
            peer.send(numbered(number))
        transport.resume_reading()
        assert isinstance(await protocol.lost, DeviceGoneError)
        assert protocol.frames == [numbered(number) for number in (1, 2, 3)]


async def test_closed_by_other_means() -> None:
    async with endpoint() as (transport, protocol, _):
        await transport.get_extra_info("queue").aclose()
        assert isinstance(await protocol.lost, QueueClosedError)
    async with endpoint() as (transport, protocol, _):
        transport.pause_reading()
        await transport.get_extra_info("interface").aclose()
        assert isinstance(await protocol.lost, QueueClosedError)


async def test_no_memory_ends_it_and_is_reported() -> None:
    def lacking(_: bytes) -> Any:
        raise MemoryError

    contexts = reported()
    async with endpoint() as (transport, protocol, peer):
        inject(transport.get_extra_info("queue"), change=lacking)
        peer.send(numbered(1))
        assert isinstance(await protocol.lost, MemoryError)
    async with endpoint() as (transport, protocol, peer):
        inject(transport.get_extra_info("queue"), judge=lacking)
        transport.write_frame(numbered(1))
        assert isinstance(await protocol.lost, MemoryError)
    assert [context["message"] for context in contexts] == [
        "reading failed: the transport is closed",
        "writing failed: the transport is closed",
    ]


async def test_the_loop_keeps_an_endpoint_without_other_references() -> None:
    name = unique()
    frames: list[bytes] = []
    over = asyncio.Event()

    class Alone(TuntapProtocol):
        def frame_received(self, frame: bytes) -> None:
            frames.append(frame)

        def connection_lost(self, exc: Exception | None) -> None:
            over.set()

    await create_tuntap_endpoint(Alone, name, mode="tap")
    ip("link", "set", name, "up")
    gc.collect()
    with PacketPeer(name) as peer:
        peer.send(numbered(1))
        await settle()
    assert frames == [numbered(1)]
    ip("link", "del", name)
    async with asyncio.timeout(5):
        await over.wait()


async def test_paused_and_forgotten_gives_a_warning_and_closes() -> None:
    await settle()  # uvloop registers descriptors of its own at first
    name, fds = unique(), watched_fds()
    transport, protocol = await create_tuntap_endpoint(TuntapProtocol, name, mode="tap")
    transport.pause_reading()
    with pytest.warns(ResourceWarning, match="of an endpoint, close the transport"):
        del transport, protocol
        gc.collect()
    assert name not in ip("link") and watched_fds() == fds
    await settle()


def in_another_thread(work: Callable[[], object]) -> None:
    """Where no loop runs."""
    failed: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def another_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes loops of the kind that runs."""
    return uvloop.new_event_loop if on_uvloop() else asyncio.new_event_loop


async def test_a_loop_that_is_closed_too_early_gives_a_warning_and_leaves_no_interface() -> None:
    name, new_loop = unique(), another_loop()

    def work() -> None:
        loop = new_loop()
        loop.run_until_complete(create_tuntap_endpoint(TuntapProtocol, name, mode="tap"))
        loop.close()
        del loop
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed <AsyncTuntap"):
        in_another_thread(work)
    assert name not in ip("link")


@pytest.mark.parametrize("when", ["stopped", "closed"])
async def test_closing_when_the_loop_has_stopped(when: str) -> None:
    name, new_loop = unique(), another_loop()

    async def make() -> tuple[TuntapTransport, Recorder]:
        return await create_tuntap_endpoint(Recorder, name, mode="tap")

    def work() -> None:
        loop = new_loop()
        transport, protocol = loop.run_until_complete(make())
        if when == "closed":
            loop.close()
        transport.close()
        assert name not in ip("link") and transport.is_closing()
        if when == "stopped":
            assert loop.run_until_complete(asyncio.wait_for(protocol.lost, 5)) is None
            loop.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_another_thread(work)
        gc.collect()


@pytest.mark.parametrize("when", ["at the end", "cancelled"])
async def test_connection_lost_is_called_if_the_program_ends_after_close(when: str) -> None:
    name, new_loop = unique(), another_loop()
    protocols: list[Recorder] = []
    kept: list[object] = []

    async def main() -> None:
        transport, protocol = await create_tuntap_endpoint(Recorder, name, mode="tap")
        protocols.append(protocol)

        async def use() -> None:
            try:
                if when == "cancelled":
                    await asyncio.Event().wait()
            finally:
                transport.close()

        using = asyncio.ensure_future(use())
        kept.append(using)
        await settle(1)

    def work() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())

    in_another_thread(work)
    assert name not in ip("link")
    if when == "at the end":
        assert protocols[0].events == ["made", ("lost", None)]


async def test_all_tasks_cancelled_before_closing_begins() -> None:
    name = unique()
    transport, protocol = await create_tuntap_endpoint(Recorder, name, mode="tap")
    transport.close()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    assert await protocol.lost is None
    assert name not in ip("link")


async def test_only_the_loops_own_thread_may_write() -> None:
    async with endpoint() as (transport, _, _):
        for write, frame in ((transport.write_frame, numbered(1)), (transport.write_frames, [numbered(1)])):
            with pytest.raises(RuntimeError, match="belongs to"):
                await asyncio.to_thread(write, frame)  # type: ignore[arg-type]


async def test_a_transport_cannot_be_copied_or_pickled() -> None:
    async with endpoint() as (transport, _, _):
        for work in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                work(transport)


# -- what it says, queues that are open already, offloads --------------------------------------------------------------


async def test_extra_info() -> None:
    async with endpoint() as (transport, _, _):
        interface, queue = transport.get_extra_info("interface"), transport.get_extra_info("queue")
        assert isinstance(interface, AsyncTuntap) and interface.queues == (queue,)
        assert transport.get_extra_info("name") == interface.name
        assert transport.get_extra_info("mode") is Mode.TAP
        assert transport.get_extra_info("index") == socket.if_nametoindex(interface.name)
        assert transport.get_extra_info("netns") is None and transport.get_extra_info("offload") == Offload.NONE
        assert transport.get_extra_info("peername") is None and transport.get_extra_info("peername", 7) == 7
        renamed = unique()
        await interface.configure(up=False)
        await interface.configure(name=renamed)
        assert transport.get_extra_info("name") == renamed
        assert repr(transport) == f"<TuntapTransport of '{renamed}' reading, 0 bytes to write>"
        transport.pause_reading()
        assert "paused" in repr(transport)
        transport.close()
        assert "closed" in repr(transport)
    assert transport.get_extra_info("name") == renamed and transport.get_extra_info("queue").closed


async def test_a_transport_for_each_queue_of_an_interface() -> None:
    async with tap(queues=3) as interface:
        first, second, third = interface.queues
        made = [await create_tuntap_endpoint(Recorder, queue=queue) for queue in interface.queues]
        with PacketPeer(interface.name) as peer:
            for number, (transport, _) in enumerate(made):
                transport.write_frame(numbered(number))
            assert peer.receive() == [numbered(number) for number in range(3)]
        with pytest.raises(RuntimeError, match="already has a transport"):
            await create_tuntap_endpoint(Recorder, queue=first)
        await closed(*made[0])
        assert first.closed and interface.queues == (second, third)
        with pytest.raises(QueueClosedError):
            await create_tuntap_endpoint(Recorder, queue=first)
        with pytest.raises(ValueError, match="leave out 'name'"):
            await create_tuntap_endpoint(Recorder, "name", queue=second)
        with pytest.raises(ValueError, match="leave out mode="):
            await create_tuntap_endpoint(Recorder, queue=second, mode="tap")
        with pytest.raises(TypeError, match="must be a TuntapQueue"):
            await create_tuntap_endpoint(Recorder, queue=interface)  # type: ignore[arg-type]
        ip("link", "del", interface.name)
        for _, protocol in made[1:]:
            assert isinstance(await protocol.lost, DeviceGoneError)
        assert not interface.queues


async def test_a_queue_whose_protocol_cannot_be_made_stays_open() -> None:
    async with tap() as interface:
        (queue,) = interface.queues

        def factory() -> Recorder:
            raise ValueError("boom")

        with pytest.raises(ValueError, match="boom"):
            await create_tuntap_endpoint(factory, queue=queue)
        with PacketPeer(interface.name) as peer:
            peer.send(numbered(1))
            assert await queue.read_frame() == numbered(1)


async def test_two_endpoints_forward_frames() -> None:
    class Relay(Recorder):
        other: Any = None

        def frames_received(self, frames: list[bytes]) -> None:
            self.other.write_frames(frames)

    async with endpoint(Relay) as (one, left, peer), endpoint(Relay) as (two, right, far):
        left.other, right.other = two, one  # type: ignore[attr-defined]
        for number in range(200):
            peer.send(numbered(number))
            far.send(numbered(number))
        for side in (peer, far):
            assert await received(side, 200) == [numbered(number) for number in range(200)]


async def test_offloads_are_not_seen() -> None:
    """Super-frames are cut on reading, and runs are merged on writing, also those that had to wait for room."""
    full = False
    flow = build(row(Packet(tcp_options=b"\x01" * 12), 40, 1000))
    transport, protocol = await create_tuntap_endpoint(InBatches, unique(), mode="tun", offload=Offload.ALL)
    queue = transport.get_extra_info("queue")
    assert transport.get_extra_info("offload")
    await transport.get_extra_info("interface").configure(addresses=[f"{KERNEL[4]}/24"], up=True)
    with SuperFrames(queue) as kernel:
        for start in range(0, 300, 100):
            kernel.send(payload_of(range(start, start + 100)))
        await until(lambda: len(protocol.frames) >= 300)
    assert [int.from_bytes(frame[-4:]) for frame in protocol.frames] == list(range(300))
    assert queue.stats.super_frames_read == 3
    inject(queue, judge=lambda _: errno.EAGAIN * full)
    transport.write_frames(flow)
    assert queue.stats.frames_written == 40 and queue.stats.super_frames_written == 1
    full = True
    transport.write_frames(flow)
    assert transport.get_write_buffer_size() == sum(map(len, flow))
    full = False
    await until(lambda: not transport.get_write_buffer_size())
    assert queue.stats.frames_written == 80 and queue.stats.super_frames_written == 2
    await closed(transport, protocol)
