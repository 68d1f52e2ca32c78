"""The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, as WireGuard's whitepaper uses it (section 5.4).

No input and output. Messages are made and read here without the two MACs at their end, which belong to cookie.py. A
message that is not authentic raises HandshakeError and changes nothing.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2s
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

#: The first four bytes of a message: its type, and three zero bytes.
INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = (bytes([kind, 0, 0, 0]) for kind in (1, 2, 3, 4))
#: Size in bytes of a whole message, with both MACs.
INITIATION_SIZE, RESPONSE_SIZE = 148, 92

NO_KEY = bytes(32)
_NO_NONCE = bytes(12)
#: type, sender, ephemeral, encrypted static key, encrypted timestamp
_INITIATION = struct.Struct("<4s4s32s48s28s")
#: type, sender, receiver, ephemeral, encrypted nothing
_RESPONSE = struct.Struct("<4s4s4s32s16s")


class HandshakeError(Exception):
    """A message is not authentic, or a message cannot be made with this key."""


class Keys(NamedTuple):
    """The result of a handshake: a key of 32 bytes for sending, and one for receiving."""

    send: bytes
    receive: bytes


class Identity:
    """Our own static key."""

    __slots__ = ("_private", "private_key", "public_key")

    def __init__(self, private_key: bytes) -> None:
        """Takes any 32 bytes: X25519 sets and clears the bits that it requires."""
        self.private_key = private_key
        self._private = X25519PrivateKey.from_private_bytes(private_key)
        self.public_key = self._private.public_key().public_bytes_raw()

    def shared(self, public_key: bytes) -> bytes:
        """The secret that is shared with the owner of *public_key*.

        Raises:
            HandshakeError: *public_key* is a point of low order: the secret would be the same for every key.
        """
        return _shared(self._private, public_key)


class Initiator:
    """A handshake that we begin: we send a message, and read the response."""

    __slots__ = ("_ephemeral", "_identity", "_transcript", "message")

    def __init__(
        self,
        identity: Identity,
        remote: bytes,
        static_shared: bytes,
        *,
        ephemeral: bytes,
        sender: bytes,
        timestamp: bytes,
    ) -> None:
        """Makes :attr:`message`, 116 bytes.

        Args:
            identity: Our key.
            remote: The peer's public key.
            static_shared: ``identity.shared(remote)``, which can be cached.
            ephemeral: 32 random bytes. Use them for this handshake only.
            sender: Our index of 4 bytes, which the response contains.
            timestamp: 12 bytes; see :func:`tai64n`.

        Raises:
            HandshakeError: *remote* is not a usable key.
        """
        self._identity = identity
        self._ephemeral = X25519PrivateKey.from_private_bytes(ephemeral)
        self._transcript = transcript = _Transcript(remote)
        public = self._ephemeral.public_key().public_bytes_raw()
        transcript.mix_public(public)
        static = transcript.seal(transcript.key(_shared(self._ephemeral, remote)), identity.public_key)
        stamp = transcript.seal(transcript.key(static_shared), timestamp)
        self.message = _INITIATION.pack(INITIATION, sender, public, static, stamp)

    def finish(self, response: bytes, preshared_key: bytes) -> tuple[bytes, Keys]:
        """The peer's index (4 bytes) and the keys, from its response. Another response can be tried after an error.

        Raises:
            HandshakeError: The response is not from the peer, or the preshared keys differ.
        """
        _, sender, _, ephemeral, empty = _RESPONSE.unpack_from(response)
        transcript = self._transcript.copy()
        transcript.mix_public(ephemeral)
        transcript.mix_key(_shared(self._ephemeral, ephemeral))
        transcript.mix_key(self._identity.shared(ephemeral))
        transcript.open(transcript.preshared(preshared_key), empty)
        send, receive = transcript.split()
        return sender, Keys(send, receive)


class Responder:
    """A handshake that a peer begins. Read its public key, then its timestamp, then make our response."""

    __slots__ = ("_ephemeral", "_stamp", "_transcript", "remote", "sender")

    def __init__(self, identity: Identity, message: bytes) -> None:
        """Reads the initiation up to :attr:`remote`, the public key of its alleged sender.

        Raises:
            HandshakeError: The message was not made for our key.
        """
        _, self.sender, self._ephemeral, static, self._stamp = _INITIATION.unpack_from(message)
        self._transcript = transcript = _Transcript(identity.public_key)
        transcript.mix_public(self._ephemeral)
        self.remote = transcript.open(transcript.key(identity.shared(self._ephemeral)), static)

    def timestamp(self, static_shared: bytes) -> bytes:
        """The timestamp of 12 bytes, which proves that :attr:`remote` made the message. Call it once.

        Raises:
            HandshakeError: Another sender made the message.
        """
        transcript = self._transcript
        return transcript.open(transcript.key(static_shared), self._stamp)

    def respond(self, preshared_key: bytes, *, ephemeral: bytes, sender: bytes) -> tuple[bytes, Keys]:
        """Our response of 60 bytes, and the keys. Call it once, after :meth:`timestamp`.

        Raises:
            HandshakeError: the peer's ephemeral key is of low order.
        """
        transcript = self._transcript
        private = X25519PrivateKey.from_private_bytes(ephemeral)
        public = private.public_key().public_bytes_raw()
        transcript.mix_public(public)
        transcript.mix_key(_shared(private, self._ephemeral))
        transcript.mix_key(_shared(private, self.remote))
        empty = transcript.seal(transcript.preshared(preshared_key), b"")
        receive, send = transcript.split()
        return _RESPONSE.pack(RESPONSE, sender, self.sender, public, empty), Keys(send, receive)


def tai64n(nanoseconds: int) -> bytes:
    """A timestamp of 12 bytes for nanoseconds since the epoch. Later timestamps compare greater.

    Rounded down to 2**24 ns, about 17 ms, so that it reveals less about our clock.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return struct.pack(">QI", 0x400000000000000A + seconds, rest & ~0xFFFFFF)


class _Transcript:
    """The chaining key, and the hash of all messages so far."""

    __slots__ = ("_chain", "_hash")

    def __init__(self, responder: bytes) -> None:
        self._chain = _INITIAL_CHAIN
        self._hash = _digest(_INITIAL_HASH + responder)

    def copy(self) -> _Transcript:
        copy = object.__new__(_Transcript)
        copy._chain, copy._hash = self._chain, self._hash
        return copy

    def mix_public(self, ephemeral: bytes) -> None:
        self._hash = _digest(self._hash + ephemeral)
        self.mix_key(ephemeral)

    def mix_key(self, secret: bytes) -> None:
        (self._chain,) = kdf(self._chain, secret, 1)

    def key(self, secret: bytes) -> bytes:
        self._chain, key = kdf(self._chain, secret, 2)
        return key

    def preshared(self, preshared_key: bytes) -> bytes:
        self._chain, mixed, key = kdf(self._chain, preshared_key, 3)
        self._hash = _digest(self._hash + mixed)
        return key

    def seal(self, key: bytes, plain: bytes) -> bytes:
        sealed = ChaCha20Poly1305(key).encrypt(_NO_NONCE, plain, self._hash)
        self._hash = _digest(self._hash + sealed)
        return sealed

    def open(self, key: bytes, sealed: bytes) -> bytes:
        try:
            plain = ChaCha20Poly1305(key).decrypt(_NO_NONCE, sealed, self._hash)
        except InvalidTag:
            raise HandshakeError("the message is not authentic") from None
        self._hash = _digest(self._hash + sealed)
        return plain

    def split(self) -> tuple[bytes, bytes]:
        """The initiator's key for sending, and its key for receiving."""
        first, second = kdf(self._chain, b"", 2)
        return first, second


def kdf(key: bytes, data: bytes, count: int) -> list[bytes]:
    """*count* keys: HKDF (RFC 5869) with HMAC-BLAKE2s."""
    secret = hmac.digest(key, data, blake2s)
    keys = [hmac.digest(secret, b"\x01", blake2s)]
    for number in range(2, count + 1):
        keys.append(hmac.digest(secret, keys[-1] + bytes([number]), blake2s))
    return keys


def _digest(data: bytes) -> bytes:
    return blake2s(data).digest()


def _shared(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise HandshakeError("the public key is a point of low order") from None


_INITIAL_CHAIN = _digest(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
_INITIAL_HASH = _digest(_INITIAL_CHAIN + b"WireGuard v1 zx2c4 Jason@zx2c4.com")
