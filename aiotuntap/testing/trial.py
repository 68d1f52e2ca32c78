"""The stream under test, its far end, and how the checks write, read and wait.

A frame that was written may arrive later: the checks wait for each frame, up to a time limit. They do not have to wait
for a lost frame if the one after it arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from typing import Any, NoReturn, Protocol, TypeVar

from .._types import Frame, PacketStream

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class FarEnd(Protocol):
    """The other end of a stream under test: frames written to it are read from the stream, and vice versa.

    It may have two more methods. ``async vanish()`` deletes the device, as ``ip link del`` does; the checks of
    `DeviceGoneError` run only if it exists. With ``write_frame_nowait(frame)``, the checks can write several frames
    before other tasks run.
    """

    async def read_frame(self) -> bytes: ...

    async def write_frame(self, frame: bytes, /) -> None: ...


class FrameMaker(Protocol):
    """Makes a valid frame of *size* bytes, a different one for each number."""

    def __call__(self, number: int, /, size: int = ...) -> bytes:
        """Returns the frame with this number."""


#: Returns an asynchronous context manager, which makes a new stream and its far end, and closes both.
StreamMaker = Callable[[], AbstractAsyncContextManager[tuple[PacketStream, FarEnd]]]


def example_frame(number: int, size: int = 60) -> bytes:
    """An Ethernet broadcast frame, a different one for each number. Its EtherType 0x88B5 is for local experiments.

    Args:
        number: Any number from 0 to 0xFFFFFFFF.
        size: Size of the frame in bytes, at least 18.
    """
    header = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5"
    return (header + number.to_bytes(4) * (size // 4))[:size]


@dataclass(frozen=True)
class Terms:
    """The arguments of `check_packet_stream`."""

    frame: Callable[..., bytes]
    #: Smallest and largest frame in bytes; None if `frame` makes frames of one size only.
    sizes: tuple[int, int] | None
    #: Larger frames may be refused by either end or be lost, but must not arrive changed.
    certain: int
    refused: Frame | None
    burst: int
    patience: float


class Trial:
    """One stream under test, and its far end.

    Args:
        pace: Seconds from one end to the other, for a single frame and for each of many.
    """

    def __init__(self, stream: PacketStream, far: FarEnd, terms: Terms, pace: tuple[float, float] = (0.0, 0.0)) -> None:
        self.stream = stream
        self.far = far
        self.terms = terms
        self.delay: float = pace[0]
        self.each: float = pace[1]
        self._next = 0
        self._tasks: list[asyncio.Task[Any]] = []

    async def run(self, check: Callable[[Trial], Awaitable[None]]) -> None:
        """Runs one check, and cancels the tasks that it leaves behind."""
        try:
            await check(self)
        finally:
            await self.cancel(*self._tasks)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts a task. It is cancelled at the end of the check."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.append(task)
        return task

    async def cancel(self, *tasks: asyncio.Task[Any]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=self.terms.patience)
            assert not left, f"a task that was cancelled did not end within {self.terms.patience:g} s"

    # -- frames --------------------------------------------------------------------------------------------------------

    def frame(self, size: int | None = None) -> bytes:
        """A frame that was not used before."""
        self._next += 1
        return self.terms.frame(self._next) if size is None else self.terms.frame(self._next, size=size)

    def frames(self, count: int) -> list[bytes]:
        return [self.frame() for _ in range(count)]

    def many(self, least: int = 12) -> list[bytes]:
        """As many frames as pass in a second, between *least* and `Terms.burst`."""
        return self.frames(max(least, min(self.terms.burst, int(1 / max(self.each, 0.001)))))

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def soon(self, awaitable: Awaitable[T], complaint: str) -> T:
        """The result of *awaitable*. Raises AssertionError if it takes longer than `Terms.patience`."""
        try:
            async with asyncio.timeout(self.terms.patience) as deadline:
                return await awaitable
        except TimeoutError:
            if not deadline.expired():
                raise
            raise AssertionError(f"{complaint}: nothing happened for {self.terms.patience:g} s") from None

    async def now(self, call: Callable[[], T], complaint: str) -> T:
        """The result of *call*, which is repeated while it raises BlockingIOError."""

        async def attempt() -> T:
            while True:
                try:
                    return call()
                except BlockingIOError:
                    await asyncio.sleep(0.0005)

        return await self.soon(attempt(), complaint)

    async def turns(self, count: int) -> None:
        """Lets the event loop run *count* iterations."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def asked(self) -> None:
        """Waits until tasks that were just started wait for a frame."""
        await self.turns(3)
        if self.delay > 0.001:
            await asyncio.sleep(2 * self.delay)

    async def settle(self) -> None:
        """Waits until frames on the way have arrived."""
        await asyncio.sleep(0.003 + 3 * self.delay)

    async def raises(self, kind: type[E], use: Callable[[], Awaitable[object]], what: str) -> E:
        """The exception of type *kind* that *use* raises. Raises AssertionError if it does not raise one."""
        try:
            result = await self.soon(use(), f"{what} must raise {kind.__name__}")
        except kind as error:
            return error
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{what} must raise {kind.__name__}, not {error!r}") from error
        raise AssertionError(f"{what} must raise {kind.__name__}, not return {_short(result)}")

    # -- from the far end to the stream --------------------------------------------------------------------------------

    async def send(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            await self.soon(self.far.write_frame(frame), "the far end's write_frame")

    async def burst(self, frames: Sequence[bytes]) -> None:
        """Sends frames, if the far end can, without letting other tasks run."""
        write = getattr(self.far, "write_frame_nowait", None)
        if write is None:
            await self.send(frames)
            return
        for frame in frames:
            await self.now(partial(write, frame), "the far end's write_frame_nowait")

    async def collect(self, way: str, sent: Sequence[bytes]) -> list[bytes]:
        """The frames that are read from the stream, up to the last one that was sent."""
        got: list[bytes] = []
        batches = self.reads()[way]()
        while len(got) < len(sent) and (not got or got[-1] != sent[-1]):
            try:
                batch = await self.soon(anext(batches), f"{way} gave {len(got)} of {len(sent)} frames")
            except StopAsyncIteration:
                raise AssertionError(f"{way} ended after {len(got)} of {len(sent)} frames") from None
            except AssertionError:
                starts_like(got, sent, way)
                raise
            assert batch, f"{way} returned no frame"
            got += batch
        await batches.aclose()  # type: ignore[attr-defined]
        return got

    def reads(self) -> dict[str, Callable[[], AsyncIterator[list[bytes]]]]:
        """The methods of reading that the stream has, by name."""
        stream: Any = self.stream

        async def read_frame() -> AsyncIterator[list[bytes]]:
            while True:
                yield [await stream.read_frame()]

        async def read_frames() -> AsyncIterator[list[bytes]]:
            while True:
                yield await stream.read_frames()

        async def iterate() -> AsyncIterator[list[bytes]]:
            async for frame in stream:
                yield [frame]

        async def read_frame_nowait() -> AsyncIterator[list[bytes]]:
            while True:
                yield [await self.now(stream.read_frame_nowait, "read_frame_nowait")]

        async def read_frames_nowait() -> AsyncIterator[list[bytes]]:
            while True:
                yield await self.now(stream.read_frames_nowait, "read_frames_nowait")

        ways = {
            "read_frame": read_frame,
            "read_frames": read_frames,
            "async for": iterate,
            "read_frame_nowait": read_frame_nowait,
        }
        return ways | {"read_frames_nowait": read_frames_nowait} if hasattr(stream, "read_frames_nowait") else ways

    # -- from the stream to the far end --------------------------------------------------------------------------------

    async def arrived(self, sent: Sequence[bytes], what: str) -> list[bytes]:
        """The frames that arrive at the far end, up to the last one that was written."""
        got: list[bytes] = []
        while len(got) < len(sent) and (not got or got[-1] != sent[-1]):
            try:
                got.append(await self.soon(self.far.read_frame(), f"{what}: {len(got)} of {len(sent)} frames arrived"))
            except AssertionError:
                starts_like(got, sent, what)
                raise
        return got

    def writes(self) -> dict[str, Callable[[Sequence[Frame]], Awaitable[object]]]:
        """The methods of writing that the stream has, by name."""
        stream: Any = self.stream

        async def write_frame(frames: Sequence[Frame]) -> None:
            for frame in frames:
                await stream.write_frame(frame)

        async def write_frame_nowait(frames: Sequence[Frame]) -> None:
            for frame in frames:
                await self.now(partial(stream.write_frame_nowait, frame), "write_frame_nowait")

        async def write_frames_nowait(frames: Sequence[Frame]) -> None:
            rest = list(frames)
            while rest:
                taken = await self.now(partial(stream.write_frames_nowait, rest), "write_frames_nowait")
                assert type(taken) is int and 0 <= taken <= len(rest), (
                    f"write_frames_nowait must return how many of {len(rest)} frames were taken, not {taken!r}"
                )
                rest = rest[taken:]
                if not taken:
                    await asyncio.sleep(0.0005)

        ways: dict[str, Callable[[Sequence[Frame]], Awaitable[object]]] = {
            "write_frame": write_frame,
            "write_frames": stream.write_frames,
            "write_frames of an iterator": lambda frames: stream.write_frames(iter(frames)),
            "write_frame_nowait": write_frame_nowait,
        }
        return ways | {"write_frames_nowait": write_frames_nowait} if hasattr(stream, "write_frames_nowait") else ways

    # -- both directions ----------------------------------------------------------------------------------------------------

    def uses(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """A call of each method that must raise after the stream has ended."""
        stream: Any = self.stream
        frame = self.frame()

        def at_once(call: Callable[[], object]) -> Callable[[], Awaitable[object]]:
            async def use() -> object:
                return call()

            return use

        uses: dict[str, Callable[[], Awaitable[object]]] = {
            "read_frame": stream.read_frame,
            "read_frames": stream.read_frames,
            "read_frame_nowait": at_once(stream.read_frame_nowait),
            "write_frame": lambda: stream.write_frame(frame),
            "write_frames": lambda: stream.write_frames([frame]),
            "write_frame_nowait": at_once(lambda: stream.write_frame_nowait(frame)),
        }
        if hasattr(stream, "read_frames_nowait"):
            uses["read_frames_nowait"] = at_once(stream.read_frames_nowait)
        if hasattr(stream, "write_frames_nowait"):
            uses["write_frames_nowait"] = at_once(lambda: stream.write_frames_nowait([frame]))
        return uses


class Others:
    """A task that counts how often other tasks of the loop can run."""

    def __init__(self, trial: Trial) -> None:
        self.turns: int = 0
        trial.start(self._take_turns())

    async def _take_turns(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turns += 1


def same(got: Sequence[bytes], sent: Sequence[bytes], what: str) -> None:
    """Raises an AssertionError that names the first difference."""
    starts_like(got, sent, what)
    if len(got) < len(sent):
        _fail(f"{what}: frame {len(got)} of {len(sent)} was lost")


def starts_like(got: Sequence[bytes], sent: Sequence[bytes], what: str) -> None:
    """Like `same`, but more frames may still come."""
    for index, came in enumerate(got):
        expected = sent[index] if index < len(sent) else None
        if came == expected:
            continue
        where = f"{what}: frame {index} of {len(sent)}"
        if expected is None:
            _fail(f"{what}: an additional frame of {len(came)} bytes came after the last: {_short(came)}")
        if came in sent[:index]:
            _fail(f"{where}: an earlier frame came again instead")
        if came in sent:
            _fail(f"{where} was " + ("overtaken by a later one" if expected in got else "lost"))
        # The changed frame need not be the next one: frames before it may have been lost.
        source = max(sent[index:], key=lambda each: len(commonprefix([each, came])))
        where = f"{what}: a frame of {len(source)} bytes"
        if source.startswith(came):
            _fail(f"{where} was cut to {len(came)} bytes")
        if came.startswith(source):
            _fail(f"{where} was padded to {len(came)} bytes")
        _fail(f"{where} was changed: {_short(came)} instead of {_short(source)}")


def _fail(complaint: str) -> NoReturn:
    raise AssertionError(complaint)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
