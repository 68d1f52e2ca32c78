"""A queue with offloads that its user does not see: super-frames towards the kernel, ordinary frames on this side."""

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

# Seconds for which a kind of super-frame is not merged that the kernel refused.
_PAUSE = 1.0


class TransparentQueue(TuntapQueue):
    """As any `TuntapQueue`, but many times faster with streams of TCP and UDP, and slower with single frames.

    What is read is segmented and has complete checksums; a frame from the kernel that is invalid is dropped and
    counted. The buffer may be larger than asked for by one super-frame.

    `write_frames` merges runs of one flow within what it is given: give it many frames at once. The order of frames is
    kept within each flow. If the kernel refuses a super-frame but takes its frames, that kind is not merged for a
    second.
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
        #: In front of a frame in which nothing is left undone.
        self._header = bytes(options.vnet_header_size)
        self._tap = options.mode is Mode.TAP
        #: The offloads for which frames are merged now; all that can be, but for those refused before `_retry_at`.
        self._merging = (options.offload & MERGEABLE).value
        self._retry_at = 0.0
        #: Frames in the super-frame that the last `_pull` left to the next one, as far as that can be guessed; or 0.
        self._left_behind = 0
        self._super_frames_read = self._segments_made = 0
        self._super_frames_written = self._frames_coalesced = self._super_frames_refused = 0
        super().__init__(owner, interface, file, loop, read_buffer)
        self._max_frame += len(self._header)

    @property
    def stats(self) -> Stats:
        """What went through this queue since it was opened here, as a new snapshot."""
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
            self._left_behind = 0  # a second time in a row, it is read all the same
            return
        self._left_behind = 0
        read_one, segment = self._engine.read_one, self._engine.segment
        tap, header_size = self._tap, len(self._header)
        frames: list[bytes] = []
        size = 0
        stopped: int | BaseException = 0
        try:
            for _ in range(max(limit, BATCH)):  # frames that are dropped count as well
                data = read_one(self._fd)
                if isinstance(data, int):
                    stopped = data
                    break
                made = segment(data, tap, header_size)
                if made is None:
                    self._frames_dropped += 1
                    continue
                frames += made
                size += len(data)
                if data[1]:  # gso_type
                    self._super_frames_read += 1
                    self._segments_made += len(made)
                # A super-frame that looks like going past the limit is left where it is: it would be cut in two, and
                # whoever writes its halves merges each of them alone.
                if len(frames) + len(made) > limit or size >= self._enough:
                    self._left_behind = len(made)
                    break
        except BaseException as error:  # noqa: BLE001 - raised when what was read is safe
            stopped = error
        self._keep(frames, stopped)

    def _pull_one(self) -> None:
        self._pull(1)  # perhaps a super-frame, and then many frames

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame, as for any queue; it is merged with no other."""
        super().write_frame_nowait(self._header + self._plain(frame))

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame, as for any queue; it is merged with no other."""
        await super().write_frame(self._header + self._plain(frame))

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes every frame that it can, in order within each flow, merged where that is safe.

        What the kernel refuses is left out and reported when the rest is written. When cancelled, each frame was
        written whole or not at all, and in order within each flow up to some point.

        Args:
            frames: Each a bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            InvalidFrameError: Some frames were refused: ``indexes`` says which. All others were written.
            LinkDownError: The interface is down. Writing ended at once; a note on the exception says where.
            QueueClosedError: The queue was closed here. The note says where writing ended.
            DeviceGoneError: The interface was deleted. The note says where writing ended.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
            TypeError: One of them is not a frame. The note says which.
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
        """As for any queue. Frames of one flow that come one after the other are merged; those of several by turns are not.

        What was taken is what stands in front: no frame may be written before one that stands before it.
        """
        if get_ident() != self._thread:
            self._wrong_caller()
        batch = as_batch(frames)
        taken = 0
        while taken < len(batch):
            part = batch[taken : taken + _PART]
            runs = {run[1][0]: run for run in self._merge(part) or [] if run[2] and is_in_a_row(run[1])}
            refused: dict[int, int] = {}  # kinds of super-frames that the kernel did not take, by where they end
            at = 0
            while at < len(part):
                run = runs.pop(at, None)
                try:
                    if run is None:
                        self.write_frame_nowait(part[at])
                        at += 1
                        if at in refused:  # it was not one of its frames
                            self._stop_merging(refused[at])
                    elif self._write_run_now(run):
                        at += len(run[1])
                    else:  # its frames have a chance of their own
                        refused[at + len(run[1])] = run[2]
                except BlockingIOError:
                    return taken + at
                except Exception as error:
                    if not taken + at:
                        raise
                    if isinstance(error, InvalidFrameError):
                        self._frames_refused -= 1  # it counts when it is the first one, and raises
                    return taken + at
            taken += at
        return taken

    def _write_run_now(self, run: Merged) -> bool:
        """Writes a super-frame. False if the kernel refuses it, or it is too large."""
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
        """Merges and writes frames, which are from number *start* on in a batch of *count*."""
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
        """What the kernel, or the engine, answered with *number*: its frames one by one, if it is a super-frame."""
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
            del numbers[0]  # those that stay were not written
        if len(refused) == before:  # it was not one of its frames
            self._stop_merging(kind)

    def _stop_merging(self, kind: int) -> None:
        """This kernel does not take such super-frames, though it takes their frames. For a while, there are none."""
        self._super_frames_refused += 1
        self._merging &= ~kind
        self._retry_at = monotonic() + _PAUSE

    def _plain_part(
        self, part: Sequence[Frame], start: int, refused: dict[int, InvalidFrameError]
    ) -> tuple[Sequence[bytes], Sequence[int], int, Exception | None]:
        """The frames in one piece each, where in the batch they are, where that ends, and what is wrong there."""
        plain: list[bytes] = []
        places: list[int] = []
        for place, frame in enumerate(part, start):
            try:
                plain.append(self._plain(frame))
                places.append(place)
            except InvalidFrameError as error:
                refused[place] = error
            except Exception as error:  # noqa: BLE001 - raised when those before it are written
                return plain, places, place, error
        return plain, places, start + len(part), None

    def _plain(self, frame: Frame) -> bytes:
        """The frame in one piece."""
        if self._closed:
            raise self._failure(errno.EBADF)
        if type(frame) is not bytes:
            size_of(frame)  # which knows what a frame is
            frame = b"".join(map(bytes, frame if isinstance(frame, (list, tuple)) else [frame]))
        if not 0 < len(frame) <= self._max_frame - len(self._header):
            raise self._wrong_size(len(frame))
        return frame


def is_in_a_row(numbers: Sequence[int]) -> bool:
    """Whether they are consecutive; they are in order."""
    return numbers[-1] - numbers[0] == len(numbers) - 1
