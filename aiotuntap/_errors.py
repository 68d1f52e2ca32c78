"""What can go wrong, by meaning.

::

    TuntapError
    ├── QueueClosedError      closed here, by this program
    ├── DeviceGoneError       also OSError: interface or namespace deleted under the queue
    ├── LinkDownError         also OSError: written while the interface is down
    ├── InvalidFrameError     also ValueError: the kernel refuses this frame
    └── SetupError            also OSError: could not open, attach or configure
        └── SetupPermissionError   also PermissionError

Whatever came from the kernel keeps its ``errno``. Wrong arguments are plain ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence


class TuntapError(Exception):
    """Root of everything that this package raises on its own account."""


class QueueClosedError(TuntapError):
    """The queue, or the whole interface object, was closed by this program."""


class DeviceGoneError(TuntapError, OSError):
    """The interface, or the namespace it lived in, was deleted while the queue was open (``EBADFD``)."""


class LinkDownError(TuntapError, OSError):
    """A frame was written while the interface was down (``EIO``). Nothing was sent; try again when it is up."""


class InvalidFrameError(TuntapError, ValueError):
    """The kernel refuses a frame, or it is too large to be one.

    Attributes:
        indexes: Positions of the refused frames in what was passed to ``write_frames``; ``(0,)`` for a single frame.
    """

    def __init__(self, message: str, indexes: Sequence[int] = (0,)) -> None:
        super().__init__(message)
        self.indexes = tuple(indexes)


class SetupError(TuntapError, OSError):
    """An interface could not be opened, attached to or configured. The message says how to fix it."""

    def __new__(cls, *args: object) -> SetupError:  # noqa: PYI034 - or of the subclass for permissions
        if cls is SetupError and args and args[0] in (errno.EPERM, errno.EACCES):
            return super().__new__(SetupPermissionError, *args)
        return super().__new__(cls, *args)


class SetupPermissionError(SetupError, PermissionError):
    """A `SetupError` because of a missing privilege; caught as either."""


def gone(name: str, number: int = errno.EBADFD) -> DeviceGoneError:
    """What to raise when the interface *name* was found to be deleted."""
    return DeviceGoneError(number, f"interface {name!r} is gone: it, or its namespace, was deleted")


_REMEDIES = {
    errno.EMFILE: "this process has no descriptors left: raise 'ulimit -n'",
    errno.ENFILE: "this machine has no descriptors left: raise 'sysctl fs.file-max'",
    errno.ENOMEM: "the kernel has no memory left for it: free some, or raise the memory limit of this program's cgroup",
    errno.ENOBUFS: "the kernel has no memory left for it: free some, or raise the memory limit of this program's cgroup",
}


def cannot(action: str, error: OSError, hint: str = "") -> SetupError:
    """The SetupError for what stopped *action*, with the way to get what ran out, or else with *hint*."""
    number = error.errno or 0
    remedy = _REMEDIES.get(number, hint)
    return SetupError(number, f"cannot {action}: {error.strerror}{'; ' if remedy else ''}{remedy}")
