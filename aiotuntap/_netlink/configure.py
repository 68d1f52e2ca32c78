"""Changing an interface over rtnetlink. Imports pyroute2: see `_netlink`."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pyroute2.netlink.exceptions import NetlinkError

from .. import _abi
from .._errors import SetupError
from .._netns import Namespace, open_namespace, parse_namespace
from .link import get
from .socket import route_socket

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")

Address: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Route:
    """A route through the interface, as ``ip route`` writes it: ``DESTINATION [via GATEWAY] [metric NUMBER]``."""

    destination: ipaddress.IPv4Network | ipaddress.IPv6Network
    gateway: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
    metric: int | None = None

    @classmethod
    def parse(cls, text: str) -> Route:
        try:
            destination, *rest = text.split()
            options = dict(zip(rest[::2], rest[1::2], strict=True))
            gateway = ipaddress.ip_address(options.pop("via")) if "via" in options else None
            metric = int(options.pop("metric")) if "metric" in options else None
            if destination == "default":
                destination = "::/0" if gateway is not None and gateway.version == 6 else "0.0.0.0/0"
            network = ipaddress.ip_network(destination)
            if options or (gateway is not None and gateway.version != network.version) or (metric or 0) < 0:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"route {text!r}: 'DESTINATION [via GATEWAY] [metric NUMBER]', such as '10.1.0.0/16', 'default via"
                " 10.0.0.1' or 'fd00:1::/64 via fd00::2 metric 50'"
            ) from None
        return cls(network, gateway, metric)

    def request(self) -> dict[str, Any]:
        """For pyroute2."""
        request: dict[str, Any] = {"dst": str(self.destination)}
        if self.gateway is not None:
            request["gateway"] = str(self.gateway)
        if self.metric is not None:
            request["priority"] = self.metric
        return request

    def __str__(self) -> str:
        via = "" if self.gateway is None else f" via {self.gateway}"
        return f"{self.destination}{via}{'' if self.metric is None else f' metric {self.metric}'}"


class Settings:
    """What `AsyncTuntap.configure` was asked for, checked as far as that goes without the kernel."""

    def __init__(
        self,
        *,
        up: bool | None,
        mtu: int | None,
        mac: str | None,
        addresses: Sequence[str] | None,
        routes: Sequence[str] | None,
        master: str | None,
        txqueuelen: int | None,
        name: str | None,
        netns: str | os.PathLike[str] | None,
    ) -> None:
        if up is not None and not isinstance(up, bool):
            raise TypeError(f"up {up!r}: True or False")
        self.up = up
        self.mtu = _check_number("mtu", mtu, "bytes")
        self.txqueuelen = _check_number("txqueuelen", txqueuelen, "frames")
        if mac is not None and not _MAC.fullmatch(mac):
            raise ValueError(f"mac {mac!r}: six bytes in hexadecimal with colons between, as '02:00:00:00:00:01'")
        self.mac = mac
        self.addresses = [_parse_address(each) for each in _check_list("addresses", addresses)]
        self.routes = [Route.parse(each) for each in _check_list("routes", routes)]
        self.master = master
        if name is not None and (not name or "%" in name or _abi.encode_name(name) is None):
            raise ValueError(f"name {name!r}: a new name for the interface, no template")
        self.name = name
        self.netns = None if netns is None else parse_namespace(netns)


def _check_number(setting: str, number: int | None, unit: str) -> int | None:
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 31):
        raise ValueError(f"{setting} {number!r}: a whole number of {unit}")
    return number


def _check_list(setting: str, texts: Sequence[str] | None) -> Sequence[str]:
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{setting}: a list of strings, not {texts!r} alone")
    return texts or ()


def _parse_address(text: str) -> Address:
    try:
        return ipaddress.ip_interface(text if isinstance(text, str) else "")  # it takes numbers too
    except ValueError:
        raise ValueError(f"address {text!r}: an IPv4 or IPv6 address with a prefix, as '10.0.0.1/24'") from None


async def configure(name: str, netns: Namespace, settings: Settings) -> None:
    """Applies *settings*, in an order in which each can succeed.

    Moving comes first, since an interface loses its addresses and goes down on the way; a rename before it comes up,
    which some kernels demand; routes last, which need it up.
    """
    if settings.netns is not None:
        await _move(name, netns, settings.netns)
        netns = settings.netns
    async with route_socket(netns) as route:
        link = await get(route, name)
        if link is None:
            raise SetupError(errno.ENODEV, f"cannot configure {name!r}: there is no such interface in its namespace")
        index = link.index
        if settings.up is False:
            await _apply("up", False, name, route.link("set", index=index, state="down"))
        if settings.name is not None:
            await _apply("name", settings.name, name, route.link("set", index=index, ifname=settings.name))
            name = settings.name
        for setting, key, value in (
            ("mtu", "mtu", settings.mtu),
            ("mac", "address", settings.mac),
            ("txqueuelen", "txqlen", settings.txqueuelen),
        ):
            if value is not None:
                await _apply(setting, value, name, route.link("set", index=index, **{key: value}))
        if settings.master is not None:
            master = await _index_of_master(route, name, settings.master)
            await _apply("master", settings.master, name, route.link("set", index=index, master=master))
        for address in settings.addresses:
            request = route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
            await _apply("address", address, name, request, ignore=errno.EEXIST)
        if settings.up:
            await _apply("up", True, name, route.link("set", index=index, state="up"))
        for each in settings.routes:
            await _apply("route", each, name, route.route("add", oif=index, **each.request()), ignore=errno.EEXIST)


async def _move(name: str, netns: Namespace, target: str) -> None:
    fd = open_namespace(target)
    try:
        async with route_socket(netns) as route:
            link = await get(route, name)
            if link is None:
                raise SetupError(errno.ENODEV, f"cannot move {name!r}: there is no such interface in its namespace")
            await _apply("netns", repr(target), name, route.link("set", index=link.index, net_ns_fd=fd))
    finally:
        os.close(fd)


async def _index_of_master(route: Any, name: str, master: str) -> int:
    if not master:
        return 0
    link = await get(route, master)
    if link is None:
        raise SetupError(
            errno.ENODEV, f"cannot set master of {name!r} to {master!r}: no such interface in its namespace"
        )
    return link.index


async def _apply(setting: str, value: object, name: str, request: Awaitable[Any], ignore: int | None = None) -> None:
    try:
        await request
    except NetlinkError as error:
        if error.code == ignore:
            return
        # With extended acknowledgements the kernel often says more than the number does.
        reason = error.args[1] if len(error.args) > 1 and error.args[1] else os.strerror(error.code)
        mend = "; it takes CAP_NET_ADMIN in the user namespace of its namespace" if error.code == errno.EPERM else ""
        raise SetupError(error.code, f"cannot set {setting} of {name!r} to {value}: {reason}{mend}") from error
