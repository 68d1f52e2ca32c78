"""The owner of a descriptor, and how one comes to be attached to an interface.

Everything here is synchronous and knows no event loop. `open_queues` is meant for a thread of its own: creating an
interface takes the kernel's global network lock, which others may hold for tens of milliseconds.

The order on opening is not free. A descriptor that is polled before TUNSETIFF reports an error without ever joining
the interface's wait queue, so a loop that registers it early spins at first and is never woken afterwards. And
TUNSETIFF can answer 0 without having attached (a socket filter in the way), so TUNGETIFF has the last word.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from . import _abi
from ._errors import SetupError, cannot
from ._netns import Namespace, enter
from ._offload.flags import negotiate
from ._types import Mode, Offload

_INT = struct.Struct("@i")


class QueueFile:
    """Owns one descriptor of ``/dev/net/tun``. ``fd`` is -1 once closed, and is so before the kernel closes it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls) -> QueueFile:
        """A descriptor that is attached to nothing yet, in the network namespace of the calling thread."""
        try:
            return cls(os.open(_abi.NODE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            fix = {
                errno.ENOENT: "make it: 'mkdir -p /dev/net && mknod /dev/net/tun c 10 200'; in a container, pass the"
                " device in (docker: --device /dev/net/tun)",
                errno.ENODEV: "the kernel has no TUN/TAP driver loaded: 'modprobe tun' as root",
                errno.ENXIO: "the kernel has no TUN/TAP driver loaded: 'modprobe tun' as root",
                errno.EACCES: "run as root, or let others open it: 'chmod 0666 /dev/net/tun' (the kernel still checks"
                " who may create or attach)",
                errno.EPERM: "this sandbox or container forbids the device: allow character device 10:200",
            }.get(error.errno or 0, "see 'ls -l /dev/net/tun'")
            raise cannot(f"open {_abi.NODE}", error, fix) from error

    def close(self) -> None:
        """Closes the descriptor. The last one of an interface that is not persistent takes the interface with it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def ioctl(self, request: int, argument: int | bytes | bytearray = 0) -> int:
        """As fcntl.ioctl, for arguments whose answer is a number; a closed file is EBADF, as the kernel has it."""
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

    def get_ifreq(self) -> _abi.Ifreq:
        """Name and flags as the kernel has them now, after a rename or a move too. EBADFD when attached to nothing."""
        buffer = bytearray(_abi.IFREQ_SIZE)
        self.ioctl(_abi.TUNGETIFF, buffer)
        return _abi.Ifreq.unpack(buffer)

    def set_ifreq(self, request: int, name: str, flags: int) -> None:
        self.ioctl(request, _abi.Ifreq(name, flags).pack())

    def open_netns(self) -> int | None:
        """A new descriptor of the namespace that the interface is in now; None without CAP_NET_ADMIN there."""
        try:
            return self.ioctl(_abi.TUNGETDEVNETNS)
        except PermissionError:
            return None


def same_interface(one: QueueFile, other: QueueFile) -> bool:
    """Whether two attached files are queues of one interface: names are unique in a namespace, where that is known."""
    fds: list[int] = []
    try:
        if one.get_ifreq().name != other.get_ifreq().name:
            return False
        for file in (one, other):
            fd = file.open_netns()
            if fd is not None:
                fds.append(fd)
        return len({(status.st_dev, status.st_ino) for status in map(os.fstat, fds)}) < 2
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise cannot("compare two queues", error) from error
        return False
    finally:
        for fd in fds:
            os.close(fd)


def close_all(files: Iterable[QueueFile]) -> None:
    """Closes every file, and raises what went wrong only after the last one."""
    errors: list[Exception] = []
    for file in files:
        try:
            file.close()
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ExceptionGroup("some descriptors did not close cleanly", errors)


@dataclass(frozen=True, slots=True)
class Options:
    """How the queues of one interface are opened: what its object was constructed with."""

    mode: Mode
    multi_queue: bool = True
    exclusive: bool = False
    packet_info: bool = False
    vnet_header: bool = False
    offload: Offload = Offload.NONE
    napi: bool = False
    carrier: bool = True
    #: Offloads that the user of the queues does not see.
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
        """Whether frames carry a header towards the kernel. Without one, nobody could tell what is left undone."""
        return self.vnet_header or self.transparent

    @property
    def vnet_header_size(self) -> int:
        """In bytes. The UDP tunnel offloads need the long header, or every read fails and loses its frame."""
        return 24 if self.offload & (Offload.UDP_TUNNEL | Offload.UDP_TUNNEL_CSUM) else 10

    @property
    def max_frame(self) -> int:
        """The largest frame to write, in bytes; the kernel would accept, and then cut, far larger ones."""
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
    """What `open_queues` brings back."""

    files: list[QueueFile]
    name: str
    index: int
    #: False when the interface was there before: then its flags are somebody else's and have yet to be compared.
    created: bool


class AttachError(Exception):
    """TUNSETIFF refused; `_netlink.diagnosis` knows how to put it into words."""

    def __init__(self, name: str, cause: OSError) -> None:
        super().__init__(name, cause)
        self.name = name
        self.cause = cause


def open_queues(name: str, count: int, options: Options, netns: Namespace) -> Opened:
    """Opens *count* queues on the interface *name* in *netns*, all or none. The first one resolves a template.

    Raises:
        SetupError: The node or the namespace cannot be opened, or a setting did not take.
        AttachError: The kernel refused to create the interface or to attach to it.
    """
    enter(netns)
    files: list[QueueFile] = []
    created = False
    try:
        for _ in range(count):
            file = QueueFile.open()
            files.append(file)
            if len(files) == 1:
                created = _attach_first(file, name, options)
                name = _confirmed_name(file, name)
            else:
                _attach(file, name, options.flags)
                if _confirmed_name(file, name) != name:
                    raise SetupError(errno.EAGAIN, f"interface {name!r} was renamed while it was being opened; retry")
        return Opened(files, name, index_of(name), created)
    except BaseException:
        close_all(files)
        raise


def index_of(name: str, netns: Namespace = None) -> int:
    """The number of an interface in *netns*, or in the calling thread's; 0 when that cannot be told."""
    try:
        enter(netns)
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _attach_first(file: QueueFile, name: str, options: Options) -> bool:
    """Attaches, and tells whether that created the interface."""
    try:
        _attach(file, name, options.flags | _abi.IFF_TUN_EXCL)
    except AttachError as error:
        if options.exclusive or error.cause.errno != errno.EBUSY:
            raise
        _attach(file, name, options.flags)
        return False
    return True


def _attach(file: QueueFile, name: str, flags: int) -> None:
    try:
        file.set_ifreq(_abi.TUNSETIFF, name, flags)
    except OSError as error:
        raise AttachError(name, error) from error


def _confirmed_name(file: QueueFile, asked: str) -> str:
    try:
        return file.get_ifreq().name
    except OSError as error:
        raise SetupError(
            error.errno,
            f"the kernel accepted the queue on {asked!r} but did not attach it; a classic socket filter on the"
            " interface does this: remove it (TUNDETACHFILTER), or open without packet_info",
        ) from error


def header_size(file: QueueFile) -> int:
    """Bytes of the virtio_net_hdr that the interface expects now."""
    buffer = bytearray(_INT.size)
    file.ioctl(_abi.TUNGETVNETHDRSZ, buffer)
    return int(_INT.unpack(buffer)[0])


def set_sticky(file: QueueFile, options: Options) -> Offload:
    """Offloads and header size belong to the interface and outlive the process that set them: set them always.

    Returns the offloads that are on.
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
            error.errno, f"the kernel refuses the header size or the offloads {options.offload}: {error.strerror}"
        ) from error
