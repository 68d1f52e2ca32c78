"""The public names, and that importing them stays cheap."""

from __future__ import annotations

import errno
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import pytest

import aiotuntap
from aiotuntap import DeviceGoneError, InvalidFrameError, LinkDownError, SetupError, Stats, TuntapError


def test_all_lists_every_public_name() -> None:
    public = {
        name
        for name, value in vars(aiotuntap).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(aiotuntap.__all__) == public
    assert aiotuntap.__all__ == sorted(aiotuntap.__all__)


def test_import_brings_in_neither_pyroute2_nor_an_event_loop() -> None:
    code = "import aiotuntap, sys; print(*(m for m in ('pyroute2', 'uvloop', 'ctypes') if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_errors_keep_their_errno_and_can_be_caught_by_what_they_are() -> None:
    for kind in (DeviceGoneError, LinkDownError, SetupError):
        error = kind(errno.EIO, "text")
        assert isinstance(error, OSError) and isinstance(error, TuntapError) and error.errno == errno.EIO
    assert isinstance(SetupError(errno.EPERM, "text"), PermissionError)
    assert isinstance(SetupError(errno.EACCES, "text"), PermissionError)
    assert not isinstance(SetupError(errno.EINVAL, "text"), PermissionError)
    assert isinstance(InvalidFrameError("text", (1, 2)), ValueError)
    with pytest.raises(AttributeError):
        SetupError(errno.EINVAL, "text").indexes  # type: ignore[attr-defined]  # noqa: B018


def test_version_is_one() -> None:
    run = subprocess.run([sys.executable, "-m", "aiotuntap", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"aiotuntap {aiotuntap.__version__}\n"
    try:
        installed = version("aiotuntap")
    except PackageNotFoundError:
        pytest.skip("aiotuntap is not installed")
    assert installed == aiotuntap.__version__, "installed before the version changed: make clean, or install it again"


def test_stats_add_up() -> None:
    assert sum([Stats(1, 2, 3), Stats(10, 20, 30)], Stats()) == Stats(11, 22, 33)
