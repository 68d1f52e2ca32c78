"""Requests to the kernel over an rtnetlink(7) socket, in any network namespace.

Everything here blocks, and is meant for a thread of its own (`in_namespace`): the kernel carries a request out before
``send`` returns, and holds or waits for its global network lock meanwhile, for tens of milliseconds where an interface
goes down or moves. It needs no event loop, so none can be in the way when a socket is to be closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Self, TypeVar
from weakref import WeakKeyDictionary, ref

from .._errors import SetupError, cannot
from .._netns import Identity, Namespace, enter, identity
from .._threads import run_in_thread
from .._types import Link
from . import messages, requests
from .messages import AddressChange, LinkChange, Message, RouteEntry

T = TypeVar("T")

# A dump comes in pieces of at most 32 KiB.
_RECEIVE_SIZE = 65536
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_TRIES = 100


class RouteError(OSError):
    """The kernel refused a request: its number, and its reason, which often says more than the number."""


def receive(sock: socket.socket) -> bytes:
    """The next datagram of a netlink socket; empty if it is not from the kernel, which has the port 0.

    Any program with CAP_NET_ADMIN in the namespace can send to the socket, also if this one is in another container.
    """
    data, (port, _) = sock.recvfrom(_RECEIVE_SIZE)
    return b"" if port else data


def receive_from(fd: int) -> bytes:
    """As `receive`, from a descriptor that is non-blocking and stays open."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, fileno=fd)
    try:
        return receive(sock)
    finally:
        sock.detach()


def with_addresses(link: Link, addresses: Iterable[AddressChange]) -> Link:
    """*link* with these addresses."""
    shown = [(str(each.address), each) for each in addresses]
    return replace(
        link,
        addresses=tuple(text for text, _ in shown),
        tentative=tuple(text for text, each in shown if each.tentative),
        duplicates=tuple(text for text, each in shown if each.duplicate),
    )


class RouteSocket:
    """Asks one question after the other, in one namespace; for use with ``with``, on a thread of its own.

    With NETLINK_GET_STRICT_CHK, Linux 4.20 and later, the kernel picks out addresses and routes by interface. Others
    send all of them, and they are picked out here.

    Raises:
        SetupError: The namespace cannot be entered, or there is no descriptor or memory left.
    """

    def __init__(self, netns: Namespace, groups: int = 0) -> None:
        enter(netns)
        #: That of the namespace in which the socket is.
        self.namespace: Identity = identity()
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        except OSError as error:
            raise cannot("open a netlink socket", error) from error
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                with contextlib.suppress(OSError):  # a kernel that has none of it
                    self._socket.setsockopt(_SOL_NETLINK, option, 1)
            self._socket.bind((0, groups))
        except OSError as error:
            self._socket.close()
            raise cannot("bind a netlink socket", error) from error

    def close(self) -> None:
        self._socket.close()

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on; non-blocking."""
        self._socket.setblocking(False)
        return self._socket.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- questions -----------------------------------------------------------------------------------------------------

    def link(self, *, index: int = 0, name: str | None = None) -> Link | None:
        """An interface and its addresses, by index or name; None when there is none."""
        return self.link_and_master(index, name)[1]

    def link_and_master(self, index: int = 0, name: str | None = None) -> tuple[int, Link | None]:
        """The index of its master, 0 for none, as well."""
        try:
            found = self._link(index=index, name=name)
            if found is None:
                return 0, None
            # A master that went meanwhile is no master any more.
            master = self._link(index=found.master) if found.master else None
        except RouteError as error:
            raise cannot(f"ask the kernel about interface {name or index!r}", error) from None
        link = replace(found.link, master=None if master is None else master.link.name)
        return found.master, with_addresses(link, self.addresses(link.index))

    def _link(self, *, index: int = 0, name: str | None = None) -> LinkChange | None:
        try:
            answers = self.ask(requests.get_link(index=index, name=name))
        except RouteError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return next((found for found in map(messages.decode_link, answers) if found is not None), None)

    def links(self) -> list[Link]:
        """All interfaces and their addresses, by index."""
        answers = map(messages.decode_link, self.dump(requests.dump_links()))
        found = [each for each in answers if each is not None]
        names = {each.link.index: each.link.name for each in found}
        addresses: dict[int, list[AddressChange]] = {}
        for address in self.addresses():
            addresses.setdefault(address.interface, []).append(address)
        return [
            with_addresses(replace(each.link, master=names.get(each.master)), addresses.get(each.link.index, ()))
            for each in found
        ]

    def addresses(self, index: int = 0) -> list[AddressChange]:
        """The addresses of one interface, or of all."""
        found = map(messages.decode_address, self.dump(requests.dump_addresses(index)))
        return [each for each in found if each is not None and index in (0, each.interface)]

    def routes(self, index: int, version: int) -> list[RouteEntry]:
        """The IPv4 or IPv6 unicast routes through an interface, in all tables."""
        answers = self.dump(requests.dump_routes(version, index))
        return [entry for answer in answers for entry in messages.decode_routes(answer) if entry.interface == index]

    # -- one request ---------------------------------------------------------------------------------------------------

    def dump(self, request: bytearray) -> list[Message]:
        """All messages of a dump, from the start again as long as the kernel says that the list changed under it.

        Raises:
            SetupError: It never held still, or the kernel refused.
        """
        for _ in range(_TRIES):
            try:
                answers = self.ask(request)
            except RouteError as error:
                # A kernel without IPv6 has no routes of it, and an interface that is gone has none, nor addresses.
                if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):
                    return []
                raise cannot("list interfaces, addresses or routes", error) from None
            if not any(answer.flags & messages.NLM_F_DUMP_INTR for answer in answers):
                return [answer for answer in answers if answer.type != messages.NLMSG_DONE]
        raise SetupError(
            errno.EINTR, "the kernel's list of interfaces, addresses or routes changes all the time: try again"
        )

    def ask(self, request: bytearray, ignore: int | None = None) -> list[Message]:
        """Sends a request and collects what is answered to it, NLMSG_DONE of a dump included.

        Raises:
            RouteError: The kernel refused, for another reason than the number to *ignore*.
            SetupError: There is no memory left for it.
        """
        self._sequence += 1
        requests.set_sequence(request, self._sequence)
        answers: list[Message] = []
        try:
            self._socket.sendto(request, (0, 0))
            while True:
                for message in messages.split(receive(self._socket)):
                    if message.sequence != self._sequence:
                        continue
                    if message.type not in (messages.NLMSG_DONE, messages.NLMSG_ERROR):
                        answers.append(message)
                        continue
                    number, reason = messages.error_of(message)
                    if number not in (0, ignore):
                        raise RouteError(number, reason)
                    return [*answers, message] if message.type == messages.NLMSG_DONE else answers
        except RouteError:
            raise
        except OSError as error:
            raise cannot("ask the kernel over netlink", error) from error


async def in_namespace(
    netns: Namespace,
    work: Callable[[RouteSocket], T],
    undo: Callable[[T], object] | None = None,
    *,
    groups: int = 0,
) -> T:
    """Runs *work* with a socket in *netns*, on a thread of its own, and waits for it to end in every case.

    Args:
        netns: Where.
        work: What to do there; the socket is closed afterwards, unless it was detached.
        undo: Takes back a result that nobody is left to receive.
        groups: Notifications that the socket is to receive.

    Raises:
        SetupError: The namespace cannot be entered, or there is no descriptor, memory or thread left.
    """

    def run() -> T:
        with RouteSocket(netns, groups) as route:
            return work(route)

    loop = asyncio.get_running_loop()
    turn = _turn(loop)
    await turn.acquire()
    try:
        return await run_in_thread(run, undo)
    finally:
        if not loop.is_closed():  # then nobody waits whom it could wake
            turn.release()


def _turn(loop: asyncio.AbstractEventLoop) -> asyncio.Lock:
    """One thread at a time asks for each loop: the kernel has one lock for all of it, and 300 threads would have the
    loop's own thread wait for that lock, and for the interpreter's, for seconds.
    """
    known = _turns.get(loop)
    turn = None if known is None else known()
    if turn is None:
        turn = asyncio.Lock()
        _turns[loop] = ref(turn)
    return turn


# Only those who wait keep a lock alive: it refers to its loop, which a table must not keep.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[asyncio.Lock]] = WeakKeyDictionary()
