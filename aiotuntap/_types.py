"""The small public types: modes, offloads, counters, links and their changes, and what a stream of frames promises."""

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
    """Base of what owns descriptors or a place in an event loop: a copy would own them too, and close them."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: it owns descriptors, or a place in a loop"
        )


class Mode(enum.StrEnum):
    """What one frame is: an IP packet or an Ethernet frame."""

    TUN = "tun"
    TAP = "tap"

    @property
    def flag(self) -> int:
        return _abi.IFF_TUN if self is Mode.TUN else _abi.IFF_TAP


class Offload(enum.Flag):
    """What the kernel may leave undone in frames that it hands out, ``TUN_F_*`` in ``<linux/if_tun.h>``.

    CSUM leaves out checksums. TSO4 and TSO6 make super-frames of TCP over IPv4 and IPv6, with ECN also where ECN marks
    are, and USO4 and USO6, which go only together, of UDP. The two for UDP tunnels make super-frames of what is inside.
    All others need CSUM. ALL is every one but those for tunnels, as far as the kernel has them.
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

    Bytes are counted by the kernel, for the interface as a whole: counting them again for each frame that is read
    would cost a twentieth of the time it takes to read it. Super-frames are counted with transparent offloads only;
    with ``vnet_header=True`` nothing here looks into a frame.
    """

    #: Frames taken from the kernel, as they are read from the queue: with transparent offloads, after segmentation.
    frames_read: int = 0
    #: Frames that the kernel took, as they were written to the queue.
    frames_written: int = 0
    #: Frames that were not written because the kernel refused them or they were too large.
    frames_refused: int = 0
    #: Frames that the kernel could not hand out, or that were invalid.
    frames_dropped: int = 0
    #: Super-frames that the kernel handed out, and the frames among `frames_read` that they were cut into.
    super_frames_read: int = 0
    segments_made: int = 0
    #: Super-frames that the kernel took, and the frames among `frames_written` that went with them.
    super_frames_written: int = 0
    frames_coalesced: int = 0
    #: Super-frames that the kernel refused while it took their frames one by one.
    super_frames_refused: int = 0

    def __add__(self, other: Stats) -> Stats:
        return Stats(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters of an interface, by the kernel's names: rx is what the program wrote, tx what it read."""

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
    """A stream of frames in both directions. `TuntapQueue` is one; so is anything that passes `aiotuntap.testing`."""

    @property
    def closed(self) -> bool:
        """Whether this side was closed."""

    async def read_frame(self) -> bytes:
        """The next frame. Cancelling loses none. Several readers are served in the order they asked."""

    async def read_frames(self, limit: int = ...) -> list[bytes]:
        """At least one frame, and as many more as are there, up to *limit*."""

    def read_frame_nowait(self) -> bytes:
        """The next frame, or BlockingIOError when there is none."""

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame, whole or, when cancelled, not at all."""

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes what can be written, in order, and reports what was refused in one InvalidFrameError.

        Anything else that goes wrong, such as the stream being closed, ends it at once.
        """

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame, or raises BlockingIOError when there is no room for it now."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Frames until the stream is closed here."""

    async def aclose(self) -> None:
        """Closes this side; who waits gets QueueClosedError. Closing twice is harmless."""
