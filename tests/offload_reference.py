"""What segmenting and coalescing have to give, written to be read: slow, one frame and one rule after the other.

The second half builds the frames to try it on, valid ones and such as lie about themselves, and asks dpkt about the
results.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import dpkt
from hypothesis import strategies as st

from aiotuntap import InvalidFrameError, Mode, Offload

NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80
TCP, UDP, ICMP = 6, 17, 1
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
DF, MF = 0x4000, 0x2000
IPV4, IPV6 = 0x0800, 0x86DD
VLAN_TAGS = (0x8100, 0x88A8)
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
CHECKSUM_OFFSET = {TCP: 16, UDP: 6}
GSO_TYPE = {(4, TCP): GSO_TCPV4, (6, TCP): GSO_TCPV6, (4, UDP): GSO_UDP_L4, (6, UDP): GSO_UDP_L4}
OFFLOAD = {(4, TCP): Offload.TSO4, (6, TCP): Offload.TSO6, (4, UDP): Offload.USO4, (6, UDP): Offload.USO6}
LONGEST_RUN, LARGEST_PACKET = 64, 65535

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


# -- the headers of a frame --------------------------------------------------------------------------------------------


class Headers(NamedTuple):
    """Where the headers of a TCP or UDP frame are, counted from its start."""

    version: int
    protocol: int
    network: int
    transport: int
    payload: int
    #: How long the IP packet is by its own header.
    length: int


def link_layer(body: bytes, mode: Mode) -> tuple[int, int]:
    """Size of all before the IP header, and the ethertype; 0 for none that is known. There may be two VLAN tags."""
    if mode is Mode.TUN:
        return 0, {4: IPV4, 6: IPV6}.get(body[0] >> 4, 0)
    size, ethertype = 14, u16(body, 12)
    for _ in range(2):
        if ethertype in VLAN_TAGS:
            size += 4
            ethertype = u16(body, size - 2) if len(body) >= size else 0
    return size, ethertype


def parse(body: bytes, mode: Mode) -> Headers | None:
    """The headers of TCP or UDP that is no fragment; None for everything else.

    They have to be inside of what the IP header says the packet is, and that inside the frame. More may follow it.
    """
    if len(body) < (14 if mode is Mode.TAP else 1):
        return None
    network, ethertype = link_layer(body, mode)
    if ethertype == IPV4:
        if len(body) < network + 20 or body[network] >> 4 != 4:
            return None
        version, length, protocol = 4, u16(body, network + 2), body[network + 9]
        header_length = (body[network] & 15) * 4
        if header_length < 20 or u16(body, network + 6) & 0x3FFF:
            return None
        transport = network + header_length
    elif ethertype == IPV6:
        if len(body) < network + 40 or body[network] >> 4 != 6:
            return None
        version, length, protocol = 6, 40 + u16(body, network + 4), body[network + 6]
        transport = network + 40
        while protocol in (HOP_BY_HOP, ROUTING, DESTINATION):
            if len(body) < transport + 8:
                return None
            protocol, units = body[transport], body[transport + 1]
            transport += 8 * (units + 1)
    else:
        return None
    if protocol == TCP:
        if len(body) < transport + 20 or body[transport + 12] >> 4 < 5:
            return None
        payload = transport + (body[transport + 12] >> 4) * 4
    elif protocol == UDP:
        payload = transport + 8
    else:
        return None
    if not payload <= network + length <= len(body):
        return None
    return Headers(version, protocol, network, transport, payload, length)


def addresses(body: bytes, headers: Headers) -> bytes:
    start, size = (headers.network + 12, 8) if headers.version == 4 else (headers.network + 8, 32)
    return body[start : start + size]


def pseudo_header(body: bytes, headers: Headers, transport_length: int) -> bytes:
    """RFC 9293 section 3.1 and RFC 8200 section 8.1; the one of IPv4 sums up to the same."""
    return addresses(body, headers) + struct.pack(">II", transport_length, headers.protocol)


# -- segment -----------------------------------------------------------------------------------------------------------


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidFrameError(message)


def segment(frame: bytes, mode: Mode, header_size: int = 10) -> list[bytes]:
    """The frames that *frame*, which starts with a virtio_net_hdr, stands for."""
    body = frame[header_size:]
    require(len(frame) >= header_size, "no vnet header")
    require(len(body) >= (14 if mode is Mode.TAP else 1), "too short")
    flags, gso_type, header_length, gso_size, csum_start, csum_offset = struct.unpack_from("=BBHHHH", frame)
    require(header_length <= len(body), "hdr_len")
    if gso_type == GSO_NONE:
        return [complete(body, mode, csum_start, csum_offset) if flags & NEEDS_CSUM else body]

    require(gso_type in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_TCPV4 | GSO_ECN, GSO_TCPV6 | GSO_ECN), "gso_type")
    require(gso_size > 0, "gso_size")
    headers = parse(body, mode)
    if headers is None:
        raise InvalidFrameError("neither TCP nor UDP")
    version, protocol, network, transport, payload, length = headers
    require(GSO_TYPE[version, protocol] == gso_type & ~GSO_ECN, "gso_type of something else")
    require(length == len(body) - network, "IP length")
    if protocol == UDP:
        require(u16(body, transport + 4) == len(body) - transport, "UDP length")
    if flags & NEEDS_CSUM:
        require(csum_start == transport, "csum_start")
        require(csum_offset == CHECKSUM_OFFSET[protocol], "csum_offset")
    else:
        require(protocol == TCP, "UDP without NEEDS_CSUM")

    data = body[payload:]
    pieces = [data[at : at + gso_size] for at in range(0, len(data), gso_size)] or [b""]
    return [one_segment(body, headers, index, pieces, gso_size) for index in range(len(pieces))]


def one_segment(body: bytes, headers: Headers, index: int, pieces: list[bytes], gso_size: int) -> bytes:
    version, protocol, network, transport, payload, _ = headers
    first, last = index == 0, index == len(pieces) - 1
    out = bytearray(body[:payload] + pieces[index])
    if version == 4:
        identification = (u16(body, network + 4) + index) % 2**16
        struct.pack_into(">HH", out, network + 2, len(out) - network, identification)
        struct.pack_into(">H", out, network + 10, 0)
        struct.pack_into(">H", out, network + 10, checksum(bytes(out[network:transport])))
    else:
        struct.pack_into(">H", out, network + 4, len(out) - network - 40)
    if protocol == TCP:
        sequence = int.from_bytes(body[transport + 4 : transport + 8], "big")
        struct.pack_into(">I", out, transport + 4, (sequence + index * gso_size) % 2**32)
        if not first:
            out[transport + 13] &= ~CWR & 0xFF
        if not last:
            out[transport + 13] &= ~(FIN | PSH) & 0xFF
    else:
        struct.pack_into(">H", out, transport + 4, len(out) - transport)
    field_at = transport + CHECKSUM_OFFSET[protocol]
    struct.pack_into(">H", out, field_at, 0)
    result = checksum(pseudo_header(bytes(out), headers, len(out) - transport) + bytes(out[transport:]))
    if protocol == UDP and result == 0:
        result = 0xFFFF
    struct.pack_into(">H", out, field_at, result)
    return bytes(out)


def complete(body: bytes, mode: Mode, csum_start: int, csum_offset: int) -> bytes:
    """Finishes a checksum of which the field holds the sum of the pseudo header."""
    network, ethertype = link_layer(body, mode)
    require(csum_start + csum_offset + 2 <= len(body), "checksum outside")
    require(csum_start >= network + {IPV4: 20, IPV6: 40}.get(ethertype, 0), "checksum in headers below")
    result = checksum(body[csum_start:])
    if csum_offset == CHECKSUM_OFFSET[UDP] and result == 0:
        result = 0xFFFF
    at = csum_start + csum_offset
    return body[:at] + result.to_bytes(2, "big") + body[at + 2 :]


# -- coalesce ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Frames of one flow that leave as one."""

    headers: Headers | None
    frames: list[bytes]

    @property
    def data(self) -> bytes:
        assert self.headers is not None
        return b"".join(frame[self.headers.payload :] for frame in self.frames)


def coalesce(frames: Iterable[bytes], mode: Mode, offload: Offload = Offload.ALL, header_size: int = 10) -> list[bytes]:
    """*frames* with a virtio_net_hdr each, those that follow each other in a flow as one."""
    runs: list[Run] = []
    open_runs: dict[bytes, Run] = {}
    for frame in frames:
        headers = parse(frame, mode)
        if headers is None:
            open_runs.clear()
            runs.append(Run(None, [frame]))
            continue
        flow = flow_of(frame, headers)
        run = open_runs.pop(flow, None)
        fits = may_be_merged(frame, headers, offload)
        if run is not None and fits and joins(run, frame, headers):
            run.frames.append(frame)
        else:
            run = Run(headers, [frame])
            runs.append(run)
        if fits and not is_last(run, frame, headers):
            open_runs[flow] = run
    return [merge(run, header_size) for run in runs]


def flow_of(frame: bytes, headers: Headers) -> bytes:
    ports = frame[headers.transport : headers.transport + 4]
    return frame[: headers.network] + bytes([headers.version, headers.protocol]) + addresses(frame, headers) + ports


def may_be_merged(frame: bytes, headers: Headers, offload: Offload) -> bool:
    """Whether the frame by itself is one that a run may hold."""
    version, protocol, network, transport, payload, length = headers
    if OFFLOAD[version, protocol] not in offload:
        return False
    if length != len(frame) - network or len(frame) == payload:
        return False
    if version == 4 and (u16(frame, network + 6) & 0x8000 or checksum(frame[network:transport]) != 0):
        return False
    if protocol == TCP and frame[transport + 13] & ~PSH not in (ACK, ACK | ECE):
        return False
    if protocol == UDP and (u16(frame, transport + 6) == 0 or u16(frame, transport + 4) != len(frame) - transport):
        return False
    return checksum(pseudo_header(frame, headers, len(frame) - transport) + frame[transport:]) == 0


def joins(run: Run, frame: bytes, headers: Headers) -> bool:
    """Whether the frame, one that a run may hold, is the next one of *run*."""
    first, first_headers = run.frames[0], run.headers
    if first_headers != headers._replace(length=first_headers.length if first_headers else 0):
        return False
    _, protocol, network, transport, payload, _ = headers
    if constant_part(frame, headers) != constant_part(first, headers):
        return False
    if len(frame) > len(first) or len(run.frames) == LONGEST_RUN:
        return False
    if payload - network + len(run.data) + len(frame) - payload > LARGEST_PACKET:
        return False
    if protocol == TCP:
        begin, now = (int.from_bytes(one[transport + 4 : transport + 8], "big") for one in (first, frame))
        if now != begin + len(run.data):
            return False
    if headers.version == 4 and not u16(first, network + 6) & DF:
        return u16(frame, network + 4) == u16(first, network + 4) + len(run.frames)
    return True


def constant_part(frame: bytes, headers: Headers) -> bytes:
    """The headers without what differs between the frames of a run."""
    _, protocol, network, transport, payload, _ = headers
    out = bytearray(frame[:payload])
    if headers.version == 4:
        out[network + 2 : network + 6] = bytes(4)  # total length, identification
        out[network + 10 : network + 12] = bytes(2)
    else:
        out[network + 4 : network + 6] = bytes(2)
    if protocol == TCP:
        out[transport + 4 : transport + 8] = bytes(4)
        out[transport + 13] &= ~PSH & 0xFF
        out[transport + 16 : transport + 18] = bytes(2)
    else:
        out[transport + 4 : transport + 8] = bytes(4)
    return bytes(out)


def is_last(run: Run, frame: bytes, headers: Headers) -> bool:
    pushes = headers.protocol == TCP and frame[headers.transport + 13] & PSH
    return bool(pushes) or len(frame) < len(run.frames[0])


def merge(run: Run, header_size: int) -> bytes:
    first = run.frames[0]
    if len(run.frames) == 1:
        return bytes(header_size) + first
    assert run.headers is not None
    version, protocol, network, transport, payload, _ = run.headers
    out = bytearray(first[:payload] + run.data)
    if version == 4:
        struct.pack_into(">H", out, network + 2, len(out) - network)
        struct.pack_into(">H", out, network + 10, 0)
        struct.pack_into(">H", out, network + 10, checksum(bytes(out[network:transport])))
    else:
        struct.pack_into(">H", out, network + 4, len(out) - network - 40)
    if protocol == TCP:
        out[transport + 13] |= run.frames[-1][transport + 13] & PSH
    else:
        struct.pack_into(">H", out, transport + 4, len(out) - transport)
    partial = ones_sum(pseudo_header(first, run.headers, len(out) - transport))
    struct.pack_into(">H", out, transport + CHECKSUM_OFFSET[protocol], partial)
    header = vnet_header(
        flags=NEEDS_CSUM,
        gso_type=GSO_TYPE[version, protocol],
        hdr_len=payload,
        gso_size=len(first) - payload,
        csum_start=transport,
        csum_offset=CHECKSUM_OFFSET[protocol],
        size=header_size,
    )
    return header + out


# -- frames to try it on -----------------------------------------------------------------------------------------------


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
    """One TCP or UDP frame by its fields. What is not asked for is as most hosts send it."""

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
        headers = Headers(self.version, self.protocol, self.network, self.transport, self.header_length, 0)
        pseudo = pseudo_header(frame, headers, len(transport))
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

    def with_zero_checksums(self, gso_size: int) -> Packet:
        """The same with two bytes of each segment's payload such that the sum over the segment is 0xFFFF."""
        payload = bytearray(self.payload)
        starts = [at for at in range(0, len(payload), gso_size) if min(gso_size, len(payload) - at) >= 2]
        for at in starts:
            payload[at : at + 2] = bytes(2)
        pieces = segment(replace(self, payload=bytes(payload)).super_frame(gso_size), self.mode)
        at_field = self.transport + CHECKSUM_OFFSET[self.protocol]
        for at in starts:
            payload[at : at + 2] = pieces[at // gso_size][at_field : at_field + 2]
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
