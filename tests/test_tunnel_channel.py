"""The tunnel example without a kernel: who is the peer, and which datagrams are opened."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

KEY = bytes(range(32))
PACKETS = [b"one", b"two", b"", bytes(1420)]


def _load_example() -> Any:
    path = Path(__file__).parents[1] / "examples" / "tunnel.py"
    spec = importlib.util.spec_from_file_location("aiotuntap_example_tunnel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tunnel = _load_example()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that always goes on, so that a later start is never at the time of an earlier one."""
    monkeypatch.setattr(tunnel.time, "time_ns", itertools.count(1 << 60).__next__)


def give(channel: Any, *datagrams: bytes) -> list[bytes]:
    packets: list[bytes] = channel.open([(datagram, None) for datagram in datagrams])
    return packets


def greet(one: Any, other: Any, rounds: int = 2) -> list[bytes]:
    """Each hears the other's hello, as often as it takes. Returns the hellos."""
    said = []
    for _ in range(rounds):
        for speaker, listener in ((one, other), (other, one)):
            said.append(speaker.hello())
            assert give(listener, said[-1]) == []
    return said


def joined(key: bytes = KEY, other: bytes = KEY) -> tuple[Any, Any]:
    left, right = tunnel.Channel(key), tunnel.Channel(other)
    greet(left, right)
    return left, right


def state(channel: Any) -> dict[str, Any]:
    """All that a datagram could change."""
    return {name: value for name, value in vars(channel).items() if name != "_numbers"} | {"_seen": [*channel._seen]}


def test_packets_pass_both_ways() -> None:
    left, right = joined()
    for sender, receiver in ((left, right), (right, left), (left, right)):
        datagrams = sender.seal(PACKETS)
        assert [len(datagram) - len(packet) for datagram, packet in zip(datagrams, PACKETS, strict=True)] == [24] * 4
        assert give(receiver, *datagrams) == PACKETS


def test_nothing_leaves_before_there_is_a_peer() -> None:
    left, right = tunnel.Channel(KEY), tunnel.Channel(KEY)
    assert left.seal(PACKETS) == []
    give(left, right.hello())
    assert left.seal(PACKETS) == []  # that hello did not name this start, and may be an old one
    greet(left, right)
    assert len(left.seal(PACKETS)) == 4


def test_packets_sealed_with_another_key_are_dropped() -> None:
    left, right = joined(other=bytes(32))
    assert left.seal(PACKETS) == right.seal(PACKETS) == []


@given(st.lists(st.integers(0, 30), max_size=200))
def test_each_packet_is_taken_once_in_any_order(order: list[int]) -> None:
    left, right = joined()
    packets = [bytes([number]) for number in range(31)]
    datagrams = left.seal(packets)
    assert give(right, *(datagrams[number] for number in order)) == [packets[number] for number in dict.fromkeys(order)]


def test_a_late_packet_is_accepted_within_the_window() -> None:
    left, right = joined()
    datagrams = left.seal([number.to_bytes(2) for number in range(tunnel.WINDOW + 2)])
    assert give(right, datagrams[-1]) == [(tunnel.WINDOW + 1).to_bytes(2)]
    assert give(right, datagrams[2], datagrams[0]) == [b"\0\2", b"\0\0"]
    assert give(right, datagrams[1]) == []  # the last one has its place
    assert give(right, *datagrams[:3], datagrams[-1]) == []


@given(st.binary(max_size=100) | st.builds(lambda tail: b"\xff" * 8 + tail, st.binary(max_size=60)))
def test_random_datagrams_change_nothing(datagram: bytes) -> None:
    for channel in (tunnel.Channel(KEY), *joined()):
        before = state(channel)
        assert give(channel, datagram) == []
        assert state(channel) == before


def test_changed_and_cut_datagrams_change_nothing() -> None:
    left, right = joined()
    for datagram in (*left.seal(PACKETS[:3]), left.hello(), tunnel.Channel(KEY).hello()):
        before = state(right)
        forged = [datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1 :] for at in range(len(datagram))]
        cut = [datagram[:size] for size in range(len(datagram))]
        assert give(right, *forged, *cut, datagram + b"\0") == []
        assert state(right) == before
    assert give(right, *left.seal(PACKETS)) == PACKETS


@pytest.mark.parametrize("side", [0, 1])
def test_a_peer_that_restarts_is_the_peer_again(side: int) -> None:
    ends = list(joined())
    recorded = [*ends[0].seal(PACKETS), *ends[1].seal(PACKETS)]
    for _ in range(3):
        ends[side] = tunnel.Channel(KEY)
        recorded += greet(*ends)
        for sender, receiver in (ends, ends[::-1]):
            assert give(receiver, *sender.seal(PACKETS)) == PACKETS
        recorded += [*ends[0].seal(PACKETS), *ends[1].seal(PACKETS)]
    give(ends[0], *recorded[-8:-4])  # these were on their way, and are opened by
    give(ends[1], *recorded[-8:-4])  # the one of the two that they are for
    give(ends[0], *recorded[-4:])
    give(ends[1], *recorded[-4:])
    peers = [end._peer for end in ends]
    assert give(ends[0], *recorded) == give(ends[1], *recorded) == []
    assert [end._peer for end in ends] == peers
    greet(*ends)
    for sender, receiver in (ends, ends[::-1]):
        assert give(receiver, *sender.seal(PACKETS)) == PACKETS


def test_an_end_that_restarted_opens_nothing_that_was_recorded() -> None:
    left, right = joined()
    recorded = [*left.seal(PACKETS), *right.seal(PACKETS), *greet(left, right)]
    again = tunnel.Channel(KEY)
    assert give(again, *recorded) == []
    assert again._peer == tunnel.NOBODY  # none of them named this start
    greet(left, again)
    assert give(again, *recorded) == []
    assert give(again, *left.seal(PACKETS)) == PACKETS


def test_a_hello_from_before_the_peers_start_is_too_late() -> None:
    left, right = tunnel.Channel(KEY), tunnel.Channel(KEY)
    recorded = greet(left, right)  # they name this start of the right end, which lives on
    left = tunnel.Channel(KEY)
    greet(left, right)
    give(right, *recorded)
    assert give(right, *left.seal(PACKETS)) == PACKETS


def test_our_own_datagrams_are_not_accepted() -> None:
    left, right = tunnel.Channel(KEY), tunnel.Channel(KEY)
    own = greet(left, right)[1::2] + right.seal(PACKETS)
    right = tunnel.Channel(KEY)  # later than the left one, and so was the one before
    greet(left, right)
    assert give(right, *own, right.hello(), *right.seal(PACKETS)) == []
    assert right._peer == left._start
    greet(left, right)
    assert give(right, *left.seal(PACKETS)) == PACKETS


def test_an_end_is_never_its_own_peer() -> None:
    lonely = tunnel.Channel(KEY)
    for _ in range(3):
        assert give(lonely, lonely.hello()) == []
    assert lonely.seal(PACKETS) == []


def test_two_ends_may_start_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel.time, "time_ns", lambda: 1 << 60)
    left, right = joined()
    assert give(right, *left.seal(PACKETS)) == PACKETS
    assert give(left, *right.seal(PACKETS)) == PACKETS


def test_no_nonce_is_used_twice_with_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[bytes, bytes]] = []

    class Recorder:
        def __init__(self, key: bytes) -> None:
            self.cipher, self.key = original(key), key

        def encrypt(self, nonce: bytes, data: bytes, more: None) -> bytes:
            used.append((self.key, nonce))
            sealed: bytes = self.cipher.encrypt(nonce, data, more)
            return sealed

        def decrypt(self, nonce: bytes, data: bytes, more: None) -> bytes:
            packet: bytes = self.cipher.decrypt(nonce, data, more)
            return packet

    original = tunnel.ChaCha20Poly1305
    monkeypatch.setattr(tunnel, "ChaCha20Poly1305", Recorder)
    ends = list(joined())
    for side in (0, 1, 1, 0):
        for sender, receiver in (ends, ends[::-1]):
            assert give(receiver, *sender.seal(PACKETS)) == PACKETS
        ends[side] = tunnel.Channel(KEY)
        greet(*ends)
    assert len(used) == len(set(used)) == 32
