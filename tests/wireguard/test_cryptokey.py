"""Which packets go where, and which a peer may have sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wireguard.cryptokey import allowed, by_peer
from wireguard.drops import Drops

from .support import ipv4, ipv6

OWNERS = {
    bytes([10, 0, 0, 1]): "one",
    bytes([10, 0, 0, 2]): "two",
    bytes.fromhex("fd" + 14 * "00" + "01"): "one",
    bytes.fromhex("fd" + 14 * "00" + "02"): "two",
}


def test_packets_go_to_the_peer_of_their_destination_in_order() -> None:
    packets = [
        ipv4("10.0.0.9", "10.0.0.1", b"1"),
        ipv4("10.0.0.9", "10.0.0.2", b"2"),
        ipv6("fd00::9", "fd00::1", b"3"),
        ipv4("10.0.0.9", "10.0.0.1", b"4"),
        ipv4("10.0.0.1", "10.0.0.9", b"nobody's"),
        ipv6("fd00::1", "fd00::9", b"nobody's"),
        ipv6("fd00::9", "fd00::2", b"5"),
    ]
    drops = Drops()
    batches = by_peer(packets, OWNERS.get, drops)
    assert batches == {"one": [packets[0], packets[2], packets[3]], "two": [packets[1], packets[6]]}
    assert drops == Drops(no_route=2)


@pytest.mark.parametrize(
    "packet",
    [b"", b"\x45", ipv4("10.0.0.9", "10.0.0.1")[:19], ipv6("fd00::9", "fd00::1")[:39], b"\x55" + bytes(50), bytes(60)],
)
def test_packets_that_are_not_ip_are_dropped(packet: bytes) -> None:
    drops = Drops()
    assert by_peer([packet], lambda address: "all", drops) == {}
    assert drops == Drops(malformed=1)
    if packet:
        assert allowed([packet], "all", lambda address: "all", drops) == []
        assert drops == Drops(malformed=2)


def test_a_peer_sends_from_its_own_addresses_alone() -> None:
    packets = [
        ipv4("10.0.0.1", "10.0.0.9", b"1"),
        ipv4("10.0.0.2", "10.0.0.9", b"another peer's"),
        ipv4("10.0.0.3", "10.0.0.9", b"nobody's"),
        ipv6("fd00::1", "fd00::9", b"2"),
        ipv6("fd00::2", "fd00::9", b"another peer's"),
        ipv4("10.0.0.1", "10.0.0.9", b"3"),
    ]
    drops = Drops()
    assert allowed(packets, "one", OWNERS.get, drops) == [packets[0], packets[3], packets[5]]
    assert drops == Drops(disallowed_source=3)


@given(st.integers(0, 15), st.integers(0, 60))
def test_padding_is_taken_off_and_keepalives_are_not_counted(padding: int, size: int) -> None:
    drops = Drops()
    for packet in (ipv4("10.0.0.1", "10.0.0.9", b"x" * size), ipv6("fd00::1", "fd00::9", b"x" * size)):
        assert allowed([b"", packet + bytes(padding)], "one", OWNERS.get, drops) == [packet]
    assert drops == Drops()


@pytest.mark.parametrize("length", [0, 19, 25, 65535])
def test_a_length_that_is_not_in_the_packet_is_refused(length: int) -> None:
    packet = bytearray(ipv4("10.0.0.1", "10.0.0.9", b"1234"))
    packet[2:4] = length.to_bytes(2)
    drops = Drops()
    assert allowed([bytes(packet)], "one", OWNERS.get, drops) == []
    assert drops == Drops(malformed=1)


def test_the_same_for_ipv6() -> None:
    packet = ipv6("fd00::1", "fd00::9", b"1234")
    drops = Drops()
    assert allowed([packet[:-1]], "one", OWNERS.get, drops) == []
    assert drops == Drops(malformed=1)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_random_bytes_change_nothing(packets: list[bytes]) -> None:
    drops = Drops()
    by_peer(packets, OWNERS.get, drops)
    allowed(packets, "one", OWNERS.get, drops)
