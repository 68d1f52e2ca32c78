"""The exceptions of this package.

::

    TuntapError
    ├── QueueClosedError      closed by this program
    ├── DeviceGoneError       also OSError: interface or namespace deleted under the queue
    ├── LinkDownError         also OSError: written while the interface was down
    ├── InvalidFrameError     also ValueError: the kernel refuses this frame
    └── SetupError            also OSError: an interface could not be opened, attached to or configured
        └── SetupPermissionError   also PermissionError

An error that came from the kernel keeps its ``errno``. Wrong arguments are plain ``ValueError`` or ``TypeError``, and wrong
use, such as reading before opening or from another thread, is a ``RuntimeError``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence


class TuntapError(Exception):
    """Base class of the errors of this package."""


class QueueClosedError(TuntapError):
    """The queue, or the whole interface, was closed by this program."""


class DeviceGoneError(TuntapError, OSError):
    """The interface, or the network namespace that it was in, was deleted while the queue was open (``EBADFD``)."""


class LinkDownError(TuntapError, OSError):
    """A frame was written while the interface was down (``EIO``). It was not sent: write it again when the interface is up."""


class InvalidFrameError(TuntapError, ValueError):
    """The kernel refuses a frame, or its size is wrong.

    Attributes:
        indexes: Positions of the refused frames in what was passed to ``write_frames``; ``(0,)`` for a single frame.
    """

    def __init__(self, message: str, indexes: Sequence[int] = (0,)) -> None:
        super().__init__(message)
        self.indexes: tuple[int, ...] = tuple(indexes)


class SetupError(TuntapError, OSError):
    """An interface could not be opened, attached to or configured. The message says how to fix it."""

    def __new__(cls, *args: object) -> SetupError:  # noqa: PYI034 - or of the subclass for permissions
        if cls is SetupError and args and args[0] in (errno.EPERM, errno.EACCES):
            return super().__new__(SetupPermissionError, *args)
        return super().__new__(cls, *args)


class SetupPermissionError(SetupError, PermissionError):
    """A `SetupError` because a privilege is missing. It is a `PermissionError` too."""


def gone(name: str, number: int = errno.EBADFD) -> DeviceGoneError:
    """The error for an interface that was deleted; with EBADF, for a descriptor that was closed behind our back."""
    if number == errno.EBADF:
        return DeviceGoneError(number, f"the descriptor of a queue of {name!r} was closed by something else")
    return DeviceGoneError(
        number, f"interface {name!r} is gone: it, or the network namespace that it was in, was deleted"
    )


def closed(what: str) -> QueueClosedError:
    """The error for what this program closed before."""
    return QueueClosedError(f"{what} is closed")


def not_open(what: str) -> RuntimeError:
    """The error for what was not opened before it is used."""
    return RuntimeError(f"{what} is not open yet: use 'async with', or await open()")


#: What is logged of an interface, with its name and what waits.
WAITS_WHILE_DOWN = "interface %r is down, and %s waits until it is up: call configure(up=True)"


def no_thread(purpose: str) -> SetupError:
    """The error for a thread that could not be started."""
    return SetupError(
        errno.EAGAIN, f"cannot start a thread {purpose}: raise the limit of processes ('ulimit -u', or pids.max)"
    )


_REMEDIES = {
    errno.EMFILE: "this process has no file descriptors left: raise 'ulimit -n'",
    errno.ENFILE: "this machine has no file descriptors left: raise 'sysctl fs.file-max'",
    errno.ENOMEM: "the kernel has no memory left for it: free some, or raise the memory limit of this program's cgroup",
    errno.ENOBUFS: "the kernel has no memory left for it: free some, or raise the memory limit of this program's cgroup",
}


def cannot(action: str, error: OSError, hint: str = "") -> SetupError:
    """The SetupError for what could not be done, and how to fix it: as this module knows, or else *hint*."""
    number = error.errno or 0
    remedy = _REMEDIES.get(number, hint)
    return SetupError(number, f"cannot {action}: {error.strerror}{'; ' if remedy else ''}{remedy}")


def cannot_poll(what: str, error: OSError) -> SetupError:
    """The SetupError for a descriptor that the event loop could not register."""
    return cannot(f"poll {what}", error, "see 'sysctl fs.epoll.max_user_watches'")
