"""Forwards frames from one namespace to another through a child process. Several benchmarks use it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from . import lab

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Its interfaces, and their addresses.
LEFT, RIGHT = "left0", "right0"
CLIENT, SERVER = "10.78.0.1", "10.78.0.2"
MTU = 1500


class Forwarder(NamedTuple):
    """What moves the frames, and how its interfaces are opened."""

    #: ``"c"``, or a name and a loop.
    kind: str
    mode: str = "tun"
    #: ``"none"``, ``"passed"`` (super-frames are passed on as they are) or ``"transparent"``.
    offload: str = "none"
    napi: bool = False

    @contextmanager
    def running(self, left: str, right: str, library: str) -> Iterator[int]:
        """Moves frames between two namespaces until the block ends. Gives the pid of the process that does."""
        napi = "napi" if self.napi else ""
        command = lab.python_module("forwarders", self.kind, self.mode, self.offload, napi, left, right, library)
        with lab.child(command) as pid:
            for netns, name, address in ((left, LEFT, CLIENT), (right, RIGHT, SERVER)):
                lab.ip(netns, "address", "add", f"{address}/24", "dev", name)
                lab.ip(netns, "link", "set", name, "up", "mtu", str(MTU), "txqueuelen", "1000")
            yield pid
