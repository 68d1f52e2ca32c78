"""Addresses and routes as ip-address(8) and ip-route(8) write them: read from text, written as text, compared."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAIN_TABLE = 254
_TABLES = {"default": 253, "main": MAIN_TABLE, "local": 255}
_LINK_SCOPE = 253
_SCOPES = {"global": 0, "site": 200, "link": _LINK_SCOPE, "host": 254}
_SCOPE_NAMES = {number: name for name, number in _SCOPES.items()}
_OTHER_TYPES = ("blackhole", "unreachable", "prohibit", "throw")
#: The kernel's metric for a route that names none.
_DEFAULT_METRIC = {4: 0, 6: 1024}


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface. What is None or False was not named, or is not set.

    It prints as `ip` and `configure` write the parts that tell one address from another.
    """

    local: IPAddress
    prefix_length: int
    #: The other end of a point-to-point link, which the prefix length then belongs to.
    peer: IPAddress | None = None
    broadcast: IPAddress | None = None
    scope: int | None = None
    metric: int | None = None
    nodad: bool = False
    noprefixroute: bool = False

    @property
    def version(self) -> int:
        return self.local.version

    def is_met_by(self, there: Address) -> bool:
        """Whether *there* is what this asks for. What it does not name may be as it is."""
        named = replace(
            self,
            broadcast=self.broadcast or there.broadcast,
            scope=there.scope if self.scope is None else self.scope,
            metric=self.metric or there.metric,
            nodad=there.nodad,  # says how to add it, and not how it is
            noprefixroute=self.noprefixroute or there.noprefixroute,
        )
        return named == there

    @property
    def identity(self) -> Hashable:
        """The same for two that the kernel takes for one, so that it does not add the one while it has the other."""
        if self.version == 6:
            return self.local
        return self.local, ipaddress.ip_network((self.peer or self.local, self.prefix_length), strict=False)

    def __str__(self) -> str:
        peer = "" if self.peer is None else f" peer {self.peer}"
        return f"{self.local}{peer}/{self.prefix_length}"


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route through an interface. What is None or False was not named, or is not set. It prints as text."""

    destination: Network
    gateway: IPAddress | None = None
    metric: int | None = None
    table: int = MAIN_TABLE
    source: IPAddress | None = None
    #: In bytes.
    mtu: int | None = None
    #: Of IPv4.
    scope: int | None = None
    onlink: bool = False
    #: The type of service of the packets that it is for; 0 for all that no other route is for. Of IPv4.
    tos: int = 0

    @property
    def version(self) -> int:
        return self.destination.version

    @property
    def effective_scope(self) -> int:
        """What the kernel is to be told: without a gateway, the destination is on the link."""
        if self.scope is not None:
            return self.scope
        return _LINK_SCOPE if self.gateway is None and self.version == 4 else 0

    def is_met_by(self, there: Route) -> bool:
        """Whether *there* is what this asks for. What it does not name may be as it is."""
        return (
            self.identity == there.identity
            and self.source in (None, there.source)
            and self.mtu in (None, there.mtu)
            and self.scope in (None, there.effective_scope)
            and self.onlink in (False, there.onlink)
        )

    @property
    def identity(self) -> Hashable:
        """The same for two that lead to the same place in the same way, so that one is to take the other's place."""
        return self.destination, self.tos, self.gateway, self.table, self.metric or _DEFAULT_METRIC[self.version]

    def __str__(self) -> str:
        parts: dict[str, object] = {
            "tos": self.tos or None,
            "via": self.gateway,
            "table": None if self.table == MAIN_TABLE else self.table,
            "src": self.source,
            "metric": self.metric,
            "mtu": self.mtu,
            "scope": None if self.scope is None else _SCOPE_NAMES.get(self.scope, self.scope),
        }
        named = "".join(f" {word} {value}" for word, value in parts.items() if value is not None)
        return f"{self.destination}{named}{' onlink' if self.onlink else ''}"


# -- from text ---------------------------------------------------------------------------------------------------------


class _Words:
    """The words of one text, taken from the left. *of* names the text in errors."""

    def __init__(self, of: str, text: object) -> None:
        self._label = f"{of} {text!r}"
        self._words = text.split() if isinstance(text, str) else self.fail("it must be a string")

    def fail(self, reason: str) -> NoReturn:
        raise ValueError(f"{self._label}: {reason}") from None

    def take(self, before: str = "") -> str:
        if not self._words:
            self.fail(f"a value is missing after {before!r}" if before else "it is empty")
        return self._words.pop(0)

    def options(self, readers: Mapping[str, Callable[[str], object]], flags: tuple[str, ...]) -> dict[str, object]:
        """What follows: words with a value, and words without. Each may stand once."""
        found: dict[str, object] = {}
        while self._words:
            word = self.take()
            if word in found:
                self.fail(f"{word!r} stands twice")
            if word in flags:
                found[word] = True
            elif word in readers:
                found[word] = readers[word](self.take(word))
            elif word == "dev":
                self.fail("leave 'dev' out: the interface is this one")
            else:
                known = ", ".join([f"{word} VALUE" for word in readers] + list(flags))
                self.fail(f"{word!r} is not understood; what may follow: {known}")
        return found

    def address(self, word: str, value: str, version: int | None = None) -> IPAddress:
        address = (
            self.interface(word, value).ip
            if "/" not in value
            else self.fail(f"{word} takes an address without a prefix length, not {value!r}")
        )
        if version not in (None, address.version):
            self.fail(f"{word} {value} is an IPv{address.version} address, and the rest is IPv{version}")
        return address

    def interface(self, word: str, value: str) -> Interface:
        """An address that may have a prefix length; without, it is the whole length."""
        try:
            if "%" in value:  # a zone: an interface, and it is this one
                raise ValueError
            return ipaddress.ip_interface(value)
        except ValueError:
            self.fail(
                f"{word}{' ' if word else ''}{value!r} is not an IPv4 or IPv6 address, alone or with a prefix length"
            )

    def number(self, word: str, value: str, smallest: int = 0) -> int:
        return self.one_of(word, value, {}, smallest, (1 << 32) - 1)

    def one_of(self, word: str, value: str, names: Mapping[str, int], smallest: int, largest: int) -> int:
        if value in names:
            return names[value]
        is_number = value.isascii() and value.isdecimal() and len(value) <= len(str(largest))
        if not (is_number and smallest <= int(value) <= largest):
            choice = "".join(f"{name!r}, " for name in names)
            self.fail(
                f"{word} must be {choice}{'or ' if names else ''}a number from {smallest} to {largest}, not {value!r}"
            )
        return int(value)


def parse_address(text: str) -> Address:
    """An address as ``ip address add`` takes it, with the prefix length written out.

    Raises:
        ValueError: It is something else; the message names the word.
    """
    words = _Words("address", text)
    first = words.take()
    readers: dict[str, Callable[[str], object]] = {
        "peer": lambda value: words.interface("peer", value),
        "metric": lambda value: words.number("metric", value),
    }
    version = 6 if ":" in first else 4
    if version == 4:
        readers["broadcast"] = readers["brd"] = lambda value: (
            value if value == "+" else words.address("broadcast", value, 4)
        )
        readers["scope"] = lambda value: words.one_of("scope", value, _SCOPES, 0, 255)
    own = words.interface("", first)
    if own.ip.is_unspecified:
        words.fail(f"{own.ip} stands for no address: no interface can have it")
    options: dict[str, Any] = words.options(readers, ("noprefixroute",) if version == 4 else ("nodad", "noprefixroute"))
    peer = options.pop("peer", None)
    if peer is None and "/" not in first:
        words.fail(
            f"the prefix length is missing: write '{own}' for this address alone, or the length of its subnet, as in"
            f" '{own.ip}/{24 if version == 4 else 64}'"
        )
    if peer is not None and "/" in first:
        words.fail(f"the prefix length stands with the peer: '{own.ip} peer {peer}'")
    if peer is not None and peer.version != version:
        words.fail(f"peer {peer.ip} is an IPv{peer.version} address, and {own.ip} is IPv{version}")
    network = (peer or own).network
    broadcast = options.pop("brd", None) or options.pop("broadcast", None)
    if broadcast == "+":
        broadcast = network.broadcast_address
    other = None if peer is None or peer.ip == own.ip else peer.ip
    return Address(own.ip, network.prefixlen, other, broadcast, **options)


def parse_route(text: str) -> Route:
    """A route as ``ip route add`` takes it, without ``dev``: the interface is the one that it is for.

    Raises:
        ValueError: It is something else; the message names the word.
    """
    words = _Words("route", text)
    destination = words.take()
    if destination in _OTHER_TYPES:
        words.fail(f"a route of the type {destination!r} leads through no interface: make it with 'ip route add'")
    options: dict[str, Any] = words.options(
        {
            "via": lambda value: words.address("via", value),
            "src": lambda value: words.address("src", value),
            "metric": lambda value: words.number("metric", value),
            "table": lambda value: words.one_of("table", value, _TABLES, 1, (1 << 32) - 1),
            "mtu": lambda value: words.number("mtu", value, 1),
            "scope": lambda value: words.one_of("scope", value, _SCOPES, 0, 255),
        },
        ("onlink",),
    )
    gateway, source = options.pop("via", None), options.pop("src", None)
    version = next((each.version for each in (gateway, source) if each is not None), 4)
    if destination == "default":
        destination = "0.0.0.0/0" if version == 4 else "::/0"
    interface = words.interface("destination", destination)
    network = interface.network
    if interface.ip != network.network_address:
        words.fail(f"{interface} has bits set after its prefix: write '{network}', or '{interface.ip}' for one host")
    for word, address in {"via": gateway, "src": source}.items():
        if address is not None and address.version != network.version:
            words.fail(
                f"{word} {address} is an IPv{address.version} address, and {destination} is IPv{network.version}"
            )
    if network.version == 6 and "scope" in options:
        words.fail("scope is for IPv4 routes: leave it out")
    if gateway is None and "onlink" in options:
        words.fail("onlink takes a gateway: 'via ADDRESS onlink'")
    return Route(network, gateway, source=source, **options)
