"""``struct virtio_net_hdr``: what the kernel says in front of a frame about the work that was left undone in it.

See ``<linux/virtio_net.h>`` and, for the meaning of each field, section 5.1.6 of the virtio specification.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from .._errors import InvalidFrameError
from .._types import Buffer

#: The first ten bytes. In the byte order of the machine, which is the driver's default.
BASIC = struct.Struct("=BBHHHH")

# Where both offsets of a tunnel are: after the count of buffers and what a hash report takes.
_TUNNEL = struct.Struct("=10x10xHH")

#: Bytes of the header unless a longer one is asked for.
HEADER_SIZE = BASIC.size

_SIZES = (10, 12, 20, 24)


@dataclass(frozen=True, slots=True)
class VnetHeader:
    """The header of one frame. Offsets count in bytes from the start of the frame behind it."""

    NEEDS_CSUM: ClassVar[int] = 1
    DATA_VALID: ClassVar[int] = 2
    RSC_INFO: ClassVar[int] = 4
    UDP_TUNNEL_CSUM: ClassVar[int] = 8

    GSO_NONE: ClassVar[int] = 0
    GSO_TCPV4: ClassVar[int] = 1
    GSO_UDP: ClassVar[int] = 3
    GSO_TCPV6: ClassVar[int] = 4
    GSO_UDP_L4: ClassVar[int] = 5
    GSO_UDP_TUNNEL_IPV4: ClassVar[int] = 0x20
    GSO_UDP_TUNNEL_IPV6: ClassVar[int] = 0x40
    GSO_ECN: ClassVar[int] = 0x80

    #: NEEDS_CSUM: the transport checksum holds the sum of the pseudo header only, and the rest is to be added.
    flags: int = 0
    #: How the frame is to be segmented, one of ``GSO_*``; the bits ``GSO_ECN`` and ``GSO_UDP_TUNNEL_*`` come on top.
    gso_type: int = 0
    #: Bytes of all headers of the frame; a hint.
    hdr_len: int = 0
    #: Payload bytes of each segment.
    gso_size: int = 0
    #: Where the checksum begins to count, and from there, where it is stored.
    csum_start: int = 0
    csum_offset: int = 0
    #: Of a UDP tunnel: its own UDP header, and the network header inside it. In the header of 24 bytes only.
    outer_th_offset: int = 0
    inner_nh_offset: int = 0

    def pack(self, size: int = HEADER_SIZE) -> bytes:
        """The header as the kernel reads it, in the byte order of the machine.

        Args:
            size: In bytes, as the interface has it: 10, or 24 with the offloads for UDP tunnels; also 12 or 20.

        Raises:
            ValueError: A field does not fit.
        """
        check_size(size)
        tunnel = self.outer_th_offset, self.inner_nh_offset
        try:
            packed = BASIC.pack(
                self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset
            )
            if size == 24:
                return packed + _TUNNEL.pack(*tunnel)[HEADER_SIZE:]
        except struct.error as error:
            raise ValueError(f"{self}: {error}") from None
        if any(tunnel):
            raise ValueError(f"{self}: the offsets of a tunnel take a header of 24 bytes, not {size}")
        return packed + bytes(size - HEADER_SIZE)

    @classmethod
    def unpack(cls, buffer: Buffer, size: int = HEADER_SIZE) -> Self:
        """The header at the start of *buffer*, which may go on with the frame.

        Raises:
            InvalidFrameError: The buffer is shorter than the header.
        """
        check_size(size)
        if len(buffer) < size:
            raise InvalidFrameError(f"{len(buffer)} bytes are too few for a virtio_net_hdr of {size}")
        return cls(*BASIC.unpack_from(buffer), *(_TUNNEL.unpack_from(buffer) if size == 24 else ()))


def check_size(size: int) -> None:
    """Raises ValueError for a size that no virtio_net_hdr has."""
    if size not in _SIZES:
        raise ValueError(f"a virtio_net_hdr of {size!r} bytes: 10, 12, 20 or 24")
