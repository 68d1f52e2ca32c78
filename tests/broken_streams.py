"""Streams that are broken on purpose, one fault each, to prove that the conformance checks find it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, TypeVar

from aiotuntap import DeviceGoneError, InvalidFrameError, QueueClosedError
from aiotuntap.testing import MemoryStream


class Through:
    """A correct stream around one end of a memory pair; no method goes through another one of it."""

    def __init__(self, inner: MemoryStream) -> None:
        self.inner = inner

    @property
    def closed(self) -> bool:
        return self.inner.closed

    async def read_frame(self) -> bytes:
        return await self.inner.read_frame()

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        return await self.inner.read_frames(limit)

    def read_frame_nowait(self) -> bytes:
        return self.inner.read_frame_nowait()

    def read_frames_nowait(self, limit: int = 128) -> list[bytes]:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        frames = [self.inner.read_frame_nowait()]
        try:
            while len(frames) < limit:
                frames.append(self.inner.read_frame_nowait())
        except (BlockingIOError, DeviceGoneError):
            pass
        return frames

    async def write_frame(self, frame: Any) -> None:
        await self.inner.write_frame(frame)

    async def write_frames(self, frames: Any) -> None:
        await self.inner.write_frames(frames)

    def write_frame_nowait(self, frame: Any) -> None:
        self.inner.write_frame_nowait(frame)

    def write_frames_nowait(self, frames: Any) -> int:
        return self.inner.write_frames_nowait(frames)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.inner.read_frame()
        except QueueClosedError:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await self.inner.aclose()


class Fault(NamedTuple):
    """A broken stream, the checks that must find the fault, and no others, and what the first of them must say."""

    stream: type[Through]
    checks: tuple[str, ...]
    says: str


FAULTS: list[Fault] = []
S = TypeVar("S", bound=type[Through])


def fault(says: str, *checks: str) -> Callable[[S], S]:
    def add(stream: S) -> S:
        FAULTS.append(Fault(stream, checks, says))
        return stream

    return add


async def never() -> Any:
    await asyncio.get_running_loop().create_future()


# -- frames that are not whole -----------------------------------------------------------------------------------------


@fault("read_frame: a frame of 1501 bytes was cut to 1500", "frames_of_every_size_pass")
class CutsAt1500(Through):
    async def read_frame(self) -> bytes:
        return (await super().read_frame())[:1500]


@fault("read_frames: a frame of 2049 bytes was cut to 2048", "frames_of_every_size_pass")
class CutsAt2048InBatches(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        return [frame[:2048] for frame in await super().read_frames(limit)]


@fault("async for: a frame of 9001 bytes was cut to 9000", "frames_of_every_size_pass")
class CutsIteration(Through):
    async def __anext__(self) -> bytes:
        return (await super().__anext__())[:9000]


@fault("read_frames_nowait: a frame of 65549 bytes was cut to 65548", "frames_of_every_size_pass")
class CutsTheLargest(Through):
    def read_frames_nowait(self, limit: int = 128) -> list[bytes]:
        return [frame[:65548] for frame in super().read_frames_nowait(limit)]


@fault("write_frames: a frame of 2049 bytes was cut to 2048", "frames_of_every_size_pass")
class CutsWhenWritingBatches(Through):
    async def write_frames(self, frames: Any) -> None:
        await super().write_frames(
            [each[:2048] if type(each) is bytes and len(each) < 66_000 else each for each in frames]
        )


@fault("write_frame: a frame of 9001 bytes was cut to 9000", "frames_of_every_size_pass")
class SplitsLargeFrames(Through):
    async def write_frame(self, frame: Any) -> None:
        if type(frame) is bytes and 9000 < len(frame) < 66_000:
            await super().write_frame(frame[:9000])
            frame = frame[9000:]
        await super().write_frame(frame)


@fault("write_frame: a frame of 18 bytes was padded to 60", "frames_of_every_size_pass")
class PadsToTheMinimumOfEthernet(Through):
    async def write_frame(self, frame: Any) -> None:
        await super().write_frame(frame.ljust(60, b"\0") if type(frame) is bytes and frame else frame)


@fault("read_frame_nowait: a frame of 18 bytes was padded to 20", "frames_of_every_size_pass")
class PadsToFour(Through):
    def read_frame_nowait(self) -> bytes:
        frame = super().read_frame_nowait()
        return frame + bytes(-len(frame) % 4)


@fault("write_frame_nowait: a frame of 1024 bytes was changed", "frames_of_every_size_pass")
class ChangesTheLastByte(Through):
    def write_frame_nowait(self, frame: Any) -> None:
        if type(frame) is bytes and len(frame) == 1024:
            frame = frame[:-1] + b"!"
        super().write_frame_nowait(frame)


@fault(r"write_frame: frame \d+ of .* was lost", "frames_of_every_size_pass")
class LosesFramesOf257Bytes(Through):
    async def write_frame(self, frame: Any) -> None:
        if len(frame) != 257:
            await super().write_frame(frame)


@fault("write_frame of 100000 bytes: a frame of 100000 bytes was cut to 65553", "what_is_too_large_is_refused")
class CutsWhatIsTooLarge(Through):
    async def write_frame(self, frame: Any) -> None:
        await super().write_frame(frame[:65553] if type(frame) is bytes else frame)


@fault("write_frames of 100000 bytes: frame 0 of 2 was lost", "what_is_too_large_is_refused")
class LosesWhatIsTooLarge(Through):
    async def write_frames(self, frames: Any) -> None:
        await super().write_frames([each for each in frames if not (type(each) is bytes and len(each) > 66_000)])


# -- frames that are lost, repeated or overtaken -----------------------------------------------------------------------


@fault("write_frames: frame 100 of 300 was lost", "writes_are_in_order")
class DropsFrame101OfABatch(Through):
    async def write_frames(self, frames: Any) -> None:
        if not isinstance(frames, (bytes, str)):
            frames = list(frames)
            if b"" not in frames:
                del frames[100:101]
        await super().write_frames(frames)


@fault("read_frames: frame 100 of 300 was lost", "reads_are_in_order")
class DropsFrame101OfTheBatchesRead(Through):
    count = 0

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        frames = await super().read_frames(limit)
        at = 100 - self.count
        self.count += len(frames)
        return frames[:at] + frames[at + 1 :] if at >= 0 else frames


@fault("write_frames: frame 100 of 300 was overtaken by a later one", "writes_are_in_order")
class SwapsTwoFrames(Through):
    async def write_frames(self, frames: Any) -> None:
        if isinstance(frames, list) and len(frames) > 200 and b"" not in frames:
            frames = [*frames[:100], frames[101], frames[100], *frames[102:]]
        await super().write_frames(frames)


@fault("read_frames: frame .* of 300: an earlier frame came again", "reads_are_in_order")
class RepeatsAFrame(Through):
    count = 0

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        frames = await super().read_frames(limit)
        if self.count <= 100 < self.count + len(frames):
            frames = [*frames, frames[0]]
        self.count += len(frames)
        return frames


@fault("async for: frame 99 of 300 was lost", "reads_are_in_order")
class IterationSkips(Through):
    async def _iterate(self) -> AsyncIterator[bytes]:
        count = 0
        try:
            while True:
                frame = await self.inner.read_frame()
                count += 1
                if count % 100:
                    yield frame
        except QueueClosedError:
            return

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()


@fault("async for ended after 50 of 300 frames", "reads_are_in_order")
class IterationEndsEarly(Through):
    async def _iterate(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(50):
                yield await self.inner.read_frame()
        except QueueClosedError:
            return

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()


@fault(
    "an async for that was left: frame 2 of 12 was lost",
    "iteration_can_be_left_and_resumed",
    "reads_are_in_order",
    "readers_take_turns",
    "cancelled_reads_lose_nothing",
    "frames_that_came_before_the_end_are_read",
)
class IterationReadsAhead(Through):
    async def _iterate(self) -> AsyncIterator[bytes]:
        try:
            while True:
                for frame in await self.inner.read_frames(3):
                    yield frame
        except QueueClosedError:
            return

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()


@fault("a frame that was written came back", "writes_are_in_order", "reading_does_not_block_writing")
class Echoes(Through):
    def write_frames_nowait(self, frames: Any) -> int:
        count = super().write_frames_nowait(frames)
        if type(frames[0]) is bytes and len(frames[0]) == 60:
            self.inner._ring.append(frames[0])
            self.inner._more = True
            self.inner._wake_reader()
        return count


# -- what is returned --------------------------------------------------------------------------------------------------


@fault("read_frame must give bytes, not memoryview", "reads_are_in_order")
class GivesViews(Through):
    async def read_frame(self) -> bytes:
        return memoryview(await super().read_frame())  # type: ignore[return-value]


@fault("read_frames must return a list, not tuple", "reads_are_in_order", "nowait_does_not_overtake")
class GivesTuples(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        return tuple(await super().read_frames(limit))  # type: ignore[return-value]


@fault("read_frames returned no frame", "reads_are_in_order")
class GivesAnEmptyBatch(Through):
    count = 0

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        if self.count > 100:
            self.count = 0
            return []
        frames = await super().read_frames(limit)
        self.count += len(frames)
        return frames


@fault(r"read_frames\(5\) returned 6 frames", "read_frames_keeps_its_limit")
class ExceedsTheLimit(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        frames = await super().read_frames(limit)
        while limit == 5 and len(frames) <= 5:
            frames.append(self.inner.read_frame_nowait())
        return frames


@fault(r"read_frames_nowait\(1\) returned 12 frames", "read_frames_keeps_its_limit")
class IgnoresTheLimitWithoutWaiting(Through):
    def read_frames_nowait(self, limit: int = 128) -> list[bytes]:
        return super().read_frames_nowait(128 if limit > 0 else limit)


@fault("read_frames returned one frame each time although more were available", "read_frames_keeps_its_limit")
class GivesOneAtATime(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        return await super().read_frames(min(limit, 1))


@fault(r"read_frames\(1000000\) while fewer frames are available: nothing happened", "read_frames_keeps_its_limit")
class WaitsForAFullBatch(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        frames = await super().read_frames(limit)
        while limit > 1000 and len(frames) < limit:
            frames += await super().read_frames()
        return frames


@fault(r"read_frames\(0\) must raise ValueError", "read_frames_keeps_its_limit")
class TakesALimitOfZero(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        return await super().read_frames(limit) if limit else []


@fault("the list that read_frames returned was changed afterwards", "read_frames_keeps_its_limit")
class GivesTheSameListAgain(Through):
    def __init__(self, inner: MemoryStream) -> None:
        super().__init__(inner)
        self.frames: list[bytes] = []

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        frames = await super().read_frames(limit)
        self.frames[:] = frames
        return self.frames


@fault(
    "read_frame_nowait before the first frame must raise BlockingIOError, not return b''",
    "nowait_is_empty_when_nothing_came",
)
class GivesEmptyBytesWithoutWaiting(Through):
    used = False

    def read_frame_nowait(self) -> bytes:
        try:
            frame = super().read_frame_nowait()
        except BlockingIOError:
            if self.used or self.inner._readers:
                raise
            self.used = True
            return b""
        self.used = True
        return frame


@fault(
    "read_frames_nowait after the last frame must raise BlockingIOError, not return",
    "nowait_is_empty_when_nothing_came",
)
class GivesAnEmptyBatchWithoutWaiting(Through):
    blocked = 0

    def read_frames_nowait(self, limit: int = 128) -> list[bytes]:
        try:
            return super().read_frames_nowait(limit)
        except BlockingIOError:
            self.blocked += 1
            if self.blocked == 2 and not self.inner._readers:
                return []
            raise


@fault("write_frames_nowait must return how many of 300 frames were taken, not None", "writes_are_in_order")
class CountsNothing(Through):
    def write_frames_nowait(self, frames: Any) -> int:
        count = super().write_frames_nowait(frames)
        return None if count > 100 else count  # type: ignore[return-value]


@fault("write_frames_nowait: 64 of 300 frames arrived", "writes_are_in_order", "refused_frames_are_named")
class CountsTooMany(Through):
    def write_frames_nowait(self, frames: Any) -> int:
        super().write_frames_nowait(frames[:64])
        return len(frames)


# -- several readers, and cancelled ones -------------------------------------------------------------------------------


@fault("read_frame_nowait took a frame for which read_frame was waiting already", "nowait_does_not_overtake")
class OvertakesWithoutWaiting(Through):
    def read_frame_nowait(self) -> bytes:
        return self.inner._buffer.popleft() if self.inner._buffer else super().read_frame_nowait()


@fault("read_frames_nowait took a frame for which read_frame was waiting already", "nowait_does_not_overtake")
class BatchOvertakesWithoutWaiting(Through):
    def read_frames_nowait(self, limit: int = 128) -> list[bytes]:
        return [self.inner._buffer.popleft()] if self.inner._buffer else super().read_frames_nowait(limit)


@fault("readers were not served in turn", "readers_take_turns")
class LaterReadersOvertake(Through):
    async def read_frame(self) -> bytes:
        return self.inner._buffer.popleft() if self.inner._buffer else await super().read_frame()


@fault("readers were not served in turn", "readers_take_turns")
class LaterBatchReadersOvertake(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        return [self.inner._buffer.popleft()] if limit == 1 and self.inner._buffer else await super().read_frames(limit)


@fault(
    "after a cancelled read_frame: frame .* was lost",
    "cancelled_reads_lose_nothing",
    "readers_take_turns",
    "a_cancelled_reader_leaves_the_line",
)
class LosesAFrameWhenCancelled(Through):
    async def read_frame(self) -> bytes:
        frame = await super().read_frame()
        await asyncio.sleep(0)
        return frame


@fault("after a cancelled read_frames: frame .* was lost", "cancelled_reads_lose_nothing", "readers_take_turns")
class LosesABatchWhenCancelled(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        frames = await super().read_frames(limit)
        await asyncio.sleep(0)
        return frames


@fault("after a cancelled async for: frame .* was lost", "cancelled_reads_lose_nothing", "readers_take_turns")
class LosesAFrameOfIterationWhenCancelled(Through):
    async def __anext__(self) -> bytes:
        frame = await super().__anext__()
        await asyncio.sleep(0)
        return frame


@fault(
    "after a cancelled read_frame: frame .* was overtaken by a later one",
    "cancelled_reads_lose_nothing",
    "readers_take_turns",
)
class PutsAFrameBackAtTheEnd(Through):
    async def read_frame(self) -> bytes:
        frame = await super().read_frame()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.inner._ring.append(frame)
            self.inner._more = True
            self.inner._wake_reader()
            raise
        return frame


@fault(
    "a frame that came for a cancelled reader did not go to the next one",
    "a_cancelled_reader_leaves_the_line",
    "cancelled_reads_lose_nothing",
)
class CancelledReaderStaysInTheLine(Through):
    async def read_frame(self) -> bytes:
        others = len(self.inner._readers)
        try:
            return await super().read_frame()
        except asyncio.CancelledError:
            if others == 0 and len(self.inner._readers) == 2:
                self.inner._readers.appendleft(type(self.inner._readers[0])(loop=asyncio.get_running_loop()))
            raise


@fault("no other task ran during 2000 calls of read_frame that did not wait", "readers_let_others_run")
class ReaderStarvesOthers(Through):
    async def read_frame(self) -> bytes:
        try:
            return self.inner.read_frame_nowait()
        except BlockingIOError:
            return await super().read_frame()


@fault("no other task ran during 2000 calls of read_frames that did not wait", "readers_let_others_run")
class BatchReaderStarvesOthers(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        try:
            return super().read_frames_nowait(limit)
        except BlockingIOError:
            return await super().read_frames(limit)


# -- writing -----------------------------------------------------------------------------------------------------------


@fault("write_frame of a memoryview of 16-bit items", "every_kind_of_frame_is_written")
class CountsItemsForBytes(Through):
    async def write_frame(self, frame: Any) -> None:
        if isinstance(frame, memoryview):
            frame = frame.cast("B")[: len(frame)]
        await super().write_frame(frame)


@fault("write_frame_nowait of a list as one frame", "every_kind_of_frame_is_written")
class WritesPiecesOneByOne(Through):
    def write_frame_nowait(self, frame: Any) -> None:
        for piece in frame if isinstance(frame, list) and all(type(each) is bytes for each in frame) else [frame]:
            super().write_frame_nowait(piece)


@fault(
    "write_frames of an iterator: 0 of 300 frames arrived",
    "writes_are_in_order",
    "frames_of_every_size_pass",
    "every_kind_of_frame_is_written",
    "what_is_not_a_frame_is_refused",
    "frames_are_copied",
    "reading_does_not_block_writing",
)
class GoesThroughABatchTwice(Through):
    async def write_frames(self, frames: Any) -> None:
        if not isinstance(frames, (list, bytes, str, int)):
            assert max(map(len, frames)) > 0
        await super().write_frames(frames)


@fault("write_frame of 'text' must raise TypeError", "what_is_not_a_frame_is_refused")
class WritesText(Through):
    async def write_frame(self, frame: Any) -> None:
        await super().write_frame(frame.encode() if isinstance(frame, str) else frame)


@fault("write_frames of bytes must raise TypeError", "what_is_not_a_frame_is_refused")
class TakesAFrameForABatch(Through):
    async def write_frames(self, frames: Any) -> None:
        await super().write_frames([frames] if isinstance(frames, bytes) else frames)


def later(write: Callable[[Any], object], frame: Any) -> bool:
    """Writes a buffer that may change only at the loop's next turn, without a copy."""
    shared = isinstance(frame, bytearray) or (isinstance(frame, list) and isinstance(frame[0], bytearray))
    if shared:
        asyncio.get_running_loop().call_soon(write, frame)
    return shared


@fault("write_frame did not copy the frame", "frames_are_copied")
class KeepsABuffer(Through):
    async def write_frame(self, frame: Any) -> None:
        if not later(super().write_frame_nowait, frame):
            await super().write_frame(frame)


@fault("write_frame_nowait did not copy the frame", "frames_are_copied")
class KeepsABufferWithoutWaiting(Through):
    def write_frame_nowait(self, frame: Any) -> None:
        if not later(super().write_frame_nowait, frame):
            super().write_frame_nowait(frame)


@fault("write_frames did not copy the frame", "frames_are_copied")
class KeepsABufferOfABatch(Through):
    async def write_frames(self, frames: Any) -> None:
        batch = frames if isinstance(frames, (bytes, str, int)) else list(frames)
        if isinstance(batch, list) and len(batch) == 3 and isinstance(batch[0], bytearray):
            for frame in batch:
                asyncio.get_running_loop().call_soon(super().write_frame_nowait, frame)
        else:
            await super().write_frames(batch)


@fault("an empty frame that was not refused: frame 0 of 2 was lost", "refused_frames_are_named")
class SwallowsRefusedFrames(Through):
    async def write_frame(self, frame: Any) -> None:
        if frame != b"":
            await super().write_frame(frame)


@fault("write_frame_nowait of a frame that must be refused must raise InvalidFrameError", "refused_frames_are_named")
class SwallowsRefusedFramesWithoutWaiting(Through):
    def write_frame_nowait(self, frame: Any) -> None:
        if frame != b"":
            super().write_frame_nowait(frame)


@fault(r"refused frames at \(0,\) must raise InvalidFrameError, not return", "refused_frames_are_named")
class SwallowsRefusedFramesOfABatch(Through):
    async def write_frames(self, frames: Any) -> None:
        try:
            await super().write_frames(frames)
        except InvalidFrameError:
            if b"" not in frames:
                raise


@fault(r"refused frames at \(0,\): frame 0 of 5 was lost", "refused_frames_are_named")
class RefusedFrameEndsTheBatch(Through):
    async def write_frames(self, frames: Any) -> None:
        if isinstance(frames, list) and b"" in frames:
            bad = tuple(index for index, each in enumerate(frames) if each == b"")
            await super().write_frames(frames[: bad[0]])
            raise InvalidFrameError("refused", bad)
        await super().write_frames(frames)


class WrongIndexes(Through):
    def indexes(self, right: tuple[int, ...]) -> tuple[int, ...]:
        raise NotImplementedError

    async def write_frames(self, frames: Any) -> None:
        try:
            await super().write_frames(frames)
        except InvalidFrameError as error:
            raise InvalidFrameError(str(error), self.indexes(error.indexes)) from None


@fault(r"refused frames at \(0,\): indexes are \(1,\)", "refused_frames_are_named")
class CountsIndexesFromOne(WrongIndexes):
    def indexes(self, right: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(index + 1 for index in right)


@fault(r"refused frames at \(1, 3\): indexes are \(1,\)", "refused_frames_are_named")
class NamesTheFirstOnly(WrongIndexes):
    def indexes(self, right: tuple[int, ...]) -> tuple[int, ...]:
        return right[:1]


@fault(r"refused frames at \(0, 150, 298, 299\): indexes are \(0, 150, 42, 43\)", "refused_frames_are_named")
class CountsIndexesWithinAChunk(WrongIndexes):
    def indexes(self, right: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(index % 256 for index in right)


@fault(r"write_frame: indexes must be \(0,\)", "refused_frames_are_named")
class NamesNothing(Through):
    async def write_frame(self, frame: Any) -> None:
        try:
            await super().write_frame(frame)
        except InvalidFrameError as error:
            raise InvalidFrameError(str(error), ()) from None


@fault("a cancelled write_frame: a frame of 60 bytes was cut to 30", "cancelled_writes_are_whole_or_not_at_all")
class WritesAPartWhenCancelled(Through):
    async def write_frame(self, frame: Any) -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            super().write_frame_nowait(frame[: len(frame) // 2])
            raise
        super().write_frame_nowait(frame)


@fault("a cancelled write_frames: frame 0 of 20 was lost", "cancelled_writes_are_whole_or_not_at_all")
class LeavesAGapWhenCancelled(Through):
    async def write_frames(self, frames: Any) -> None:
        try:
            await super().write_frames(frames)
        except asyncio.CancelledError:
            super().write_frame_nowait(frames[-1])
            raise


@fault("a cancelled write.* wrote a frame later", "cancelled_writes_are_whole_or_not_at_all")
class WritesAfterItWasCancelled(Through):
    async def write_frame(self, frame: Any) -> None:
        try:
            await super().write_frame(frame)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(0.002, super().write_frame_nowait, frame)
            raise


@fault("writers at the same time: a frame was lost or changed", "writers_do_not_mix")
class WritersShareABuffer(Through):
    shared: Any = None

    async def write_frame(self, frame: Any) -> None:
        self.shared = frame
        await asyncio.sleep(0)
        super().write_frame_nowait(self.shared)


@fault("write_frame while read_frame waits: nothing happened", "reading_does_not_block_writing")
class OneLockForBoth(Through):
    def __init__(self, inner: MemoryStream) -> None:
        super().__init__(inner)
        self.lock = asyncio.Lock()

    async def read_frame(self) -> bytes:
        if self.lock.locked():
            return await super().read_frame()
        async with self.lock:
            return await super().read_frame()

    async def write_frame(self, frame: Any) -> None:
        async with self.lock:
            await super().write_frame(frame)


@fault("no other task ran during 2000 calls of write_frame that did not wait", "writers_let_others_run")
class WriterStarvesOthers(Through):
    async def write_frame(self, frame: Any) -> None:
        super().write_frame_nowait(frame)


@fault("no other task ran during 2000 calls of write_frames that did not wait", "writers_let_others_run")
class BatchWriterStarvesOthers(Through):
    async def write_frames(self, frames: Any) -> None:
        if isinstance(frames, list) and len(frames) == 10 and type(frames[0]) is bytes:
            super().write_frames_nowait(frames)
        else:
            await super().write_frames(frames)


# -- the end -----------------------------------------------------------------------------------------------------------


@fault("read_frames, waiting task 1 still waits after aclose", "closing_wakes_everybody")
class BatchReaderHangsOnClose(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        waits = not self.closed
        try:
            return await super().read_frames(limit)
        except QueueClosedError:
            return await never() if waits else await super().read_frames(limit)


@fault("read_frame, waiting task 2 still waits after aclose", "closing_wakes_everybody")
class WakesOneReaderOnly(Through):
    woken = False

    async def read_frame(self) -> bytes:
        waits = not self.closed
        try:
            return await super().read_frame()
        except QueueClosedError:
            if waits and self.woken:
                await never()
            self.woken = True
            raise


@fault("aclose while others wait for a frame: nothing happened", "closing_wakes_everybody")
class CloseWaitsForReaders(Through):
    async def aclose(self) -> None:
        while self.inner._readers:
            await asyncio.sleep(0.001)
        await super().aclose()


@fault("aclose ended read_frame, waiting task 1 with RuntimeError", "closing_wakes_everybody")
class WakesReadersWithAnotherError(Through):
    async def read_frame(self) -> bytes:
        waits = not self.closed
        try:
            return await super().read_frame()
        except QueueClosedError:
            if waits:
                raise RuntimeError("closed") from None
            raise


@fault("aclose must end async for, waiting task 1 without an exception", "closing_wakes_everybody")
class IterationRaisesOnClose(Through):
    async def __anext__(self) -> bytes:
        waits = not self.closed
        try:
            return await self.inner.read_frame()
        except QueueClosedError:
            if waits:
                raise
            raise StopAsyncIteration from None


@fault("closing twice must be harmless: RuntimeError", "closing_twice_is_harmless")
class ClosingTwiceRaises(Through):
    async def aclose(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        await super().aclose()


@fault("closed must be True after aclose", "a_closed_stream_says_so", "a_device_that_is_gone_stays_gone")
class NeverSaysClosed(Through):
    @property
    def closed(self) -> bool:
        return False


@fault("closed must be False until aclose, also after the device was deleted", "a_device_that_is_gone_stays_gone")
class SaysClosedWhenGone(Through):
    @property
    def closed(self) -> bool:
        return self.inner.closed or self.inner._peer.closed


@fault("read_frame after aclose must raise QueueClosedError, not return", "a_closed_stream_says_so")
class ReadsWhatWasBufferedAfterClose(Through):
    rest: tuple[bytes, ...] = ()

    async def aclose(self) -> None:
        self.rest = (*self.inner._buffer, *self.inner._ring)
        await super().aclose()

    async def read_frame(self) -> bytes:
        return self.rest[0] if self.rest else await super().read_frame()


@fault("async for must end after aclose", "a_closed_stream_says_so", "a_device_that_is_gone_stays_gone")
class IterationHangsWhenClosed(Through):
    async def __anext__(self) -> bytes:
        return await never() if self.closed else await super().__anext__()


@fault(
    "async for, waiting task 1 when the device is deleted must raise DeviceGoneError",
    "a_device_that_goes_wakes_everybody",
    "a_device_that_is_gone_stays_gone",
)
class IterationEndsWhenTheDeviceIsGone(Through):
    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except DeviceGoneError:
            raise StopAsyncIteration from None


@fault(
    "read_frames, waiting task 1 when the device is deleted must raise DeviceGoneError: nothing",
    "a_device_that_goes_wakes_everybody",
)
class BatchReaderHangsWhenTheDeviceGoes(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        waits = self.inner._error is None
        try:
            return await super().read_frames(limit)
        except DeviceGoneError:
            return await never() if waits else await super().read_frames(limit)


@fault("8 of 8 frames that arrived before the device was deleted were lost", "frames_that_came_before_the_end_are_read")
class DropsWhatCameBeforeTheEnd(Through):
    async def read_frame(self) -> bytes:
        if self.inner._error is not None:
            self.inner._buffer.clear()
        return await super().read_frame()


@fault("frames that arrived before the device was deleted were lost", "frames_that_came_before_the_end_are_read")
class BatchesDropWhatCameBeforeTheEnd(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        if self.inner._error is not None:
            self.inner._buffer.clear()
        return await super().read_frames(limit)


def _wrong_end(name: str, error: type[Exception], waits: bool) -> type[Through]:
    """A stream on which one method raises another error when the stream has ended."""
    method = getattr(Through, name)

    def ended(self: Through) -> bool:
        return isinstance(self.inner._error, error) and (self.closed if error is QueueClosedError else True)

    async def wait(self: Through, *arguments: Any, **named: Any) -> Any:
        if ended(self) and not self.inner._buffer:
            raise RuntimeError("ended")
        return await method(self, *arguments, **named)

    def now(self: Through, *arguments: Any) -> Any:
        if ended(self) and not self.inner._buffer:
            raise RuntimeError("ended")
        return method(self, *arguments)

    return type(f"{name}_without_{error.__name__}", (Through,), {name: wait if waits else now})


for _name in ("read_frame", "read_frames", "write_frame", "write_frames"):
    for _method, _waits in ((_name, True), (f"{_name}_nowait", False)):
        FAULTS += [
            Fault(
                _wrong_end(_method, QueueClosedError, _waits),
                ("a_closed_stream_says_so", "a_device_that_is_gone_stays_gone"),
                f"{_method} after aclose must raise QueueClosedError, not RuntimeError",
            ),
            Fault(
                _wrong_end(_method, DeviceGoneError, _waits),
                ("a_device_that_is_gone_stays_gone",),
                f"{_method} after the device was deleted must raise DeviceGoneError, not RuntimeError",
            ),
        ]
