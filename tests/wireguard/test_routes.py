"""Longest prefix match against a model that looks at each network."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st
from wireguard import routes as module
from wireguard.routes import Network, Routes


class Model:
    """One dictionary from network to peer, searched from end to end."""

    def __init__(self) -> None:
        self.owners: dict[Network, str] = {}

    def lookup(self, address: bytes) -> str | None:
        value = ip_address(address)
        found = [network for network in self.owners if value in network]
        return self.owners[max(found, key=lambda each: each.prefixlen)] if found else None

    def of(self, peer: str) -> set[Network]:
        return {network for network, owner in self.owners.items() if owner == peer}


# Few bits differ, so that networks contain one another and addresses lie in them.
_IPV4 = st.builds(lambda low, high: bytes([10, high, 0, low]), st.integers(0, 7), st.sampled_from([0, 128, 255]))
_IPV6 = st.builds(
    lambda low, high: b"\xfd" + bytes([high]) + bytes(13) + bytes([low]), st.integers(0, 7), st.sampled_from([0, 255])
)
ADDRESSES = _IPV4 | _IPV6 | st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
PEERS = st.sampled_from("abc")


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(ADDRESSES)
    length = draw(st.integers(0, 8 * len(address)) | st.sampled_from([0, 8 * len(address) - 1, 8 * len(address)]))
    return ip_network((address, length), strict=False)


Step: TypeAlias = tuple[str, Network, str]
STEPS = st.lists(st.tuples(st.sampled_from(["insert", "insert", "remove", "clear"]), networks(), PEERS), max_size=30)


@given(STEPS, st.lists(ADDRESSES, max_size=20))
def test_any_sequence_of_changes_routes_like_the_model(steps: list[Step], addresses: list[bytes]) -> None:
    routes: Routes[str] = Routes()
    model = Model()
    for step, network, peer in steps:
        if step == "insert":
            routes.insert(network, peer)
            model.owners[network] = peer
        elif step == "remove":
            assert routes.remove(network, peer) == (model.owners.get(network) == peer)
            if model.owners.get(network) == peer:
                del model.owners[network]
        else:
            routes.remove_peer(peer)
            model.owners = {each: owner for each, owner in model.owners.items() if owner != peer}
        # Asked after each step: what was remembered must not outlive a change.
        for address in [*addresses, network.network_address.packed, network.broadcast_address.packed]:
            assert routes.lookup(address) == model.lookup(address)
        for each in "abc":
            assert set(routes.of(each)) == model.of(each)
            assert len(routes.of(each)) == len(model.of(each))


def test_a_network_that_moves_leaves_its_peer() -> None:
    routes: Routes[str] = Routes()
    routes.insert(IPv4Network("10.0.0.0/8"), "a")
    routes.insert(IPv4Network("10.1.0.0/16"), "a")
    assert routes.lookup(bytes([10, 1, 2, 3])) == "a"
    routes.insert(IPv4Network("10.1.0.0/16"), "b")
    assert routes.lookup(bytes([10, 1, 2, 3])) == "b"
    assert routes.of("a") == (IPv4Network("10.0.0.0/8"),)
    assert not routes.remove(IPv4Network("10.1.0.0/16"), "a")
    routes.remove_peer("b")
    assert routes.lookup(bytes([10, 1, 2, 3])) == "a"


def test_order_of_insertion_is_kept() -> None:
    routes: Routes[str] = Routes()
    given_order: list[Network] = [IPv6Network("fd00::/8"), IPv4Network("10.9.0.0/16"), IPv4Network("10.0.0.0/24")]
    for network in given_order:
        routes.insert(network, "a")
    assert routes.of("a") == tuple(given_order)


def test_default_routes_of_both_families_are_apart() -> None:
    routes: Routes[str] = Routes()
    routes.insert(IPv4Network("0.0.0.0/0"), "four")
    routes.insert(IPv6Network("::/0"), "six")
    assert (routes.lookup(bytes(4)), routes.lookup(bytes(16))) == ("four", "six")
    assert (routes.lookup(b"\xff" * 4), routes.lookup(b"\xff" * 16)) == ("four", "six")


@given(st.binary(max_size=40).filter(lambda data: len(data) not in (4, 16)))
def test_invalid_addresses_have_no_peer(data: bytes) -> None:
    routes: Routes[str] = Routes()
    routes.insert(IPv4Network("0.0.0.0/0"), "a")
    routes.insert(IPv6Network("::/0"), "a")
    assert routes.lookup(data) is None


def test_memory_of_lookups_is_bounded() -> None:
    routes: Routes[str] = Routes()
    routes.insert(IPv4Network("0.0.0.0/0"), "a")
    for number in range(3 * module.REMEMBERED):
        assert routes.lookup(number.to_bytes(4)) == "a"
        assert len(routes._recent) <= module.REMEMBERED
