"""One interface and its queues: opening, adding, removing, adopting, configuring."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import importlib
import os
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Self

from . import _abi, _engine
from ._arguments import check_count, check_fd, check_flags, check_transparent
from ._device import (
    AttachError,
    Opened,
    Options,
    QueueFile,
    close_all,
    index_of,
    open_queues,
    same_interface,
    set_sticky,
)
from ._errors import QueueClosedError, SetupError, TuntapError, cannot, cannot_poll, not_open
from ._frames import keep_freed_memory
from ._interface import Interface
from ._netns import Namespace, parse_namespace
from ._offload.flags import check as check_offload
from ._queue import TuntapQueue
from ._reader import READ_BUFFER, parse_read_buffer, raise_wrong_caller
from ._settings import Settings
from ._single import NoQueues, SingleQueue
from ._threads import collect, outlast, run_in_thread
from ._transparent import TransparentQueue
from ._types import Link, LinkEvent, Mode, Offload, Stats

if TYPE_CHECKING:
    from ._netlink.watch import Watcher


class AsyncTuntap(SingleQueue, Settings):
    """A TUN or TAP interface whose queues are asynchronous streams of frames.

    ::

        async with AsyncTuntap("vpn0", mode="tun", queues=2) as tun:
            await tun.configure(addresses=["10.0.0.1/24"], up=True)
            async for packet in tun.queues[0]:
                ...

    Opening creates the interface, or attaches to the existing one of that name. Unless it is persistent, the kernel
    deletes it when its last queue is closed. See tuntap.rst in the kernel's documentation.

    With a single queue, frames can be read and written here as well: the methods are those of `TuntapQueue`. Use it only
    in the event loop that opened it.

    Args:
        name: At most 15 bytes. Empty, or a template such as ``"vpn%d"``, lets the kernel choose.
        mode: ``"tun"`` (IP packets) or ``"tap"`` (Ethernet frames).
        queues: How many to open, at least 1; the kernel takes up to 256.
        multi_queue: Whether the interface can have several queues. It must match an existing interface.
        exclusive: Refuse to attach to an existing interface.
        packet_info: Frames begin with ``struct tun_pi``: 16 bits of flags and 16 bits of Ethernet protocol.
        vnet_header: Frames begin with the kernel's virtio_net_hdr (`VnetHeader`), of 10 bytes, or of 24 with the
            offloads for UDP tunnels. With offloads, frames are then super-frames of up to 64 KiB: the fast way for a
            switch.
        offload: What work on frames the kernel may leave to this program. Without ``vnet_header`` the offloads are
            transparent: the program reads and writes ordinary frames, which are segmented after reading and merged by
            `TuntapQueue.write_frames`.
        napi: Written frames pass through NAPI, and so through the kernel's receive offload.
        carrier: Whether the interface starts with a carrier.
        netns: Network namespace to open it in: a name as in ``ip netns``, or a path such as ``/proc/PID/ns/net``.
            The namespace of the calling thread does not change.
        read_buffer: Frames that are buffered in this program for each queue. When the buffer is full, reading from the
            kernel stops until it has fallen to a quarter, or to the second number of a pair ``(high, low)``. A buffer
            with 4 MiB is full as well.

    Raises:
        ValueError, TypeError: An argument is wrong. Nothing was opened.
    """

    def __init__(
        self,
        name: str = "",
        *,
        mode: Literal["tun", "tap"] | Mode,
        queues: int = 1,
        multi_queue: bool = True,
        exclusive: bool = False,
        packet_info: bool = False,
        vnet_header: bool = False,
        offload: Offload = Offload.NONE,
        napi: bool = False,
        carrier: bool = True,
        netns: str | os.PathLike[str] | None = None,
        read_buffer: int | tuple[int, int] = READ_BUFFER,
    ) -> None:
        self._queues: list[TuntapQueue] = []
        _abi.encode_name(name)
        mode = Mode(mode)
        check_count("queues", queues)
        check_flags(
            multi_queue=multi_queue,
            exclusive=exclusive,
            packet_info=packet_info,
            vnet_header=vnet_header,
            napi=napi,
            carrier=carrier,
        )
        if queues > 1 and not multi_queue:
            raise ValueError(f"queues must be 1 with multi_queue=False, not {queues}: use multi_queue=True")
        if not isinstance(offload, Offload):
            raise TypeError(f"offload must be flags such as Offload.CSUM | Offload.TSO4, not {offload!r}")
        check_offload(offload)
        self._count = queues
        self._read_buffer = parse_read_buffer(read_buffer)
        transparent = bool(offload) and not vnet_header
        if transparent:
            check_transparent(offload, packet_info)
        options = Options(mode, multi_queue, exclusive, packet_info, vnet_header, offload, napi, carrier, transparent)
        self._interface = Interface(name, options, None if netns is None else parse_namespace(netns))
        self._queue_type = TransparentQueue if transparent else TuntapQueue
        if transparent:
            _engine.warn_if_slow()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = self._pid = 0
        self._past = Stats()
        self._watchers: list[Watcher] = []
        #: A future for each opening and closing that is going on.
        self._under_way: set[asyncio.Future[None]] = set()

    # -- opening and closing -------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Opens the interface and its queues, and returns the object itself.

        When cancelled, or when it fails, nothing is left behind: no descriptor, no interface, no registration with the
        loop.

        Raises:
            SetupError: The device node, the namespace or the interface cannot be opened, or an existing interface does
                not match the arguments. ``errno`` is the kernel's, and the message says how to fix it. It is a
                PermissionError too if a privilege is missing.
            RuntimeError: It was opened or closed before.
        """
        if self._loop is not None:
            raise RuntimeError(f"interface {self._interface.last_name!r} was opened before: make a new AsyncTuntap")
        if self._interface.closed:
            raise RuntimeError(
                f"interface {self._interface.last_name!r} was closed before it was opened: make a new AsyncTuntap"
            )
        self._begin()
        try:
            await self._add(self._count)
        except BaseException:
            if self._queues:  # interrupted just after they were opened
                self._abandon(self._queues)
                self._interface.opened = False
            self._loop = None
            raise
        return self

    @classmethod
    async def adopt(
        cls,
        fds: Sequence[int],
        *,
        multi_queue: bool | None = None,
        packet_info: bool = False,
        vnet_header: bool | None = None,
        offload: Offload | None = None,
        netns: str | os.PathLike[str] | None = None,
        read_buffer: int | tuple[int, int] = READ_BUFFER,
    ) -> Self:
        """Takes ownership of descriptors that are attached already: inherited, or received over a Unix socket.

        The kernel tells their interface and its mode. The descriptors are made non-blocking and close-on-exec.

        Args:
            fds: At least one descriptor; all must be queues of one interface. They belong to the new object from now
                on. If adopting fails, they still belong to the caller, and are attached as before.
            multi_queue: As the interface has it. None asks the kernel, and another value must match.
            packet_info: As the interface has it. The kernel cannot always tell.
            vnet_header: As ``multi_queue``. False with ``offload`` makes the offloads transparent.
            offload: Offloads to set. None leaves them as they are.
            netns: The namespace of the interface, for a process without CAP_NET_ADMIN in it.
            read_buffer: As for the constructor.

        Raises:
            SetupError: A descriptor is not an attached TUN/TAP queue, they belong to different interfaces, or the
                interface does not match the arguments.
            ValueError, TypeError: An argument is wrong.
        """
        if not isinstance(fds, Iterable) or isinstance(fds, (str, bytes)):
            raise TypeError(f"fds must be a list of descriptors, not {fds!r}")
        files = [QueueFile(check_fd("descriptor", fd)) for fd in fds]
        if not files:
            raise ValueError("fds must have at least one descriptor")
        if len({file.fd for file in files}) != len(files):
            raise ValueError(f"fds must not have a descriptor twice, as in {[file.fd for file in files]}")
        described = [_identify(file) for file in files]
        name, flags = described[0]
        if not all(same_interface(file, files[0]) for file in files):
            names = ", ".join(repr(each.name) for each in described)
            raise SetupError(errno.EINVAL, f"the descriptors must belong to one interface, not to several: {names}")
        self = cls(
            name,
            mode=Mode.TUN if flags & _abi.IFF_TUN else Mode.TAP,
            multi_queue=bool(flags & _abi.IFF_MULTI_QUEUE) if multi_queue is None else multi_queue,
            packet_info=packet_info,
            vnet_header=bool(flags & _abi.IFF_VNET_HDR) if vnet_header is None else vnet_header,
            offload=Offload.NONE if offload is None else offload,
            netns=netns,
            read_buffer=read_buffer,
        )
        interface = self._interface
        try:
            place = files[0].open_netns()
        except OSError as error:
            raise cannot(f"open the network namespace of {name!r}", error) from error
        try:
            where = interface.netns if place is None else place
            diagnosis = await _import("_netlink.diagnosis")
            await diagnosis.check_headers(name, interface.options, where)
            if offload is not None:
                interface.options = replace(interface.options, offload=set_sticky(files[0], interface.options))
            index = await run_in_thread(lambda: index_of(name, where))
        finally:
            if place is not None:
                os.close(place)
        for file in files:
            os.set_blocking(file.fd, False)
            os.set_inheritable(file.fd, False)
        self._begin()
        self._register(files, name, index)
        return self

    def _begin(self) -> None:
        """From now on the interface belongs to this loop and this thread."""
        self._loop, self._thread, self._pid = asyncio.get_running_loop(), threading.get_ident(), os.getpid()

    async def aclose(self) -> None:
        """Closes every queue. On return the interface is deleted, unless it is persistent or another program has it open.

        Closing twice is harmless. Tasks that wait on a queue get QueueClosedError. When cancelled, it still closes
        everything before it ends.

        Raises:
            RuntimeError: Called from another thread or event loop than the one that the interface belongs to.
        """
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is not None and self._loop is not running:
            if running is not None and not self._loop.is_closed():
                self._wrong_caller()
            # Its own loop was closed with this interface open, and now the coroutine that used it is being closed.
            self._close_at_once()
            return
        self._end()
        cancelled = None
        try:
            if self._queues:
                await self._close_queues(self._queues)
        except asyncio.CancelledError as error:
            cancelled = error
        finally:
            while self._under_way:
                cancelled = await outlast(next(iter(self._under_way))) or cancelled
        if cancelled is not None:
            raise cancelled

    def _end(self) -> None:
        """Nothing can be done with the interface from now on, and nobody waits for what changes on it any more."""
        self._interface.closed = True
        for watcher in self._watchers:
            watcher.end()

    async def __aenter__(self) -> Self:
        return self if self._queues else await self.open()  # an adopted interface is open already

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        queues = getattr(self, "_queues", None)
        if not queues:
            return
        assert self._loop is not None
        collect(self, self._loop, self._thread, self._pid, lambda: self._abandon(queues))

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._queues)} queues"
        return f"<AsyncTuntap {self._interface.last_name!r} {self.mode} {state}>"

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name that the kernel has now, also after a rename. Before opening the one asked for, at the end the last one."""
        return self._interface.name

    @property
    def mode(self) -> Mode:
        """TUN or TAP."""
        return self._interface.options.mode

    @property
    def index(self) -> int:
        """The index that the interface has in its namespace; 0 if it is unknown.

        It is read when queues are opened, and by `configure`, `link` and `watch`.

        Raises:
            RuntimeError: The interface is not open yet.
        """
        if self._interface.index is None:
            raise not_open(f"interface {self._interface.last_name!r}")
        return self._interface.index

    @property
    def netns(self) -> str | None:
        """The namespace it was opened in, or that `configure` moved it to; None for that of the opening thread."""
        return self._interface.netns

    @property
    def offload(self) -> Offload:
        """The offloads that are on; before opening, those asked for; after `adopt` without ``offload``, none."""
        return self._interface.options.offload

    @property
    def queues(self) -> tuple[TuntapQueue, ...]:
        """The open queues, including disabled ones, in the order they were opened."""
        return tuple(self._queues) or NoQueues(self._why_none)

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._interface.closed

    @property
    def stats(self) -> Stats:
        """The sum over all queues, closed ones included."""
        return sum((queue.stats for queue in self._queues), self._past)

    # -- queues --------------------------------------------------------------------------------------------------------

    async def add_queues(self, count: int = 1) -> list[TuntapQueue]:
        """Opens *count* more queues, all or none, and returns them.

        They belong to the same interface, also if it was renamed or moved to another namespace. When cancelled, or when
        it fails, everything is as before.

        Raises:
            SetupError: The device node, the namespace or the interface cannot be opened; E2BIG for more than 256 queues.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface was closed by this program, before or while this waited.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
            ValueError: *count* is less than 1, or the interface was opened with ``multi_queue=False``.
        """
        check_count("count", count)
        self._check_open()
        if self._queues and not self._interface.options.multi_queue:
            raise ValueError(
                f"interface {self._interface.last_name!r} can have one queue only, because it was opened with"
                " multi_queue=False"
            )
        return await self._add(count)

    async def remove_queues(self, *queues: TuntapQueue) -> None:
        """Closes these queues. The kernel gives their flows to the queues that remain.

        Each queue is unregistered from the loop, tasks that wait on it get QueueClosedError, and then it is closed, on
        another thread: the last close of an interface takes the kernel 14 to 55 ms. When cancelled, it still closes all
        of them before it ends. If closing one fails, the others are closed nevertheless.

        Raises:
            ValueError: A queue is closed already, is not a queue of this interface, or is given twice. None was closed.
            TypeError: One of the arguments is not a TuntapQueue. None was closed.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
        """
        self._check_loop()
        for queue in queues:
            if not isinstance(queue, TuntapQueue):
                raise TypeError(f"{queue!r} is not a TuntapQueue, so no queue was removed")
            if queue not in self._queues:
                reason = "closed already" if queue.closed else f"not a queue of {self._interface.name!r}"
                raise ValueError(f"{queue!r} is {reason}, so no queue was removed")
        if len(set(queues)) != len(queues):
            raise ValueError("a queue was given twice, so no queue was removed")
        if queues:
            await self._close_queues(queues)

    async def _add(self, count: int) -> list[TuntapQueue]:
        first = not self._queues
        with self._busy(), self._interface.where() as (name, netns):
            exclusive = first and self._interface.options.exclusive
            opened = await self._open_queues(name, count, netns, exclusive=exclusive)
            try:
                if first:
                    await self._settle_in(opened, netns)
                if self.closed:
                    raise QueueClosedError(f"interface {opened.name!r} was closed while queues were opened")
                if not first:
                    self._check_same(opened)
                return self._register(opened.files, opened.name, opened.index)
            except BaseException:
                await run_in_thread(lambda: close_all(opened.files), or_here=True)
                raise

    async def _open_queues(self, name: str, count: int, netns: Namespace, *, exclusive: bool) -> Opened:
        options = replace(self._interface.options, exclusive=exclusive)
        try:
            return await run_in_thread(
                lambda: open_queues(name, count, options, netns), undo=lambda opened: close_all(opened.files)
            )
        except AttachError as error:
            diagnosis = await _import("_netlink.diagnosis")
            raise (await diagnosis.explain(error, options, netns)) from error.cause

    async def _settle_in(self, opened: Opened, netns: Namespace) -> None:
        """Checks that an existing interface matches, and then makes the settings that belong to the interface."""
        interface = self._interface
        if not opened.created:
            diagnosis = await _import("_netlink.diagnosis")
            await diagnosis.check_headers(opened.name, interface.options, netns, mine=opened.files)
        interface.options = replace(interface.options, offload=set_sticky(opened.files[0], interface.options))

    def _check_same(self, opened: Opened) -> None:
        """The interface may have been renamed, moved or deleted between reading its name and attaching by that name."""
        files = self._interface.files
        if opened.created or not files or not same_interface(opened.files[0], files[0]):
            with self._interface.where():  # raises DeviceGoneError
                pass
            raise SetupError(
                errno.EAGAIN, f"interface {self.name!r} was renamed or moved while queues were added: try again"
            )

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """A context in which `aclose` has to wait."""
        over = asyncio.get_running_loop().create_future()
        self._under_way.add(over)
        try:
            yield
        finally:
            self._under_way.discard(over)
            if not over.done() and not over.get_loop().is_closed():
                over.set_result(None)

    def _register(self, files: Sequence[QueueFile], name: str, index: int) -> list[TuntapQueue]:
        """Makes queues of attached files. If it fails, the caller has to close the files."""
        loop, interface = asyncio.get_running_loop(), self._interface
        if interface.options.offload:
            keep_freed_memory()
        # What takes memory comes before the first registration: without it, one would stay that nobody can remove.
        added = [self._queue_type(self, interface, file, loop, self._read_buffer) for file in files]
        all_files, all_queues = [*interface.files, *files], [*self._queues, *added]
        try:
            for queue in added:
                queue._resume()
            interface.restore(files[0])
        except BaseException as error:
            for queue in added:
                queue._release()
            if isinstance(error, OSError) and not isinstance(error, TuntapError):
                raise cannot_poll(f"a queue of {name!r}", error) from error
            raise
        interface.last_name, interface.index, interface.opened = name, index, True
        interface.files, self._queues = all_files, all_queues
        return added

    async def _close_queues(self, queues: Sequence[TuntapQueue]) -> None:
        files = self._release(queues)
        with self._busy():
            await run_in_thread(lambda: close_all(files), or_here=True)

    def _release(self, queues: Sequence[TuntapQueue]) -> list[QueueFile]:
        """Ends queues. The caller has to close their files."""
        interface = self._interface
        interface.last_name = interface.name  # the last chance to ask for it
        leaving = set(queues)
        self._queues = [queue for queue in self._queues if queue not in leaving]
        self._past = sum((queue.stats for queue in leaving), self._past)
        files = [queue._release() for queue in queues]
        interface.files = [file for file in interface.files if file not in files]
        return files

    def _close_at_once(self) -> None:
        """`aclose` where it is impossible to wait for a thread."""
        self._end()
        self._abandon(self._queues)

    def _abandon(self, queues: Sequence[TuntapQueue]) -> None:
        """Closes queues at once, where it is impossible to wait for a thread."""
        close_all(self._release(queues))

    def _check_open(self) -> None:
        self._interface.check_open()
        self._check_loop()

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            self._wrong_caller()

    def _wrong_caller(self) -> NoReturn:
        if self._loop is None:
            raise not_open(f"interface {self._interface.last_name!r}")
        raise_wrong_caller(self._loop, self._thread, f"interface {self._interface.last_name!r}")

    # -- settings ------------------------------------------------------------------------------------------------------

    async def configure(
        self,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        addresses: Sequence[str] | None = None,
        routes: Sequence[str] | None = None,
        replace: bool = False,
        ipv6: bool | None = None,
        master: str | None = None,
        txqueuelen: int | None = None,
        name: str | None = None,
        netns: str | os.PathLike[str] | None = None,
    ) -> None:
        """Changes the given settings, over rtnetlink, in the namespace that the interface is in now.

        It reads the present settings first, and changes only what differs, so no privilege is needed if nothing does.
        The order is: the namespace, down, the name, MTU, MAC and queue length, the master, IPv6, addresses, up, routes.
        If one setting fails, those before it stay changed. When cancelled, it still makes all settings before it ends.

        Args:
            up: Administrative state.
            mtu: In bytes: 68 to 65535 (TUN) or 65521 (TAP).
            mac: As ``"02:00:00:00:00:01"``; TAP only.
            addresses: Addresses that the interface must have, written as for ``ip address``, without ``dev``:
                ``"10.0.0.1/24"``, ``"10.0.0.1 peer 10.0.0.2/32"``, ``"fd00::1/64 nodad"``. After the address may follow
                ``peer``, ``broadcast``, ``scope``, ``metric``, ``nodad`` and ``noprefixroute``. If the interface has
                the address, but one of these that the entry names differs, the address is removed and added again.
            routes: Routes that the interface must have, written as for ``ip route``, without ``dev``:
                ``"10.1.0.0/16"``, ``"default via 10.0.0.254"``, ``"fd00:1::/64 via fd00::2 metric 50 table 51820"``.
                After the destination may follow ``via``, ``src``, ``metric``, ``table``, ``mtu``, ``scope`` and
                ``onlink``. ``default`` is the IPv6 default route if an IPv6 address follows. A table is a number, or
                ``main``, ``local`` or ``default``. If there is such a route, but one of these that the entry names
                differs, the route is removed and added again.
            replace: Removes all other addresses and routes of this interface, in every routing table. *addresses* or
                *routes* that are None are not changed, and ``[]`` removes all. What the kernel makes by itself stays:
                IPv6 link-local addresses, what router advertisements and redirects bring, and the routes that belong
                to an address. An IPv4 route with several gateways stays, too, and so do routes that are not of the type
                unicast, or are for packets from some sources only (``from``).
            ipv6: False turns IPv6 off on this interface: it loses its IPv6 addresses and routes, and the kernel sends
                no router solicitations, neighbour discovery or multicast reports by itself. True turns it on again. With an
                MTU below 1280 there is no IPv6, and the kernel forgets this setting: give it again with a larger MTU.
            master: Name of the bridge, or other interface, to become a port of; ``""`` to leave it.
            txqueuelen: Frames that the kernel keeps for each queue until they are read. More are dropped. The largest
                number is 524288, or 32767 on newer kernels.
            name: A new name. Kernels before 6.2 take it only while the interface is down.
            netns: Namespace to move to, by name or path. The queues still work. When it moves, the interface goes down and
                loses its addresses and routes.

        Raises:
            SetupError: The kernel refused. The message names the setting, the interface and the reason.
            ValueError, TypeError: An argument is invalid. Nothing was changed.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: It was closed here.
        """
        self._check_open()
        configuring = await _import("_netlink.configure")
        settings = configuring.Configuration(
            up=up,
            mtu=mtu,
            mac=mac,
            addresses=addresses,
            routes=routes,
            replace=replace,
            ipv6=ipv6,
            master=master,
            txqueuelen=txqueuelen,
            name=name,
            netns=netns,
        )
        interface = self._interface
        try:
            interface.index = await configuring.configure(interface.where, interface.index or 0, settings)
        finally:
            if settings.has_moved:
                interface.netns = settings.netns

    async def link(self) -> Link:
        """The interface as the kernel describes it now.

        When cancelled, it ends after the kernel has answered.

        Raises:
            DeviceGoneError: It was deleted.
            SetupError: The kernel refused, or this process has no descriptors left.
            QueueClosedError: It was closed here.
        """
        self._check_open()
        links = await _import("_netlink.link")
        link: Link = await links.look(self._interface.where, self._interface.index or 0)
        self._interface.index = link.index
        return link

    async def ready(self) -> None:
        """Waits until the interface is up and every address can be used.

        An IPv6 address is tentative until the kernel has asked whether another machine on the link has it, which takes
        about a second, and begins when the interface is up and has a carrier. If the interface is down, this waits, and
        logs that once. IPv4 addresses can be used at once. Cancelling changes nothing.

        Raises:
            SetupError: Another machine on the link has one of the addresses (EADDRINUSE); or the kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: It was closed here.
        """
        self._check_open()
        with self._watching(await _import("_netlink.watch")) as (watching, watcher):
            index = await watching.until_ready(watcher, self._interface.where, self._interface.index or 0)
            self._check_open()  # closing ends the wait
            self._interface.index = index

    async def watch(self) -> AsyncGenerator[LinkEvent, None]:
        """Yields each change of the interface from now on, in order, also after it moved to another namespace.

        It ends after DELETED, or when the interface is closed here. Several tasks may watch: each gets every event. To
        stop earlier, close the generator: ``async with contextlib.aclosing(tun.watch()) as events``.

        If a task does not read its events, 64 of the kernel's notifications are kept for it. When there are more, or
        when the program is too slow for the kernel, a change that was undone meanwhile may be missing. The state in the
        next event is right nevertheless.

        Raises:
            SetupError: The kernel refused, or this process has no descriptors left.
            DeviceGoneError: The interface was deleted before watching began.
            QueueClosedError: The interface was closed here before watching began.
        """
        self._check_open()
        with self._watching(await _import("_netlink.watch")) as (watching, watcher):
            async with aclosing(watching.events(watcher, self._interface.where, self._interface.index or 0)) as events:
                async for event in events:
                    self._interface.index = event.link.index
                    yield event

    @contextmanager
    def _watching(self, watching: ModuleType) -> Iterator[tuple[ModuleType, Watcher]]:
        """A new watcher, which ends when the interface is closed here."""
        watcher: Watcher = watching.Watcher()
        self._watchers.append(watcher)
        if self.closed:  # meanwhile
            watcher.end()
        try:
            yield watching, watcher
        finally:
            self._watchers.remove(watcher)


async def _import(module: str) -> ModuleType:
    """Imports a module that needs pyroute2, on a thread, because that takes long.

    Raises:
        SetupError: Its files cannot be read, for example because there is no descriptor left.
    """
    return await run_in_thread(lambda: _import_here(f"{__package__}.{module}"))


def _import_here(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except OSError as error:
        raise cannot(f"import {name}", error) from error


def _identify(file: QueueFile) -> _abi.Ifreq:
    try:
        if fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise SetupError(errno.EBADF, f"descriptor {file.fd} must be open for both reading and writing")
        return file.get_ifreq()
    except SetupError:
        raise
    except OSError as error:
        raise SetupError(
            error.errno, f"descriptor {file.fd} is not a queue attached to a TUN/TAP interface: {error.strerror}"
        ) from error
