"""Whatever belongs to an event loop says so when it is called from another thread or another loop, and does nothing."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from aiotuntap import AsyncTuntap, TuntapProtocol, TuntapQueue, create_tuntap_endpoint
from aiotuntap._threads import run_in_thread
from aiotuntap.testing import example_frame
from aiotuntap.udp import UdpStream

from .support import tap_with_peer, unique

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])

FRAME = example_frame(1)

#: Arguments of the methods that need some.
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "set_carrier": (True,),
    "set_filter": (None,),
    "set_group": (0,),
    "set_mark": (0,),
    "set_owner": (0,),
    "set_persist": (True,),
    "set_send_buffer": (10_000,),
    "set_steering": (None,),
    "write_datagrams": ([FRAME], "127.0.0.1:9"),
    "write_datagrams_nowait": ([FRAME], "127.0.0.1:9"),
    "write_frame": (FRAME,),
    "write_frame_nowait": (FRAME,),
    "write_frames": ([FRAME],),
    "write_frames_nowait": ([FRAME],),
}

#: They begin something, in the loop that calls them.
BEGIN = {"adopt", "open"}
#: Those that are for a stream with a remote, and for one without.
WITH_REMOTE = {name for name in ARGUMENTS if name.startswith("write_frame")} | {
    "read_frame",
    "read_frame_nowait",
    "read_frames",
    "read_frames_nowait",
    "__anext__",
}
WITHOUT_REMOTE = {"read_datagrams", "read_datagrams_nowait", "write_datagrams", "write_datagrams_nowait"}


def coroutines(kind: type) -> list[str]:
    """All public coroutines, whatever is added to the class later, and iteration."""
    found = inspect.getmembers(kind, lambda each: inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each))
    return [name for name, _ in found if not name.startswith("_") or name == "__anext__"]


def call(owner: object, name: str) -> Any:
    made = getattr(owner, name)(*(ARGUMENTS.get(name) or ((owner,) if name == "remove_queues" else ())))
    return anext(made) if inspect.isasyncgen(made) else made


async def run(owner: object, name: str) -> object:
    answer = call(owner, name)
    return await answer if isinstance(answer, Awaitable) else answer


@asynccontextmanager
async def owners() -> AsyncIterator[dict[str, object]]:
    async with (
        tap_with_peer() as (interface, _),
        UdpStream("127.0.0.1:0") as plain,
        UdpStream("", plain.local) as connected,
    ):
        yield {
            "AsyncTuntap": interface,
            "TuntapQueue": interface.queues[0],
            "UdpStream": plain,
            "UdpStream with remote": connected,
        }


def methods() -> list[tuple[str, str]]:
    udp = set(coroutines(UdpStream))
    return [
        *(("AsyncTuntap", name) for name in coroutines(AsyncTuntap) if name not in BEGIN),
        *(("TuntapQueue", name) for name in coroutines(TuntapQueue)),
        *(("UdpStream", name) for name in sorted(udp - BEGIN - WITH_REMOTE)),
        *(("UdpStream with remote", name) for name in sorted(udp & WITH_REMOTE)),
    ]


NOWAIT = [
    *(
        (kind, name)
        for kind in ("AsyncTuntap", "TuntapQueue", "UdpStream with remote")
        for name in sorted(WITH_REMOTE)
        if name.endswith("_nowait")
    ),
    *(("UdpStream", name) for name in sorted(WITHOUT_REMOTE) if name.endswith("_nowait")),
]


def test_the_table_is_complete() -> None:
    names = {name for _, name in methods()}
    assert {"configure", "link", "watch", "read_frame", "write_frames", "disable", "set_mark", "aclose"} <= names
    assert len(methods()) > 30


@pytest.mark.parametrize(("kind", "name"), methods())
async def test_from_another_thread_with_a_loop(kind: str, name: str) -> None:
    async with owners() as all_owners:
        owner = all_owners[kind]
        mine = threading.get_ident()
        theirs: list[int] = []

        def elsewhere() -> None:
            theirs.append(threading.get_ident())
            asyncio.run(run(owner, name))

        with pytest.raises(RuntimeError) as caught:
            await run_in_thread(elsewhere)
        assert f"in thread {mine}, and was called from " in str(caught.value)
        assert f"in thread {theirs[0]}: from elsewhere, use asyncio.run_coroutine_threadsafe() or" in str(caught.value)
        assert str(caught.value).count("oop ") >= 2


@pytest.mark.parametrize(("kind", "name"), NOWAIT)
async def test_from_a_thread_without_a_loop(kind: str, name: str) -> None:
    async with owners() as all_owners:
        with pytest.raises(RuntimeError, match=r"in thread \d+, and was called from no event loop in thread \d+"):
            await run_in_thread(lambda: call(all_owners[kind], name))


TRANSPORT: dict[str, tuple[object, ...]] = {
    "pause_reading": (),
    "resume_reading": (),
    "write_frame": (FRAME,),
    "write_frames": ([FRAME],),
    "sendto": (FRAME,),
    "set_write_buffer_limits": (),
    "close": (),
    "abort": (),
}


@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
@pytest.mark.parametrize("name", TRANSPORT)
async def test_a_transport_from_another_thread(name: str, full: bool) -> None:
    transport, _ = await create_tuntap_endpoint(TuntapProtocol, unique(), mode="tap")
    interface = transport.get_extra_info("interface")
    await interface.configure(up=True)
    errors: list[RuntimeError] = []

    def elsewhere() -> None:
        try:
            getattr(transport, name)(*TRANSPORT[name])
        except RuntimeError as error:
            errors.append(error)

    if full:  # as if the send buffer had no room for a frame
        transport._keep(FRAME)
    before = repr(transport)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()  # so that the loop, which is running, does nothing meanwhile
    assert repr(transport) == before and transport.is_reading() and not transport.is_closing()
    transport.abort()
    (error,) = errors
    assert re.search(r"in thread \d+, and was called from no event loop in thread \d+", str(error))
    while not interface.closed:
        await asyncio.sleep(0.001)
    await interface.aclose()


@LOOPS
@pytest.mark.parametrize(("kind", "name"), methods())
def test_from_another_loop_in_the_same_thread(
    new_loop: Callable[[], asyncio.AbstractEventLoop], kind: str, name: str
) -> None:
    loop, other = new_loop(), new_loop()
    try:
        context = owners()
        owner = loop.run_until_complete(context.__aenter__())[kind]
        try:
            with pytest.raises(RuntimeError, match="belongs to .*, and was called from .*: from elsewhere, use"):
                other.run_until_complete(run(owner, name))
        finally:
            loop.run_until_complete(context.__aexit__(None, None, None))
    finally:
        loop.close()
        other.close()


async def test_the_loop_of_an_earlier_asyncio_run() -> None:
    """A thread with two loops, one after the other, so that the loop of the test is not in the way."""
    interface = AsyncTuntap(unique(), mode="tap")

    def twice() -> None:
        asyncio.run(interface.open())
        try:
            with pytest.raises(RuntimeError, match="that loop is closed; open and use it in one loop"):
                asyncio.run(interface.read_frame())
        finally:
            asyncio.run(interface.aclose())

    await run_in_thread(twice)
    assert interface.closed and interface.queues == ()
