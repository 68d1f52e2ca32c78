"""Network namespaces: a thread enters one, and ends there. See network_namespaces(7) and setns(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ._errors import cannot

_CLONE_NEWNET = 0x40000000
_NAMED = Path("/run/netns")
_OWN = "/proc/thread-self/ns/net"

#: A name as in ``ip netns``, a path such as ``/proc/PID/ns/net``, or an open descriptor of a namespace.
Namespace = str | int | None

#: Device and inode number, which are different for each namespace.
Identity = tuple[int, int]


def parse_namespace(netns: str | os.PathLike[str]) -> str:
    """Checks the name or path of a namespace.

    Raises:
        ValueError, TypeError: It is neither.
    """
    text = os.fspath(netns) if isinstance(netns, os.PathLike) else netns
    if not isinstance(text, str) or not text or "\0" in text:
        wrong = ValueError if isinstance(text, str) else TypeError
        raise wrong(f"netns must be a name as in 'ip netns', or a path such as /proc/PID/ns/net, not {netns!r}")
    return text


def open_namespace(netns: str) -> int:
    """Opens a namespace, by name or path, and returns the descriptor.

    Raises:
        SetupError: It does not exist, or this user may not open it.
    """
    path = Path(netns) if "/" in netns else _NAMED / netns
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise cannot(f"open network namespace {netns!r}", error, _how_to_get(netns, error)) from None


def _how_to_get(netns: str, error: OSError) -> str:
    if error.errno == errno.EACCES:
        return "the namespace of another user's process takes CAP_SYS_PTRACE: run as root"
    if error.errno != errno.ENOENT:
        return ""
    return "check the path" if "/" in netns else f"'ip netns add {netns}' makes it"


def identity() -> Identity:
    """The identity of the calling thread's namespace.

    Raises:
        SetupError: /proc is not mounted.
    """
    try:
        return identity_of(os.stat(_OWN))
    except OSError as error:
        action = "look at the network namespace of this thread"
        raise cannot(action, error, "it takes /proc: 'mount -t proc proc /proc'") from error


def identity_of(status: os.stat_result) -> Identity:
    """The identity of a namespace by what fstat(2) tells of its descriptor."""
    return status.st_dev, status.st_ino


def enter(netns: Namespace) -> None:
    """Moves the calling thread, and no other, into *netns*. Does nothing for None, or if the thread is there already.

    Call it on a new thread (`run_in_thread`), because the thread cannot always go back.

    Raises:
        SetupError: The namespace does not exist, or this user may not enter it.
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
    if identity_of(os.fstat(fd)) == identity():
        return  # setns(2) takes CAP_SYS_ADMIN even for the namespace that the thread is in
    try:
        _setns(fd)
    except OSError as error:
        fix = (
            "this is not a network namespace"
            if error.errno == errno.EINVAL
            else "entering it takes CAP_SYS_ADMIN in the user namespace that owns it: run as root, or start the program"
            " inside the namespace with 'ip netns exec'"
        )
        raise cannot(f"enter network namespace {label}", error, fix) from error


def _setns(fd: int) -> None:
    if hasattr(os, "setns"):
        os.setns(fd, _CLONE_NEWNET)
        return
    import ctypes  # Python 3.11 has no os.setns

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
