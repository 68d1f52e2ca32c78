"""The Internet checksum (RFC 1071), one frame at a time or many at once.

A one's complement sum of 16-bit words is the same number modulo 65535, where 65536 is 1: hence the arithmetic. Words
are big-endian, as in the headers. numpy adds up long data; without it Python's own integers do, at a fifth of the
speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._numpy import np

# Bytes in all from which a call of numpy, 4 µs whatever it does, is worth its while.
_MANY = 4096


def word_sum(data: bytes | bytearray) -> int:
    """The sum of the words, below 65535; an odd byte at the end counts as if a zero followed."""
    # Little-endian, so that the missing byte is a zero at the high end; multiplying by 256 swaps the bytes.
    return int.from_bytes(data, "little") % 65535 * 256 % 65535


def word_sums(pieces: Sequence[bytes]) -> list[int]:
    """The same of each piece, or more by a multiple of 65535. Fast for many that are of about one size."""
    sizes = list(map(len, pieces))
    longest = max(sizes, default=0)
    if np is None or len(pieces) * longest < _MANY:
        return [word_sum(piece) for piece in pieces]
    if sizes.count(longest) < len(sizes):
        pieces = [piece.ljust(longest, b"\0") for piece in pieces]
    return row_sums(as_rows(pieces))


def as_rows(pieces: Sequence[bytes]) -> Any:
    """A matrix of bytes with a row for each piece, filled up with zeros to whole 32-bit words; None without numpy.

    The pieces are of one size.
    """
    if np is None:
        return None
    row = len(pieces[0]) + -len(pieces[0]) % 4
    data = bytes(row - len(pieces[0])).join([*pieces, b""])
    return np.frombuffer(data, np.uint8).reshape(-1, row)


def row_sums(rows: Any) -> list[int]:
    """What `word_sums` says of the rows of such a matrix."""
    sums: list[int] = (np.add.reduce(rows.view("<u4"), 1, np.uint64) * 256).tolist()
    return sums
