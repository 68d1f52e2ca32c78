"""The room for netlink: what it does where resources end, and that nothing else needs pyroute2."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import errno
import gc
import os
import resource
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

import aiotuntap
from aiotuntap import AsyncTuntap, SetupError

from .support import named_netns, tap

PACKAGE = Path(aiotuntap.__file__).parent


def _imports(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module


def test_only_the_room_for_netlink_imports_pyroute2() -> None:
    importers = {
        source.relative_to(PACKAGE).parts[0]
        for source in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == "pyroute2" for name in _imports(source))
    }
    assert importers == {"_netlink"}


def test_pyroute2_stays_behind_the_messages() -> None:
    room = PACKAGE / "_netlink"
    importers = {source.name for source in room.glob("*.py") if any("pyroute2" in name for name in _imports(source))}
    assert importers == {"messages.py"}


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process may open *count* more descriptors, and no other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in range(soft) if not os.path.exists(f"/proc/self/fd/{number}"))
    limit = [next(free) for _ in range(count + 1)][-1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _watch_for_a_while(interface: AsyncTuntap) -> None:
    async def watch() -> None:
        async for _ in interface.watch():
            pass

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await watch()


@pytest.mark.parametrize("what", ["link", "configure", "move", "watch"])
async def test_no_descriptors_left(what: str) -> None:
    """Whichever step it is that finds none, the error says what to do, and nothing is left open."""
    with named_netns() as name:
        async with tap() as interface:
            home = f"/proc/{os.getpid()}/ns/net"
            work: Callable[[], Coroutine[None, None, object]] = {
                "link": interface.link,
                "configure": lambda: interface.configure(mtu=1400, addresses=["10.90.0.1/24"], routes=["10.91.0.0/16"]),
                "move": lambda: interface.configure(netns=name),
                "watch": lambda: _watch_for_a_while(interface),
            }[what]
            await work()  # everything is imported
            await interface.configure(netns=home, up=True)
            before, failed = sorted(os.listdir("/proc/self/fd")), 0
            for count in range(12):
                try:
                    with descriptors_left(count):
                        await work()
                    break
                except SetupError as error:
                    failed += 1
                    assert error.errno == errno.EMFILE and "ulimit -n" in str(error), error
                finally:
                    gc.collect()
                    assert sorted(os.listdir("/proc/self/fd")) == before
            else:
                pytest.fail("it never worked")
            assert failed >= 2
