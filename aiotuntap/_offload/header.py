"""``struct virtio_net_hdr``: the header in front of a frame that says which work on it is still to be done.

See ``<linux/virtio_net.h>`` and, for the meaning of each field, section 5.1.6 of the virtio specification.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from .._errors import InvalidFrameError
from .._types import Buffer

#: The first ten bytes, in the byte order of the machine, which is the driver's default.
BASIC = struct.Struct("=BBHHHH")

# The two offsets of a tunnel, which follow the number of buffers and the hash report.
_TUNNEL = struct.Struct("=10x10xHH")

#: Size in bytes of the header, by default.
HEADER_SIZE = BASIC.size

_SIZES = (10, 12, 20, 24)


@dataclass(frozen=True, slots=True)
class VnetHeader:
    """The virtio_net_hdr in front of one frame. Offsets are in bytes from the start of the frame behind it.

    ``VnetHeader()`` is the header of an ordinary frame with complete checksums.
    """

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

    #: NEEDS_CSUM: the checksum field has the sum of the pseudo header only, and the checksum is to be completed.
    flags: int = 0
    #: How the frame is to be segmented: one of ``GSO_*``, perhaps with the bits ``GSO_ECN`` and ``GSO_UDP_TUNNEL_*``.
    gso_type: int = 0
    #: Bytes of all headers of the frame. Not always right: do not rely on it.
    hdr_len: int = 0
    #: Payload bytes of each segment.
    gso_size: int = 0
    #: Where the bytes that the checksum covers begin; and, counted from there, where the checksum is stored.
    csum_start: int = 0
    csum_offset: int = 0
    #: In a header of 24 bytes, of a UDP tunnel: where its UDP header is, and where the inner network header is.
    outer_th_offset: int = 0
    inner_nh_offset: int = 0

    def pack(self, size: int = HEADER_SIZE) -> bytes:
        """The header as the kernel reads it, in the byte order of the machine.

        Args:
            size: In bytes, as the interface has it: 10, or 24 with the offloads for UDP tunnels; also 12 or 20.

        Raises:
            ValueError: *size* is wrong, or the value of a field is too large or needs a longer header.
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
            raise ValueError(f"{self} cannot be packed: {error}") from None
        if any(tunnel):
            raise ValueError(f"{self} cannot be packed into {size} bytes: the offsets of a tunnel need 24")
        return packed + bytes(size - HEADER_SIZE)

    @classmethod
    def unpack(cls, buffer: Buffer, size: int = HEADER_SIZE) -> Self:
        """The header at the start of *buffer*. The frame may follow it.

        Args:
            buffer: A frame that was read with ``vnet_header=True``, or its header alone.
            size: As for `pack`.

        Raises:
            InvalidFrameError: The buffer is shorter than the header.
            ValueError: *size* is wrong.
        """
        check_size(size)
        if len(buffer) < size:
            raise InvalidFrameError(f"a virtio_net_hdr has {size} bytes, and there are only {len(buffer)}")
        return cls(*BASIC.unpack_from(buffer), *(_TUNNEL.unpack_from(buffer) if size == 24 else ()))


def check_size(size: int) -> None:
    """Raises ValueError unless *size* is that of a virtio_net_hdr."""
    if size not in _SIZES:
        raise ValueError(f"the size of a virtio_net_hdr must be 10, 12, 20 or 24 bytes, not {size!r}")
