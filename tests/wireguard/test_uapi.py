"""The text protocol of ``wg``: what it sends, what it is answered, and what is refused."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wireguard.device import Device
from wireguard.routes import Network
from wireguard.uapi import Changes, PeerChange, UapiError, apply, describe, parse

from aiotuntap.udp import Address

PRIVATE, A, B, PSK = (bytes([value]) * 32 for value in (0x11, 0x22, 0x44, 0x33))
NO_KEY = bytes(32)


def device(text: str = "") -> Device:
    made = Device(now=lambda: 0.0)
    apply(parse(text.splitlines()), made)
    return made


def networks(made: Device, public_key: bytes) -> list[str]:
    return [str(network) for network in made.routes.of(made.peers[public_key])]


# What wg of wireguard-tools 1.0.20210914 sends, as it was recorded.
SETCONF = f"""\
private_key={PRIVATE.hex()}
listen_port=51820
fwmark=16
replace_peers=true
public_key={A.hex()}
preshared_key={PSK.hex()}
endpoint=192.0.2.1:51820
persistent_keepalive_interval=25
replace_allowed_ips=true
allowed_ip=10.1.2.3/16
allowed_ip=fd00::1/64
allowed_ip=::/0
public_key={B.hex()}
endpoint=[2001:db8::1]:51820
replace_allowed_ips=true
"""
SET_OFF = f"""\
private_key={NO_KEY.hex()}
listen_port=0
fwmark=0
public_key={A.hex()}
preshared_key={NO_KEY.hex()}
endpoint=[fe80::1%lo]:7
persistent_keepalive_interval=0
replace_allowed_ips=true
"""


def test_what_setconf_sends() -> None:
    assert parse(SETCONF.splitlines()) == Changes(
        private_key=PRIVATE,
        listen_port=51820,
        fwmark=16,
        replace_peers=True,
        peers=[
            PeerChange(
                A,
                preshared_key=PSK,
                endpoint=Address("192.0.2.1:51820"),
                persistent_keepalive=25,
                replace_allowed_ips=True,
                allowed_ips=[(ip_network(each), True) for each in ("10.1.0.0/16", "fd00::/64", "::/0")],
            ),
            PeerChange(B, endpoint=Address("[2001:db8::1]:51820"), replace_allowed_ips=True),
        ],
    )


def test_a_set_replaces_what_it_names_and_nothing_else() -> None:
    made = device(SETCONF)
    assert made.private_key == PRIVATE
    assert networks(made, A) == ["10.1.0.0/16", "fd00::/64", "::/0"]
    apply(parse([f"public_key={A.hex()}", "persistent_keepalive_interval=7"]), made)
    peer = made.peers[A]
    assert (peer.persistent_keepalive, peer.preshared_key, str(peer.endpoint)) == (7, PSK, "192.0.2.1:51820")
    assert networks(made, A) == ["10.1.0.0/16", "fd00::/64", "::/0"]
    apply(parse(SET_OFF.splitlines()), made)
    assert made.private_key is None
    assert (peer.persistent_keepalive, peer.preshared_key) == (0, NO_KEY)
    assert networks(made, A) == []
    assert B in made.peers


def test_an_allowed_ip_moves_to_the_peer_that_asks_for_it_last() -> None:
    made = device(SETCONF)
    apply(parse([f"public_key={B.hex()}", "allowed_ip=10.1.0.0/16", "allowed_ip=10.2.0.0/16"]), made)
    assert networks(made, A) == ["fd00::/64", "::/0"]
    assert networks(made, B) == ["10.1.0.0/16", "10.2.0.0/16"]
    apply(parse([f"public_key={B.hex()}", "allowed_ip=-10.1.0.0/16", "allowed_ip=-fd00::/64"]), made)
    assert networks(made, B) == ["10.2.0.0/16"]
    assert networks(made, A) == ["fd00::/64", "::/0"]  # not B's to give up


def test_replacing_allowed_ips_forgets_those_before_it_in_the_request() -> None:
    made = device(f"public_key={A.hex()}\nallowed_ip=10.1.0.0/16\nreplace_allowed_ips=true\nallowed_ip=10.2.0.0/16")
    assert networks(made, A) == ["10.2.0.0/16"]


def test_remove_and_update_only() -> None:
    made = device(SETCONF)
    apply(parse([f"public_key={A.hex()}", "remove=true", f"public_key={B.hex()}", "update_only=true"]), made)
    assert list(made.peers) == [B]
    assert made.routes.lookup(bytes([10, 1, 0, 1])) is None
    apply(parse([f"public_key={A.hex()}", "update_only=true", "allowed_ip=10.1.0.0/16"]), made)
    assert list(made.peers) == [B]
    apply(parse([f"public_key={A.hex()}", "remove=true", f"public_key={A.hex()}", "allowed_ip=10.3.0.0/16"]), made)
    assert networks(made, A) == ["10.3.0.0/16"]
    apply(parse(["replace_peers=true", f"public_key={B.hex()}"]), made)
    assert list(made.peers) == [B]
    assert networks(made, B) == []


def test_a_peer_with_our_own_key_is_ignored() -> None:
    made = device(SETCONF)
    assert made.public_key is not None
    before = list(made.peers)
    apply(parse([f"public_key={made.public_key.hex()}", "allowed_ip=10.1.0.0/16"]), made)
    assert list(made.peers) == before
    assert networks(made, A)[0] == "10.1.0.0/16"
    # One that was there before the key became ours goes.
    other = device(f"public_key={made.public_key.hex()}\nallowed_ip=10.1.0.0/16")
    apply(parse([f"private_key={PRIVATE.hex()}"]), other)
    assert not other.peers


def test_what_get_answers() -> None:
    made = device(SETCONF)
    made.listen_port, made.fwmark = 51820, 16
    peer = made.peers[A]
    peer.rx_bytes, peer.tx_bytes, peer.last_handshake = 5, 7, 1_700_000_000_000_000_009
    assert list(describe(made)) == [
        f"private_key={PRIVATE.hex()}",
        "listen_port=51820",
        "fwmark=16",
        f"public_key={A.hex()}",
        f"preshared_key={PSK.hex()}",
        "protocol_version=1",
        "endpoint=192.0.2.1:51820",
        "last_handshake_time_sec=1700000000",
        "last_handshake_time_nsec=9",
        "tx_bytes=7",
        "rx_bytes=5",
        "persistent_keepalive_interval=25",
        "allowed_ip=10.1.0.0/16",
        "allowed_ip=fd00::/64",
        "allowed_ip=::/0",
        f"public_key={B.hex()}",
        f"preshared_key={NO_KEY.hex()}",
        "protocol_version=1",
        "endpoint=[2001:db8::1]:51820",
        "last_handshake_time_sec=0",
        "last_handshake_time_nsec=0",
        "tx_bytes=0",
        "rx_bytes=0",
        "persistent_keepalive_interval=0",
    ]
    assert list(describe(device())) == []


PEER = f"public_key={A.hex()}"


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        (["private_key"], errno.EPROTO),
        ([""], errno.EPROTO),
        (["=1"], errno.EINVAL),
        (["private_key="], errno.EINVAL),
        (["private_key=" + "1" * 63], errno.EINVAL),
        (["private_key=" + "1" * 65], errno.EINVAL),
        (["private_key=" + "1" * 62 + " 1"], errno.EINVAL),
        (["private_key=" + "g" * 64], errno.EINVAL),
        (["public_key=" + "1" * 62], errno.EINVAL),
        (["listen_port="], errno.EINVAL),
        (["listen_port=65536"], errno.EINVAL),
        (["listen_port=-1"], errno.EINVAL),
        (["listen_port=+1"], errno.EINVAL),
        (["listen_port=1_0"], errno.EINVAL),
        (["listen_port= 1"], errno.EINVAL),
        (["listen_port=\u0661"], errno.EINVAL),
        (["fwmark=4294967296"], errno.EINVAL),
        (["fwmark=0x10"], errno.EINVAL),
        (["fwmark=" + "1" * 5000], errno.EINVAL),
        (["replace_peers=false"], errno.EINVAL),
        (["allowed_ip=10.0.0.0/8"], errno.EINVAL),  # of no peer
        (["errno=0"], errno.EINVAL),
        ([PEER, "listen_port=1"], errno.EINVAL),  # of a peer
        ([PEER, "remove=1"], errno.EINVAL),
        ([PEER, "update_only=false"], errno.EINVAL),
        ([PEER, "preshared_key=0"], errno.EINVAL),
        ([PEER, "endpoint="], errno.EINVAL),
        ([PEER, "endpoint=192.0.2.1"], errno.EINVAL),
        ([PEER, "endpoint=:51820"], errno.EINVAL),
        ([PEER, "endpoint=192.0.2.1:65536"], errno.EINVAL),
        ([PEER, "endpoint=example.org:51820"], errno.EINVAL),
        ([PEER, "endpoint=2001:db8::1:51820"], errno.EINVAL),
        ([PEER, "endpoint=[192.0.2.1]:51820"], errno.EINVAL),
        ([PEER, "persistent_keepalive_interval=65536"], errno.EINVAL),
        ([PEER, "persistent_keepalive_interval=off"], errno.EINVAL),
        ([PEER, "replace_allowed_ips=yes"], errno.EINVAL),
        ([PEER, "allowed_ip="], errno.EINVAL),
        ([PEER, "allowed_ip=10.0.0.0"], errno.EINVAL),
        ([PEER, "allowed_ip=10.0.0.0/33"], errno.EINVAL),
        ([PEER, "allowed_ip=10.0.0.0/255.0.0.0"], errno.EINVAL),
        ([PEER, "allowed_ip=fd00::/129"], errno.EINVAL),
        ([PEER, "allowed_ip=fe80::%1/64"], errno.EINVAL),
        ([PEER, "allowed_ip=--10.0.0.0/8"], errno.EINVAL),
        ([PEER, "protocol_version=2"], errno.EINVAL),
        ([PEER, "mtu=1420"], errno.EINVAL),
    ],
)
def test_what_is_refused(lines: list[str], number: int) -> None:
    with pytest.raises(UapiError) as caught:
        parse(lines)
    assert caught.value.number == number


@pytest.mark.parametrize("line", ["private_key=" + "ab" * 31 + "a", "private_key: " + "ab" * 32])
def test_a_refused_key_is_not_shown(line: str) -> None:
    """The message goes to a log."""
    with pytest.raises(UapiError) as caught:
        parse([line])
    assert "ab" * 8 not in str(caught.value)


@given(st.lists(st.text(max_size=40) | st.sampled_from([PEER, *SETCONF.splitlines(), "remove=true"]), max_size=12))
def test_any_lines_are_parsed_or_refused(lines: list[str]) -> None:
    try:
        changes = parse(lines)
    except UapiError:
        return
    made = device(SETCONF)
    apply(changes, made)
    assert list(describe(made))


KEYS = st.binary(min_size=32, max_size=32)
IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.ip_addresses(v=6).map(str)


@st.composite
def some_network(draw: st.DrawFn) -> Network:
    address = draw(st.ip_addresses())
    return ip_network((address, draw(st.integers(0, address.max_prefixlen))), strict=False)


@st.composite
def requests(draw: st.DrawFn) -> Changes:
    """A request that sets everything of a few peers."""
    peers = []
    for key in draw(st.lists(KEYS, max_size=4, unique=True)):
        endpoint = draw(st.none() | st.tuples(IPV4 | IPV6, st.integers(0, 65535)).map(Address))
        allowed = draw(st.lists(some_network(), max_size=4, unique=True))
        peers.append(
            PeerChange(
                key,
                preshared_key=draw(KEYS),
                endpoint=endpoint,
                persistent_keepalive=draw(st.integers(0, 65535)),
                replace_allowed_ips=True,
                allowed_ips=[(network, True) for network in allowed],
            )
        )
    return Changes(private_key=draw(KEYS), replace_peers=True, peers=peers)


def as_lines(changes: Changes) -> Iterable[str]:
    """The lines that wg would send."""
    assert changes.private_key is not None
    yield f"private_key={changes.private_key.hex()}"
    yield "replace_peers=true"
    for peer in changes.peers:
        assert peer.preshared_key is not None
        yield f"public_key={peer.public_key.hex()}"
        yield f"preshared_key={peer.preshared_key.hex()}"
        if peer.endpoint is not None:
            yield f"endpoint={peer.endpoint}"
        yield f"persistent_keepalive_interval={peer.persistent_keepalive}"
        yield "replace_allowed_ips=true"
        for network, _ in peer.allowed_ips:
            yield f"allowed_ip={network}"


@given(requests())
def test_what_is_set_is_what_get_answers(changes: Changes) -> None:
    assert parse(as_lines(changes)) == changes
    made = device()
    apply(changes, made)
    # All that get answers but what only the device knows can be set again, and is the same then.
    ours = ("last_handshake_time", "rx_bytes", "tx_bytes")
    told = [line for line in describe(made) if not line.startswith(ours)]
    again = device()
    apply(parse(told), again)
    assert [line for line in describe(again) if not line.startswith(ours)] == told
    assert [each.public_key for each in changes.peers] == list(made.peers)
    moved = {network: each.public_key for each in changes.peers for network, _ in each.allowed_ips}
    for each in changes.peers:
        peer = made.peers[each.public_key]
        assert (peer.preshared_key, peer.endpoint) == (each.preshared_key, each.endpoint)
        assert set(made.routes.of(peer)) == {network for network, owner in moved.items() if owner == each.public_key}
