"""The kernel's numbers, against those that C headers give on each architecture."""

from __future__ import annotations

import platform
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotuntap import _abi
from aiotuntap._abi import Ifreq, encode_name, ioctl_number

# name: (direction, number, size, generic (x86, arm, riscv, s390), mips/ppc/sparc/alpha)
KNOWN = {
    "TUNSETNOCSUM": ("write", 200, 4, 0x400454C8, 0x800454C8),
    "TUNSETDEBUG": ("write", 201, 4, 0x400454C9, 0x800454C9),
    "TUNSETIFF": ("write", 202, 4, 0x400454CA, 0x800454CA),
    "TUNSETPERSIST": ("write", 203, 4, 0x400454CB, 0x800454CB),
    "TUNSETOWNER": ("write", 204, 4, 0x400454CC, 0x800454CC),
    "TUNSETLINK": ("write", 205, 4, 0x400454CD, 0x800454CD),
    "TUNSETGROUP": ("write", 206, 4, 0x400454CE, 0x800454CE),
    "TUNGETFEATURES": ("read", 207, 4, 0x800454CF, 0x400454CF),
    "TUNSETOFFLOAD": ("write", 208, 4, 0x400454D0, 0x800454D0),
    "TUNSETTXFILTER": ("write", 209, 4, 0x400454D1, 0x800454D1),
    "TUNGETIFF": ("read", 210, 4, 0x800454D2, 0x400454D2),
    "TUNGETSNDBUF": ("read", 211, 4, 0x800454D3, 0x400454D3),
    "TUNSETSNDBUF": ("write", 212, 4, 0x400454D4, 0x800454D4),
    "TUNATTACHFILTER": ("write", 213, 16, 0x401054D5, 0x801054D5),
    "TUNDETACHFILTER": ("write", 214, 16, 0x401054D6, 0x801054D6),
    "TUNGETVNETHDRSZ": ("read", 215, 4, 0x800454D7, 0x400454D7),
    "TUNSETVNETHDRSZ": ("write", 216, 4, 0x400454D8, 0x800454D8),
    "TUNSETQUEUE": ("write", 217, 4, 0x400454D9, 0x800454D9),
    "TUNSETIFINDEX": ("write", 218, 4, 0x400454DA, 0x800454DA),
    "TUNGETFILTER": ("read", 219, 16, 0x801054DB, 0x401054DB),
    "TUNSETVNETLE": ("write", 220, 4, 0x400454DC, 0x800454DC),
    "TUNGETVNETLE": ("read", 221, 4, 0x800454DD, 0x400454DD),
    "TUNSETVNETBE": ("write", 222, 4, 0x400454DE, 0x800454DE),
    "TUNGETVNETBE": ("read", 223, 4, 0x800454DF, 0x400454DF),
    "TUNSETSTEERINGEBPF": ("read", 224, 4, 0x800454E0, 0x400454E0),
    "TUNSETFILTEREBPF": ("read", 225, 4, 0x800454E1, 0x400454E1),
    "TUNSETCARRIER": ("write", 226, 4, 0x400454E2, 0x800454E2),
    "TUNGETDEVNETNS": ("none", 227, 0, 0x54E3, 0x200054E3),
}


@pytest.mark.parametrize("name", KNOWN)
def test_ioctl_numbers(name: str) -> None:
    direction, nr, size, generic, three_bit = KNOWN[name]
    for machine in ("x86_64", "i686", "aarch64", "armv7l", "riscv64", "s390x", "loongarch64"):
        assert ioctl_number(direction, nr, size, machine) == generic
    for machine in ("mips", "mips64", "ppc64le", "ppc", "sparc64", "alpha"):
        assert ioctl_number(direction, nr, size, machine) == three_bit
    if direction != "none":
        swapped = {"read": "write", "write": "read"}[direction]
        assert ioctl_number(direction, nr, size, "parisc64") == ioctl_number(swapped, nr, size, "x86_64")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these constants are those of x86_64")
def test_constants_of_this_machine() -> None:
    assert {name: getattr(_abi, name) for name in KNOWN} == {name: row[3] for name, row in KNOWN.items()}


def test_ifreq_is_as_large_as_the_kernel_copies() -> None:
    # sockaddr-sized union after the name: struct ifmap, 24 bytes where pointers have 8.
    expected = 16 + (24 if struct.calcsize("P") == 8 else 16)
    assert expected == _abi.IFREQ_SIZE == len(Ifreq("tun0", 0).pack())


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/:%"), max_size=15).filter(
        lambda name: name not in (".", "..", "all", "default")
    ),
    st.integers(0, 0xFFFF),
)
def test_ifreq_round_trip(name: str, flags: int) -> None:
    if name not in (".", ".."):
        assert Ifreq.unpack(Ifreq(name, flags).pack()) == (name, flags)


@pytest.mark.parametrize("name", ["", "tun0", "vpn%d", "x" * 15, "é" * 7, "a.b", "%d"])
def test_names_that_are_fine(name: str) -> None:
    assert encode_name(name) == name.encode()


@pytest.mark.parametrize(
    "name", ["x" * 16, "é" * 8, ".", "..", "a/b", "a:b", "a b", "a\tb", "a\0b", "a%sb", "%d%d", "100%"]
)
def test_names_that_the_kernel_would_refuse_or_cut(name: str) -> None:
    with pytest.raises(ValueError, match="interface name"):
        encode_name(name)
