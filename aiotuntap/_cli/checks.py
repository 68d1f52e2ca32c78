"""The checks of ``doctor``: what each fact means for a program, and how to fix what does not work."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .. import _abi, _engine
from .._device import MAKE_NODE, NODE_FIXES
from .facts import Facts, Node, Package, RunningEngine, UserNamespace


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that works (True), does not (False), or could not be tried (None)."""

    name: str
    ok: bool | None
    #: What works, or what is wrong.
    detail: str
    #: What to do, often a command. Empty if nothing has to be fixed.
    fix: str = ""
    #: For scripts: the name of the kernel's errno, the version of the package, or the name of the engine.
    value: str | None = None


def judge(facts: Facts) -> list[Check]:
    node, namespaces = facts.node, not facts.namespace.failed
    return [
        check_node(node),
        check_driver(node),
        check_create(node, facts.create, facts.kernel, namespaces),
        check_user_namespaces(facts.namespace),
        *check_kernel(facts.kernel),
        check_engine(facts.engine),
        *(check_package(package) for package in facts.packages),
    ]


def missing_for_demo(checks: Iterable[Check]) -> list[str]:
    """The names of the checks that keep the demo from running. Of two privileges, it needs only one."""
    works = {check.name: check.ok is True for check in checks}
    missing = [name for name in ("node", "pyroute2") if not works.get(name)]
    if not (works.get("create") or works.get("user namespaces")):
        missing.append("create or user namespaces")
    return missing


def _refused(name: str, number: int, detail: str, fix: str) -> Check:
    return Check(name, False, detail, fix, errno.errorcode.get(number))


def check_node(node: Node) -> Check:
    looks = "" if node.mode is None else f"{stat.filemode(node.mode)} {node.device[0]}:{node.device[1]}"
    if node.opens:
        return Check("node", True, f"{_abi.NODE} opens ({looks})")
    return _refused("node", node.refused, *_problem_of_node(node, looks))


def _problem_of_node(node: Node, looks: str) -> tuple[str, str]:
    """What is wrong, and how to fix it."""
    path, refused = _abi.NODE, node.refused
    if node.mode is None:
        if refused == errno.EACCES:
            return f"this user may not enter the directory of {path}", "chmod 0755 /dev/net, or run as root"
        return f"{path} does not exist: no interface can be opened", NODE_FIXES[errno.ENOENT]
    if not node.exact:
        return f"{path} must be character device 10:200, not {looks}", f"rm {path} && {MAKE_NODE}"
    if refused == errno.EACCES:
        return f"this user may not open {path} ({looks})", NODE_FIXES[refused]
    if refused == errno.EPERM:
        return f"{path} exists ({looks}), but the sandbox or container does not allow opening it", NODE_FIXES[refused]
    if refused in (errno.ENODEV, errno.ENXIO):
        return f"{path} is correct ({looks}), but the TUN/TAP driver is not loaded", NODE_FIXES[refused]
    return f"{path} ({looks}) cannot be opened: {os.strerror(refused)}", "run as root"


def check_driver(node: Node) -> Check:
    name, fix = "driver", NODE_FIXES[errno.ENODEV]
    if node.opens or node.registered:
        return Check(name, True, "the kernel has the TUN/TAP driver")
    if node.exact and node.refused in (errno.ENODEV, errno.ENXIO):
        detail = f"the TUN/TAP driver is not loaded ({os.strerror(node.refused)})"
        return _refused(name, node.refused, detail, fix)
    return Check(name, None, "the TUN/TAP driver is not loaded yet; opening the node may load it", fix)


def check_create(node: Node, refused: int | None, tried: Mapping[str, int], namespaces: bool) -> Check:
    """*refused* is the errno of creating an interface in this namespace. *tried* has the results in another one."""
    name = "create"
    if not node.opens or refused is None:
        return Check(name, None, "not tried, because the node cannot be opened: see the check 'node'")
    if refused == errno.EPERM:
        return _refused(
            name,
            refused,
            "this user may not create an interface here: CAP_NET_ADMIN is missing",
            f"run as root{', or inside: unshare -Urn' if namespaces else ''}; or as root create a persistent interface: "
            "ip tuntap add mode tun name NAME user USER multi_queue",
        )
    failed = refused or tried.get("create", 0)
    if failed:
        return _refused(
            name,
            failed,
            f"this user has CAP_NET_ADMIN, but creating an interface fails: {os.strerror(failed)}",
            "look for the reason at the end of: dmesg",
        )
    if "create" not in tried:
        return Check(name, True, "this user may create interfaces here (CAP_NET_ADMIN)")
    return Check(name, True, "this user may create interfaces here (CAP_NET_ADMIN); one was created and removed")


#: For each setting the value that forbids user namespaces, and the command that allows them.
_SYSCTLS = {
    "user.max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=10000"),
    "user.max_net_namespaces": ("0", "sysctl -w user.max_net_namespaces=10000"),
    "kernel.unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
}


def check_user_namespaces(outcome: UserNamespace) -> Check:
    name = "user namespaces"
    if not outcome.failed:
        return Check(name, True, "programs can create interfaces without root, inside: unshare -Urn")
    step = {"make": "cannot be created", "map": "cannot map users", "use": "give no capabilities"}[outcome.failed]
    fixes = [fix for name, (culprit, fix) in _SYSCTLS.items() if outcome.settings.get(name) == culprit]
    if not fixes and outcome.refused == errno.ENOSPC:
        fixes = [_SYSCTLS["user.max_user_namespaces"][1], _SYSCTLS["user.max_net_namespaces"][1]]
    if not fixes and outcome.refused == errno.EINVAL:
        fixes = ["use a kernel with CONFIG_USER_NS and CONFIG_NET_NS"]
    return _refused(
        name,
        outcome.refused,
        f"user namespaces {step}: {os.strerror(outcome.refused)}",
        " && ".join(fixes)
        or "run outside of the sandbox or container (or: docker run --security-opt seccomp=unconfined)",
    )


_UNKNOWN = "not tried: it needs an interface, and none could be created"

#: What each feature is, and how to get it.
_KERNEL = {
    "multi_queue": ("several queues on one interface", "use Linux 3.8 or later"),
    "vnet_header": ("frames begin with a virtio_net_hdr, of up to 24 bytes", "use Linux 2.6.32 or later"),
    "offload csum": ("the reader completes the checksums of frames", "use Linux 2.6.27 or later"),
    "offload tso4": ("TCP super-frames over IPv4, up to 64 KiB", "use Linux 2.6.27 or later"),
    "offload tso6": ("TCP super-frames over IPv6, up to 64 KiB", "use Linux 2.6.27 or later"),
    "offload ecn": ("TCP super-frames with ECN", "use Linux 2.6.27 or later"),
    "offload uso4": ("UDP super-frames over IPv4, up to 64 KiB", "use Linux 6.2 or later"),
    "offload uso6": ("UDP super-frames over IPv6, up to 64 KiB", "use Linux 6.2 or later"),
    "offload udp_tunnel": ("super-frames inside UDP tunnels such as VXLAN", "use Linux 6.17 or later"),
    "offload udp_tunnel_csum": ("the reader completes the outer checksum of UDP tunnels", "use Linux 6.17 or later"),
    "napi": ("the kernel applies GRO to written frames (IFF_NAPI)", "use Linux 4.15 or later"),
    "steering": ("an eBPF program chooses the queue of each frame", "use Linux 4.16 or later with CONFIG_BPF_SYSCALL"),
}
_BPF_PRIVILEGE = "run as root (CAP_BPF), or: sysctl -w kernel.unprivileged_bpf_disabled=0"


def check_kernel(tried: Mapping[str, int]) -> list[Check]:
    return [_check_feature(name, tried.get(name), *words) for name, words in _KERNEL.items()]


def _check_feature(name: str, refused: int | None, meaning: str, fix: str) -> Check:
    if refused is None:
        return Check(name, None, f"{meaning}: {_UNKNOWN}")
    if refused == 0:
        return Check(name, True, meaning)
    if name == "steering" and refused in (errno.EPERM, errno.EACCES):
        return _refused(name, refused, f"{meaning}: this user may not load eBPF programs", _BPF_PRIVILEGE)
    return _refused(name, refused, f"{meaning}: the kernel refuses it ({os.strerror(refused)})", fix)


def check_engine(engine: RunningEngine) -> Check:
    if engine.name == "C":
        return Check("engine", True, "C: the extension is installed and runs", value=engine.name)
    fixes = []
    if engine.left_out:
        reason = f"{_engine.VARIABLE}=0 disables the C extension"
        fixes.append(f"unset {_engine.VARIABLE}")
    elif engine.installed:
        reason = f"the C extension is installed, but cannot be imported ({engine.broken})"
    else:
        reason = "the C extension was not compiled when aiotuntap was installed"
    if not (engine.left_out and engine.installed):
        fixes.append(_engine.INSTALL)
    detail = f"Python, because {reason}: {_engine.COST}"
    return Check("engine", False, detail, "; then ".join(fixes), engine.name)


#: What each package is for, the first supported version, the first version after those, and how to install it.
_PACKAGES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], str]] = {
    "pyroute2": ("configuring interfaces", (0, 9, 5), (0, 10), "pip install 'pyroute2>=0.9.5,<0.10'"),
    "uvloop": ("the faster event loop", (0, 21), (), "pip install 'aiotuntap[uvloop]'"),
}


def check_package(package: Package) -> Check:
    purpose, first, beyond, fix = _PACKAGES[package.name]
    name, version = package.name, package.version
    if not version:
        return Check(name, False, f"{purpose}: not installed", fix)
    numbers = tuple(int(each) for each in re.findall(r"\d+", version.partition("+")[0])[:3])
    if numbers < first or (beyond and numbers >= beyond):
        return Check(name, False, f"{purpose}: version {version} is not supported", fix, version)
    if package.broken:
        return Check(name, False, f"{purpose}: version {version} cannot be imported ({package.broken})", fix, version)
    return Check(name, True, f"{purpose} (version {version})", value=version)
