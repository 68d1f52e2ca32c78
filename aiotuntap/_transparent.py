"""A queue with offloads that its user does not see: super-frames towards the kernel, ordinary frames on this side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence

from . import _abi
from ._device import Options, QueueFile
from ._errors import InvalidFrameError, TuntapError
from ._offload.coalesce import MERGEABLE, Merged, merge
from ._offload.segment import segment
from ._queue import BATCH, Owner, TuntapQueue, as_batch, report, size_of
from ._reader import Turn
from ._types import Frame, Offload, Stats

# Frames that `write_frames` merges and writes before the other tasks of the loop get a turn.
_WRITES_PER_TURN = 512


class TransparentQueue(TuntapQueue):
    """As any `TuntapQueue`, but slower with single frames and many times faster with streams of TCP and UDP.

    What is read is segmented and has complete checksums; a frame from the kernel that does not hold together is dropped
    and counted. The buffer may be larger than asked for by one super-frame.

    `write_frames` merges runs of one flow within what it is given: give it many frames at once. The order of frames is
    kept within each flow. If the kernel refuses a super-frame but takes its frames, that kind is merged no more.
    """

    __slots__ = (
        "_frames_coalesced",
        "_header",
        "_left_behind",
        "_merging",
        "_segments_made",
        "_super_frames_read",
        "_super_frames_refused",
        "_super_frames_written",
    )

    def __init__(
        self,
        owner: Owner,
        file: QueueFile,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        read_buffer: tuple[int, int],
    ) -> None:
        #: In front of a frame in which nothing is left undone.
        self._header = bytes(options.vnet_header_size)
        #: The offloads for which frames are merged.
        self._merging = options.offload & MERGEABLE
        #: Frames in the super-frame that the last `_pull` left to the next one, as far as that can be guessed; or 0.
        self._left_behind = 0
        self._super_frames_read = self._segments_made = 0
        self._super_frames_written = self._frames_coalesced = self._super_frames_refused = 0
        super().__init__(owner, file, loop, options, read_buffer)
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
        header, buffer = self._header, self._buffer
        before = len(buffer)
        if before and limit < self._left_behind:
            self._left_behind = 0  # a second time in a row, it is read all the same
            return
        self._left_behind = 0
        most = before + limit
        try:
            for _ in range(max(limit, BATCH)):  # those that are dropped count as well
                data = os.read(self._fd, _abi.READ_SIZE)
                if data.startswith(header):
                    buffer.append(data[len(header) :])
                    made = 1
                else:
                    made = self._take(data)
                # A super-frame that looks like going past the limit is left where it is: it would be cut in two, and
                # whoever writes its halves merges each of them alone.
                if len(buffer) + made > most and len(buffer) > before:
                    self._left_behind = made
                    break
            self._more = True
        except BlockingIOError:
            self._more = False
        except OSError as error:
            self._read_failed(error)
        self._frames_read += len(buffer) - before

    def _take(self, data: bytes) -> int:
        """Buffers what becomes of a frame in which something is left undone, and returns how many frames that is."""
        try:
            frames = segment(data, self._mode, header_size=len(self._header))
        except InvalidFrameError:
            self._frames_dropped += 1
            return 0
        self._buffer += frames
        if data[1]:  # gso_type
            self._super_frames_read += 1
            self._segments_made += len(frames)
        return len(frames)

    def _answer_reader(self, turn: Turn) -> None:
        if not self._buffer:
            self._pull(1)
        if self._buffer:
            turn.give_now()

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_frame_nowait(self, frame: Frame) -> None:
        """As for any queue, and merged with no other."""
        super().write_frame_nowait(self._header + self._plain(frame))

    async def write_frame(self, frame: Frame) -> None:
        """As for any queue, and merged with no other."""
        await super().write_frame(self._header + self._plain(frame))

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes every frame that it can, in order within each flow, merged where that is safe.

        What the kernel refuses is left out and reported when the rest is written. When cancelled, each frame was
        written whole or not at all, and in order within each flow up to some point.

        Raises:
            InvalidFrameError: Some frames were refused: ``indexes`` says which. All others were written.
            LinkDownError, QueueClosedError, DeviceGoneError: Writing ended at once; a note on the exception says where.
        """
        batch = as_batch(frames)
        refused: dict[int, InvalidFrameError] = {}
        for start in range(0, len(batch), _WRITES_PER_TURN):
            if start:
                await asyncio.sleep(0)
            await self._write_part(batch, range(start, min(start + _WRITES_PER_TURN, len(batch))), refused)
        report(refused, len(batch))

    async def _write_part(self, batch: Sequence[Frame], part: range, refused: dict[int, InvalidFrameError]) -> None:
        plain, places, wrong, end = self._plain_part(batch, part, refused)
        if len(plain) > 1 and self._merging:
            merged = merge(plain, self._mode, self._merging, len(self._header))
        else:
            merged = [Merged(self._header + frame, [number], Offload.NONE) for number, frame in enumerate(plain)]
        left: list[int] = []
        for index, each in enumerate(merged):
            try:
                if each.kind:
                    await self._write_super_frame(each, plain, places, refused)
                else:
                    await self._write_alone(each.data, places[each.indexes[0]], refused)
            except (TuntapError, OSError) as error:
                left = [places[number] for other in merged[index:] for number in other.indexes]
                wrong = error
                break
        if wrong is not None:
            count = len(left) + len(batch) - end
            wrong.add_note(
                f"{count} of {len(batch)} frames were not written; the first is number {min(left, default=end)}"
            )
            if refused:
                wrong.add_note(f"of the others, these were refused: {sorted(refused)}")
            raise wrong

    def _plain_part(
        self, batch: Sequence[Frame], part: range, refused: dict[int, InvalidFrameError]
    ) -> tuple[Sequence[bytes], Sequence[int], Exception | None, int]:
        """The frames that can be written, where in the batch they are, and what is wrong with the one at the end."""
        frames = batch[part.start : part.stop]
        if set(map(type, frames)) == {bytes}:
            sizes = set(map(len, frames))
            if min(sizes) > 0 and max(sizes) <= self._max_frame - len(self._header):
                return frames, part, None, part.stop  # type: ignore[return-value]
        plain: list[bytes] = []
        places: list[int] = []
        for place in part:
            try:
                plain.append(self._plain(batch[place]))
                places.append(place)
            except InvalidFrameError as error:
                refused[place] = error
            except (TypeError, BufferError) as error:
                return plain, places, error, place
        return plain, places, None, part.stop

    async def _write_alone(self, data: bytes, place: int, refused: dict[int, InvalidFrameError]) -> None:
        try:
            await super().write_frame(data)
        except InvalidFrameError as error:
            refused[place] = error

    async def _write_super_frame(
        self, merged: Merged, plain: Sequence[bytes], places: Sequence[int], refused: dict[int, InvalidFrameError]
    ) -> None:
        try:
            await super().write_frame(merged.data)
        except InvalidFrameError:
            self._frames_refused -= 1  # its frames have a chance of their own
        else:
            self._super_frames_written += 1
            self._frames_coalesced += len(merged.indexes)
            self._frames_written += len(merged.indexes) - 1
            return
        before = len(refused)
        while merged.indexes:
            number = merged.indexes[0]
            await self._write_alone(self._header + plain[number], places[number], refused)
            del merged.indexes[0]  # those that stay were not written
        if len(refused) == before:  # it was not one of its frames: this kernel does not take such super-frames
            self._super_frames_refused += 1
            self._merging &= ~merged.kind

    def _plain(self, frame: Frame) -> bytes:
        """The frame in one piece."""
        if type(frame) is not bytes:
            size_of(frame)  # which knows what a frame is
            frame = b"".join(frame if isinstance(frame, (list, tuple)) else [frame])  # type: ignore[list-item]
        largest = self._max_frame - len(self._header)
        if not 0 < len(frame) <= largest:
            raise self._wrong_size(len(frame), largest)
        return frame
