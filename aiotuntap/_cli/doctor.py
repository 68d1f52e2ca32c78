"""What this machine and this user can do with TUN/TAP, found out by trying, and how to mend what they cannot.

Probing and judging are kept apart: ``probe_*`` and what they call ask the kernel and bring back plain facts (an errno
for each attempt, 0 when it worked), ``check_*`` put facts into words, `render` and `as_json` write the words down.

Nothing is left behind. The interfaces that have to be made are made in a child process, in a network namespace of its
own where the kernel grants one, and both end with the child. Whether an interface may be created *here* takes none:
TUNSETIFF looks at the privilege before it looks at the flags, so asking for neither TUN nor TAP is answered with EPERM
by who may not create one, and with EINVAL by who may.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import importlib.metadata
import json
import os
import re
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _abi
from .._device import QueueFile
from .._types import Offload

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_DEVICE = (10, 200)
_TEMPLATE = "aiotuntap%d"
#: For one child, in seconds. It makes no more than two interfaces, which takes milliseconds, or a second on an emulated
#: and busy machine: this only ends a hang.
_PATIENCE = 10


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that works (True), does not (False), or could not be tried (None)."""

    name: str
    ok: bool | None
    #: What that means for programs.
    detail: str
    #: The command or the thing to do, empty where nothing is to be mended.
    mend: str = ""


# -- facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """The device node, and the driver behind it."""

    #: st_mode; None when there is no node.
    mode: int | None
    #: Major and minor number.
    device: tuple[int, int]
    #: The errno of opening it, 0 when that worked.
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
    """How it went to make a user namespace with a network namespace in it."""

    #: "make", "map" or "use"; empty when all of it worked.
    failed: str
    refused: int
    #: The sysctls that have a say, those that this kernel has.
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package that this one needs or can use."""

    name: str
    #: Empty when it is not installed.
    version: str
    #: Why it cannot be imported, empty when it can.
    broken: str = ""


def probe_node() -> Node:
    mode, device = None, (0, 0)
    with suppress(OSError):
        status = os.stat(_abi.NODE)
        mode, device = status.st_mode, (os.major(status.st_rdev), os.minor(status.st_rdev))
    registered = False
    with suppress(OSError):
        registered = any(line.split()[1:] == ["tun"] for line in Path("/proc/misc").read_text().splitlines())
    refused = errno.ENOENT
    if mode is not None:
        # Anything else at this path may be a pipe or a program's socket, and is not opened.
        node_like = stat.S_ISCHR(mode) and device == _DEVICE
        refused = _attempt(lambda: QueueFile.open().close()) if node_like else errno.ENXIO
    return Node(mode, device, refused, registered)


def probe_privilege() -> int:
    """The errno with which the kernel would refuse to create an interface in this namespace, 0 if it would not."""
    file = QueueFile.open()
    try:
        refused = _attempt(lambda: file.set_ifreq(_abi.TUNSETIFF, "", 0))
    finally:
        file.close()
    return 0 if refused == errno.EINVAL else refused


def probe_user_namespace() -> UserNamespace:
    outcome = _in_child(_enter_user_namespace) or ["make", errno.ETIMEDOUT]
    settings = {}
    for name in _SYSCTLS:
        with suppress(OSError):
            settings[name] = Path("/proc/sys", *name.split(".")).read_text().strip()
    return UserNamespace(outcome[0], outcome[1], settings)


def probe_kernel(privileged: bool) -> dict[str, int]:
    """The errno of each thing tried on an interface, by name; 0 for what works. What could not be tried is missing."""
    return _in_child(lambda: _experiment(privileged)) or {}


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
    """What *function* returns in a process of its own, or None if it did not come to an end."""
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
    """As ``unshare -Urn``, and makes sure that it is good for something. Returns the step that failed, and its errno.

    With AppArmor's restriction a user namespace can be had, but its capabilities cannot be used.
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


#: Every set contains what the kernel demands together with it. USO4 and USO6 come only as a pair.
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
        # Inside a user namespace there is no privilege for bpf(2), whatever this user has outside: load it first.
        program = _load_program(stack, results)
        if privileged:
            # Without CAP_SYS_ADMIN a user namespace serves as well; without that, the interfaces are here for a moment.
            if _attempt(lambda: _unshare(_CLONE_NEWNET)):
                _attempt(lambda: _unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
        elif _enter_user_namespace()[0]:
            return {}
        results |= try_interfaces(stack, program)
    return results


def _load_program(stack: ExitStack, results: dict[str, int]) -> int | None:
    """A minimal steering program as a descriptor; why there is none goes to the results, if the kernel is the reason."""
    with suppress(Exception):  # anything but OSError is not the kernel's doing, and says nothing about the kernel
        bpf = importlib.import_module("aiotuntap.bpf")
        try:
            return int(stack.enter_context(bpf.constant(0)).fileno())
        except OSError as error:
            results["steering"] = error.errno or errno.EIO
    return None


def try_interfaces(stack: ExitStack, program: int | None) -> dict[str, int]:
    """Makes up to two interfaces in the namespace of the caller. They go when *stack* closes."""

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
        # TUNSETIFF takes flags that it does not know.
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


# -- judgements -------------------------------------------------------------------------------------------------------

_MAKE_NODE = "mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200"


def check_node(node: Node) -> Check:
    name = "node"
    if node.mode is None:
        if node.refused != errno.ENOENT:
            return Check(name, False, f"{_abi.NODE} cannot be looked at: {os.strerror(node.refused)}", "run as root")
        return Check(
            name,
            False,
            f"{_abi.NODE} does not exist: no interface can be opened",
            f"{_MAKE_NODE} (in a container: docker run --device {_abi.NODE})",
        )
    looks = f"{stat.filemode(node.mode)} {node.device[0]}:{node.device[1]}"
    if not node.exact:
        return Check(
            name,
            False,
            f"{_abi.NODE} is not character device 10:200, but {looks}",
            f"rm {_abi.NODE} && {_MAKE_NODE}",
        )
    if node.refused == errno.EACCES:
        return Check(
            name,
            False,
            f"this user may not open {_abi.NODE} ({looks})",
            f"chmod 0666 {_abi.NODE} (the kernel still checks who may create an interface), or run as root",
        )
    if node.refused == errno.EPERM:
        return Check(
            name,
            False,
            f"{_abi.NODE} is there ({looks}), and the sandbox or container forbids opening it",
            f"docker run --device {_abi.NODE} (or allow 'c 10:200 rwm' in the device cgroup)",
        )
    if node.refused in (errno.ENODEV, errno.ENXIO):
        return Check(name, False, f"{_abi.NODE} is right ({looks}), and there is no driver behind it", "modprobe tun")
    if node.refused:
        return Check(name, False, f"{_abi.NODE} ({looks}) does not open: {os.strerror(node.refused)}", "run as root")
    return Check(name, True, f"{_abi.NODE} opens ({looks})")


def check_driver(node: Node) -> Check:
    name, mend = "driver", "modprobe tun"
    if node.opens or node.registered:
        return Check(name, True, "the kernel has the TUN/TAP driver")
    if node.exact and node.refused in (errno.ENODEV, errno.ENXIO):
        return Check(name, False, f"the kernel has no TUN/TAP driver loaded ({os.strerror(node.refused)})", mend)
    return Check(name, None, "the TUN/TAP driver is not loaded; opening the node may load it", mend)


def check_create(node: Node, refused: int | None, tried: Mapping[str, int], namespaces: bool) -> Check:
    """*refused* is the answer in this namespace; *tried* what came of creating one elsewhere."""
    name = "create"
    if not node.opens or refused is None:
        return Check(name, None, "whether this user may create an interface is unknown until the node opens")
    if refused == errno.EPERM:
        return Check(
            name,
            False,
            "this user may not create an interface here: CAP_NET_ADMIN is missing",
            f"run as root{', or inside: unshare -Urn' if namespaces else ''}; or have root make a persistent one: "
            "ip tuntap add mode tun name NAME user USER multi_queue",
        )
    failed = refused or tried.get("create", 0)
    if failed:
        return Check(
            name,
            False,
            f"CAP_NET_ADMIN is there, and creating an interface fails: {os.strerror(failed)}",
            "see the end of: dmesg",
        )
    if "create" not in tried:
        return Check(name, True, "this user may create interfaces here (CAP_NET_ADMIN)")
    return Check(name, True, "this user may create interfaces here (CAP_NET_ADMIN); one was made, and removed")


_SYSCTLS = {
    "user.max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=10000"),
    "user.max_net_namespaces": ("0", "sysctl -w user.max_net_namespaces=10000"),
    "kernel.unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
}


def check_user_namespaces(outcome: UserNamespace) -> Check:
    name = "user namespaces"
    if not outcome.failed:
        return Check(name, True, "everything can be tried without privileges, inside: unshare -Urn")
    step = {"make": "cannot be made", "map": "cannot be given users", "use": "give no capabilities"}[outcome.failed]
    mends = [mend for name, (culprit, mend) in _SYSCTLS.items() if outcome.settings.get(name) == culprit]
    if not mends and outcome.refused == errno.ENOSPC:
        mends = [_SYSCTLS["user.max_user_namespaces"][1], _SYSCTLS["user.max_net_namespaces"][1]]
    if not mends and outcome.refused == errno.EINVAL:
        mends = ["use a kernel with CONFIG_USER_NS and CONFIG_NET_NS"]
    return Check(
        name,
        False,
        f"user namespaces {step}: {os.strerror(outcome.refused)}",
        " && ".join(mends) or "run outside of the sandbox or container (docker run --security-opt seccomp=unconfined)",
    )


_UNKNOWN = "unknown, it could not be tried"

#: What each one is good for, and what gives it to who lacks it.
_KERNEL = {
    "multi_queue": ("several queues on one interface", "use Linux 3.8 or later"),
    "vnet_header": ("frames with a virtio_net_hdr of 24 bytes in front", "use Linux 2.6.32 or later"),
    "offload csum": ("checksums left to whoever reads the frame", "use Linux 2.6.27 or later"),
    "offload tso4": ("TCP over IPv4 in frames of up to 64 KiB", "use Linux 2.6.27 or later"),
    "offload tso6": ("TCP over IPv6 in frames of up to 64 KiB", "use Linux 2.6.27 or later"),
    "offload ecn": ("TCP super-frames that carry ECN marks", "use Linux 2.6.27 or later"),
    "offload uso4": ("UDP over IPv4 in frames of up to 64 KiB", "use Linux 6.2 or later"),
    "offload uso6": ("UDP over IPv6 in frames of up to 64 KiB", "use Linux 6.2 or later"),
    "offload udp_tunnel": ("super-frames inside UDP tunnels such as VXLAN", "use Linux 6.17 or later"),
    "offload udp_tunnel_csum": ("the tunnel's outer checksum left to the reader", "use Linux 6.17 or later"),
    "napi": ("written frames pass the kernel's GRO (IFF_NAPI)", "use Linux 4.15 or later"),
    "steering": ("an eBPF program chooses the queue of each frame", "use Linux 4.16 or later with CONFIG_BPF_SYSCALL"),
}
_BPF_PRIVILEGE = "run as root (CAP_BPF), or: sysctl -w kernel.unprivileged_bpf_disabled=0"


def check_kernel(tried: Mapping[str, int]) -> list[Check]:
    return [_check_feature(name, tried.get(name), *words) for name, words in _KERNEL.items()]


def _check_feature(name: str, refused: int | None, meaning: str, mend: str) -> Check:
    if refused is None:
        return Check(name, None, f"{meaning}: {_UNKNOWN}")
    if refused == 0:
        return Check(name, True, meaning)
    if name == "steering" and refused in (errno.EPERM, errno.EACCES):
        return Check(name, False, f"{meaning}: this user may load no eBPF programs", _BPF_PRIVILEGE)
    return Check(name, False, f"{meaning}: the kernel refuses it ({os.strerror(refused)})", mend)


#: What each package is for, the first version that will do, the first that will not, and what installs it.
_PACKAGES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], str]] = {
    "pyroute2": ("configuring interfaces", (0, 9, 5), (0, 10), "pip install 'pyroute2>=0.9.5,<0.10'"),
    "uvloop": ("the faster event loop", (0, 21), (), "pip install 'aiotuntap[uvloop]'"),
    "rich": ("live views on the command line", (13,), (), "pip install 'aiotuntap[cli]'"),
}


def check_package(package: Package) -> Check:
    purpose, first, beyond, mend = _PACKAGES[package.name]
    name, version = package.name, package.version
    if not version:
        return Check(name, False, f"{purpose}: not installed", mend)
    numbers = tuple(int(each) for each in re.findall(r"\d+", version.partition("+")[0])[:3])
    if numbers < first or (beyond and numbers >= beyond):
        return Check(name, False, f"{purpose}: version {version} is not one that fits", mend)
    if package.broken:
        return Check(name, False, f"{purpose}: version {version} cannot be imported ({package.broken})", mend)
    return Check(name, True, f"{purpose} (version {version})")


def examine() -> list[Check]:
    """Everything, in less than two seconds. Forks: for a process without threads."""
    node = probe_node()
    namespace = probe_user_namespace()
    refused = probe_privilege() if node.opens else None
    privileged = refused == 0
    tried = probe_kernel(privileged) if node.opens and (privileged or not namespace.failed) else {}
    return [
        check_node(node),
        check_driver(node),
        check_create(node, refused, tried, not namespace.failed),
        check_user_namespaces(namespace),
        *check_kernel(tried),
        *(check_package(probe_package(name)) for name in _PACKAGES),
    ]


def missing_for_demo(checks: Iterable[Check]) -> list[str]:
    """Names of the checks that keep the demo from running. Either of two privileges will do for it."""
    works = {check.name: check.ok is True for check in checks}
    missing = [name for name in ("node", "pyroute2") if not works.get(name)]
    if not (works.get("create") or works.get("user namespaces")):
        missing += ["create", "user namespaces"]
    return missing


# -- rendering --------------------------------------------------------------------------------------------------------

_MARKS = {True: "ok", False: "no", None: "?"}


def render(checks: Sequence[Check]) -> str:
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        mend = f"; mend: {check.mend}" if check.mend else ""
        lines.append(f"{_MARKS[check.ok]:<2}  {check.name:<{width}}  {check.detail}{mend}")
    missing = missing_for_demo(checks)
    lines.append("")
    lines.append(f"The demo cannot run, for want of: {', '.join(missing)}." if missing else "The demo can run.")
    return "\n".join(lines) + "\n"


def as_json(checks: Iterable[Check]) -> str:
    rows = [{"check": each.name, "ok": each.ok, "meaning": each.detail, "mend": each.mend} for each in checks]
    return json.dumps(rows, indent=2) + "\n"
