"""rtnetlink(7) messages as bytes: requests, which pyroute2 encodes, and answers, which are decoded here.

pyroute2's own form of one answer takes 28 KB and up to 2 ms; of some sixty attributes this package looks at ten.
Importing this module imports pyroute2, which takes a fifth of a second: do it on a thread, and only when netlink is
needed.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from .. import _abi
from .._types import Counters, Link, Mode

Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

NLMSG_ERROR = 2
NLMSG_DONE = 3
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_GETROUTE = 26

_REQUEST = 0x1
_ACK = 0x4
_DUMP = 0x300
_EXCL = 0x200
_CREATE = 0x400
#: In answers: the list changed while it was being dumped; the original request is left out; attributes follow.
NLM_F_DUMP_INTR = 0x10
_CAPPED = 0x100
_ACK_TLVS = 0x200

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, lengths, TOS, table, protocol, scope, type, flags
_SEQUENCE = struct.Struct("=I")
_INDEX = struct.Struct("=i")
_ERROR = struct.Struct("=i")
_NUMBER = struct.Struct("=I")
_STATS64 = struct.Struct("=8Q")  # the first of struct rtnl_link_stats64

_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_RT_TABLE_MAIN = 254
_RTPROT_STATIC = 4
_RTN_UNICAST = 1
_RT_SCOPE_LINK = 253
#: The kernel's metric for a route that names none.
_DEFAULT_METRIC = {4: 0, 6: 1024}


class Message(NamedTuple):
    """One netlink message, its body not looked into yet."""

    type: int
    flags: int
    sequence: int
    body: bytes


class LinkChange(NamedTuple):
    """An interface that is there (with everything about it but its addresses), or was removed."""

    link: Link
    removed: bool


class AddressChange(NamedTuple):
    """An address that is there, or was removed; as ``"10.0.0.1/24"``."""

    interface: int
    address: str
    removed: bool


@dataclass(frozen=True, slots=True)
class Route:
    """A route through an interface, in the main table. It prints as ``ip route`` writes it."""

    destination: Network
    gateway: Address | None = None
    metric: int | None = None

    def same(self, other: Route) -> bool:
        """Whether the kernel takes the two for one."""
        return (self.destination, self.gateway, self._effective_metric) == (
            other.destination,
            other.gateway,
            other._effective_metric,
        )

    @property
    def _effective_metric(self) -> int:
        return self.metric or _DEFAULT_METRIC[self.destination.version]

    def __str__(self) -> str:
        via = "" if self.gateway is None else f" via {self.gateway}"
        return f"{self.destination}{via}{'' if self.metric is None else f' metric {self.metric}'}"


# -- requests ----------------------------------------------------------------------------------------------------------


def get_link(*, index: int = 0, name: str | None = None) -> bytearray:
    attributes = {} if name is None else {"IFLA_IFNAME": _encode_name(name)}
    return _encode(ifinfmsg, RTM_GETLINK, _ACK, {"index": index}, attributes)


def dump_links() -> bytearray:
    return _encode(ifinfmsg, RTM_GETLINK, _DUMP, {}, {})


def set_link(
    index: int,
    *,
    up: bool | None = None,
    name: str | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    txqueuelen: int | None = None,
    master: int | None = None,
    netns_fd: int | None = None,
) -> bytearray:
    fields = {"index": index}
    if up is not None:
        fields |= {"flags": _IFF_UP if up else 0, "change": _IFF_UP}
    attributes = {
        "IFLA_IFNAME": None if name is None else _encode_name(name),
        "IFLA_MTU": mtu,
        "IFLA_ADDRESS": mac,
        "IFLA_TXQLEN": txqueuelen,
        "IFLA_MASTER": master,
        "IFLA_NET_NS_FD": netns_fd,
    }
    return _encode(ifinfmsg, RTM_NEWLINK, _ACK, fields, attributes)


def dump_addresses(index: int = 0) -> bytearray:
    """All addresses, or those of one interface: see `RouteSocket` for when the kernel picks them out."""
    return _encode(ifaddrmsg, RTM_GETADDR, _DUMP, {"index": index}, {})


def new_address(index: int, address: Interface) -> bytearray:
    fields = {"family": _family(address.version), "prefixlen": address.network.prefixlen, "index": index}
    attributes = {"IFA_LOCAL": str(address.ip), "IFA_ADDRESS": str(address.ip)}
    return _encode(ifaddrmsg, RTM_NEWADDR, _ACK | _CREATE | _EXCL, fields, attributes)


def dump_routes(version: int, index: int) -> bytearray:
    """The routes of IPv4 or IPv6 through one interface: see `RouteSocket` for when the kernel picks them out."""
    return _encode(rtmsg, RTM_GETROUTE, _DUMP, {"family": _family(version)}, {"RTA_OIF": index})


def new_route(index: int, route: Route) -> bytearray:
    """Without NLM_F_EXCL, EEXIST means that this very route is there, and not another one to the same destination."""
    link_scope = route.gateway is None and route.destination.version == 4
    fields = {
        "family": _family(route.destination.version),
        "dst_len": route.destination.prefixlen,
        "table": _RT_TABLE_MAIN,
        "proto": _RTPROT_STATIC,
        "type": _RTN_UNICAST,
        "scope": _RT_SCOPE_LINK if link_scope else 0,
    }
    attributes = {
        "RTA_DST": str(route.destination.network_address),
        "RTA_GATEWAY": None if route.gateway is None else str(route.gateway),
        "RTA_PRIORITY": route.metric,
        "RTA_OIF": index,
    }
    return _encode(rtmsg, RTM_NEWROUTE, _ACK | _CREATE, fields, attributes)


def set_sequence(request: bytearray, sequence: int) -> None:
    _SEQUENCE.pack_into(request, 8, sequence)


def _encode_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # as pyroute2 does not, which then adds the NUL


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _encode(
    kind: type, type_: int, flags: int, fields: Mapping[str, int], attributes: Mapping[str, str | bytes | int | None]
) -> bytearray:
    message = kind()
    message["header"]["type"] = type_
    message["header"]["flags"] = _REQUEST | flags
    message["header"]["pid"] = 0
    for field, number in fields.items():
        message[field] = number
    message["attrs"] = [(key, value) for key, value in attributes.items() if value is not None]
    message.reset()
    message.encode()
    return bytearray(message.data)


# -- answers and notifications -----------------------------------------------------------------------------------------


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
        link = decode_link(message)
        return None if link is None else LinkChange(link, removed=message.type == RTM_DELLINK)
    if message.type in (RTM_NEWADDR, RTM_DELADDR):
        index, address = decode_address(message)
        return AddressChange(index, address, removed=message.type == RTM_DELADDR)
    return None


def decode_link(message: Message) -> Link | None:
    """An interface without its addresses; None for what a bridge tells about its port in the same kind of message."""
    family, _, index, flags, _ = _LINK.unpack_from(message.body)
    if family != socket.AF_UNSPEC:
        return None
    found = _attributes(message.body, _LINK.size)
    info = _attributes(found.get(18, b""))
    kind = _text(info[1]) if 1 in info else None
    data = _attributes(info.get(2, b"")) if kind == "tun" else None
    return Link(
        index=index,
        name=_text(found.get(3, b"")),
        kind=kind,
        mtu=_number(found, 4) or 0,
        mac=found[1].hex(":") if found.get(1) else None,
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        txqueuelen=_number(found, 13) or 0,
        master=_number(found, 10),
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
    )


def decode_address(message: Message) -> tuple[int, str]:
    """Index of the interface, and address with prefix length.

    IFA_LOCAL is the own address on a point-to-point link, where IFA_ADDRESS is the peer's.
    """
    family, prefix_length, _, _, index = _ADDRESS.unpack_from(message.body)
    found = _attributes(message.body, _ADDRESS.size)
    packed = found.get(2) or found.get(1, b"")
    return index, f"{socket.inet_ntop(family, packed)}/{prefix_length}"


def decode_route(message: Message) -> tuple[int, Route] | None:
    """Index of the interface and the route; None for what is no ordinary route of the main table."""
    family, length, source_length, _, table, _, _, kind, _ = _ROUTE.unpack_from(message.body)
    found = _attributes(message.body, _ROUTE.size)
    index = _number(found, 4)
    if (_number(found, 15) or table) != _RT_TABLE_MAIN or kind != _RTN_UNICAST or source_length or index is None:
        return None
    any_address = "0.0.0.0" if family == socket.AF_INET else "::"
    destination = socket.inet_ntop(family, found[1]) if 1 in found else any_address
    gateway = ipaddress.ip_address(socket.inet_ntop(family, found[5])) if 5 in found else None
    return index, Route(ipaddress.ip_network(f"{destination}/{length}"), gateway, _number(found, 6))


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
