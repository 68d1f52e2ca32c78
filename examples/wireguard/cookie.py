"""Protection against floods of handshakes: two MACs, cookies, and rate limits (whitepaper, sections 5.3 and 5.4.7).

The first MAC proves that the sender knows our public key. Under load, the second MAC is required: its key is a cookie that
we sent to the sender's address, so it proves that the sender receives there. Without it, a message costs no
Diffie-Hellman computation.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .noise import COOKIE_REPLY

COOKIE_REPLY_SIZE = 64
#: A cookie is valid for SECRET_AGE seconds. The peer stops using it LATENCY seconds earlier, so it is never refused.
SECRET_AGE, LATENCY = 120.0, 5.0
#: Handshake messages that are answered without cookies: at once, and per second. With more, the device is under load, until
#: LOAD_LASTS seconds after the last excess message. Each message costs about half a millisecond.
LOAD_BURST, LOAD_RATE, LOAD_LASTS = 128, 256, 1.0
#: Handshake messages under load, for each host: at once, and per second; and how many hosts are counted.
HOST_BURST, HOST_RATE, HOSTS = 5, 20, 8192

_MAC = 16
#: type, receiver, nonce, encrypted cookie
_REPLY = struct.Struct("<4s4s24s32s")


class Sender:
    """The MACs of handshake messages to one peer, and the cookie that it sent us."""

    __slots__ = ("_cookie", "_cookie_key", "_got", "_mac1", "_mac1_key")

    def __init__(self, remote: bytes) -> None:
        """*remote* is the peer's public key."""
        self._mac1_key, self._cookie_key = _keys(remote)
        self._mac1: bytes | None = None
        self._cookie, self._got = b"", -SECRET_AGE

    def seal(self, message: bytes, now: float) -> bytes:
        """*message* with both MACs. The second is zero without a cookie."""
        self._mac1 = mac1 = _mac(self._mac1_key, message)
        message += mac1
        fresh = self._cookie and now < self._got + SECRET_AGE - LATENCY
        return message + (_mac(self._cookie, message) if fresh else bytes(_MAC))

    def consume(self, reply: bytes, now: float) -> bool:
        """Stores the cookie in *reply*. Returns whether it answers the last message sent; each message accepts one."""
        _, _, nonce, sealed = _REPLY.unpack(reply)
        if self._mac1 is None:
            return False
        try:
            cipher, nonce = xchacha20poly1305(self._cookie_key, nonce)
            self._cookie = cipher.decrypt(nonce, sealed, self._mac1)
        except InvalidTag:
            return False
        self._mac1, self._got = None, now
        return True


class Receiver:
    """The MACs of handshake messages to us, and the cookies that we send."""

    __slots__ = ("_cookie_key", "_mac1_key", "_made", "_rng", "_secret")

    def __init__(self, public_key: bytes, rng: Callable[[int], bytes]) -> None:
        """*public_key* is our own."""
        self._mac1_key, self._cookie_key = _keys(public_key)
        self._rng = rng
        self._secret, self._made = b"", 0.0

    def knows_us(self, message: bytes) -> bool:
        """Whether the first MAC of *message* is correct."""
        return hmac.compare_digest(_mac(self._mac1_key, message[: -2 * _MAC]), message[-2 * _MAC : -_MAC])

    def is_reachable(self, message: bytes, source: bytes, now: float) -> bool:
        """Whether the second MAC of *message* proves that its sender got the cookie for *source*."""
        if not self._secret or now >= self._made + SECRET_AGE:
            return False
        return hmac.compare_digest(_mac(_mac(self._secret, source), message[:-_MAC]), message[-_MAC:])

    def reply(self, message: bytes, source: bytes, now: float) -> bytes:
        """A cookie for *source*, which sent *message*."""
        if not self._secret or now >= self._made + SECRET_AGE:
            self._secret, self._made = self._rng(32), now
        long_nonce = self._rng(24)
        cipher, nonce = xchacha20poly1305(self._cookie_key, long_nonce)
        sealed = cipher.encrypt(nonce, _mac(self._secret, source), message[-2 * _MAC : -_MAC])
        return _REPLY.pack(COOKIE_REPLY, message[4:8], long_nonce, sealed)


class Load:
    """Detects load: more handshake messages than LOAD_BURST and LOAD_RATE allow."""

    __slots__ = ("_level", "_since", "_until")

    def __init__(self) -> None:
        self._level = 0.0
        self._since = self._until = -LOAD_LASTS

    def add(self, now: float) -> bool:
        """Counts a handshake message, and returns whether we are under load."""
        drained = max(0.0, self._level - (now - self._since) * LOAD_RATE)
        self._level, self._since = min(drained + 1, LOAD_BURST + 1), now
        if self._level > LOAD_BURST:
            self._until = now + LOAD_LASTS
        return now < self._until


class HostLimit:
    """A rate limit for each host, with a maximum number of hosts."""

    __slots__ = ("_hosts",)

    def __init__(self) -> None:
        #: For each host: when it was last seen, and how many messages it had left then. The least recent comes first.
        self._hosts: dict[bytes, tuple[float, float]] = {}

    def allow(self, host: bytes, now: float) -> bool:
        """Whether *host* may send one more message. If so, the message is counted."""
        hosts = self._hosts
        seen, left = hosts.pop(host, (now, HOST_BURST))
        left = min(HOST_BURST, left + (now - seen) * HOST_RATE)
        # A host that has its whole burst again is like a new one: forget it.
        while hosts:
            oldest = next(iter(hosts))
            if now - hosts[oldest][0] < HOST_BURST / HOST_RATE:
                break
            del hosts[oldest]
        if len(hosts) >= HOSTS:
            return False
        allowed = left >= 1
        hosts[host] = now, left - allowed
        return allowed


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """A key of 32 bytes out of one, and a nonce of 16 (draft-irtf-cfrg-xchacha-03, section 2.2).

    A block of ChaCha20 is the sum of the states after and before the rounds. HChaCha20 is the state after the rounds, so
    the state before is subtracted.
    """
    block = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    before = struct.unpack("<16I", b"expand 32-byte k" + key + nonce)
    words = [(after - word) & 0xFFFFFFFF for after, word in zip(struct.unpack("<16I", block), before, strict=True)]
    return struct.pack("<8I", *words[:4], *words[12:])


def xchacha20poly1305(key: bytes, nonce: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    """The cipher for a nonce of 24 bytes, and the nonce of 12 bytes to call it with (section 2.3 of the same draft)."""
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])), bytes(4) + nonce[16:]


def _keys(public_key: bytes) -> tuple[bytes, bytes]:
    """The keys for the first MAC and for encrypting cookies."""
    return blake2s(b"mac1----" + public_key).digest(), blake2s(b"cookie--" + public_key).digest()


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=_MAC).digest()
