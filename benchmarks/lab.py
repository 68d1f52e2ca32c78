"""Namespaces, interfaces and child processes for one run, and their removal whatever happens."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # on x86, ARM and RISC-V
_IFF_MODE = {"tun": 0x0001, "tap": 0x0002}
_IFF_NO_PI, _IFF_VNET_HDR = 0x1000, 0x4000
_TUN_F_ALL = 0x6F  # checksums, TSO for IPv4 and IPv6, with ECN, and USO for both

#: Seconds that a child may take to be ready, or to end.
_PATIENCE = 10

#: Children import the package from where this one was started, installed or not.
_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}


def enter(netns: str) -> None:
    """Moves the calling thread into a named namespace, for good."""
    fd = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", fd, _CLONE_NEWNET)
    finally:
        os.close(fd)


def socket_in(netns: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of a named namespace; the calling thread stays where it is."""

    def make() -> socket.socket:
        enter(netns)
        return socket.socket(family, kind, protocol)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def enter_private_namespace() -> None:
    """Moves this process into a namespace of its own, where the kernel sends nothing by itself."""
    _call("unshare", _CLONE_NEWNET)
    for scope in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        if path.exists():
            path.write_text("1")


def _call(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # Python 3.11 has neither os.setns nor os.unshare
    if getattr(libc, function)(*arguments) != 0:
        raise SystemExit(f"{function}: {os.strerror(ctypes.get_errno())}; run as root")


def open_tun(name: str, netns: str, mode: str = "tun", super_frames: bool = False) -> int:
    """A non-blocking descriptor of a new interface; leaves the calling thread in *netns*."""
    enter(netns)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = _IFF_MODE[mode] | _IFF_NO_PI | (_IFF_VNET_HDR if super_frames else 0)
    fcntl.ioctl(fd, _TUNSETIFF, bytearray(struct.pack("16sH22x", name.encode(), flags)))
    if super_frames:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_ALL)
    return fd


def ip(netns: str, *arguments: str) -> str:
    """Output of ``ip -n NETNS …``."""
    return subprocess.run(["ip", "-n", netns, *arguments], check=True, capture_output=True, text=True).stdout


def written_frames(netns: str, name: str) -> int:
    """Frames that were written to the interface; for the kernel these are received ones."""
    (link,) = json.loads(ip(netns, "-j", "-s", "link", "show", "dev", name))
    return int(link["stats64"]["rx"]["packets"])


@contextmanager
def namespaces(count: int) -> Iterator[list[str]]:
    """Names of new namespaces without IPv6, so that nothing is sent in them but what is measured."""
    names = [f"aiotuntap-bench-{os.getpid()}-{number}" for number in range(count)]
    made: list[str] = []
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.append(name)
            switch = "for each in all default; do echo 1 > /proc/sys/net/ipv6/conf/$each/disable_ipv6; done"
            subprocess.run(["ip", "netns", "exec", name, "sh", "-c", switch], check=False, stderr=subprocess.DEVNULL)
            ip(name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def enable_ipv6(*netns: str) -> None:
    """On the interfaces that are made from now on."""
    switch = "for each in all default; do echo 0 > /proc/sys/net/ipv6/conf/$each/disable_ipv6; done"
    for each in netns:
        subprocess.run(["ip", "netns", "exec", each, "sh", "-c", switch], check=True)


@contextmanager
def joined(addresses: Sequence[str]) -> Iterator[list[str]]:
    """Two namespaces that a veth joins, with an address at each of its ends."""
    with namespaces(2) as spaces:
        ip(spaces[0], "link", "add", "u0", "type", "veth", "peer", "name", "u0", "netns", spaces[1])
        for netns, address in zip(spaces, addresses, strict=True):
            ip(netns, "address", "add", f"{address}/24", "dev", "u0")
            ip(netns, "link", "set", "u0", "up")
        yield spaces


@contextmanager
def child(command: Sequence[str], ready: str | None = "ready", quiet: bool = False, lines: int = 1) -> Iterator[int]:
    """Runs a program until the block ends, from when it printed *lines* that start with *ready*. Gives its pid."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # nothing comes, and no end either: there are programs that end with their input
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
        text=True,
        env=_ENVIRONMENT,
        start_new_session=True,  # Ctrl-C is for this process, which ends its children in order
    )
    try:
        assert process.stdout is not None
        if ready is not None:
            for _ in range(lines):
                if not any(line.startswith(ready) for line in process.stdout):
                    raise SystemExit(f"{' '.join(command)}: ended before it was ready")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package."""
    return [sys.executable, "-m", f"{__package__}.{name}", *arguments]


def in_namespace(netns: str, command: Sequence[str]) -> list[str]:
    """The command that runs another one in *netns*; its pid is that of the other one."""
    return ["ip", "netns", "exec", netns, *command]


def cpu_time(pid: int) -> int:
    """Nanoseconds of CPU that a process has used so far, all threads and system time included."""
    return time.clock_gettime_ns(~pid << 3 | 2)  # as clock_getcpuclockid(3) builds the number


def end_on_sigterm() -> None:
    """Makes SIGTERM end this program as Ctrl-C does: with its namespaces and children cleaned up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
