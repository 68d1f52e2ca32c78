"""The Internet checksum (RFC 1071).

A one's complement sum of 16-bit words is the same number modulo 65535, since 65536 is 1 there. So the whole data, read
as one integer, has the remainder that the sum of its words has.
"""

from __future__ import annotations


def word_sum(data: bytes | bytearray) -> int:
    """The sum of the big-endian words, modulo 65535; an odd byte at the end counts as if a zero followed."""
    total = int.from_bytes(data)
    if len(data) % 2:
        total <<= 8
    return total % 65535
