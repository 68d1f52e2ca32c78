"""Receives and sends datagrams: recvmsg(2) with UDP_GRO, and sendmsg(2) with UDP_SEGMENT.

With UDP_GRO, one received message holds several datagrams of one flow. With UDP_SEGMENT, several datagrams are sent as
one message, which the kernel or the network card segments. See udp(7). This is the reference version in Python; the C
engine has the same functions (`_engine`). As in `_frames`, no function waits, and errors are returned, not raised.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ._abi import READ_SIZE
from ._address import Address, from_bytes, pack, to_tuple
from ._frames import LOOK, MOST, number_of
from ._types import Buffer, Frame

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
IP_PKTINFO = 8

# The most datagrams and bytes to send in one message, and the most messages to receive in one call.
_MOST_IN_RUN = 64
_LARGEST_RUN = 65507
_MOST_MESSAGES = 128

_INT = struct.Struct("=i")
_SIZE = struct.Struct("=H")
# struct in_pktinfo: interface, local address, destination. struct in6_pktinfo: local address, interface.
_IN_PKTINFO = struct.Struct("=I4s4s")
_IN6_PKTINFO = struct.Struct("=16sI")
_CONTROL = socket.CMSG_SPACE(_INT.size) + socket.CMSG_SPACE(_IN_PKTINFO.size) + socket.CMSG_SPACE(_IN6_PKTINFO.size)

#: The datagrams, with or without their addresses; the errno or exception that stopped receiving, or 0; how many messages
#: had several datagrams; how many datagrams those had; how many datagrams were lost for lack of memory.
Received = tuple[list[bytes] | list[tuple[bytes, Address]], int | BaseException, int, int, int]
#: How many datagrams were sent; the errno that stopped sending, LOOK, or 0; how many datagrams the refused message had;
#: how many messages had several datagrams; how many datagrams those had.
Sent = tuple[int, int, int, int, int]


def receive_batch(sock: socket.socket, limit: int, enough: int, addresses: Mapping[bytes, Address] | None) -> Received:
    """Receives messages until the next one may exceed *limit* datagrams, or until there are *enough* bytes.

    A message is received whole, so the result may have more than *limit* datagrams.

    Args:
        addresses: Maps the bytes of an address to the `Address`. None returns datagrams without addresses.
    """
    datagrams: list[bytes | tuple[bytes, Address]] = []
    messages = segments = size = before = lost = 0
    try:
        for number in range(_MOST_MESSAGES):
            if (len(datagrams) + before > limit if number else limit < 1) or size >= enough:
                break
            data, control, _, name = sock.recvmsg(READ_SIZE, _CONTROL)
            lost = 1  # until the datagrams of this message are stored: an exception may come before
            described = {(level, kind): value for level, kind, value in control}
            segment = _INT.unpack(described.get((SOL_UDP, UDP_GRO), bytes(4))[:4])[0]
            pieces = [data[at : at + segment] for at in range(0, len(data), segment)] if segment else [data]
            lost = len(pieces)
            if addresses is None:
                datagrams += pieces
            else:
                address = addresses[bytes(_address(name, described))]
                datagrams += [(piece, address) for piece in pieces]
            before, lost = lost, 0
            size += len(data)
            if before > 1:
                messages += 1
                segments += before
    except BaseException as error:  # noqa: BLE001 - handed over
        stopped: int | BaseException = error.errno if isinstance(error, OSError) and error.errno else error
        return datagrams, stopped, messages, segments, lost  # type: ignore[return-value]
    return datagrams, 0, messages, segments, 0  # type: ignore[return-value]


def _address(name: tuple[Any, ...], described: dict[tuple[int, int], bytes]) -> Address:
    """The sender, with the local address that it sent to, unless that is a broadcast or multicast address."""
    host = name[0].partition("%")[0] + (f"%{name[3]}" if len(name) > 3 and name[3] else "")
    address = pack(host, name[1])
    own = b""
    if address.family is socket.AF_INET:
        if (socket.IPPROTO_IP, IP_PKTINFO) in described:
            own = _IN_PKTINFO.unpack(described[socket.IPPROTO_IP, IP_PKTINFO])[1]
            if own in (bytes(4), b"\xff" * 4) or 224 <= own[0] < 240:
                own = b""
    elif (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) in described:
        own = _IN6_PKTINFO.unpack(described[socket.IPPROTO_IPV6, socket.IPV6_PKTINFO])[0]
        if own[0] == 0xFF:
            own = b""
    return from_bytes(address + own)


def send_batch(
    sock: socket.socket,
    largest: int,
    together: int,
    start: int,
    most: int,
    frames: Sequence[Frame],
    to: bytes | None,
) -> Sent:
    """Sends up to *most* of *frames*, from index *start* on, each of at most *largest* bytes.

    Consecutive datagrams of one size are sent in one message. The last of them may be shorter.

    Args:
        together: Size in bytes of the largest datagram that may be sent together with others.
        to: The destination. None means the address that the socket is connected to.

    Returns:
        See `Sent`. The ``errno`` or LOOK is about the first datagram that was not sent.
    """
    sent = messages = coalesced = 0
    end = start + min(most, MOST, len(frames) - start)
    address = None if to is None else from_bytes(to)
    while start + sent < end:
        run = _run(frames, start + sent, end, largest, together)
        if not run:
            return sent, LOOK, 0, messages, coalesced
        number = _send(sock, run, _SIZE.pack(memoryview(run[0]).nbytes) if len(run) > 1 else b"", address)
        if number:
            return sent, number, len(run), messages, coalesced
        sent += len(run)
        if len(run) > 1:
            messages += 1
            coalesced += len(run)
    return sent, 0, 0, messages, coalesced


def _run(frames: Sequence[Frame], start: int, end: int, largest: int, together: int) -> list[Buffer]:
    """Datagrams that can be sent in one message. None if the first is not a contiguous buffer of a valid size."""
    run: list[Buffer] = []
    first = size = all_bytes = 0
    for frame in frames[start:end]:
        if type(frame) is bytes:
            size = len(frame)
        else:
            try:
                with memoryview(frame) as view:  # type: ignore[arg-type]
                    size = view.nbytes if view.c_contiguous else largest + 1
            except Exception:  # noqa: BLE001 - a frame in pieces, or not a frame: its buffer may raise anything
                break
        if size > largest:
            break
        if not run:
            first = size
        elif not 0 < size <= first or all_bytes + size > _LARGEST_RUN:
            break
        run.append(frame)  # type: ignore[arg-type]
        all_bytes += size
        if len(run) == _MOST_IN_RUN or size < first or not 0 < first <= together:
            break
    return run


def send_pieces(sock: socket.socket, pieces: Sequence[Buffer], to: Address | None) -> int:
    """Sends one datagram that consists of several buffers, or of one that is not contiguous. Returns 0 or the ``errno``."""
    return _send(sock, [b"".join(bytes(piece) for piece in pieces)], b"", to)


def _send(sock: socket.socket, pieces: Sequence[Buffer], segment: bytes, to: Address | None) -> int:
    if to is not None and to.family is socket.AF_INET6 and sock.family is socket.AF_INET:
        return errno.EAFNOSUPPORT  # Python would try to resolve the IPv6 address as a host name
    control: list[tuple[int, int, bytes]] = []
    if segment:
        control.append((SOL_UDP, UDP_SEGMENT, segment))
    if to is not None and to.local is not None:
        own = socket.inet_pton(to.family, to.local)
        if to.family is socket.AF_INET:
            control.append((socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.pack(0, own, bytes(4))))
        else:
            scope = to.scope if own[:2] == b"\xfe\x80" else 0
            control.append((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(own, scope)))
    try:
        sock.sendmsg(pieces, control, 0, None if to is None else to_tuple(to, socket.AddressFamily(sock.family)))
    except OSError as error:
        return number_of(error)
    return 0
