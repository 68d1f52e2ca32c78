"""A session: encrypts packets, decrypts datagrams, and detects replays (whitepaper, section 5.4.6)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .drops import Drops
from .noise import TRANSPORT, Keys
from .timers import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME

#: Before the encrypted packet: type, receiver, counter. After it: the tag.
HEADER_SIZE, TAG_SIZE = 16, 16
KEEPALIVE_SIZE = HEADER_SIZE + TAG_SIZE
#: How far a datagram's counter may be behind the newest one. A power of two.
WINDOW = 8192

_header = struct.Struct("<8sQ").pack
_nonce = struct.Struct("<4xQ").pack
_counter_of = struct.Struct("<8xQ").unpack_from


class ReplayWindow:
    """Stores which of the last WINDOW counters were received: a ring with one byte for each."""

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = bytearray(WINDOW)

    def accept(self, counter: int) -> bool:
        """Whether *counter* is new, and not too old. Marks it as received."""
        newest = self._newest
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        if counter > newest:
            # The places of skipped counters still have the marks of older ones: clear them.
            self._fill(newest + 1, counter, b"\0")
            self._newest = counter
        elif counter <= newest - WINDOW or self._seen[counter % WINDOW]:
            return False
        self._seen[counter % WINDOW] = 1
        return True

    def accept_next(self, counters: list[int]) -> bool:
        """Accepts *counters* if they are the next ones without a gap, which is true for most batches."""
        first = self._newest + 1
        end = first + len(counters)
        if end > REJECT_AFTER_MESSAGES or counters != list(range(first, end)):
            return False
        self._fill(first, end, b"\1")
        self._newest = end - 1
        return True

    def _fill(self, first: int, end: int, value: bytes) -> None:
        count = min(end - first, WINDOW)
        start = first % WINDOW
        before_the_turn = min(count, WINDOW - start)
        self._seen[start : start + before_the_turn] = value * before_the_turn
        self._seen[: count - before_the_turn] = value * (count - before_the_turn)


class Session:
    """One session with a peer. Only the ciphers have the keys, which are deleted with the session."""

    __slots__ = ("_decrypt", "_encrypt", "_prefix", "_window", "created", "index", "is_initiator", "sent")

    def __init__(self, keys: Keys, index: bytes, remote_index: bytes, *, is_initiator: bool, now: float) -> None:
        """Begins at *now*. *index* identifies the session in datagrams to us, *remote_index* in those to the peer."""
        self._encrypt = ChaCha20Poly1305(keys.send).encrypt
        self._decrypt = ChaCha20Poly1305(keys.receive).decrypt
        self._prefix = TRANSPORT + remote_index
        self._window = ReplayWindow()
        self.index = index
        self.created = now
        #: Whether we began the handshake. Only the initiator renews an old session: otherwise both sides would.
        self.is_initiator = is_initiator
        #: How many datagrams were sent: the counter of the next one.
        self.sent = 0

    def is_expired(self, now: float) -> bool:
        """Whether it is too old to send or receive."""
        return now >= self.created + REJECT_AFTER_TIME

    def can_send(self, now: float) -> bool:
        """Whether it may send: it is not too old, and did not send too many messages."""
        return self.sent < REJECT_AFTER_MESSAGES and now < self.created + REJECT_AFTER_TIME

    def wear_out(self) -> None:
        """Stops sending."""
        self.sent = REJECT_AFTER_MESSAGES

    def seal(self, packets: Sequence[bytes], mtu: int) -> list[bytes]:
        """A datagram for each packet. Packets are padded to a multiple of 16 bytes, up to *mtu* (0: unknown).

        When the counter has reached its limit, the remaining packets get no datagram.
        """
        first = self.sent
        if first + len(packets) > REJECT_AFTER_MESSAGES:
            packets = packets[: REJECT_AFTER_MESSAGES - first]
        encrypt, prefix, header, nonce = self._encrypt, self._prefix, _header, _nonce
        datagrams = []
        for counter, packet in enumerate(packets, first):
            size = len(packet)
            if size % 16 and size != mtu:
                packet += bytes(padding(size, mtu))
            datagrams.append(header(prefix, counter) + encrypt(nonce(counter), packet, None))
        self.sent = first + len(datagrams)
        return datagrams

    def open(self, datagrams: Sequence[bytes], drops: Drops) -> list[bytes]:
        """The packets in *datagrams* that are authentic and new, in order, with padding. An empty packet is a keepalive.

        Datagrams that are too short, not authentic, or received before are dropped and counted in *drops*.
        """
        decrypt, counter_of, nonce = self._decrypt, _counter_of, _nonce
        packets: list[bytes] = []
        counters: list[int] = []
        for datagram in datagrams:
            try:
                (counter,) = counter_of(datagram)
                packet = decrypt(nonce(counter), datagram[16:], None)
            except (InvalidTag, struct.error):
                if len(datagram) < KEEPALIVE_SIZE:
                    drops.malformed += 1
                else:
                    drops.forged += 1
                continue
            packets.append(packet)
            counters.append(counter)
        if not self._window.accept_next(counters):
            authentic = len(packets)
            packets = [each for counter, each in zip(counters, packets, strict=True) if self._window.accept(counter)]
            drops.replayed += authentic - len(packets)
        return packets


def padding(size: int, mtu: int) -> int:
    """How many zero bytes follow a packet of *size* bytes. For a packet over the MTU, only its last part counts."""
    last = size % mtu if 0 < mtu < size else size
    padded = -(-last // 16) * 16
    return (min(padded, mtu) if mtu else padded) - last
