"""The Internet checksum (RFC 1071).

A one's complement sum of 16-bit words is a sum modulo 65535. Since 65536 is 1 modulo 65535, the data as one big integer
has the same remainder as the sum of its words.
"""

from __future__ import annotations


def word_sum(data: bytes | bytearray) -> int:
    """The sum of the big-endian words, modulo 65535. Data of odd length is padded with a zero byte."""
    total = int.from_bytes(data)
    if len(data) % 2:
        total <<= 8
    return total % 65535
