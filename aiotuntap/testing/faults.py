"""A stream that wraps another one and loses, changes and refuses frames. A seed makes the faults repeatable."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from random import Random

from .._batch import size_of
from .._errors import DeviceGoneError, InvalidFrameError, LinkDownError, QueueClosedError, TuntapError, closed
from .._reader import READ_BUFFER
from .._types import Frame, PacketStream
from .frame_by_frame import FrameByFrame
from .wire import Wire

# The most frames for which the link stays down after the fault ``down``.
_OUTAGE = 10

# The most frames to take from the wrapped stream at once.
_MOST = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """The probability of each fault, from 0 to 1, for each frame. A frame has at most one fault: the sum is at most 1.

    Raises:
        ValueError: A probability is not from 0 to 1, or the sum is over 1.
    """

    #: The frame is lost.
    drop: float = 0.0
    #: The frame comes twice.
    duplicate: float = 0.0
    #: The next frame overtakes this one, if it comes within ``FaultyStream.PAUSE``.
    reorder: float = 0.0
    #: One bit of the frame is changed.
    corrupt: float = 0.0
    #: The frame and those after it are delayed for up to ``FaultyStream.PAUSE``. ``write_frame_nowait`` raises
    #: BlockingIOError instead.
    delay: float = 0.0
    #: The frame is refused with InvalidFrameError. Only for writing.
    error: float = 0.0
    #: The link is down for this frame and up to 9 more. Writing raises LinkDownError; frames to be read are lost.
    down: float = 0.0
    #: The device is deleted: DeviceGoneError.
    gone: float = 0.0

    def __post_init__(self) -> None:
        for name, chance in zip(_KINDS, astuple(self), strict=True):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {chance!r}")
        if sum(astuple(self)) > 1 + 1e-9:
            raise ValueError(
                f"the sum of all faults must be at most 1, not {sum(astuple(self)):g}: reduce some of them"
            )


_KINDS = tuple(field.name for field in fields(Faults))
_NONE = Faults()


class _Dice:
    """Chooses the fault of each frame in one direction."""

    def __init__(self, faults: Faults, seed: int, direction: str) -> None:
        self._random = Random(f"{seed} {direction}")
        #: Chooses how long and which bit. It is separate, so that the fault of a frame depends only on its number.
        self.details = Random(f"{seed} {direction} details")
        self.counts: Counter[str] = Counter()
        self._chances = astuple(faults)

    def throw(self) -> str:
        """The name of the next frame's fault, or an empty string."""
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
    """A `PacketStream` that wraps another one and adds faults in both directions. Make it while the event loop runs.

    The fault of a frame depends only on the seed and on how many frames came before it in its direction. The guarantees
    of the wrapped stream still hold for the frames that pass: a cancelled read loses no frame, and readers are served in
    turn. The wrapper owns the wrapped stream and closes it.

    Args:
        stream: The stream to wrap.
        seed: Chooses the frames with faults. Print it when a test fails: the same seed repeats the faults.
        reading: Faults of the frames that are read. ``error`` must be 0.
        writing: Faults of the frames that are written.

    Raises:
        ValueError: ``reading.error`` is not 0.
    """

    #: The longest time, in seconds, for which a frame is delayed, or held back to be overtaken.
    PAUSE = 0.01

    __slots__ = ("_carrying", "_closed", "_gone", "_held", "_outage", "_reading", "_stream", "_up", "_wire", "_writing")

    def __init__(self, stream: PacketStream, *, seed: int, reading: Faults = _NONE, writing: Faults = _NONE) -> None:
        if reading.error:
            raise ValueError(
                f"reading.error must be 0, not {reading.error!r}: only frames that are written can be refused"
            )
        super().__init__(asyncio.get_running_loop(), READ_BUFFER, 0)
        self._stream = stream
        self._reading = _Dice(reading, seed, "reading")
        self._writing = _Dice(writing, seed, "writing")
        #: The task that reads from the wrapped stream while a reader waits.
        self._carrying: asyncio.Task[None] | None = None
        #: Frames that were read, and the error that ended reading.
        self._wire: Wire[bytes | Exception] = Wire(self._loop, self._deliver)
        #: For each direction: the frame that the next one will overtake, and the timer that ends waiting for the next.
        self._held: dict[_Dice, tuple[bytes, asyncio.TimerHandle]] = {}
        self._closed = self._gone = False
        self._up = True
        #: For how many more frames the link stays down.
        self._outage = 0

    @property
    def closed(self) -> bool:
        """Whether this stream or the wrapped one was closed here."""
        return self._closed or self._stream.closed

    @property
    def faults_read(self) -> Counter[str]:
        """How many frames that were read had each fault, by its name in `Faults`. ``down`` counts all frames lost by it."""
        return Counter(self._reading.counts)

    @property
    def faults_written(self) -> Counter[str]:
        """How many frames that were written had each fault, by its name in `Faults`."""
        return Counter(self._writing.counts)

    def set_link(self, up: bool) -> None:
        """Sets the link up or down. While it is down, writing raises LinkDownError, and frames to be read are lost.

        Raises:
            RuntimeError: Called from another thread than the one that made the stream.
        """
        self._check_thread()
        if up and not self._up:
            self._pull(_MOST)  # drops the frames that came while the link was down
        self._up = up
        self._outage = 0

    async def vanish(self) -> None:
        """Deletes the device: frames that came before can still be read, then every method raises DeviceGoneError.

        Raises:
            RuntimeError: Called from another thread or event loop than the one that made the stream.
        """
        self._check_loop()
        self._vanish()

    async def aclose(self) -> None:
        """Closes this stream and the wrapped one. Waiting readers get QueueClosedError. Closing twice is harmless.

        Raises:
            RuntimeError: Called from another thread or event loop than the one that made the stream.
        """
        if not self._closed:
            if not self._loop.is_closed():
                self._check_loop()
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
        for _ in range(_MOST):  # an upper limit, because lost frames do not fill the buffer
            if len(self._buffer) >= limit or self._gone:
                return
            try:
                frame = self._stream.read_frame_nowait()
            except BlockingIOError:
                return
            except Exception as error:  # noqa: BLE001 - the wrapped stream may raise anything
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
        except Exception as error:  # noqa: BLE001 - readers get it
            self._finish(error)
        finally:
            self._flowing = False
            self._carrying = None

    def _take_in(self, frame: bytes) -> None:
        """Applies a fault to a frame that was read from the wrapped stream."""
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
        """Ends reading with *error*, after the frames that came before."""
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
        """Writes one frame without waiting, perhaps with a fault.

        Raises:
            BlockingIOError: The send buffer of the wrapped stream is full, or the fault is ``delay``. Nothing was written.
            InvalidFrameError: The fault is ``error``, or the wrapped stream refuses the frame.
            LinkDownError: The link is down, by a fault, by `set_link`, or in the wrapped stream.
            DeviceGoneError: The device was deleted, by a fault, by `vanish`, or in the wrapped stream.
            QueueClosedError: The stream was closed here.
            TypeError: *frame* is neither a bytes-like object nor a list or tuple of them.
            RuntimeError: Called from another thread than the one that made the stream.
        """
        self._check_thread()
        kind = self._judge(frame)
        if kind == "delay":
            raise BlockingIOError(errno.EAGAIN, "the frame is delayed: nothing was written")
        for number, each in enumerate(self._in_place_of(frame, kind)):
            try:
                self._stream.write_frame_nowait(each)
            except (TuntapError, OSError):
                if not number:  # the others are a duplicate, or a frame that was held back: they may be lost
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
        """Chooses the fault of a frame to be written. Raises the error if the fault is one."""
        size_of(frame)
        if self._closed:
            raise _closed()
        if self._gone:
            raise _gone()
        kind = self._writing.throw()
        if self._is_down(kind, self._writing):
            raise LinkDownError(errno.EIO, "the link of this FaultyStream is down: nothing was written")
        if kind == "gone":
            self._vanish()
            raise _gone()
        if kind == "error":
            raise InvalidFrameError("this FaultyStream refuses the frame: its fault is 'error'")
        return kind

    def _in_place_of(self, frame: Frame, kind: str) -> list[Frame]:
        """The frames to write instead of this one, with its fault applied, and a frame that it overtakes."""
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

    # -- both directions ----------------------------------------------------------------------------------------------------

    def _is_down(self, kind: str, dice: _Dice) -> bool:
        if kind == "down":
            self._outage = 1 + dice.details.randrange(_OUTAGE)
        if self._outage:
            self._outage -= 1
            return True
        return not self._up

    def _hold(self, dice: _Dice, frame: bytes) -> None:
        """Holds a frame back until the next one overtakes it. A frame that is held back already is sent first."""
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
    return closed("this FaultyStream")


def _gone() -> DeviceGoneError:
    return DeviceGoneError(errno.EBADFD, "the device of this FaultyStream was deleted")
