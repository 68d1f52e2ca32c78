"""All peers together: routes, roaming, load, configuration, and what strangers can do, which is nothing."""

from __future__ import annotations

import random
from collections.abc import Hashable
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wireguard import device as module
from wireguard.cookie import LOAD_BURST, Sender
from wireguard.device import Device
from wireguard.drops import Drops
from wireguard.noise import Identity, Initiator, Responder, tai64n
from wireguard.schedule import NEVER
from wireguard.session import WINDOW, Session
from wireguard.timers import REKEY_TIMEOUT

from .support import DELAY, PING, PONG, WALL, Node, Where, World, ipv4, ipv6, pair

ELSEWHERE = ("203.0.113.7", 9999)


def connect(seed: int = 0) -> tuple[World, Node, Node]:
    world, a, b = pair(seed)
    a.send(PING)
    world.run(1)
    b.send(PONG)
    world.run(1)
    assert (a.received, b.received) == ([PONG], [PING])
    world.sent.clear()
    return world, a, b


def state(device: Device) -> Any:
    """The state that strangers must not change. Drops are counted, and their handshakes count as load."""

    def of_session(session: Session | None) -> Any:
        if session is None:
            return None
        return session.index, session.sent, session._window._newest, bytes(session._window._seen)

    peers = {
        key: (
            [of_session(session) for session in (peer._sessions.previous, peer._sessions.current, peer._sessions.next)],
            peer._handshake,
            peer._cookies._cookie,
            peer._timers._deadlines[:],
            peer._endpoint,
            list(peer._staged),
            (peer._timers._attempts, peer._initiated, peer._is_last_minute, peer._last_timestamp, peer._last_consumed),
            (peer._timers._needs_another_keepalive, peer.last_handshake, peer.rx_bytes, peer.tx_bytes),
        )
        for key, peer in device.peers.items()
    }
    return peers, dict(device.receivers), device.schedule.next(), device.outbox


# -- routes ------------------------------------------------------------------------------------------------------------


def three() -> tuple[World, Node, Node, Node]:
    """Overlapping routes: the wider one is b's, the longer one within it c's."""
    world = World()
    a, b, c = (world.node(name, (f"192.0.2.{number}", 51820)) for number, name in enumerate("abc", 1))
    a.knows(b, "10.0.0.0/8", "fd00::/8")
    a.knows(c, "10.1.0.0/16", "fd01::/16")
    for other in (b, c):
        other.knows(a, "0.0.0.0/0", "::/0")
    return world, a, b, c


def test_the_longest_prefix_decides_destination_and_allowed_source() -> None:
    world, a, b, c = three()
    to_b = [ipv4("10.9.0.1", "10.2.0.1"), ipv6("fd02::9", "fd02::1")]
    to_c = [ipv4("10.9.0.1", "10.1.0.1"), ipv6("fd02::9", "fd01::1")]
    a.send(to_b[0], to_c[0], to_c[1], to_b[1], ipv4("10.9.0.1", "192.0.2.1"))
    world.run(1)
    assert b.received == to_b
    assert c.received == to_c
    assert a.device.drops == Drops(no_route=1)

    b.send(ipv4("10.2.0.1", "10.9.0.1"), ipv4("10.1.0.1", "10.9.0.1"))
    c.send(ipv6("fd01::1", "fd02::9"), ipv6("fd02::1", "fd02::9"), ipv4("192.0.2.1", "10.9.0.1"))
    world.run(1)
    assert sorted(a.received) == sorted([ipv4("10.2.0.1", "10.9.0.1"), ipv6("fd01::1", "fd02::9")])
    assert a.device.drops == Drops(no_route=1, disallowed_source=3)


def test_an_allowed_ip_that_moves_takes_its_packets_along() -> None:
    world, a, b, c = three()
    packet = ipv4("10.9.0.1", "10.1.0.1")
    a.send(packet)
    world.run(1)
    a.device.routes.insert(ip_network("10.1.0.0/16"), a.peer(b))
    a.send(packet)
    world.run(1)
    assert (b.received, c.received) == ([packet], [packet])
    c.send(ipv4("10.1.0.1", "10.9.0.1"))
    b.send(ipv4("10.1.0.1", "10.9.0.1"))
    world.run(1)
    assert a.received == [ipv4("10.1.0.1", "10.9.0.1")]
    assert a.device.drops == Drops(disallowed_source=1)


def test_a_batch_from_many_peers() -> None:
    world, a, b, c = three()
    from_b = [ipv4("10.2.0.1", "10.9.0.1", b"%d" % number) for number in range(10)]
    from_c = [ipv4("10.1.0.1", "10.9.0.1", b"%d" % number) for number in range(10)]
    b.send(*from_b)
    c.send(*from_c)
    world.run(1)
    a.received.clear()
    sealed = [
        [(datagram, node.where) for _, datagrams in node.device.outbound(packets, world.now) for datagram in datagrams]
        for node, packets in ((b, from_b), (c, from_c))
    ]
    mixed = [each for both in zip(*sealed, strict=True) for each in both]
    mixed[7:7] = [(b"", b.where), (b"\x04\0\0\0", b.where), (b"noise", c.where)]
    assert a.get(mixed) == [packet for both in zip(from_b, from_c, strict=True) for packet in both]
    assert a.device.drops == Drops(malformed=2, unknown_receiver=1)


def test_datagrams_to_one_peer_are_one_run_and_full_ones_have_one_size() -> None:
    """As segmentation by the kernel wants them."""
    world, a, b = connect()
    full = ipv4("10.0.0.1", "10.0.0.2", bytes(1400))
    assert len(full) == a.device.mtu
    ((address, datagrams),) = a.device.outbound([full] * 20 + [PING], world.now)
    assert address == b.where
    assert [len(datagram) for datagram in datagrams] == [1420 + 32] * 20 + [64]


# -- roaming -----------------------------------------------------------------------------------------------------------


def test_a_peer_is_followed_to_where_it_sends_from() -> None:
    world, a, b = connect()
    world.move(a, ELSEWHERE)
    b.send(PONG)
    world.run(1)
    assert len(a.received) == 1
    a.send(PING)
    world.run(1)
    assert b.peer(a).endpoint == ELSEWHERE
    b.send(PONG)
    world.run(1)
    assert len(a.received) == 2


@pytest.mark.parametrize("kind", [1, 2])
def test_a_peer_is_followed_by_handshakes(kind: int) -> None:
    world, a, b = connect()
    world.run(130)
    if kind == 1:
        mover, other, packet = a, b, PING
        world.move(a, ELSEWHERE)
        a.send(packet)
    else:
        mover, other, packet = b, a, PING
        a.send(PING)
        (initiation,) = [each for _, _, _, each in world.sent if each[0] == 1]
        _, ((_, (response,)),) = b.device.inbound([(initiation, a.where)], world.now)
        a.get([(response, ELSEWHERE)])
    if kind == 1:
        world.run(1)
    assert other.peer(mover).endpoint == ELSEWHERE


@pytest.mark.parametrize("change", ["replayed", "forged", "truncated", "from another key"])
def test_only_what_authenticates_moves_a_peer(change: str) -> None:
    world, a, b = connect()
    a.send(PING)
    datagram = world.sent[-1][3]
    if change == "replayed":
        world.run(1)
    elif change == "forged":
        datagram = datagram[:-1] + bytes([datagram[-1] ^ 1])
    elif change == "truncated":
        datagram = datagram[:-1]
    else:
        datagram = b"\x04\0\0\0" + b.device.peers[a.public_key]._sessions.current.index + b.device.rng(48)  # type: ignore[union-attr]
    before = state(b.device)
    assert b.get([(datagram, ELSEWHERE)]) == []
    assert state(b.device) == before
    assert b.peer(a).endpoint == a.where


def test_a_peer_that_moves_within_a_batch_is_where_the_newest_datagram_that_authenticates_came_from() -> None:
    world, a, b = connect()
    ((_, datagrams),) = a.device.outbound([PING] * 3, world.now)
    forged = datagrams[2][:-1] + bytes([datagrams[2][-1] ^ 1])
    batch = [(datagrams[0], a.where), (datagrams[1], ELSEWHERE), (forged, ("203.0.113.8", 1))]
    assert b.get(batch) == [PING, PING]
    assert b.peer(a).endpoint == ELSEWHERE


# -- replays -----------------------------------------------------------------------------------------------------------


def test_a_replayed_initiation_is_refused_at_any_time() -> None:
    world, a, b = pair()
    a.send(PING)
    initiation = world.sent[-1][3]
    world.run(1)
    for pause in (0, 0.5, 60, 1000, 100_000):
        world.run(pause)
        before, replayed = state(b.device), b.device.drops.replayed
        b.get([(initiation, ELSEWHERE)])
        assert state(b.device) == before
        assert b.device.drops.replayed == replayed + 1
    b.device.down()
    b.device.up()
    b.get([(initiation, ELSEWHERE)])
    assert world.kinds(b).count(2) == 1


def test_a_replayed_response_belongs_to_no_handshake() -> None:
    world, a, b = pair()
    a.send(PING)
    world.run(1)
    (response,) = [each for _, _, _, each in world.sent if each[0] == 2]
    before = state(a.device)
    a.get([(response, ELSEWHERE)])
    assert state(a.device) == before
    assert a.device.drops == Drops(unknown_receiver=1)


def test_initiations_that_come_too_fast_are_refused() -> None:
    world, a, b = pair()
    a.send(PING)
    world.run(1)
    shared = Identity(b"a" * 32).shared(b.public_key)
    macs = Sender(b.public_key)
    for count in range(100):
        stamp = tai64n(WALL + round(world.now * 10**9) + (count + 1) * 20_000_000)
        identity = Identity(b"a" * 32)
        made = Initiator(identity, b.public_key, shared, ephemeral=bytes([count]) * 32, sender=b"many", timestamp=stamp)
        world.now += 0.001
        b.get([(macs.seal(made.message, world.now), a.where)])
    assert world.kinds(b).count(2) <= 1 + 6
    assert b.device.drops.over_rate == 100 - world.kinds(b).count(2) + 1


def test_data_within_the_window_is_taken_once() -> None:
    world, a, b = connect()
    sends = a.device.outbound(
        [ipv4("10.0.0.1", "10.0.0.2", b"%d" % number) for number in range(WINDOW + 10)], world.now
    )
    datagrams = [datagram for _, run in sends for datagram in run]
    assert len(b.get((datagram, a.where) for datagram in datagrams[10:])) == WINDOW
    assert b.get((datagram, a.where) for datagram in datagrams) == []
    assert b.device.drops == Drops(replayed=WINDOW + 10)


# -- load --------------------------------------------------------------------------------------------------------------


def flood(world: World, target: Node, count: int, source: Where = ELSEWHERE) -> None:
    """Handshakes by a sender who only knows the public key of *target*."""
    macs = Sender(target.public_key)
    for _ in range(count):
        target.get([(macs.seal(b"\x01\0\0\0" + world.random.randbytes(112), world.now), source)])


def test_under_load_strangers_get_only_a_cookie_and_peers_still_connect() -> None:
    world, a, b = pair()
    flood(world, b, LOAD_BURST)
    assert world.kinds(b) == []
    flood(world, b, 10)
    assert world.kinds(b) == [3] * 10
    assert b.device.drops == Drops(forged=LOAD_BURST, over_rate=10)

    a.send(PING)
    world.run(0.5)
    assert world.kinds(a) == [1]
    assert world.kinds(b) == [3] * 11
    for _ in range(60):
        world.run(0.1)
        flood(world, b, 100)
    assert world.kinds(a)[:2] == [1, 1]
    assert world.kinds(b).count(2) == 1
    assert b.received == [PING]


def test_under_load_a_handshake_costs_a_bounded_number_of_key_exchanges(monkeypatch: pytest.MonkeyPatch) -> None:
    world, a, b = connect()
    exchanges = 0

    class Counted(Responder):
        def __init__(self, *given: Any) -> None:
            nonlocal exchanges
            exchanges += 1
            super().__init__(*given)

    monkeypatch.setattr(module, "Responder", Counted)
    flood(world, b, 5000)
    assert exchanges == LOAD_BURST
    # Whoever receives at its address gets some more, and no more than its share.
    macs = Sender(b.public_key)
    for _ in range(200):
        message = macs.seal(b"\x01\0\0\0" + world.random.randbytes(112), world.now)
        _, sends = b.device.inbound([(message, ELSEWHERE)], world.now)
        for _, (reply,) in sends:
            assert macs.consume(reply, world.now)
    assert exchanges == LOAD_BURST + 5
    assert len(b.lines) == len(connect()[2].lines)


def test_a_cookie_of_another_address_is_not_accepted() -> None:
    world, a, b = pair()
    flood(world, b, LOAD_BURST + 1)
    a.send(PING)
    world.run(0.5)
    world.move(a, ELSEWHERE)
    for _ in range(48):
        world.run(0.1)
        flood(world, b, 100)
    assert b.received == []
    assert world.kinds(b).count(2) == 0


# -- strangers ---------------------------------------------------------------------------------------------------------


def test_datagrams_of_strangers_change_nothing_and_make_no_log_line() -> None:
    world, a, b = connect()
    world.run(3)
    a.send(PING)
    world.run(1)
    before, lines = state(b.device), list(b.lines)
    current = b.peer(a)._sessions.current
    assert current is not None
    chaos = random.Random(1)
    macs = Sender(b.public_key)
    valid = [each for _, _, _, each in world.sent]
    for _ in range(300):
        body = chaos.randbytes(chaos.choice([0, 4, 12, 24, 56, 84, 108, 140, 1000, 65000]))
        kind = bytes([chaos.choice([0, 1, 2, 3, 4, 4, 5, 255]), 0, 0, chaos.choice([0, 0, 0, 1])])
        known = chaos.choice([kind + current.index + body, kind + body, body, chaos.choice(valid)])
        cut = known[: chaos.randrange(len(known) + 1)]
        for hostile in (known, cut, macs.seal(known, 0), macs.seal(known.ljust(116, b"\0")[:116], 0)):
            assert b.get([(hostile, ELSEWHERE)]) == []
        # Less than what is called load.
        world.now += 0.05
    after = state(b.device)
    assert after == before
    assert b.lines == lines
    assert {2} & set(world.kinds(b)) == set()


@given(st.lists(st.tuples(st.binary(max_size=200), st.sampled_from([ELSEWHERE, ("192.0.2.1", 51820)])), max_size=20))
def test_noise_changes_nothing(datagrams: list[tuple[bytes, Where]]) -> None:
    world, _, b = connect()
    before = state(b.device)
    assert b.get(datagrams) == []
    assert state(b.device) == before


def test_somebody_who_is_not_a_peer_gets_no_answer() -> None:
    world, _, b = pair()
    stranger = world.node("s", ELSEWHERE)
    stranger.knows(b, "10.0.0.0/8")
    before = state(b.device)
    stranger.send(ipv4("10.5.0.1", "10.0.0.2"))
    world.run(30)
    assert world.kinds(b) == []
    assert state(b.device) == before
    assert b.device.drops.forged == len(world.sent)


@pytest.mark.parametrize("change", range(8, 92, 7))
def test_a_changed_response_does_not_end_the_handshake_and_the_right_one_does(change: int) -> None:
    world, a, b = pair()
    a.send(PING)
    _, ((_, (response,)),) = b.device.inbound([(world.sent[-1][3], a.where)], world.now)
    changed = bytearray(response)
    changed[change] ^= 1
    before = state(a.device)
    a.get(
        [(bytes(changed), b.where), (Sender(a.public_key).seal(bytes(changed[:60]), 0), b.where)][: 1 + (change < 60)]
    )
    if change >= 76:  # the second MAC, which nobody looks at without load
        return
    assert state(a.device) == before
    a.get([(response, b.where)])
    world.run(1)
    assert b.received == [PING]


# -- configuration -----------------------------------------------------------------------------------------------------


def test_a_new_private_key_needs_a_new_handshake() -> None:
    world, a, b = connect()
    a.device.private_key = b"n" * 32
    b.send(PONG)
    world.run(0.1)
    assert len(a.received) == 2
    a.send(PING)
    assert world.kinds(a)[-1] == 1
    world.run(1)
    assert len(b.received) == 1  # b does not know the new key
    assert a.device.public_key is not None
    peer = b.device.add_peer(a.device.public_key)
    b.device.routes.insert(ip_network("10.0.0.1/32"), peer)
    world.run(6)
    assert len(b.received) == 2


def test_the_same_private_key_again_changes_nothing() -> None:
    world, a, b = connect()
    before = state(a.device)
    a.device.private_key = b"a" * 32
    assert state(a.device) == before


def test_no_private_key() -> None:
    world, a, b = connect()
    a.device.private_key = bytes(32)
    assert a.device.private_key is a.device.public_key is None
    a.send(PING)
    world.run(30)
    assert world.kinds(a) == []
    b.restart()
    b.knows(a, "10.0.0.1/32")
    b.send(PONG)
    world.run(1)
    assert world.kinds(a) == []
    a.device.private_key = b"a" * 32
    a.send(PING)
    world.run(6)
    assert b.received[-1] == PING


def test_the_devices_own_key_is_refused_as_a_peer() -> None:
    world, a, b = connect()
    with pytest.raises(ValueError, match="own public key"):
        a.device.add_peer(a.public_key)
    with pytest.raises(ValueError, match="32 bytes, not 3"):
        a.device.add_peer(b"key")
    a.device.private_key = b"b" * 32
    assert a.device.peers == {}
    assert a.device.receivers == {}
    assert a.device.routes.lookup(bytes([10, 0, 0, 2])) is None


def test_a_peer_is_added_once_and_removed_with_all_it_had() -> None:
    world, a, b = connect()
    peer = a.peer(b)
    assert a.device.add_peer(b.public_key) is peer
    a.send(PING)
    a.device.remove_peer(b.public_key)
    a.device.remove_peer(b.public_key)
    world.run(1)
    assert a.device.receivers == {}
    assert a.device.next_deadline() is None
    a.send(PING)
    b.send(PONG)
    world.run(1)
    assert a.device.drops == Drops(no_route=1, unknown_receiver=1)
    assert len(a.received) == 1


def test_down_forgets_sessions_and_up_begins_again() -> None:
    world, a, b = connect()
    a.send(PING)
    a.peer(b).persistent_keepalive = 5
    assert a.device.next_deadline() == world.now
    a.device.down()
    assert a.device.receivers == {}
    assert a.device.next_deadline() is None
    assert set(a.peer(b)._timers._deadlines) == {NEVER}
    world.run(1)
    b.send(PONG)
    a.send(PING)
    world.run(20)
    assert len(a.received) == 1
    assert world.kinds() == [4, 4, 1]
    world.sent.clear()
    a.device.up()
    world.run(1)
    assert world.kinds(a) == [1, 4]
    a.send(PING)
    world.run(1)
    assert b.received[-1] == PING


def test_a_device_is_down_at_first() -> None:
    device = Device(now=lambda: 0.0)
    device.private_key = b"a" * 32
    peer = device.add_peer(Identity(b"b" * 32).public_key)
    peer.endpoint = ("192.0.2.2", 1)
    peer.persistent_keepalive = 5
    device.routes.insert(ip_network("0.0.0.0/0"), peer)
    assert device.outbound([PING], 0) == []
    assert device.inbound([(b"\x01\0\0\0" + bytes(144), ("192.0.2.2", 1))], 0) == ([], [])
    assert device.next_deadline() is None
    device.up()
    assert device.next_deadline() == 0
    ((address, (datagram,)),) = device.expire(0)
    assert (address, datagram[0]) == (("192.0.2.2", 1), 1)


def test_an_address_may_be_any_object_with_a_source_function() -> None:
    def source(address: Hashable) -> tuple[bytes, bytes]:
        assert isinstance(address, str)
        return address.encode(), address.encode()

    message = Sender(Identity(b"a" * 32).public_key).seal(b"\x01\0\0\0" + bytes(112), 0)
    for given_source in (source, None):
        device = Device(now=lambda: 0.0, source=given_source)
        device.private_key = b"a" * 32
        device.up()
        device.inbound([(message, "x")] * LOAD_BURST, 0)
        if given_source is None:
            with pytest.raises(TypeError, match="not 'x'"):
                device.inbound([(message, "x")], 0)
        else:
            assert device.inbound([(message, "x")], 0)[1][0][0] == "x"


def test_counters_are_of_bytes_on_the_way() -> None:
    world, a, b = pair()
    a.send(PING)
    world.run(1)
    b.send(PONG, PONG)
    world.run(60)
    for node, other in ((a, b), (b, a)):
        assert node.peer(other).tx_bytes == sum(len(each) for _, source, _, each in world.sent if source == node.where)
        assert node.peer(other).rx_bytes == other.peer(node).tx_bytes


def test_the_last_handshake_is_in_nanoseconds_of_the_wall_clock() -> None:
    world, a, b = pair()
    assert a.peer(b).last_handshake == 0
    a.send(PING)
    world.run(1)
    assert a.peer(b).last_handshake == WALL + round((1000 + 2 * DELAY) * 10**9)
    assert b.peer(a).last_handshake == WALL + round((1000 + 3 * DELAY) * 10**9)


def test_a_thousand_peers_sleep_and_wake_one_by_one() -> None:
    world = World()
    a = world.node("a", ("192.0.2.1", 51820))
    for number in range(1000):
        peer = a.device.add_peer(Identity((8 * number).to_bytes(32, "little")).public_key)
        peer.endpoint = ("198.51.100.1", number)
        a.device.routes.insert(ip_network((0x0A000000 + number, 32)), peer)
    world.run(3600)
    assert world.turns == 0
    a.send(ipv4("10.9.0.1", "10.0.0.7"), ipv4("10.9.0.1", "10.0.0.8"))
    assert [target for _, _, target, _ in world.sent] == [("198.51.100.1", 7), ("198.51.100.1", 8)]
    world.run(REKEY_TIMEOUT + 0.5)
    assert len(world.sent) == 4
    assert world.turns <= 4


def test_a_peer_in_a_log_line_is_called_as_wireguard_go_does() -> None:
    peer = Device(now=lambda: 0.0).add_peer(bytes(range(32)))
    assert str(peer) == "peer(AAEC…dHh8)"
