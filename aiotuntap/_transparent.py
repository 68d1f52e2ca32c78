"""A queue with transparent offloads: super-frames towards the kernel, ordinary frames towards the program."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable, Sequence
from threading import get_ident
from time import monotonic

from ._batch import as_batch, note_end, report, size_of
from ._descriptor import BATCH
from ._device import QueueFile
from ._engine import Merged
from ._errors import InvalidFrameError
from ._frames import LOOK, MOST
from ._interface import Interface
from ._offload.coalesce import MERGEABLE
from ._queue import REFUSED, Owner, TuntapQueue
from ._types import Frame, Mode, Stats

# Frames that `write_frames` merges at a time.
_PART = 512

# Seconds for which no super-frames are made of a kind that the kernel refused.
_PAUSE = 1.0


class TransparentQueue(TuntapQueue):
    """A `TuntapQueue` that is many times faster with streams of TCP and UDP, and slower with single frames.

    Frames are segmented after reading and have complete checksums. An invalid frame from the kernel is dropped and
    counted. The read buffer may grow over its limit by the frames of one super-frame.

    `write_frames` merges consecutive frames of a flow among those it is given, so give it many at once. Within each
    flow, the order of frames is kept. If the kernel refuses a super-frame but accepts its frames one by one, no
    super-frames of that kind are made for one second.
    """

    __slots__ = (
        "_frames_coalesced",
        "_header",
        "_left_behind",
        "_merging",
        "_retry_at",
        "_segments_made",
        "_super_frames_read",
        "_super_frames_refused",
        "_super_frames_written",
        "_tap",
    )

    def __init__(
        self,
        owner: Owner,
        interface: Interface,
        file: QueueFile,
        loop: asyncio.AbstractEventLoop,
        read_buffer: tuple[int, int],
    ) -> None:
        options = interface.options
        #: The header of an ordinary frame.
        self._header = bytes(options.vnet_header_size)
        self._tap = options.mode is Mode.TAP
        #: The offloads for which frames are merged now: all that are possible, except those refused before `_retry_at`.
        self._merging = (options.offload & MERGEABLE).value
        self._retry_at = 0.0
        #: How many frames are probably in the super-frame that the last `_pull` left to the next one; or 0.
        self._left_behind = 0
        self._super_frames_read = self._segments_made = 0
        self._super_frames_written = self._frames_coalesced = self._super_frames_refused = 0
        super().__init__(owner, interface, file, loop, read_buffer)
        self._max_frame += len(self._header)

    @property
    def stats(self) -> Stats:
        """Counts what went through this queue since it was opened here."""
        return Stats(
            self._frames_read,
            self._frames_written,
            self._frames_refused,
            self._frames_dropped,
            self._super_frames_read,
            self._segments_made,
            self._super_frames_written,
            self._frames_coalesced,
            self._super_frames_refused,
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    def _pull(self, limit: int) -> None:
        if self._buffer and limit < self._left_behind:
            self._left_behind = 0  # the second time in a row, it is read anyway
            return
        self._left_behind = 0
        read_one, segment = self._engine.read_one, self._engine.segment
        tap, header_size = self._tap, len(self._header)
        frames: list[bytes] = []
        size = 0
        stopped: int | BaseException = 0
        unkept = 0  # frames that were read, and whose segments are not in the list
        try:
            for _ in range(max(limit, BATCH)):  # dropped frames count, too
                data = read_one(self._fd)
                if isinstance(data, int):
                    stopped = data
                    break
                unkept = 1
                made = segment(data, tap, header_size)
                if made is None:
                    self._frames_dropped += 1
                    unkept = 0
                    continue
                frames += made
                unkept = 0
                size += len(data)
                if data[1]:  # gso_type
                    self._super_frames_read += 1
                    self._segments_made += len(made)
                # A super-frame that is probably too large for the limit is left in the kernel: otherwise its frames
                # would be returned in two batches, and each batch would be merged and written separately.
                if len(frames) + len(made) > limit or size >= self._enough:
                    self._left_behind = len(made)
                    break
        except BaseException as error:  # noqa: BLE001 - raised when the frames that were read are buffered
            stopped = error
            self._frames_dropped += unkept  # no memory to segment it
        self._keep(frames, stopped)

    def _pull_one(self) -> None:
        self._pull(1)  # if it is a super-frame, this takes many frames

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame without merging it with others: see `TuntapQueue.write_frame_nowait`."""
        super().write_frame_nowait(self._header + self._plain(frame))

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame without merging it with others: see `TuntapQueue.write_frame`."""
        await super().write_frame(self._header + self._plain(frame))

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes every frame that it can, merged where that is safe. Within each flow, the order is kept.

        Frames that the kernel refuses are skipped, and reported after the others were written. When cancelled, the
        frames of each flow up to some point were written, each of them whole, and those behind it were not.

        Args:
            frames: Each a bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            InvalidFrameError: Some frames were refused: ``indexes`` says which. All others were written.
            LinkDownError: The interface is down. Writing ended at once; a note on the exception says which frames were
                not written.
            QueueClosedError: The queue was closed by this program. A note says which frames were not written.
            DeviceGoneError: The interface was deleted. A note says which frames were not written.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
            TypeError: One of them is not a frame; a note says which. Those before it were written.
        """
        if get_ident() != self._thread:
            self._wrong_caller()
        batch = as_batch(frames)
        refused: dict[int, InvalidFrameError] = {}
        for start in range(0, len(batch), _PART):
            if self._turns.credit <= 0:
                await self._more_credit()
            part = batch if len(batch) <= _PART else batch[start : start + _PART]
            self._turns.credit -= len(part)
            await self._write_part(part, start, len(batch), refused)
        report(refused, len(batch))

    def write_frames_nowait(self, frames: Iterable[Frame]) -> int:
        """Writes frames in order, from the first one on, as many as it can without waiting: see `TuntapQueue`.

        Consecutive frames of one flow are merged if no frame of another flow is between them.
        """
        if get_ident() != self._thread:
            self._wrong_caller()
        batch = as_batch(frames)
        taken = 0
        while taken < len(batch):
            part = batch[taken : taken + _PART]
            runs = {run[1][0]: run for run in self._merge(part) or [] if run[2] and is_in_a_row(run[1])}
            refused: dict[int, int] = {}  # kinds of super-frames that the kernel refused, by where they end
            at = 0
            while at < len(part):
                run = runs.pop(at, None)
                try:
                    if run is None:
                        self.write_frame_nowait(part[at])
                        at += 1
                        if at in refused:  # the kernel accepted each of its frames
                            self._stop_merging(refused[at])
                    elif self._write_run_now(run):
                        at += len(run[1])
                    else:  # its frames are tried one by one
                        refused[at + len(run[1])] = run[2]
                except BlockingIOError:
                    return taken + at
                except Exception as error:
                    if not taken + at:
                        raise
                    if isinstance(error, InvalidFrameError):
                        self._frames_refused -= 1  # it counts when it is the first one, which raises
                    return taken + at
            taken += at
        return taken

    def _write_run_now(self, run: Merged) -> bool:
        """Writes a super-frame. Returns False if the kernel refuses it, or it is too large."""
        number = self._engine.write_one(self._fd, self._max_frame, self._thread, run[0])
        if number == errno.EAGAIN:
            raise BlockingIOError(number, os.strerror(number))
        if number == LOOK or number in REFUSED:
            return False
        if number:
            raise self._refusal(number)
        self._count([run])
        return True

    async def _write_part(
        self, part: Sequence[Frame], start: int, count: int, refused: dict[int, InvalidFrameError]
    ) -> None:
        """Merges and writes frames, the first of which is number *start* in a batch of *count*."""
        places: Sequence[int] = range(start, start + len(part))
        end = start + len(part)
        wrong: Exception | None = None
        merged = self._merge(part)
        if merged is None:
            part, places, end, wrong = self._plain_part(part, start, refused)
            merged = self._merge(part) or []
        whole = [data for data, _, _ in merged]
        at = 0
        try:
            while at < len(merged):
                written, number = self._engine.write_batch(self._fd, self._max_frame, at, MOST, whole)
                self._count(merged[at : at + written])
                at += written
                if number == errno.EAGAIN:
                    await self._wait_writable()
                elif number:
                    await self._write_apart(merged[at], number, part, places, refused)
                    at += 1
            if wrong is not None:
                raise wrong
        except Exception as error:
            left = sorted(places[number] for _, numbers, _ in merged[at:] for number in numbers)
            note_end(error, count, [*left, *range(end, count)], refused)
            raise

    def _merge(self, frames: Sequence[Frame]) -> list[Merged] | None:
        if monotonic() >= self._retry_at:
            self._merging = (self._interface.options.offload & MERGEABLE).value
        return self._engine.merge(frames, self._tap, self._merging, len(self._header))

    def _count(self, written: Sequence[Merged]) -> None:
        for _, numbers, kind in written:
            self._frames_written += len(numbers)
            if kind:
                self._super_frames_written += 1
                self._frames_coalesced += len(numbers)

    async def _write_apart(
        self,
        merged: Merged,
        number: int,
        part: Sequence[Frame],
        places: Sequence[int],
        refused: dict[int, InvalidFrameError],
    ) -> None:
        """Handles a frame that was not written, for the reason *number*: a super-frame is written frame by frame."""
        data, numbers, kind = merged
        if not kind or number not in REFUSED:
            error = self._wrong_size(len(data) - len(self._header)) if number == LOOK else self._refusal(number)
            if not isinstance(error, InvalidFrameError):
                raise error
            refused[places[numbers.pop()]] = error
            return
        before = len(refused)
        while numbers:
            try:
                await super().write_frame(self._header + part[numbers[0]])  # type: ignore[operator]
            except InvalidFrameError as error:
                refused[places[numbers[0]]] = error
            del numbers[0]  # those that remain were not written
        if len(refused) == before:  # the kernel accepted each of its frames
            self._stop_merging(kind)

    def _stop_merging(self, kind: int) -> None:
        """Makes no super-frames of this kind for a while: the kernel refuses them, while it accepts their frames."""
        self._super_frames_refused += 1
        self._merging &= ~kind
        self._retry_at = monotonic() + _PAUSE

    def _plain_part(
        self, part: Sequence[Frame], start: int, refused: dict[int, InvalidFrameError]
    ) -> tuple[Sequence[bytes], Sequence[int], int, Exception | None]:
        """The frames as bytes, their numbers in the batch, the number at which this ended, and the error there."""
        plain: list[bytes] = []
        places: list[int] = []
        for place, frame in enumerate(part, start):
            try:
                plain.append(self._plain(frame))
                places.append(place)
            except InvalidFrameError as error:
                refused[place] = error
            except Exception as error:  # noqa: BLE001 - raised when the frames before it are written
                return plain, places, place, error
        return plain, places, start + len(part), None

    def _plain(self, frame: Frame) -> bytes:
        """The frame as bytes."""
        if self._closed:
            raise self._failure(errno.EBADF)
        if type(frame) is not bytes:
            size_of(frame)  # raises TypeError
            frame = b"".join(map(bytes, frame if isinstance(frame, (list, tuple)) else [frame]))
        if not 0 < len(frame) <= self._max_frame - len(self._header):
            raise self._wrong_size(len(frame))
        return frame


def is_in_a_row(numbers: Sequence[int]) -> bool:
    """Whether they are consecutive; they are in order."""
    return numbers[-1] - numbers[0] == len(numbers) - 1
