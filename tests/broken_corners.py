"""More streams that are broken on purpose, each in one corner: a single kind of frame, one limit, the end, a cancellation.

`tests.mutants` needs them: without each of these, a line of the conformance checks could be removed unnoticed.
"""

from __future__ import annotations

import array
import asyncio
from collections.abc import Callable
from typing import Any

from aiotuntap import DeviceGoneError, InvalidFrameError, QueueClosedError
from aiotuntap.testing import MemoryStream

from .broken_streams import FAULTS, Fault, Through, fault, never

# -- reading -----------------------------------------------------------------------------------------------------------


@fault(r"read_frames: frame 1 of 12 was overtaken", "read_frames_keeps_its_limit")
class TurnsRoundWithASmallLimit(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        frames = await super().read_frames(limit)
        return frames[::-1] if limit == 5 else frames


@fault(
    "read_frames: an additional frame of 60 bytes came after the last",
    "reads_are_in_order",
    "frames_of_every_size_pass",
)
class AddsAFrameToLongBatches(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        frames = await super().read_frames(limit)
        return [*frames, bytes(60)] if 20 < len(frames) < limit else frames


@fault(r"read_frames\(-1\) must raise ValueError", "read_frames_keeps_its_limit")
class TakesANegativeLimit(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        if limit < 0:
            return []
        return await super().read_frames(limit)


@fault("a waiting read_frame got another frame", "nowait_does_not_overtake")
class ALookChangesWhatComes(Through):
    looked = 0

    def read_frame_nowait(self) -> bytes:
        try:
            return super().read_frame_nowait()
        except BlockingIOError:
            self.looked += bool(self.inner._readers)
            raise

    async def read_frame(self) -> bytes:
        self.looked = 0
        frame = await super().read_frame()
        return frame[::-1] if self.looked else frame


@fault("a later one got the frame of the first", "readers_take_turns")
class OvertakesASingleReader(Through):
    async def read_frame(self) -> bytes:
        if len(self.inner._readers) == 1 and self.inner._buffer:
            return self.inner._buffer.popleft()
        return await super().read_frame()


@fault("several readers: a frame of 60 bytes was changed", "readers_take_turns")
class ChangesTheFourthBatchOfSeveralReaders(Through):
    count = 0

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        several = len(self.inner._readers) >= 2
        frames = await super().read_frames(limit)
        if several and limit == 1:
            self.count += 1
            if self.count == 4:
                return [bytes(60)]
        return frames


@fault(
    "an async for that was left: frame 2 of 12 was lost",
    "iteration_can_be_left_and_resumed",
    "reads_are_in_order",
    "readers_take_turns",
    "cancelled_reads_lose_nothing",
    "frames_that_came_before_the_end_are_read",
)
class LosesOneWhenAnIterationIsLeft(Through):
    iterates = False

    async def read_frame(self) -> bytes:
        if self.iterates and len(self.inner._ring) + len(self.inner._buffer) > 1:
            await super().read_frame()
        self.iterates = False
        return await super().read_frame()

    async def __anext__(self) -> bytes:
        frame = await super().__anext__()
        self.iterates = True
        return frame


@fault(
    "the first reader got another frame",
    "readers_take_turns",
    "cancelled_reads_lose_nothing",
    "a_cancelled_reader_leaves_the_line",
)
class ChangesWhatALaterReaderWaitedFor(Through):
    """… a single one, behind a single one."""

    alone = False

    async def read_frame(self) -> bytes:
        inner = self.inner
        if len(inner._readers) == 1 and self.alone and (inner._buffer or inner._ring):
            self.alone = False
            return await super().read_frame()
        is_first = self.alone = not inner._readers and not inner._buffer and not inner._ring
        frame = await super().read_frame()
        return frame[::-1] if is_first and not self.alone else frame


@fault(
    "a frame that came for a cancelled reader did not go to the next one",
    "a_cancelled_reader_leaves_the_line",
    "cancelled_reads_lose_nothing",
)
class ALeavingReaderTakesTheNextFrame(Through):
    left = 0

    async def read_frame(self) -> bytes:
        waits = not self.inner._buffer and not self.inner._ring
        try:
            frame = await super().read_frame()
        except asyncio.CancelledError:
            self.left = int(waits and not self.inner._buffer and not self.inner._ring)
            raise
        if self.left:
            self.left = 0
            return await super().read_frame()
        return frame


# -- writing -----------------------------------------------------------------------------------------------------------


@fault("write_frames of an empty list: a frame of 60 bytes was changed", "writes_are_in_order")
class WritesAFrameForNothing(Through):
    async def write_frames(self, frames: Any) -> None:
        await super().write_frames([bytes(60)] if frames == [] else frames)


@fault("write_frame: a frame of 1499 bytes was cut to 1498", "frames_of_every_size_pass")
class CutsOneSizeBelowTheMtu(Through):
    async def write_frame(self, frame: Any) -> None:
        await super().write_frame(frame[:-1] if type(frame) is bytes and len(frame) == 1499 else frame)


def _is_sequence(kind: type, test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda frame: type(frame) is kind and test(frame)


def _cuts(name: str, is_it: Callable[[Any], bool]) -> type[Through]:
    """A stream whose write_frame loses the last byte of one kind of frame."""

    async def write_frame(self: Through, frame: Any) -> None:
        if is_it(frame):
            pieces = frame if isinstance(frame, (list, tuple)) else [frame]
            frame = b"".join(bytes(piece) for piece in pieces)[:-1]
        await Through.write_frame(self, frame)

    return type(name, (Through,), {"write_frame": write_frame})


for _kind, _name, _is_it, _others in (
    ("bytearray", "CutsBytearrays", _is_sequence(bytearray, lambda _: True), ("frames_are_copied",)),
    ("memoryview", "CutsViews", _is_sequence(memoryview, lambda each: each.itemsize == 1), ("frames_are_copied",)),
    ("array of 16-bit items", "CutsArrays", _is_sequence(array.array, lambda _: True), ()),
    ("tuple of several kinds", "CutsTuples", _is_sequence(tuple, lambda _: True), ()),
    ("list of one piece", "CutsASinglePiece", _is_sequence(list, lambda each: len(each) == 1 and each != ["text"]), ()),
    ("list of many pieces", "CutsManyPieces", _is_sequence(list, lambda each: len(each) > 16), ()),
):
    FAULTS.append(
        Fault(
            _cuts(_name, _is_it),
            ("every_kind_of_frame_is_written", *_others),
            rf"write_frame of a {_kind} as one frame: a frame of 60 bytes was cut to 59",
        )
    )


@fault("write_frame of a tuple of several kinds as one frame", "every_kind_of_frame_is_written")
class EndsAtAnEmptyPiece(Through):
    async def write_frame(self, frame: Any) -> None:
        if isinstance(frame, (list, tuple)) and b"" in frame:
            frame = frame[: frame.index(b"")]
        await super().write_frame(frame)


def _takes(wrong: object, *, as_batch: bool) -> type[Through]:
    """A stream that takes something for a frame, or for a batch, and writes nothing."""

    async def write_frame(self: Through, frame: Any) -> None:
        if frame != wrong:
            await Through.write_frame(self, frame)

    async def write_frames(self: Through, frames: Any) -> None:
        if not isinstance(frames, type(wrong)):
            await Through.write_frames(self, frames)

    name = f"Takes{type(wrong).__name__.capitalize()}For{'Batch' if as_batch else 'Frame'}"
    return type(name, (Through,), {"write_frames": write_frames} if as_batch else {"write_frame": write_frame})


for _wrong, _as_batch in ((7, False), (None, False), (["text"], False), (7, True), ("text", True)):
    FAULTS.append(
        Fault(
            _takes(_wrong, as_batch=_as_batch),
            ("what_is_not_a_frame_is_refused",),
            r"write_frames? of .*(7|None|text|int|str).* must raise TypeError",
        )
    )


@fault("after objects that are not frames: a frame of 60 bytes was changed", "what_is_not_a_frame_is_refused")
class WritesTextAndRefusesIt(Through):
    async def write_frame(self, frame: Any) -> None:
        if isinstance(frame, str):
            self.inner.write_frame_nowait(frame.encode())
        await super().write_frame(frame)


@fault("write_frame did not copy the frame", "frames_are_copied")
class KeepsBytearraysOnly(Through):
    async def write_frame(self, frame: Any) -> None:
        if isinstance(frame, bytearray):
            asyncio.get_running_loop().call_later(0.001, self.inner.write_frame_nowait, frame)
        else:
            await super().write_frame(frame)


@fault(r"refused frames at \(0, 1, 2, 3, 4\) must raise InvalidFrameError, not return", "refused_frames_are_named")
class SaysNothingWhenAllAreRefused(Through):
    async def write_frames(self, frames: Any) -> None:
        try:
            await super().write_frames(frames)
        except InvalidFrameError as error:
            if len(error.indexes) < 5 or len(frames) > 5:
                raise


@fault("write_frame_nowait of 100000 bytes: frame 0 of 2 was lost", "what_is_too_large_is_refused")
class LosesWhatIsTooLargeWithoutWaiting(Through):
    def write_frame_nowait(self, frame: Any) -> None:
        if not (type(frame) is bytes and len(frame) > 66_000):
            super().write_frame_nowait(frame)


@fault("a cancelled write_frame raised RuntimeError", "cancelled_writes_are_whole_or_not_at_all")
class CancelledWriteRaises(Through):
    async def write_frame(self, frame: Any) -> None:
        try:
            await super().write_frame(frame)
        except asyncio.CancelledError:
            raise RuntimeError("cancelled") from None


@fault("write_frame: frame 0 of 2 was lost", "cancelled_writes_are_whole_or_not_at_all")
class SwallowsTheCancellation(Through):
    async def write_frame(self, frame: Any) -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return
        super().write_frame_nowait(frame)


@fault("a cancelled write_frame: a frame of 60 bytes was changed", "cancelled_writes_are_whole_or_not_at_all")
class ChangesWhatFollowsACancelledWrite(Through):
    cancelled = False

    async def write_frame(self, frame: Any) -> None:
        if self.cancelled:
            self.cancelled = False
            frame = frame[::-1]
        try:
            await super().write_frame(frame)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


@fault("write_frame after a cancelled write_frame", "cancelled_writes_are_whole_or_not_at_all")
class MayBeCancelledWhenItHasWritten(Through):
    unfinished = False

    async def write_frame(self, frame: Any) -> None:
        await asyncio.sleep(0)
        self.inner.write_frame_nowait(frame[::-1] if self.unfinished else frame)
        self.unfinished = False
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.unfinished = True
            raise


@fault("a cancelled write_frame wrote a frame later", "cancelled_writes_are_whole_or_not_at_all")
class WritesTwoFramesAfterItWasCancelled(Through):
    cancelled: Any = None

    async def write_frame(self, frame: Any) -> None:
        late, self.cancelled = self.cancelled, None
        try:
            await super().write_frame(frame)
        except asyncio.CancelledError:
            self.cancelled = frame
            raise
        if late is not None:
            asyncio.get_running_loop().call_soon(self.inner.write_frame_nowait, late)


@fault("after cancelled writes: a frame of 60 bytes was changed", "cancelled_writes_are_whole_or_not_at_all")
class WritesAPartMuchLater(Through):
    cancelled = 0

    async def write_frames(self, frames: Any) -> None:
        try:
            await super().write_frames(frames)
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.cancelled == 1:
                asyncio.get_running_loop().call_later(0.0025, self.inner.write_frame_nowait, frames[0][30:])
            raise


@fault("writers at the same time: frame", "writers_do_not_mix")
class WritersAtOnceOvertake(Through):
    def __init__(self, inner: MemoryStream) -> None:
        super().__init__(inner)
        self.active = 0
        self.late: list[Any] = []

    async def write_frame(self, frame: Any) -> None:
        self.active += 1
        try:
            await asyncio.sleep(0)
            if self.active > 1:
                self.late.append(frame)
            else:
                while self.late:
                    self.inner.write_frame_nowait(self.late.pop())
                self.inner.write_frame_nowait(frame)
        finally:
            self.active -= 1


# -- the end -----------------------------------------------------------------------------------------------------------


@fault("aclose must end read_frame, waiting task 1 with QueueClosedError", "closing_wakes_everybody")
class GivesNothingWhenClosed(Through):
    async def read_frame(self) -> bytes:
        waits = not self.closed
        try:
            return await super().read_frame()
        except QueueClosedError:
            if waits:
                return b""
            raise


@fault("closed must be False before aclose", "a_closed_stream_says_so", "a_device_that_is_gone_stays_gone")
class AlwaysSaysClosed(Through):
    @property
    def closed(self) -> bool:
        return True


@fault("frames that arrived before the device was deleted: frame 0", "frames_that_came_before_the_end_are_read")
class TurnsBatchesRoundAtTheEnd(Through):
    async def read_frame(self) -> bytes:
        if self.inner._error is not None and len(self.inner._buffer) > 1:
            self.inner._buffer.rotate(1)
        return await super().read_frame()


@fault("frames that arrived before the device was deleted were lost", "frames_that_came_before_the_end_are_read")
class LooksLoseWhatCameBeforeTheEnd(Through):
    def read_frame_nowait(self) -> bytes:
        if self.inner._error is not None:
            self.inner._buffer.clear()
        return super().read_frame_nowait()


@fault("async for raised StopAsyncIteration", "frames_that_came_before_the_end_are_read")
class IterationEndsWithFramesLeft(Through):
    async def __anext__(self) -> bytes:
        if isinstance(self.inner._error, DeviceGoneError) and self.inner._buffer:
            raise StopAsyncIteration
        return await super().__anext__()


@fault("read_frame_nowait raised BlockingIOError", "frames_that_came_before_the_end_are_read")
class LooksFindNothingAtTheEnd(Through):
    def read_frame_nowait(self) -> bytes:
        if isinstance(self.inner._error, DeviceGoneError) and self.inner._buffer:
            raise BlockingIOError
        return super().read_frame_nowait()


@fault(
    "read_frames, waiting task 2 ended before any frame came",
    "closing_wakes_everybody",
    "a_device_that_goes_wakes_everybody",
)
class SaysClosedToTheFifthReader(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        if len(self.inner._readers) == 4 and self.inner._error is None:
            raise QueueClosedError("nothing here")
        return await super().read_frames(limit)


@fault("async for must give no frame after aclose", "a_closed_stream_says_so", "a_device_that_is_gone_stays_gone")
class IterationGivesARestAfterClose(Through):
    rest = 1

    async def __anext__(self) -> bytes:
        if self.closed and self.rest:
            self.rest -= 1
            return b"rest"
        return await super().__anext__()


@fault(
    "async for must end after aclose, not raise QueueClosedError",
    "a_closed_stream_says_so",
    "a_device_that_is_gone_stays_gone",
)
class IterationRaisesAfterClose(Through):
    async def __anext__(self) -> bytes:
        if self.closed:
            raise QueueClosedError("closed")
        return await super().__anext__()


# -- several methods, several tasks ------------------------------------------------------------------------------------


@fault(
    "different methods of reading in turn: frame 2 of 12 was",
    "reads_are_in_order",
    "frames_that_came_before_the_end_are_read",
)
class BatchesKeepARest(Through):
    """What read_frames has read and not returned is for read_frames only."""

    rest: tuple[bytes, ...] = ()

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        if limit != 2:
            return await super().read_frames(limit)
        frames = self.rest or tuple(await super().read_frames(4))
        self.rest = frames[2:]
        return list(frames[:2])


@fault("different methods of writing in turn: frame .* was overtaken", "writes_are_in_order")
class OneMethodIsLate(Through):
    """A frame of write_frame is sent a moment later, and write_frame_nowait does not wait for it."""

    late: Any = None

    def send(self) -> None:
        if self.late is not None:
            timer, frame = self.late
            self.late = None
            timer.cancel()
            self.inner.write_frame_nowait(frame)

    async def write_frame(self, frame: Any) -> None:
        await asyncio.sleep(0)
        self.send()
        if type(frame) is not bytes or len(frame) != 60 or self.closed or self.inner._peer.closed:
            await super().write_frame(frame)
            return
        self.late = asyncio.get_running_loop().call_later(0.0001, self.send), frame

    async def write_frames(self, frames: Any) -> None:
        self.send()
        await super().write_frames(frames)

    def write_frames_nowait(self, frames: Any) -> int:
        self.send()
        return super().write_frames_nowait(frames)

    async def aclose(self) -> None:
        if not self.inner._peer.closed:
            self.send()
        await super().aclose()


@fault("read_frames must take its limit also by the name limit", "read_frames_keeps_its_limit")
class CallsTheLimitAnotherName(Through):
    async def read_frames(self, count: int = 128) -> list[bytes]:
        return await super().read_frames(count)


@fault("write_frame of a memoryview of a part as one frame: a frame of 60 bytes", "every_kind_of_frame_is_written")
class WritesWhatAViewIsOf(Through):
    async def write_frame(self, frame: Any) -> None:
        await super().write_frame(frame.obj if isinstance(frame, memoryview) else frame)


@fault(
    "nowait took a frame for which read_frames was waiting already", "nowait_does_not_overtake", "readers_take_turns"
)
class OvertakesBatchReaders(Through):
    """A look asks only whether single readers wait."""

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        await asyncio.sleep(0)
        while not self.inner._readers and self.inner._error is None:
            try:
                return super().read_frames_nowait(limit)
            except BlockingIOError:
                await asyncio.sleep(0.0001)
        return await super().read_frames(limit)


@fault(
    "read_frame_nowait took a frame for which async for was waiting already",
    "nowait_does_not_overtake",
    "readers_take_turns",
)
class OvertakesIterations(Through):
    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        while not self.inner._readers and self.inner._error is None:
            try:
                return super().read_frame_nowait()
            except BlockingIOError:
                await asyncio.sleep(0.0001)
        return await super().__anext__()


@fault("a cancelled read_frame raised ConnectionError", "cancelled_reads_lose_nothing")
class CancelledReadRaises(Through):
    async def read_frame(self) -> bytes:
        try:
            return await super().read_frame()
        except asyncio.CancelledError:
            raise ConnectionError("interrupted") from None


@fault("a task that was cancelled did not end", "cancelled_reads_lose_nothing")
class ReadsOnWhenCancelled(Through):
    async def read_frames(self, limit: int = 128) -> list[bytes]:
        while True:
            try:
                return await super().read_frames(limit)
            except asyncio.CancelledError:
                pass


@fault("a reader before or behind a cancelled one: nothing happened", "a_cancelled_reader_leaves_the_line")
class CancellingOneStopsTheFirst(Through):
    """A reader that is cancelled removes the first of the line instead of itself."""

    waiting: tuple[asyncio.Task[Any], ...] = ()
    stopped: tuple[asyncio.Task[Any], ...] = ()

    async def read_frame(self) -> bytes:
        task: Any = asyncio.current_task()
        self.waiting = (*self.waiting, task)
        try:
            frame = await super().read_frame()
        except asyncio.CancelledError:
            if self.waiting[0] is not task and not self.waiting[0].cancelling():
                self.stopped = (*self.stopped, self.waiting[0])
            raise
        finally:
            self.waiting = tuple(each for each in self.waiting if each is not task)
        return await never() if task in self.stopped else frame


@fault("write_frames_nowait took a frame that must be refused", "refused_frames_are_named")
class LooksSkipRefusedFrames(Through):
    def write_frames_nowait(self, frames: Any) -> int:
        if isinstance(frames, list) and b"" in frames[1:-1]:
            super().write_frames_nowait([each for each in frames if each != b""])
            return len(frames)
        return super().write_frames_nowait(frames)


@fault("write_frames_nowait when the first frame must be refused", "refused_frames_are_named")
class LooksDoNotSayWhatIsRefused(Through):
    def write_frames_nowait(self, frames: Any) -> int:
        if isinstance(frames, list) and frames[1:] and frames[0] == b"":
            return 0
        return super().write_frames_nowait(frames)


@fault("write_frames_nowait must take the frames before one that must be refused", "refused_frames_are_named")
class LooksRaiseWhateverWasWritten(Through):
    def write_frames_nowait(self, frames: Any) -> int:
        count = super().write_frames_nowait(frames)
        if isinstance(frames, list) and frames[count:] and frames[count] == b"":
            raise InvalidFrameError("empty")
        return count


@fault("after objects that are not frames: ", "what_is_not_a_frame_is_refused")
class WritesBehindWhatIsNoFrame(Through):
    async def write_frames(self, frames: Any) -> None:
        if isinstance(frames, list) and None in frames:
            await super().write_frames([frame for frame in frames if frame is not None])
            raise TypeError("None is not a frame")
        await super().write_frames(frames)


class _SmallRoom(Through):
    """A correct stream with room for 400 frames that the far end has not read."""

    async def _room(self) -> None:
        peer = self.inner._peer
        while (peer.closed or len(peer._ring) + len(peer._buffer) >= 400) and not self._is_over():
            await asyncio.sleep(0.001)

    def _is_over(self) -> bool:
        return self.inner.closed or self.inner._error is not None

    async def write_frame(self, frame: Any) -> None:
        await self._room()
        await super().write_frame(frame)


@fault("write_frame does not end when aclose", "closing_wakes_writers", "a_device_that_is_gone_stays_gone")
class WritersHangOnClose(_SmallRoom):
    def _is_over(self) -> bool:
        return self.inner._error is not None and not self.inner.closed


@fault(
    "write_frame does not end when the device was deleted",
    "a_device_that_goes_wakes_writers",
    "a_device_that_is_gone_stays_gone",
)
class WritersHangWhenTheDeviceGoes(_SmallRoom):
    def _is_over(self) -> bool:
        return self.inner.closed


@fault("aclose cancelled the task of read_frame, waiting task 1", "closing_wakes_everybody")
class CloseCancelsReaders(Through):
    waiting: tuple[asyncio.Task[Any], ...] = ()

    async def read_frame(self) -> bytes:
        task: Any = asyncio.current_task()
        self.waiting = (*self.waiting, task)
        try:
            return await super().read_frame()
        finally:
            self.waiting = tuple(each for each in self.waiting if each is not task)

    async def aclose(self) -> None:
        for task in self.waiting:
            task.cancel()
        await super().aclose()


@fault("write_frame must end with QueueClosedError when aclose, not with ConnectionError", "closing_wakes_writers")
class WritersGetAnotherErrorOnClose(_SmallRoom):
    error: type[BaseException] = ConnectionError

    async def write_frame(self, frame: Any) -> None:
        was_open = not self.closed
        await self._room()
        if was_open and self.closed:
            raise self.error
        await Through.write_frame(self, frame)


@fault(
    "write_frame must end with DeviceGoneError when the device was deleted, not with ConnectionError",
    "a_device_that_goes_wakes_writers",
)
class WritersGetAnotherErrorWhenTheDeviceGoes(_SmallRoom):
    async def write_frame(self, frame: Any) -> None:
        was_there = not self.inner._peer.closed
        await self._room()
        if was_there and self.inner._peer.closed and not self.closed:
            raise ConnectionError("gone")
        await Through.write_frame(self, frame)


@fault("write_frames does not end when aclose", "closing_wakes_writers", "a_device_that_goes_wakes_writers")
class BatchWritersHangAtTheEnd(_SmallRoom):
    async def write_frames(self, frames: Any) -> None:
        if isinstance(frames, list) and len(frames) > 400:
            await never()
        await super().write_frames(frames)


@fault("write_frame was cancelled when aclose", "closing_wakes_writers")
class CloseCancelsWriters(WritersGetAnotherErrorOnClose):
    error = asyncio.CancelledError
