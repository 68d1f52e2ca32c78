"""Changing an interface over rtnetlink: what is asked for is compared with what is there, and the rest is set.

What is so already takes no privilege, and its owner has none to change it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
from collections.abc import Sequence

from .. import _abi
from .._errors import SetupError, cannot
from .._netns import open_namespace, parse_namespace
from .._types import Link
from . import messages
from .link import Where, located
from .messages import Interface, Route
from .socket import RouteError, RouteSocket, in_namespace

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_TRIES = 10


def parse_route(text: str) -> Route:
    """A route as ``ip route`` writes it: ``DESTINATION [via GATEWAY] [metric NUMBER]``."""
    try:
        destination, *rest = text.split()
        options = dict(zip(rest[::2], rest[1::2], strict=True))
        gateway = ipaddress.ip_address(options.pop("via")) if "via" in options else None
        metric = int(options.pop("metric")) if "metric" in options else None
        if destination == "default":
            destination = "::/0" if gateway is not None and gateway.version == 6 else "0.0.0.0/0"
        network = ipaddress.ip_network(destination)
        if options or (gateway is not None and gateway.version != network.version) or not 0 <= (metric or 0) < 1 << 32:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"route {text!r}: 'DESTINATION [via GATEWAY] [metric NUMBER]', such as '10.1.0.0/16', 'default via"
            " 10.0.0.1' or 'fd00:1::/64 via fd00::2 metric 50'"
        ) from None
    return Route(network, gateway, metric)


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
        self.routes = [parse_route(each) for each in _check_list("routes", routes)]
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


def _parse_address(text: str) -> Interface:
    try:
        return ipaddress.ip_interface(text if isinstance(text, str) else "")  # it takes numbers too
    except ValueError:
        raise ValueError(f"address {text!r}: an IPv4 or IPv6 address with a prefix, as '10.0.0.1/24'") from None


async def configure(where: Where, index: int, settings: Settings) -> int:
    """Applies *settings*, and returns the interface's index, which is another one after a move.

    Args:
        where: What the interface's descriptor tells.
        index: Where it was seen last, 0 if that is not known.
        settings: What it is to be like.

    Raises:
        SetupError: The kernel refused.
        DeviceGoneError: The interface was deleted.
    """
    target = None if settings.netns is None else open_namespace(settings.netns)
    try:
        for _ in range(_TRIES):
            async with located(where, index) as (netns, link):
                if await in_namespace(netns, lambda route: _Change(route, link, settings, target).apply()):
                    return link.index
                index = link.index
    finally:
        if target is not None:
            os.close(target)
    raise SetupError(
        errno.EAGAIN, f"cannot configure {link.name!r}: it is moved to other namespaces meanwhile; try again"
    )


class _Change:
    """One attempt at making an interface, as it was found, what is asked for."""

    def __init__(self, route: RouteSocket, link: Link, settings: Settings, target: int | None) -> None:
        self._route = route
        self._link = link
        self._settings = settings
        self._target = target
        self._name = link.name

    def apply(self) -> bool:
        """Whether it was done. If not, the interface is not in this namespace any more: it was moved, or deleted.

        In an order in which each can succeed. Moving comes first, since an interface loses its addresses and goes down
        on the way; a rename before it comes up, which some kernels demand; routes last, which need it up.
        """
        try:
            if self._move():
                return False
            self._set_link()
            self._add_addresses()
            if self._settings.up and not self._link.up:
                self._set("up", True, messages.set_link(self._link.index, up=True))
            self._add_routes()
        except _NotHereError:
            return False
        return True

    def _move(self) -> bool:
        if self._target is None:
            return False
        status = os.fstat(self._target)
        if (status.st_dev, status.st_ino) == self._route.namespace:
            return False
        self._set("netns", repr(self._settings.netns), messages.set_link(self._link.index, netns_fd=self._target))
        return True

    def _set_link(self) -> None:
        link, index, wanted = self._link, self._link.index, self._settings
        if wanted.up is False and link.up:
            self._set("up", False, messages.set_link(index, up=False))
        if wanted.name is not None and wanted.name != link.name:
            self._set("name", wanted.name, messages.set_link(index, name=wanted.name))
            self._name = wanted.name
        if wanted.mtu is not None and wanted.mtu != link.mtu:
            self._set("mtu", wanted.mtu, messages.set_link(index, mtu=wanted.mtu))
        if wanted.mac is not None and wanted.mac.lower() != link.mac:
            self._set("mac", wanted.mac, messages.set_link(index, mac=wanted.mac))
        if wanted.txqueuelen is not None and wanted.txqueuelen != link.txqueuelen:
            self._set("txqueuelen", wanted.txqueuelen, messages.set_link(index, txqueuelen=wanted.txqueuelen))
        if wanted.master is not None:
            master = self._index_of_master(wanted.master)
            if master != (link.master or 0):
                self._set("master", wanted.master, messages.set_link(index, master=master))

    def _index_of_master(self, master: str) -> int:
        if not master:
            return 0
        link = self._route.link(name=master)
        if link is None:
            raise SetupError(
                errno.ENODEV, f"cannot set master of {self._name!r} to {master!r}: no such interface in its namespace"
            )
        return link.index

    def _add_addresses(self) -> None:
        for address in self._settings.addresses:
            if str(address) not in self._link.addresses:
                self._set("address", address, messages.new_address(self._link.index, address), ignore=errno.EEXIST)

    def _add_routes(self) -> None:
        there: dict[int, list[Route]] = {}
        for wanted in self._settings.routes:
            version = wanted.destination.version
            if version not in there:
                there[version] = self._route.routes(self._link.index, version)
            if not any(wanted.same(each) for each in there[version]):
                self._set("route", wanted, messages.new_route(self._link.index, wanted), ignore=errno.EEXIST)

    def _set(self, setting: str, value: object, request: bytearray, ignore: int | None = None) -> None:
        try:
            self._route.ask(request, ignore)
        except RouteError as error:
            if error.errno == errno.ENODEV and self._route.link(index=self._link.index) is None:
                raise _NotHereError from error
            hint = ""
            if error.errno == errno.EPERM:
                hint = "it takes CAP_NET_ADMIN in the user namespace of its namespace"
            elif error.errno == errno.EBUSY and setting == "name":
                hint = (
                    "before Linux 6.2 an interface keeps its name while it is up: set it down first, or together with"
                    f" the name: configure(up=False, name={value!r})"
                )
            raise cannot(f"set {setting} of {self._name!r} to {value}", error, hint) from error


class _NotHereError(Exception):
    """There is no interface of this index any more."""
