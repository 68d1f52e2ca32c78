"""One interface and its queues: opening, adding, removing, adopting, settings."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import grp
import importlib
import os
import pwd
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from . import _abi, _engine
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
from ._errors import QueueClosedError, SetupError, cannot
from ._frames import keep_freed_memory
from ._interface import Interface
from ._netns import Namespace, parse_namespace
from ._offload.flags import check as check_offload
from ._queue import TuntapQueue
from ._reader import READ_BUFFER, parse_read_buffer, raise_wrong_caller
from ._threads import collect, outlast, run_in_thread
from ._transparent import TransparentQueue
from ._types import Link, LinkEvent, Mode, Offload, Owning, Stats

if TYPE_CHECKING:
    from ._netlink.watch import Watcher


class AsyncTuntap(Owning):
    """A TUN or TAP interface whose queues are asynchronous streams of frames.

    ::

        async with AsyncTuntap("vpn0", mode="tun", queues=2) as tun:
            await tun.configure(addresses=["10.0.0.1/24"], up=True)
            async for packet in tun.queues[0]:
                ...

    Opening creates the interface, or attaches to the existing one of that name. Unless it is persistent, the kernel
    removes it when its last queue is closed. See tuntap.rst in the kernel's documentation.

    Args:
        name: At most 15 bytes. Empty, or a template such as ``"vpn%d"``, lets the kernel choose.
        mode: ``"tun"`` (IP packets) or ``"tap"`` (Ethernet frames).
        queues: How many to open, at least 1; the kernel takes up to 256.
        multi_queue: Whether there can be more than one. Must match an existing interface.
        exclusive: Refuse to attach to an existing interface.
        packet_info: Frames carry ``struct tun_pi`` in front: 16 bits of flags, 16 bits of Ethernet protocol.
        vnet_header: Frames carry the kernel's virtio_net_hdr in front (`VnetHeader`), of 10 bytes, or of 24 with the
            offloads for UDP tunnels. With offloads, one frame is then up to 64 KiB: the fast way for a switch.
        offload: What the kernel may leave undone in frames that it hands out. Without ``vnet_header`` this is
            transparent: frames are ordinary ones, segmented after reading and merged in `TuntapQueue.write_frames`.
        napi: Frames written pass through NAPI, and so through receive offload.
        carrier: Whether the interface starts with a carrier.
        netns: Network namespace to open it in: a name as in ``ip netns``, or a path such as ``/proc/PID/ns/net``.
            The calling thread stays where it is.
        read_buffer: Frames that are kept in user space for each queue: a full buffer stops reading, and reading
            resumes when it has fallen to a quarter, or to the second number of a pair ``(high, low)``. A buffer that
            holds 4 MiB is full as well.

    Raises:
        ValueError, TypeError: An argument makes no sense by itself. Nothing was opened.
    """

    def __init__(
        self,
        name: str = "",
        *,
        mode: Mode | str,
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
        try:
            mode = Mode(mode)
        except ValueError:
            raise ValueError(f"mode {mode!r}: 'tun' or 'tap'") from None
        _check_count("queues", queues)
        if queues > 1 and not multi_queue:
            raise ValueError(f"queues={queues} with multi_queue=False: more than one queue takes multi_queue=True")
        if not isinstance(offload, Offload):
            raise TypeError(f"offload {offload!r}: flags such as Offload.CSUM | Offload.TSO4")
        check_offload(offload)
        self._count = queues
        self._read_buffer = parse_read_buffer(read_buffer)
        transparent = bool(offload) and not vnet_header
        if transparent:
            _check_transparent(offload, packet_info)
        options = Options(mode, multi_queue, exclusive, packet_info, vnet_header, offload, napi, carrier, transparent)
        self._interface = Interface(name, options, None if netns is None else parse_namespace(netns))
        self._queue_type = TransparentQueue if transparent else TuntapQueue
        if transparent:
            _engine.warn_if_slow()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = self._pid = 0
        self._past = Stats()
        self._watchers: list[Watcher] = []
        #: One for each opening and closing that is going on.
        self._under_way: set[asyncio.Future[None]] = set()

    # -- opening and closing -------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Opens the queues asked for and returns the object itself.

        Cancelled or failed, it leaves nothing behind: no descriptor, no interface, no registration with the loop.

        Raises:
            SetupError: The node, the namespace or the interface cannot be had, or an existing interface does not match
                what was asked for. ``errno`` is the kernel's; the message says how to fix it. Also a PermissionError
                where that is what it is.
        """
        if self._loop is not None:
            raise RuntimeError("this AsyncTuntap was opened before: make a new one")
        if self._interface.closed:
            raise RuntimeError("this AsyncTuntap was closed before it was opened: make a new one")
        self._begin()
        try:
            await self._add(self._count)
        except BaseException:
            self._loop = None
            raise
        return self

    @classmethod
    async def adopt(cls, fds: Sequence[int], **options: Any) -> Self:
        """Takes over descriptors that are attached already: inherited, or received over a Unix socket.

        The kernel says which interface they belong to and in which mode. They are made non-blocking and close-on-exec.

        Args:
            fds: At least one, all queues of one interface. They belong to the new object from now on; when adopting
                fails they are still the caller's, and attached as they were.
            **options: ``read_buffer`` and ``netns`` as for the constructor. ``packet_info``, ``vnet_header`` and
                ``multi_queue`` must match the interface; the kernel cannot always tell about the first. ``offload``
                sets the offloads anew; without it they stay as they are.

        Raises:
            SetupError: A descriptor is not an attached TUN/TAP queue, or they belong to different interfaces.
        """
        files = [QueueFile(_check_fd(fd)) for fd in fds]
        if not files:
            raise ValueError("fds: at least one descriptor")
        if len({file.fd for file in files}) != len(files):
            raise ValueError(f"fds {[file.fd for file in files]}: each descriptor once")
        for forbidden in ("name", "mode", "queues", "exclusive", "napi", "carrier"):
            if forbidden in options:
                raise TypeError(f"{forbidden}: an adopted interface has its own")
        described = [_identify(file) for file in files]
        name, flags = described[0]
        if not all(same_interface(file, files[0]) for file in files):
            raise SetupError(errno.EINVAL, f"the descriptors belong to different interfaces, {name!r} among them")
        multi_queue = bool(flags & _abi.IFF_MULTI_QUEUE)
        self = cls(
            name,
            mode=Mode.TUN if flags & _abi.IFF_TUN else Mode.TAP,
            **{"multi_queue": multi_queue, "vnet_header": bool(flags & _abi.IFF_VNET_HDR), **options},
        )
        interface = self._interface
        try:
            netns = files[0].open_netns()
        except OSError as error:
            raise cannot(f"tell which namespace {name!r} is in", error) from error
        try:
            where = interface.netns if netns is None else netns
            diagnosis = await _import("_netlink.diagnosis")
            await diagnosis.check_headers(name, interface.options, where)
            if "offload" in options:
                interface.options = replace(interface.options, offload=set_sticky(files[0], interface.options))
            index = await run_in_thread(lambda: index_of(name, where))
        finally:
            if netns is not None:
                os.close(netns)
        for file in files:
            os.set_blocking(file.fd, False)
            os.set_inheritable(file.fd, False)
        self._begin()
        self._register(files, name, index)
        return self

    def _begin(self) -> None:
        """From here on the interface belongs to the loop and the thread that run now."""
        self._loop, self._thread, self._pid = asyncio.get_running_loop(), threading.get_ident(), os.getpid()

    async def aclose(self) -> None:
        """Closes every queue. Unless it is persistent or held elsewhere, the interface is gone on return.

        Closing twice is harmless. Who waits on a queue gets QueueClosedError. Cancelling delays until all is closed.
        """
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is not None and self._loop is not running:
            if running is not None and not self._loop.is_closed():
                self._wrong_caller()
            # Its own loop ended with this interface open, and now the coroutine that used it is thrown away.
            self._interface.closed = True
            queues, self._queues = self._queues, []
            self._abandon(queues)
            return
        self._interface.closed = True
        for watcher in self._watchers:
            watcher.end()
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

    async def __aenter__(self) -> Self:
        return self if self._queues else await self.open()  # an adopted one is open already

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
        """The name that the kernel has now, after a rename too. As asked for before opening, the last one when gone."""
        return self._interface.name

    @property
    def mode(self) -> Mode:
        """TUN or TAP."""
        return self._interface.options.mode

    @property
    def index(self) -> int:
        """The interface's number in its namespace when that was last looked at; 0 if it could not be told.

        Opening queues looks at it, and so do `configure`, `link` and `watch`.
        """
        if self._interface.index is None:
            raise RuntimeError("the interface is not open yet: its index is not known")
        return self._interface.index

    @property
    def netns(self) -> str | None:
        """The namespace given when it was made, or that `configure` moved it to; None for that of the opening thread."""
        return self._interface.netns

    @property
    def offload(self) -> Offload:
        """The offloads that are on, or before opening, those asked for. An adopted interface is not asked for them."""
        return self._interface.options.offload

    @property
    def queues(self) -> tuple[TuntapQueue, ...]:
        """The open queues, disabled ones included, in the order they were opened."""
        return tuple(self._queues)

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

        They land on the same interface even after it was renamed or moved to another namespace. Cancelled or failed,
        it leaves everything as it was.

        Raises:
            SetupError: The node, the namespace or the interface cannot be had; E2BIG for more than 256 queues.
            DeviceGoneError: The interface was deleted.
        """
        _check_count("count", count)
        self._check_open()
        if self._queues and not self._interface.options.multi_queue:
            raise ValueError("add_queues takes an interface opened with multi_queue=True")
        return await self._add(count)

    async def remove_queues(self, *queues: TuntapQueue) -> None:
        """Closes these queues. The kernel hands their flows to those that are left.

        Each is unregistered from the loop, who waits on it gets QueueClosedError, and only then is it closed: on
        another thread, since the last close of an interface takes the kernel 14 to 55 ms. Cancelling delays until all
        are closed. Should one fail to close, the others are closed all the same.

        Raises:
            ValueError: A queue is closed already, is not one of this interface, or is named twice. None was closed.
        """
        self._check_loop()
        for queue in queues:
            if not isinstance(queue, TuntapQueue):
                raise TypeError(f"{queue!r} is not a TuntapQueue: nothing was removed")
            if queue not in self._queues:
                reason = "closed already" if queue.closed else "a queue of another interface"
                raise ValueError(f"{queue!r} is {reason}: nothing was removed")
        if len(set(queues)) != len(queues):
            raise ValueError("a queue is named twice: nothing was removed")
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
                    raise QueueClosedError(f"interface {opened.name!r} was closed while queues were being added")
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
        """Sets what outlives other programs, once it is sure that the interface is as this one wants it."""
        interface = self._interface
        if not opened.created:
            diagnosis = await _import("_netlink.diagnosis")
            await diagnosis.check_headers(opened.name, interface.options, netns, mine=opened.files)
        interface.options = replace(interface.options, offload=set_sticky(opened.files[0], interface.options))

    def _check_same(self, opened: Opened) -> None:
        """Between the look at the name and attaching by it, the interface may have been renamed, moved or deleted."""
        files = self._interface.files
        if opened.created or not files or not same_interface(opened.files[0], files[0]):
            with self._interface.where():  # which raises when it is gone
                pass
            raise SetupError(errno.EAGAIN, f"interface {self.name!r} was renamed or moved meanwhile: try again")

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Something is going on that `aclose` has to wait for."""
        over = asyncio.get_running_loop().create_future()
        self._under_way.add(over)
        try:
            yield
        finally:
            self._under_way.discard(over)
            if not over.done() and not over.get_loop().is_closed():
                over.set_result(None)

    def _register(self, files: Sequence[QueueFile], name: str, index: int) -> list[TuntapQueue]:
        """Makes queues of attached files. When it fails, the files are still the caller's to close."""
        loop, interface = asyncio.get_running_loop(), self._interface
        if interface.options.offload:
            keep_freed_memory()
        added: list[TuntapQueue] = []
        try:
            for file in files:
                added.append(self._queue_type(self, interface, file, loop, self._read_buffer))
            interface.restore(files[0])
        except BaseException:
            for queue in added:
                queue._release()
            raise
        interface.last_name, interface.index, interface.opened = name, index, True
        interface.files += files
        self._queues += added
        return added

    async def _close_queues(self, queues: Sequence[TuntapQueue]) -> None:
        files = self._release(queues)
        with self._busy():
            await run_in_thread(lambda: close_all(files), or_here=True)

    def _release(self, queues: Sequence[TuntapQueue]) -> list[QueueFile]:
        """Takes queues out of service. Their files are the caller's to close."""
        interface = self._interface
        interface.last_name = interface.name  # the last chance to ask for it
        leaving = set(queues)
        self._queues = [queue for queue in self._queues if queue not in leaving]
        self._past = sum((queue.stats for queue in leaving), self._past)
        files = [queue._release() for queue in queues]
        interface.files = [file for file in interface.files if file not in files]
        return files

    def _abandon(self, queues: Sequence[TuntapQueue]) -> None:
        """Closes queues here and now, where nobody can wait for a thread."""
        close_all(self._release(queues))

    def _check_open(self) -> None:
        self._interface.check_open()
        self._check_loop()

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            self._wrong_caller()

    def _wrong_caller(self) -> NoReturn:
        assert self._loop is not None
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
        master: str | None = None,
        txqueuelen: int | None = None,
        name: str | None = None,
        netns: str | os.PathLike[str] | None = None,
    ) -> None:
        """Changes what is given and differs, and nothing else, over rtnetlink, in the namespace the interface is in now.

        What is so already takes no privilege. Failed, settings made before stay made; cancelled, it ends when the
        kernel has carried out what was asked. They are made in this order: the namespace, down, the
        name, MTU, MAC and queue length, the master, addresses, up, routes.

        Args:
            up: Administrative state.
            mtu: In bytes: 68 to 65535 (TUN) or 65521 (TAP).
            mac: As ``"02:00:00:00:00:01"``; TAP only.
            addresses: To be there, as ``"10.0.0.1/24"`` or ``"fd00::1/64"``; one that is there already is no error,
                and none is removed.
            routes: To be there, as ``ip route`` writes them: ``"10.1.0.0/16"``, ``"default via 10.0.0.254"``,
                ``"fd00:1::/64 via fd00::2 metric 50"``. None is removed.
            master: Name of the bridge, or other interface, to become a port of; ``""`` to leave it.
            txqueuelen: Frames that the kernel keeps for each queue until they are read. More are dropped.
            name: A new name. Kernels before 6.2 take it only while the interface is down.
            netns: Namespace to move to, by name or path. Queues go on working. On the way the interface goes down and
                loses its addresses and routes.

        Raises:
            SetupError: The kernel refused; names the setting, the interface and the reason.
            ValueError, TypeError: A value makes no sense by itself. Nothing was changed.
            DeviceGoneError: The interface was deleted.
        """
        self._check_open()
        configuring = await _import("_netlink.configure")
        settings = configuring.Settings(
            up=up,
            mtu=mtu,
            mac=mac,
            addresses=addresses,
            routes=routes,
            master=master,
            txqueuelen=txqueuelen,
            name=name,
            netns=netns,
        )
        interface = self._interface
        interface.index = await configuring.configure(interface.where, interface.index or 0, settings)
        if settings.netns is not None:
            interface.netns = settings.netns

    async def link(self) -> Link:
        """The interface as the kernel describes it now.

        Raises:
            DeviceGoneError: It was deleted.
            SetupError: The kernel refused, or this process has no descriptors left.
        """
        self._check_open()
        links = await _import("_netlink.link")
        link: Link = await links.look(self._interface.where, self._interface.index or 0)
        self._interface.index = link.index
        return link

    async def watch(self) -> AsyncIterator[LinkEvent]:
        """What changes on the interface from now on, in order, in whichever namespace it is.

        Ends after DELETED, or when the interface is closed here. Several may watch at once: each gets every event.
        Something that changes forth and back between two looks of a program that was too slow for the kernel may be
        missed, and so may what happens while 64 notifications wait for a program that does not read its events; the
        state in the next event is right all the same.

        Raises:
            SetupError: The kernel refused, or this process has no descriptors left.
            QueueClosedError: The interface was closed here before watching began.
        """
        self._check_open()
        watching = await _import("_netlink.watch")
        if self.closed:  # meanwhile
            return
        watcher = watching.Watcher()
        self._watchers.append(watcher)
        try:
            async with aclosing(watching.events(watcher, self._interface.where, self._interface.index or 0)) as events:
                async for event in events:
                    self._interface.index = event.link.index
                    yield event
        finally:
            self._watchers.remove(watcher)

    async def set_persist(self, persist: bool) -> None:
        """Whether the interface outlives its last queue.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: It was closed here.
        """
        self._set("persist", persist, lambda file: file.set_value(_abi.TUNSETPERSIST, int(persist)))

    async def set_carrier(self, carrier: bool) -> None:
        """Whether the interface has a carrier; the kernel applies it a few milliseconds later.

        Raises:
            SetupError: The kernel refused; EPERM: a carrier takes at least one enabled queue.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: It was closed here.
        """
        self._set("carrier", carrier, lambda file: file.set_int(_abi.TUNSETCARRIER, int(carrier)))

    async def set_owner(self, owner: int | str) -> None:
        """User who may attach without privilege, by number or name.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: It was closed here.
            ValueError: There is no user of that name.
        """
        uid = await _number_of(owner, "user", lambda name: pwd.getpwnam(name).pw_uid)
        self._set("owner", owner, lambda file: file.set_value(_abi.TUNSETOWNER, uid))

    async def set_group(self, group: int | str) -> None:
        """Group whose members may attach without privilege. With an owner set as well, both must match.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: It was closed here.
            ValueError: There is no group of that name.
        """
        gid = await _number_of(group, "group", lambda name: grp.getgrnam(name).gr_gid)
        self._set("group", group, lambda file: file.set_value(_abi.TUNSETGROUP, gid))

    async def set_steering(self, program: int | None) -> None:
        """Lets an eBPF program choose the queue for each frame; None restores the kernel's choice.

        Args:
            program: Descriptor of a loaded program of type BPF_PROG_TYPE_SOCKET_FILTER, such as those that
                `aiotuntap.bpf` makes; it may be closed afterwards. What it returns, modulo the number of enabled
                queues, is the index of the queue in the kernel's order: that of attaching, except that the last one
                takes the place of one that is closed or disabled.
        """
        self._set("steering", program, lambda file: file.set_int(_abi.TUNSETSTEERINGEBPF, _descriptor(program)))

    async def set_filter(self, program: int | None) -> None:
        """Lets an eBPF program drop or cut frames on their way to the queues; None removes it.

        Args:
            program: As for `set_steering`. It returns how many bytes of the frame to keep; 0 drops it.
        """
        self._set("filter", program, lambda file: file.set_int(_abi.TUNSETFILTEREBPF, _descriptor(program)))

    async def set_send_buffer(self, size: int) -> None:
        """Bytes, as the kernel accounts for them, that may be under way from each queue before writing waits.

        They count until the frame has left the machine or reached its receiver, so this matters where frames are
        bridged or forwarded to something slow. By default there is no limit.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
        """
        if not isinstance(size, int) or not 1 <= size < 1 << 31:
            raise ValueError(f"send buffer of {size!r} bytes: a whole number from 1 to 2147483647")
        self._check_open()
        self._interface.set_send_buffer(size)

    def _set(self, setting: str, value: object, change: Callable[[QueueFile], None]) -> None:
        self._check_open()
        self._interface.set(setting, value, change)


async def _import(module: str) -> ModuleType:
    """A module that imports pyroute2, which takes too long for the loop's thread."""
    return await run_in_thread(lambda: importlib.import_module(f".{module}", __package__))


async def _number_of(who: int | str, kind: str, look_up: Callable[[str], int]) -> int:
    """A user or group by number. Looking up a name may ask a server on the network."""
    if isinstance(who, str):
        try:
            return await run_in_thread(lambda: look_up(who))
        except KeyError:
            raise ValueError(f"{kind} {who!r} does not exist") from None
    if not isinstance(who, int) or isinstance(who, bool):
        raise TypeError(f"{kind} must be a number or a name, not {who!r}")
    if not 0 <= who < 0xFFFFFFFF:  # the last one stands for none
        raise ValueError(f"{kind} must be a number from 0 to 4294967294, not {who}")
    return who


def _descriptor(program: int | None) -> int:
    return -1 if program is None else _check_fd(program)


def _identify(file: QueueFile) -> _abi.Ifreq:
    try:
        if fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise SetupError(errno.EBADF, f"descriptor {file.fd} is not open for both reading and writing")
        return file.get_ifreq()
    except SetupError:
        raise
    except OSError as error:
        raise SetupError(
            error.errno, f"descriptor {file.fd} is not a queue attached to a TUN/TAP interface: {error.strerror}"
        ) from error


def _check_fd(fd: int) -> int:
    if not isinstance(fd, int) or isinstance(fd, bool) or not 0 <= fd < 1 << 31:
        raise TypeError(f"descriptor {fd!r}: a number, as from os.open or socket.recv_fds")
    return fd


def _check_transparent(offload: Offload, packet_info: bool) -> None:
    tunnels = offload & (Offload.UDP_TUNNEL | Offload.UDP_TUNNEL_CSUM)
    if tunnels:
        raise ValueError(f"{tunnels} needs vnet_header=True: super-frames inside a tunnel are not segmented here")
    if packet_info:
        raise ValueError("offloads with packet_info=True need vnet_header=True as well")


def _check_count(what: str, count: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{what} {count!r}: a whole number")
    if count < 1:
        raise ValueError(f"{what} {count}: at least 1")
