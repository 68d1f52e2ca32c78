"""Network namespaces, entered by a thread that ends afterwards. See network_namespaces(7) and setns(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ._errors import SetupError, cannot

_CLONE_NEWNET = 0x40000000
_NAMED = Path("/run/netns")
_OWN = "/proc/thread-self/ns/net"

#: A name as in ``ip netns``, a path such as ``/proc/PID/ns/net``, or an open descriptor of a namespace.
Namespace = str | int | None

#: Device and inode: what tells one namespace from another.
Identity = tuple[int, int]


def parse_namespace(netns: str | os.PathLike[str]) -> str:
    """Checks what a user gave as a namespace."""
    text = os.fspath(netns)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"netns {netns!r}: a name as in 'ip netns', or a path such as /proc/PID/ns/net")
    return text


def open_namespace(netns: str) -> int:
    """A descriptor of a namespace, by name or path.

    Raises:
        SetupError: There is none, or no right to open it.
    """
    path = Path(netns) if "/" in netns else _NAMED / netns
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "give the path of one that exists" if "/" in netns else f"'ip netns add {netns}' makes it"
        raise cannot(f"open network namespace {netns!r}", error, hint) from None


def identity() -> Identity:
    """That of the calling thread's namespace."""
    status = os.stat(_OWN)
    return status.st_dev, status.st_ino


def enter(netns: Namespace) -> None:
    """Moves the calling thread, and only it, into *netns*. None, or the namespace it is in already, does nothing.

    Call it on a thread of its own (`run_in_thread`): there is no way back but ending.

    Raises:
        SetupError: There is no such namespace, or no privilege to enter it.
    """
    if netns is None:
        return
    if isinstance(netns, int):
        _enter(netns, "of the interface")
        return
    fd = open_namespace(netns)
    try:
        _enter(fd, repr(netns))
    finally:
        os.close(fd)


def _enter(fd: int, label: str) -> None:
    if os.path.samestat(os.fstat(fd), os.stat(_OWN)):
        return  # setns(2) wants CAP_SYS_ADMIN even for the namespace one is in
    try:
        _setns(fd)
    except OSError as error:
        fix = (
            "it is not a network namespace"
            if error.errno == errno.EINVAL
            else "it takes CAP_SYS_ADMIN in the user namespace that owns it, so run as root, or start the program inside"
            " with 'ip netns exec'"
        )
        raise SetupError(error.errno, f"cannot enter network namespace {label}: {error.strerror}; {fix}") from error


def _setns(fd: int) -> None:
    if hasattr(os, "setns"):
        os.setns(fd, _CLONE_NEWNET)
        return
    import ctypes  # Python 3.11 has no os.setns

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
