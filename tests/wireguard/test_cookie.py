"""MACs, cookies and limits."""

from __future__ import annotations

import random
from hashlib import blake2s

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wireguard.cookie import (
    COOKIE_REPLY_SIZE,
    HOST_BURST,
    HOST_RATE,
    HOSTS,
    LATENCY,
    LOAD_BURST,
    LOAD_LASTS,
    LOAD_RATE,
    SECRET_AGE,
    HostLimit,
    Load,
    Receiver,
    Sender,
    hchacha20,
    xchacha20poly1305,
)

US = b"our public key".ljust(32)
MESSAGE = b"\x01\0\0\0ALIC" + bytes(108)
HERE, THERE = b"192.0.2.1:1", b"192.0.2.1:2"


def ends(seed: int = 0) -> tuple[Sender, Receiver]:
    return Sender(US), Receiver(US, random.Random(seed).randbytes)


# -- published vectors -------------------------------------------------------------------------------------------------


def test_hchacha20_as_in_the_draft_section_2_2_1() -> None:
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert hchacha20(bytes(range(32)), nonce).hex() == expected


def test_xchacha20poly1305_as_in_the_draft_appendix_a_3_1() -> None:
    cipher, nonce = xchacha20poly1305(bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58)))
    plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
    assert cipher.encrypt(nonce, plain, bytes.fromhex("50515253c0c1c2c3c4c5c6c7")).hex() == (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c2"
        "16cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f615c6"
        "8b13b52ec0875924c1c7987947deafd8780acf49"
    )


# -- MACs and cookies --------------------------------------------------------------------------------------------------


def test_the_first_mac_is_keyed_by_the_receivers_public_key() -> None:
    sender, receiver = ends()
    sealed = sender.seal(MESSAGE, 0)
    key = blake2s(b"mac1----" + US).digest()
    assert sealed == MESSAGE + blake2s(MESSAGE, key=key, digest_size=16).digest() + bytes(16)
    assert receiver.knows_us(sealed)
    assert not Receiver(b"other".ljust(32), bytes).knows_us(sealed)


@given(st.integers(0, 131), st.integers(1, 255))
def test_a_changed_message_has_a_wrong_first_mac(where: int, change: int) -> None:
    sender, receiver = ends()
    changed = bytearray(sender.seal(MESSAGE, 0))
    changed[where] ^= change
    assert not receiver.knows_us(bytes(changed))


def test_a_cookie_is_valid_for_its_address_only() -> None:
    sender, receiver = ends()
    first = sender.seal(MESSAGE, 0)
    assert not receiver.is_reachable(first, HERE, 0)
    reply = receiver.reply(first, HERE, 0)
    assert len(reply) == COOKIE_REPLY_SIZE
    assert reply[:8] == b"\x03\0\0\0ALIC"
    assert not receiver.is_reachable(first, HERE, 0)
    assert sender.consume(reply, 0)
    second = sender.seal(MESSAGE, 0)
    assert receiver.knows_us(second)
    assert receiver.is_reachable(second, HERE, 0)
    assert not receiver.is_reachable(second, THERE, 0)


@given(st.integers(8, 63), st.integers(1, 255))
def test_a_changed_cookie_is_not_taken_and_the_right_one_still_is(where: int, change: int) -> None:
    sender, receiver = ends()
    reply = receiver.reply(sender.seal(MESSAGE, 0), HERE, 0)
    changed = bytearray(reply)
    changed[where] ^= change
    assert not sender.consume(bytes(changed), 0)
    assert sender.seal(MESSAGE, 0)[-16:] == bytes(16)
    assert sender.consume(receiver.reply(sender.seal(MESSAGE, 0), HERE, 0), 0)


def test_a_cookie_belongs_to_the_last_message_and_is_taken_once() -> None:
    sender, receiver = ends()
    assert not sender.consume(receiver.reply(ends()[0].seal(MESSAGE, 0), HERE, 0), 0)  # we sent nothing
    early = receiver.reply(sender.seal(MESSAGE, 0), HERE, 0)
    reply = receiver.reply(sender.seal(MESSAGE + b"!", 0), HERE, 0)
    assert not sender.consume(early, 0)
    assert sender.consume(reply, 0)
    assert not sender.consume(reply, 100)


def test_cookies_expire_at_the_sender_before_they_do_at_the_receiver() -> None:
    sender, receiver = ends()
    assert sender.consume(receiver.reply(sender.seal(MESSAGE, 0), HERE, 0), 0)
    almost = SECRET_AGE - LATENCY - 0.1
    sealed = sender.seal(MESSAGE, almost)
    assert receiver.is_reachable(sealed, HERE, almost)
    assert receiver.is_reachable(sealed, HERE, SECRET_AGE - 0.1)
    assert not receiver.is_reachable(sealed, HERE, SECRET_AGE)
    assert sender.seal(MESSAGE, SECRET_AGE - LATENCY)[-16:] == bytes(16)


def test_the_secret_behind_cookies_is_changed_with_age() -> None:
    sender, receiver = ends()
    first = sender.seal(MESSAGE, 0)
    assert sender.consume(receiver.reply(first, HERE, 0), 0)
    old = sender.seal(MESSAGE, 0)
    receiver.reply(first, HERE, SECRET_AGE - 1)
    assert receiver.is_reachable(old, HERE, SECRET_AGE - 1)
    receiver.reply(first, HERE, SECRET_AGE)
    assert not receiver.is_reachable(old, HERE, SECRET_AGE)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_load_begins_after_a_burst_and_lasts_a_second() -> None:
    load = Load()
    assert not any(load.add(5.0) for _ in range(LOAD_BURST))
    assert load.add(5.0)
    assert load.add(5.0 + LOAD_LASTS - 0.01)
    assert not load.add(5.0 + 2 * LOAD_LASTS)


def test_a_steady_rate_is_not_load() -> None:
    load = Load()
    assert not any(load.add(count / LOAD_RATE) for count in range(10 * LOAD_RATE))


def test_load_ends_in_time_after_a_long_attack() -> None:
    load = Load()
    for count in range(20_000):
        load.add(count / 10_000)
    assert load.add(2.0)
    assert not load.add(2.0 + LOAD_LASTS)


def test_a_host_has_a_burst_and_a_rate_of_its_own() -> None:
    limit = HostLimit()
    assert [limit.allow(b"a", 1.0) for _ in range(HOST_BURST + 2)] == [True] * HOST_BURST + [False] * 2
    assert limit.allow(b"b", 1.0)
    assert [limit.allow(b"a", 1.0 + 1 / HOST_RATE) for _ in range(2)] == [True, False]
    assert sum(limit.allow(b"a", 2.0 + count / 1000) for count in range(10_000)) == pytest.approx(
        10 * HOST_RATE + HOST_BURST, abs=2
    )


def test_a_bounded_number_of_hosts_is_remembered_and_no_longer_than_it_matters() -> None:
    limit = HostLimit()
    assert all(limit.allow(b"%d" % number, 1.0) for number in range(HOSTS))
    assert not limit.allow(b"one too many", 1.0)
    assert limit.allow(b"0", 1.0)
    assert len(limit._hosts) == HOSTS
    assert limit.allow(b"later", 1.0 + HOST_BURST / HOST_RATE)
    assert len(limit._hosts) == 1
