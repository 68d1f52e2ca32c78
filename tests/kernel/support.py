"""The other side of an interface: packet sockets, iproute2, and views of the loop that asyncio does not offer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from aiotuntap import AsyncTuntap, Offload, TuntapQueue, _abi
from aiotuntap._abi import READ_SIZE
from aiotuntap._frames import LOOK
from aiotuntap._netns import enter

#: Seconds that a test waits for another program or for the kernel. It only ends a test that would hang: in a guest with an
#: emulated processor, a program may take ten seconds to start.
PATIENCE = 50

_EXPERIMENTAL = 0x88B5
_OUTGOING = 4
_ids = itertools.count()
T = TypeVar("T")


def is_root() -> bool:
    """Root of the machine, and not only of a user namespace."""
    with open("/proc/self/uid_map") as mapped:
        return os.geteuid() == 0 and mapped.read().split() == ["0", "0", str(2**32 - 1)]


needs_root = pytest.mark.skipif(
    not is_root(), reason="takes root of the machine: a user namespace has one user, no devices and no eBPF"
)


#: Of a test whose subject is a program of its own: this process's loop makes no difference to it.
on_one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])


def unique(prefix: str = "t") -> str:
    """An interface name that no other test uses."""
    return f"{prefix}{os.getpid() % 10000}-{next(_ids)}"


def ip(*arguments: str, check: bool = True) -> str:
    """Runs iproute2 in this process's namespace."""
    run = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0 or not check, run.stderr
    return run.stdout


def link(name: str, *prefix: str) -> dict[str, Any]:
    """The output of ``ip -d -s -j link show``, to compare with."""
    found: list[dict[str, Any]] = json.loads(ip(*prefix, "-d", "-s", "-j", "link", "show", "dev", name))
    return found[0]


def tun_info(name: str, *prefix: str) -> dict[str, Any]:
    info: dict[str, Any] = link(name, *prefix)["linkinfo"]["info_data"]
    return info


def ipv4(number: int = 0, size: int = 64, destination: str = "10.11.12.13") -> bytes:
    """An IPv4/UDP packet that no host answers. The checksum of its header is correct."""
    header = bytearray(20)
    header[0], header[8], header[9] = 0x45, 64, 17
    header[2:4] = size.to_bytes(2)
    header[4:6] = (number & 0xFFFF).to_bytes(2)
    header[12:16] = bytes([10, 11, 12, 1])
    header[16:20] = socket.inet_aton(destination)
    total = sum(int.from_bytes(header[at : at + 2]) for at in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (0xFFFF - (total & 0xFFFF) - (total >> 16)).to_bytes(2)
    udp = b"\x30\x39\x00\x09" + (size - 20).to_bytes(2) + b"\0\0"
    return bytes(header) + udp + number.to_bytes(4) + bytes(size - 32)


class PacketPeer:
    """The kernel's side of a TAP (or TUN) interface, through a packet(7) socket."""

    def __init__(self, name: str, ethertype: int = _EXPERIMENTAL, *, tun: bool = False) -> None:
        kind = socket.SOCK_DGRAM if tun else socket.SOCK_RAW
        self.socket = socket.socket(socket.AF_PACKET, kind | socket.SOCK_NONBLOCK, socket.htons(ethertype))
        make_room(self.socket)
        self.socket.bind((name, ethertype))
        self.name = name

    def send(self, frame: bytes) -> None:
        """Queues a frame for the interface's readers; the kernel does so before it returns."""
        self.socket.send(frame)

    def receive(self) -> list[bytes]:
        """The frames that arrived from the interface so far."""
        got: list[bytes] = []
        while True:
            try:
                data, address = self.socket.recvfrom(READ_SIZE)
            except BlockingIOError:
                return got
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # told once after each time the interface was down
                    raise
                continue
            if address[2] != _OUTGOING:
                got.append(data)

    async def write_frame(self, frame: bytes) -> None:
        self.send(frame)

    async def read_frame(self) -> bytes:
        while True:
            data, address = await receive_from(self.socket)
            if address[2] != _OUTGOING:
                return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


async def receive_from(sock: socket.socket) -> tuple[bytes, Any]:
    """The next datagram of a non-blocking socket. uvloop has no sock_recvfrom."""
    while True:
        try:
            return sock.recvfrom(READ_SIZE)
        except BlockingIOError:
            await asyncio.sleep(0)


def make_room(sock: socket.socket, size: int = 1 << 22) -> None:
    """Lets a socket hold that many bytes, also where the kernel's limit for everybody (rmem_max) is a twentieth."""
    so_rcvbufforce = 33  # <asm-generic/socket.h>
    try:
        sock.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, size)
    except PermissionError:  # root of a user namespace only
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


@asynccontextmanager
async def tap(**options: Any) -> AsyncIterator[AsyncTuntap]:
    """A TAP interface that is up."""
    async with AsyncTuntap(options.pop("name", unique()), mode="tap", **options) as interface:
        await interface.configure(up=True)
        yield interface


@asynccontextmanager
async def tun(**options: Any) -> AsyncIterator[AsyncTuntap]:
    """A TUN interface that is up and has 10.11.12.1/24."""
    async with AsyncTuntap(options.pop("name", unique()), mode="tun", **options) as interface:
        await interface.configure(addresses=["10.11.12.1/24"], up=True)
        yield interface


@asynccontextmanager
async def tap_with_peer(**options: Any) -> AsyncIterator[tuple[AsyncTuntap, PacketPeer]]:
    async with tap(**options) as interface:
        with PacketPeer(interface.name) as peer:
            yield interface, peer


@contextlib.contextmanager
def named_netns() -> Iterator[str]:
    """A namespace as ``ip netns`` makes it, with IPv6 quiet and lo up."""
    name = unique("att")
    ip("netns", "add", name)
    try:
        inside(name, quiet_with_lo_up)
        yield name
    finally:
        ip("netns", "del", name, check=False)


def quiet_with_lo_up() -> None:
    """In the namespace of this thread: the kernel sends no router solicitations and the like by itself."""
    for scope in ("all", "default"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
    siocsifflags, iff_up = 0x8914, 1  # <linux/sockios.h>, <linux/if.h>
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, siocsifflags, struct.pack("@16sh22x", b"lo", iff_up))


def inside(netns: str | None, work: Callable[[], T]) -> T:
    """The result of *work* in a namespace, on a thread of its own. None means the namespace of this process."""
    if netns is None:
        return work()
    results: list[T] = []

    def run() -> None:
        enter(netns)
        results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def netns_exec(netns: str, *command: str) -> list[str]:
    """The command that runs another one in a namespace."""
    return ["ip", "netns", "exec", netns, *command]


def socket_in(
    netns: str,
    family: socket.AddressFamily = socket.AF_INET,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    seconds: float = 10,
) -> socket.socket:
    """A socket of another namespace, which waits for so long."""
    made = inside(netns, lambda: socket.socket(family, kind))
    made.settimeout(seconds)
    return made


def transfer(source: str, target: str, address: str, payload: bytes, seconds: float = 10) -> bytes:
    """The received part of *payload*, sent over TCP from one namespace to an address in another."""
    listener, client = (socket_in(netns, seconds=seconds) for netns in (target, source))
    with listener, client:
        listener.bind((address, 4000))
        listener.listen()
        client.connect((address, 4000))
        connection, _ = listener.accept()
        with connection:
            sending = threading.Thread(target=client.sendall, args=(payload,))
            sending.start()
            received = connection.recv(len(payload), socket.MSG_WAITALL)
            sending.join()
    return received


@contextlib.contextmanager
def iperf_server(netns: str) -> Iterator[None]:
    """It has ended at the end of the block."""
    command = netns_exec(netns, "iperf3", "-s", "--forceflush")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("listening" in line for line in server.stdout)
            yield
        finally:
            server.kill()


def inject(
    queue: TuntapQueue,
    *,
    judge: Callable[[bytes], int] = lambda _: 0,
    change: Callable[[bytes], bytes] = lambda data: data,
) -> list[bytes]:
    """Faults where frames cross into the kernel: at the engine's functions, so that they hold for both engines.

    Args:
        queue: The one that gets them.
        judge: Refuses what the queue writes with an ``errno``, 0 for none.
        change: Makes what the queue reads.

    Returns:
        What was offered to the kernel, as it is offered.
    """
    engine = queue._engine
    offered: list[bytes] = []

    def write_one(fd: int, largest: int, thread: int, frame: Any) -> int:
        if not isinstance(frame, (bytes, bytearray, memoryview)) or not 0 < len(frame) <= largest:
            return LOOK
        offered.append(bytes(frame))
        return judge(bytes(frame)) or engine.write_one(fd, largest, thread, frame)

    def write_batch(fd: int, largest: int, start: int, most: int, frames: Any) -> tuple[int, int]:
        for written, frame in enumerate(frames[start : start + most]):
            if number := write_one(fd, largest, threading.get_ident(), frame):
                return written, number
        return len(frames[start : start + most]), 0

    def read_batch(fd: int, limit: int, enough: int) -> tuple[list[bytes], int | BaseException]:
        frames, number = engine.read_batch(fd, limit, enough)
        return list(map(change, frames)), number

    def read_one(fd: int) -> bytes | int:
        frame = engine.read_one(fd)
        return frame if isinstance(frame, int) else change(frame)

    queue._engine = replace(
        engine, write_one=write_one, write_batch=write_batch, read_batch=read_batch, read_one=read_one
    )
    return offered


def turn_on_ipv6(name: str, netns: str | None = None) -> None:
    """On one interface that is still down, and without what the kernel would say by itself about addresses."""

    def write() -> None:
        for setting, value in {"accept_dad": 0, "router_solicitations": 0, "disable_ipv6": 0}.items():
            Path(f"/proc/sys/net/ipv6/conf/{name}/{setting}").write_text(str(value))

    inside(netns, write)


async def until_own(address: str, netns: str | None = None) -> None:
    """Waits until an IPv6 address can be used, which takes the kernel a moment even if it looks for no duplicates."""

    def is_own() -> bool:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((address, 0))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                return False
            return True

    async with asyncio.timeout(10):
        while not inside(netns, is_own):
            await asyncio.sleep(0.001)


def features_on(name: str) -> set[str]:
    """The features that ``ethtool -k`` shows as on."""
    run = subprocess.run(["ethtool", "-k", name], capture_output=True, text=True, check=True)
    lines = [line.strip().partition(": ") for line in run.stdout.splitlines()]
    return {feature for feature, _, state in lines if state.startswith("on")}


def fork(work: Callable[[], int | None]) -> int:
    """Runs *work* in a child process, whose pid it returns. The child's status is what *work* returns, 0 or 1 if it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = work() or 0
        finally:
            os._exit(status)
    return pid


def watched_fds() -> set[int]:
    """Descriptors that any epoll instance of this process watches, by /proc, so that it works on both loops."""
    watched = set()
    for entry in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{entry}") as info:
            watched |= {int(line.split()[1]) for line in info if line.startswith("tfd:")}
    return watched


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Waits for what the kernel does in its own time. The deadline only ends a test that would hang."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def settle(turns: int = 5) -> None:
    """Lets the loop go round a few times, polling each time."""
    for _ in range(turns):
        await asyncio.sleep(0.001)


@functools.cache
def _clock_step() -> float:
    """Seconds by which a thread's CPU clock advances at once: less than a microsecond, or a tick of 10 ms."""
    now = started = time.thread_time()
    while now == started:
        now = time.thread_time()
    return now - started


async def idle_share(seconds: float = 0.2) -> float:
    """The share of one CPU, 0 to 1, that this thread uses while its loop has nothing to do.

    It looks for longer where the clock is coarse, so that a few ticks that happen to be counted are less than 0.05, and a
    second time if it saw more: a loop that spins does so again.
    """
    seconds = max(seconds, 100 * _clock_step())
    share = 1.0
    for _ in range(2):
        before = time.thread_time()
        await asyncio.sleep(seconds)
        share = min(share, (time.thread_time() - before) / seconds)
        if share < 0.05:
            break
    return share


# -- what this kernel offers: asked without the library, which is to find the same -------------------------------------


@contextlib.contextmanager
def raw_queue(flags: int = _abi.IFF_NO_PI | _abi.IFF_VNET_HDR) -> Iterator[tuple[int, str]]:
    """The descriptor of a queue of a new TAP interface, and its name."""
    fd, name = os.open(_abi.NODE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK), unique()
    try:
        fcntl.ioctl(fd, _abi.TUNSETIFF, _abi.Ifreq(name, _abi.IFF_TAP | flags).pack())
        yield fd, name
    finally:
        os.close(fd)


@functools.cache
def offers(offload: Offload) -> bool:
    """Whether this kernel takes these offloads, all of them. USO comes with Linux 6.2, UDP_TUNNEL with 6.17."""
    with raw_queue() as (fd, _):
        fcntl.ioctl(fd, _abi.TUNSETVNETHDRSZ, struct.pack("@i", 24))
        try:
            fcntl.ioctl(fd, _abi.TUNSETOFFLOAD, offload.value)
        except OSError as error:
            assert error.errno == errno.EINVAL
            return False
        return True


def has_uso() -> bool:
    """Whether runs of UDP datagrams cross between the kernel and us as super-frames; runs of TCP always do."""
    return offers(Offload.CSUM | Offload.USO4 | Offload.USO6)


def offered(offload: Offload = Offload.ALL) -> Offload:
    """The flags of Offload.ALL, or of others, that this kernel has. Each is tried with the flags that it needs."""
    steps = {
        Offload.CSUM: Offload.CSUM,
        Offload.TSO4: Offload.CSUM,
        Offload.TSO6: Offload.CSUM,
        Offload.ECN: Offload.CSUM | Offload.TSO4,
        Offload.USO4 | Offload.USO6: Offload.CSUM,
        Offload.UDP_TUNNEL: Offload.CSUM | Offload.TSO4,
        Offload.UDP_TUNNEL_CSUM: Offload.CSUM | Offload.TSO4 | Offload.UDP_TUNNEL,
    }
    found = Offload.NONE
    for step, company in steps.items():
        if step & offload and offers(step | company):
            found |= step & offload
    return found


@functools.cache
def anyone_attaches() -> bool:
    """Whether an interface with neither owner nor group is open to all: Linux 6.12.117 wants CAP_NET_ADMIN for it."""
    name = unique()
    ip("tuntap", "add", "mode", "tap", "name", name)
    try:
        request = _abi.Ifreq(name, _abi.IFF_TAP | _abi.IFF_NO_PI).pack()
        code = f"import fcntl; fcntl.ioctl(open({_abi.NODE!r}, 'r+b', 0), {_abi.TUNSETIFF}, {request!r})"
        command = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", code]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not run.returncode or "PermissionError" in run.stderr
        return not run.returncode
    finally:
        ip("link", "del", name)


@functools.cache
def refuses_while_disabled() -> bool:
    """Whether a disabled queue with NAPI refuses frames, with EBUSY, as from Linux 6.4 and the stable releases of its time on."""
    with raw_queue(_abi.IFF_NO_PI | _abi.IFF_MULTI_QUEUE | _abi.IFF_NAPI) as (fd, name):
        ip("link", "set", name, "up")
        fcntl.ioctl(fd, _abi.TUNSETQUEUE, _abi.Ifreq("", _abi.IFF_DETACH_QUEUE).pack())
        try:
            os.write(fd, bytes(64))
        except OSError as error:
            assert error.errno == errno.EBUSY
            return True
        return False


@functools.cache
def renames_while_up() -> bool:
    """Whether an interface that is up can be renamed, as from Linux 6.2 on; before that it is EBUSY."""
    with raw_queue() as (_, name):
        ip("link", "set", name, "up")
        run = subprocess.run(["ip", "link", "set", name, "name", unique()], capture_output=True, text=True, check=False)
        assert not run.returncode or "busy" in run.stderr
        return not run.returncode


def rename(name: str, new: str) -> None:
    """Renames an interface that is up, by a moment of being down where that is what it takes."""
    if renames_while_up():
        ip("link", "set", name, "name", new)
    else:
        ip("link", "set", name, "down")
        ip("link", "set", name, "name", new)
        ip("link", "set", new, "up")
