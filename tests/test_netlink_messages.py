"""rtnetlink messages as bytes: the requests that pyroute2 makes, and answers, including invalid ones."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotuntap._netlink import messages, requests
from aiotuntap._netlink.iproute import Address, parse_address, parse_route
from aiotuntap._netlink.messages import Message


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
    size = 16 if found.type < 20 else 8 if found.type < 24 else 12
    return found.type, found.flags, found.body[:size], messages._attributes(found.body, size)


REQUEST_ACK, DUMP, CREATE, EXCL = 0x5, 0x301, 0x400, 0x200


def test_requests_for_links() -> None:
    """Should a new pyroute2 encode these in another way, `requests` is the one module to change."""
    nothing = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    assert requested(requests.dump_links()) == (18, DUMP, nothing, {})
    assert requested(requests.get_link(index=7)) == (18, REQUEST_ACK, struct.pack("=BxHiII", 0, 0, 7, 0, 0), {})
    name = "v\udce9n0"  # a byte that is no UTF-8, as the kernel allows
    assert requested(requests.get_link(name=name)) == (18, REQUEST_ACK, nothing, {3: b"v\xe9n0\0"})
    for up in (True, False):
        body = struct.pack("=BxHiII", 0, 0, 7, int(up), 1)
        assert requested(requests.set_link(7, up=up)) == (16, REQUEST_ACK, body, {})
    changed = requests.set_link(7, name="b0", mtu=1400, mac="02:00:00:00:0a:01", txqueuelen=9, master=0, netns_fd=5)
    attributes = {3: b"b0\0", 4: number(1400), 1: b"\2\0\0\0\x0a\1", 13: number(9), 10: number(0), 28: number(5)}
    assert requested(changed) == (16, REQUEST_ACK, struct.pack("=BxHiII", 0, 0, 7, 0, 0), attributes)


@pytest.mark.parametrize("text", ["10.0.0.1/24", "fd00::1/64"])
def test_requests_for_addresses(text: str) -> None:
    address = ipaddress.ip_interface(text)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, address.network.prefixlen, 0, 0, 7)
    packed = address.ip.packed
    parsed = parse_address(text)
    expected = REQUEST_ACK | CREATE | EXCL, body, {1: packed, 2: packed}
    assert requested(requests.new_address(7, parsed)) == (20, *expected)
    assert requested(requests.delete_address(7, parsed)) == (21, REQUEST_ACK, *expected[1:])
    assert requested(requests.dump_addresses(7)) == (22, DUMP, struct.pack("=BBBBI", 0, 0, 0, 0, 7), {})


def test_requests_for_addresses_with_more_words() -> None:
    _, _, body, attributes = requested(
        requests.new_address(7, parse_address("10.0.0.1 peer 10.0.0.2/30 brd + scope link metric 9 noprefixroute"))
    )
    assert body == struct.pack("=BBBBI", socket.AF_INET, 30, 0, 253, 7)
    assert attributes == {
        1: b"\x0a\0\0\2",
        2: b"\x0a\0\0\1",
        4: b"\x0a\0\0\3",
        8: number(0x200),
        9: number(9),
    }
    nodad = requests.new_address(7, parse_address("fd00::1/64 nodad"))
    assert requested(nodad)[3][8] == number(2)
    assert 8 not in requested(requests.delete_address(7, parse_address("fd00::1/64 nodad")))[3]


def test_requests_for_routes() -> None:
    v4 = parse_route("10.1.0.0/16 via 10.0.0.9 metric 7")
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 16, 0, 0, 254, 4, 0, 1, 0)
    attributes = {1: v4.destination.network_address.packed, 4: number(3), 5: b"\x0a\0\0\x09", 6: number(7)}
    assert requested(requests.new_route(3, v4)) == (24, REQUEST_ACK | CREATE, body, attributes)
    direct = parse_route("10.1.0.0/16")
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 16, 0, 0, 254, 4, 253, 1, 0)
    assert requested(requests.new_route(3, direct))[2:] == (body, {1: b"\x0a\1\0\0", 4: number(3)})
    kind, flags, _, attributes = requested(requests.dump_routes(6, 3))
    assert (kind, flags, attributes) == (26, DUMP, {4: number(3)})


def test_requests_for_routes_with_more_words() -> None:
    route = parse_route("default via 10.0.0.2 table 51820 src 10.0.0.1 mtu 1400 onlink")
    _, _, body, attributes = requested(requests.new_route(3, route))
    assert body == struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 4, 0, 1, 4)
    assert attributes[15] == number(51820) and attributes[7] == b"\x0a\0\0\1"
    assert messages._attributes(attributes[8]) == {2: number(1400)}
    short = requested(requests.new_route(3, parse_route("10.1.0.0/16 table 100 scope host")))
    assert short[2] == struct.pack("=BBBBBBBBI", socket.AF_INET, 16, 0, 0, 100, 4, 254, 1, 0) and 15 not in short[3]


def test_the_sequence_number() -> None:
    request = requests.get_link(index=1)
    requests.set_sequence(request, 0x01020304)
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
    assert (link.multi_queue, link.owner, link.group, change.master) == (True, 1000, None, 4)
    assert link.master is None and not link.ipv6
    counters = link.counters
    assert (counters.rx_packets, counters.tx_packets, counters.rx_bytes, counters.tx_bytes) == (1, 2, 3, 4)
    assert (counters.rx_errors, counters.tx_errors, counters.rx_dropped, counters.tx_dropped) == (5, 6, 7, 8)
    bridged = struct.pack("=B", socket.AF_BRIDGE) + body[1:]
    assert messages.decode_change(Message(17, 0, 0, bridged)) is None


@pytest.mark.parametrize("off", [0, 1])
def test_whether_a_link_has_ipv6(off: int) -> None:
    settings = struct.pack("=27i", *[1 - off] * 26, off)
    body = struct.pack("=BxHiII", 0, 1, 9, 1, 0)
    body += attribute(26, attribute(socket.AF_INET6, attribute(2, settings)))
    change = messages.decode_change(Message(16, 0, 0, body))
    assert isinstance(change, messages.LinkChange) and change.link.ipv6 is not bool(off)


def decode_address(body: bytes, kind: int = 20) -> messages.AddressChange:
    change = messages.decode_change(Message(kind, 0, 0, body))
    assert isinstance(change, messages.AddressChange)
    return change


def test_an_address_of_another_family() -> None:
    """A dump of the addresses of all families has those of MCTP and Phonet, whose numbers have other lengths."""
    body = struct.pack("=BBBBI", 45, 0, 0, 0, 9) + attribute(2, b"\x08")
    assert messages.decode_change(Message(20, 0, 0, body)) is None


def test_the_own_address_of_a_point_to_point_link() -> None:
    body = (
        struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 9) + attribute(1, b"\x0a\0\0\2") + attribute(2, b"\x0a\0\0\1")
    )
    change = decode_address(body)
    assert (change.interface, str(change.address), change.removed) == (9, "10.0.0.1 peer 10.0.0.2/32", False)
    assert not (change.tentative or change.duplicate or change.automatic)


@pytest.mark.parametrize(
    ("address", "flags", "tentative", "duplicate", "automatic"),
    [
        ("fd00::1", 0x80, False, False, False),
        ("fd00::1", 0xC0, True, False, False),
        ("fd00::1", 0xC8, False, True, False),  # the kernel leaves it tentative for ever
        ("fd00::1", 0x100, False, False, True),
        ("fd00::1", 0x01, False, False, True),
        ("fe80::1", 0x80, False, False, True),
    ],
)
def test_what_flags_say_of_an_address(
    address: str, flags: int, tentative: bool, duplicate: bool, automatic: bool
) -> None:
    packed = socket.inet_pton(socket.AF_INET6, address)
    head = struct.pack("=BBBBI", socket.AF_INET6, 64, flags & 0xFF, 0, 9) + attribute(1, packed)
    change = decode_address(head + attribute(8, number(flags)), kind=21)
    assert (change.tentative, change.duplicate, change.automatic, change.removed) == (
        tentative,
        duplicate,
        automatic,
        True,
    )
    if flags <= 0xFF:
        assert decode_address(head, kind=21) == change._replace(body=head)


def route_message(
    family: int, length: int, *attributes: bytes, table: int = 254, protocol: int = 4, kind: int = 1, flags: int = 0
) -> Message:
    scope = 253 if family == socket.AF_INET else 0
    body = struct.pack("=BBBBBBBBI", family, length, 0, 0, table, protocol, scope, kind, flags)
    return Message(24, 0, 0, body + b"".join(attributes))


def test_routes() -> None:
    packed, oif = ipaddress.ip_address("10.1.0.0").packed, attribute(4, number(3))
    (entry,) = messages.decode_routes(route_message(socket.AF_INET, 16, attribute(1, packed), oif))
    assert (entry.interface, str(entry.route), entry.automatic) == (3, "10.1.0.0/16 scope link", False)
    (entry,) = messages.decode_routes(
        route_message(
            socket.AF_INET,
            16,
            attribute(1, packed),
            oif,
            attribute(5, b"\x0a\0\0\2"),
            attribute(6, number(7)),
            attribute(7, b"\x0a\0\0\1"),
            attribute(8, attribute(2, number(1400))),
            attribute(15, number(51820)),
            protocol=2,
            flags=4,
        )
    )
    shown = "10.1.0.0/16 via 10.0.0.2 table 51820 src 10.0.0.1 metric 7 mtu 1400 scope link onlink"
    assert (str(entry.route), entry.automatic) == (shown, True)
    via = struct.pack("=H", socket.AF_INET6) + ipaddress.ip_address("fe80::1").packed
    (entry,) = messages.decode_routes(route_message(socket.AF_INET, 16, attribute(1, packed), oif, attribute(18, via)))
    assert str(entry.route.gateway) == "fe80::1"
    for other in ({"kind": 6}, {"flags": 0x200}):
        assert messages.decode_routes(route_message(socket.AF_INET, 16, attribute(1, packed), oif, **other)) == []
    assert messages.decode_routes(route_message(socket.AF_INET, 16, attribute(1, packed))) == []


def test_ipv6_routes_that_the_kernel_made_one_of() -> None:
    hops = b""
    for index, gateway in ((3, "fd00::2"), (4, "fd00::3")):
        attributes = attribute(5, ipaddress.ip_address(gateway).packed)
        hops += struct.pack("=HBxi", 8 + len(attributes), 0, index) + attributes
    found = messages.decode_routes(route_message(socket.AF_INET6, 0, attribute(9, hops)))
    assert [(entry.interface, str(entry.route)) for entry in found] == [
        (3, "::/0 via fd00::2"),
        (4, "::/0 via fd00::3"),
    ]
    assert messages.decode_routes(route_message(socket.AF_INET, 0, attribute(9, hops))) == []


def test_a_route_as_it_was() -> None:
    """A request to remove or restore it has all that it has, also what `Route` does not, and nothing that is refused."""
    destination, protocol = attribute(1, b"\x0a\1\0\0"), 42
    told = (attribute(4, number(3)), attribute(5, b"\x0a\0\0\x09"), attribute(12, bytes(32)), attribute(6, number(7)))
    message = route_message(socket.AF_INET, 16, destination, *told, protocol=protocol, flags=4 | 16)
    (entry,) = messages.decode_routes(message)
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 16, 0, 0, 254, protocol, 253, 1, 4)
    attributes = {1: b"\x0a\1\0\0", 4: number(3), 5: b"\x0a\0\0\x09", 6: number(7)}
    assert requested(requests.delete_route(entry)) == (25, REQUEST_ACK, body, attributes)
    assert requested(requests.restore_route(entry)) == (24, REQUEST_ACK | CREATE, body, attributes)
    # The kernel refuses a gateway beside a nexthop object.
    (entry,) = messages.decode_routes(route_message(socket.AF_INET, 16, destination, *told, attribute(30, number(8))))
    assert requested(requests.delete_route(entry))[3] == {1: b"\x0a\1\0\0", 6: number(7), 30: number(8)}


def test_an_address_as_it_was() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 24, 1, 0, 9) + attribute(2, b"\x0a\0\0\1") + attribute(3, b"vpn0:1\0")
    head, attributes = body[:8], {2: b"\x0a\0\0\1", 3: b"vpn0:1\0"}
    expected = 20, REQUEST_ACK | CREATE | EXCL, head, attributes
    assert requested(requests.restore_address(decode_address(body))) == expected


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1/24", "10.0.0.1/24"),
        ("  10.0.0.1/255.255.255.0 ", "10.0.0.1/24"),
        ("10.0.0.1 peer 10.0.0.2", "10.0.0.1 peer 10.0.0.2/32"),
        ("10.0.0.1 peer 10.0.0.2/30", "10.0.0.1 peer 10.0.0.2/30"),
        ("10.0.0.1 peer 10.0.0.1/30", "10.0.0.1/30"),
        ("FD00:0::1/64 nodad", "fd00::1/64"),
        ("fd00::1 peer fd00::2", "fd00::1 peer fd00::2/128"),
    ],
)
def test_addresses_from_text(text: str, expected: str) -> None:
    assert str(parse_address(text)) == expected
    assert str(parse_address(expected)) == expected


def test_words_after_an_address() -> None:
    own = ipaddress.ip_address("10.0.0.1")
    found = parse_address("10.0.0.1/24 broadcast 10.0.0.9 scope host metric 3 noprefixroute")
    assert found == Address(own, 24, None, ipaddress.ip_address("10.0.0.9"), 254, 3, False, True)
    assert parse_address("10.0.0.1/24 brd +").broadcast == ipaddress.ip_address("10.0.0.255")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("10.0.0.1", "write '10.0.0.1/32' for this address alone, .* '10.0.0.1/24'"),
        ("fd00::1", "write 'fd00::1/128' .* 'fd00::1/64'"),
        ("0.0.0.0/8", "0.0.0.0 stands for no address"),
        ("::/128", ":: stands for no address"),
        ("10.0.0.300/24", "'10.0.0.300/24' is not an IPv4 or IPv6 address"),
        ("10.0.0.1/33", "'10.0.0.1/33' is not"),
        ("fe80::1%lo/64", "'fe80::1%lo/64' is not"),
        ("10.0.0.1/24 peer 10.0.0.2/24", "stands with the peer: '10.0.0.1 peer 10.0.0.2/24'"),
        ("10.0.0.1 peer fd00::1", "peer fd00::1 is an IPv6 address, and 10.0.0.1 is IPv4"),
        ("10.0.0.1 peer", "a value is missing after 'peer'"),
        ("10.0.0.1/24 foo 7", "'foo' is not understood; what may follow: peer VALUE, .*noprefixroute"),
        ("10.0.0.1/24 nodad", "'nodad' is not understood"),
        ("fd00::1/64 brd +", "'brd' is not understood"),
        ("fd00::1/64 nodad nodad", "'nodad' stands twice"),
        ("10.0.0.1/24 dev eth0", "leave 'dev' out"),
        ("10.0.0.1/24 metric x", "metric must be a number from 0 to 4294967295, not 'x'"),
        ("10.0.0.1/24 metric " + "9" * 5000, "metric must be a number"),
        ("10.0.0.1/24 scope planet", "scope must be 'global', 'site', 'link', 'host', or a number .* not 'planet'"),
        ("10.0.0.1/24 broadcast fd00::1", "broadcast fd00::1 is an IPv6 address"),
    ],
)
def test_addresses_that_make_no_sense(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_address(text)
    assert str(caught.value).startswith(f"address {text!r}: ") and caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("10.1.0.9", "10.1.0.9/32"),
        ("default", "0.0.0.0/0"),
        ("default via 10.0.0.1", "0.0.0.0/0 via 10.0.0.1"),
        ("default src fd00::1", "::/0 src fd00::1"),
        ("::/0", "::/0"),
        (
            "10.1.0.0/16 via 10.0.0.2 table 51820 src 10.0.0.1 metric 100 mtu 1400 onlink",
            "10.1.0.0/16 via 10.0.0.2 table 51820 src 10.0.0.1 metric 100 mtu 1400 onlink",
        ),
        ("10.1.0.0/16 table main scope link", "10.1.0.0/16 scope link"),
    ],
)
def test_routes_from_text(text: str, expected: str) -> None:
    assert str(parse_route(text)) == expected
    assert str(parse_route(expected)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("nonsense", "destination 'nonsense' is not"),
        ("10.0.0.1/8", "write '10.0.0.0/8', or '10.0.0.1' for one host"),
        ("10.0.0.0/8 via", "a value is missing after 'via'"),
        ("10.0.0.0/8 via x", "via 'x' is not an IPv4 or IPv6 address"),
        ("10.0.0.0/8 via 10.0.0.1/8", "via takes an address without a prefix length, not '10.0.0.1/8'"),
        ("10.0.0.0/8 via fd00::1", "via fd00::1 is an IPv6 address, and 10.0.0.0/8 is IPv4"),
        ("10.0.0.0/8 src fd00::1", "src fd00::1 is an IPv6 address"),
        ("10.0.0.0/8 dev eth0", "leave 'dev' out"),
        ("10.0.0.0/8 table vpn", "table must be 'default', 'main', 'local', or a number from 1 to .* not 'vpn'"),
        ("10.0.0.0/8 mtu 0", "mtu must be a number from 1 to"),
        ("10.0.0.0/8 weight 3", "'weight' is not understood; what may follow: via VALUE, .*, onlink"),
        ("10.0.0.0/8 onlink", "onlink takes a gateway"),
        ("fd00::/8 scope link", "scope is for IPv4 routes"),
        ("blackhole 10.0.0.0/8", "the type 'blackhole' leads through no interface"),
    ],
)
def test_routes_that_make_no_sense(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_route(text)
    assert str(caught.value).startswith(f"route {text!r}: ") and caught.value.__suppress_context__


@pytest.mark.parametrize("parse", [parse_address, parse_route])
@pytest.mark.parametrize("wrong", [7, None, b"10.0.0.1/24", ipaddress.ip_interface("10.0.0.1/24")])
def test_what_is_no_text(parse: Callable[[Any], object], wrong: object) -> None:
    with pytest.raises(ValueError, match="must be a string"):
        parse(wrong)


def test_which_addresses_meet_what_is_wanted() -> None:
    def met(wanted: str, there: str) -> bool:
        return parse_address(wanted).is_met_by(parse_address(there))

    def same(wanted: str, there: str) -> bool:
        return parse_address(wanted).identity == parse_address(there).identity

    assert met("10.0.0.1/24", "10.0.0.1/24 brd + scope link metric 7") and met("fd00::1/64 nodad", "fd00::1/64")
    assert not met("10.0.0.1/24 brd +", "10.0.0.1/24") and not met("10.0.0.1/24 metric 7", "10.0.0.1/24")
    assert not met("10.0.0.1/24", "10.0.0.1/25") and not met("10.0.0.1 peer 10.0.0.2", "10.0.0.1/32")
    assert not met("10.0.0.1/24 noprefixroute", "10.0.0.1/24") and met("10.0.0.1/24", "10.0.0.1/24 noprefixroute")
    assert same("fd00::1/64", "fd00::1/128") and not same("fd00::1/64", "fd00::2/64")
    assert same("10.0.0.1/24 metric 7", "10.0.0.1/24") and not same("10.0.0.1/24", "10.0.0.1/25")
    assert not same("10.0.0.1 peer 10.0.0.2", "10.0.0.1 peer 10.0.0.3")
    assert same("10.0.0.1 peer 10.0.0.2/24", "10.0.0.1 peer 10.0.0.3/24")


def test_which_routes_meet_what_is_wanted() -> None:
    def met(wanted: str, there: str) -> bool:
        return parse_route(wanted).is_met_by(parse_route(there))

    def same(wanted: str, there: str) -> bool:
        return parse_route(wanted).identity == parse_route(there).identity

    assert met("10.0.0.0/8", "10.0.0.0/8 metric 0") and met("fd00::/8", "fd00::/8 metric 1024")
    assert not met("10.0.0.0/8", "10.0.0.0/8 metric 1024") and not met("fd00::/8", "fd00::/8 metric 1")
    assert not met("10.0.0.0/8", "10.0.0.0/9") and not met("0.0.0.0/0", "::/0")
    assert met("10.0.0.0/8", "10.0.0.0/8 src 10.0.0.1 mtu 9") and not met("10.0.0.0/8 mtu 9", "10.0.0.0/8 mtu 8")
    assert not met("10.0.0.0/8 src 10.0.0.1", "10.0.0.0/8") and not met("10.0.0.0/8", "10.0.0.0/8 table 7")
    assert met("10.0.0.0/8 scope link", "10.0.0.0/8") and not met("10.0.0.0/8 scope host", "10.0.0.0/8")
    assert not met("10.0.0.0/8 via 10.0.0.1 onlink", "10.0.0.0/8 via 10.0.0.1")
    assert same("10.0.0.0/8 mtu 9", "10.0.0.0/8 mtu 8") and not same("10.0.0.0/8", "10.0.0.0/8 via 10.0.0.1")


@given(st.text(st.sampled_from("0123456789./: abcdefgviatblmrcsp+%"), max_size=40))
def test_reading_any_text_ends_in_a_value_or_a_message(text: str) -> None:
    for parse in (parse_address, parse_route):
        try:
            found = parse(text)
        except ValueError as error:
            assert repr(text) in str(error)
        else:
            assert parse(str(found)) is not None


@given(st.binary(max_size=300))
def test_splitting_ends_whatever_it_is_given(data: bytes) -> None:
    found = list(messages.split(data))
    assert sum(16 + len(each.body) for each in found) <= len(data)
    for each in found:
        messages.index_of(each)
        messages._attributes(each.body)
