"""The room for netlink: what it does where resources end, and that nothing else needs pyroute2."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import errno
import gc
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvloop

import aiotuntap
from aiotuntap import AsyncTuntap, SetupError, _netns, bpf
from aiotuntap._netlink.socket import RouteSocket

from .support import ip, named_netns, needs_root, tap, unique
from .test_ownership import as_nobody, open_node

_ = open_node

PACKAGE = Path(aiotuntap.__file__).parent


def _imports(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module


def test_only_the_netlink_folder_imports_pyroute2() -> None:
    importers = {
        source.relative_to(PACKAGE).parts[0]
        for source in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == "pyroute2" for name in _imports(source))
    }
    assert importers == {"_netlink"}


def test_pyroute2_stays_behind_the_requests() -> None:
    room = PACKAGE / "_netlink"
    importers = {source.name for source in room.glob("*.py") if any("pyroute2" in name for name in _imports(source))}
    assert importers == {"requests.py"}


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


FIRST_USE = """
import asyncio, errno, os, resource, sys
from aiotuntap import AsyncTuntap, SetupError

async def main(what):
    async with AsyncTuntap("", mode="tun") as interface:
        call = getattr(interface, what)()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = next(number for number in range(soft) if not os.path.exists(f"/proc/self/fd/{number}"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            await (anext(call) if what == "watch" else call)
        except SetupError as error:
            assert error.errno == errno.EMFILE and "ulimit -n" in str(error), error
        else:
            raise AssertionError("it worked")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await interface.configure(mtu=1400)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("what", ["link", "configure", "ready", "watch"])
def test_no_descriptors_left_at_the_first_use(what: str) -> None:
    """What needs pyroute2 is imported when it is first used, and to import takes descriptors."""
    command = [sys.executable, "-c", FIRST_USE, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["owner", "group"])
async def test_no_descriptors_left_to_look_up_a_name(what: str) -> None:
    async with tap() as interface:
        call = interface.set_owner if what == "owner" else interface.set_group
        await call("root")
        with descriptors_left(0), pytest.raises(SetupError, match="ulimit -n") as caught:
            await call("root")
        assert caught.value.errno == errno.EMFILE
        with pytest.raises(ValueError, match="does not exist"):
            await call("aiotuntap-nobody")


async def test_no_descriptors_left_for_a_program() -> None:
    with descriptors_left(0), pytest.raises(SetupError, match="cannot load the eBPF program: .*; .*ulimit -n"):
        bpf.by_cpu().load()


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


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_loop_closed_while_the_kernel_is_asked(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Those that wait for their turn, too, leave nothing behind, and nothing keeps the loop."""
    before = sorted(os.listdir("/proc/self/fd"))
    first = loop()
    interface = first.run_until_complete(AsyncTuntap(unique(), mode="tap").open())
    first.run_until_complete(interface.link())
    tasks = [first.create_task(interface.link()) for _ in range(5)]
    first.run_until_complete(asyncio.sleep(0))
    first.run_until_complete(asyncio.sleep(0))
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task
    first.close()
    second = loop()
    second.run_until_complete(interface.aclose())
    second.close()
    gone = weakref.ref(first), weakref.ref(interface)
    del first, second, interface, tasks
    for _ in range(100):  # the thread that was under way has to end
        gc.collect()
        if [each() for each in gone] == [None, None]:
            break
        time.sleep(0.01)
    assert [each() for each in gone] == [None, None]
    assert sorted(os.listdir("/proc/self/fd")) == before


@needs_root
def test_an_interface_that_went_where_its_owner_cannot_see(open_node: str) -> None:
    """Only CAP_NET_ADMIN lets the kernel tell the namespace: not to be found is not deleted."""
    name = unique()
    ip("tuntap", "add", "mode", "tap", "name", name, "user", "nobody")
    with named_netns() as netns:

        async def main() -> None:
            async with AsyncTuntap(name, mode="tap", multi_queue=False) as interface:
                os.write(ready, b"x")
                os.read(moved, 1)
                await interface.link()

        told, ready = os.pipe()
        moved, go = os.pipe()
        mover = threading.Thread(
            target=lambda: (os.read(told, 1), ip("link", "set", name, "netns", netns), os.write(go, b"x"))
        )
        mover.start()
        answer = as_nobody(open_node, lambda: asyncio.run(main()))
        mover.join()
        for fd in (told, ready, moved, go):
            os.close(fd)
        assert answer.startswith("SetupError") and "takes CAP_NET_ADMIN there" in answer, answer


@pytest.mark.parametrize("netns", [None, "/proc/self/ns/net"])
def test_where_proc_is_not_mounted(monkeypatch: pytest.MonkeyPatch, netns: str | None) -> None:
    monkeypatch.setattr(_netns, "_OWN", "/nonexistent/thread-self/ns/net")
    with pytest.raises(SetupError, match="network namespace of this thread: .* 'mount -t proc proc /proc'"):
        RouteSocket(netns)


def test_an_answer_that_is_not_from_the_kernel() -> None:
    """Whoever has CAP_NET_ADMIN in the namespace can send to this socket, and guess the number of its first request."""
    forged = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -errno.ENODEV)
    with RouteSocket(None) as route, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as other:
        other.sendto(forged, route._socket.getsockname())
        link = route.link(name="lo")
        assert link is not None and link.index == 1


def test_a_list_that_the_kernel_could_not_finish() -> None:
    """It tells so in the message that ends the list, which is then not the whole list."""
    # NLMSG_DONE with NLM_F_MULTI, for the first request.
    answer = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, -errno.ENOMEM)
    with RouteSocket(None) as route, contextlib.closing(route._socket):
        told = SimpleNamespace(sendto=lambda *_: None, recvfrom=lambda _: (answer, (0, 0)), close=lambda: None)
        route._socket = told  # type: ignore[assignment]
        with pytest.raises(SetupError, match="cannot list interfaces, addresses or routes: .*memory") as caught:
            route.addresses()
        assert caught.value.errno == errno.ENOMEM
