"""The packet path in C, where it was compiled: see ``native/``. Nothing here waits, or raises for what the kernel answers.

Descriptors are non-blocking: a call that blocks would block every thread. TypeError is for wrong calls only.
"""

import socket
from collections.abc import Mapping, Sequence

from ._address import Address

#: The SHA-256, in hex, of the C sources that it was made of: of the files ``native/*.[ch]`` one after the other, by name.
SOURCES: str

def read_batch(fd: int, limit: int, enough: int, /) -> tuple[list[bytes], int]:
    """Reads frames until there are *limit*, or 256, or they have *enough* bytes in all, or an error comes.

    Returns:
        The frames, and 0 or the errno. ENOMEM says that there is no memory for another one; no frame is lost by that.
    """

def read_one(fd: int, /) -> bytes | int:
    """Reads a frame, or returns the errno."""

def write_batch(fd: int, largest: int, start: int, most: int, frames: Sequence[object], /) -> tuple[int, int]:
    """Writes up to *most* frames, and at most 256, from number *start* on.

    Returns:
        How many were written, and about the one that follows: 0, the errno, or -1: it was not tried, since it is not
        one contiguous buffer of 1 to *largest* bytes.
    """

def write_one(fd: int, largest: int, thread: int, frame: object, /) -> int:
    """Writes a frame. Returns 0, the errno, or -1, as for `write_batch`; -2 if *thread* is not the calling thread."""

def segment(frame: object, tap: bool, header_size: int, /) -> list[bytes] | None:
    """The plain frames of one with a virtio_net_hdr, or None: it is refused, or not taken here."""

def coalesce(frames: Sequence[object], tap: bool, offload: int, header_size: int, /) -> list[bytes] | None:
    """Plain frames with a virtio_net_hdr each, merged where that is safe; None if one is not a contiguous buffer."""

def merge(
    frames: Sequence[object], tap: bool, offload: int, header_size: int, /
) -> list[tuple[bytes, list[int], int]] | None:
    """As `coalesce`, with the numbers of the plain frames in each, and the offload that it takes: 0 if it is alone."""

def receive_batch(
    sock: socket.socket, limit: int, enough: int, addresses: Mapping[bytes, Address] | None, /
) -> tuple[list[bytes] | list[tuple[bytes, Address]], int, int, int, int]:
    """Receives messages until the next one may go past *limit* datagrams, there are *enough* bytes, or an error comes.

    Returns:
        The datagrams, with their senders if *addresses* has these; 0 or the errno; the messages with several
        datagrams; the datagrams in those; and how many were lost, for lack of memory.
    """

def send_batch(
    sock: socket.socket,
    largest: int,
    together: int,
    start: int,
    most: int,
    frames: Sequence[object],
    to: bytes | None,
    /,
) -> tuple[int, int, int, int, int]:
    """Sends up to *most* datagrams, and at most 256, from number *start* on; runs of one size in one message.

    Returns:
        How many were sent; about those that follow: 0, the errno, or -1, as for `write_batch`; how many there were in
        the message that was refused; the messages with several datagrams; and the datagrams in those.
    """
