"""rtnetlink(7) requests as bytes, encoded by pyroute2.

Importing this module imports pyroute2, which takes a fifth of a second: do it on a thread, and only when netlink is
needed.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import replace

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from .iproute import Address, Route
from .messages import (
    IFA_F_NODAD,
    IFA_F_NOPREFIXROUTE,
    IFF_UP,
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    AddressChange,
    RouteEntry,
)

_REQUEST = 0x1
_ACK = 0x4
_DUMP = 0x300
_EXCL = 0x200
_CREATE = 0x400

_RTPROT_STATIC = 4
#: Larger numbers of tables are told by an attribute.
_LARGEST_SHORT_TABLE = 255

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_SEQUENCE = struct.Struct("=I")


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
        fields |= {"flags": IFF_UP if up else 0, "change": IFF_UP}
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


def new_address(index: int, address: Address) -> bytearray:
    return _change_address(RTM_NEWADDR, _ACK | _CREATE | _EXCL, index, address)


def delete_address(index: int, address: Address) -> bytearray:
    return _change_address(RTM_DELADDR, _ACK, index, replace(address, nodad=False, noprefixroute=False))


def _change_address(type_: int, flags: int, index: int, address: Address) -> bytearray:
    fields = {
        "family": _family(address.version),
        "prefixlen": address.prefix_length,
        "scope": address.scope or 0,
        "index": index,
    }
    attributes = {
        "IFA_LOCAL": str(address.local),
        "IFA_ADDRESS": str(address.peer or address.local),
        "IFA_BROADCAST": None if address.broadcast is None else str(address.broadcast),
        "IFA_RT_PRIORITY": address.metric,
        "IFA_FLAGS": IFA_F_NODAD * address.nodad | IFA_F_NOPREFIXROUTE * address.noprefixroute or None,
    }
    return _encode(ifaddrmsg, type_, flags, fields, attributes)


def dump_routes(version: int, index: int) -> bytearray:
    """The routes of IPv4 or IPv6 through one interface: see `RouteSocket` for when the kernel picks them out."""
    return _encode(rtmsg, RTM_GETROUTE, _DUMP, {"family": _family(version)}, {"RTA_OIF": index})


def new_route(index: int, route: Route) -> bytearray:
    """Without NLM_F_EXCL, EEXIST means that this very route is there, and not another one to the same destination."""
    has_short_table = route.table <= _LARGEST_SHORT_TABLE
    fields = {
        "family": _family(route.version),
        "dst_len": route.destination.prefixlen,
        "table": route.table if has_short_table else 0,
        "proto": _RTPROT_STATIC,
        "type": RTN_UNICAST,
        "scope": route.effective_scope,
        "flags": RTNH_F_ONLINK if route.onlink else 0,
    }
    attributes = {
        "RTA_DST": str(route.destination.network_address),
        "RTA_GATEWAY": None if route.gateway is None else str(route.gateway),
        "RTA_PRIORITY": route.metric,
        "RTA_PREFSRC": None if route.source is None else str(route.source),
        "RTA_METRICS": None if route.mtu is None else {"attrs": [("RTAX_MTU", route.mtu)]},
        "RTA_TABLE": None if has_short_table else route.table,
        "RTA_OIF": index,
    }
    return _encode(rtmsg, RTM_NEWROUTE, _ACK | _CREATE, fields, attributes)


def restore_address(address: AddressChange) -> bytearray:
    """Sets an address as it was, also with what an `Address` does not have: its label, and how long it is valid."""
    return _repeat(RTM_NEWADDR, _ACK | _CREATE | _EXCL, address.body)


def restore_route(entry: RouteEntry) -> bytearray:
    """Adds a route as it was."""
    return _repeat(RTM_NEWROUTE, _ACK | _CREATE, entry.body)


def delete_route(entry: RouteEntry) -> bytearray:
    return _repeat(RTM_DELROUTE, _ACK, entry.body)


def _repeat(type_: int, flags: int, body: bytes) -> bytearray:
    return bytearray(_HEADER.pack(_HEADER.size + len(body), type_, _REQUEST | flags, 0, 0) + body)


def set_sequence(request: bytearray, sequence: int) -> None:
    _SEQUENCE.pack_into(request, 8, sequence)


def _encode_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # as pyroute2 does not, which then adds the NUL


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _encode(
    kind: type, type_: int, flags: int, fields: Mapping[str, int], attributes: Mapping[str, object]
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
