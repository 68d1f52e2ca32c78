"""Two devices and a network that does what networks do, and worse, for hours."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wireguard.drops import Drops

from .support import DELAY, Fate, Node, ipv4, ipv6, pair

#: What the network does with each datagram, in parts of a hundred: loses, doubles, delays, corrupts, cuts it, or sends
#: some old one after it.
Weather = tuple[int, int, int, int, int, int]
CALM: Weather = (0, 0, 0, 0, 0, 0)

weather = st.one_of(st.just(CALM), st.tuples(*[st.integers(0, 30)] * 6), st.just((100, 0, 0, 0, 0, 0)))
step = st.one_of(
    st.tuples(st.just("send"), st.sampled_from("ab"), st.integers(1, 20)),
    st.tuples(
        st.just("wait"), st.sampled_from([0.001, 0.1, 1.0, 4.9, 5.2, 10.0, 15.0, 60.0, 119.0, 181.0, 541.0, 3_700.0])
    ),
    st.tuples(st.just("weather"), weather),
    st.tuples(st.just("move"), st.sampled_from("ab"), st.integers(2, 250)),
    st.tuples(st.just("restart"), st.sampled_from("ab")),
    st.tuples(st.just("keepalive"), st.sampled_from("ab"), st.sampled_from([0, 1, 25])),
)


class Network:
    """The pair, the weather, and what was sent by whom."""

    def __init__(self, seed: int) -> None:
        self.world, self.a, self.b = pair(seed)
        self.world.fate = self.fate
        self.weather: Weather = CALM
        self.old: list[bytes] = []
        self.sent: dict[str, Counter[bytes]] = {"a": Counter(), "b": Counter()}
        self.received: dict[str, list[bytes]] = {"a": [], "b": []}
        self.number = 0

    def fate(self, datagram: bytes) -> Fate:
        random = self.world.random
        lose, double, delay, corrupt, cut, replay = (random.randrange(100) < each for each in self.weather)
        self.old.append(datagram)
        arrive: Fate = []
        if replay:
            arrive.append((random.random(), random.choice(self.old)))
        if lose:
            return arrive
        if corrupt:
            changed = bytearray(datagram)
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            return [*arrive, (DELAY, bytes(changed))]
        if cut:
            return [*arrive, (DELAY, datagram[: random.randrange(len(datagram))])]
        arrive.append((random.expovariate(1) if delay else DELAY, datagram))
        if double:
            arrive.append((random.expovariate(1), datagram))
        return arrive

    def node(self, name: str) -> tuple[Node, Node]:
        return (self.a, self.b) if name == "a" else (self.b, self.a)

    def send(self, name: str, count: int) -> None:
        node, _ = self.node(name)
        ends = ("10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2")
        source4, target4, source6, target6 = ends if name == "a" else (ends[1], ends[0], ends[3], ends[2])
        packets = []
        for _ in range(count):
            self.number += 1
            payload = b"%d" % self.number + bytes(self.number * 37 % 1300)
            packet = ipv4(source4, target4, payload) if self.number % 2 else ipv6(source6, target6, payload)
            packets.append(packet)
        self.sent[name].update(packets)
        node.send(*packets)

    def restart(self, name: str) -> None:
        node, other = self.node(name)
        peer = node.peer(other)
        keepalive = peer.persistent_keepalive
        node.restart()
        networks = ["10.0.0.2/32", "fd00::2/128"] if name == "a" else ["10.0.0.1/32", "fd00::1/128"]
        node.knows(other, *networks).persistent_keepalive = keepalive

    def move(self, name: str, last: int) -> None:
        node, other = self.node(name)
        where = (f"198.51.100.{last}", ord(name))
        if where != node.where:
            self.world.move(node, where)

    def check(self) -> None:
        self.world.run(0)  # what a change of the configuration has to send
        for name in "ab":
            node, other = self.node(name)
            arrived = Counter(node.received)
            assert arrived <= self.sent["b" if name == "a" else "a"]  # nothing else, and nothing twice
            device = node.device
            assert len(device.receivers) <= 4
            assert len(device.peers) == 1
            assert len(device.schedule._heap) <= 50
            assert len(node.peer(other)._staged) <= 128
            assert not device.outbox


@settings(max_examples=60)
@given(st.integers(0, 1000), st.lists(step, max_size=25))
def test_only_packets_that_were_sent_are_received_and_the_tunnel_recovers(
    seed: int, steps: list[tuple[object, ...]]
) -> None:
    network = Network(seed)
    for what, *rest in steps:
        if what == "send":
            network.send(*rest)  # type: ignore[arg-type]
        elif what == "wait":
            network.world.run(*rest)  # type: ignore[arg-type]
        elif what == "weather":
            (network.weather,) = rest  # type: ignore[assignment]
        elif what == "move":
            network.move(*rest)  # type: ignore[arg-type]
        elif what == "restart":
            network.restart(*rest)  # type: ignore[arg-type]
        else:
            name, seconds = rest
            node, other = network.node(str(name))
            node.peer(other).persistent_keepalive = seconds  # type: ignore[assignment]
        network.check()

    # The weather clears up, and both know where the other one is.
    network.weather = CALM
    network.world.run(6)
    for name in "ab":
        node, other = network.node(name)
        node.peer(other).endpoint = other.where
    # Whatever was on the way is settled when a session has become silent and another one has begun.
    for _ in range(30):
        for name in "ab":
            network.send(name, 1)
        network.world.run(1)
    for name in "ab":
        node, other = network.node(name)
        before = len(node.received)
        network.send("b" if name == "a" else "a", 5)
        network.world.run(1)
        assert len(node.received) == before + 5
    network.check()

    # And when nobody says anything, nobody remembers anything.
    for name in "ab":
        node, other = network.node(name)
        node.peer(other).persistent_keepalive = 0
    network.world.run(2000)
    for name in "ab":
        node, other = network.node(name)
        assert node.device.receivers == {}
        assert node.device.next_deadline() is None
    network.check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_order_is_kept_and_nothing_is_lost_where_the_network_does_neither(seed: int) -> None:
    network = Network(seed)
    world = network.world
    network.send("a", 1)
    world.run(1)
    for _ in range(200):
        network.send("a", world.random.randrange(1, 60))
        network.send("b", world.random.randrange(60))
        # No session expires meanwhile: then both would begin at once, and more would wait than can.
        world.run(world.random.choice([0.001, 0.05, 0.1, 1, 10, 50]))
    world.run(1)
    assert network.b.received == list(network.sent["a"])
    assert network.a.received == list(network.sent["b"])
    assert network.a.device.drops == network.b.device.drops == Drops()
