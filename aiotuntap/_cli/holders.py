"""Finds the processes that hold the queues of a namespace's interfaces, as far as this user may see them.

``/proc/PID/fdinfo`` has the name of the interface, which is unique only within its namespace. A duplicate of the
descriptor tells the namespace, and whether the queue is enabled. Duplicating requires the privilege to trace the other
process; the duplicate is closed at once. Without the privilege, the interface is assumed to be in the namespace of the
process.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .. import _abi
from .._device import QueueFile
from .._netns import Identity, identity, identity_of, open_namespace

_PIDFD_GETFD = 438  # the same number on all architectures


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with the descriptor of a queue."""

    interface: str
    pid: int
    command: str
    fd: int
    #: None if this user may not see it.
    enabled: bool | None


def namespace_identity(netns: str | None) -> Identity:
    """The identity of a namespace given by name or path. None means the namespace of the calling thread.

    Raises:
        SetupError: The namespace does not exist, or this user may not open it.
    """
    if netns is None:
        return identity()
    fd = open_namespace(netns)
    try:
        return identity_of(os.fstat(fd))
    finally:
        os.close(fd)


def holders(namespace: Identity) -> list[Holder]:
    """All holders that can be found, sorted by interface, process and descriptor."""
    found: list[Holder] = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):  # the process has ended, or belongs to another user
                found += _held_by(int(entry), namespace)
    return sorted(found, key=lambda each: (each.interface, each.pid, each.fd))


def _held_by(pid: int, namespace: Identity) -> Iterator[Holder]:
    folder = Path("/proc", str(pid))
    for entry in os.listdir(folder / "fd"):
        with suppress(OSError):
            if os.readlink(folder / "fd" / entry) != _abi.NODE:
                continue
            name = _interface_of(_read(folder / "fdinfo" / entry))
            where, enabled = _ask(pid, int(entry))
            if name and (where or _own_namespace(folder)) == namespace:
                yield Holder(name, pid, _read(folder / "comm").removesuffix("\n"), int(entry), enabled)


def _read(file: Path) -> str:
    """Names of interfaces and of programs are bytes, and any user may choose some."""
    return os.fsdecode(file.read_bytes())


def _interface_of(fdinfo: str) -> str:
    """The name of the interface; empty for a descriptor that is not attached to one."""
    for line in fdinfo.splitlines():
        key, _, value = line.partition("\t")
        if key == "iff:":
            return value
    return ""


def _own_namespace(folder: Path) -> Identity:
    return identity_of(os.stat(folder / "ns" / "net"))


def _ask(pid: int, fd: int) -> tuple[Identity | None, bool | None]:
    """The namespace of the interface of another process's descriptor, and whether the queue is enabled."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None, None
    try:
        duplicate = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    if duplicate < 0:
        return None, None
    file = QueueFile(duplicate)
    where, enabled = None, None
    try:
        enabled = not file.get_ifreq().flags & _abi.IFF_DETACH_QUEUE
        netns = file.open_netns()
        if netns is not None:
            where = identity_of(os.fstat(netns))
            os.close(netns)
    except OSError:
        pass
    finally:
        file.close()
    return where, enabled
