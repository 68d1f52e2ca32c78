"""Addresses of datagrams: text, tuples, and the bytes that the kernel takes. No descriptor, no name service."""

from __future__ import annotations

import socket
import struct
from typing import TypeAlias, cast

#: ``"192.0.2.1:51820"``, ``"[fd00::1]:51820"``, ``"[fe80::1%eth0]:51820"``, or a tuple as for `socket`.
AnyAddress: TypeAlias = "Address | str | tuple[str, int] | tuple[str, int, int, int]"

# struct sockaddr_in and sockaddr_in6: the family and, in the second, the scope are in the machine's own order.
_FAMILY = struct.Struct("=H")
_PORT = struct.Struct("!H")
_SCOPE = struct.Struct("=I")
#: Bytes of either, which an address begins with.
IN_SIZE, IN6_SIZE = 16, 28
_MAPPED = bytes(10) + b"\xff\xff"


class Address(bytes):
    """Where a datagram came from, or goes to: an IP address and a port, and the own address that belongs to it.

    It is a small value: compare it, use it as a key, keep it. What `UdpStream.read_datagrams` gives knows the own
    address that the datagram was sent to, and a reply to it leaves from there. Of two that differ in that alone,
    `remote` is the same.

    Args:
        value: ``"192.0.2.1:51820"``, ``"[fd00::1]:51820"``, ``"[fe80::1%eth0]:51820"`` (interfaces are those of the
            calling thread's namespace; a number is taken as it is), or a tuple of host and port, or of host, port, flow
            label (ignored) and scope.

    Raises:
        ValueError: It is none of these. Names of hosts are not looked up, which can take seconds:
            ``loop.getaddrinfo`` does that.
    """

    def __new__(cls, value: AnyAddress) -> Address:  # noqa: PYI034 - it has no subclass
        if isinstance(value, Address):
            return value
        host, port = split(value)
        if not host:
            raise ValueError(f"address {value!r} must name a host, as '192.0.2.1:51820'")
        return pack(host, port)

    def __reduce_ex__(self, protocol: object) -> tuple[object, tuple[bytes]]:
        return from_bytes, (bytes(self),)

    @property
    def family(self) -> socket.AddressFamily:
        """``AF_INET`` or ``AF_INET6``."""
        return socket.AddressFamily(_FAMILY.unpack_from(self)[0])

    @property
    def host(self) -> str:
        """The IP address as text; with ``%`` and the number of the interface, if it is link-local."""
        if self.family is socket.AF_INET:
            return socket.inet_ntoa(self[4:8])
        scope = self.scope
        return socket.inet_ntop(socket.AF_INET6, self[8:24]) + (f"%{scope}" if scope else "")

    @property
    def port(self) -> int:
        """The port."""
        return cast(int, _PORT.unpack_from(self, 2)[0])

    @property
    def scope(self) -> int:
        """The number of the interface that a link-local IPv6 address belongs to, or 0."""
        return 0 if self.family is socket.AF_INET else cast(int, _SCOPE.unpack_from(self, 24)[0])

    @property
    def local(self) -> str | None:
        """The own IP address that the datagram came to, and that a reply leaves from. None: the kernel chooses."""
        own = self[IN_SIZE:] if self.family is socket.AF_INET else self[IN6_SIZE:]
        return socket.inet_ntop(self.family, own) if own else None

    @property
    def remote(self) -> Address:
        """The same without an own address."""
        return from_bytes(self[:IN_SIZE] if self.family is socket.AF_INET else self[:IN6_SIZE])

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.family is socket.AF_INET else f"[{self.host}]:{self.port}"

    def __repr__(self) -> str:
        return f"<Address {self} to {self.local}>" if self.local else f"<Address {self}>"


def from_bytes(data: bytes) -> Address:
    """The address that these bytes are."""
    return bytes.__new__(Address, data)


def split(value: object) -> tuple[str, int]:
    """Host and port of what a user gave. The host may be empty (``":51820"``), and the whole (``""``).

    Raises:
        ValueError: It is no address.
        TypeError: It is neither text nor a tuple.
    """
    match value:
        case Address():
            return value.host, value.port
        case "":
            return "", 0
        case str():
            host, colon, text = value.rpartition(":")
            if host.startswith("[") and host.endswith("]"):
                host = host[1:-1]
                is_right = ":" in host
            else:
                is_right = ":" not in host
            if not (colon and is_right and text.isascii() and text.isdigit()):
                raise ValueError(
                    f"address {value!r} must be 'HOST:PORT', as '192.0.2.1:51820', '[fd00::1]:51820' or ':51820'"
                )
            port = int(text)
        case (str(host), int(port)):
            pass
        case (str(host), int(port), int(_), int(scope)):
            host += f"%{scope}" if scope and "%" not in host else ""
        case _:
            raise TypeError(f"an address is text such as '192.0.2.1:51820', or a tuple of host and port, not {value!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"address {value!r}: a port is a number from 0 to 65535")
    if host:
        _pack_host(host)
    return host, port


def pack(host: str, port: int) -> Address:
    """The address with these parts. *host* may name an interface of the calling thread's namespace.

    Raises:
        ValueError: *host* is not an IP address, or there is no such interface.
    """
    family, packed, scope = _pack_host(host)
    start = _FAMILY.pack(family) + _PORT.pack(port)
    if family is socket.AF_INET:
        name = start + packed + bytes(8)
    else:
        name = start + bytes(4) + packed + _SCOPE.pack(_scope(host, scope))
    return from_bytes(name)


def _pack_host(host: str) -> tuple[socket.AddressFamily, bytes, str]:
    """The family, the address, and the interface as it was named. An IPv4 address in IPv6 is one of IPv4."""
    plain, _, scope = host.partition("%")
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    try:
        packed = socket.inet_pton(family, plain)
    except OSError:
        raise ValueError(f"{host!r} is not an IP address; loop.getaddrinfo looks up names of hosts") from None
    if packed.startswith(_MAPPED):
        family, packed = socket.AF_INET, packed[12:]
    if scope and family is socket.AF_INET:
        raise ValueError(f"{host!r}: an IPv4 address has no interface")
    return family, packed, scope


def _scope(host: str, text: str) -> int:
    if not text:
        return 0
    if text.isascii() and text.isdigit():
        return int(text) & 0xFFFFFFFF
    try:
        return socket.if_nametoindex(text)
    except OSError:
        raise ValueError(f"{host!r}: there is no interface {text!r} in this network namespace") from None


def to_tuple(address: Address, family: socket.AddressFamily) -> tuple[str, int] | tuple[str, int, int, int]:
    """As a socket of *family* takes it: one of IPv6 takes IPv4 addresses as mapped ones."""
    if family is socket.AF_INET:
        return address.host, address.port
    if address.family is socket.AF_INET:
        return f"::ffff:{address.host}", address.port, 0, 0
    return socket.inet_ntop(socket.AF_INET6, address[8:24]), address.port, 0, address.scope
