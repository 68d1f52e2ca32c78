"""The virtio_net_hdr before each frame of a queue with offloads, as ``<linux/virtio_net.h>`` lays it out."""

from __future__ import annotations

import dataclasses
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotuntap import InvalidFrameError, TuntapError, VnetHeader

U8, U16 = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
SIZES = (10, 12, 20, 24)
TUNNEL_FIELDS = ("outer_th_offset", "inner_nh_offset")
FIELDS = ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset", *TUNNEL_FIELDS)


def test_constants_are_those_of_the_kernel() -> None:
    names = {name: value for name, value in vars(VnetHeader).items() if name.isupper() and not name.startswith("_")}
    assert names == {
        "NEEDS_CSUM": 1,
        "DATA_VALID": 2,
        "RSC_INFO": 4,
        "UDP_TUNNEL_CSUM": 8,
        "GSO_NONE": 0,
        "GSO_TCPV4": 1,
        "GSO_UDP": 3,
        "GSO_TCPV6": 4,
        "GSO_UDP_L4": 5,
        "GSO_UDP_TUNNEL_IPV4": 0x20,
        "GSO_UDP_TUNNEL_IPV6": 0x40,
        "GSO_ECN": 0x80,
    }


def test_fields_in_the_order_of_the_structure() -> None:
    assert tuple(field.name for field in dataclasses.fields(VnetHeader)) == FIELDS
    assert VnetHeader(1, 2, 3, 4, 5, 6, 7, 8) == VnetHeader(
        flags=1, gso_type=2, hdr_len=3, gso_size=4, csum_start=5, csum_offset=6, outer_th_offset=7, inner_nh_offset=8
    )


@pytest.mark.skipif(sys.byteorder == "big", reason="written down as little-endian machines have it")
@pytest.mark.parametrize(
    ("size", "data"),
    [
        (10, "01 05 4200 a805 2200 1000"),
        (12, "01 05 4200 a805 2200 1000 0000"),
        (20, "01 05 4200 a805 2200 1000 0000 00000000 0000 0000"),
        (24, "01 05 4200 a805 2200 1000 0000 00000000 0000 0000 0000 0000"),
    ],
)
def test_packing_each_size(size: int, data: str) -> None:
    header = VnetHeader(flags=1, gso_type=5, hdr_len=66, gso_size=1448, csum_start=34, csum_offset=16)
    assert header.pack(size) == bytes.fromhex(data)
    assert VnetHeader.unpack(bytes.fromhex(data), size) == header


def test_the_tunnel_offsets_are_the_last_four_of_24_bytes() -> None:
    header = VnetHeader(flags=9, gso_type=0x25, outer_th_offset=34, inner_nh_offset=64)
    packed = header.pack(24)
    assert packed == struct.pack("=BB18xHH", 9, 0x25, 34, 64)
    assert VnetHeader.unpack(packed, 24) == header
    # Other sizes end before them.
    assert VnetHeader.unpack(packed, 20) == VnetHeader(flags=9, gso_type=0x25)


def test_the_default_is_ten_zero_bytes() -> None:
    assert VnetHeader().pack() == bytes(10)
    assert VnetHeader.unpack(bytes(10)) == VnetHeader()


@given(U8, U8, U16, U16, U16, U16, st.sampled_from(SIZES))
def test_packing_is_that_of_the_structure(
    flags: int, gso_type: int, hdr_len: int, gso_size: int, csum_start: int, csum_offset: int, size: int
) -> None:
    header = VnetHeader(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)
    packed = header.pack(size)
    fields = (flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)
    assert type(packed) is bytes
    assert packed == struct.pack("=BBHHHH", *fields) + bytes(size - 10)
    assert VnetHeader.unpack(packed, size) == header


@given(st.binary(max_size=40), st.sampled_from(SIZES), st.sampled_from((bytes, bytearray, memoryview)))
def test_unpacks_any_bytes_that_are_enough(data: bytes, size: int, kind: type[bytes | bytearray | memoryview]) -> None:
    if len(data) < size:
        with pytest.raises(InvalidFrameError):
            VnetHeader.unpack(kind(data), size)
        return
    header = VnetHeader.unpack(kind(data), size)
    assert dataclasses.astuple(header)[:6] == struct.unpack_from("=BBHHHH", data)
    assert dataclasses.astuple(header)[6:] == (struct.unpack_from("=HH", data, 20) if size == 24 else (0, 0))
    # What lies between is no field.
    assert header.pack(size) == data[:10] + bytes(size - 10 if size < 24 else 10) + (data[20:24] if size == 24 else b"")


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [-1, 1 << 16])
def test_fields_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        VnetHeader(**{name: value}).pack(24)
    assert not isinstance(caught.value, TuntapError)


@pytest.mark.parametrize("name", FIELDS)
def test_fields_at_their_limits(name: str) -> None:
    limit = 0xFF if name in ("flags", "gso_type") else 0xFFFF
    assert VnetHeader.unpack(VnetHeader(**{name: limit}).pack(24), 24) == VnetHeader(**{name: limit})
    with pytest.raises(ValueError, match=name):
        VnetHeader(**{name: limit + 1}).pack(24)


@pytest.mark.parametrize("name", TUNNEL_FIELDS)
@pytest.mark.parametrize("size", [10, 12, 20])
def test_tunnel_offsets_need_24_bytes(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="24"):
        VnetHeader(**{name: 1}).pack(size)


@pytest.mark.parametrize("size", [-10, 0, 9, 11, 16, 22, 25, 1 << 20])
def test_unknown_sizes(size: int) -> None:
    with pytest.raises(ValueError) as caught:
        VnetHeader().pack(size)
    assert not isinstance(caught.value, TuntapError)
    with pytest.raises(ValueError) as caught:
        VnetHeader.unpack(bytes(64), size)
    assert not isinstance(caught.value, TuntapError)


def test_is_a_value() -> None:
    header = VnetHeader(flags=1)
    assert {header, VnetHeader(flags=1)} == {header}
    with pytest.raises(dataclasses.FrozenInstanceError):
        header.flags = 2  # type: ignore[misc]
