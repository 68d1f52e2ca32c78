"""Finding interfaces: all of a namespace, one by name, and the one that a descriptor is attached to."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeAlias

from .._errors import SetupError
from .._netns import Namespace, identity_of
from .._types import Link
from .socket import RouteSocket, in_namespace

_TRIES = 100

#: Gives the name and the namespace that an interface has now; DeviceGoneError when it was deleted. The interface's own
#: descriptor tells, and so has the last word: netlink knows only names and indexes, which others may have by now.
Where: TypeAlias = Callable[[], AbstractContextManager[tuple[str, Namespace]]]


async def find(name: str, netns: Namespace) -> Link | None:
    """The interface of that name in *netns*, with its addresses; None when there is none."""
    return await in_namespace(netns, lambda route: route.link(name=name))


async def tuntaps(netns: Namespace) -> list[Link]:
    """All TUN/TAP interfaces in *netns*, by index."""
    links = await in_namespace(netns, RouteSocket.links)
    return [link for link in links if link.mode is not None]


async def look(where: Where, index: int = 0) -> Link:
    """The interface itself. Arguments and errors as for `located`."""
    async with located(where, index) as (_, link):
        return link


@asynccontextmanager
async def located(where: Where, index: int = 0) -> AsyncIterator[tuple[Namespace, Link]]:
    """The namespace of an interface, to be used within, and the interface with its addresses.

    Args:
        where: What its descriptor tells.
        index: Where it was seen last, if that is known: it stays through renames.

    Raises:
        DeviceGoneError: It was deleted.
        SetupError: The kernel refused, or the interface is renamed and moved all the time.
    """
    link: Link | None = None
    seen = ""
    for _ in range(_TRIES):
        with where() as (before, netns):
            by_index, link = await in_namespace(netns, lambda route: _find(route, before, index))
            with where() as (after, now):
                # A name alone may be another interface's by now, unless it is this one's still.
                sure = link is not None and (link.name == after or (by_index and link.name == before))
                # Renamed faster than anybody can look, it is the one of its index if that one is renamed all the time too.
                sure = sure or (by_index and link is not None and before != after and seen not in ("", link.name))
                sure = sure and _same_namespace(netns, now)
            if link is not None and sure:
                yield netns, link
                return
            seen = link.name if by_index and link is not None else ""
    if link is None:
        raise SetupError(
            errno.ENODEV,
            f"cannot find interface {before!r} in the namespace where it was opened: it was moved to another one, and it"
            " takes CAP_NET_ADMIN there to find it; run as root, or open it again in its new namespace (netns=...)",
        )
    raise SetupError(
        errno.EAGAIN,
        f"cannot find interface {before!r}: it was renamed or moved during each of {_TRIES} looks; try again",
    )


def _find(route: RouteSocket, name: str, index: int) -> tuple[bool, Link | None]:
    """The interface, and whether it was found by its index; by name where the index has become another's."""
    link = route.link(index=index) if index > 0 else None
    if link is not None and link.mode is not None:
        if link.name == name:
            return True, link
        named = route.link(name=name)
        # Between two names that it changes between, neither look may meet the right one: the caller compares.
        return (True, link) if named is None else (False, named)
    return False, route.link(name=name)


def _same_namespace(one: Namespace, other: Namespace) -> bool:
    if isinstance(one, int) and isinstance(other, int):
        return identity_of(os.fstat(one)) == identity_of(os.fstat(other))
    return one == other
