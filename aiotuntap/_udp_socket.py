"""Makes the socket of a `UdpStream`: bound, connected, with its options set."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from ._address import Address, pack, to_text
from ._datagrams import IP_PKTINFO, SOL_UDP, UDP_GRO, UDP_SEGMENT
from ._errors import cannot
from ._netns import Namespace, enter

#: Host and port. An empty host means all addresses of this machine.
Name = tuple[str, int]

# Bytes that the kernel is asked to buffer in each direction.
_KERNEL_BUFFER = 1 << 22

# Linux names that Python's `socket` does not have: they set a buffer over net.core.[rw]mem_max, with CAP_NET_ADMIN.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

# SO_MARK is unsigned. setsockopt() takes a signed number from Python, so the mark is passed as bytes.
_MARK = struct.Struct("=I")

_NO_ROUTE = "there is no route to it: add a route, or choose another remote address"
_NO_INTERFACE = "a link-local address needs its interface, such as '[fe80::1%eth0]:51820'"
_BIND_HINTS = {
    errno.EADDRINUSE: "another socket uses this address: choose another port, or pass reuse_port=True to both sockets",
    errno.EADDRNOTAVAIL: "it is not an address of this machine, or not of this network namespace",
    errno.EACCES: "ports below 1024 require CAP_NET_BIND_SERVICE: choose a higher port, or run as root",
}
_CONNECT_HINTS = {
    errno.EACCES: "UdpStream does not send to broadcast addresses: choose another remote address",
    errno.EADDRNOTAVAIL: "this machine has no address to send from: add an address of the same family",
    errno.EINVAL: "a loopback address reaches only this machine: choose another local address",
    errno.ENETUNREACH: _NO_ROUTE,
    errno.EHOSTUNREACH: _NO_ROUTE,
}
_MARK_HINTS = {errno.EPERM: "marks require CAP_NET_ADMIN: run as root, or leave out the mark"}


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What the caller of `UdpStream` chose for its socket."""

    local: Name
    remote: Name | None
    reuse_port: bool
    mark: int | None


def check_names(local: Name, remote: Name | None) -> None:
    """Raises ValueError where *remote* is incomplete, or does not have the address family of *local*."""
    if remote is None:
        return
    if not remote[0] or not remote[1]:
        raise ValueError(f"remote {to_text(*remote)!r} must have a host and a port, such as '192.0.2.1:51820'")
    if local[0] and _family_of(local[0]) is not _family_of(remote[0]):
        raise ValueError(
            f"local {to_text(*local)!r} and remote {to_text(*remote)!r} must be of one family, IPv4 or IPv6"
        )


def pack_mark(mark: int) -> bytes:
    """The mark as SO_MARK takes it. Raises ValueError where it is not a number of 32 bits."""
    try:
        return _MARK.pack(mark)
    except struct.error:
        raise ValueError(f"mark must be a number from 0 to 0xFFFFFFFF, not {mark!r}") from None


def set_mark(sock: socket.socket, mark: int) -> None:
    """Sets the mark of all datagrams that the socket sends from now on. The mark that it has already takes no privilege."""
    new = pack_mark(mark)
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK.size) != new:
        _attempt(f"mark datagrams with {mark}", _MARK_HINTS, sock.setsockopt, socket.SOL_SOCKET, socket.SO_MARK, new)


def make_socket(options: SocketOptions, netns: Namespace) -> socket.socket:
    """A socket that is bound to *local*, and connected to *remote* if there is one.

    It blocks, and the calling thread stays in *netns*: run it on a thread of its own (`run_in_thread`).

    Raises:
        SetupError: The kernel refuses one of the steps. No socket is left open.
        ValueError: A link-local address names an interface that does not exist in *netns*.
    """
    enter(netns)
    (host, port), remote = options.local, options.remote
    families = [_family_of(name) for name in (host, remote[0] if remote else "") if name]
    both = not families
    sock = _open(families[0] if families else None)
    try:
        _set_options(sock, options, both=both)
        _attempt(
            f"bind {to_text(host or '*', port)}", _hints(_BIND_HINTS, host), sock.bind, _sockaddr(sock, host, port)
        )
        if remote is not None:
            _attempt(
                f"connect to {to_text(*remote)}",
                _hints(_CONNECT_HINTS, remote[0]),
                sock.connect,
                _sockaddr(sock, *remote),
            )
    except BaseException:
        sock.close()
        raise
    return sock


def _open(family: socket.AddressFamily | None) -> socket.socket:
    """A socket of this family. None means both: one of IPv6, or of IPv4 where the kernel has no IPv6."""
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    try:
        return socket.socket(family or socket.AF_INET6, kind)
    except OSError as error:
        if family is not None or error.errno != errno.EAFNOSUPPORT:
            raise cannot("open a UDP socket", error) from error
    try:
        return socket.socket(socket.AF_INET, kind)
    except OSError as error:
        raise cannot("open a UDP socket", error) from error


def _set_options(sock: socket.socket, options: SocketOptions, *, both: bool) -> None:
    is_v6 = sock.family == socket.AF_INET6
    if is_v6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
    if options.reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if options.mark is not None:
        set_mark(sock, options.mark)
    for forced, option in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, _KERNEL_BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, option, _KERNEL_BUFFER)
    if options.remote is None:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        if is_v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def turn_on_gro(sock: socket.socket) -> bool:
    """Asks the kernel to join received datagrams of one flow. Returns whether it can."""
    return _has_option(sock, UDP_GRO, 1)


def has_gso(sock: socket.socket) -> bool:
    """Whether this kernel can send several datagrams in one message."""
    return _has_option(sock, UDP_SEGMENT, 0)


def _has_option(sock: socket.socket, option: int, value: int) -> bool:
    try:
        sock.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True


def address_of(name: tuple[Any, ...]) -> Address:
    """The address from ``getsockname()`` or ``getpeername()``.

    A link-local address has its interface twice there: as a name in the text, which is one of the calling thread's
    namespace and may be wrong, and as a number. The number is used.
    """
    host = str(name[0]).partition("%")[0]
    return pack(f"{host}%{name[3]}" if len(name) > 3 and name[3] else host, name[1])


def _family_of(host: str) -> socket.AddressFamily:
    return pack(host.partition("%")[0], 0).family


def _sockaddr(sock: socket.socket, host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if not host:
        return "", port
    address = pack(host, port)
    return (address.host, port) if sock.family == socket.AF_INET else (host.partition("%")[0], port, 0, address.scope)


def _hints(hints: Mapping[int, str], host: str) -> Mapping[int, str]:
    """The hints for an action with this address: the kernel answers EINVAL to a link-local one without an interface."""
    if ":" in host and "%" not in host and ip_address(pack(host, 0).host).is_link_local:
        return {**hints, errno.EINVAL: _NO_INTERFACE}
    return hints


def _attempt(action: str, hints: Mapping[int, str], call: Any, *arguments: Any) -> None:
    try:
        call(*arguments)
    except OSError as error:
        raise cannot(action, error, hints.get(error.errno or 0, "")) from error
