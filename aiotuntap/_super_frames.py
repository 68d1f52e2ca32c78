"""`segment` and `coalesce` for users: what the engine that runs makes of frames."""

from __future__ import annotations

from collections.abc import Iterable

from . import _engine
from ._offload import segment as reference
from ._offload.header import HEADER_SIZE, check_size
from ._types import Buffer, Mode, Offload


def segment(frame: Buffer, mode: Mode | str, *, header_size: int = HEADER_SIZE) -> list[bytes]:
    """Turns a frame as the kernel hands it out with ``vnet_header=True`` into plain frames, ready for any wire.

    A super-frame is cut as its header says (TCP and UDP over IPv4 and IPv6, with extension headers, options and up to
    two VLAN tags), and each segment gets its own lengths, identification, sequence number, flags and checksums. Any
    other frame comes back alone, its checksum completed where the header asks for it. See segmentation-offloads.rst in
    the kernel's documentation.

    Args:
        frame: The virtio_net_hdr and the frame behind it.
        mode: Of the interface that it comes from.
        header_size: Bytes of the virtio_net_hdr: 10, or 24 with the offloads for UDP tunnels.

    Raises:
        InvalidFrameError: Header and frame do not fit each other, or it is a kind that is not segmented here: legacy
            UFO, or a super-frame inside a tunnel. Or its segments would have more than 16 MiB of headers.
    """
    if type(mode) is not Mode:  # to ask Mode for itself takes as long as a segment
        mode = Mode(mode)
    check_size(header_size)
    frames = _engine.engine.segment(frame, mode is Mode.TAP, header_size)
    if frames is None:  # the reference says why
        frames = reference.segment(frame, mode, header_size=header_size)
    return frames


def coalesce(
    frames: Iterable[Buffer],
    mode: Mode | str,
    *,
    offload: Offload = Offload.ALL,
    header_size: int = HEADER_SIZE,
) -> list[bytes]:
    """Turns plain frames into frames as the kernel takes them with ``vnet_header=True``, with runs of one flow merged.

    A super-frame stands for up to 64 consecutive TCP or UDP frames of one flow, of one size but for the last, that the
    kernel can split again into the same frames; but for the identification of IPv4 where fragmenting is forbidden, which
    means nothing then (RFC 6864). Anything else goes alone and as it came: a frame whose checksum is
    wrong, a fragment, one with other options, flags or TTL than those before, one with headers of more than 256 bytes.
    The order within each flow stays, and super-frames are in the order of their first frames.

    Args:
        frames: Without a header, in order.
        mode: Of the interface that they go to.
        offload: What may be merged: TSO4, TSO6, USO4, USO6.
        header_size: Bytes of the virtio_net_hdr in front of each result.
    """
    if type(mode) is not Mode:
        mode = Mode(mode)
    tap = mode is Mode.TAP
    check_size(header_size)
    plain = frames if isinstance(frames, (list, tuple)) else list(frames)
    merged = _engine.engine.coalesce(plain, tap, offload.value, header_size)
    if merged is None:  # not all of them are plain memory, or there are more than the engine takes
        plain = [bytes(memoryview(frame)) for frame in plain]
        merged = _engine.PYTHON.coalesce(plain, tap, offload.value, header_size)
    assert merged is not None
    return merged
