"""The name, the place and the settings of an interface, read and changed through the files of its queues.

`AsyncTuntap` and its queues share one `Interface`. Another program can rename an interface, or move it to another
namespace, at any time, so the name and the namespace are read from the kernel whenever they are needed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from . import _abi
from ._device import Options, QueueFile
from ._errors import QueueClosedError, cannot, closed, gone, not_open
from ._netns import Namespace


class Interface:
    """One interface, for as long as queues of it are open here.

    Attributes:
        options: How its queues are opened.
        netns: The namespace it was opened in or moved to, as the user named it; None for that of the opening thread.
        index: Its index in its namespace when that was last read; 0 if it is unknown, None before opening.
        files: The files of its open queues, in the order they were opened.
        opened: Whether queues were opened.
        closed: Whether closing has begun.
    """

    def __init__(self, name: str, options: Options, netns: str | None) -> None:
        self.options = options
        self.netns = netns
        self.index: int | None = None
        self.files: list[QueueFile] = []
        self.opened = False
        self.closed = False
        #: Whether a read of one of its queues has had to wait.
        self.was_waited_for = False
        #: The last known name; before opening, the one asked for.
        self.last_name: str = name
        self._send_buffer: int | None = None

    @property
    def name(self) -> str:
        """The name that the kernel has now; before opening, the one asked for; after the end, the last known one."""
        for file in self.files:
            try:
                self.last_name = file.get_ifreq().name
                break
            except OSError as error:
                if error.errno == errno.EBADFD:  # it was deleted, as each of the others would tell
                    break
        return self.last_name

    @contextmanager
    def where(self) -> Iterator[tuple[str, Namespace]]:
        """The name and the namespace that the interface has now.

        Without CAP_NET_ADMIN in that namespace the kernel does not tell it; then it is the one of opening.

        Raises:
            DeviceGoneError: The interface was deleted.
            QueueClosedError: It was closed by this program.
            SetupError: The kernel does not tell the namespace for another reason, such as EMFILE.
        """
        if self.closed:
            self.check_open()
        fd = None
        if self.files:
            try:
                fd = self.files[0].open_netns()
            except OSError as error:
                if error.errno == errno.EBADFD:
                    raise gone(self.last_name) from error
                raise cannot(f"open the network namespace of {self.last_name!r}", error) from error
        try:
            yield self.name, self.netns if fd is None else fd
        finally:
            if fd is not None:
                os.close(fd)

    def check_open(self) -> None:
        """Raises QueueClosedError or RuntimeError if the interface is closed, or is not open yet."""
        if self.closed:
            raise closed(f"interface {self.last_name!r}")
        if not self.opened:
            raise not_open(f"interface {self.last_name!r}")

    def no_queue(self) -> QueueClosedError:
        """The error where an open queue is needed and all of them were closed."""
        return QueueClosedError(f"interface {self.last_name!r} has no open queue: open one with add_queues()")

    def set(
        self,
        setting: str,
        value: object,
        change: Callable[[QueueFile], None],
        file: QueueFile | None = None,
        fixes: Mapping[int, str] | None = None,
    ) -> None:
        """Changes a setting through *file*, or through the first open queue. *fixes* says what to do, by ``errno``.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface, or every queue of it, was closed by this program.
            RuntimeError: It is not open yet.
        """
        self.check_open()
        if file is None:
            if not self.files:
                raise self.no_queue()
            file = self.files[0]
        try:
            change(file)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise gone(self.last_name) from error
            fix = (fixes or {}).get(error.errno or 0, "")
            raise cannot(f"set {setting} of {self.last_name!r} to {value}", error, fix) from error

    def set_send_buffer(self, size: int, file: QueueFile | None = None) -> None:
        """TUNSETSNDBUF, which changes the queues that are attached at that moment."""
        self.set("send buffer", size, lambda file: file.set_int(_abi.TUNSETSNDBUF, size), file)
        self._send_buffer = size

    def restore(self, file: QueueFile) -> None:
        """Sets again what the kernel does not apply to a queue that is added or enabled later."""
        if self._send_buffer is not None:
            self.set_send_buffer(self._send_buffer, file)
