"""Devices, a clock and a network, all made of plain objects: days pass in no time."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from ipaddress import ip_address, ip_network
from itertools import count
from typing import TypeAlias

from wireguard.device import Device
from wireguard.noise import Identity
from wireguard.peer import Peer, Sends

#: As the UDP socket gives them: host and port.
Where: TypeAlias = tuple[str, int]
#: What becomes of a datagram: after how many seconds which bytes arrive, for as many copies as there are.
Fate: TypeAlias = list[tuple[float, bytes]]

DELAY = 0.01
WALL = 1_700_000_000 * 10**9


def ipv4(source: str, destination: str, payload: bytes = b"") -> bytes:
    """An IPv4 packet without a checksum, which these tests do not need."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack(">BBHIBBH", 0x45, 0, 20 + len(payload), 0, 64, 17, 0) + addresses + payload


def ipv6(source: str, destination: str, payload: bytes = b"") -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack(">IHBB", 6 << 28, len(payload), 17, 64) + addresses + payload


class Node:
    """A device with its address in the network."""

    def __init__(self, world: World, name: str, where: Where) -> None:
        self.world, self.name, self.where = world, name, where
        self.lines: list[str] = []
        self.received: list[bytes] = []
        self.restart()

    def restart(self) -> None:
        """A new process: with the same key, and nothing else of what was."""
        self.device = Device(
            now=lambda: self.world.now,
            wall_clock=lambda: WALL + round(self.world.now * 10**9),
            rng=self.world.random.randbytes,
            log=self.lines.append,
        )
        self.device.mtu = 1420
        self.device.private_key = (self.name * 32).encode()[:32]
        self.device.up()

    @property
    def public_key(self) -> bytes:
        return Identity((self.name * 32).encode()[:32]).public_key

    def knows(self, other: Node, *networks: str, endpoint: bool = True) -> Peer:
        """Configures *other* as a peer with these allowed IPs."""
        peer = self.device.add_peer(other.public_key)
        for network in networks:
            self.device.routes.insert(ip_network(network), peer)
        if endpoint:
            peer.endpoint = other.where
        return peer

    def peer(self, other: Node) -> Peer:
        return self.device.peers[other.public_key]

    def send(self, *packets: bytes) -> None:
        """From the TUN interface."""
        self.world.carry(self, self.device.outbound(packets, self.world.now))

    def get(self, datagrams: Iterable[tuple[bytes, Where]]) -> list[bytes]:
        """From the socket; returns the packets for the TUN interface."""
        packets, sends = self.device.inbound(list(datagrams), self.world.now)
        self.received += packets
        self.world.carry(self, sends)
        return packets


class World:
    """The clock, the network and who is in it."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self.nodes: dict[Where, Node] = {}
        #: All that was sent: when, from where, to where, what.
        self.sent: list[tuple[float, Where, Where, bytes]] = []
        self.fate: Callable[[bytes], Fate] = lambda datagram: [(DELAY, datagram)]
        #: How often a device had something to do.
        self.turns = 0
        self._order = count()
        self._flying: list[tuple[float, int, Where, Where, bytes]] = []

    def node(self, name: str, where: Where) -> Node:
        node = self.nodes[where] = Node(self, name, where)
        return node

    def move(self, node: Node, where: Where) -> None:
        """*node* has another address; what was under way to the old one is lost."""
        del self.nodes[node.where]
        node.where = where
        self.nodes[where] = node

    def carry(self, node: Node, sends: Sends) -> None:
        for address, datagrams in sends:
            assert isinstance(address, tuple)
            for datagram in datagrams:
                self.sent.append((self.now, node.where, address, datagram))
                for delay, changed in self.fate(datagram):
                    entry = (self.now + delay, next(self._order), node.where, address, changed)
                    heappush(self._flying, entry)

    def run(self, seconds: float) -> None:
        """Lets time pass. Timers run when they are due."""
        end = self.now + seconds
        while True:
            deadlines = [when for node in self.nodes.values() if (when := node.device.next_deadline()) is not None]
            if self._flying:
                deadlines.append(self._flying[0][0])
            when = min(deadlines, default=end)
            if when > end:
                break
            self.now = max(self.now, when)
            arrived: dict[Where, list[tuple[bytes, Where]]] = {}
            while self._flying and self._flying[0][0] <= self.now:
                _, _, source, target, datagram = heappop(self._flying)
                arrived.setdefault(target, []).append((datagram, source))
            for where, datagrams in arrived.items():
                if where in self.nodes:
                    self.nodes[where].get(datagrams)
            for node in list(self.nodes.values()):
                due = node.device.next_deadline()
                if due is not None and due <= self.now:
                    self.turns += 1
                    self.carry(node, node.device.expire(self.now))
            if when == end and not deadlines:
                break
        self.now = end

    def kinds(self, node: Node | None = None, since: float = 0.0) -> list[int]:
        """The types of the messages sent, all or those of *node*."""
        return [
            datagram[0]
            for when, source, _, datagram in self.sent
            if when >= since and (node is None or source == node.where)
        ]


def pair(seed: int = 0) -> tuple[World, Node, Node]:
    """Two nodes that know each other: 10.0.0.1 and fd00::1 behind a, 10.0.0.2 and fd00::2 behind b."""
    world = World(seed)
    a, b = world.node("a", ("192.0.2.1", 51820)), world.node("b", ("192.0.2.2", 51820))
    a.knows(b, "10.0.0.2/32", "fd00::2/128")
    b.knows(a, "10.0.0.1/32", "fd00::1/128")
    return world, a, b


#: From a to b, and back.
PING, PONG = ipv4("10.0.0.1", "10.0.0.2", b"ping"), ipv4("10.0.0.2", "10.0.0.1", b"pong")
