"""The small public types: modes, offloads, counters, links and their changes, and the protocol of a stream of frames."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import NoReturn, Protocol, SupportsIndex, TypeAlias, runtime_checkable

from . import _abi

Buffer: TypeAlias = bytes | bytearray | memoryview
#: One frame to write: a bytes-like object, or a list or tuple of them that are written as one frame.
Frame: TypeAlias = Buffer | Sequence[Buffer]


class Owning:
    """Base of everything that owns descriptors, or is registered with an event loop: a copy would close them, too."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: it owns descriptors, or is registered with an event loop"
        )


class Mode(enum.StrEnum):
    """What one frame is: an IP packet or an Ethernet frame."""

    TUN = "tun"
    TAP = "tap"

    @property
    def flag(self) -> int:
        """For TUNSETIFF."""
        return _abi.IFF_TUN if self is Mode.TUN else _abi.IFF_TAP

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(f"mode must be 'tun' or 'tap', not {value!r}")


class Offload(enum.Flag):
    """Work on frames that the kernel may leave to the program, ``TUN_F_*`` in ``<linux/if_tun.h>``.

    A *super-frame* (the kernel calls it a GSO packet) is one frame of up to 64 KiB that stands for several ordinary
    frames of one flow: it has their common headers once, and the payload of all of them. Handling one super-frame costs
    little more than handling one ordinary frame.

    With CSUM, the kernel hands out frames whose checksum is not complete. With TSO4 and TSO6, it hands out and takes
    super-frames of TCP over IPv4 and IPv6; with ECN, also of connections that use ECN. USO4 and USO6 do the same for
    UDP, and must be given together. UDP_TUNNEL and UDP_TUNNEL_CSUM are for super-frames inside a UDP tunnel, such as
    VXLAN. All of them need CSUM. ALL means every offload that the kernel has, except the two for tunnels.
    """

    NONE = 0
    CSUM = _abi.TUN_F_CSUM
    TSO4 = _abi.TUN_F_TSO4
    TSO6 = _abi.TUN_F_TSO6
    ECN = _abi.TUN_F_TSO_ECN
    USO4 = _abi.TUN_F_USO4
    USO6 = _abi.TUN_F_USO6
    UDP_TUNNEL = _abi.TUN_F_UDP_TUNNEL_GSO
    UDP_TUNNEL_CSUM = _abi.TUN_F_UDP_TUNNEL_GSO_CSUM
    ALL = CSUM | TSO4 | TSO6 | ECN | USO4 | USO6


@dataclass(frozen=True, slots=True)
class Stats:
    """Frames that went through one queue, or the sum over several.

    Bytes are not counted here, because that would make reading a frame 5 % slower: the kernel counts them for the
    interface (`Counters`). Super-frames are counted with transparent offloads only; with ``vnet_header=True`` they
    count as ordinary frames.
    """

    #: Frames read from the kernel; with transparent offloads, counted after segmentation.
    frames_read: int = 0
    #: Frames that were written and that the kernel accepted.
    frames_written: int = 0
    #: Frames that were not written, because the kernel refused them or their size was wrong.
    frames_refused: int = 0
    #: Frames from the kernel that were dropped: the kernel could not hand them out, or they were invalid.
    frames_dropped: int = 0
    #: Super-frames read from the kernel, and the frames that they were segmented into, which `frames_read` includes.
    super_frames_read: int = 0
    segments_made: int = 0
    #: Super-frames written to the kernel, and the frames that were merged into them, which `frames_written` includes.
    super_frames_written: int = 0
    frames_coalesced: int = 0
    #: Super-frames that the kernel refused, while it accepted their frames one by one.
    super_frames_refused: int = 0

    def __add__(self, other: Stats) -> Stats:
        return Stats(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters of an interface, by the kernel's names: rx is what programs wrote, tx is what they read."""

    rx_packets: int = 0
    rx_bytes: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel describes it at one moment. See rtnetlink(7)."""

    index: int
    name: str
    #: Driver: ``"tun"`` for TUN and TAP, None for devices that name none.
    kind: str | None
    #: In bytes.
    mtu: int
    #: None for TUN.
    mac: str | None
    #: Administrative state.
    up: bool
    carrier: bool
    #: Frames that the kernel keeps for each queue until they are read.
    txqueuelen: int
    #: Name of the bridge or other interface that this one is a port of.
    master: str | None
    counters: Counters
    #: As `AsyncTuntap.configure` takes them: ``"10.0.0.1/24"``, ``"10.0.0.1 peer 10.0.0.2/32"``.
    addresses: tuple[str, ...] = ()
    #: Those of them that cannot be used yet, since the kernel still asks whether another machine on the link has them
    #: (duplicate address detection, IPv6 only). See `AsyncTuntap.ready`.
    tentative: tuple[str, ...] = ()
    #: Those of them that cannot be used because another machine on the link has them.
    duplicates: tuple[str, ...] = ()
    #: Whether IPv6 is on. The kernel sends no notification of it: in the events of `AsyncTuntap.watch` it may be late.
    ipv6: bool = False
    #: None for what is not a TUN/TAP interface.
    mode: Mode | None = None
    packet_info: bool = False
    vnet_header: bool = False
    multi_queue: bool = False
    persistent: bool = False
    #: User and group that may attach without privilege, by number; None for unset.
    owner: int | None = None
    group: int | None = None
    #: Attached and enabled queues of all programs, and disabled ones. The kernel counts them with multi_queue only.
    queues: int | None = None
    disabled_queues: int | None = None


class Change(enum.StrEnum):
    """What a `LinkEvent` tells."""

    UP = "up"
    DOWN = "down"
    CARRIER = "carrier"
    MTU = "mtu"
    MAC = "mac"
    MASTER = "master"
    RENAMED = "renamed"
    ADDRESS_ADDED = "address added"
    ADDRESS_REMOVED = "address removed"
    MOVED = "moved"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """One change on an interface."""

    kind: Change
    #: How the interface is after it. For DELETED, how it was last.
    link: Link
    #: The new name, MTU, MAC address, master (a name, None for none) or index (MOVED); whether there is a carrier; the
    #: address that was added or removed. None for UP, DOWN and DELETED.
    value: str | int | bool | None = None


@runtime_checkable
class PacketStream(Protocol):
    """A stream of frames in both directions.

    `TuntapQueue` is one, and so is an `AsyncTuntap` with a single queue. `aiotuntap.testing.check_packet_stream` checks
    whether a class of your own is one.
    """

    @property
    def closed(self) -> bool:
        """Whether this side was closed by this program."""

    async def read_frame(self) -> bytes:
        """Waits for the next frame. Cancelling loses no frame. Several readers are served in the order they asked."""

    async def read_frames(self, limit: int = ...) -> list[bytes]:
        """Waits for at least one frame, and returns all that are available, up to *limit*."""

    def read_frame_nowait(self) -> bytes:
        """Returns the next frame, or raises BlockingIOError if none is available."""

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame. When cancelled, the frame was not written."""

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes every frame that it can, in order, and reports those that were refused in one InvalidFrameError.

        Any other error, such as QueueClosedError, ends it at once.
        """

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame, or raises BlockingIOError if there is no room for it now."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields frames until the stream is closed by this program."""

    async def aclose(self) -> None:
        """Closes this side. Tasks that wait on it get QueueClosedError. Closing twice is harmless."""
