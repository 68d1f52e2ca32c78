"""The handshake with published test vectors, and with invalid messages."""

from __future__ import annotations

from hashlib import blake2s

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from wireguard import noise
from wireguard.noise import NO_KEY, HandshakeError, Identity, Initiator, Keys, Responder, kdf, tai64n

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
STAMP = tai64n(1_700_000_000 * 10**9)
#: Points with which every private key gives the same secret, all zero.
LOW_ORDER = [
    NO_KEY,
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def begin() -> Initiator:
    shared = ALICE.shared(BOB.public_key)
    return Initiator(ALICE, BOB.public_key, shared, ephemeral=b"e" * 32, sender=b"ALIC", timestamp=STAMP)


def answer(message: bytes, preshared_key: bytes = NO_KEY) -> tuple[bytes, Keys]:
    responder = Responder(BOB, message)
    assert responder.timestamp(BOB.shared(responder.remote)) == STAMP
    return responder.respond(preshared_key, ephemeral=b"f" * 32, sender=b"BOB.")


# -- published vectors -------------------------------------------------------------------------------------------------


def test_x25519_as_in_rfc_7748_section_6_1() -> None:
    alice = Identity(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = Identity(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public_key.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public_key.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.shared(bob.public_key).hex() == bob.shared(alice.public_key).hex() == shared


def test_blake2s_as_in_rfc_7693_appendix_b() -> None:
    assert blake2s(b"abc").hexdigest() == "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"


def test_chacha20poly1305_as_in_rfc_8439_section_2_8_2() -> None:
    sealed = ChaCha20Poly1305(bytes(range(0x80, 0xA0))).encrypt(
        bytes.fromhex("070000004041424344454647"),
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.",
        bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
    )
    assert sealed.hex() == (
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b"
        "2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586ce"
        "c64b61161ae10b594f09e26a7e902ecbd0600691"
    )


@pytest.mark.parametrize(
    ("key", "data", "keys"),
    [
        (
            b"test-key",
            b"test-input",
            [
                "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
                "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
                "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
            ],
        ),
        (
            b"wireguard",
            b"wireguard",
            [
                "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
                "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
                "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
            ],
        ),
        (
            b"",
            b"",
            [
                "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
                "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
                "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
            ],
        ),
    ],
)
def test_keys_are_derived_as_the_vectors_of_wireguard_go_say(key: bytes, data: bytes, keys: list[str]) -> None:
    for count in (1, 2, 3):
        assert [each.hex() for each in kdf(key, data, count)] == keys[:count]


def test_the_pattern_as_in_the_vectors_of_cacophony(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, which WireGuard gives another prologue and payloads of its own.

    The vector's first payload is four bytes longer than a timestamp, so the tag behind it is cut off on the way.
    """
    monkeypatch.setattr(noise, "_INITIAL_HASH", blake2s(noise._INITIAL_CHAIN + b"John Galt").digest())
    initiator_key = Identity(bytes.fromhex("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1"))
    responder_key = Identity(bytes.fromhex("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893"))
    preshared_key = bytes.fromhex("54686973206973206d7920417573747269616e20706572737065637469766521")
    first = bytes.fromhex(
        "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944001e21de9f98ddd8e2ad57527207feb56253c9c94a9e49"
        "6782ecfcb2a75fbcaf1b52948cc48daefe660c62119ab5000980c84831215f2441eba616548e832985464cf17e51ee93109008399a21f7"
        "e13f"
    )
    initiator = Initiator(
        initiator_key,
        responder_key.public_key,
        initiator_key.shared(responder_key.public_key),
        ephemeral=bytes.fromhex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"),
        sender=b"init",
        timestamp=b"Ludwig von Mises",
    )
    assert initiator.message == b"\x01\0\0\0init" + first[:108]

    responder = Responder(responder_key, initiator.message)
    assert responder.remote == initiator_key.public_key
    responder._stamp = first[80:]
    assert responder.timestamp(responder_key.shared(responder.remote)) == b"Ludwig von Mises"
    ephemeral = bytes.fromhex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b")
    response, keys = responder.respond(preshared_key, ephemeral=ephemeral, sender=b"resp")
    public = bytes.fromhex("95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843")
    assert response[:44] == b"\x02\0\0\0respinit" + public

    assert initiator.finish(response, preshared_key) == (b"resp", Keys(keys.receive, keys.send))
    nonce = bytes(12)
    assert ChaCha20Poly1305(keys.receive).encrypt(nonce, b"F. A. Hayek", b"").hex() == (
        "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7"
    )
    assert ChaCha20Poly1305(keys.send).encrypt(nonce, b"Carl Menger", b"").hex() == (
        "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef"
    )


# -- what we make of it ------------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32))
def test_both_ends_have_the_same_keys(preshared_key: bytes) -> None:
    initiator = begin()
    response, theirs = answer(initiator.message, preshared_key)
    assert (len(initiator.message) + 32, len(response) + 32) == (noise.INITIATION_SIZE, noise.RESPONSE_SIZE)
    assert initiator.finish(response, preshared_key) == (b"BOB.", Keys(theirs.receive, theirs.send))


def test_another_preshared_key_does_not_authenticate_and_the_right_one_still_does() -> None:
    initiator = begin()
    response, theirs = answer(initiator.message, b"p" * 32)
    for wrong in (NO_KEY, b"q" * 32):
        with pytest.raises(HandshakeError, match="is not authentic"):
            initiator.finish(response, wrong)
    assert initiator.finish(response, b"p" * 32)[1].send == theirs.receive


@given(st.integers(8, 115), st.integers(1, 255))
def test_a_changed_initiation_does_not_authenticate(where: int, change: int) -> None:
    """Behind type and sender, which are in the first MAC. A key's highest bit is ignored, so it is in the hash alone."""
    changed = bytearray(begin().message)
    changed[where] ^= change
    with pytest.raises(HandshakeError):
        answer(bytes(changed))


@given(st.integers(12, 59), st.integers(1, 255))
def test_a_changed_response_does_not_authenticate_and_the_right_one_still_does(where: int, change: int) -> None:
    initiator = begin()
    response, theirs = answer(initiator.message)
    changed = bytearray(response)
    changed[where] ^= change
    with pytest.raises(HandshakeError):
        initiator.finish(bytes(changed), NO_KEY)
    assert initiator.finish(response, NO_KEY)[1].send == theirs.receive


@given(st.binary(min_size=116, max_size=116))
def test_random_bytes_are_not_an_initiation(message: bytes) -> None:
    with pytest.raises(HandshakeError):
        Responder(BOB, message)


def test_an_initiation_for_somebody_else_does_not_authenticate() -> None:
    with pytest.raises(HandshakeError):
        Responder(ALICE, begin().message)


def test_a_sender_with_the_public_key_of_another_fails_at_the_timestamp() -> None:
    """Anybody can encrypt Alice's public key for Bob; only Alice and Bob share their static secret."""
    mallory = Identity(b"m" * 32)
    borrowed = Identity(b"m" * 32)
    borrowed.public_key = ALICE.public_key
    shared = mallory.shared(BOB.public_key)
    forged = Initiator(borrowed, BOB.public_key, shared, ephemeral=b"e" * 32, sender=b"ALIC", timestamp=STAMP)
    responder = Responder(BOB, forged.message)
    assert responder.remote == ALICE.public_key
    with pytest.raises(HandshakeError):
        responder.timestamp(BOB.shared(ALICE.public_key))


@pytest.mark.parametrize("point", LOW_ORDER, ids=bytes.hex)
def test_points_of_low_order_are_refused(point: bytes) -> None:
    with pytest.raises(HandshakeError, match="low order"):
        ALICE.shared(point)
    with pytest.raises(HandshakeError, match="low order"):
        Initiator(ALICE, point, NO_KEY, ephemeral=b"e" * 32, sender=b"ALIC", timestamp=STAMP)
    message = begin().message
    with pytest.raises(HandshakeError, match="low order"):
        Responder(BOB, message[:8] + point + message[40:])
    response, _ = answer(message)
    with pytest.raises(HandshakeError, match="low order"):
        begin().finish(response[:12] + point + response[44:], NO_KEY)


# -- time --------------------------------------------------------------------------------------------------------------


def test_tai64n_of_the_epoch() -> None:
    """TAI was 10 seconds ahead in 1970; leap seconds since then are not counted."""
    assert tai64n(0).hex() == "400000000000000a" + "00000000"
    assert tai64n(1_000_000_000).hex() == "400000000000000b" + "00000000"


def test_times_within_a_sixtieth_of_a_second_look_the_same() -> None:
    assert tai64n(2**24 - 1) == tai64n(0)
    assert tai64n(2**24).hex() == "400000000000000a" + "01000000"


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_later_is_never_less_and_a_fiftieth_of_a_second_later_is_more(one: int, other: int) -> None:
    early, late = sorted((one, other))
    assert tai64n(early) <= tai64n(late)
    assert tai64n(early) < tai64n(early + 20_000_000)
    assert len(tai64n(early)) == 12
