"""What an interface is called, where it is, and how it is set: asked and changed through the files of its queues.

`AsyncTuntap` and its queues share one. The kernel renames an interface and moves it to another namespace without
notice, so whatever depends on the name or the place asks for it anew.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import _abi
from ._device import Options, QueueFile
from ._errors import QueueClosedError, cannot, gone
from ._netns import Namespace


class Interface:
    """One interface, for as long as queues of it are open here.

    Attributes:
        options: How its queues are opened.
        netns: The namespace it was opened in or moved to, as the user named it; None for that of the opening thread.
        index: Its number in its namespace when somebody last looked; 0 if that could not be told, None before opening.
        files: Those of its open queues, in the order they were opened.
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
        #: The last name known: before opening, the one asked for.
        self.last_name = name
        self._send_buffer: int | None = None

    @property
    def name(self) -> str:
        """The name that the kernel has now. As asked for before opening, the last one known when it is gone."""
        for file in self.files:
            try:
                self.last_name = file.get_ifreq().name
                break
            except OSError:
                continue
        return self.last_name

    @contextmanager
    def where(self) -> Iterator[tuple[str, Namespace]]:
        """The name and the namespace that the interface has now.

        Where the kernel does not tell the namespace (it takes CAP_NET_ADMIN there), that of opening.

        Raises:
            DeviceGoneError: It was deleted.
            QueueClosedError: It was closed here.
            SetupError: The kernel does not tell for another reason, such as no descriptor left.
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
                raise cannot(f"tell which namespace {self.last_name!r} is in", error) from error
        try:
            yield self.name, self.netns if fd is None else fd
        finally:
            if fd is not None:
                os.close(fd)

    def check_open(self) -> None:
        """Raises what there is to say where nothing can be asked or set."""
        if self.closed:
            raise QueueClosedError(f"interface {self.last_name!r} is closed: this program closed it")
        if not self.opened:
            raise RuntimeError("the interface is not open yet: use it in 'async with', or await open() first")

    def set(
        self, setting: str, value: object, change: Callable[[QueueFile], None], file: QueueFile | None = None
    ) -> None:
        """Changes a setting through *file*, or through the first open queue.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: It is closed, or has no open queue.
        """
        self.check_open()
        if file is None:
            if not self.files:
                raise QueueClosedError(
                    f"interface {self.last_name!r} has no open queue, and its {setting} is set through one: add_queues() first"
                )
            file = self.files[0]
        try:
            change(file)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise gone(self.last_name) from error
            hint = (
                "a carrier takes at least one enabled queue"
                if (setting, error.errno) == ("carrier", errno.EPERM)
                else ""
            )
            raise cannot(f"set {setting} of {self.last_name!r} to {value}", error, hint) from error

    def set_send_buffer(self, size: int, file: QueueFile | None = None) -> None:
        """TUNSETSNDBUF, which holds for the queues that are attached at that moment."""
        self.set("send buffer", size, lambda file: file.set_int(_abi.TUNSETSNDBUF, size), file)
        self._send_buffer = size

    def restore(self, file: QueueFile) -> None:
        """Sets anew what the kernel forgets when a queue is added or enabled."""
        if self._send_buffer is not None:
            self.set_send_buffer(self._send_buffer, file)
