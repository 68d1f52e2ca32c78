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
_counter = struct.Struct("<Q").unpack_from


class ReplayWindow:
    """Which of the last WINDOW counters were received: a ring with a byte for each."""

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = bytearray(WINDOW)

    def accept(self, counter: int) -> bool:
        """Whether *counter* is new, and from now on it is not."""
        seen, newest = self._seen, self._newest
        if counter > newest:
            if counter != newest + 1:
                self._forget(newest + 1, min(counter - newest - 1, WINDOW))
            self._newest = counter
        elif counter <= newest - WINDOW or seen[counter % WINDOW]:
            return False
        seen[counter % WINDOW] = 1
        return True

    def _forget(self, first: int, count: int) -> None:
        """The counters from *first* on were skipped: in their places are older ones."""
        start = first % WINDOW
        end = min(start + count, WINDOW)
        self._seen[start:end] = bytes(end - start)
        self._seen[: count - (end - start)] = bytes(count - (end - start))


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
        decrypt, accept, counter_in = self._decrypt, self._window.accept, _counter
        packets = []
        for datagram in datagrams:
            if len(datagram) < KEEPALIVE_SIZE:
                drops.malformed += 1
                continue
            (counter,) = counter_in(datagram, 8)
            try:
                packet = decrypt(b"\0\0\0\0" + datagram[8:16], datagram[16:], None)
            except InvalidTag:
                drops.forged += 1
                continue
            if counter >= REJECT_AFTER_MESSAGES or not accept(counter):
                drops.replayed += 1
                continue
            packets.append(packet)
        return packets


def padding(size: int, mtu: int) -> int:
    """How many zero bytes follow a packet of *size* bytes. Of one over the MTU, its last piece is what counts."""
    last = size % mtu if 0 < mtu < size else size
    padded = -(-last // 16) * 16
    return (min(padded, mtu) if mtu else padded) - last
