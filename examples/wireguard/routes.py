"""Cryptokey routing: which peer an address belongs to, by the longest prefix that contains it.

A table for each prefix length that is in use, from the longest to the shortest; a lookup asks them in turn. What was
asked lately is remembered, so that a packet costs one dictionary lookup however many peers and prefixes there are.
"""

from __future__ import annotations

from collections.abc import Hashable
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeAlias, TypeVar

Network: TypeAlias = IPv4Network | IPv6Network
P = TypeVar("P", bound=Hashable)

#: Addresses that are remembered, at most. A peer may send from any address that it is allowed, which can be all of them.
REMEMBERED = 4096


class Routes(Generic[P]):
    """The allowed IPs of all peers, IPv4 and IPv6. A network belongs to one peer at a time."""

    __slots__ = ("_networks", "_recent", "_tables")

    def __init__(self) -> None:
        #: By the size of an address in bytes, then by the number of bits that are not in the prefix, ascending: peers
        #: by prefix.
        self._tables: dict[int, dict[int, dict[int, P]]] = {4: {}, 16: {}}
        #: By peer, in the order of insertion, which is how ``wg`` shows them.
        self._networks: dict[P, dict[Network, None]] = {}
        self._recent: dict[bytes, P | None] = {}

    def lookup(self, address: bytes) -> P | None:
        """The peer of an address of 4 or 16 bytes, as it stands in a packet; None for an address of nobody."""
        try:
            return self._recent[address]
        except KeyError:
            pass
        found, number = None, int.from_bytes(address)
        for shift, peers in self._tables.get(len(address), {}).items():
            if (found := peers.get(number >> shift)) is not None:
                break
        if len(self._recent) >= REMEMBERED:
            self._recent.clear()
        self._recent[bytes(address)] = found
        return found

    def insert(self, network: Network, peer: P) -> None:
        """Gives *network* to *peer*; whoever had it loses it. Other networks that contain it, or lie in it, stay."""
        size, shift, prefix = _key(network)
        tables = self._tables[size]
        if shift not in tables:
            self._tables[size] = tables = dict(sorted({**tables, shift: {}}.items()))
        owner = tables[shift].get(prefix)
        if owner is not None and owner is not peer:
            self._forget(network, owner)
        tables[shift][prefix] = peer
        self._networks.setdefault(peer, {})[network] = None
        self._recent.clear()

    def remove(self, network: Network, peer: P) -> bool:
        """Takes *network* from *peer*, and returns whether it was *peer*'s."""
        size, shift, prefix = _key(network)
        tables = self._tables[size]
        if tables.get(shift, {}).get(prefix) is not peer:
            return False
        del tables[shift][prefix]
        if not tables[shift]:
            del tables[shift]
        self._forget(network, peer)
        self._recent.clear()
        return True

    def remove_peer(self, peer: P) -> None:
        """Takes all that *peer* has."""
        for network in self.of(peer):
            self.remove(network, peer)

    def of(self, peer: P) -> tuple[Network, ...]:
        """The networks of *peer*, the first inserted first."""
        return tuple(self._networks.get(peer, ()))

    def _forget(self, network: Network, peer: P) -> None:
        del self._networks[peer][network]
        if not self._networks[peer]:
            del self._networks[peer]


def _key(network: Network) -> tuple[int, int, int]:
    """Bytes in an address, bits after the prefix, and the prefix as a number."""
    shift = network.max_prefixlen - network.prefixlen
    return network.max_prefixlen // 8, shift, int(network.network_address) >> shift
