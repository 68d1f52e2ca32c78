"""Cryptokey routing: finds the peer of an address by the longest prefix that contains it.

There is a table for each prefix length in use. A lookup tries them from the longest to the shortest. Recent results are
cached, so that a packet costs one dictionary lookup for any number of peers and prefixes.
"""

from __future__ import annotations

from collections.abc import Hashable
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeAlias, TypeVar

Network: TypeAlias = IPv4Network | IPv6Network
P = TypeVar("P", bound=Hashable)

#: The maximum size of the cache. It is needed because a peer may send from all its allowed addresses.
REMEMBERED = 4096


class Routes(Generic[P]):
    """The allowed IPs of all peers, IPv4 and IPv6. A network belongs to one peer at a time."""

    __slots__ = ("_networks", "_recent", "_tables")

    def __init__(self) -> None:
        #: Peers by prefix; by the number of bits after the prefix, ascending; by the size of an address in bytes.
        self._tables: dict[int, dict[int, dict[int, P]]] = {4: {}, 16: {}}
        #: Networks by peer, in the order of insertion, in which ``wg`` shows them.
        self._networks: dict[P, dict[Network, None]] = {}
        self._recent: dict[bytes, P | None] = {}

    def lookup(self, address: bytes) -> P | None:
        """The peer of an address of 4 or 16 bytes, as in a packet. None if no peer has it."""
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
        """Assigns *network* to *peer*, and removes it from another peer. Networks that overlap with it stay."""
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
        """Removes *network* from *peer*. Returns whether it belonged to *peer*."""
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
        """Removes all networks of *peer*."""
        for network in self.of(peer):
            self.remove(network, peer)

    def of(self, peer: P) -> tuple[Network, ...]:
        """The networks of *peer*, in the order of insertion."""
        return tuple(self._networks.get(peer, ()))

    def _forget(self, network: Network, peer: P) -> None:
        del self._networks[peer][network]
        if not self._networks[peer]:
            del self._networks[peer]


def _key(network: Network) -> tuple[int, int, int]:
    """Size of the address in bytes, number of bits after the prefix, and the prefix as a number."""
    shift = network.max_prefixlen - network.prefixlen
    return network.max_prefixlen // 8, shift, int(network.network_address) >> shift
