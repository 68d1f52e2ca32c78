"""Running without privileges: a persistent interface with an owner, and a user namespace."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from aiotuntap import AsyncTuntap, SetupError, _abi
from aiotuntap._netlink import configure as _configure
from aiotuntap._netlink import diagnosis as _diagnosis
from aiotuntap._netlink import link as _link

from .support import anyone_attaches, ip, link, needs_root, tap, tun_info, unique

NOBODY = 65534

# Imported before privileges are dropped: the interpreter may live where nobody else can read.
_ = _configure, _diagnosis, _link, uvloop


@pytest.fixture
def open_node() -> Iterator[str]:
    """A node that every user may open, independent of the machine's own node."""
    folder = Path(tempfile.mkdtemp(prefix="aiotuntap-"))
    folder.chmod(0o755)
    node = folder / "tun"
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 200))
    node.chmod(0o666)
    yield str(node)
    node.unlink()
    folder.rmdir()


def as_nobody(node: str, work: Callable[[], object], gid: int = NOBODY) -> str:
    """Runs *work* in a child process as an unprivileged user; what it returns, or the exception, as text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            _abi.NODE = node
            answer = str(work())
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(pid, 0)
    return answer


LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def run(main: Callable[[], object], loop: Callable[[], asyncio.AbstractEventLoop]) -> object:
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main())  # type: ignore[arg-type]


def make_persistent(
    loop: Callable[[], asyncio.AbstractEventLoop], *, owner: int | str | None, group: int | str | None
) -> str:
    name = unique()

    async def main() -> None:
        async with AsyncTuntap(name, mode="tap", queues=2) as interface:
            if owner is not None:
                await interface.set_owner(owner)
            if group is not None:
                await interface.set_group(group)
            await interface.set_persist(True)

    run(main, loop)
    return name


@needs_root
@LOOPS
@pytest.mark.parametrize(
    ("owner", "group", "gid", "allowed"),
    [
        ("nobody", None, NOBODY, True),
        (NOBODY, None, NOBODY, True),
        (None, "nogroup", NOBODY, True),
        ("nobody", "nogroup", NOBODY, True),
        (None, None, NOBODY, True),
        (0, None, NOBODY, False),
        (None, 0, NOBODY, False),
        ("nobody", 0, NOBODY, False),
        ("nobody", "nogroup", 12345, False),
    ],
)
def test_a_persistent_interface_opens_for_its_owner(
    open_node: str,
    loop: Callable[[], asyncio.AbstractEventLoop],
    owner: int | str | None,
    group: int | str | None,
    gid: int,
    allowed: bool,
) -> None:
    name = make_persistent(loop, owner=owner, group=group)

    async def main() -> str:
        async with AsyncTuntap(name, mode="tap", queues=2) as interface:
            await interface.add_queues()
            await interface.remove_queues(interface.queues[0])
            await interface.queues[0].disable()
            await interface.queues[0].enable()
            return f"{interface.name} {(await interface.link()).queues}"

    try:
        answer = as_nobody(open_node, lambda: run(main, loop), gid)
        if allowed and (owner, group) == (None, None) and not anyone_attaches():
            assert answer.startswith("SetupPermissionError") and "without an owner" in answer, answer
        elif allowed:
            assert answer == f"{name} 2"
        else:
            assert answer.startswith("SetupPermissionError") and "belongs to" in answer, answer
        assert tun_info(name)["persist"]
        assert (tun_info(name).get("user"), tun_info(name).get("group")) != (None, None) or owner == group is None
    finally:
        ip("link", "del", name)


@needs_root
@LOOPS
def test_what_the_owner_may_not(open_node: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    name = make_persistent(loop, owner=NOBODY, group=None)

    async def configure() -> None:
        async with AsyncTuntap(name, mode="tap") as interface:
            await interface.configure(mtu=1400)

    async def create() -> None:
        await AsyncTuntap(unique("no"), mode="tap").open()

    try:
        assert "CAP_NET_ADMIN" in as_nobody(open_node, lambda: run(configure, loop))
        refused = as_nobody(open_node, lambda: run(create, loop))
        assert refused.startswith("SetupPermissionError") and "unshare -Urn" in refused, refused
        assert link(name)["mtu"] == 1500
    finally:
        ip("link", "del", name)


@needs_root
@LOOPS
def test_its_owner_may_ask_for_what_is_so_already(
    open_node: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    name = make_persistent(loop, owner=NOBODY, group=None)
    ip("addr", "add", "10.44.0.1/24", "dev", name)
    ip("link", "set", name, "up", "mtu", "1400", "address", "02:00:00:00:00:09")
    wanted: dict[str, Any] = {
        "up": True,
        "mtu": 1400,
        "mac": "02:00:00:00:00:09",
        "txqueuelen": 1000,
        "name": name,
        "master": "",
        "addresses": ["10.44.0.1/24"],
        "routes": ["10.45.0.0/16", "default via 10.44.0.9 metric 3"],
        "netns": "/proc/self/ns/net",
    }

    async def configure(**settings: Any) -> str:
        async with AsyncTuntap(name, mode="tap", queues=2) as interface:
            for route in () if settings else ("10.45.0.0/16 via 10.44.0.8", "10.46.0.0/16"):
                with pytest.raises(SetupError, match="cannot set route .* it takes CAP_NET_ADMIN"):
                    await interface.configure(routes=[route])
            await interface.configure(**(settings or wanted))
            return "done"

    try:

        async def routes() -> None:
            async with AsyncTuntap(name, mode="tap", queues=2) as interface:
                await interface.configure(**wanted)

        run(routes, loop)
        for setting, value in wanted.items():
            assert as_nobody(open_node, lambda: run(lambda: configure(**{setting: value}), loop)) == "done", setting  # noqa: B023
        assert as_nobody(open_node, lambda: run(configure, loop)) == "done"
    finally:
        ip("link", "del", name)


@needs_root
def test_a_node_that_only_root_opens(open_node: str) -> None:
    os.chmod(open_node, 0o600)

    async def create() -> None:
        await AsyncTuntap(unique("no"), mode="tap").open()

    answer = as_nobody(open_node, lambda: asyncio.run(create()))
    assert answer.startswith("SetupPermissionError") and "chmod 0666" in answer


def test_everything_in_a_user_namespace() -> None:
    code = """
        import asyncio, uvloop
        from aiotuntap import *
        async def main():
            async with AsyncTuntap("mine0", mode="tun", queues=2) as tun:
                await tun.configure(addresses=["10.0.0.1/24"], mtu=1400, up=True, routes=["10.1.0.0/16"])
                await tun.add_queues()
                link = await tun.link()
                print(link.queues, link.mtu, link.addresses[0])
        asyncio.run(main())
        uvloop.run(main())
    """
    process = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert process.stdout.splitlines() == ["3 1400 10.0.0.1/24"] * 2, process.stderr


@needs_root
async def test_owner_and_group_by_name_or_number() -> None:
    async with tap() as interface:
        await interface.set_owner("nobody")
        await interface.set_group(4242)
        assert (tun_info(interface.name)["user"], tun_info(interface.name)["group"]) == ("nobody", 4242)
        for call in (interface.set_owner, interface.set_group):
            with pytest.raises(ValueError, match="does not exist"):
                await call("no-such-name")
        with pytest.raises(ValueError, match="from 0 to"):
            await interface.set_owner(-1)


@pytest.mark.parametrize("wrong", [1 << 40, -5, 0xFFFFFFFF, True, 1.0, None])
async def test_an_invalid_owner_or_group(wrong: Any) -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:
        for change in (interface.set_owner, interface.set_group):
            with pytest.raises((TypeError, ValueError), match="must be a number"):
                await change(wrong)
        link = await interface.link()
        assert link.owner is None and link.group is None
