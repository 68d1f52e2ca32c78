"""What rtnetlink says about interfaces. Imports pyroute2: see `_netlink`."""

from __future__ import annotations

import errno
from dataclasses import fields, replace
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from .. import _abi
from .._errors import SetupError
from .._netns import Namespace
from .._types import Counters, Link, Mode
from .socket import route_socket

_TRIES = 100
_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000


async def find(name: str, netns: Namespace) -> Link | None:
    """The interface of that name in *netns*, with its addresses; None when there is none."""
    async with route_socket(netns) as route:
        return await get(route, name)


async def tuntaps(netns: Namespace) -> list[Link]:
    """All TUN/TAP interfaces in *netns*, by index."""
    async with route_socket(netns) as route:
        links = [parse(message) for message in await dump(route, route.link)]
        return [await with_addresses(route, link) for link in links if link.mode is not None]


async def get(route: Any, name: str) -> Link | None:
    try:
        messages = await route.link("get", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise SetupError(error.code, f"cannot ask the kernel about interface {name!r}: {error}") from error
    return await with_addresses(route, parse(next(iter(messages))))


async def with_addresses(route: Any, link: Link) -> Link:
    messages = await dump(route, route.addr, index=link.index)
    return replace(link, addresses=tuple(parse_address(each) for each in messages if each["index"] == link.index))


async def dump(route: Any, request: Any, **filters: Any) -> list[Any]:
    """All messages of a dump, from the start again as long as the kernel says that the list changed under it.

    Raises:
        SetupError: It never held still.
    """
    for _ in range(_TRIES):
        route.interrupted = False
        messages = [message async for message in await request("dump", **filters)]
        if not route.interrupted:
            return messages
    raise SetupError(errno.EINTR, "the kernel's list of interfaces or addresses changes all the time: try again")


def parse_address(message: Any) -> str:
    """Address and prefix length. IFA_LOCAL is the own one on a point-to-point link, where IFA_ADDRESS is the peer's."""
    return f"{message.get('local') or message.get('address')}/{message['prefixlen']}"


def parse(message: Any) -> Link:
    """An RTM_NEWLINK message, which says all about an interface but its addresses."""
    counters = message.get("stats64") or {}
    link = Link(
        index=message["index"],
        name=message.get("ifname"),
        kind=message.get(("linkinfo", "kind")),
        mtu=message.get("mtu") or 0,
        mac=message.get("address"),
        up=bool(message["flags"] & _IFF_UP),
        carrier=bool(message["flags"] & _IFF_LOWER_UP),
        txqueuelen=message.get("txqlen") or 0,
        master=message.get("master"),
        counters=Counters(**{field.name: counters.get(field.name, 0) for field in fields(Counters)}),
    )
    if link.kind != "tun":
        return link
    data = message.get(("linkinfo", "data"))
    return replace(
        link,
        mode=Mode.TUN if data.get("IFLA_TUN_TYPE") == _abi.IFF_TUN else Mode.TAP,
        packet_info=bool(data.get("IFLA_TUN_PI")),
        vnet_header=bool(data.get("IFLA_TUN_VNET_HDR")),
        multi_queue=bool(data.get("IFLA_TUN_MULTI_QUEUE")),
        persistent=bool(data.get("IFLA_TUN_PERSIST")),
        owner=data.get("IFLA_TUN_OWNER"),
        group=data.get("IFLA_TUN_GROUP"),
        queues=data.get("IFLA_TUN_NUM_QUEUES"),
        disabled_queues=data.get("IFLA_TUN_NUM_DISABLED_QUEUES"),
    )
