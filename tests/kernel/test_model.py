"""The life of a queue against a model of it: open, enabled or not, up or down, gone, closed; its frames and who waits.

The model is a list of frames that were sent and not read yet, a line of readers, and four flags. Hypothesis chooses the
steps, and shortens the run when a step differs from the model. Each step runs on an event loop that the state machine
keeps, and ends when the loop has nothing left to do.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiotuntap import (
    AsyncTuntap,
    DeviceGoneError,
    InvalidFrameError,
    LinkDownError,
    Offload,
    QueueClosedError,
    TuntapQueue,
)
from aiotuntap.testing import example_frame

from ..conftest import LOOPS
from .support import PacketPeer, ip, unique, watched_fds

T = TypeVar("T")

#: Examples for each loop and engine; a longer run sets it higher.
EXAMPLES = int(os.environ.get("AIOTUNTAP_TEST_EXAMPLES", "20"))

# Frames under way at most: fewer than the ring of the kernel has room for.
_MOST = 300


class Reader(NamedTuple):
    task: asyncio.Task[list[bytes]]
    limit: int
    iterates: bool


class Life(RuleBasedStateMachine):
    """One queue of a TAP interface that has another, disabled one, so that the kernel has no choice."""

    def __init__(self, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        super().__init__()
        self.loop = make_loop()
        self.interface: AsyncTuntap
        self.queue: TuntapQueue
        self.peer: PacketPeer
        self.enabled = self.up = True
        self.closed = self.gone = False
        #: Frames that were sent to the queue and that nobody has read.
        self.waiting: list[bytes] = []
        self.readers: list[Reader] = []
        self.sent = self.read = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 20))

    @initialize(high=st.sampled_from([1, 4, 64, 256]), transparent=st.booleans())
    def open(self, high: int, transparent: bool) -> None:
        self.high, self.transparent = high, transparent

        async def work() -> None:
            offload = Offload.ALL if transparent else Offload.NONE
            self.interface = await AsyncTuntap(
                unique("m"), mode="tap", queues=2, offload=offload, read_buffer=high
            ).open()
            self.queue, other = self.interface.queues
            await other.disable()
            await self.interface.configure(up=True)

        self.run(work())
        self.peer = PacketPeer(self.interface.name)
        self.fd = self.queue.fileno()

    def teardown(self) -> None:
        async def work() -> None:
            for reader in self.readers:
                reader.task.cancel()
            await asyncio.gather(*(reader.task for reader in self.readers), return_exceptions=True)
            await self.interface.aclose()

        try:
            if hasattr(self, "interface"):
                self.run(work())
                self.peer.__exit__()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    # -- what the model says -------------------------------------------------------------------------------------------

    @property
    def ended(self) -> type[Exception] | None:
        """The error of reading when no frame is left, and of writing at once."""
        return QueueClosedError if self.closed else DeviceGoneError if self.gone else None

    def _take(self, frames: list[bytes]) -> None:
        """Records that these frames were read."""
        assert frames == self.waiting[: len(frames)]
        del self.waiting[: len(frames)]
        self.read += len(frames)

    async def _settle(self) -> None:
        """Waits until the first reader has nothing to read, and accounts for what the others got."""
        async with asyncio.timeout(2):
            while True:
                for _ in range(3):
                    await asyncio.sleep(0)
                while self.readers and self.readers[0].task.done():
                    self._served(self.readers.pop(0))
                if not self.readers or not (self.waiting or self.ended):
                    break
                await asyncio.sleep(0.0005)
        assert not any(reader.task.done() for reader in self.readers), "a later reader was served first"

    def _served(self, reader: Reader) -> None:
        error = reader.task.exception()
        if error is None:
            frames = reader.task.result()
            assert 1 <= len(frames) <= reader.limit
            self._take(frames)
        else:
            assert not self.waiting and self.ended is not None
            assert isinstance(error, StopAsyncIteration if self.closed and reader.iterates else self.ended)

    async def _drain(self) -> None:
        """Reads what is in the buffer; what was still in the kernel's ring is lost."""
        await self._settle()
        if not self.readers:
            with suppress(BlockingIOError, DeviceGoneError):
                while True:
                    self._take(self.queue.read_frames_nowait())
        self.waiting.clear()

    # -- reading -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.up and not self.gone)
    @rule(count=st.sampled_from([1, 2, 3, 70]))
    def send(self, count: int) -> None:
        async def work() -> None:
            for _ in range(min(count, _MOST - len(self.waiting))):
                self.sent += 1
                frame = example_frame(self.sent)
                self.peer.send(frame)
                if self.enabled and not self.closed:
                    self.waiting.append(frame)
            await self._settle()

        self.run(work())

    @rule(
        kinds=st.lists(st.sampled_from(["read_frame", "read_frames", "async for"]), min_size=1, max_size=4),
        limit=st.sampled_from([1, 2, 100]),
    )
    def ask(self, kinds: list[str], limit: int) -> None:
        """Several tasks begin to read at once."""
        queue = self.queue

        async def read(kind: str) -> list[bytes]:
            if kind == "read_frames":
                return await queue.read_frames(limit)
            if kind == "read_frame":
                return [await queue.read_frame()]
            try:
                return [await anext(aiter(queue))]
            except StopAsyncIteration as error:  # a task cannot raise it
                raise Ended from error

        async def work() -> None:
            for kind in kinds:
                task = self.loop.create_task(read(kind))
                self.readers.append(Reader(task, limit if kind == "read_frames" else 1, kind == "async for"))
            await self._settle()

        self.run(work())

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), turns=st.integers(0, 2), frames=st.integers(0, 2))
    def cancel(self, data: st.DataObject, turns: int, frames: int) -> None:
        """Cancels a reader, perhaps while frames are on their way to it."""
        number = data.draw(st.integers(0, len(self.readers) - 1))

        async def work() -> None:
            for _ in range(frames if self.up and not self.gone else 0):
                self.sent += 1
                self.peer.send(example_frame(self.sent))
                if self.enabled and not self.closed:
                    self.waiting.append(example_frame(self.sent))
            for _ in range(turns):
                await asyncio.sleep(0)
            task = self.readers[number].task
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                del self.readers[number]
            await self._settle()

        self.run(work())

    @rule(limit=st.sampled_from([0, 1, 3, 100]))
    def look(self, limit: int) -> None:
        """Reads without waiting: one frame if the limit is 0."""

        async def work() -> None:
            error = None if self.waiting and not self.readers else self.ended or BlockingIOError
            try:
                frames = self.queue.read_frames_nowait(limit) if limit else [self.queue.read_frame_nowait()]
            except (BlockingIOError, QueueClosedError, DeviceGoneError) as raised:
                assert error is not None and isinstance(raised, error)
            else:
                assert error is None and 1 <= len(frames) <= max(limit, 1)
                self._take(frames)
            await self._settle()

        self.run(work())

    # -- writing -------------------------------------------------------------------------------------------------------

    @rule(way=st.sampled_from(["one", "batch", "nowait"]), count=st.sampled_from([1, 5]), wrong=st.booleans())
    def write(self, way: str, count: int, wrong: bool) -> None:
        frames = [example_frame(1_000_000 + number) for number in range(count)]
        if wrong:
            frames.insert(count // 2, b"short")
        expected = self.ended or (None if self.up else LinkDownError)

        async def work() -> None:
            refused = 0
            for batch in [frames] if way == "batch" else [[frame] for frame in frames]:
                try:
                    if way == "batch":
                        await self.queue.write_frames(batch)
                    elif way == "one":
                        await self.queue.write_frame(batch[0])
                    else:
                        self.queue.write_frame_nowait(batch[0])
                except InvalidFrameError as error:
                    assert wrong and [batch[index] for index in error.indexes] == [b"short"]
                    refused += 1
                except (QueueClosedError, DeviceGoneError, LinkDownError) as error:
                    assert expected is not None and isinstance(error, expected)
                    return
                else:
                    assert batch == [b"short"] or expected is None
            assert refused == wrong or expected is not None
            assert expected is not None or self.peer.receive() == [frame for frame in frames if frame != b"short"]

        self.peer.receive()
        self.run(work())

    # -- the life ------------------------------------------------------------------------------------------------------

    @rule(enable=st.booleans())
    def switch(self, enable: bool) -> None:
        async def work() -> None:
            try:
                await (self.queue.enable() if enable else self.queue.disable())
            except (QueueClosedError, DeviceGoneError) as error:
                assert self.ended is not None and isinstance(error, self.ended)
                return
            assert self.ended is None
            if self.enabled and not enable:
                await self._drain()
            self.enabled = enable

        self.run(work())

    @precondition(lambda self: not self.gone)
    @rule(up=st.booleans())
    def set_link(self, up: bool) -> None:
        self.run(self.interface.configure(up=up))
        self.up = up
        self.peer.receive()  # which takes the error that a packet socket keeps after its interface was down

    @precondition(lambda self: not self.gone)
    @rule(hard=st.integers(0, 5))
    def delete(self, hard: int) -> None:
        """Seldom: most of a life is before its end."""
        if hard:
            return
        ip("link", "del", self.interface.name)
        self.gone = True
        if not self.closed:
            self.run(self._drain())

    @rule(hard=st.integers(0, 5))
    def close(self, hard: int) -> None:
        if hard:
            return
        self.closed = True
        self.waiting.clear()

        async def work() -> None:
            await self.queue.aclose()
            await self._settle()

        self.run(work())

    @invariant()
    def says_what_it_is(self) -> None:
        if not hasattr(self, "peer"):
            return
        assert self.queue.closed is self.closed
        assert self.queue.enabled is (self.enabled and self.ended is None)
        assert (self.queue.fileno() == -1) is self.closed
        if self.ended is not None:
            assert self.fd not in watched_fds() or self.closed, "a descriptor that is gone is still watched"
        stats = self.queue.stats
        assert stats.frames_read >= self.read and stats.frames_dropped == 0
        if self.closed:
            return
        buffered = len(self.queue._buffer)
        assert stats.frames_read - self.read == buffered
        if not self.gone and not self.transparent:
            assert buffered <= self.high
            if buffered == self.high and len(self.waiting) > buffered:
                assert self.fd not in watched_fds(), "a full buffer, and the descriptor is still watched"
            elif buffered <= self.high // 4:
                assert self.fd in watched_fds(), "there is room, and the descriptor is not watched"


class Ended(StopAsyncIteration, Exception):
    """How an ``async for`` ends, in a task."""


@pytest.mark.timeout(300)  # to make a failure shorter takes a while
@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_queue_lives_as_its_model(loop: str) -> None:
    run_state_machine_as_test(
        lambda: Life(LOOPS[loop]),  # type: ignore[arg-type]  # whatever makes one will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
