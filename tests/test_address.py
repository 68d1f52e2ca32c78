"""Addresses of datagrams: text, tuples and bytes. Results are compared with the standard library's `ipaddress`."""

from __future__ import annotations

import ipaddress
import pickle
import socket
from copy import copy, deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotuntap._address import Address, from_bytes, split, to_tuple
from aiotuntap.udp import UdpStream, _Addresses

PORTS = st.integers(0, 65535)


@given(st.ip_addresses(), PORTS)
def test_text_and_back(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    text = f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
    address = Address(text)
    expected = ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip
    assert ipaddress.ip_address(address.host) == expected
    assert address.port == port
    assert Address(str(address)) == address == Address((str(ip), port))
    assert hash(Address(str(address))) == hash(address)
    assert address.local is None
    assert address.remote == address
    assert ipaddress.ip_address(str(to_tuple(address, socket.AF_INET6)[0])) == (
        ip if ip.version == 6 and expected == ip else ipaddress.ip_address(f"::ffff:{expected}")
    )


def test_what_the_kernel_takes() -> None:
    assert bytes(Address("192.0.2.1:51820")) == (
        socket.AF_INET.to_bytes(2, "little" if socket.htons(1) != 1 else "big")
        + bytes.fromhex("ca6cc0000201")
        + bytes(8)
    )


def test_an_address_with_a_local_address() -> None:
    address = from_bytes(Address("192.0.2.1:5") + bytes([192, 0, 2, 9]))
    assert (address.local, address.host, address.port) == ("192.0.2.9", "192.0.2.1", 5)
    assert (str(address), repr(address)) == ("192.0.2.1:5", "<Address 192.0.2.1:5 to 192.0.2.9>")
    assert address != address.remote == Address("192.0.2.1:5")
    six = from_bytes(Address("[fd00::1]:5") + socket.inet_pton(socket.AF_INET6, "fd00::9"))
    assert (six.local, six.remote) == ("fd00::9", Address("[fd00::1]:5"))


def test_a_scope() -> None:
    address = Address("[fe80::1%1]:7")
    assert (address.scope, address.host, str(address)) == (1, "fe80::1%1", "[fe80::1%1]:7")
    assert Address("[fe80::1%lo]:7") == address == Address(("fe80::1", 7, 0, 1))
    assert Address("[fe80::2]:7").scope == Address("1.2.3.4:5").scope == 0


def test_it_is_a_value() -> None:
    address = Address("[fd00::1]:5")
    for each in (copy(address), deepcopy(address), pickle.loads(pickle.dumps(address)), Address(address)):
        assert each == address
        assert type(each) is Address


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("192.0.2.1", ValueError, "'HOST:PORT'"),
        ("192.0.2.1:", ValueError, "'HOST:PORT'"),
        ("192.0.2.1:x", ValueError, "'HOST:PORT'"),
        ("192.0.2.1:٣", ValueError, "'HOST:PORT'"),
        ("fd00::1:5", ValueError, "'HOST:PORT'"),
        ("[192.0.2.1]:5", ValueError, "'HOST:PORT'"),
        ("[fd00::1]", ValueError, "'HOST:PORT'"),
        ("192.0.2.1:65536", ValueError, "0 to 65535"),
        (("192.0.2.1", -1), ValueError, "0 to 65535"),
        ("example.org:5", ValueError, "getaddrinfo"),
        ("192.0.2.1%lo:5", ValueError, "without an interface"),
        ("[fe80::1%nope]:5", ValueError, "interface 'nope' does not exist"),
        (":5", ValueError, "must have a host"),
        ("", ValueError, "must have a host"),
        (5, TypeError, "not 5"),
        (("192.0.2.1",), TypeError, "tuple of host and port"),
        (b"192.0.2.1:5", TypeError, "text"),
    ],
)
def test_invalid_addresses(value: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Address(value)  # type: ignore[arg-type]


def test_a_local_address_may_have_no_host() -> None:
    assert split("") == ("", 0)
    assert split(":5") == ("", 5)
    assert split(("", 5)) == ("", 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", ":5"), "remote ':5' must have a host and a port"),
        (("", "192.0.2.1:0"), "must have a host and a port"),
        (("127.0.0.1:0", "[::1]:5"), "one family"),
    ],
)
def test_invalid_arguments(arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UdpStream(*arguments)
    with pytest.raises(ValueError, match="read_buffer"):
        UdpStream(read_buffer=0)
    with pytest.raises(ValueError, match="mark must be a number from 0 to 0xFFFFFFFF, not -1"):
        UdpStream(mark=-1)


def test_senders_are_remembered_within_bounds() -> None:
    addresses = _Addresses()
    first = addresses[bytes(Address("192.0.2.1:1"))]
    assert addresses[bytes(first)] is first
    for number in range(10_000):
        assert addresses[bytes(Address(("192.0.2.1", number)))].port == number
    assert len(addresses) <= 4096
