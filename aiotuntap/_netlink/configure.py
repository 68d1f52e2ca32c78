"""Changing an interface over rtnetlink: what is asked for is compared with what is there, and the rest is set.

What is so already takes no privilege, and its owner has none to change it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from .. import _abi
from .._arguments import check_flags
from .._errors import SetupError, cannot
from .._netns import identity_of, open_namespace, parse_namespace
from .._types import Link
from . import requests
from .iproute import Address, Route, parse_address, parse_route
from .ipv6 import set_ipv6
from .link import Where, located
from .messages import RouteEntry
from .socket import RouteError, RouteSocket, in_namespace

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_TRIES = 10
Entry = TypeVar("Entry", Address, Route)
#: By identity: many may be asked for, and many may be there.
Wanted: TypeAlias = dict[Hashable, Entry]


class Configuration:
    """What `AsyncTuntap.configure` was asked for, checked as far as that goes without the kernel."""

    def __init__(
        self,
        *,
        up: bool | None,
        mtu: int | None,
        mac: str | None,
        addresses: Sequence[str] | None,
        routes: Sequence[str] | None,
        replace: bool,
        ipv6: bool | None,
        master: str | None,
        txqueuelen: int | None,
        name: str | None,
        netns: str | os.PathLike[str] | None,
    ) -> None:
        given = {"up": up, "replace": replace, "ipv6": ipv6}
        check_flags(**{what: flag for what, flag in given.items() if flag is not None})
        self.up = up
        self.mtu = _check_number("mtu", mtu, "bytes")
        self.txqueuelen = _check_number("txqueuelen", txqueuelen, "frames")
        self.mac = None if mac is None else _check_mac(mac)
        self.addresses = _parse_all("addresses", addresses, parse_address)
        self.routes = _parse_all("routes", routes, parse_route)
        self.replace = bool(replace)
        self.ipv6 = ipv6
        if ipv6 is False:
            entries: list[Address | Route] = [*(self.addresses or {}).values(), *(self.routes or {}).values()]
            for each in entries:
                if each.version == 6:
                    raise ValueError(f"ipv6=False turns IPv6 off, and {each} is of IPv6: leave one of the two out")
        self.master = None if master is None else _check_master(master)
        self.name = None if name is None else _check_name(name)
        self.netns = None if netns is None else parse_namespace(netns)
        #: Whether it was moved there, also if something failed afterwards.
        self.has_moved = False


def _check_number(setting: str, number: int | None, unit: str) -> int | None:
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 31):
        raise ValueError(f"{setting} must be a whole number of {unit} from 0 to {(1 << 31) - 1}, not {number!r}")
    return number


def _check_mac(mac: str) -> str:
    if not isinstance(mac, str):
        raise TypeError(f"mac must be a string such as '02:00:00:00:00:01', not {mac!r}")
    if not _MAC.fullmatch(mac):
        raise ValueError(f"mac must be six bytes in hexadecimal, such as '02:00:00:00:00:01', not {mac!r}")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"mac must not be a multicast address, and {mac!r} is one: its first byte must be even")
    return mac.lower()


def _check_name(name: str) -> str:
    if not _abi.encode_name(name) or "%" in name:
        raise ValueError(f"name must be a new name for the interface, not a template nor empty: {name!r}")
    return name


def _check_master(master: str) -> str:
    """``""`` is for no master."""
    if "%" in master or _abi.encode_name(master) is None:
        raise ValueError(f"master must be the name of an interface, not {master!r}")
    return master


def _parse_all(setting: str, texts: Sequence[str] | None, parse: Callable[[str], Entry]) -> Wanted[Entry] | None:
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{setting} must be a list of strings, not the string {texts!r}: write [{texts!r}]")
    if texts is None:
        return None
    if not isinstance(texts, Iterable):
        raise TypeError(f"{setting} must be a list of strings, not {texts!r}")
    wanted: Wanted[Entry] = {}
    written: dict[Hashable, str] = {}
    for text in texts:
        entry = parse(text)
        if wanted.setdefault(entry.identity, entry) != entry:
            other = written[entry.identity]
            raise ValueError(f"{setting} {other!r} and {text!r} exclude each other: leave one of the two out")
        written[entry.identity] = text
    return wanted


async def configure(where: Where, index: int, settings: Configuration) -> int:
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
        errno.EAGAIN,
        f"cannot configure {link.name!r}: it was moved to another namespace during each of {_TRIES} tries; try again",
    )


class _Change:
    """One attempt at making an interface, as it was found, what is asked for."""

    def __init__(self, route: RouteSocket, link: Link, settings: Configuration, target: int | None) -> None:
        self._route = route
        self._link = link
        self._index = link.index
        self._settings = settings
        self._target = target
        self._name = link.name

    def apply(self) -> bool:
        """Whether it was done. If not, the interface is not in this namespace any more: it was moved, or deleted.

        In an order in which each can succeed. Moving comes first, since an interface loses its addresses and goes down
        on the way; a rename before it comes up, which some kernels demand; IPv6 and the master before it comes up too,
        or else the kernel would send; routes last, which need it up and may name an address.
        """
        try:
            if self._move():
                return False
            self._set_link()
            if self._settings.ipv6 is not None and not set_ipv6(self._route, self._index, self._settings.ipv6):
                return False
            if self._settings.addresses is not None:
                self._set_addresses(self._settings.addresses)
            if self._settings.up and not self._link.up:
                self._set("up", True, requests.set_link(self._index, up=True))
            if self._settings.routes is not None:
                self._set_routes(self._settings.routes)
        except _NotHereError:
            return False
        return True

    def _move(self) -> bool:
        if self._target is None:
            return False
        if identity_of(os.fstat(self._target)) == self._route.namespace:
            return False
        self._set("netns", repr(self._settings.netns), requests.set_link(self._index, netns_fd=self._target))
        self._settings.has_moved = True
        return True

    def _set_link(self) -> None:
        link, index, wanted = self._link, self._index, self._settings
        if wanted.up is False and link.up:
            self._set("up", False, requests.set_link(index, up=False))
        if wanted.name not in (None, link.name):
            self._set("name", wanted.name, requests.set_link(index, name=wanted.name))
            self._name = wanted.name or self._name
        if wanted.mtu not in (None, link.mtu):
            self._set("mtu", wanted.mtu, requests.set_link(index, mtu=wanted.mtu))
        if wanted.mac not in (None, link.mac):
            self._set("mac", wanted.mac, requests.set_link(index, mac=wanted.mac))
        if wanted.txqueuelen not in (None, link.txqueuelen):
            self._set("txqueuelen", wanted.txqueuelen, requests.set_link(index, txqueuelen=wanted.txqueuelen))
        if wanted.master is not None and wanted.master != (link.master or ""):
            master = self._index_of_master(wanted.master)
            self._set("master", repr(wanted.master), requests.set_link(index, master=master))

    def _index_of_master(self, master: str) -> int:
        if not master:
            return 0
        link = self._route.link(name=master)
        if link is None:
            raise SetupError(
                errno.ENODEV,
                f"cannot set master of {self._name!r} to {master!r}: no such interface in its namespace;"
                f" 'ip link add {master} type bridge' makes a bridge",
            )
        return link.index

    def _set_addresses(self, wanted: Wanted[Address]) -> None:
        there = self._route.addresses(self._index)
        before = {each.address: each for each in there}
        spare = {each.address: each for each in there if self._is_spare(wanted, each.address, each.automatic)}
        loses_others = any(address.version == 4 for address in spare)
        routes = self._routes((4,)) if loses_others else []
        for address in spare:
            request = requests.delete_address(self._index, address)
            self._ask(f"remove address {address} from {self._name!r}", request, ignore=errno.EADDRNOTAVAIL)
        if loses_others:  # with an IPv4 address go those of its subnet that were set after it
            wanted = _as_before(wanted, [each.address for each in there if each.address.version == 4], spare)
        if spare:
            there = self._route.addresses(self._index)
        try:
            for address in _missing(wanted, [each.address for each in there]):
                known = before.get(address)
                request = (
                    requests.new_address(self._index, address) if known is None else requests.restore_address(known)
                )
                self._set("address", address, request, ignore=errno.EEXIST)
        finally:
            if routes:
                self._restore([entry for entry in routes if not entry.automatic], self._routes((4,)))

    def _restore(self, routes: Sequence[RouteEntry], there: Sequence[RouteEntry]) -> None:
        """Adds again those of *routes* that are not *there*, such as all that went with the last IPv4 address."""
        left = {entry.route for entry in there}
        for entry in routes:
            if entry.route not in left:
                with suppress(RouteError):  # its gateway or source may have gone with the address
                    self._route.ask(requests.restore_route(entry))

    def _set_routes(self, wanted: Wanted[Route]) -> None:
        versions = (4, 6) if self._settings.replace else sorted({route.version for route in wanted.values()})
        there = self._routes(versions)
        spare = [each for each in there if self._is_spare(wanted, each.route, each.automatic)]
        if spare:
            self._remove(spare, there)
            there = self._routes(versions)
        for route in _missing(wanted, [entry.route for entry in there]):
            self._set("route", route, requests.new_route(self._index, route), ignore=errno.EEXIST)

    def _remove(self, spare: Sequence[RouteEntry], there: Sequence[RouteEntry]) -> None:
        """Removes *spare* of the routes that are *there*, and no other.

        The kernel removes the first route that fits a request, and a request that names no gateway, or no source, fits a
        route that has one, too. So those that are left are removed again, and the others added again.
        """
        versions = sorted({entry.route.version for entry in spare})
        going = {entry.route for entry in spare}
        others = [entry for entry in there if entry.route not in going and entry.route.version in versions]
        left = list(spare)
        for _ in range(_TRIES):
            for entry in left:
                request = requests.delete_route(entry)
                self._ask(f"remove route {entry.route} from {self._name!r}", request, ignore=errno.ESRCH)
            now = self._routes(versions)
            left = [entry for entry in now if entry.route in going]
            if not left:
                break
        self._restore(others, now)
        if left:
            raise SetupError(
                errno.EAGAIN,
                f"cannot remove route {left[0].route} from {self._name!r}: it was there again after each of {_TRIES}"
                " tries; look for a program that adds it",
            )

    def _routes(self, versions: Sequence[int]) -> list[RouteEntry]:
        return [entry for version in versions for entry in self._route.routes(self._index, version)]

    def _is_spare(self, wanted: Wanted[Entry], there: Entry, automatic: bool) -> bool:
        """Whether it has to go: another one is wanted in its place, or nothing but others."""
        instead = wanted.get(there.identity)
        if instead is not None:
            return not instead.is_met_by(there)
        return self._settings.replace and not automatic

    def _set(self, setting: str, value: object, request: bytearray, ignore: int | None = None) -> None:
        self._ask(f"set {setting} of {self._name!r} to {value}", request, ignore, setting, value)

    def _ask(
        self, action: str, request: bytearray, ignore: int | None = None, setting: str = "", value: object = None
    ) -> None:
        try:
            self._route.ask(request, ignore)
        except RouteError as error:
            if error.errno == errno.ENODEV and self._route.link(index=self._index) is None:
                raise _NotHereError from None
            raise cannot(action, error, self._hint(setting, value, error)) from None

    def _hint(self, setting: str, value: object, error: RouteError) -> str:
        if error.errno == errno.ERANGE and setting == "txqueuelen":
            return "with this kernel, a queue has at most 32767 frames"
        if error.errno == errno.EPERM:
            # The driver has no room for so long a queue, and its NOTIFY_BAD reads as EPERM.
            too_long = ", and a queue has at most 524288 frames" if setting == "txqueuelen" else ""
            return f"it takes CAP_NET_ADMIN in the user namespace of its namespace{too_long}"
        if error.errno == errno.EBUSY and setting == "name":
            return (
                "before Linux 6.2 an interface keeps its name while it is up: set it down first, or together with the"
                f" name: configure(up=False, name={value!r})"
            )
        if error.errno == errno.EEXIST and setting == "name":
            return "another interface has this name: choose another one"
        if error.errno == errno.EINVAL and setting == "netns":
            return "this is not a network namespace"
        if error.errno == errno.EOPNOTSUPP and setting == "master":
            return "it must be a bridge, or another interface that can have ports"
        if error.errno == errno.EOPNOTSUPP and setting == "mac" and self._link.mac is None:
            return "a TUN interface has no MAC address, and one opened with mode='tap' has"
        link = self._route.link(index=self._index) if isinstance(value, (Address, Route)) else None
        if link is None or not isinstance(value, (Address, Route)):
            return ""
        if value.version == 6 and link.mtu < 1280:
            return f"IPv6 takes an MTU of at least 1280, and it is {link.mtu}"
        if value.version == 6 and not link.ipv6:
            return "IPv6 is off on this interface, and configure(ipv6=True) turns it on"
        if isinstance(value, Route) and not link.up:
            return "the interface is down: set it up first, or together with the route: configure(up=True, routes=...)"
        if isinstance(value, Route) and str(value.source) in {each.partition("/")[0] for each in link.tentative}:
            return f"{value.source} is tentative: wait with 'await ready()' before, or give the address with 'nodad'"
        if isinstance(value, Route) and value.gateway and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return (
                f"{value.gateway} must be in the subnet of an address of this interface: add one, or write"
                f" 'via {value.gateway} onlink'"
            )
        return ""


def _as_before(wanted: Wanted[Address], there: Sequence[Address], spare: Container[Address]) -> Wanted[Address]:
    """What is wanted, and those of *there* that are not *spare* as they are, in the order in which they were set."""
    kept: Wanted[Address] = {}
    for address in there:
        if address not in spare:
            kept[address.identity] = address
        elif address.identity in wanted:
            kept[address.identity] = wanted[address.identity]
    return kept | {identity: address for identity, address in wanted.items() if identity not in kept}


def _missing(wanted: Wanted[Entry], there: Sequence[Entry]) -> list[Entry]:
    """Those wanted that none of those that are there is."""
    met = {each.identity for each in there if each.identity in wanted and wanted[each.identity].is_met_by(each)}
    return [each for identity, each in wanted.items() if identity not in met]


class _NotHereError(Exception):
    """There is no interface of this index any more."""
