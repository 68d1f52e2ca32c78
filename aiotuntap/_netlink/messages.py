"""rtnetlink(7) answers and notifications as bytes, and what they mean.

They are decoded here: pyroute2's own form of one answer takes 28 KB and up to 2 ms, and of some sixty attributes this
package looks at twenty.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .. import _abi
from .._types import Counters, Link, Mode
from .iproute import Address, IPAddress, Route

NLMSG_ERROR = 2
NLMSG_DONE = 3
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26

#: In answers: the list changed while it was being dumped; the original request is left out; attributes follow.
NLM_F_DUMP_INTR = 0x10
_CAPPED = 0x100
_ACK_TLVS = 0x200

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_NEXT_HOP = struct.Struct("=HBxi")  # struct rtnexthop: length, flags, hops, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, lengths, TOS, table, protocol, scope, type, flags
_INDEX = struct.Struct("=i")
_ERROR = struct.Struct("=i")
_NUMBER = struct.Struct("=I")
_STATS64 = struct.Struct("=8Q")  # the first of struct rtnl_link_stats64

IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
#: By whom a route was made, where that was the kernel itself: ICMP redirects, itself, router advertisements.
_RTPROT_OF_THE_KERNEL = (1, 2, 9)
RTN_UNICAST = 1
_RTM_F_CLONED = 0x200
RTNH_F_ONLINK = 4
_RTA_NH_ID = 30
#: Of one way that a route leads: gateway, gateway of another family, encapsulation.
_OF_A_HOP = (5, 18, 21, 22)
#: What cannot stand in a request for one of those ways: the interface, all of them together, and how old the route is.
_NOT_SHARED = (*_OF_A_HOP, 4, 9, 12, _RTA_NH_ID)

_IFA_F_TEMPORARY = 0x01  # of IPv6; of IPv4 it is that of a secondary address
IFA_F_NODAD = 0x02
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
_IFA_F_MANAGETEMPADDR = 0x100
IFA_F_NOPREFIXROUTE = 0x200

#: In the array of an interface's IPv6 settings, DEVCONF_DISABLE_IPV6.
_DISABLE_IPV6 = 26


class Message(NamedTuple):
    """One netlink message, its body not looked into yet."""

    type: int
    flags: int
    sequence: int
    body: bytes


class LinkChange(NamedTuple):
    """An interface that is there (with everything about it but its addresses and its master's name), or was removed."""

    link: Link
    #: Index of the interface that it is a port of; 0 for none.
    master: int
    removed: bool


class AddressChange(NamedTuple):
    """An address that is there, or was removed."""

    interface: int
    address: Address
    #: Whether the kernel still looks for a duplicate of it, or has found one.
    tentative: bool
    duplicate: bool
    #: Whether the kernel made it by itself: an IPv6 link-local address, or one from a router advertisement.
    automatic: bool
    removed: bool
    #: What the kernel said of it, which with another type of message is a request: to set this very address again.
    body: bytes


class RouteEntry(NamedTuple):
    """A route that is there."""

    interface: int
    route: Route
    #: Whether the kernel made it by itself.
    automatic: bool
    #: What the kernel said of it, which with another type of message is a request: to remove this very route, or to add
    #: it again. A `Route` does not have everything, such as the protocol, by which it is known.
    body: bytes


def split(data: bytes) -> Iterator[Message]:
    """The messages of one datagram; what is cut off at its end is left out."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, type_, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        yield Message(type_, flags, sequence, data[at + _HEADER.size : at + length])
        at += length + 3 & ~3


def index_of(message: Message) -> int:
    """The interface that a message about a link or an address concerns: in the same place in both."""
    return int(_INDEX.unpack_from(message.body, 4)[0]) if len(message.body) >= 8 else 0


def error_of(message: Message) -> tuple[int, str]:
    """Error number, 0 for none, and what it means; with extended acknowledgements often more than the number says."""
    body = message.body
    number = -_ERROR.unpack_from(body)[0]
    reason = os.strerror(number)
    if message.type == NLMSG_ERROR and message.flags & _ACK_TLVS:
        (length,) = _NUMBER.unpack_from(body, _ERROR.size)
        at = _ERROR.size + (_HEADER.size if message.flags & _CAPPED else length + 3 & ~3)
        text = _attributes(body, at).get(1)
        if text:
            reason = _text(text)
    return number, reason


def decode_change(message: Message) -> LinkChange | AddressChange | None:
    """What a message tells about an interface; None when that is nothing of interest here."""
    if message.type in (RTM_NEWLINK, RTM_DELLINK):
        return decode_link(message)
    if message.type in (RTM_NEWADDR, RTM_DELADDR):
        return decode_address(message)
    return None


def decode_link(message: Message) -> LinkChange | None:
    """An interface; None for what a bridge tells about its port in the same kind of message."""
    family, _, index, flags, _ = _LINK.unpack_from(message.body)
    if family != socket.AF_UNSPEC:
        return None
    found = _attributes(message.body, _LINK.size)
    info = _attributes(found.get(18, b""))
    kind = _text(info[1]) if 1 in info else None
    data = _attributes(info.get(2, b"")) if kind == "tun" else None
    link = Link(
        index=index,
        name=_text(found.get(3, b"")),
        kind=kind,
        mtu=_number(found, 4) or 0,
        mac=found[1].hex(":") if found.get(1) else None,
        up=bool(flags & IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        txqueuelen=_number(found, 13) or 0,
        master=None,
        counters=_counters(found.get(23, b"")),
        mode=None if data is None else Mode.TUN if _flag(data, 3) == _abi.IFF_TUN else Mode.TAP,
        packet_info=bool(data and _flag(data, 4)),
        vnet_header=bool(data and _flag(data, 5)),
        multi_queue=bool(data and _flag(data, 7)),
        persistent=bool(data and _flag(data, 6)),
        owner=_number(data or {}, 1),
        group=_number(data or {}, 2),
        queues=_number(data or {}, 8),
        disabled_queues=_number(data or {}, 9),
        ipv6=_has_ipv6(found.get(26, b"")),
    )
    return LinkChange(link, _number(found, 10) or 0, removed=message.type == RTM_DELLINK)


def decode_address(message: Message) -> AddressChange | None:
    """An address; None for those of other families, such as MCTP, which a dump of all addresses has as well.

    IFA_LOCAL is the own address on a point-to-point link, where IFA_ADDRESS is the peer's.
    """
    family, prefix_length, short_flags, scope, index = _ADDRESS.unpack_from(message.body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = _attributes(message.body, _ADDRESS.size)
    flags = _number(found, 8) or short_flags
    other = _ip_address(family, found.get(1) or found.get(2, b""))
    local = _ip_address(family, found[2]) if 2 in found else other
    of_ipv6 = family == socket.AF_INET6
    address = Address(
        local,
        prefix_length,
        None if other == local else other,
        _ip_address(family, found[4]) if 4 in found else None,
        scope,
        _number(found, 9),
        bool(flags & IFA_F_NODAD),
        bool(flags & IFA_F_NOPREFIXROUTE),
    )
    failed = of_ipv6 and bool(flags & _IFA_F_DADFAILED)
    return AddressChange(
        index,
        address,
        tentative=of_ipv6 and bool(flags & _IFA_F_TENTATIVE) and not failed,
        duplicate=failed,
        automatic=of_ipv6 and (local.is_link_local or bool(flags & (_IFA_F_TEMPORARY | _IFA_F_MANAGETEMPADDR))),
        removed=message.type == RTM_DELADDR,
        body=message.body,
    )


def decode_routes(message: Message) -> list[RouteEntry]:
    """The route of a message; several where IPv6 has made one of those that differ in nothing but their gateways.

    What is no unicast route is left out, and so are IPv4 routes with several gateways.
    """
    head = _ROUTE.unpack_from(message.body)
    family, length, source_length, tos, short_table, protocol, scope, kind, flags = head
    found = _attributes(message.body, _ROUTE.size)
    if kind != RTN_UNICAST or source_length or flags & _RTM_F_CLONED:
        return []
    any_address = "0.0.0.0" if family == socket.AF_INET else "::"
    destination = socket.inet_ntop(family, found[1]) if 1 in found else any_address
    hops = [(_number(found, 4), flags, found)]
    if 9 in found and family == socket.AF_INET6:
        hops = list(_next_hops(found[9]))
    shared = {type_: value for type_, value in found.items() if type_ not in _NOT_SHARED}
    entries = []
    for index, hop_flags, hop in hops:
        if index is None:
            continue
        # A nexthop object (ip-nexthop(8)) stands for interface and gateway, which the kernel refuses beside it.
        if _RTA_NH_ID in found:
            own = {_RTA_NH_ID: found[_RTA_NH_ID]}
        else:
            own = {4: _NUMBER.pack(index & 0xFFFFFFFF)} | {type_: hop[type_] for type_ in _OF_A_HOP if type_ in hop}
        body = _ROUTE.pack(*head[:-1], hop_flags & RTNH_F_ONLINK) + _as_attributes(shared | own)
        route = Route(
            ipaddress.ip_network(f"{destination}/{length}"),
            _ip_address(family, hop[5]) if 5 in hop else _gateway_of_another_family(hop.get(18, b"")),
            _number(found, 6),
            _number(found, 15) or short_table,
            _ip_address(family, found[7]) if 7 in found else None,
            _number(_attributes(found.get(8, b"")), 2),
            scope if family == socket.AF_INET else None,
            bool(hop_flags & RTNH_F_ONLINK),
            tos,
        )
        entries.append(RouteEntry(index, route, protocol in _RTPROT_OF_THE_KERNEL, body))
    return entries


def _next_hops(data: bytes) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    """``struct rtnexthop``: index of the interface, flags, attributes."""
    at = 0
    while at + _NEXT_HOP.size <= len(data):
        length, flags, index = _NEXT_HOP.unpack_from(data, at)
        if not _NEXT_HOP.size <= length <= len(data) - at:
            return
        yield index, flags, _attributes(data[at + _NEXT_HOP.size : at + length])
        at += length + 3 & ~3


def _gateway_of_another_family(via: bytes) -> IPAddress | None:
    """``struct rtvia``: an IPv4 route may have an IPv6 gateway."""
    return _ip_address(int.from_bytes(via[:2], sys.byteorder), via[2:]) if via else None


def _ip_address(family: int, packed: bytes) -> IPAddress:
    return ipaddress.ip_address(socket.inet_ntop(family, packed))


def _has_ipv6(families: bytes) -> bool:
    """Whether IPv6 is on, by IFLA_AF_SPEC. An interface whose MTU is below 1280 has none."""
    settings = _attributes(_attributes(families).get(socket.AF_INET6, b"")).get(2, b"")
    values = struct.unpack_from("=i", settings, 4 * _DISABLE_IPV6) if len(settings) > 4 * _DISABLE_IPV6 + 3 else (1,)
    return not values[0]


def _attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """``struct nlattr`` by type."""
    found = {}
    while at + _ATTRIBUTE.size <= len(data):
        length, type_ = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            break
        found[type_ & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found


def _as_attributes(values: Mapping[int, bytes]) -> bytes:
    return b"".join(
        _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), type_) + value + bytes(-len(value) % 4)
        for type_, value in values.items()
    )


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(attributes: Mapping[int, bytes], type_: int) -> int | None:
    value = attributes.get(type_, b"")
    return int(_NUMBER.unpack(value)[0]) if len(value) == _NUMBER.size else None


def _flag(attributes: Mapping[int, bytes], type_: int) -> int:
    value = attributes.get(type_)
    return value[0] if value else 0


def _counters(stats: bytes) -> Counters:
    if len(stats) < _STATS64.size:
        return Counters()
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = _STATS64.unpack_from(
        stats
    )
    return Counters(rx_packets, rx_bytes, rx_errors, rx_dropped, tx_packets, tx_bytes, tx_errors, tx_dropped)
