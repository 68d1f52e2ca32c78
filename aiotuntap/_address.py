"""Addresses of datagrams, as text, as tuples, and as the bytes that the kernel takes. Host names are not resolved."""

from __future__ import annotations

import socket
import struct
from typing import TypeAlias, cast

#: ``"192.0.2.1:51820"``, ``"[fd00::1]:51820"``, ``"[fe80::1%eth0]:51820"``, or a tuple as for `socket`.
AnyAddress: TypeAlias = "Address | str | tuple[str, int] | tuple[str, int, int, int]"

# struct sockaddr_in and sockaddr_in6. The family and the scope have the byte order of the machine.
_FAMILY = struct.Struct("=H")
_PORT = struct.Struct("!H")
_SCOPE = struct.Struct("=I")
#: Size in bytes of each. An `Address` begins with one of them.
IN_SIZE, IN6_SIZE = 16, 28
_MAPPED = bytes(10) + b"\xff\xff"


class Address(bytes):
    """Source or destination of a datagram: an IP address and a port, and perhaps a local address.

    It is an immutable value: compare it, store it, or use it as a dictionary key. An address from
    `UdpStream.read_datagrams` also has the local address that the datagram was sent to; a reply is sent from there.
    Use `remote` to compare addresses without their local address.

    Args:
        value: ``"192.0.2.1:51820"``, ``"[fd00::1]:51820"``, ``"[fe80::1%eth0]:51820"``, a tuple of host and port, or a
            tuple of host, port, flow label (ignored) and scope. The interface after ``%`` is a name in the network
            namespace of the calling thread, or a number.

    Raises:
        ValueError: *value* is not a valid address. Host names are not resolved, because that can take seconds: use
            ``loop.getaddrinfo``.
        TypeError: *value* is neither text nor such a tuple.
    """

    def __new__(cls, value: AnyAddress) -> Address:  # noqa: PYI034 - it has no subclass
        if isinstance(value, Address):
            return value
        host, port = split(value)
        if not host:
            raise ValueError(f"address {value!r} must have a host, such as '192.0.2.1:51820'")
        return pack(host, port)

    def __reduce_ex__(self, protocol: object) -> tuple[object, tuple[bytes]]:
        return from_bytes, (bytes(self),)

    @property
    def family(self) -> socket.AddressFamily:
        """``AF_INET`` or ``AF_INET6``."""
        return socket.AddressFamily(_FAMILY.unpack_from(self)[0])

    @property
    def host(self) -> str:
        """The IP address as text. A link-local address ends with ``%`` and the index of its interface."""
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
        """The index of the interface of a link-local IPv6 address, or 0."""
        return 0 if self.family is socket.AF_INET else cast(int, _SCOPE.unpack_from(self, 24)[0])

    @property
    def local(self) -> str | None:
        """The local IP address that the datagram was sent to, and that a reply is sent from. None: the kernel chooses."""
        own = self[IN_SIZE:] if self.family is socket.AF_INET else self[IN6_SIZE:]
        return socket.inet_ntop(self.family, own) if own else None

    @property
    def remote(self) -> Address:
        """The same address without a local address."""
        return from_bytes(self[:IN_SIZE] if self.family is socket.AF_INET else self[:IN6_SIZE])

    def __str__(self) -> str:
        return to_text(self.host, self.port)

    def __repr__(self) -> str:
        return f"<Address {self} to {self.local}>" if self.local else f"<Address {self}>"


def from_bytes(data: bytes) -> Address:
    """The address with these bytes: a ``struct sockaddr``, and the local address if there is one."""
    return bytes.__new__(Address, data)


def to_text(host: str, port: int) -> str:
    """``"192.0.2.1:51820"`` or ``"[fd00::1]:51820"``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(value: object) -> tuple[str, int]:
    """Host and port of an address that a user passed. The host may be empty (``":51820"``), and so may all of it.

    Raises:
        ValueError: *value* is not a valid address.
        TypeError: *value* is neither text nor a tuple.
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
                    f"address {value!r} must be 'HOST:PORT', such as '192.0.2.1:51820', '[fd00::1]:51820' or ':51820'"
                )
            port = int(text)
        case (str(host), int(port)):
            pass
        case (str(host), int(port), int(_), int(scope)):
            host += f"%{scope}" if scope and "%" not in host else ""
        case _:
            raise TypeError(
                f"an address must be text such as '192.0.2.1:51820', or a tuple of host and port, not {value!r}"
            )
    if not 0 <= port <= 65535:
        raise ValueError(f"address {value!r}: the port must be from 0 to 65535, not {port}")
    if host:
        _pack_host(host)
    return host, port


def pack(host: str, port: int) -> Address:
    """The address of this host and port. *host* may contain an interface of the calling thread's namespace.

    Raises:
        ValueError: *host* is not an IP address, or the interface does not exist.
    """
    family, packed, scope = _pack_host(host)
    start = _FAMILY.pack(family) + _PORT.pack(port)
    if family is socket.AF_INET:
        name = start + packed + bytes(8)
    else:
        name = start + bytes(4) + packed + _SCOPE.pack(_scope(host, scope))
    return from_bytes(name)


def _pack_host(host: str) -> tuple[socket.AddressFamily, bytes, str]:
    """The family, the packed address, and the interface as text. An IPv4-mapped IPv6 address becomes an IPv4 address."""
    plain, _, scope = host.partition("%")
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    try:
        packed = socket.inet_pton(family, plain)
    except OSError:
        raise ValueError(
            f"{host!r} is not an IP address: pass the address; loop.getaddrinfo() resolves host names"
        ) from None
    if packed.startswith(_MAPPED):
        family, packed = socket.AF_INET, packed[12:]
    if scope and family is socket.AF_INET:
        raise ValueError(f"{host!r}: an IPv4 address must be given without an interface")
    return family, packed, scope


def _scope(host: str, text: str) -> int:
    if not text:
        return 0
    if text.isascii() and text.isdigit():
        return int(text) & 0xFFFFFFFF
    try:
        return socket.if_nametoindex(text)
    except OSError:
        raise ValueError(f"{host!r}: interface {text!r} does not exist in this network namespace") from None


def to_tuple(address: Address, family: socket.AddressFamily) -> tuple[str, int] | tuple[str, int, int, int]:
    """The address for a socket of this *family*. An IPv6 socket takes IPv4 addresses as IPv4-mapped ones."""
    if family is socket.AF_INET:
        return address.host, address.port
    if address.family is socket.AF_INET:
        return f"::ffff:{address.host}", address.port, 0, 0
    return socket.inet_ntop(socket.AF_INET6, address[8:24]), address.port, 0, address.scope
