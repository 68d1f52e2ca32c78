"""A port to other machines: VXLAN over `aiotuntap.udp`."""

from __future__ import annotations

import os
import random
import socket
import sys
import time

from aiotuntap import InvalidFrameError, QueueClosedError, SetupError, Stats, TuntapError
from aiotuntap.udp import Address, UdpStream

from .core import header_of
from .ports import Port, merged
from .table import Table, stations
from .vxlan import HEADER_SIZE, OVERHEAD, Joiner, Options, as_sent, fit, flow_hash, header, joined, vni_of

#: How many source ports to use. Routers and the receiver's CPUs use them to distribute the inner flows.
_SOURCES = 8
_FIRST_SOURCE, _LAST_SOURCE = 49152, 65535
_TRIES = 20

#: How many seconds the path MTU is cached.
_KNOWN = 5.0

#: How many addresses of remotes, with their ports, are cached.
_MOST_KNOWN = 4096

# <linux/in.h> and <linux/in6.h>
_IP_MTU_DISCOVER, _IP_MTU, _IPV6_MTU_DISCOVER, _IPV6_MTU, _PMTUDISC_DO = 10, 14, 23, 24, 2


class VxlanFrames:
    """The frames of one VXLAN segment, to and from all remotes. No remote can stop it."""

    def __init__(
        self, options: Options, receiver: UdpStream, senders: list[UdpStream], age: float, limit: int, name: str
    ) -> None:
        self._header = header(options.vni)
        self._vni = options.vni
        self._version = options.local.version
        self._receiver = receiver
        self._senders = senders
        self._name = name
        self.remotes = [Address((str(remote), options.port)) for remote in options.remotes]
        self._by_host = {remote.host: remote for remote in self.remotes}
        #: The remotes by address and port: a cache.
        self._known: dict[Address, Address] = {}
        self._joiner = Joiner(options.vni)
        #: The remote behind which each station is.
        self.table: Table[Address] = Table(age, limit)
        #: For each remote: size of the largest frame in bytes, and until when it is valid.
        self._largest: dict[Address, tuple[int, float]] = {}
        self._said_too_large = False
        self._read = self._written = self._refused = 0
        #: How many datagrams were dropped: from unknown senders, with another VNI, and without a VXLAN frame.
        self.strangers = self.others = self.malformed = 0
        #: How many frames were too large for the path MTU.
        self.too_large = 0

    @property
    def stats(self) -> Stats:
        dropped = self.strangers + self.others + self.malformed + self._joiner.lost
        return Stats(self._read, self._written, self._refused, dropped)

    def counts(self) -> dict[str, int]:
        """How many datagrams and frames were dropped, by reason."""
        return {
            "strangers": self.strangers,
            "malformed": self.malformed + self._joiner.lost,
            "other_vnis": self.others,
            "too_large": self.too_large,
        }

    async def read_frames(self) -> list[bytes]:
        """Waits for at least one frame. Consecutive frames of one flow are merged into super-frames."""
        while True:
            datagrams = await self._receiver.read_datagrams()
            now = time.monotonic()
            frames, super_frames = [], []
            for datagram, address in datagrams:
                remote = self._known.get(address) or self._remote_of(address)
                if remote is None:
                    self.strangers += 1
                    continue
                whole = self._joiner.feed(datagram, address)
                if whole is None:
                    continue
                datagram, size = whole
                vni = vni_of(datagram)
                if vni != self._vni:
                    self.malformed += vni is None
                    self.others += vni is not None
                    continue
                self.table.learn(stations(datagram[HEADER_SIZE : HEADER_SIZE + 16])[1], remote, now)
                if size:
                    super_frames.append(joined(datagram, size))
                else:
                    frames.append(datagram[HEADER_SIZE:])
            if frames or super_frames:
                self._read += len(frames) + len(super_frames)
                largest = min(self._largest_to(remote, now) for remote in self.remotes)
                return [frame if frame[0] else as_sent(frame, largest) for frame in merged(frames)] + super_frames

    def _remote_of(self, address: Address) -> Address | None:
        """The remote that sent a datagram, from any port. The address is cached."""
        remote = self._by_host.get(address.host)
        if remote is not None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[address] = remote
        return remote

    async def write_frames(self, frames: list[bytes]) -> None:
        """Sends each frame to the remote that has its station, or to all remotes."""
        self._write(frames)

    def write_frame_nowait(self, frame: bytes) -> None:
        """Sends one frame, as `write_frames` does."""
        self._write([frame])

    async def aclose(self) -> None:
        for each in (self._receiver, *self._senders):
            await each.aclose()

    def _write(self, frames: list[bytes]) -> None:
        if self._receiver.closed:
            raise QueueClosedError("the uplink is closed")
        now = time.monotonic()
        batches: dict[tuple[Address, int], list[bytes]] = {}
        for frame in frames:
            known = self.table.find(stations(header_of(frame))[0], now)
            sender = flow_hash(frame) % len(self._senders)
            sent = False
            for remote in self.remotes if known is None else (known,):
                try:
                    pieces = fit(frame, self._largest_to(remote, now))
                except InvalidFrameError as error:
                    self._say_too_large(remote, error)
                    continue
                batches.setdefault((remote, sender), []).extend([self._header + piece for piece in pieces])
                sent = True
            self._written += sent
            self._refused += not sent
        for (remote, sender), datagrams in batches.items():
            self._send(self._senders[sender], datagrams, remote)

    def _send(self, sender: UdpStream, datagrams: list[bytes], remote: Address) -> None:
        """Sends datagrams. They are dropped if the send buffer is full, there is no route, or the MTU has decreased."""
        at = 0
        while at < len(datagrams):
            try:
                taken = sender.write_datagrams_nowait(datagrams[at:] if at else datagrams, remote)
                if not taken:
                    return
                at += taken
            except BlockingIOError:
                return
            except InvalidFrameError:
                self._largest.pop(remote, None)
                at += 1
            except (TuntapError, OSError):
                return

    def _largest_to(self, remote: Address, now: float) -> int:
        largest, until = self._largest.get(remote, (0, 0.0))
        if now >= until:
            largest = mtu_towards(remote) - OVERHEAD[self._version]
            self._largest[remote] = largest, now + _KNOWN
        return largest

    def _say_too_large(self, remote: Address, error: InvalidFrameError) -> None:
        self.too_large += 1
        if not self._said_too_large:
            self._said_too_large = True
            largest, _ = self._largest[remote]
            print(
                f"port {self._name}: to {remote.host}, {error}; larger frames are dropped: set the MTU of the stations to"
                f" {largest - 14} or less",
                file=sys.stderr,
                flush=True,
            )


def mtu_towards(remote: Address) -> int:
    """The path MTU to *remote* in bytes, as the kernel knows it now."""
    is_v4 = remote.family == socket.AF_INET
    with socket.socket(remote.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((remote.host, remote.port))
            return probe.getsockopt(*((socket.IPPROTO_IP, _IP_MTU) if is_v4 else (socket.IPPROTO_IPV6, _IPV6_MTU)))
        except OSError:  # there is no route now
            return 1500


async def open_uplink(options: Options, *, age: float, limit: int) -> Port:
    """Opens the port of a VXLAN segment. Raises SetupError."""
    name = f"vxlan{options.vni}"
    streams: list[UdpStream] = []
    try:
        streams.append(await UdpStream((str(options.local), options.port)).open())
        while len(streams) <= _SOURCES:
            streams.append(await _open_sender(str(options.local)))
    except BaseException:
        for each in streams:
            await each.aclose()
        raise
    frames = VxlanFrames(options, streams[0], streams[1:], age, limit, name)
    return Port(name, frames, frames.aclose)


async def _open_sender(host: str) -> UdpStream:
    """A socket with a port from the ephemeral range. Its datagrams must not be fragmented."""
    for remaining in reversed(range(_TRIES)):
        stream = UdpStream((host, random.randint(_FIRST_SOURCE, _LAST_SOURCE)), read_buffer=1)
        try:
            await stream.open()
        except SetupError:
            if not remaining:
                raise
            continue
        with socket.socket(fileno=os.dup(stream.fileno())) as sock:
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
        return stream
    raise AssertionError
