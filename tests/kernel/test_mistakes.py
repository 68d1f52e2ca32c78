"""What newcomers write at first, and what they are told: each message says what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import subprocess
import sys
import textwrap
import traceback
from typing import Any, NamedTuple

import pytest

import aiotuntap
from aiotuntap import InvalidFrameError, LinkDownError, QueueClosedError, SetupError, _abi

from .support import ip, needs_root, unique


class Mistake(NamedTuple):
    what: str
    #: Statements of a coroutine. NAME is an interface name that is free.
    code: str
    error: type[BaseException]
    #: With … for what is different each time.
    message: str


MISTAKES = [
    Mistake(
        "no mode",
        "AsyncTuntap(NAME)",
        TypeError,
        "AsyncTuntap.__init__() missing 1 required keyword-only argument: 'mode'",
    ),
    Mistake(
        "mode in capitals",
        "AsyncTuntap(NAME, mode='TAP')",
        ValueError,
        "mode must be 'tun' or 'tap', not 'TAP'",
    ),
    Mistake(
        "name too long",
        "AsyncTuntap('my-vpn-interface', mode='tun')",
        ValueError,
        "interface name must have at most 15 bytes, and 'my-vpn-interface' has 16",
    ),
    Mistake(
        "name that the kernel uses itself",
        "AsyncTuntap('all', mode='tun')",
        ValueError,
        "interface name must not be 'all': the kernel uses it for the settings of all interfaces",
    ),
    Mistake(
        "no queue",
        "AsyncTuntap(NAME, mode='tun', queues=0)",
        ValueError,
        "queues must be at least 1, not 0",
    ),
    Mistake(
        "several queues without multi_queue",
        "AsyncTuntap(NAME, mode='tun', queues=2, multi_queue=False)",
        ValueError,
        "queues must be 1 with multi_queue=False, not 2: use multi_queue=True",
    ),
    Mistake(
        "offload as a bool",
        "AsyncTuntap(NAME, mode='tun', offload=True)",
        TypeError,
        "offload must be flags such as Offload.CSUM | Offload.TSO4, not True",
    ),
    Mistake(
        "carrier as a word",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            await tun.set_carrier('on')
        """,
        TypeError,
        "carrier must be True or False, not 'on'",
    ),
    Mistake(
        "name of an interface of another kind",
        """
        ip('link', 'add', NAME, 'type', 'bridge')
        async with AsyncTuntap(NAME, mode='tun'):
            pass
        """,
        SetupError,
        "[Errno 22] cannot open tun interface 'NAME': an interface of that name exists and is not a TUN/TAP"
        " interface…: use another name",
    ),
    Mistake(
        "other mode than the existing interface",
        """
        async with AsyncTuntap(NAME, mode='tap'), AsyncTuntap(NAME, mode='tun'):
            pass
        """,
        SetupError,
        "[Errno 22] cannot open tun interface 'NAME': it exists as a tap interface: open it with mode='tap'",
    ),
    Mistake(
        "several queues of an interface that has one",
        """
        async with AsyncTuntap(NAME, mode='tun', multi_queue=False), AsyncTuntap(NAME, mode='tun', queues=2):
            pass
        """,
        SetupError,
        "[Errno 22] cannot open tun interface 'NAME': it exists with multi_queue=False: open it …, or remove it first",
    ),
    Mistake(
        "namespace that does not exist",
        "await AsyncTuntap(NAME, mode='tun', netns='blue').open()",
        SetupError,
        "[Errno 2] cannot open network namespace 'blue': No such file or directory; 'ip netns add blue' makes it",
    ),
    Mistake(
        "path of a namespace that does not exist",
        "await AsyncTuntap(NAME, mode='tun', netns='/run/netns/blue').open()",
        SetupError,
        "[Errno 2] cannot open network namespace '/run/netns/blue': No such file or directory; check the path",
    ),
    Mistake(
        "forgotten 'async with'",
        """
        tun = AsyncTuntap(NAME, mode='tun')
        await tun.read_frame()
        """,
        RuntimeError,
        "interface 'NAME' is not open yet: use 'async with', or await open()",
    ),
    Mistake(
        "queue before opening",
        """
        tun = AsyncTuntap(NAME, mode='tun')
        await tun.queues[0].read_frame()
        """,
        IndexError,
        "interface 'NAME' is not open yet: use 'async with', or await open()",
    ),
    Mistake(
        "opened twice",
        """
        tun = AsyncTuntap(NAME, mode='tun')
        async with tun:
            pass
        async with tun:
            pass
        """,
        RuntimeError,
        "interface 'NAME' was opened before: make a new AsyncTuntap",
    ),
    Mistake(
        "frame as a string",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            await tun.write_frame('hello')
        """,
        TypeError,
        "a frame must be a bytes-like object, or a list or tuple of them, not str",
    ),
    Mistake(
        "one frame as many",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            await tun.write_frames(b'hello')
        """,
        TypeError,
        "write_frames takes several frames, not bytes: write_frame takes one",
    ),
    Mistake(
        "interface that is down",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            await tun.write_frame(PACKET)
        """,
        LinkDownError,
        "[Errno 5] interface 'NAME' is down, so the frame was not written: call configure(up=True) first",
    ),
    Mistake(
        "frame that is too short",
        """
        async with AsyncTuntap(NAME, mode='tap') as tap:
            await tap.configure(up=True)
            await tap.write_frame(b'hello')
        """,
        InvalidFrameError,
        "the kernel refuses the frame (Invalid argument): on a TAP interface it must begin with an Ethernet header of 14"
        " bytes",
    ),
    Mistake(
        "frame that is not a packet",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            await tun.configure(up=True)
            await tun.write_frames([PACKET, b'\\0hello'])
        """,
        InvalidFrameError,
        "1 of 2 frames were refused and the others written; the first is number 1: the kernel refuses the frame"
        " (Invalid argument): on a TUN interface it must begin with an IPv4 or IPv6 header",
    ),
    Mistake(
        "frame that is too long",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            await tun.write_frame(PACKET + bytes(70000))
        """,
        InvalidFrameError,
        "a frame must have 1 to 65535 bytes on this interface, not 70084: on a TUN interface it must begin with an IPv4"
        " or IPv6 header",
    ),
    Mistake(
        "packet without the virtio_net_hdr",
        """
        async with AsyncTuntap(NAME, mode='tun', vnet_header=True) as tun:
            await tun.configure(up=True)
            await tun.write_frame(PACKET)
        """,
        InvalidFrameError,
        "the kernel refuses the frame (Invalid argument): with vnet_header=True it must begin with a virtio_net_hdr of 10"
        " bytes that matches the frame behind it; VnetHeader().pack() is the header of an ordinary frame",
    ),
    Mistake(
        "Ethernet frame without the virtio_net_hdr",
        """
        async with AsyncTuntap(NAME, mode='tap', vnet_header=True) as tap:
            await tap.configure(up=True)
            await tap.write_frame(b'\\xff' * 6 + b'\\x02' * 6 + b'\\x08\\x00' + PACKET)
        """,
        InvalidFrameError,
        "the kernel refuses the frame (Invalid argument): with vnet_header=True it must begin with a virtio_net_hdr of 10"
        " bytes that matches the frame behind it; VnetHeader().pack() is the header of an ordinary frame",
    ),
    Mistake(
        "segment without the virtio_net_hdr",
        "segment(PACKET, 'tun')",
        InvalidFrameError,
        "hdr_len is 21504, and the frame behind the virtio_net_hdr has only 74 bytes: is the header missing, or"
        " header_size (10) wrong?",
    ),
    Mistake(
        "read after closing",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            queue = tun.queues[0]
        await queue.read_frame()
        """,
        QueueClosedError,
        "this queue of 'NAME' is closed",
    ),
    Mistake(
        "queue of another interface",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun, AsyncTuntap(mode='tun') as other:
            await tun.remove_queues(other.queues[0])
        """,
        ValueError,
        "<TuntapQueue of 'tun0' fd=…> is not a queue of 'NAME', so no queue was removed",
    ),
    Mistake(
        "which queue",
        """
        async with AsyncTuntap(NAME, mode='tun', queues=2) as tun:
            await tun.read_frame()
        """,
        RuntimeError,
        "interface 'NAME' has 2 queues: choose one of 'queues', such as queues[0], to read from or write to",
    ),
    Mistake(
        "another thread",
        """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            await asyncio.to_thread(lambda: asyncio.run(tun.read_frame()))
        """,
        RuntimeError,
        "a TuntapQueue belongs to <…oop …> in thread …, and was called from <…oop …> in thread …: from elsewhere, use"
        " asyncio.run_coroutine_threadsafe() or loop.call_soon_threadsafe()",
    ),
    Mistake(
        "asyncio.run twice",
        """
        tun = AsyncTuntap(NAME, mode='tun')
        def program():
            asyncio.run(tun.open())
            try:
                asyncio.run(tun.read_frame())
            finally:
                asyncio.run(tun.aclose())
        await asyncio.to_thread(program)
        """,
        RuntimeError,
        "a TuntapQueue belongs to <…oop … closed=True …> in thread …, and was called from <…oop …> in thread …: that loop"
        " is closed; open and use it in one loop, as inside one asyncio.run()",
    ),
    Mistake(
        "a copy",
        """
        import copy
        copy.copy(AsyncTuntap(NAME, mode='tun'))
        """,
        TypeError,
        "AsyncTuntap cannot be copied or pickled: it owns descriptors, or is registered with an event loop",
    ),
]

# An echo request.
PACKET = bytes.fromhex("45000054000040004001 0000 0a000001 0a000002".replace(" ", "")) + bytes(64)


async def make(code: str, name: str) -> None:
    space: dict[str, Any] = {**vars(aiotuntap), "NAME": name, "PACKET": PACKET, "asyncio": asyncio, "ip": ip}
    exec(f"async def mistake():\n{textwrap.indent(textwrap.dedent(code), '    ')}", space)  # noqa: S102
    await space["mistake"]()


def is_said(message: str, said: str) -> bool:
    return re.fullmatch(re.escape(message).replace("…", ".*"), said) is not None


@pytest.mark.parametrize("mistake", MISTAKES, ids=[each.what for each in MISTAKES])
async def test_mistake(mistake: Mistake) -> None:
    name = unique()
    try:
        with pytest.raises(mistake.error) as caught:
            await make(mistake.code, name)
    finally:
        ip("link", "del", name, check=False)
    assert type(caught.value) is mistake.error
    said = str(caught.value).replace(name, "NAME")
    assert is_said(mistake.message, said), said
    # At most one error stands before ours in a traceback, and it is the kernel's.
    shown = "".join(traceback.format_exception(caught.value))
    cause = caught.value.__cause__
    assert len(re.findall(r"^The above exception|^During handling", shown, re.MULTILINE)) == (cause is not None), shown
    assert cause is None or isinstance(cause, OSError)


# -- mistakes of the machine ------------------------------------------------------------------------------------------

MACHINES = {
    errno.ENOENT: "No such file or directory; to fix it: mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200 (in a"
    " container: docker run --device /dev/net/tun)",
    errno.ENODEV: "No such device; to fix it: modprobe tun",
    errno.EACCES: "Permission denied; to fix it: chmod 0666 /dev/net/tun (the kernel still checks who may create an"
    " interface), or run as root",
    errno.EPERM: "Operation not permitted; to fix it: docker run --device /dev/net/tun (or allow 'c 10:200 rwm' in the"
    " device cgroup)",
}


@pytest.mark.parametrize("number", MACHINES, ids=errno.errorcode.get)
async def test_node_that_does_not_open(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = os.open

    def refuse(path: Any, *arguments: Any) -> int:
        if path == _abi.NODE:
            raise OSError(number, os.strerror(number))
        return opens(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SetupError) as caught:
        await make("await AsyncTuntap(NAME, mode='tun').open()", unique())
    assert str(caught.value) == f"[Errno {number}] cannot open /dev/net/tun: {MACHINES[number]}"


@needs_root
@pytest.mark.parametrize("multi_queue", [False, True])
def test_without_privileges(multi_queue: bool) -> None:
    code = f"""
        import asyncio
        from aiotuntap import AsyncTuntap
        try:
            asyncio.run(AsyncTuntap('vpn0', mode='tun', multi_queue={multi_queue}).open())
        except PermissionError as error:
            print(error)
    """
    command = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = (
        "[Errno 1] cannot open tun interface 'vpn0': creating an interface takes CAP_NET_ADMIN: run as root, inside"
        " 'unshare -Urn', or have root make a persistent one for you: 'ip tuntap add mode tun name NAME user USER"
        f"{' multi_queue' if multi_queue else ''}'"
    )
    assert run.stdout.strip() == expected


# -- mistakes that only warn ------------------------------------------------------------------------------------------


async def test_forgotten_await() -> None:
    code = """
        async with AsyncTuntap(NAME, mode='tun') as tun:
            tun.write_frame(PACKET)
    """
    with pytest.warns(RuntimeWarning, match="write_frame' was never awaited"):
        await make(code, unique())


async def test_forgotten_aclose() -> None:
    with pytest.warns(ResourceWarning, match="unclosed <AsyncTuntap .*>: call aclose\\(\\) or use 'async with'"):
        await make("tun = await AsyncTuntap(NAME, mode='tun').open()", unique())
        gc.collect()
