"""The public functions `segment` and `coalesce`, which call the engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from . import _engine
from ._offload import segment as reference
from ._offload.header import HEADER_SIZE, check_size
from ._types import Buffer, Mode, Offload


def segment(frame: Buffer, mode: Literal["tun", "tap"] | Mode, *, header_size: int = HEADER_SIZE) -> list[bytes]:
    """Turns a frame that was read with ``vnet_header=True`` into ordinary frames without a header.

    A super-frame (see `Offload`) is segmented as its header says: TCP and UDP over IPv4 and IPv6, with extension headers,
    options and up to two VLAN tags. Each segment gets its own lengths, identification, sequence number, flags and
    checksums. Any other frame is returned alone, with its checksum completed if the header asks for that. See
    segmentation-offloads.rst in the kernel's documentation.

    Args:
        frame: The virtio_net_hdr and the frame behind it.
        mode: The mode of the interface that it was read from.
        header_size: Size in bytes of the virtio_net_hdr: 10, or 24 with the offloads for UDP tunnels.

    Raises:
        InvalidFrameError: The header is invalid or does not match the frame, or the frame is of a kind that is not
            segmented here: legacy UFO, a super-frame inside a tunnel, or one whose segments would have more than 16 MiB
            of headers altogether.
        ValueError: *mode* or *header_size* is invalid.
        TypeError: *frame* is not a bytes-like object.
    """
    if type(mode) is not Mode:  # Mode(mode) takes as long as making a segment
        mode = Mode(mode)
    check_size(header_size)
    frames = _engine.engine.segment(frame, mode is Mode.TAP, header_size)
    if frames is None:  # the reference raises the error
        frames = reference.segment(frame, mode, header_size=header_size)
    return frames


def coalesce(
    frames: Iterable[Buffer],
    mode: Literal["tun", "tap"] | Mode,
    *,
    offload: Offload = Offload.ALL,
    header_size: int = HEADER_SIZE,
) -> list[bytes]:
    """Turns ordinary frames into frames to write with ``vnet_header=True``, merged into super-frames where that is safe.

    A super-frame (see `Offload`) is made of up to 64 consecutive TCP or UDP frames of one flow, all of one size except
    that the last may be shorter. The kernel can split it again into the same frames; only the identification of IPv4
    may differ if fragmentation is forbidden, where it has no meaning (RFC 6864). Any other frame is returned alone and
    unchanged behind its header: a frame with a wrong checksum, a fragment, a frame with other options, flags or TTL than
    those before it, and a frame with more than 256 bytes of headers. Within each flow, the order is kept. Super-frames
    are in the order of their first frames.

    Args:
        frames: Frames without a virtio_net_hdr, in order.
        mode: The mode of the interface that they will be written to.
        offload: What may be merged: any of TSO4, TSO6, USO4, USO6.
        header_size: Size in bytes of the virtio_net_hdr in front of each result.

    Raises:
        ValueError: *mode* or *header_size* is invalid.
        TypeError: One of the frames is not a bytes-like object.
    """
    if type(mode) is not Mode:
        mode = Mode(mode)
    tap = mode is Mode.TAP
    check_size(header_size)
    plain = frames if isinstance(frames, (list, tuple)) else list(frames)
    merged = _engine.engine.coalesce(plain, tap, offload.value, header_size)
    if merged is None:  # not all of them are bytes, or there are more than the engine takes
        plain = [bytes(memoryview(frame)) for frame in plain]
        merged = _engine.PYTHON.coalesce(plain, tap, offload.value, header_size)
    assert merged is not None
    return merged
