"""The echo example's replies, built and read by dpkt as a second opinion. Needs no interface."""

from __future__ import annotations

import importlib.util
import sys
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st


def _load_example() -> Any:
    path = Path(__file__).parents[1] / "examples" / "echo.py"
    spec = importlib.util.spec_from_file_location("aiotuntap_example_echo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


echo = _load_example()
ADDRESSES = [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]
HOST_MAC = bytes.fromhex("02a000000001")
tun = echo.Responder("tun", ADDRESSES)
tap = echo.Responder("tap", ADDRESSES)


def raw(address: str) -> bytes:
    return ip_address(address).packed


def ipv4(payload: Any, destination: str = "10.77.0.9", source: str = "10.77.0.1", **fields: Any) -> bytes:
    protocol = dpkt.ip.IP_PROTO_UDP if isinstance(payload, dpkt.udp.UDP) else dpkt.ip.IP_PROTO_ICMP
    return bytes(dpkt.ip.IP(src=raw(source), dst=raw(destination), p=protocol, data=payload, **fields))


def ipv6(payload: Any, destination: str = "fd77::9", source: str = "fd77::1", hop_limit: int = 64) -> bytes:
    protocol = dpkt.ip.IP_PROTO_UDP if isinstance(payload, dpkt.udp.UDP) else dpkt.ip.IP_PROTO_ICMP6
    packet = dpkt.ip6.IP6(
        src=raw(source), dst=raw(destination), nxt=protocol, hlim=hop_limit, plen=len(payload), data=payload
    )
    if protocol == dpkt.ip.IP_PROTO_ICMP6:
        payload.sum = 0
        pseudo = raw(source) + raw(destination) + len(payload).to_bytes(4) + protocol.to_bytes(4)
        payload.sum = slow_checksum(pseudo + bytes(payload))
    return bytes(packet)


def slow_checksum(data: bytes) -> int:
    """The checksum as RFC 1071 describes it: 16-bit words, the carry added back, the complement."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"))
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ping4(data: bytes = b"payload", number: int = 1) -> Any:
    return dpkt.icmp.ICMP(type=dpkt.icmp.ICMP_ECHO, data=dpkt.icmp.ICMP.Echo(id=number, seq=7, data=data))


def ping6(data: bytes = b"payload", number: int = 1) -> Any:
    return dpkt.icmp6.ICMP6(type=dpkt.icmp6.ICMP6_ECHO_REQUEST, data=dpkt.icmp6.ICMP6.Echo(id=number, seq=7, data=data))


def datagram(data: bytes = b"payload", source: int = 40000, port: int = 7) -> Any:
    return dpkt.udp.UDP(sport=source, dport=port, data=data, ulen=8 + len(data))


def ethernet(packet: bytes, kind: int, destination: bytes = echo.MAC, source: bytes = HOST_MAC) -> bytes:
    return destination + source + kind.to_bytes(2) + packet


def assert_checksums(packet: bytes) -> None:
    """Every checksum of an IP packet that this program wrote."""
    if packet[0] >> 4 == 4:
        assert slow_checksum(packet[:20]) == 0
        addresses, protocol, body = packet[12:20], packet[9], packet[20:]
    else:
        addresses, protocol, body = packet[8:40], packet[6], packet[40:]
    if protocol != dpkt.ip.IP_PROTO_ICMP:
        body = addresses + len(body).to_bytes(4) + protocol.to_bytes(4) + body
    assert slow_checksum(body) == 0


# -- what is answered --------------------------------------------------------------------------------------------------


@given(st.binary(max_size=2000), st.integers(0, 0xFFFF))
def test_ping_over_ipv4(data: bytes, number: int) -> None:
    reply = tun.reply(ipv4(ping4(data, number), tos=0x10, ttl=3))
    packet = dpkt.ip.IP(reply)
    assert (packet.src, packet.dst, packet.ttl, packet.tos) == (raw("10.77.0.9"), raw("10.77.0.1"), 64, 0x10)
    assert packet.data.type == dpkt.icmp.ICMP_ECHOREPLY
    assert (packet.data.data.id, packet.data.data.seq, packet.data.data.data) == (number, 7, data)
    assert_checksums(reply)


@given(st.binary(max_size=2000), st.integers(0, 0xFFFF))
def test_ping_over_ipv6(data: bytes, number: int) -> None:
    reply = tun.reply(ipv6(ping6(data, number), hop_limit=3))
    packet = dpkt.ip6.IP6(reply)
    assert (packet.src, packet.dst, packet.hlim) == (raw("fd77::9"), raw("fd77::1"), 64)
    assert packet.data.type == dpkt.icmp6.ICMP6_ECHO_REPLY
    assert bytes(packet.data.data) == number.to_bytes(2) + b"\0\x07" + data
    assert_checksums(reply)


def test_a_reply_of_zeros_has_a_checksum_that_is_not_zero() -> None:
    reply = tun.reply(ipv4(b"\x08\0\xf7\xff\0\0\0\0"))
    assert reply[20:] == b"\0\0\xff\xff\0\0\0\0"


@pytest.mark.parametrize(("build", "size"), [(ipv4, 20), (ipv6, 40)], ids=["ipv4", "ipv6"])
@given(data=st.binary(max_size=2000), port=st.integers(8, 0xFFFF))
def test_udp_echo(build: Any, size: int, data: bytes, port: int) -> None:
    reply = tun.reply(build(datagram(data, port)))
    answered = dpkt.udp.UDP(reply[size:])
    assert (answered.sport, answered.dport, answered.ulen, answered.data) == (7, port, 8 + len(data), data)
    assert_checksums(reply)


def test_udp_without_checksum_is_fine_over_ipv4_only() -> None:
    four, six = bytearray(ipv4(datagram())), bytearray(ipv6(datagram()))
    four[26:28] = six[46:48] = b"\0\0"
    assert tun.reply(bytes(four))[26:28] == b"\0\0"
    assert tun.reply(bytes(six)) is None


def test_ip_options_are_not_repeated() -> None:
    packet = ipv4(ping4(), opts=b"\x01\x01\x01\x00", hl=6)
    reply = dpkt.ip.IP(tun.reply(packet))
    assert (reply.hl, reply.len, reply.data.data.data) == (5, 20 + 8 + 7, b"payload")


PACKETS = {
    "ping4": ipv4(ping4()),
    "ping6": ipv6(ping6()),
    "udp4": ipv4(datagram()),
    "udp6": ipv6(datagram()),
}


def each(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("packet", [pytest.param(PACKETS[name], id=name) for name in names])


@each("ping4", "ping6", "udp4", "udp6")
def test_what_follows_the_packet_is_padding(packet: bytes) -> None:
    assert tun.reply(packet + bytes(20)) == tun.reply(packet) is not None


@each("ping4", "ping6", "udp4", "udp6")
def test_the_same_over_ethernet(packet: bytes) -> None:
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    assert tap.reply(ethernet(packet, kind)) == ethernet(tun.reply(packet), kind, HOST_MAC, echo.MAC)
    assert tap.reply(ethernet(packet, kind, destination=bytes.fromhex("02b000000001"))) is None
    assert tap.reply(ethernet(packet, kind, source=bytes.fromhex("03b000000001"))) is None
    assert tap.reply(ethernet(packet, 0x0800 ^ 0x86DD ^ kind)) is None


def test_every_address_but_the_host_and_broadcasts() -> None:
    answered = [last for last in range(256) if tun.reply(ipv4(ping4(), f"10.77.0.{last}", "10.77.0.1"))]
    assert answered == list(range(2, 255))
    assert tun.reply(ipv4(ping4(), "10.77.1.2")) is None
    assert tun.reply(ipv6(ping6(), "fd77::1", "fd77::2")) is None
    assert tun.reply(ipv6(ping6(), "fd77:0:0:1::2")) is None
    assert tun.reply(ipv6(ping6(), "fd77::ffff:ffff:ffff:ffff"))


def test_both_ends_of_a_link_of_two() -> None:
    responder = echo.Responder("tun", [ip_interface("10.9.0.0/31"), ip_interface("fd09::/127")])
    assert responder.reply(ipv4(ping4(), "10.9.0.1", "10.9.0.0"))
    assert responder.reply(ipv6(ping6(), "fd09::1", "fd09::"))


# -- what is not -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.77.0.9"])
def test_ipv4_sources_that_nobody_can_answer(source: str) -> None:
    assert tun.reply(ipv4(ping4(), source=source)) is None


@pytest.mark.parametrize("source", ["::", "ff02::1", "fd77::9"])
def test_ipv6_sources_that_nobody_can_answer(source: str) -> None:
    assert tun.reply(ipv6(ping6(), source=source)) is None


def test_fragments() -> None:
    assert tun.reply(ipv4(ping4(), mf=1)) is None
    assert tun.reply(ipv4(ping4(), offset=1)) is None


@pytest.mark.parametrize(("source", "port"), [(40000, 8), (7, 7), (0, 7)])
def test_other_ports_and_echo_loops(source: int, port: int) -> None:
    assert tun.reply(ipv4(datagram(b"", source, port))) is None


@each("ping4", "ping6", "udp4", "udp6")
def test_truncated_packets(packet: bytes) -> None:
    assert not any(tun.reply(packet[:size]) for size in range(len(packet)))


@each("ping4", "udp4")
def test_any_flipped_bit_of_an_ipv4_packet(packet: bytes) -> None:
    """Its checksums cover all of it: header and payload."""
    for bit in range(8 * len(packet)):
        spoilt = (int.from_bytes(packet) ^ 1 << bit).to_bytes(len(packet))
        assert tun.reply(spoilt) is None, f"bit {bit}"


@each("ping6", "udp6")
def test_any_flipped_bit_of_an_ipv6_payload_or_address(packet: bytes) -> None:
    for bit in range(8 * (len(packet) - 8)):
        spoilt = (int.from_bytes(packet) ^ 1 << bit).to_bytes(len(packet))
        assert tun.reply(spoilt) is None, f"bit {bit}"


@given(frame=st.binary(max_size=120))
def test_noise_never_raises(frame: bytes) -> None:
    assert tun.reply(frame) is None
    assert tap.reply(frame) is None


@given(
    st.sampled_from([ethernet(packet, 0x0800 if packet[0] >> 4 == 4 else 0x86DD) for packet in PACKETS.values()]),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=4),
    st.integers(0, 100),
)
def test_corrupt_frames_never_raise_and_replies_are_not_longer(
    seed: bytes, changes: list[tuple[int, int]], size: int
) -> None:
    frame = bytearray(seed)
    for position, value in changes:
        frame[position % len(frame)] = value
    for responder, start in ((tap, 0), (tun, 14)):
        reply = responder.reply(bytes(frame[start:size]))
        assert reply is None or len(reply) <= len(frame)


# -- ARP and neighbour discovery ---------------------------------------------------------------------------------------


def arp(target: str = "10.77.0.9", sender: str = "10.77.0.1", op: int = dpkt.arp.ARP_OP_REQUEST) -> bytes:
    return bytes(dpkt.arp.ARP(op=op, sha=HOST_MAC, spa=raw(sender), tpa=raw(target)))


def test_arp_request() -> None:
    request = ethernet(arp(), 0x0806, b"\xff" * 6) + bytes(18)
    frame = dpkt.ethernet.Ethernet(tap.reply(request))
    assert (frame.src, frame.dst, frame.type) == (echo.MAC, HOST_MAC, 0x0806)
    assert (frame.data.op, frame.data.sha, frame.data.spa) == (dpkt.arp.ARP_OP_REPLY, echo.MAC, raw("10.77.0.9"))
    assert bytes(frame.data)[18:28] == HOST_MAC + raw("10.77.0.1")  # the asker is the target now
    assert not any(tap.reply(request[:size]) for size in range(42))


@pytest.mark.parametrize(
    "packet",
    [
        arp("10.77.0.1", "10.77.0.3"),
        arp("10.77.1.9"),
        arp("10.77.0.255"),
        arp(op=dpkt.arp.ARP_OP_REPLY),
        arp("10.77.0.9", "0.0.0.0"),
        arp("10.77.0.9", "10.77.0.9"),
        b"\0\6" + arp()[2:],
    ],
    ids=["host", "foreign", "broadcast", "reply", "probe", "announcement", "hardware"],
)
def test_arp_that_is_not_for_us(packet: bytes) -> None:
    assert tap.reply(ethernet(packet, 0x0806, b"\xff" * 6)) is None


def solicitation(
    target: str = "fd77::9",
    source: str = "fd77::1",
    destination: str = "ff02::1:ff00:9",
    hop_limit: int = 255,
    options: bytes = b"\x01\x01" + HOST_MAC,
) -> bytes:
    body = dpkt.icmp6.ICMP6(type=dpkt.icmp6.ND_NEIGHBOR_SOLICIT, data=bytes(4) + raw(target) + options)
    packet = ipv6(body, destination, source, hop_limit)
    return ethernet(packet, 0x86DD, b"\x33\x33" + raw(destination)[12:])


@pytest.mark.parametrize("destination", ["ff02::1:ff00:9", "fd77::9"])
@pytest.mark.parametrize("options", [b"\x01\x01" + HOST_MAC, b""], ids=["address", "no option"])
def test_neighbour_solicitation(destination: str, options: bytes) -> None:
    request = solicitation(destination=destination, options=options)
    reply = tap.reply(request)
    frame = dpkt.ethernet.Ethernet(reply)
    assert (frame.src, frame.dst, frame.type) == (echo.MAC, HOST_MAC, 0x86DD)
    assert (frame.data.src, frame.data.dst, frame.data.hlim) == (raw("fd77::9"), raw("fd77::1"), 255)
    # type, code; solicited and override; target; option 2: target link-layer address
    assert reply[54:56] == bytes((136, 0))
    assert reply[58:] == b"\x60\0\0\0" + raw("fd77::9") + b"\x02\x01" + echo.MAC
    assert_checksums(reply[14:])
    assert not any(tap.reply(request[:size]) for size in range(len(request)))


@pytest.mark.parametrize(
    "request_",
    [
        solicitation(source="::", options=b""),
        solicitation("fd77::1", "fd77::9", "ff02::1:ff00:1"),
        solicitation("fd78::9"),
        solicitation(hop_limit=64),
        solicitation(destination="ff02::1"),
        solicitation(options=b"\x01\x00" + HOST_MAC),
        solicitation(options=b"\x01\x02" + HOST_MAC),
        solicitation(options=b"\x01"),
        solicitation()[:-1] + b"\xff",
    ],
    ids=["duplicates", "host", "foreign", "forwarded", "all nodes", "empty option", "long option", "stub", "checksum"],
)
def test_neighbour_solicitation_that_is_not_answered(request_: bytes) -> None:
    assert tap.reply(request_) is None


@given(st.integers(0, 85), st.integers(0, 255), st.integers(0, 100))
def test_corrupt_solicitations_never_raise(position: int, value: int, size: int) -> None:
    frame = bytearray(solicitation())
    frame[position] = value
    reply = tap.reply(bytes(frame[:size]))
    assert reply is None or len(reply) == 86


# -- checksum ----------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=300).filter(any))
def test_checksum_against_a_slow_and_simple_one(data: bytes) -> None:
    assert echo.checksum(data) == slow_checksum(data)
