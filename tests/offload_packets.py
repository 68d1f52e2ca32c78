"""Frames to segment and to coalesce: valid ones by their fields, others that lie about themselves, and dpkt's reading."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace
from typing import Any

import dpkt
from hypothesis import strategies as st

from aiotuntap import Mode

NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80
TCP, UDP, ICMP = 6, 17, 1
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
DF, MF = 0x4000, 0x2000
IPV4, IPV6 = 0x0800, 0x86DD
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
CHECKSUM_OFFSET = {TCP: 16, UDP: 6}
GSO_TYPE = {(4, TCP): GSO_TCPV4, (6, TCP): GSO_TCPV6, (4, UDP): GSO_UDP_L4, (6, UDP): GSO_UDP_L4}

# -- checksums, RFC 1071 -----------------------------------------------------------------------------------------------


def ones_sum(data: bytes) -> int:
    """The one's complement sum of big-endian 16-bit words; an odd last byte is the high half of a word."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return 0xFFFF - ones_sum(data)


def u16(data: bytes | bytearray, offset: int) -> int:
    return data[offset] << 8 | data[offset + 1]


# -- frames ------------------------------------------------------------------------------------------------------------


def vnet_header(
    *,
    flags: int = 0,
    gso_type: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
    size: int = 10,
) -> bytes:
    return struct.pack("=BBHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset).ljust(size, b"\0")


@dataclass(frozen=True, kw_only=True)
class Packet:
    """The fields of a TCP or UDP frame. The defaults are what most hosts send."""

    mode: Mode = Mode.TUN
    version: int = 4
    protocol: int = TCP
    #: Tag protocol identifiers, from the outside in.
    vlan: tuple[int, ...] = ()
    tci: int = 7
    mac: int = 0x020000000001
    #: Last bits of the addresses.
    source: int = 1
    destination: int = 2
    source_port: int = 40000
    destination_port: int = 5201
    #: ToS or traffic class.
    traffic_class: int = 0
    flow_label: int = 0
    #: TTL or hop limit.
    hops: int = 64
    identification: int = 100
    #: Flags and offset.
    fragment: int = 0
    options: bytes = b""
    #: Type and content of each IPv6 extension header; the content has 8 n + 6 bytes. See `extension`.
    extensions: tuple[tuple[int, bytes], ...] = ()
    sequence: int = 1000
    acknowledgement: int = 2000
    flags: int = ACK
    reserved: int = 0
    window: int = 512
    urgent: int = 0
    tcp_options: bytes = b""
    payload: bytes = field(default=b"", repr=False)

    @property
    def network(self) -> int:
        return 14 + 4 * len(self.vlan) if self.mode is Mode.TAP else 0

    @property
    def transport(self) -> int:
        if self.version == 4:
            return self.network + 20 + len(self.options)
        return self.network + 40 + sum(2 + len(content) for _, content in self.extensions)

    @property
    def header_length(self) -> int:
        return self.transport + (20 + len(self.tcp_options) if self.protocol == TCP else 8)

    def _link_layer(self) -> bytes:
        if self.mode is Mode.TUN:
            return b""
        tags = b"".join(struct.pack(">HH", tag, self.tci) for tag in self.vlan)
        macs = (0x020000000002).to_bytes(6, "big") + self.mac.to_bytes(6, "big")
        return macs + tags + struct.pack(">H", IPV4 if self.version == 4 else IPV6)

    def _network_layer(self, length: int) -> bytes:
        """*length* is that of what follows the IP header with its options or extension headers."""
        if self.version == 4:
            size = 20 + len(self.options)
            start = struct.pack(
                ">BBHHHBBHII",
                0x40 | size // 4,
                self.traffic_class,
                size + length,
                self.identification,
                self.fragment,
                self.hops,
                self.protocol,
                0,
                0x0A000000 + self.source,
                0x0A000000 + self.destination,
            )
            header = start + self.options
            return header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
        chain = [kind for kind, _ in self.extensions] + [self.protocol]
        parts = [
            bytes([following, (len(content) - 6) // 8]) + content
            for (_, content), following in zip(self.extensions, chain[1:], strict=True)
        ]
        extensions = b"".join(parts)
        return (
            struct.pack(
                ">IHBB",
                6 << 28 | self.traffic_class << 20 | self.flow_label,
                len(extensions) + length,
                chain[0],
                self.hops,
            )
            + ((0xFD << 120) + self.source).to_bytes(16, "big")
            + ((0xFD << 120) + self.destination).to_bytes(16, "big")
            + extensions
        )

    def _transport_layer(self) -> bytes:
        ports = struct.pack(">HH", self.source_port, self.destination_port)
        if self.protocol == UDP:
            return ports + struct.pack(">HH", 8 + len(self.payload), 0) + self.payload
        offset = (20 + len(self.tcp_options)) // 4 << 4 | self.reserved
        fixed = struct.pack(
            ">IIBBHHH", self.sequence, self.acknowledgement, offset, self.flags, self.window, 0, self.urgent
        )
        return ports + fixed + self.tcp_options + self.payload

    def build(self, *, partial: bool = False) -> bytes:
        """The frame; with *partial* the transport checksum is left to be finished, as in NEEDS_CSUM."""
        transport = self._transport_layer()
        frame = self._link_layer() + self._network_layer(len(transport)) + transport
        # The pseudo header of IPv6 (RFC 8200); that of IPv4 (RFC 9293) adds up to the same.
        start, end = (12, 20) if self.version == 4 else (8, 40)
        addresses = frame[self.network + start : self.network + end]
        pseudo = addresses + struct.pack(">II", len(transport), self.protocol)
        result = ones_sum(pseudo) if partial else checksum(pseudo + transport)
        if not partial and self.protocol == UDP and result == 0:
            result = 0xFFFF
        at = self.transport + CHECKSUM_OFFSET[self.protocol]
        return frame[:at] + result.to_bytes(2, "big") + frame[at + 2 :]

    def super_frame(self, gso_size: int, *, header_size: int = 10, **lies: int) -> bytes:
        """The frame as one to segment; *lies* are other values for fields of the vnet header."""
        fields = {
            "flags": NEEDS_CSUM,
            "gso_type": GSO_TYPE[self.version, self.protocol],
            "hdr_len": self.header_length,
            "gso_size": gso_size,
            "csum_start": self.transport,
            "csum_offset": CHECKSUM_OFFSET[self.protocol],
        }
        return vnet_header(**fields | lies, size=header_size) + self.build(partial=True)

    def pieces(self, gso_size: int) -> list[Packet]:
        """The segments that a network card makes of the packet, with *gso_size* bytes of payload each."""
        starts = range(0, max(len(self.payload), 1), gso_size)
        return [
            replace(
                self,
                payload=self.payload[at : at + gso_size],
                sequence=(self.sequence + at) % 2**32,
                identification=(self.identification + number) % 2**16,
                flags=self.flags & ~(CWR if number else 0) & ~(FIN | PSH if number < len(starts) - 1 else 0),
            )
            for number, at in enumerate(starts)
        ]

    def with_zero_checksums(self, gso_size: int) -> Packet:
        """The same with two bytes of each segment's payload such that the sum over the segment is 0xFFFF."""
        payload = bytearray(self.payload)
        starts = [at for at in range(0, len(payload), gso_size) if min(gso_size, len(payload) - at) >= 2]
        for at in starts:
            payload[at : at + 2] = bytes(2)
        pieces = replace(self, payload=bytes(payload)).pieces(gso_size)
        at_field = self.transport + CHECKSUM_OFFSET[self.protocol]
        for at in starts:
            payload[at : at + 2] = pieces[at // gso_size].build()[at_field : at_field + 2]
        return replace(self, payload=bytes(payload))


def filler(size: int, seed: int) -> bytes:
    """Bytes without a pattern; seed 0 gives zeros and 1 gives 0xFF, where sums are at their limits."""
    if seed < 2:
        return bytes([0xFF * seed]) * size
    return random.Random(seed).randbytes(size)


def extension(kind: int, units: int = 0, seed: int = 0) -> tuple[int, bytes]:
    """An extension header of 8 * (*units* + 1) bytes. One of options holds padding, which everybody can read."""
    size = 8 * units + 6
    if kind == ROUTING:
        return kind, filler(size, seed)
    return kind, bytes((1, size - 2)) + filler(size - 2, seed)


def near_the_end_of(bits: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 2**bits - 1), st.integers(2**bits - 300, 2**bits - 1))


def extensions_of(size: int, seed: int = 0) -> tuple[tuple[int, bytes], ...]:
    """As few IPv6 extension headers as have *size* bytes in all, a multiple of 8."""
    sizes = [2048] * (size // 2048) + ([size % 2048] if size % 2048 else [])
    return tuple((DESTINATION, filler(each - 2, seed)) for each in sizes)


SEEDS = st.integers(0, 1000)
MODES = st.sampled_from(Mode)
HEADER_SIZES = st.sampled_from((10, 12, 20, 24))
EXTENSIONS = [(kind, units) for kind in (HOP_BY_HOP, ROUTING, DESTINATION) for units in (0, 0, 1, 5)]
TAGS = st.sampled_from([(), (), (0x8100,), (0x88A8,), (0x88A8, 0x8100), (0x8100, 0x8100)])


@st.composite
def packets(draw: st.DrawFn, sizes: st.SearchStrategy[int], modes: st.SearchStrategy[Mode] = MODES) -> Packet:
    """Frames of every valid shape, with payloads of *sizes*. Fields that no rule asks about come from one seed."""
    mode, seed = draw(modes), draw(SEEDS)
    version, protocol = draw(st.sampled_from(tuple(GSO_TYPE)))
    chance = random.Random(seed)
    packet = Packet(
        mode=mode,
        version=version,
        protocol=protocol,
        vlan=draw(TAGS) if mode is Mode.TAP else (),
        traffic_class=chance.randrange(256),
        hops=chance.randrange(256),
        flow_label=chance.randrange(2**20),
        acknowledgement=chance.randrange(2**32),
        reserved=chance.randrange(16),
        window=chance.randrange(2**16),
        urgent=chance.choice((0, 3)),
        payload=filler(draw(sizes), seed),
    )
    if version == 4:
        packet = replace(
            packet,
            identification=draw(near_the_end_of(16)),
            fragment=draw(st.sampled_from((0, DF))),
            options=filler(draw(st.sampled_from((0, 0, 4, 12, 40))), seed + 1),
        )
    else:
        shapes = draw(st.lists(st.sampled_from(EXTENSIONS), max_size=3))
        packet = replace(packet, extensions=tuple(extension(kind, units, seed) for kind, units in shapes))
    if protocol == TCP:
        packet = replace(
            packet,
            sequence=draw(near_the_end_of(32)),
            flags=draw(st.integers(0, 255)),
            tcp_options=filler(4 * draw(st.integers(0, 10)), seed + 3),
        )
    return packet


@st.composite
def spoiled(draw: st.DrawFn, frame: bytes, headers: int) -> bytes:
    """*frame* with a few bytes or 16-bit fields changed, most of them in its first *headers* bytes, or cut or padded."""
    out = bytearray(frame)
    for _ in range(draw(st.integers(1, 3))):
        if len(out) < 2:
            break
        end = min(headers, len(out)) if draw(st.integers(0, 7)) else len(out)
        at = draw(st.integers(0, max(end - 2, 0)))
        change = draw(st.sampled_from(("byte", "bit", "word", "step", "step", "cut", "pad")))
        if change == "byte":
            out[at] = draw(st.integers(0, 255))
        elif change == "bit":
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "word":
            out[at : at + 2] = draw(st.sampled_from((0, 1, len(frame), 0x7FFF, 0x8000, 0xFFFF))).to_bytes(2, "big")
        elif change == "step":
            word = u16(out, at) + draw(st.sampled_from((-20, -8, -2, -1, 1, 2, 4, 256, 4096)))
            out[at : at + 2] = (word % 2**16).to_bytes(2, "big")
        elif change == "cut":
            del out[draw(st.integers(0, len(out))) :]
        else:
            out += bytes(draw(st.integers(1, 30)))
    return bytes(out)


@st.composite
def hostile(draw: st.DrawFn, packet: Packet) -> bytes:
    """*packet* with headers as long as can be or about as long as is looked at, fields that lie, and its end cut off."""
    if packet.version == 6:
        size = draw(st.one_of(st.integers(0, 40), st.integers(20, 28), st.sampled_from((1000, 4000, 8100))))
        one_kind = draw(st.booleans())
        extensions = extensions_of(8 * size) if one_kind else (extension(draw(st.sampled_from((0, 43, 60)))),) * size
        packet = replace(packet, extensions=extensions)
    frame = bytearray(packet.build()[: 0xFFFF + packet.network])
    network, transport = packet.network, packet.transport
    length = network + (2 if packet.version == 4 else 4)
    fields = [network, length, length + 1, network + 6, network + 9, transport + 12, transport + 4, transport + 5]
    if packet.version == 6:
        fields += [network + 40, network + 41, network + 48, network + 49]
    if packet.mode is Mode.TAP:
        fields += [12, 13, network - 2, network - 1]
    for at in draw(st.lists(st.sampled_from(fields), max_size=3)):
        if at < len(frame):
            frame[at] = draw(
                st.sampled_from((0, 1, 6, 17, 43, 44, 60, 0x45, 0x4F, 0x50, 0x60, 0xF0, 0xFF, frame[at] ^ 1))
            )
    ends = st.one_of(st.integers(0, 300), st.integers(max(len(frame) - 4, 0), len(frame)))
    return bytes(frame[: draw(st.one_of(st.just(len(frame)), ends))])


# -- frames written out ------------------------------------------------------------------------------------------------

# Checksums in these were made by dpkt.
TCP4_PIECES = (
    "45000030 00010000 400666c5 0a000001 0a000002  9c401451 000003e8 000007d0 50100200 28da0000 7365676d656e7465",
    "45000030 00020000 400666c4 0a000001 0a000002  9c401451 000003f0 000007d0 50100200 484d0000 6420616761696e3a",
    "4500002d 00030000 400666c6 0a000001 0a000002  9c401451 000003f8 000007d0 50180200 f68a0000 2073616d65",
)
TCP4_FIRST_WITH_CWR = (
    "45000030 00010000 400666c5 0a000001 0a000002  9c401451 000003e8 000007d0 50900200 285a0000 7365676d656e7465"
)
# Addresses 0a00 0001 0a00 0002, protocol 6 and length 41 (29) add up to 1432.
TCP4_WHOLE = (
    "4500003d 00010000 400666b8 0a000001 0a000002  9c401451 000003e8 000007d0 50180200 14320000"
    " 7365676d656e74656420616761696e3a2073616d65"
)

_ADDRESSES6 = "fd000000000000000000000000000001 fd000000000000000000000000000002"
UDP6_PIECES = (
    f"60000000 000b1140 {_ADDRESSES6}  9c401451 000b90df 616263",
    f"60000000 000b1140 {_ADDRESSES6}  9c401451 000b8adc 646566",
    f"60000000 00091140 {_ADDRESSES6}  9c401451 0009ee45 67",
)
# fd00 + 1 + fd00 + 2 + 17 + 15 = 1fa23, folded fa24.
UDP6_WHOLE = f"60000000 000f1140 {_ADDRESSES6}  9c401451 000ffa24 61626364656667"

_LINK = "020000000002 020000000001"
#: What may stand before an IPv4 packet.
LINKS4 = ("", f"{_LINK} 0800", f"{_LINK} 81000007 0800", f"{_LINK} 88a80001 81000007 0800")


def written_out(*lines: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in lines]


# -- a second opinion --------------------------------------------------------------------------------------------------


def ask_dpkt(frame: bytes, mode: Mode) -> tuple[Any, Any]:
    """The IP and the TCP or UDP header as dpkt reads them, when all their lengths and checksums are right."""
    ip: Any
    if mode is Mode.TAP:
        ip = dpkt.ethernet.Ethernet(frame).data
    else:
        ip = (dpkt.ip.IP if frame[0] >> 4 == 4 else dpkt.ip6.IP6)(frame)
    transport = ip.data
    raw = bytes(transport)
    assert isinstance(transport, dpkt.tcp.TCP | dpkt.udp.UDP)
    assert frame.endswith(raw)
    if isinstance(ip, dpkt.ip.IP):
        assert ip.len == ip.hl * 4 + len(raw)
        assert dpkt.in_cksum(ip.pack_hdr() + ip.opts) == 0
    else:
        assert ip.plen == sum(each.length for each in ip.all_extension_headers) + len(raw)
    if isinstance(transport, dpkt.udp.UDP):
        assert transport.ulen == len(raw)
        assert transport.sum != 0
    protocol = UDP if isinstance(transport, dpkt.udp.UDP) else TCP
    assert dpkt.in_cksum(ip.src + ip.dst + struct.pack(">HH", protocol, len(raw)) + raw) == 0
    return ip, transport
