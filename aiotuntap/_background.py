"""Writing a file on a separate thread: the event loop hands data over and never waits for a disk or a reader."""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic

from ._errors import cannot, no_thread
from ._types import Buffer

# Buffers that one writev(2) takes: IOV_MAX.
_MOST_PIECES = 1024

# What a pipe that has room takes at once: PIPE_BUF.
_PIPE_PIECE = 4096

# Milliseconds between two looks at whether a reader that reads nothing is still worth waiting for.
_LOOK = 100


class BackgroundWriter:
    """Appends data to a descriptor, which it owns. None of its methods blocks.

    After the first error it writes nothing more.
    """

    def __init__(self, fd: int, whole: Callable[[bytes], int], failed: Callable[[OSError], object]) -> None:
        """Starts the thread, which keeps the functions alive until `end`.

        Args:
            fd: Of any kind of file.
            whole: How many of the given bytes form complete records, to be kept when a disk is full.
            failed: Called with the first error, on the thread.

        Raises:
            SetupError: No thread can be started. The descriptor is still the caller's.
        """
        self._fd = fd
        self._whole = whole
        self._failed = failed
        kind = os.fstat(fd).st_mode
        self._takes_all = stat.S_ISREG(kind) or stat.S_ISBLK(kind)
        self._parts: SimpleQueue[Sequence[Buffer] | None] = SimpleQueue()
        # Each is changed by one thread alone.
        self._given = self._written = 0
        self._deadline: float | None = None
        self._when_ended: Callable[[], object] | None = None
        #: What stopped it.
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="aiotuntap-writer", daemon=True)
        try:
            self._thread.start()
        except (RuntimeError, MemoryError):
            raise no_thread("to write the file") from None

    @property
    def waiting(self) -> int:
        """Bytes that were given and are not written yet."""
        return self._given - self._written

    def write(self, pieces: Sequence[Buffer], size: int) -> None:
        """Hands over pieces of *size* bytes altogether, which must not change any more."""
        self._given += size
        self._parts.put(pieces)

    def end(self, patience: float, when_ended: Callable[[], object] | None = None) -> None:
        """Writes what is left, for *patience* seconds at most while a reader does not read, and closes.

        *when_ended* is called on the thread. A forked child has no such thread: there, nothing more is written.
        """
        if not self._thread.is_alive():
            self._close()
            if when_ended is not None:
                when_ended()
            return
        self._when_ended = when_ended
        self._deadline = monotonic() + patience
        self._parts.put(None)

    def _run(self) -> None:
        try:
            while (pieces := self._parts.get()) is not None:
                if self.error is None:
                    try:
                        self._write(pieces)
                    except (OSError, MemoryError) as error:
                        # With no memory to join the pieces, the file would end in the middle of a record later on.
                        no_memory = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
                        self.error = error if isinstance(error, OSError) else no_memory
                        self._failed(self.error)
        finally:
            self._close()
            if self._when_ended is not None:
                self._when_ended()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # some file systems tell only now, and there is nothing left to do about it
                os.close(fd)

    def _write(self, pieces: Sequence[Buffer]) -> None:
        if not self._takes_all:
            self._write_to_reader(memoryview(b"".join(pieces)))
            return
        done = 0
        try:
            for at in range(0, len(pieces), _MOST_PIECES):
                part = pieces[at : at + _MOST_PIECES]
                taken = os.writev(self._fd, part)
                done += taken
                if taken < sum(map(len, part)):  # the disk is nearly full: the next write raises
                    left = memoryview(b"".join(part))[taken:]
                    while left:
                        taken = os.write(self._fd, left)
                        done += taken
                        left = left[taken:]
        except OSError:
            self._cut(b"".join(pieces)[:done])
            raise
        self._written += done

    def _cut(self, data: bytes) -> None:
        """Removes from the file the incomplete record at the end of *data*, which was written last."""
        with suppress(OSError):
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            os.ftruncate(self._fd, end - len(data) + self._whole(data))

    def _write_to_reader(self, data: memoryview) -> None:
        """Writes to a pipe or a socket. Its reader may have stopped reading, so this waits for a limited time."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while data:
            while not poll.poll(_LOOK):
                if self._deadline is not None and monotonic() >= self._deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "its reader has stopped reading")
            with suppress(BlockingIOError):
                taken = os.write(self._fd, data[:_PIPE_PIECE])
                self._written += taken
                data = data[taken:]


def open_for_writing(file: str | os.PathLike[str] | int) -> int:
    """A descriptor of a file that is new or emptied, of the pipe or device of that name, or a duplicate of a descriptor.

    It can block on a slow disk: call it on a thread.

    Raises:
        SetupError: It cannot be opened.
    """
    try:
        if isinstance(file, int):
            return os.dup(file)
        # Without O_NONBLOCK, opening a named pipe would wait for its reader.
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        hint = "nobody reads from this pipe: start its reader first" if error.errno == errno.ENXIO else ""
        what = f"descriptor {file}" if isinstance(file, int) else repr(os.fspath(file))
        raise cannot(f"open {what} for writing", error, hint) from error
