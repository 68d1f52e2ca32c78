"""From plain frames to frames with a virtio_net_hdr, merged where that is safe: what receive offload does.

A frame continues a run when its headers are those of the run's first frame, but for sequence number, identification,
lengths, checksums and PSH. The headers that the next frame must have are kept as one large integer: one comparison, of
what differs under a mask, is the whole rule. And one comparison tells how many of the next frames continue a run, when
they come as a sender with segmentation offload makes them: the integer then has the headers of all of them.

Checksums are verified last, for all frames that would be merged, at one go.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from .._errors import InvalidFrameError
from .._types import Buffer, Mode, Offload
from .checksum import as_rows, row_sums, word_sum, word_sums
from .header import BASIC, HEADER_SIZE, VnetHeader, check_size
from .layout import CHECKSUM_AT, TCP, UDP, Layout, addresses, parse

# What is merged, by IP version and protocol: the offload that allows it, and its type in the header.
_KINDS = {
    (4, TCP): (Offload.TSO4, VnetHeader.GSO_TCPV4),
    (6, TCP): (Offload.TSO6, VnetHeader.GSO_TCPV6),
    (4, UDP): (Offload.USO4, VnetHeader.GSO_UDP_L4),
    (6, UDP): (Offload.USO6, VnetHeader.GSO_UDP_L4),
}

#: All offloads that merging can use.
MERGEABLE = Offload.TSO4 | Offload.TSO6 | Offload.USO4 | Offload.USO6

# Frames in one super-frame, and bytes of its IP packet.
_MOST_FRAMES = 64
_LARGEST = 65535

# Frames of one size in a row from which it is worth trying to take them together.
_MANY = 4

_PSH, _ACK, _ECE = 0x08, 0x10, 0x40

# Where the usual frame has a byte that tells IPv4 from IPv6, and where each has addresses and ports: the first byte of
# the packet, or the second one of the Ethernet type. Whatever is there, it only serves to find a run quickly.
_USUAL = {
    Mode.TUN: (slice(0, 1), slice(12, 24), slice(8, 44)),
    Mode.TAP: (slice(13, 14), slice(26, 38), slice(22, 58)),
}
_BELOW_IPV6 = b"\x50"


def coalesce(
    frames: Iterable[Buffer],
    mode: Mode | str,
    *,
    offload: Offload = Offload.ALL,
    header_size: int = HEADER_SIZE,
) -> list[bytes]:
    """Turns plain frames into frames as the kernel takes them with ``vnet_header=True``, with runs of one flow merged.

    A super-frame stands for up to 64 consecutive TCP or UDP frames of one flow, of one size but for the last, that the
    kernel can split again into the same frames. Anything else goes alone and as it came: a frame whose checksum is
    wrong, a fragment, one with other options, flags or TTL than those before. The order within each flow stays, and
    super-frames are in the order of their first frames.

    Args:
        frames: Without a header, in order.
        mode: Of the interface that they go to.
        offload: What may be merged: TSO4, TSO6, USO4, USO6.
        header_size: Bytes of the virtio_net_hdr in front of each result.
    """
    check_size(header_size)
    plain = [frame if type(frame) is bytes else bytes(frame) for frame in frames]
    return [each.data for each in merge(plain, Mode(mode), offload, header_size)]


class Merged(NamedTuple):
    """One frame with a virtio_net_hdr."""

    data: bytes
    #: Which of the plain frames it holds.
    indexes: list[int]
    #: The offload that it takes: NONE for a frame that goes alone.
    kind: Offload


def merge(frames: Sequence[bytes], mode: Mode, offload: Offload, header_size: int) -> list[Merged]:
    """As `coalesce`, and says what became of each frame."""
    wrong: set[int] = set()
    while True:
        runs = _collect(frames, mode, offload, wrong)
        found = _wrong_checksums(frames, runs)
        if not found:
            break
        wrong |= found  # without them, others may come to stand together
    alone = bytes(header_size)
    return [
        Merged(run.build(frames, header_size), run.indexes, run.kind)
        if len(run.indexes) > 1
        else Merged(alone + frames[run.indexes[0]], run.indexes, Offload.NONE)
        for run in runs
    ]


def _collect(frames: Sequence[bytes], mode: Mode, offload: Offload, wrong: set[int]) -> list[_Run]:
    """Runs by what the headers say, in the order of their first frames. Those numbered in *wrong* stay alone."""
    runs: list[_Run] = []
    #: The one run of each flow that may go on; and the same by what is where most frames have addresses and ports.
    flows: dict[bytes, _Run] = {}
    likely: dict[bytes, _Run] = {}
    probe, ipv4, ipv6 = _USUAL[mode]
    sizes = list(map(len, frames))
    count = len(frames)
    following = tried = 0
    while following < count:
        index, frame = following, frames[following]
        following += 1
        key = frame[ipv4] if frame[probe] < _BELOW_IPV6 else frame[ipv6]
        run = likely.get(key)
        if run is not None and index not in wrong and run.join(index, frame):
            if following >= tried and not wrong:
                tried = _end_of_stretch(sizes, following)
                following += run.join_many(following, frames[following:tried])
            continue
        new = _Run(index, frame)
        runs.append(new)
        try:
            layout = parse(frame, 0, mode)
        except InvalidFrameError:  # it may belong anywhere: nothing that comes after it may go before it
            flows.clear()
            likely.clear()
            continue
        flow = frame[: layout.network] + addresses(frame, layout) + frame[layout.transport : layout.transport + 4]
        flow += bytes((layout.version, layout.protocol))
        if index not in wrong:
            run = flows.get(flow)
            if run is not None and run.join(index, frame):
                likely[key] = run
                runs.pop()
                continue
            new.open(layout, offload)
        if flow in flows:
            flows[flow].ended = True
        flows[flow] = likely[key] = new
        if following >= tried and not wrong:
            tried = _end_of_stretch(sizes, following)
            following += new.join_many(following, frames[following:tried])
    return runs


def _end_of_stretch(sizes: Sequence[int], following: int) -> int:
    """Where the frames end that are as large as the one before *following*, and fit into one run with it."""
    size, stretch = sizes[following - 1], sizes[following : following + _MOST_FRAMES]
    if stretch.count(size) == len(stretch):
        return following + len(stretch)
    return following + next(index for index, each in enumerate(stretch) if each != size)


def _wrong_checksums(frames: Sequence[bytes], runs: Sequence[_Run]) -> set[int]:
    """Numbers of the frames that are about to be merged and whose TCP or UDP checksum is not right."""
    wrong: set[int] = set()
    for run in runs:
        if len(run.indexes) > 1:
            wrong.update(run.wrong_checksums(frames))
    return wrong


class _Run:
    """Consecutive frames of one flow that can become one super-frame; perhaps only one, and no more."""

    __slots__ = (
        "_expected",
        "_first",
        "_ip_shift",
        "_ip_sum",
        "_last",
        "_layout",
        "_mask",
        "_most",
        "_most_whole",
        "_payload",
        "_push",
        "_rows",
        "_shorter",
        "_size",
        "_step",
        "_udp",
        "ended",
        "indexes",
        "kind",
    )

    def __init__(self, index: int, first: bytes) -> None:
        self.indexes = [index]
        self.kind = Offload.NONE
        self.ended = True
        self._first = first
        self._size = len(first)
        self._mask = 0
        #: The first frame and those that `join_many` took with it, as a matrix, if it did.
        self._rows: Any = None

    def open(self, layout: Layout, offload: Offload) -> None:
        """Lets other frames join, if the first one is of a kind that can be merged."""
        version, protocol, network, transport, payload, end = layout
        first = self._first
        kind = _KINDS[version, protocol][0]
        if end != self._size or payload == end or kind not in offload:
            return
        if version == 4 and first[network + 6] & 0x80:  # a reserved bit
            return
        if protocol == TCP:
            if first[transport + 13] & ~_ECE != _ACK:  # with PSH it would be the last one as well
                return
        elif int.from_bytes(first[transport + 4 : transport + 6]) != end - transport:
            return
        self.kind, self._layout, self._payload, self.ended = kind, layout, payload, False

    def _prepare(self) -> None:
        """Makes what others are compared with. The first frame of a flow is often the only one, and needs none."""
        version, protocol, network, transport, payload, end = self._layout
        first = self._first
        headers = int.from_bytes(first[:payload])

        def field(at: int, size: int) -> int:
            """The lowest bit of a field of the headers."""
            return 1 << 8 * (payload - at - size)

        mask = (1 << 8 * payload) - 1 - 0xFFFF * field(transport + CHECKSUM_AT[protocol], 2)
        length = field(network + (2 if version == 4 else 4), 2)
        step, push, most = 0, 0, _MOST_FRAMES
        if version == 4:
            ident = field(network + 4, 2)
            mask -= 0xFFFF * field(network + 10, 2)
            if first[network + 6] & 0x40:  # with DF, an identification means nothing (RFC 6864)
                mask -= 0xFFFF * ident
            else:
                step = ident
                most = min(most, 0x10000 - headers // ident % 0x10000)
        if protocol == TCP:
            sequence = field(transport + 4, 4)
            push = _PSH * field(transport + 13, 1)
            mask -= push
            step += (end - payload) * sequence
            most = min(most, (0xFFFFFFFF - headers // sequence % (1 << 32)) // (end - payload) + 1)
        else:
            length += field(transport + 4, 2)
        self._mask, self._step, self._shorter, self._push = mask, step, length, push
        self._last = headers
        self._expected = headers + step
        self._most = most
        self._most_whole = min(most, (_LARGEST - (payload - network)) // (end - payload))
        self._udp = protocol == UDP
        # What the words before the transport header add up to where the IPv4 checksum among them is right. IPv6 has
        # none: there, nothing is left to add up.
        self._ip_shift = 8 * (payload - transport if version == 4 else payload)
        self._ip_sum = word_sum(first[:network]) if version == 4 else 0
        self.ended = not self._sound(headers)

    def _sound(self, headers: int) -> bool:
        """Whether the IPv4 checksum is right, and UDP has one at all: a super-frame of UDP always has."""
        return (headers >> self._ip_shift) % 65535 == self._ip_sum and not (self._udp and not headers & 0xFFFF)

    def join(self, index: int, frame: bytes) -> bool:
        """Takes the frame that comes next in the flow, if it continues the run."""
        if not self._mask:
            if self.ended:
                return False
            self._prepare()
        if self.ended:
            return False
        headers = int.from_bytes(frame[: self._payload])
        size = len(frame)
        short = self._size - size
        if not short:
            if (headers ^ self._expected) & self._mask or len(self.indexes) >= self._most_whole:
                return False
        elif (
            (headers ^ (self._expected - short * self._shorter)) & self._mask
            or not self._payload < size < self._size
            or len(self.indexes) >= self._most
            or (len(self.indexes) + 1) * (self._size - self._payload) - short + self._payload - self._layout.network
            > _LARGEST
        ):
            return False
        if not self._sound(headers):
            return False
        self.indexes.append(index)
        self._expected += self._step
        self._last = headers
        if short or headers & self._push:
            self.ended = True
        return True

    def join_many(self, index: int, frames: Sequence[bytes]) -> int:
        """Takes as many frames as continue the run without PSH and, for IPv4, with one identification after the other.

        They are of the same size as those before, and the first of them has number *index*. Returns how many it took:
        there may be more that `join` would.
        """
        if len(frames) < _MANY or self.ended:
            return 0
        if not self._mask:
            self._prepare()
        _, protocol, network, transport, payload, end = self._layout
        count = min(len(frames), self._most_whole - len(self.indexes))
        # By how much a field of a few bits grows from frame to frame, and where it ends.
        steps = [(end - payload, 8 * (payload - transport - 8))] if protocol == TCP else []
        if self._layout.version == 4:
            ident, checksum = 8 * (payload - network - 6), 8 * (payload - network - 12)
            # As the identification grows, the header checksum falls. Neither may wrap and spill into its neighbour.
            count = min(count, 0xFFFF - (self._last >> ident & 0xFFFF), self._last >> checksum & 0xFFFF)
            steps += [(1, ident), (-1, checksum)]
        if self.ended or count < _MANY:
            return 0
        if self._udp and any(frame[payload - 2 : payload] == b"\0\0" for frame in frames):
            return 0
        rows = as_rows([self._first, *frames[:count]]) if len(self.indexes) == 1 else None
        if rows is not None:
            headers = int.from_bytes(rows[1:, :payload].tobytes())
        else:
            headers = int.from_bytes(b"".join([frame[:payload] for frame in frames[:count]]))
        expected = int.from_bytes(self._last.to_bytes(payload) * count)
        numbers = _numbers(count, payload)
        for step, shift in steps:
            expected += numbers * step << shift
        mask = (1 << 8 * payload) - 1 - (0xFFFF << 8 * (payload - transport - CHECKSUM_AT[protocol] - 2))
        different = (headers ^ expected) & _repeated(mask, count, payload)
        if different:
            count -= 1 + (different.bit_length() - 1) // (8 * payload)
        self.indexes += range(index, index + count)
        self._expected += self._step * count
        if rows is not None and count:
            self._rows = rows[: count + 1]
        return count

    def wrong_checksums(self, frames: Sequence[bytes]) -> list[int]:
        """Numbers of the frames whose TCP or UDP checksum is not right."""
        version, protocol, _, transport, _, end = self._layout
        if self._rows is None:
            sums = word_sums([frames[index] for index in self.indexes])
        else:
            sums = row_sums(self._rows)
            sums += [word_sum(frames[index]) for index in self.indexes[len(sums) :]]
        # What makes the sum of all words 0 where the checksum is right. The length is part of the pseudo header; IPv6
        # has it in its own header too, where it cancels out, and for IPv4 it is other in a frame that is shorter.
        rest = word_sum(addresses(self._first, self._layout)) + protocol - word_sum(self._first[:transport])
        rest += end - transport
        if version == 4:
            sums[-1] -= self._size - len(frames[self.indexes[-1]])
        return [index for index, total in zip(self.indexes, sums, strict=True) if (total + rest) % 65535]

    def build(self, frames: Sequence[bytes], header_size: int) -> bytes:
        """The super-frame."""
        version, protocol, network, transport, payload, end = self._layout
        chain = [frames[index] for index in self.indexes]
        headers = bytearray(self._first[:payload])
        total = sum(map(len, chain)) - (len(chain) - 1) * payload
        length = total - transport
        if version == 4:
            _WORD.pack_into(headers, network + 2, total - network)
            _WORD.pack_into(headers, network + 10, 0)
            _WORD.pack_into(headers, network + 10, -word_sum(headers[network:transport]) % 65535)
        else:
            _WORD.pack_into(headers, network + 4, total - network - 40)
        if protocol == TCP:
            headers[transport + 13] |= chain[-1][transport + 13] & _PSH
        else:
            _WORD.pack_into(headers, transport + 4, length)
        partial = (word_sum(addresses(self._first, self._layout)) + protocol + length) % 65535 or 0xFFFF
        _WORD.pack_into(headers, transport + CHECKSUM_AT[protocol], partial)
        vnet = BASIC.pack(
            VnetHeader.NEEDS_CSUM,
            _KINDS[version, protocol][1],
            payload,
            end - payload,
            transport,
            CHECKSUM_AT[protocol],
        )
        more = bytes(header_size - HEADER_SIZE)
        pieces = []
        if self._rows is not None:
            pieces.append(self._rows[:, payload : self._size].tobytes())
            chain = chain[len(self._rows) :]
        return b"".join([vnet, more, headers, *pieces, *[frame[payload:] for frame in chain]])


@lru_cache(maxsize=256)
def _numbers(count: int, size: int) -> int:
    """The numbers from 1 to *count*, each in as many bytes, as one integer."""
    return int.from_bytes(b"".join([number.to_bytes(size) for number in range(1, count + 1)]))


@lru_cache(maxsize=256)
def _repeated(mask: int, count: int, size: int) -> int:
    """A number of so many bytes, over and over."""
    return int.from_bytes(mask.to_bytes(size) * count)


_WORD = struct.Struct(">H")
