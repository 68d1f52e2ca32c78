"""rtnetlink messages as bytes: the requests that pyroute2 makes, and answers, including invalid ones."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotuntap._netlink import messages
from aiotuntap._netlink.messages import Message, Route


def message(kind: int, body: bytes = b"", flags: int = 0, sequence: int = 1) -> bytes:
    """A message and its padding."""
    whole = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body
    return whole + bytes(-len(whole) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    whole = struct.pack("=HH", 4 + len(value), kind) + value
    return whole + bytes(-len(whole) % 4)


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def requested(request: bytearray) -> tuple[int, int, bytes, dict[int, bytes]]:
    """Type, flags, the first 12 bytes of the body, and the attributes."""
    (found,) = messages.split(bytes(request))
    size = 16 if found.type in (16, 18) else 8 if found.type in (20, 22) else 12
    return found.type, found.flags, found.body[:size], messages._attributes(found.body, size)


REQUEST_ACK, DUMP, CREATE, EXCL = 0x5, 0x301, 0x400, 0x200


def test_requests_for_links() -> None:
    """Should a new pyroute2 encode these in another way, `messages` is the one module to change."""
    nothing = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    assert requested(messages.dump_links()) == (18, DUMP, nothing, {})
    assert requested(messages.get_link(index=7)) == (18, REQUEST_ACK, struct.pack("=BxHiII", 0, 0, 7, 0, 0), {})
    name = "v\udce9n0"  # a byte that is no UTF-8, as the kernel allows
    assert requested(messages.get_link(name=name)) == (18, REQUEST_ACK, nothing, {3: b"v\xe9n0\0"})
    for up in (True, False):
        body = struct.pack("=BxHiII", 0, 0, 7, int(up), 1)
        assert requested(messages.set_link(7, up=up)) == (16, REQUEST_ACK, body, {})
    changed = messages.set_link(7, name="b0", mtu=1400, mac="02:00:00:00:0a:01", txqueuelen=9, master=0, netns_fd=5)
    attributes = {3: b"b0\0", 4: number(1400), 1: b"\2\0\0\0\x0a\1", 13: number(9), 10: number(0), 28: number(5)}
    assert requested(changed) == (16, REQUEST_ACK, struct.pack("=BxHiII", 0, 0, 7, 0, 0), attributes)


@pytest.mark.parametrize("text", ["10.0.0.1/24", "fd00::1/64"])
def test_requests_for_addresses(text: str) -> None:
    address = ipaddress.ip_interface(text)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, address.network.prefixlen, 0, 0, 7)
    packed = address.ip.packed
    expected = 20, REQUEST_ACK | CREATE | EXCL, body, {1: packed, 2: packed}
    assert requested(messages.new_address(7, address)) == expected
    assert requested(messages.dump_addresses(7)) == (22, DUMP, struct.pack("=BBBBI", 0, 0, 0, 0, 7), {})


def test_requests_for_routes() -> None:
    v4 = Route(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_address("10.0.0.9"), 7)
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 16, 0, 0, 254, 4, 0, 1, 0)
    attributes = {1: v4.destination.network_address.packed, 4: number(3), 5: b"\x0a\0\0\x09", 6: number(7)}
    assert requested(messages.new_route(3, v4)) == (24, REQUEST_ACK | CREATE, body, attributes)
    direct = Route(ipaddress.ip_network("10.1.0.0/16"))
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 16, 0, 0, 254, 4, 253, 1, 0)
    assert requested(messages.new_route(3, direct))[2:] == (body, {1: b"\x0a\1\0\0", 4: number(3)})
    kind, flags, _, attributes = requested(messages.dump_routes(6, 3))
    assert (kind, flags, attributes) == (26, DUMP, {4: number(3)})


def test_the_sequence_number() -> None:
    request = messages.get_link(index=1)
    messages.set_sequence(request, 0x01020304)
    assert [each.sequence for each in messages.split(bytes(request))] == [0x01020304]


def test_several_in_one_datagram() -> None:
    data = message(16, b"abc", flags=2, sequence=5) + message(3, b"\0\0\0\0")
    assert list(messages.split(data)) == [Message(16, 2, 5, b"abc"), Message(3, 0, 1, b"\0\0\0\0")]
    assert list(messages.split(data[:-1])) == [Message(16, 2, 5, b"abc")]
    assert list(messages.split(b"")) == list(messages.split(data[:15])) == []
    assert list(messages.split(struct.pack("=IHHII", 0, 16, 0, 0, 0))) == []  # which would never advance


def test_errors() -> None:
    def error(body: bytes, flags: int) -> tuple[int, str]:
        (found,) = messages.split(message(2, body, flags))
        return messages.error_of(found)

    original = struct.pack("=IHHII", 20, 16, 5, 1, 0)
    text = attribute(1, b"Nexthop has invalid gateway\0")
    assert error(struct.pack("=i", 0) + original, 0x100) == (0, "Success")
    assert error(struct.pack("=i", -1) + original, 0x100) == (1, "Operation not permitted")
    assert error(struct.pack("=i", -22) + original + text, 0x300) == (22, "Nexthop has invalid gateway")
    # Without NETLINK_CAP_ACK, before Linux 4.3, the whole of the request is in front of it.
    assert error(struct.pack("=i", -22) + original + bytes(4) + text, 0x200) == (22, "Nexthop has invalid gateway")


def test_a_link() -> None:
    data = attribute(3, b"\2") + attribute(8, number(3)) + attribute(9, number(1)) + attribute(7, b"\1")
    info = attribute(1, b"tun\0") + attribute(2, data + attribute(1, number(1000)))
    stats = struct.pack("=10Q", *range(1, 11))
    body = struct.pack("=BxHiII", 0, 1, 9, 0x10001, 0) + attribute(3, b"v\xe9n0\0") + attribute(4, number(1400))
    body += attribute(1, b"\2\0\0\0\0\xff") + attribute(10, number(4)) + attribute(0x8012, info) + attribute(23, stats)
    (found,) = messages.split(message(17, body))
    change = messages.decode_change(found)
    assert isinstance(change, messages.LinkChange) and change.removed
    link = change.link
    assert (link.index, link.name, link.mtu, link.mac, link.up, link.carrier) == (
        9,
        "v\udce9n0",
        1400,
        "02:00:00:00:00:ff",
        True,
        True,
    )
    assert (link.kind, link.mode, link.queues, link.disabled_queues) == ("tun", "tap", 3, 1)
    assert (link.multi_queue, link.owner, link.group, link.master) == (True, 1000, None, 4)
    counters = link.counters
    assert (counters.rx_packets, counters.tx_packets, counters.rx_bytes, counters.tx_bytes) == (1, 2, 3, 4)
    assert (counters.rx_errors, counters.tx_errors, counters.rx_dropped, counters.tx_dropped) == (5, 6, 7, 8)
    bridged = struct.pack("=B", socket.AF_BRIDGE) + body[1:]
    assert messages.decode_change(Message(17, 0, 0, bridged)) is None


def test_the_own_address_of_a_point_to_point_link() -> None:
    body = (
        struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 9) + attribute(1, b"\x0a\0\0\2") + attribute(2, b"\x0a\0\0\1")
    )
    assert messages.decode_change(Message(20, 0, 0, body)) == messages.AddressChange(9, "10.0.0.1/32", removed=False)


def test_which_routes_are_the_same() -> None:
    def same(one: tuple[str, int | None], other: tuple[str, int | None]) -> bool:
        return Route(ipaddress.ip_network(one[0]), None, one[1]).same(
            Route(ipaddress.ip_network(other[0]), None, other[1])
        )

    assert same(("10.0.0.0/8", None), ("10.0.0.0/8", 0)) and same(("fd00::/8", None), ("fd00::/8", 1024))
    assert not same(("10.0.0.0/8", None), ("10.0.0.0/8", 1024)) and not same(("fd00::/8", None), ("fd00::/8", 1))
    assert not same(("10.0.0.0/8", None), ("10.0.0.0/9", None)) and not same(("0.0.0.0/0", None), ("::/0", None))


@given(st.binary(max_size=300))
def test_splitting_ends_whatever_it_is_given(data: bytes) -> None:
    found = list(messages.split(data))
    assert sum(16 + len(each.body) for each in found) <= len(data)
    for each in found:
        messages.index_of(each)
        messages._attributes(each.body)
