"""The kernel's TUN/TAP interface as numbers and bytes: ``<linux/if_tun.h>`` and the parts of ``<linux/if.h>`` it needs.

Nothing here opens anything. Numbers that depend on the architecture are computed from what they encode.
"""

from __future__ import annotations

import platform
import struct
from typing import NamedTuple

NODE = "/dev/net/tun"

# -- ioctl numbers: <asm-generic/ioctl.h> and its exceptions ----------------------------------------------------------

_NONE, _WRITE, _READ = "none", "write", "read"

_GENERIC = ({_NONE: 0, _WRITE: 1, _READ: 2}, 30)
_THREE_BIT_DIRECTION = ({_NONE: 1, _READ: 2, _WRITE: 4}, 29)
_PARISC = ({_NONE: 0, _READ: 1, _WRITE: 2}, 30)


def ioctl_number(direction: str, nr: int, size: int, machine: str | None = None) -> int:
    """Number of a TUN/TAP ioctl (type ``'T'``) on *machine*, as ``_IO``, ``_IOW`` and ``_IOR`` build it.

    Args:
        direction: ``"none"``, ``"write"`` (user space to kernel) or ``"read"``.
        nr: Sequence number within the type.
        size: ``sizeof`` of the argument in bytes.
        machine: As ``platform.machine()`` reports it; by default that of this machine.
    """
    machine = platform.machine() if machine is None else machine
    if machine.startswith(("alpha", "mips", "ppc", "sparc")):
        directions, shift = _THREE_BIT_DIRECTION
    elif machine.startswith("parisc"):
        directions, shift = _PARISC
    else:
        directions, shift = _GENERIC
    return directions[direction] << shift | size << 16 | ord("T") << 8 | nr


_INT = struct.calcsize("@i")
_SOCK_FPROG = struct.calcsize("@HP")

TUNSETNOCSUM = ioctl_number(_WRITE, 200, _INT)
TUNSETDEBUG = ioctl_number(_WRITE, 201, _INT)
TUNSETIFF = ioctl_number(_WRITE, 202, _INT)
TUNSETPERSIST = ioctl_number(_WRITE, 203, _INT)
TUNSETOWNER = ioctl_number(_WRITE, 204, _INT)
TUNSETLINK = ioctl_number(_WRITE, 205, _INT)
TUNSETGROUP = ioctl_number(_WRITE, 206, _INT)
TUNGETFEATURES = ioctl_number(_READ, 207, _INT)
TUNSETOFFLOAD = ioctl_number(_WRITE, 208, _INT)
TUNSETTXFILTER = ioctl_number(_WRITE, 209, _INT)
TUNGETIFF = ioctl_number(_READ, 210, _INT)
TUNGETSNDBUF = ioctl_number(_READ, 211, _INT)
TUNSETSNDBUF = ioctl_number(_WRITE, 212, _INT)
TUNATTACHFILTER = ioctl_number(_WRITE, 213, _SOCK_FPROG)
TUNDETACHFILTER = ioctl_number(_WRITE, 214, _SOCK_FPROG)
TUNGETVNETHDRSZ = ioctl_number(_READ, 215, _INT)
TUNSETVNETHDRSZ = ioctl_number(_WRITE, 216, _INT)
TUNSETQUEUE = ioctl_number(_WRITE, 217, _INT)
TUNSETIFINDEX = ioctl_number(_WRITE, 218, _INT)
TUNGETFILTER = ioctl_number(_READ, 219, _SOCK_FPROG)
TUNSETVNETLE = ioctl_number(_WRITE, 220, _INT)
TUNGETVNETLE = ioctl_number(_READ, 221, _INT)
TUNSETVNETBE = ioctl_number(_WRITE, 222, _INT)
TUNGETVNETBE = ioctl_number(_READ, 223, _INT)
TUNSETSTEERINGEBPF = ioctl_number(_READ, 224, _INT)
TUNSETFILTEREBPF = ioctl_number(_READ, 225, _INT)
TUNSETCARRIER = ioctl_number(_WRITE, 226, _INT)
TUNGETDEVNETNS = ioctl_number(_NONE, 227, 0)

# Socket ioctls are plain constants, the same on every architecture: <linux/sockios.h>.
SIOCGIFHWADDR = 0x8927
SIOCSIFHWADDR = 0x8924
SIOCGSKNS = 0x894C

# -- TUNSETIFF and TUNSETQUEUE flags ----------------------------------------------------------------------------------

IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_NAPI = 0x0010
IFF_NAPI_FRAGS = 0x0020
IFF_NO_CARRIER = 0x0040
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400
IFF_PERSIST = 0x0800
IFF_NO_PI = 0x1000
IFF_NOFILTER = 0x1000  # the same bit: what TUNGETIFF reports there says nothing about packet information
IFF_ONE_QUEUE = 0x2000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

# -- TUNSETOFFLOAD bits -----------------------------------------------------------------------------------------------

TUN_F_CSUM = 0x001
TUN_F_TSO4 = 0x002
TUN_F_TSO6 = 0x004
TUN_F_TSO_ECN = 0x008
TUN_F_UFO = 0x010
TUN_F_USO4 = 0x020
TUN_F_USO6 = 0x040
TUN_F_UDP_TUNNEL_GSO = 0x080
TUN_F_UDP_TUNNEL_GSO_CSUM = 0x100

TUN_PKT_STRIP = 0x0001
TUN_FLT_ALLMULTI = 0x0001

# -- sizes, in bytes --------------------------------------------------------------------------------------------------

MAX_QUEUES = 256
PI_SIZE = 4
ETHERNET_HEADER_SIZE = 14
VLAN_TAG_SIZE = 4
MAX_PACKET = 65535
#: Holds the largest frame that any mode can produce (packet information, a 24-byte virtio_net_hdr, Ethernet and VLAN
#: headers, a 64 KiB super-frame): the kernel silently cuts off what a read has no room for.
READ_SIZE = 65664

# -- struct ifreq -----------------------------------------------------------------------------------------------------

IFNAMSIZ = 16
# The kernel copies all 40 bytes (32 where pointers have 4), so a shorter buffer would let it write past its end.
_IFREQ = struct.Struct("16sH22x" if struct.calcsize("@P") == 8 else "16sH14x")
IFREQ_SIZE = _IFREQ.size


class Ifreq(NamedTuple):
    """Name and flags of ``struct ifreq``, as TUNSETIFF, TUNGETIFF and TUNSETQUEUE use it."""

    name: str
    flags: int

    def pack(self) -> bytearray:
        """A buffer that an ioctl may write its answer into."""
        return bytearray(_IFREQ.pack(encode_name(self.name), self.flags))

    @classmethod
    def unpack(cls, buffer: bytes | bytearray) -> Ifreq:
        name, flags = _IFREQ.unpack(buffer)
        return cls(name.partition(b"\0")[0].decode("utf-8", "surrogateescape"), flags)


def encode_name(name: str) -> bytes:
    """The bytes of an interface name or template.

    Raises:
        ValueError: The kernel would refuse the name, or silently cut it to 15 bytes.
        TypeError: It is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) >= IFNAMSIZ:
        raise ValueError(f"interface name must have at most {IFNAMSIZ - 1} bytes, and {name!r} has {len(encoded)}")
    # Byte by byte, as the kernel looks at it: to its isspace(), 0xA0 is a space, in the middle of an "à" too.
    if name in (".", "..") or any(byte in b"/:\0 \t\n\v\f\r\xa0" for byte in encoded):
        raise ValueError(
            f"interface name must not contain '/', ':', NUL or white space, or be '.' or '..', and this is {name!r}"
        )
    if name in ("all", "default"):
        raise ValueError(f"interface name must not be {name!r}: the kernel uses it for the settings of all interfaces")
    if "%" in name and (name.count("%") != 1 or "%d" not in name):
        raise ValueError(
            f"interface name must contain '%d' once and no other '%', or no '%' at all, and this is {name!r}"
        )
    return encoded
