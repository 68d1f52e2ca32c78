"""``doctor`` with made-up facts. ``tests/kernel/test_cli.py`` runs it on this machine."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiotuntap import _abi
from aiotuntap._cli import checks as _checks
from aiotuntap._cli import facts as _facts
from aiotuntap._cli import listing as _listing
from aiotuntap._cli import main as _cli
from aiotuntap._cli import report as _report
from aiotuntap._cli.checks import Check
from aiotuntap._cli.facts import Node, Package, RunningEngine, UserNamespace
from aiotuntap._types import Counters, Link, Mode

CHARACTER_DEVICE = stat.S_IFCHR | 0o600
GOOD_NODE = Node(CHARACTER_DEVICE, (10, 200), 0, True)
GOOD_NAMESPACE = UserNamespace("", 0, {})
ALL_TRIED = dict.fromkeys(["create", *_checks._KERNEL], 0)


def refusing(number: int) -> Callable[..., int]:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


def probe_where_opening_fails(number: int, *, looks_right: bool) -> Node:
    """The fact about a node that cannot be opened. With *looks_right*, it has the right type and number."""
    status = SimpleNamespace(st_mode=CHARACTER_DEVICE, st_rdev=os.makedev(10, 200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refusing(number))
        if looks_right:
            patch.setattr(os, "stat", lambda path: status)
        return _facts.probe_node()


# -- the node and the driver ------------------------------------------------------------------------------------------


def test_missing_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_abi, "NODE", str(tmp_path / "tun"))
    node = _facts.probe_node()
    check = _checks.check_node(node)
    assert check.ok is False and "does not exist" in check.detail
    assert "mkdir -p /dev/net" in check.fix and "mknod" in check.fix and "c 10 200" in check.fix
    assert _checks.check_driver(node).ok is not False


def test_directory_of_the_node_that_may_not_be_searched() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", refusing(errno.EACCES))
        node = _facts.probe_node()
    check = _checks.check_node(node)
    assert check.ok is False and check.value == "EACCES" and not node.opens
    assert "directory" in check.detail and "does not exist" not in check.detail and "chmod 0755" in check.fix


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo])
def test_a_file_that_is_not_the_node_is_not_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "tun"
    make(path)
    monkeypatch.setattr(_abi, "NODE", str(path))
    node = probe_where_opening_fails(errno.EDOM, looks_right=False)
    check = _checks.check_node(node)
    assert node.refused != errno.EDOM and not node.opens
    assert check.ok is False and "must be character device 10:200, not " in check.detail and "mknod" in check.fix


def test_device_with_other_numbers_is_not_the_node() -> None:
    check = _checks.check_node(Node(CHARACTER_DEVICE, (1, 3), 0, True))
    assert check.ok is False and "1:3" in check.detail and "mknod" in check.fix


@pytest.mark.parametrize(
    ("number", "meaning", "fix"),
    [
        (errno.EACCES, "may not open", "chmod 0666"),
        (errno.EPERM, "sandbox or container", "--device"),
        (errno.ENODEV, "driver is not loaded", "modprobe tun"),
        (errno.ENXIO, "driver is not loaded", "modprobe tun"),
        (errno.EIO, os.strerror(errno.EIO), "root"),
    ],
)
def test_node_that_does_not_open(number: int, meaning: str, fix: str) -> None:
    node = probe_where_opening_fails(number, looks_right=True)
    check = _checks.check_node(node)
    assert node.refused == number and check.ok is False and check.value == errno.errorcode[number]
    assert meaning in check.detail and fix in check.fix


def test_node_that_opens() -> None:
    check = _checks.check_node(GOOD_NODE)
    assert check == Check("node", True, f"{_abi.NODE} opens (crw------- 10:200)")


@pytest.mark.parametrize(
    ("node", "ok"),
    [
        (GOOD_NODE, True),
        (Node(CHARACTER_DEVICE, (10, 200), errno.EACCES, True), True),
        (Node(None, (0, 0), errno.ENOENT, True), True),
        (Node(CHARACTER_DEVICE, (10, 200), errno.EACCES, False), None),
        (Node(None, (0, 0), errno.ENOENT, False), None),
        (Node(CHARACTER_DEVICE, (10, 200), errno.ENODEV, False), False),
    ],
)
def test_driver(node: Node, ok: bool | None) -> None:
    check = _checks.check_driver(node)
    assert check.ok is ok
    assert check.fix == ("" if ok else "modprobe tun")


# -- privileges -------------------------------------------------------------------------------------------------------


def test_no_capability_to_create() -> None:
    check = _checks.check_create(GOOD_NODE, errno.EPERM, ALL_TRIED, namespaces=True)
    assert check.ok is False and "CAP_NET_ADMIN is missing" in check.detail
    assert "unshare -Urn" in check.fix and "ip tuntap add" in check.fix
    assert "unshare" not in _checks.check_create(GOOD_NODE, errno.EPERM, {}, namespaces=False).fix


def test_create_is_unknown_without_a_node() -> None:
    assert _checks.check_create(Node(None, (0, 0), errno.ENOENT, True), None, {}, namespaces=True).ok is None


def test_create_fails_for_another_reason() -> None:
    check = _checks.check_create(GOOD_NODE, 0, {"create": errno.ENOMEM}, namespaces=True)
    assert check.ok is False and os.strerror(errno.ENOMEM) in check.detail and check.fix


def test_create_works() -> None:
    assert _checks.check_create(GOOD_NODE, 0, ALL_TRIED, namespaces=False).ok is True


@pytest.mark.parametrize(
    ("failed", "number", "settings", "fix"),
    [
        ("make", errno.ENOSPC, {"user.max_user_namespaces": "0"}, "sysctl -w user.max_user_namespaces=10000"),
        ("make", errno.ENOSPC, {"user.max_user_namespaces": "3"}, "sysctl -w user.max_user_namespaces=10000"),
        ("make", errno.EPERM, {"kernel.unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone=1"),
        (
            "map",
            errno.EPERM,
            {"kernel.apparmor_restrict_unprivileged_userns": "1", "kernel.unprivileged_userns_clone": "1"},
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("make", errno.EINVAL, {}, "CONFIG_USER_NS"),
        ("make", errno.EPERM, {"user.max_user_namespaces": "100"}, "outside of the sandbox"),
    ],
)
def test_no_user_namespaces(failed: str, number: int, settings: dict[str, str], fix: str) -> None:
    check = _checks.check_user_namespaces(UserNamespace(failed, number, settings))
    assert check.ok is False and os.strerror(number) in check.detail and fix in check.fix
    assert check.value == errno.errorcode[number]


def test_each_problem_has_its_own_detail_and_fix() -> None:
    device = (10, 200)
    checks = [
        _checks.check_node(Node(None, (0, 0), errno.ENOENT, True)),
        _checks.check_node(Node(CHARACTER_DEVICE, device, errno.EACCES, True)),
        _checks.check_node(Node(CHARACTER_DEVICE, device, errno.ENODEV, False)),
        _checks.check_create(GOOD_NODE, errno.EPERM, {}, namespaces=True),
        _checks.check_user_namespaces(UserNamespace("make", errno.ENOSPC, {})),
    ]
    assert len({check.detail for check in checks}) == len({check.fix for check in checks}) == len(checks)
    assert all(check.ok is False and check.fix for check in checks)


# -- the kernel and packages ------------------------------------------------------------------------------------------


def test_features() -> None:
    tried = ALL_TRIED | {"offload uso4": errno.EINVAL, "steering": errno.EPERM}
    del tried["napi"]
    checks = {check.name: check for check in _checks.check_kernel(tried)}
    assert checks["multi_queue"].ok is True and not checks["multi_queue"].fix
    assert checks["offload uso4"].ok is False and "6.2" in checks["offload uso4"].fix
    assert checks["steering"].ok is False and "CAP_BPF" in checks["steering"].fix
    assert [checks[name].value for name in ("multi_queue", "offload uso4", "steering")] == [None, "EINVAL", "EPERM"]
    assert checks["napi"].ok is None and "not tried" in checks["napi"].detail
    assert all(check.ok is None for check in _checks.check_kernel({}))


@pytest.mark.parametrize(
    ("package", "ok"),
    [
        (Package("pyroute2", "0.9.5"), True),
        (Package("pyroute2", "0.9.7.post1"), True),
        (Package("pyroute2", "0.9.4"), False),
        (Package("pyroute2", "0.10.0"), False),
        (Package("pyroute2", ""), False),
        (Package("pyroute2", "0.9.7", "ImportError: no"), False),
        (Package("uvloop", "0.20.0"), False),
    ],
)
def test_packages(package: Package, ok: bool) -> None:
    check = _checks.check_package(package)
    assert check.ok is ok and check.value == (package.version or None)
    assert check.fix.startswith("pip install") is not ok


def test_every_setting_and_package_has_a_check() -> None:
    assert set(_facts.SYSCTLS) == set(_checks._SYSCTLS)
    assert set(_facts.PACKAGES) == set(_checks._PACKAGES)


@pytest.mark.parametrize(
    ("engine", "reason", "compiler", "unset"),
    [
        (RunningEngine("Python", installed=False, broken="No module"), "was not compiled", True, False),
        (RunningEngine("Python", broken="undefined symbol: x"), "undefined symbol: x", True, False),
        (RunningEngine("Python", left_out=True), "AIOTUNTAP_EXTENSION=0", False, True),
        (RunningEngine("Python", left_out=True, installed=False), "AIOTUNTAP_EXTENSION=0", True, True),
    ],
)
def test_slow_engine(engine: RunningEngine, reason: str, compiler: bool, unset: bool) -> None:
    check = _checks.check_engine(engine)
    assert check.ok is False and check.value == "Python"
    assert check.detail.startswith("Python") and reason in check.detail and "50 times the CPU time" in check.detail
    assert ("apt-get install build-essential python3-dev" in check.fix) is compiler
    assert ("unset AIOTUNTAP_EXTENSION" in check.fix) is unset


def test_fast_engine() -> None:
    assert _checks.check_engine(RunningEngine("C")) == Check(
        "engine", True, "C: the extension is installed and runs", value="C"
    )


def test_probing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _facts.probe_package("no-such-package") == Package("no-such-package", "")
    assert _facts.probe_package("pytest").version == pytest.__version__

    def broken(name: str) -> None:
        raise RuntimeError("half of it is missing")

    monkeypatch.setattr("importlib.import_module", broken)
    package = _facts.probe_package("pytest")
    monkeypatch.undo()
    assert package.broken == "RuntimeError: half of it is missing"


# -- all of it --------------------------------------------------------------------------------------------------------


def examine(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> tuple[dict[str, Check], list[bool]]:
    """All checks by name, and the privileges that the kernel was probed with."""
    probed: list[bool] = []

    def probe_kernel(privileged: bool) -> dict[str, int]:
        probed.append(privileged)
        return ALL_TRIED

    monkeypatch.setattr(_facts, "probe_node", lambda: facts.get("node", GOOD_NODE))
    monkeypatch.setattr(_facts, "probe_privilege", lambda: facts.get("privilege", 0))
    monkeypatch.setattr(_facts, "probe_user_namespace", lambda: facts.get("namespace", GOOD_NAMESPACE))
    monkeypatch.setattr(_facts, "probe_kernel", probe_kernel)
    monkeypatch.setattr(_facts, "probe_engine", lambda: facts.get("engine", RunningEngine("C")))
    monkeypatch.setattr(_facts, "probe_package", lambda name: facts.get(name, Package(name, "0.9.5")))
    return {check.name: check for check in _checks.judge(_facts.probe())}, probed


NO_NODE = Node(None, (0, 0), errno.ENOENT, False)
NO_NAMESPACE = UserNamespace("make", errno.EPERM, {})


@pytest.mark.parametrize(
    ("facts", "probed", "missing"),
    [
        ({}, [True], []),
        ({"node": NO_NODE}, [], ["node"]),
        ({"privilege": errno.EPERM}, [False], []),
        ({"namespace": NO_NAMESPACE}, [True], []),
        ({"privilege": errno.EPERM, "namespace": NO_NAMESPACE}, [], ["create or user namespaces"]),
        ({"engine": RunningEngine("Python", installed=False)}, [True], []),
        ({"pyroute2": Package("pyroute2", "")}, [True], ["pyroute2"]),
        ({"uvloop": Package("uvloop", "")}, [True], []),
    ],
)
def test_what_the_demo_needs(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], probed: list[bool], missing: list[str]
) -> None:
    checks, privileges = examine(monkeypatch, **facts)
    assert privileges == probed
    assert _checks.missing_for_demo(checks.values()) == missing


@pytest.mark.parametrize(("facts", "status"), [({}, 0), ({"node": NO_NODE}, 1)])
def test_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], status: int
) -> None:
    checks, _ = examine(monkeypatch, **facts)
    assert _cli.main(["doctor"]) == status
    text = capsys.readouterr().out
    assert text == _report.as_text(list(checks.values()))
    assert _cli.main(["doctor", "--json"]) == status
    rows = json.loads(capsys.readouterr().out)
    assert [row["check"] for row in rows] == list(checks)
    assert all(list(row) == ["check", "ok", "value", "detail", "fix"] for row in rows)
    assert all(isinstance(row["value"], str | None) for row in rows)
    assert [(row["detail"], row["fix"]) for row in rows] == [(check.detail, check.fix) for check in checks.values()]
    assert all(row["detail"] for row in rows)
    assert all(row["fix"] for row in rows if row["ok"] is False)


def test_rendering() -> None:
    checks = [
        Check("node", True, "it opens"),
        Check("create", False, "no right", "run as root"),
        Check("napi", None, "unknown"),
    ]
    assert _report.as_text(checks).splitlines() == [
        "ok  node    it opens",
        "no  create  no right; fix: run as root",
        "?   napi    unknown",
        "",
        "The demo cannot run. It needs: pyroute2, create or user namespaces.",
    ]


def test_the_result_of_a_child_process() -> None:
    assert _facts._in_child(lambda: {"a": 1}) == {"a": 1}
    assert _facts._in_child(lambda: os._exit(3)) is None
    assert _facts._in_child(lambda: 1 / 0) is None


def test_listing() -> None:
    counters = Counters(rx_packets=3, rx_bytes=180, tx_dropped=2)
    link = Link(
        index=7, name="vpn0", kind="tun", mtu=1400, mac=None, up=True, carrier=False, txqueuelen=500, master=None,
        counters=counters, addresses=("10.0.0.1/24", "fd00::1/64"), mode=Mode.TUN, multi_queue=True, persistent=True,
        owner=0, group=4_000_000_000, queues=2, disabled_queues=1,
    )  # fmt: skip
    assert _listing.as_text([link], None).splitlines() == [
        "vpn0",
        "    mode       tun",
        "    state      up, no carrier",
        "    mtu        1400",
        "    flags      multi_queue persistent",
        "    queues     2 enabled, 1 disabled",
        "    owner      root (0)",
        "    group      4000000000",
        "    addresses  10.0.0.1/24 fd00::1/64",
        "    rx         3 packets, 180 bytes, 0 errors, 0 dropped",
        "    tx         0 packets, 0 bytes, 0 errors, 2 dropped",
    ]
    row = json.loads(_listing.as_json([link]))[0]
    assert row["mode"] == "tun" and row["owner_name"] == "root" and row["group_name"] is None
    assert row["counters"]["rx_bytes"] == 180


def test_help_imports_no_large_module() -> None:
    code = (
        "import sys; from aiotuntap._cli import main as _cli\n"
        "try: _cli.main(['--help'])\n"
        "except SystemExit: sys.stderr.write(' '.join({'pyroute2', 'uvloop', 'ctypes'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "doctor" in run.stdout and "list" in run.stdout and run.stderr == ""
