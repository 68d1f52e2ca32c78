"""The facts for ``doctor``: it tries what this machine and this user can do with TUN/TAP.

A fact is an errno for each attempt (0 if it worked), a version, or a name. `checks` explains them.

Nothing is left behind. Interfaces are created in a child process, in a new network namespace if the kernel allows one.
Both are removed when the child ends. To find out whether an interface may be created in *this* namespace, none is
created: TUNSETIFF checks the privilege before the flags. With flags for neither TUN nor TAP, it fails with EPERM if the
privilege is missing, and otherwise with EINVAL.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _abi, _engine
from .._device import QueueFile
from .._types import Offload

#: Python packages that aiotuntap needs or can use.
PACKAGES = ("pyroute2", "uvloop")

#: Kernel settings that can forbid user namespaces.
SYSCTLS = (
    "user.max_user_namespaces",
    "user.max_net_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_DEVICE = (10, 200)
_TEMPLATE = "aiotuntap%d"
#: Seconds until a child is killed. It creates up to two interfaces, which takes milliseconds, or a second on an emulated
#: and busy machine: only a hang takes longer.
_PATIENCE = 10


@dataclass(frozen=True, slots=True)
class Node:
    """The device node and its driver."""

    #: st_mode; None if the node does not exist.
    mode: int | None
    #: Major and minor number.
    device: tuple[int, int]
    #: The errno of stat() or open(), 0 if both worked.
    refused: int
    #: Whether the kernel lists the driver among its miscellaneous devices.
    registered: bool

    @property
    def exact(self) -> bool:
        return self.mode is not None and stat.S_ISCHR(self.mode) and self.device == _DEVICE

    @property
    def opens(self) -> bool:
        return self.exact and not self.refused


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """The result of creating a user namespace with a network namespace in it."""

    #: The step that failed: "make", "map" or "use"; empty if all worked.
    failed: str
    refused: int
    #: The values of the `SYSCTLS` that this kernel has.
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package that aiotuntap needs or can use."""

    name: str
    #: Empty if it is not installed.
    version: str
    #: Why it cannot be imported; empty if it can.
    broken: str = ""


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """Which implementation of the packet path is in use, and the state of the C extension."""

    #: "C" or "Python".
    name: str
    #: Whether AIOTUNTAP_EXTENSION=0 disables the extension.
    left_out: bool = False
    #: Whether the file of the extension exists.
    installed: bool = True
    #: Why it cannot be imported; empty if it can, or if that was not tried.
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts."""

    node: Node
    #: The errno of creating an interface in this namespace; 0 if it is allowed; None if the node cannot be opened.
    create: int | None
    namespace: UserNamespace
    #: The errno of each feature that was tried, by name; 0 if it works. Features that could not be tried are missing.
    kernel: Mapping[str, int]
    engine: RunningEngine
    packages: Sequence[Package]


def probe() -> Facts:
    """Collects all facts, in less than two seconds. It forks: call it in a process without threads."""
    node = probe_node()
    namespace = probe_user_namespace()
    create = probe_privilege() if node.opens else None
    privileged = create == 0
    kernel = probe_kernel(privileged) if node.opens and (privileged or not namespace.failed) else {}
    return Facts(node, create, namespace, kernel, probe_engine(), [probe_package(name) for name in PACKAGES])


def probe_node() -> Node:
    mode, device, refused = None, (0, 0), 0
    try:
        status = os.stat(_abi.NODE)
        mode, device = status.st_mode, (os.major(status.st_rdev), os.minor(status.st_rdev))
    except OSError as error:
        refused = error.errno or errno.EIO
    registered = False
    with suppress(OSError):
        registered = any(line.split()[1:] == ["tun"] for line in Path("/proc/misc").read_text().splitlines())
    if mode is not None:
        # Anything else at this path may be a pipe or a program's socket, and is not opened.
        node_like = stat.S_ISCHR(mode) and device == _DEVICE
        refused = _attempt(lambda: QueueFile.open().close()) if node_like else errno.ENXIO
    return Node(mode, device, refused, registered)


def probe_privilege() -> int:
    """The errno of creating an interface in this namespace; 0 if it is allowed. No interface is created."""
    file = QueueFile.open()
    try:
        refused = _attempt(lambda: file.set_ifreq(_abi.TUNSETIFF, "", 0))
    finally:
        file.close()
    return 0 if refused == errno.EINVAL else refused


def probe_user_namespace() -> UserNamespace:
    outcome = _in_child(_enter_user_namespace) or ["make", errno.ETIMEDOUT]
    settings = {}
    for name in SYSCTLS:
        with suppress(OSError):
            settings[name] = Path("/proc/sys", *name.split(".")).read_text().strip()
    return UserNamespace(outcome[0], outcome[1], settings)


def probe_kernel(privileged: bool) -> dict[str, int]:
    """The errno of each feature, by name; 0 if it works. Features that could not be tried are missing."""
    return _in_child(lambda: _experiment(privileged)) or {}


def probe_engine() -> RunningEngine:
    return RunningEngine(
        _engine.engine.name,
        left_out=_engine.WANTED == "0",
        installed=importlib.util.find_spec(".._native", __package__) is not None,
        broken=_engine.MISSING,
    )


def probe_package(name: str) -> Package:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Package(name, "")
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        return Package(name, version, f"{type(error).__name__}: {error}")
    return Package(name, version)


def _attempt(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _in_child(function: Callable[[], Any]) -> Any:
    """Runs *function* in a child process. Returns its result, or None if it failed or took too long."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_PATIENCE)
            os.write(writer, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        with open(reader, "rb") as answer:
            text = answer.read()
    finally:
        os.waitpid(pid, 0)
    return json.loads(text) if text else None


def _unshare(flags: int) -> None:
    if hasattr(os, "unshare"):
        os.unshare(flags)
        return
    import ctypes  # Python 3.11 has no os.unshare

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _enter_user_namespace() -> tuple[str, int]:
    """Does what ``unshare -Urn`` does, and tries a capability. Returns the step that failed, and its errno.

    AppArmor can allow user namespaces, but forbid their capabilities.
    """
    uid, gid = os.geteuid(), os.getegid()

    def write_maps() -> None:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")

    steps: list[tuple[str, Callable[[], object]]] = [
        ("make", lambda: _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)),
        ("map", write_maps),
        ("use", _set_loopback_up),
    ]
    for step, call in steps:
        if refused := _attempt(call):
            return step, refused
    return "", 0


def _set_loopback_up() -> None:
    siocsifflags, iff_up = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, siocsifflags, struct.pack("16sh22x", b"lo", iff_up))


#: Each set has the flags that the kernel requires together. USO4 and USO6 require each other.
_OFFLOADS = {
    "csum": Offload.CSUM,
    "tso4": Offload.CSUM | Offload.TSO4,
    "tso6": Offload.CSUM | Offload.TSO6,
    "ecn": Offload.CSUM | Offload.TSO4 | Offload.ECN,
    "uso4": Offload.CSUM | Offload.USO4 | Offload.USO6,
    "uso6": Offload.CSUM | Offload.USO4 | Offload.USO6,
    "udp_tunnel": Offload.CSUM | Offload.TSO4 | Offload.UDP_TUNNEL,
    "udp_tunnel_csum": Offload.CSUM | Offload.TSO4 | Offload.UDP_TUNNEL | Offload.UDP_TUNNEL_CSUM,
}
_TUNNEL_HEADER_SIZE = 24


def _experiment(privileged: bool) -> dict[str, int]:
    results: dict[str, int] = {}
    with ExitStack() as stack:
        # Load the program first: inside a user namespace, bpf(2) is never allowed.
        program = _load_program(stack, results)
        if privileged:
            # A network namespace requires CAP_SYS_ADMIN or a user namespace. With neither, the interfaces are created
            # in this namespace, for a moment.
            if _attempt(lambda: _unshare(_CLONE_NEWNET)):
                _attempt(lambda: _unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
        elif _enter_user_namespace()[0]:
            return {}
        results |= try_interfaces(stack, program)
    return results


def _load_program(stack: ExitStack, results: dict[str, int]) -> int | None:
    """The descriptor of a minimal steering program, or None. If the kernel refuses it, the errno is in *results*."""
    with suppress(Exception):  # only an OSError comes from the kernel
        from .. import bpf

        try:
            return stack.enter_context(bpf.constant(0)).fileno()
        except OSError as error:
            results["steering"] = error.errno or errno.EIO
    return None


def try_interfaces(stack: ExitStack, program: int | None) -> dict[str, int]:
    """Creates up to two interfaces in the namespace of the caller. They are removed when *stack* closes."""

    def open_file() -> QueueFile:
        file = QueueFile.open()
        stack.callback(file.close)
        return file

    results: dict[str, int] = {}
    first = open_file()
    buffer = bytearray(4)
    first.ioctl(_abi.TUNGETFEATURES, buffer)
    features = int(struct.unpack("@I", buffer)[0])
    plain = _abi.IFF_TAP | _abi.IFF_NO_PI | _abi.IFF_NO_CARRIER
    flags = plain | features & (_abi.IFF_MULTI_QUEUE | _abi.IFF_VNET_HDR)

    results["create"] = _attempt(lambda: first.set_ifreq(_abi.TUNSETIFF, _TEMPLATE, flags))
    if results["create"]:
        return results

    def second_queue() -> None:
        file = open_file()
        name = first.get_ifreq().name
        file.set_ifreq(_abi.TUNSETIFF, name, flags)
        if file.get_ifreq().name != name:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

    def napi() -> None:
        file = open_file()
        file.set_ifreq(_abi.TUNSETIFF, _TEMPLATE, plain | _abi.IFF_NAPI)
        # TUNSETIFF ignores flags that it does not know.
        if not file.get_ifreq().flags & _abi.IFF_NAPI:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def attempt_with(feature: int, call: Callable[[], object]) -> int:
        return _attempt(call) if features & feature else errno.EOPNOTSUPP

    results["multi_queue"] = attempt_with(_abi.IFF_MULTI_QUEUE, second_queue)
    results["vnet_header"] = attempt_with(
        _abi.IFF_VNET_HDR, lambda: first.set_int(_abi.TUNSETVNETHDRSZ, _TUNNEL_HEADER_SIZE)
    )
    for name, offload in _OFFLOADS.items():
        results[f"offload {name}"] = results["vnet_header"] or _attempt(
            lambda value=offload.value: first.set_value(_abi.TUNSETOFFLOAD, value)  # type: ignore[misc]
        )
    results["napi"] = attempt_with(_abi.IFF_NAPI, napi)
    if program is not None:
        results["steering"] = _attempt(lambda: first.set_int(_abi.TUNSETSTEERINGEBPF, program))
    return results
