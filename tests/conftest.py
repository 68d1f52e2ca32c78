"""Every asynchronous test runs on asyncio and on uvloop, in a network namespace that this process alone lives in."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import linecache
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import FrameType

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

import aiotuntap
from aiotuntap import _abi, _engine
from aiotuntap._engine import Engine

from .engine import ENGINES
from .kernel.support import is_root, quiet_with_lo_up

CLONE_NEWNET = 0x40000000

# In debug mode, asyncio and uvloop note for each future and callback where it was made: 60 frames of it, each
# with its line, were half of the time of all asynchronous tests. A few frames tell as much. uvloop takes these functions
# when it is imported.
_FRAMES_OF_ORIGIN = 4
_walk_stack = traceback.walk_stack


def _walk_few(f: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    return islice(_walk_stack(f or sys._getframe(1)), _FRAMES_OF_ORIGIN)


traceback.walk_stack = _walk_few

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
# Only tests/machines sets this, where uvloop does not exist. Anywhere else a missing uvloop is an error.
if os.environ.get("AIOTUNTAP_TEST_LOOPS") != "asyncio":
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


def _enter_private_namespace() -> str | None:
    """Moves this process into a new network namespace, or says why the kernel cannot be tested here."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        return f"no new network namespace: {os.strerror(ctypes.get_errno())}; run as root or in 'unshare -Urnm'"
    try:
        os.close(os.open(_abi.NODE, os.O_RDWR))
    except OSError as error:
        return f"cannot open {_abi.NODE}: {error.strerror}"
    quiet_with_lo_up()  # tests that want IPv6 turn it on
    return None


# "make test-fast" and the tests of a wheel leave the kernel out, and run where no namespace can be made.
_KERNEL_WANTED = os.environ.get("AIOTUNTAP_TEST_KERNEL") != "0"
_NO_KERNEL = _enter_private_namespace() if _KERNEL_WANTED else "AIOTUNTAP_TEST_KERNEL=0"

# In debug mode, asyncio notes for each future and callback where it was made, and with that asks the file system whether
# ten sources are still the same: that took a third of the time of all tests. They do not change meanwhile.
linecache.checkcache = lambda filename=None: None


# A busy machine is no defect of what is tested.
settings.register_profile("aiotuntap", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aiotuntap")


def pytest_collection_finish() -> None:
    """Excludes all current objects from the garbage collections before and after each test."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    # Not in pyproject.toml, from where pytest would import the package before its coverage is measured.
    config.addinivalue_line("filterwarnings", "ignore::aiotuntap.SlowEngineWarning")
    if _NO_KERNEL is not None and _KERNEL_WANTED and is_root():
        raise pytest.UsageError(f"root, but {_NO_KERNEL}")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


def _on_either_loop(items: list[pytest.Item]) -> list[pytest.Item]:
    """Each test on one of the loops, by turns: they make the same system calls, and guests are slow."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        parts = item.name.partition("[")[2].rstrip("]").split("-")
        loop = next((each for each in LOOPS if each in parts), "")
        by_test.setdefault(item.nodeid.replace(loop, ""), []).append(item)
    return [same[number % len(same)] for number, same in enumerate(by_test.values())]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests in ``tests/kernel`` need a TUN/TAP driver; the rest is pure code and runs anywhere."""
    if share := os.environ.get("AIOTUNTAP_TEST_SHARE"):  # "1/2": tests/machines deals them out to several guests
        number, count = map(int, share.split("/"))
        mine = _on_either_loop(items)[number - 1 :: count]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
        items[:] = mine
    if _NO_KERNEL is None:
        return
    for item in items:
        if "kernel" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=_NO_KERNEL))


@pytest.fixture(params=ENGINES, ids=[each.name for each in ENGINES], scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Runs a test with each engine: ``usefixtures("engine")``. For tests that read, write, segment or coalesce."""
    before = _engine.engine
    _engine.engine = request.param
    yield request.param
    _engine.engine = before


def _open_queues() -> set[str]:
    """Descriptors of the driver that this process has."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of this very listing
            if os.readlink(f"/proc/self/fd/{entry}") == _abi.NODE:
                found.add(entry)
    return found


def _interfaces() -> set[str]:
    if _NO_KERNEL is not None:
        return set()  # this namespace is not ours: others make interfaces in it
    return {name for _, name in socket.if_nameindex()}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """After each test: the same interfaces and threads as before it, and no descriptor of the driver.

    What the test before it left was collected after that one.
    """
    gc.freeze()  # modules that were imported since, what other fixtures keep: the collection is of what this test leaves
    interfaces, queues, threads = _interfaces(), _open_queues(), set(threading.enumerate())
    yield
    gc.collect()
    assert _interfaces() == interfaces
    assert _open_queues() == queues
    for thread in set(threading.enumerate()) - threads:
        thread.join(1)  # it has told its result, and may not have ended yet
    assert set(threading.enumerate()) <= threads


_PACKAGE, _TESTS = str(Path(aiotuntap.__file__).parent), str(Path(__file__).parent)


def _is_called_by_the_tests() -> bool:
    """Whether a test calls, and not the package: a test is often resumed by a callback of the package."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code.co_filename.startswith(_PACKAGE):
            return frame.f_code.co_filename.startswith(os.path.join(_PACKAGE, "testing"))
        if frame.f_code.co_filename.startswith(_TESTS) and frame.f_code.co_filename != __file__:
            return True
    return True


_BLOCKER = BlockBuster(["aiotuntap"], excluded_modules=["aiotuntap.testing"])
for _function in _BLOCKER.functions.values():
    _function.can_block_predicate = lambda *given, _usual=_function.can_block_predicate, **named: (
        _usual(*given, **named) or _is_called_by_the_tests()
    )


@pytest.fixture(autouse=True, scope="session")
def loop_is_never_blocked() -> Iterator[None]:
    """A call in the package that would block the loop's thread fails the test."""
    _BLOCKER.activate()
    yield
    _BLOCKER.deactivate()
