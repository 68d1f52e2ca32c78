"""Faults on purpose: a stream around another one that loses, changes and refuses frames, by a seed."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from random import Random

from .._batch import size_of
from .._errors import DeviceGoneError, InvalidFrameError, LinkDownError, QueueClosedError, TuntapError
from .._reader import READ_BUFFER
from .._types import Frame, PacketStream
from .frame_by_frame import FrameByFrame
from .wire import Wire

# Frames for which the link is down at most, each time that it goes down by itself.
_OUTAGE = 10

# Frames that are taken at once from the stream inside, at most.
_MOST = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """How likely each fault is, from 0 to 1 for each frame. A frame has one of them at most: their sum is at most 1."""

    #: It is lost.
    drop: float = 0.0
    #: It comes twice.
    duplicate: float = 0.0
    #: The next one overtakes it, if there is one within ``FaultyStream.PAUSE``.
    reorder: float = 0.0
    #: One of its bits is changed.
    corrupt: float = 0.0
    #: It, and what comes behind it, waits for up to ``FaultyStream.PAUSE``. A write without waiting raises
    #: BlockingIOError instead.
    delay: float = 0.0
    #: It is refused with InvalidFrameError. For writing only.
    error: float = 0.0
    #: The link goes down, for this frame and up to 9 more: what is written raises LinkDownError, what comes is lost.
    down: float = 0.0
    #: The device is gone, for good: DeviceGoneError.
    gone: float = 0.0

    def __post_init__(self) -> None:
        for name, chance in zip(_KINDS, astuple(self), strict=True):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {chance!r}")
        if sum(astuple(self)) > 1 + 1e-9:
            raise ValueError(f"the sum of all must be at most 1, not {sum(astuple(self)):g}: a frame has one fault")


_KINDS = tuple(field.name for field in fields(Faults))
_NONE = Faults()


class _Dice:
    """One direction: which fault each frame has."""

    def __init__(self, faults: Faults, seed: int, direction: str) -> None:
        self._random = Random(f"{seed} {direction}")
        #: How long, and which bit. Apart, so that the fault of a frame depends on nothing but how many came before it.
        self.details = Random(f"{seed} {direction} details")
        self.counts: Counter[str] = Counter()
        self._chances = astuple(faults)

    def throw(self) -> str:
        """The fault of the next frame, or nothing."""
        number = self._random.random()
        for kind, chance in zip(_KINDS, self._chances, strict=True):
            if number < chance:
                self.counts[kind] += 1
                return kind
            number -= chance
        return ""

    def change(self, data: bytes) -> bytes:
        """The frame with one bit changed."""
        if not data:
            return data
        at, bit = self.details.randrange(len(data)), self.details.randrange(8)
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


class FaultyStream(FrameByFrame):
    """A `PacketStream` around another one, with faults in either direction. Make it while the event loop runs.

    Which fault a frame has depends on the seed and on how many frames went before it in its direction, and on nothing
    else. What the stream inside promises still holds for the frames that come through: a cancelled read loses none,
    readers are served in turn. It owns the stream that it is given, and closes it.

    Args:
        stream: What is read from and written to.
        seed: Which frames have faults. Print it when a test fails, and the test can be repeated.
        reading: Faults of frames that are read; ``error`` must be 0.
        writing: Faults of frames that are written.
    """

    #: Seconds that a frame is delayed, or held back to be overtaken, at most.
    PAUSE = 0.01

    __slots__ = ("_carrying", "_closed", "_gone", "_held", "_outage", "_reading", "_stream", "_up", "_wire", "_writing")

    def __init__(self, stream: PacketStream, *, seed: int, reading: Faults = _NONE, writing: Faults = _NONE) -> None:
        if reading.error:
            raise ValueError("reading: error must be 0, since no frame that is read is refused")
        super().__init__(asyncio.get_running_loop(), READ_BUFFER, 0)
        self._stream = stream
        self._reading = _Dice(reading, seed, "reading")
        self._writing = _Dice(writing, seed, "writing")
        #: The task that reads from the stream while somebody waits here.
        self._carrying: asyncio.Task[None] | None = None
        #: Frames that were read, and what ended them.
        self._wire: Wire[bytes | Exception] = Wire(self._loop, self._deliver)
        #: The frame that the next one is to overtake, for each direction, and when it is not waited for any more.
        self._held: dict[_Dice, tuple[bytes, asyncio.TimerHandle]] = {}
        self._closed = self._gone = False
        self._up = True
        #: Frames for which the link stays down.
        self._outage = 0

    @property
    def closed(self) -> bool:
        """Whether this stream, or the one inside, was closed here."""
        return self._closed or self._stream.closed

    @property
    def faults_read(self) -> Counter[str]:
        """How often frames that were read had each fault, by the names in `Faults`; ``down`` counts all lost by it."""
        return Counter(self._reading.counts)

    @property
    def faults_written(self) -> Counter[str]:
        """How often frames that were written had each fault, by the names in `Faults`."""
        return Counter(self._writing.counts)

    def set_link(self, up: bool) -> None:
        """Sets the link down until it is set up again: what is written raises LinkDownError, what comes is lost."""
        if up and not self._up:
            self._pull(_MOST)  # what came while it was down is lost
        self._up = up
        self._outage = 0

    async def vanish(self) -> None:
        """Takes the device away: what was read before is handed out, and then everything raises DeviceGoneError."""
        self._vanish()

    async def aclose(self) -> None:
        """Closes this stream and the one inside. Who waits gets QueueClosedError. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._wire.cut()
            self._drop_held()
            self._buffer.clear()
            self._end(_closed())
            if self._carrying is not None:
                self._carrying.cancel()
        await self._stream.aclose()

    # -- reading -------------------------------------------------------------------------------------------------------

    def _pull(self, limit: int) -> None:
        for _ in range(_MOST):  # frames that are lost do not count, but they take time
            if len(self._buffer) >= limit or self._gone:
                return
            try:
                frame = self._stream.read_frame_nowait()
            except BlockingIOError:
                return
            except Exception as error:  # noqa: BLE001 - whatever ends it
                self._finish(error)
                return
            self._take_in(frame)

    def _resume(self) -> None:
        if self._readers and not self._flowing and self._has_room() and self._error is None:
            self._flowing = True
            self._carrying = self._loop.create_task(self._carry())

    def _has_room(self) -> bool:
        return len(self._buffer) + len(self._wire) < self._high

    async def _carry(self) -> None:
        try:
            while self._readers and self._has_room() and not self._gone:
                for frame in await self._stream.read_frames():
                    self._take_in(frame)
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever ends it, readers get it
            self._finish(error)
        finally:
            self._flowing = False
            self._carrying = None

    def _take_in(self, frame: bytes) -> None:
        """A frame was read from the stream inside."""
        if self._gone:
            return
        dice = self._reading
        kind = dice.throw()
        if self._is_down(kind, dice):
            if not kind:
                dice.counts["down"] += 1
        elif kind == "gone":
            self._vanish()
        elif kind == "reorder":
            self._hold(dice, frame)
        elif kind != "drop":
            seconds = dice.details.uniform(0, self.PAUSE) if kind == "delay" else 0.0
            self._wire.send(dice.change(frame) if kind == "corrupt" else frame, seconds)
            if kind == "duplicate":
                self._wire.send(frame)
            if (held := self._let_go(dice)) is not None:
                self._wire.send(held)

    def _deliver(self, item: bytes | Exception) -> None:
        if isinstance(item, bytes):
            self._buffer.append(item)
            self._wake_reader()
            self._resume()
        elif self._error is None:
            self._end(item)

    def _finish(self, error: Exception) -> None:
        """No more frames come."""
        if (held := self._let_go(self._reading)) is not None:
            self._wire.send(held)
        self._wire.send(error)

    def _vanish(self) -> None:
        if not self._gone and not self._closed:
            self._gone = True
            self._finish(_gone())
            if self._carrying is not None:
                self._carrying.cancel()

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame, or what a fault makes of it.

        Raises:
            BlockingIOError: There is no room now, or the frame is to be delayed: nothing was written.
            InvalidFrameError, LinkDownError, DeviceGoneError: By a fault, or from the stream inside.
            QueueClosedError: The stream was closed here.
            TypeError: It is not a bytes-like object, nor a list or tuple of them.
        """
        kind = self._judge(frame)
        if kind == "delay":
            raise BlockingIOError(errno.EAGAIN, "the frame is delayed: nothing was written")
        for number, each in enumerate(self._in_place_of(frame, kind)):
            try:
                self._stream.write_frame_nowait(each)
            except (TuntapError, OSError):
                if not number:  # what comes of a frame besides itself may get lost
                    raise

    async def _write(self, frame: Frame) -> None:
        kind = self._judge(frame)
        if kind == "delay":
            await asyncio.sleep(self._writing.details.uniform(0, self.PAUSE))
        for number, each in enumerate(self._in_place_of(frame, kind)):
            try:
                await self._stream.write_frame(each)
            except (TuntapError, OSError):
                if not number:
                    raise

    def _judge(self, frame: Frame) -> str:
        """The fault of a frame that is written, unless it is one that raises."""
        size_of(frame)
        if self._closed:
            raise _closed()
        if self._gone:
            raise _gone()
        kind = self._writing.throw()
        if self._is_down(kind, self._writing):
            raise LinkDownError(errno.EIO, "the link is down by a fault: nothing was written")
        if kind == "gone":
            self._vanish()
            raise _gone()
        if kind == "error":
            raise InvalidFrameError("the frame is refused by a fault")
        return kind

    def _in_place_of(self, frame: Frame, kind: str) -> list[Frame]:
        """What is written for a frame: that one, or what a fault makes of it, and what it overtook."""
        if kind == "drop":
            return []
        dice = self._writing
        if kind in ("reorder", "corrupt"):
            pieces = frame if isinstance(frame, (list, tuple)) else (frame,)
            frame = b"".join(map(bytes, pieces))
            if kind == "reorder":
                self._hold(dice, frame)
                return []
            frame = dice.change(frame)
        held = self._let_go(dice)
        return [frame] * (2 if kind == "duplicate" else 1) + ([] if held is None else [held])

    # -- either way ----------------------------------------------------------------------------------------------------

    def _is_down(self, kind: str, dice: _Dice) -> bool:
        if kind == "down":
            self._outage = 1 + dice.details.randrange(_OUTAGE)
        if self._outage:
            self._outage -= 1
            return True
        return not self._up

    def _hold(self, dice: _Dice, frame: bytes) -> None:
        """The next frame is to overtake this one. One that waits already goes first."""
        if (held := self._let_go(dice)) is not None:
            self._pass(dice, held)
        self._held[dice] = frame, self._loop.call_later(self.PAUSE, self._hold_no_longer, dice)

    def _let_go(self, dice: _Dice) -> bytes | None:
        held = self._held.pop(dice, None)
        if held is None:
            return None
        held[1].cancel()
        return held[0]

    def _hold_no_longer(self, dice: _Dice) -> None:
        if (held := self._let_go(dice)) is not None:
            self._pass(dice, held)

    def _pass(self, dice: _Dice, frame: bytes) -> None:
        if dice is self._reading:
            self._wire.send(frame)
        else:
            with suppress(TuntapError, OSError):
                self._stream.write_frame_nowait(frame)

    def _drop_held(self) -> None:
        for dice in list(self._held):
            self._let_go(dice)


def _closed() -> QueueClosedError:
    return QueueClosedError("this stream is closed")


def _gone() -> DeviceGoneError:
    return DeviceGoneError(errno.EBADFD, "the device is gone by a fault")
