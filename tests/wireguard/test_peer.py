"""The timers of a peer, and what its sessions go through. Times are seconds since the first packet."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from wireguard.drops import Drops
from wireguard.peer import STAGED
from wireguard.timers import JITTER, MAX_RETRIES, REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES, RETRANSMIT

from .support import DELAY, PING, PONG, Fate, Node, World, ipv4, pair

INITIATION, RESPONSE, DATA = 1, 2, 4
KEEPALIVE = 32


def lost(datagram: bytes) -> Fate:
    return []


def from_node(world: World, node: Node) -> list[tuple[Any, int, int]]:
    """The datagrams that *node* sent: seconds after the start, type, size."""
    return [(when - 1000, each[0], len(each)) for when, source, _, each in world.sent if source == node.where]


def connect(seed: int = 0) -> tuple[World, Node, Node]:
    """A pair with a session that a began, confirmed by one packet; 1 second after the start."""
    world, a, b = pair(seed)
    a.send(PING)
    world.run(1)
    assert b.received == [PING]
    world.sent.clear()
    a.received.clear()
    b.received.clear()
    return world, a, b


# -- handshakes --------------------------------------------------------------------------------------------------------


def test_a_packet_begins_a_handshake_and_leaves_with_its_end() -> None:
    world, a, b = pair()
    a.send(PING)
    assert from_node(world, a) == [(0, INITIATION, 148)]
    world.run(1)
    assert from_node(world, b) == [(pytest.approx(DELAY), RESPONSE, 92)]
    assert from_node(world, a)[1:] == [(pytest.approx(2 * DELAY), DATA, 64)]
    assert b.received == [PING]
    b.send(PONG)
    world.run(1)
    assert a.received == [PONG]
    assert a.device.drops == b.device.drops == Drops()


def test_who_began_confirms_at_once_also_when_nothing_waits() -> None:
    """Or the other end could not use the session."""
    world, a, b = pair()
    a.peer(b).send_keepalive(world.now)
    world.run(1)
    assert world.kinds() == [INITIATION, RESPONSE, DATA]
    b.send(PONG)
    world.run(1)
    assert world.kinds() == [INITIATION, RESPONSE, DATA, DATA]
    assert a.received == [PONG]


def test_who_answers_uses_the_session_only_when_it_is_confirmed() -> None:
    world, a, b = pair()
    a.send(PING)
    world.fate = lambda datagram: [] if datagram[0] == DATA else [(DELAY, datagram)]
    world.run(0.1)
    b.send(PONG)
    assert b.device.peers[a.public_key].last_handshake == 0
    assert world.kinds(b) == [RESPONSE]
    world.fate = lambda datagram: [(DELAY, datagram)]
    a.send(PING)
    world.run(0.1)
    assert a.received == [PONG]
    assert b.device.peers[a.public_key].last_handshake != 0


def test_a_handshake_is_tried_again_with_jitter_and_given_up_in_time() -> None:
    world, a, b = pair()
    world.fate = lost
    a.send(PING)
    world.run(200)
    times = [when for when, kind, _ in from_node(world, a) if kind == INITIATION]
    assert len(times) == len(world.sent) == MAX_RETRIES + 2
    gaps = [late - early for early, late in pairwise(times)]
    assert all(5 <= gap < 5 + JITTER + 1e-6 for gap in gaps)
    assert len({round(gap, 6) for gap in gaps}) > 10
    assert 90 <= times[-1] < 90 + 5 + 20 * JITTER
    assert a.device.drops == Drops(queue_full=1)
    assert a.lines[-1].endswith("giving up")
    assert len(a.device.receivers) == 1
    world.run(550)
    assert a.device.receivers == {}
    assert a.device.next_deadline() is None

    # The next packet has as many attempts.
    a.send(PING)
    world.run(200)
    assert len(world.sent) == 2 * (MAX_RETRIES + 2)
    world.fate = lambda datagram: [(DELAY, datagram)]
    a.send(PING)
    world.run(1)
    assert b.received == [PING]


def test_at_most_one_handshake_in_five_seconds() -> None:
    world, a, _ = pair()
    world.fate = lost
    for _ in range(100):
        a.send(PING)
        world.run(0.04)
    assert world.kinds() == [INITIATION]


def test_packets_that_keep_coming_keep_the_handshake_going() -> None:
    world, a, b = pair()
    world.fate = lost
    for _ in range(300):
        a.send(PING)
        world.run(1)
    assert 300 / (5 + JITTER) - 1 <= len(world.sent) <= 60
    assert not any("giving up" in line for line in a.lines)
    world.fate = lambda datagram: [(DELAY, datagram)]
    world.run(6)
    assert set(b.received) == {PING}


def test_both_begin_at_once() -> None:
    """Each answers the other's and forgets its own; jitter decides who is first the next time."""
    for seed in range(20):
        world, a, b = pair(seed)
        a.send(PING)
        b.send(PONG)
        world.run(12)
        assert a.received == [PONG]
        assert b.received == [PING]
        a.send(PING)
        b.send(PONG)
        world.run(0.1)
        assert (len(a.received), len(b.received)) == (2, 2)


def test_waiting_packets_are_bounded_and_the_newest_are_kept_in_order() -> None:
    world, a, b = pair()
    packets = [ipv4("10.0.0.1", "10.0.0.2", b"%d" % number) for number in range(STAGED + 50)]
    for packet in packets[:100]:
        a.send(packet)
    a.send(*packets[100:])
    world.run(1)
    assert b.received == packets[50:]
    assert a.device.drops == Drops(queue_full=50)


def test_a_batch_for_a_session_is_not_bounded() -> None:
    world, a, b = connect()
    packets = [ipv4("10.0.0.1", "10.0.0.2", b"%d" % number) for number in range(3 * STAGED)]
    a.send(*packets)
    world.run(1)
    assert b.received == packets


def test_without_an_endpoint_packets_wait_for_one() -> None:
    world, a, b = pair()
    a.peer(b).endpoint = None
    a.send(PING)
    world.run(3)
    assert world.sent == []
    a.peer(b).endpoint = b.where
    assert a.device.next_deadline() == world.now
    world.run(1)
    assert b.received == [PING]


def test_without_an_endpoint_packets_do_not_wait_for_ever() -> None:
    world, a, b = pair()
    a.peer(b).endpoint = None
    a.send(PING)
    world.run(120)
    assert a.device.drops == Drops(queue_full=1)
    a.peer(b).endpoint = b.where
    world.run(600)
    assert world.sent == []
    assert a.device.next_deadline() is None


@pytest.mark.parametrize("key", [b"p" * 32, bytes(32)])
def test_the_right_preshared_key(key: bytes) -> None:
    world, a, b = pair()
    a.peer(b).preshared_key = b.peer(a).preshared_key = key
    a.send(PING)
    world.run(1)
    assert b.received == [PING]


def test_a_wrong_preshared_key_never_gets_through_and_the_right_one_does_then() -> None:
    world, a, b = pair()
    a.peer(b).preshared_key = b"p" * 32
    a.send(PING)
    world.run(60)
    assert b.received == []
    assert a.peer(b).last_handshake == b.peer(a).last_handshake == 0
    assert a.device.drops.forged == world.kinds(b).count(RESPONSE) > 5
    a.peer(b).preshared_key = bytes(32)
    world.run(6)
    assert b.received == [PING]


def test_a_handshake_with_a_key_of_low_order_fails() -> None:
    world, a, _ = pair()
    bad = a.device.add_peer(bytes(32))
    bad.endpoint = ("192.0.2.9", 1)
    bad.persistent_keepalive = 1
    world.run(20)
    assert world.sent == []
    assert "low order" in a.lines[-1]


@pytest.mark.parametrize("occasion", ["a handshake is tried again", "silence after data"])
def test_who_does_not_answer_is_tried_without_our_own_address(occasion: str) -> None:
    """It may not be ours any more."""
    world, a, b = connect()
    a.device.without_local = lambda address: address[:2]
    if occasion == "silence after data":
        a.peer(b).endpoint = (*b.where, "192.0.2.1")
        world.fate = lost
        a.send(PING)
        world.run(14)
        assert a.peer(b).endpoint == (*b.where, "192.0.2.1")
        world.run(2)
    else:
        world.run(200)
        a.peer(b).endpoint = (*b.where, "192.0.2.1")
        world.sent.clear()
        a.send(PING)
        world.run(6)
        assert [target for _, _, target, _ in world.sent][:2] == [(*b.where, "192.0.2.1"), b.where]
    assert a.peer(b).endpoint == b.where


# -- keepalives --------------------------------------------------------------------------------------------------------


def test_data_is_answered_by_a_keepalive_after_ten_seconds() -> None:
    world, _, b = connect()
    world.run(60)
    assert from_node(world, b) == [(pytest.approx(10 + 3 * DELAY), DATA, KEEPALIVE)]
    assert len(world.sent) == 1


def test_data_in_the_other_direction_needs_no_keepalive() -> None:
    world, a, b = connect()
    world.run(5)
    b.send(PONG)
    world.run(4)
    a.send(PING)
    world.run(60)
    assert [(round(when), size) for when, _, size in from_node(world, b)] == [(6, 64), (20, KEEPALIVE)]
    assert [(round(when), size) for when, _, size in from_node(world, a)] == [(10, 64)]


def test_data_that_came_meanwhile_is_answered_by_another_keepalive() -> None:
    world, a, b = connect()
    world.run(4)
    a.send(PING)
    world.run(60)
    assert [(round(when), size) for when, _, size in from_node(world, b)] == [(10, KEEPALIVE), (20, KEEPALIVE)]


def test_silence_after_data_begins_a_handshake() -> None:
    world, a, b = connect()
    world.run(20)
    world.sent.clear()
    world.fate = lost
    a.send(PING)
    world.run(12)
    a.send(PING)
    world.run(3.5)
    (_, _, (when, kind, _)) = from_node(world, a)
    assert kind == INITIATION
    assert 21 + 15 <= when < 21 + 15 + JITTER


def test_a_persistent_keepalive_comes_when_it_is_turned_on_and_then_after_each_silence() -> None:
    world, a, b = connect()
    world.run(20)
    world.sent.clear()
    a.peer(b).persistent_keepalive = 25
    world.run(60)
    assert [round(when) for when, _, _ in from_node(world, a)] == [21, 46, 71]
    assert world.kinds(b) == []
    world.run(5)
    b.send(PONG)
    world.run(11)
    assert [(round(when), size) for when, _, size in from_node(world, a)][3:] == [(96, KEEPALIVE)]
    a.peer(b).persistent_keepalive = 0
    world.sent.clear()
    world.run(100)
    assert world.kinds(a) == []


def test_what_is_received_puts_a_persistent_keepalive_off() -> None:
    world, a, b = connect()
    a.peer(b).persistent_keepalive = 25
    world.run(20)
    b.peer(a).send_keepalive(world.now)
    world.run(24)
    assert world.kinds(a) == [DATA]
    world.run(2)
    assert world.kinds(a) == [DATA, DATA]


def test_after_a_long_sleep_of_the_machine_a_persistent_keepalive_brings_the_tunnel_up_again() -> None:
    world, a, b = connect()
    a.peer(b).persistent_keepalive = 25
    world.run(10)
    world.now += 8 * 3600
    world.sent.clear()
    world.run(1)
    assert world.kinds() == [INITIATION, RESPONSE, DATA]


def test_a_persistent_keepalive_alone_brings_a_tunnel_up_and_keeps_it() -> None:
    world, a, b = pair()
    a.peer(b).persistent_keepalive = 10
    for _ in range(24 * 6):
        world.run(600)
        b.send(PONG)
        world.run(1)
    assert a.received == [PONG] * 24 * 6
    gaps = [late[0] - early[0] for early, late in pairwise(from_node(world, a))]
    assert max(gaps) < 2 * 10  # what is received also puts it off


@pytest.mark.parametrize("missing", ["the peer's address", "our own key"])
def test_a_persistent_keepalive_begins_when_it_can_however_late_that_is(missing: str) -> None:
    world, a, b = pair()
    if missing == "our own key":
        a.device.private_key = None
    else:
        a.peer(b).endpoint = None
    a.peer(b).persistent_keepalive = 10
    world.run(1000)
    assert world.sent == []
    if missing == "our own key":
        a.device.private_key = b"a" * 32
    else:
        a.peer(b).endpoint = b.where
    world.run(30)
    assert world.kinds(a)[:2] == [INITIATION, DATA]
    assert len(world.kinds(a)) == 4


# -- the age of sessions -----------------------------------------------------------------------------------------------


def test_who_began_renews_a_session_by_sending_after_two_minutes() -> None:
    world, a, b = connect()
    first = a.peer(b).last_handshake
    world.run(118)
    a.send(PING)
    assert INITIATION not in world.kinds()
    world.run(1.1)
    b.send(PONG)
    world.run(0.5)
    assert INITIATION not in world.kinds()
    a.send(PING)
    world.run(1)
    assert world.kinds(a)[-3:] == [DATA, INITIATION, DATA]
    assert world.kinds(b)[-1] == RESPONSE
    assert a.peer(b).last_handshake - first == pytest.approx(120.6e9, rel=0.01)
    assert b.peer(a).last_handshake > first


def test_who_began_renews_a_session_by_receiving_shortly_before_it_expires() -> None:
    """Once: then it is a matter of retries. And with the next session again."""
    world, a, b = connect()
    for _ in range(2):
        session = a.peer(b)._sessions.current
        assert session is not None
        world.run(20)  # until the keepalives that answer what came before are sent
        world.sent.clear()
        world.run(session.created + 164 - world.now)
        b.send(PONG)
        world.run(0.5)
        assert INITIATION not in world.kinds()
        world.run(1)
        world.fate = lambda datagram: [] if datagram[0] == INITIATION else [(DELAY, datagram)]
        b.send(PONG)
        world.run(0.1)
        assert world.kinds(a) == [INITIATION]
        expected = a.peer(b)._timers._deadlines[RETRANSMIT]
        while world.now < expected - 0.01:
            b.send(PONG)
            world.run(0.01)
            assert world.kinds(a) == [INITIATION]
        world.fate = lambda datagram: [(DELAY, datagram)]
        world.run(0.1)
        assert world.kinds(a)[1:] == [INITIATION, DATA]
        assert set(a.received) == {PONG}


def test_who_answered_leaves_the_last_minute_to_the_other() -> None:
    world, a, b = connect()
    world.run(165)
    world.fate = lambda datagram: [] if datagram[0] == INITIATION else [(DELAY, datagram)]
    a.send(PING)
    world.run(0.1)
    assert b.received == [PING]
    assert INITIATION not in world.kinds(b)


def test_no_session_is_used_after_three_minutes() -> None:
    world, a, b = connect()
    a.send(PING)
    late = world.sent[-1][3]
    world.run(178.5)
    assert b.get([(late[:8] + b"\xff" * 8 + late[16:], a.where)]) == []
    assert b.device.drops == Drops(forged=1)
    world.run(0.6)
    world.sent.clear()
    b.get([(late, a.where)])
    assert b.device.drops == Drops(forged=1, expired=1)
    a.send(PING)
    assert world.kinds() == [INITIATION]
    world.run(1)
    assert b.received == [PING, PING]


def test_all_keys_are_forgotten_after_nine_minutes() -> None:
    world, a, b = connect()
    world.run(538)
    for node, other in ((a, b), (b, a)):
        assert node.peer(other)._sessions.current is not None
        assert node.device.receivers
    world.run(2)
    for node, other in ((a, b), (b, a)):
        peer = node.peer(other)
        assert not any((peer._sessions.previous, peer._sessions.current, peer._sessions.next, peer._handshake))
        assert node.device.receivers == {}
        assert node.device.next_deadline() is None


def test_a_session_is_renewed_after_many_messages() -> None:
    world, a, b = connect()
    session = b.peer(a)._sessions.current
    assert session is not None
    world.run(5)
    session.sent = REKEY_AFTER_MESSAGES - 1
    b.send(PONG)
    assert world.kinds(b) == [DATA]
    b.send(PONG)
    assert world.kinds(b) == [DATA, DATA, INITIATION]
    world.run(1)
    assert b.peer(a)._sessions.current is not session


def test_packets_wait_for_the_next_session_after_too_many_messages() -> None:
    world, a, b = connect()
    session = a.peer(b)._sessions.current
    assert session is not None
    world.run(5)
    session.sent = REJECT_AFTER_MESSAGES - 2
    packets = [ipv4("10.0.0.1", "10.0.0.2", b"%d" % number) for number in range(5)]
    a.send(*packets)
    assert world.kinds(a) == [DATA, DATA, INITIATION]
    world.run(1)
    assert b.received == packets


def test_packets_on_the_way_during_a_handshake_arrive() -> None:
    """The session before still receives."""
    world, a, b = connect()
    world.run(120)
    world.fate = lambda datagram: [(DELAY if datagram[0] != DATA else 1.0, datagram)]
    a.send(PING)
    b.send(PONG)
    world.run(5)
    assert world.kinds(a)[:2] == [DATA, INITIATION]
    assert (a.received, b.received) == ([PONG], [PING])
    assert a.device.drops == b.device.drops == Drops()


def test_the_session_before_still_receives_when_the_next_one_is_confirmed() -> None:
    world, a, b = connect()
    world.run(120)
    world.fate = lambda datagram: [(1.0 if len(datagram) == 64 else DELAY, datagram)]
    a.send(PING)
    world.run(0.5)
    assert b.peer(a)._sessions.previous is not None
    assert b.received == []
    world.run(1)
    assert b.received == [PING]


def test_an_unconfirmed_session_is_replaced_by_the_next_one() -> None:
    world, a, b = connect()
    world.run(120)
    a.send(PING)
    world.run(1)
    old = b.peer(a)._sessions.previous
    assert old is not None
    world.run(121)
    world.fate = lambda datagram: [] if datagram[0] in (RESPONSE, DATA) else [(DELAY, datagram)]
    a.send(PING)
    world.run(40)
    # The current one, and the newest of those that were answered: nobody needs the one before the current one any more.
    assert len(b.device.receivers) == 2
    assert b.peer(a)._sessions.previous is None
    assert old.index not in b.device.receivers
    world.fate = lambda datagram: [(DELAY, datagram)]
    a.send(PING)
    world.run(6)
    assert b.received[-1] == PING
    assert len(b.device.receivers) <= 2


def test_a_responder_without_confirmation_then_begins_a_handshake() -> None:
    """A late response may still arrive, and must not replace a newer session."""
    world, a, b = pair()
    world.fate = lambda datagram: [(20.0 if datagram[0] == DATA else DELAY, datagram)]
    a.send(PING)
    world.run(6)
    answered = b.peer(a)._sessions.next
    assert answered is not None
    world.fate = lambda datagram: [(DELAY, datagram)]
    b.send(PONG)
    world.run(1)
    peer = b.peer(a)
    current = peer._sessions.current
    assert peer._sessions.previous is answered
    assert peer._sessions.next is None
    world.run(15)
    assert b.received == [PING]
    assert peer._sessions.current is current
    a.send(PING)
    b.send(PONG)
    world.run(1)
    assert (a.received, b.received) == ([PONG, PONG], [PING, PING])


# -- days --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_traffic_for_a_day_loses_nothing_and_keeps_little() -> None:
    world, a, b = pair()
    count = 0
    for _ in range(24 * 60):
        count += 1
        a.send(PING)
        world.run(29.5)
        b.send(PONG)
        world.run(30.5)
        assert len(a.device.receivers) <= 3
    assert (len(a.received), len(b.received)) == (count, count)
    assert 24 * 3600 / 180 < world.kinds(a).count(INITIATION) < 24 * 3600 / 120
    assert world.kinds(b).count(INITIATION) == 0
    assert a.device.drops == b.device.drops == Drops()
    assert a.peer(b).tx_bytes == b.peer(a).rx_bytes
    assert a.peer(b).rx_bytes == b.peer(a).tx_bytes


def test_an_idle_device_has_nothing_to_do() -> None:
    world, a, _ = pair()
    a.send(PING)
    world.run(1000)
    turns = world.turns
    assert turns < 20
    world.run(10 * 24 * 3600)
    assert world.turns == turns


# -- restarts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["began", "answered"])
def test_a_restart_is_noticed_within_seconds(who: str) -> None:
    """The restart is noticed by silence: datagrams for unknown sessions are not answered."""
    world, a, b = connect()
    world.run(30)
    restarted, other = (a, b) if who == "began" else (b, a)
    restarted.restart()
    restarted.knows(other, "10.0.0.0/24", endpoint=False)
    packet = PONG if restarted is a else PING
    for _ in range(17):
        other.send(packet)
        world.run(1)
    assert restarted.device.drops.unknown_receiver > 0
    assert restarted.received
    assert restarted.peer(other).endpoint == other.where


@pytest.mark.parametrize("who", ["began", "answered"])
def test_a_peer_that_restarts_and_sends_is_received_at_once(who: str) -> None:
    world, a, b = connect()
    world.run(30)
    restarted, other, packet = (a, b, PING) if who == "began" else (b, a, PONG)
    restarted.restart()
    restarted.knows(other, "10.0.0.0/24")
    restarted.send(packet)
    world.run(1)
    assert other.received == [packet]
