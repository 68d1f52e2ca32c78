"""Datagrams of one session: sealed, opened, and taken once."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from wireguard.drops import Drops
from wireguard.noise import Keys
from wireguard.session import WINDOW, ReplayWindow, Session, padding
from wireguard.timers import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME

KEYS = Keys(b"s" * 32, b"r" * 32)


def ends() -> tuple[Session, Session]:
    ours = Session(KEYS, b"OURS", b"HERS", is_initiator=True, now=0)
    theirs = Session(Keys(KEYS.receive, KEYS.send), b"HERS", b"OURS", is_initiator=False, now=0)
    return ours, theirs


# -- the window --------------------------------------------------------------------------------------------------------


class Model:
    """All counters ever seen."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.newest = -1

    def accept(self, counter: int) -> bool:
        if counter in self.seen or counter <= self.newest - WINDOW:
            return False
        self.seen.add(counter)
        self.newest = max(self.newest, counter)
        return True


@given(
    st.lists(
        st.one_of(
            st.integers(0, 3 * WINDOW),
            st.integers(WINDOW - 3, WINDOW + 3),
            st.integers(2 * WINDOW - 3, 2 * WINDOW + 3),
            st.integers(0, 20),
        ),
        max_size=60,
    )
)
def test_the_window_knows_what_was_received(counters: list[int]) -> None:
    window, model = ReplayWindow(), Model()
    for counter in counters:
        assert window.accept(counter) == model.accept(counter)


@given(st.lists(st.integers(-3 * WINDOW, 3 * WINDOW), max_size=60), st.integers(0, 2**63))
def test_the_window_moves_by_steps_of_any_size(steps: list[int], counter: int) -> None:
    window, model = ReplayWindow(), Model()
    for step in steps:
        counter = max(0, counter + step)
        assert window.accept(counter) == model.accept(counter)


batch = st.builds(
    lambda first, sizes: [first + each for each in sizes],
    st.integers(0, 3 * WINDOW),
    st.one_of(st.integers(0, WINDOW + 5).map(range), st.lists(st.integers(0, 10), max_size=10)),
)


@given(st.lists(st.one_of(batch, st.integers(0, 300)), max_size=8))
def test_batches_that_follow_are_accepted_at_once_and_others_one_by_one(batches: list[list[int] | int]) -> None:
    window, model = ReplayWindow(), Model()
    for counters in batches:
        following = list(
            range(model.newest + 1, model.newest + 1 + (counters if isinstance(counters, int) else len(counters)))
        )
        if isinstance(counters, int):
            counters = following
        at_once = window.accept_next(counters)
        assert at_once == (counters == following)
        for counter in counters:
            assert model.accept(counter) == (at_once or window.accept(counter))
    for counter in range(max(0, model.newest - WINDOW - 2), model.newest + 1):
        assert window.accept(counter) == model.accept(counter)


def test_the_edges_of_the_window() -> None:
    window = ReplayWindow()
    assert window.accept(WINDOW + 5)
    assert not window.accept(WINDOW + 5)
    assert not window.accept(5)
    assert window.accept(6)
    assert not window.accept(6)
    assert window.accept(WINDOW + 6)
    assert not window.accept(6)
    assert window.accept(7)
    assert window.accept(3 * WINDOW)
    assert not window.accept(2 * WINDOW)
    assert window.accept(2 * WINDOW + 1)


def test_a_run_backwards_through_the_whole_window() -> None:
    window = ReplayWindow()
    assert all(window.accept(counter) for counter in range(WINDOW, 0, -1))
    assert not any(window.accept(counter) for counter in range(WINDOW + 1))


# -- datagrams ---------------------------------------------------------------------------------------------------------


def test_a_datagram_is_as_the_whitepaper_says() -> None:
    ours, _ = ends()
    ours.sent = 0x0102030405060708
    (datagram,) = ours.seal([b"packet"], 1420)
    assert datagram[:16] == b"\x04\0\0\0HERS" + bytes.fromhex("0807060504030201")
    nonce = bytes(4) + datagram[8:16]
    assert ChaCha20Poly1305(KEYS.send).decrypt(nonce, datagram[16:], None) == b"packet".ljust(16, b"\0")


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(0, 2**63))
def test_what_is_sealed_is_opened_once_in_any_order(packets: list[bytes], first: int) -> None:
    ours, theirs = ends()
    ours.sent = first
    datagrams = ours.seal(packets, 0)
    assert ours.sent == first + len(packets)
    drops = Drops()
    opened = theirs.open(list(reversed(datagrams)), drops)
    assert [packet.rstrip(b"\0") for packet in reversed(opened)] == [packet.rstrip(b"\0") for packet in packets]
    assert theirs.open(datagrams, drops) == []
    assert drops == Drops(replayed=len(packets))


@given(st.integers(0, 9000), st.integers(0, 9000))
def test_padding_is_to_16_bytes_and_not_over_the_mtu(size: int, mtu: int) -> None:
    """The rule of wireguard-go, computed another way."""
    last, padded = size, size
    if mtu:
        while last > mtu:
            last -= mtu
    padded = last
    while padded % 16 and (not mtu or padded < mtu):
        padded += 1
    assert padding(size, mtu) == padded - last


@pytest.mark.parametrize(("size", "sealed"), [(1420, 1420), (1419, 1420), (1409, 1420), (1408, 1408), (1, 16), (0, 0)])
def test_full_packets_stay_as_they_are(size: int, sealed: int) -> None:
    ours, _ = ends()
    (datagram,) = ours.seal([bytes(size)], 1420)
    assert len(datagram) == sealed + 32


@given(st.integers(0, 63), st.integers(1, 255))
def test_a_changed_datagram_does_not_authenticate_and_the_right_one_still_does(where: int, change: int) -> None:
    """All but type and receiver, by which it was found."""
    ours, theirs = ends()
    (datagram,) = ours.seal([b"p" * 32], 0)
    changed = bytearray(datagram)
    changed[8 + where % (len(datagram) - 8)] ^= change
    drops = Drops()
    assert theirs.open([bytes(changed)], drops) == []
    assert drops == Drops(forged=1)
    assert theirs.open([datagram], drops) == [b"p" * 32]


@given(st.binary(max_size=100))
def test_noise_is_dropped(noise: bytes) -> None:
    _, theirs = ends()
    drops = Drops()
    assert theirs.open([b"\x04\0\0\0HERS" + noise], drops) == []
    assert drops.malformed + drops.forged == 1


# -- the end -----------------------------------------------------------------------------------------------------------


def test_the_last_counters_are_accepted_and_those_beyond_are_not() -> None:
    window = ReplayWindow()
    assert window.accept(REJECT_AFTER_MESSAGES - 3)
    beyond = [REJECT_AFTER_MESSAGES - 2 + each for each in range(3)]
    assert not window.accept_next(beyond)
    assert [window.accept(counter) for counter in beyond] == [True, True, False]


def test_no_counter_is_used_twice_or_beyond_the_last() -> None:
    ours, theirs = ends()
    ours.sent = REJECT_AFTER_MESSAGES - 2
    datagrams = ours.seal([b"1", b"2", b"3"], 0)
    assert len(datagrams) == 2
    assert not ours.can_send(0)
    assert ours.seal([b"4"], 0) == []
    assert len(theirs.open(datagrams, Drops())) == 2


@pytest.mark.parametrize("counter", [REJECT_AFTER_MESSAGES, 2**64 - 1])
def test_a_counter_beyond_the_last_is_refused(counter: int) -> None:
    _, theirs = ends()
    raw = counter.to_bytes(8, "little")
    sealed = ChaCha20Poly1305(KEYS.send).encrypt(bytes(4) + raw, b"", None)
    drops = Drops()
    assert theirs.open([b"\x04\0\0\0HERS" + raw + sealed], drops) == []
    assert drops == Drops(replayed=1)


def test_age() -> None:
    ours, _ = ends()
    assert ours.can_send(REJECT_AFTER_TIME - 0.1)
    assert not ours.is_expired(REJECT_AFTER_TIME - 0.1)
    assert not ours.can_send(REJECT_AFTER_TIME)
    assert ours.is_expired(REJECT_AFTER_TIME)
    ours.wear_out()
    assert not ours.can_send(0)
    assert not ours.is_expired(0)
