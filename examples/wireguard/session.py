"""A pair of transport keys: seals packets, opens datagrams, and knows what it has received (whitepaper, section 5.4.6)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .drops import Drops
from .noise import TRANSPORT, Keys
from .timers import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME

#: In front of the encrypted packet: type, receiver, counter. Behind it: the tag.
HEADER_SIZE, TAG_SIZE = 16, 16
KEEPALIVE_SIZE = HEADER_SIZE + TAG_SIZE
#: Counters that are remembered: a datagram may be so many behind the newest one. A power of two.
WINDOW = 8192

_header = struct.Struct("<8sQ").pack
_nonce = struct.Struct("<4xQ").pack
_counter_of = struct.Struct("<8xQ").unpack_from


class ReplayWindow:
    """Which of the last WINDOW counters were received: a ring with a byte for each."""

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = bytearray(WINDOW)

    def accept(self, counter: int) -> bool:
        """Whether *counter* is new and not beyond the last; from now on it is not new."""
        newest = self._newest
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        if counter > newest:
            # In the places of those that were skipped are older ones.
            self._fill(newest + 1, counter, b"\0")
            self._newest = counter
        elif counter <= newest - WINDOW or self._seen[counter % WINDOW]:
            return False
        self._seen[counter % WINDOW] = 1
        return True

    def accept_next(self, counters: list[int]) -> bool:
        """Accepts *counters* if they are the next ones and without a gap, as they are in most batches."""
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
    """One session with a peer. Keys are in the ciphers alone, and go with the session."""

    __slots__ = ("_decrypt", "_encrypt", "_prefix", "_window", "created", "index", "is_initiator", "sent")

    def __init__(self, keys: Keys, index: bytes, remote_index: bytes, *, is_initiator: bool, now: float) -> None:
        """Begins at *now*; *index* is what we are called in datagrams to us, *remote_index* in those to the peer."""
        self._encrypt = ChaCha20Poly1305(keys.send).encrypt
        self._decrypt = ChaCha20Poly1305(keys.receive).decrypt
        self._prefix = TRANSPORT + remote_index
        self._window = ReplayWindow()
        self.index = index
        self.created = now
        #: We began the handshake. Only that side renews a session because of its age, or both would.
        self.is_initiator = is_initiator
        #: Datagrams sent, which is the next one's counter.
        self.sent = 0

    def is_expired(self, now: float) -> bool:
        """Too old to send or receive."""
        return now >= self.created + REJECT_AFTER_TIME

    def can_send(self, now: float) -> bool:
        """Neither too old nor worn out."""
        return self.sent < REJECT_AFTER_MESSAGES and now < self.created + REJECT_AFTER_TIME

    def wear_out(self) -> None:
        """Does not send any more."""
        self.sent = REJECT_AFTER_MESSAGES

    def seal(self, packets: Sequence[bytes], mtu: int) -> list[bytes]:
        """A datagram for each packet, padded to a multiple of 16 bytes but not over *mtu* (0: not known).

        Once the counter is used up, what is left of *packets* gets no datagram.
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
        """The packets in *datagrams* that are the peer's and new, in order, with their padding; an empty one: a keepalive.

        What is too short, does not authenticate or was received before is left out and counted in *drops*.
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
    """How many zero bytes follow a packet of *size* bytes. Of one over the MTU, its last piece is what counts."""
    last = size % mtu if 0 < mtu < size else size
    padded = -(-last // 16) * 16
    return (min(padded, mtu) if mtu else padded) - last
