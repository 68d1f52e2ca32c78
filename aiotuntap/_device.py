"""The owner of a descriptor, and how a descriptor is attached to an interface.

Everything here is synchronous and does not use an event loop. Call `open_queues` on a separate thread: creating an
interface takes the kernel's global network lock, which other programs may hold for tens of milliseconds.

The order on opening matters. A descriptor that is polled before TUNSETIFF reports an error and does not join the
interface's wait queue, so a loop that registers it too early spins at first and is never woken afterwards. And
TUNSETIFF can return 0 without having attached, because of a socket filter, so TUNGETIFF has to confirm it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from . import _abi
from ._errors import SetupError, cannot
from ._netns import Namespace, enter, identity_of
from ._offload.flags import negotiate
from ._types import Mode, Offload

_INT = struct.Struct("@i")

# The send buffer that the driver gives a queue: as good as no limit.
_UNLIMITED = (1 << 31) - 1


#: Makes the node.
MAKE_NODE = f"mkdir -p /dev/net && mknod -m 0666 {_abi.NODE} c 10 200"
#: What to do if the node does not open, by ``errno``.
NODE_FIXES = {
    errno.ENOENT: f"{MAKE_NODE} (in a container: docker run --device {_abi.NODE})",
    errno.ENODEV: "modprobe tun",
    errno.ENXIO: "modprobe tun",
    errno.EACCES: f"chmod 0666 {_abi.NODE} (the kernel still checks who may create an interface), or run as root",
    errno.EPERM: f"docker run --device {_abi.NODE} (or allow 'c 10:200 rwm' in the device cgroup)",
}


class QueueFile:
    """Owns one descriptor of ``/dev/net/tun``. ``fd`` becomes -1 just before the kernel closes it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd: int = fd

    @classmethod
    def open(cls) -> QueueFile:
        """Opens a descriptor in the network namespace of the calling thread. It is not attached yet."""
        file = cls(-1)
        try:
            file.fd = os.open(_abi.NODE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            return file
        except OSError as error:
            fix = NODE_FIXES.get(error.errno or 0, f"ls -l {_abi.NODE}")
            raise cannot(f"open {_abi.NODE}", error, f"to fix it: {fix}") from error

    def close(self) -> None:
        """Closes the descriptor. With the last one, the kernel deletes an interface that is not persistent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def ioctl(self, request: int, argument: int | bytes | bytearray = 0) -> int:
        """Calls fcntl.ioctl, for requests that return a number. A closed file raises EBADF, as in the kernel."""
        if self.fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        answer = fcntl.ioctl(self.fd, request, argument)
        return answer if isinstance(answer, int) else 0

    def set_value(self, request: int, value: int) -> None:
        """An ioctl whose argument is the number itself."""
        self.ioctl(request, value)

    def set_int(self, request: int, value: int) -> None:
        """An ioctl whose argument points to an int."""
        self.ioctl(request, _INT.pack(value))

    def get_int(self, request: int) -> int:
        """The answer of an ioctl whose argument points to an int."""
        buffer = bytearray(_INT.size)
        self.ioctl(request, buffer)
        return int(_INT.unpack(buffer)[0])

    def get_ifreq(self) -> _abi.Ifreq:
        """Name and flags that the kernel has now, also after a rename or a move. EBADFD if it is not attached."""
        buffer = bytearray(_abi.IFREQ_SIZE)
        self.ioctl(_abi.TUNGETIFF, buffer)
        return _abi.Ifreq.unpack(buffer)

    def set_ifreq(self, request: int, name: str, flags: int) -> None:
        self.ioctl(request, _abi.Ifreq(name, flags).pack())

    def is_blocked(self) -> bool:
        """Whether no frame can be written: the interface is down, or its send buffer is full.

        poll(2) reports POLLOUT while the interface is up and the send buffer has room, and POLLERR if it was deleted.
        """
        if self.fd < 0:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return not poll.poll(0)

    def is_down(self) -> bool:
        """Whether the interface is down. With a limited send buffer this is unknown, and the answer is False."""
        try:  # asked last: for an ioctl, the kernel takes its global network lock
            return self.is_blocked() and self.get_int(_abi.TUNGETSNDBUF) == _UNLIMITED
        except OSError:
            return False

    def open_netns(self) -> int | None:
        """Opens the namespace that the interface is in now; None without CAP_NET_ADMIN in it."""
        try:
            return self.ioctl(_abi.TUNGETDEVNETNS)
        except PermissionError:
            return None


def same_interface(one: QueueFile, other: QueueFile) -> bool:
    """Whether two attached files are queues of one interface: of the same name, and in one namespace if that is known."""
    fds: list[int] = []
    try:
        if one.get_ifreq().name != other.get_ifreq().name:
            return False
        for file in (one, other):
            fd = file.open_netns()
            if fd is not None:
                fds.append(fd)
        return len(set(map(identity_of, map(os.fstat, fds)))) < 2
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise cannot("check that two queues belong to one interface", error) from error
        return False
    finally:
        for fd in fds:
            os.close(fd)


def close_all(files: Iterable[QueueFile]) -> None:
    """Closes every file. Errors are raised after the last one."""
    errors: list[Exception] = []
    for file in files:
        try:
            file.close()
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ExceptionGroup("closing some descriptors failed", errors)


@dataclass(frozen=True, slots=True)
class Options:
    """How the queues of one interface are opened."""

    mode: Mode
    multi_queue: bool = True
    exclusive: bool = False
    packet_info: bool = False
    vnet_header: bool = False
    offload: Offload = Offload.NONE
    napi: bool = False
    carrier: bool = True
    #: Whether offloads are hidden from the user of the queues: see `aiotuntap._transparent`.
    transparent: bool = False

    @property
    def flags(self) -> int:
        """For TUNSETIFF."""
        flags = self.mode.flag
        if self.multi_queue:
            flags |= _abi.IFF_MULTI_QUEUE
        if not self.packet_info:
            flags |= _abi.IFF_NO_PI
        if self.has_header:
            flags |= _abi.IFF_VNET_HDR
        if self.napi:
            flags |= _abi.IFF_NAPI
        if not self.carrier:
            flags |= _abi.IFF_NO_CARRIER
        return flags

    @property
    def has_header(self) -> bool:
        """Whether frames have a virtio_net_hdr towards the kernel. Offloads need it: it says what is to be done."""
        return self.vnet_header or self.transparent

    @property
    def vnet_header_size(self) -> int:
        """In bytes. The UDP tunnel offloads need the long header: without it, every read fails and loses its frame."""
        return 24 if self.offload & (Offload.UDP_TUNNEL | Offload.UDP_TUNNEL_CSUM) else 10

    @property
    def max_frame(self) -> int:
        """The largest frame to write, in bytes. The kernel would accept larger ones, and cut them."""
        size = _abi.MAX_PACKET
        if self.mode is Mode.TAP:
            size += _abi.ETHERNET_HEADER_SIZE + 2 * _abi.VLAN_TAG_SIZE
        if self.packet_info:
            size += _abi.PI_SIZE
        if self.vnet_header:
            size += self.vnet_header_size
        return size


@dataclass(frozen=True, slots=True)
class Opened:
    """What `open_queues` returns."""

    files: list[QueueFile]
    name: str
    index: int
    #: False if the interface existed before. Then its flags are those of its creator, and have to be compared.
    created: bool


class AttachError(Exception):
    """TUNSETIFF failed. `_netlink.diagnosis` makes a SetupError of it."""

    def __init__(self, name: str, cause: OSError) -> None:
        super().__init__(name, cause)
        self.name = name
        self.cause = cause


def open_queues(name: str, count: int, options: Options, netns: Namespace) -> Opened:
    """Opens *count* queues of the interface *name* in *netns*, all or none. The first one completes a name template.

    Raises:
        SetupError: The node or the namespace cannot be opened, or the kernel did not attach a queue.
        AttachError: The kernel refused to create the interface or to attach to it.
    """
    enter(netns)
    files: list[QueueFile] = []
    created = False
    try:
        for _ in range(count):
            files.append(QueueFile(-1))  # a place for the next one: were there no memory for it later, it would be lost
            file = files[-1] = QueueFile.open()
            if len(files) == 1:
                created = _attach_first(file, name, options)
                name = _confirmed_name(file, name)
            else:
                _attach(file, name, options.flags)
                if _confirmed_name(file, name) != name:
                    raise SetupError(errno.EAGAIN, f"interface {name!r} was renamed while it was opened: try again")
        return Opened(files, name, index_of(name), created)
    except BaseException:
        close_all(files)
        raise


def index_of(name: str, netns: Namespace = None) -> int:
    """The index of an interface in *netns*, or in the calling thread's namespace; 0 if it is unknown."""
    try:
        enter(netns)
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _attach_first(file: QueueFile, name: str, options: Options) -> bool:
    """Attaches, and returns whether that created the interface."""
    try:
        _attach(file, name, options.flags | _abi.IFF_TUN_EXCL)
        return True
    except AttachError as error:
        if options.exclusive or error.cause.errno != errno.EBUSY:
            raise
    # Outside of the block above, so that the error of the second try is not reported together with that of the first.
    _attach(file, name, options.flags)
    return False


def _attach(file: QueueFile, name: str, flags: int) -> None:
    try:
        file.set_ifreq(_abi.TUNSETIFF, name, flags)
    except OSError as error:
        raise AttachError(name, error) from None


def _confirmed_name(file: QueueFile, asked: str) -> str:
    try:
        return file.get_ifreq().name
    except OSError as error:
        raise SetupError(
            error.errno,
            f"the kernel did not attach the queue to {asked!r}, although it reported success: a classic socket filter on"
            " the interface does this; remove it (TUNDETACHFILTER), or open without packet_info",
        ) from error


def header_size(file: QueueFile) -> int:
    """Size in bytes of the virtio_net_hdr that the interface uses now."""
    return file.get_int(_abi.TUNGETVNETHDRSZ)


def set_sticky(file: QueueFile, options: Options) -> Offload:
    """Sets offloads and header size, always: they belong to the interface and outlive the process that set them.

    Returns:
        The offloads that are on.

    Raises:
        SetupError: The kernel refuses one of them.
    """
    try:
        file.set_value(_abi.TUNSETOFFLOAD, 0)
        offload = Offload.NONE
        if options.has_header:
            file.set_int(_abi.TUNSETVNETHDRSZ, options.vnet_header_size)
            offload = negotiate(options.offload, lambda value: file.set_value(_abi.TUNSETOFFLOAD, value))
        if not options.carrier:
            file.set_int(_abi.TUNSETCARRIER, 0)
        return offload
    except SetupError:
        raise
    except OSError as error:
        raise SetupError(
            error.errno,
            f"cannot set the virtio_net_hdr size to {options.vnet_header_size} bytes or turn on {options.offload}:"
            f" {error.strerror}",
        ) from error
