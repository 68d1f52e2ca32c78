"""Where datagrams pass between Python and the kernel: recvmsg(2) with UDP_GRO, and sendmsg(2) with UDP_SEGMENT.

With the first, one message is many datagrams of one flow; with the second, many datagrams leave as one message and are
segmented by the kernel, or the network card. See udp(7). This is the plain version; the C engine has the same functions
(`_engine`). As in `_frames`, none of them waits, and what goes wrong is an answer and not an exception.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ._abi import READ_SIZE
from ._address import Address, from_bytes, pack, to_tuple
from ._frames import LOOK, MOST
from ._types import Buffer, Frame

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
IP_PKTINFO = 8

# Datagrams and bytes that leave in one message at most.
_MOST_IN_RUN = 64
_LARGEST_RUN = 65507
_MOST_MESSAGES = 128

_INT = struct.Struct("=i")
_SIZE = struct.Struct("=H")
# struct in_pktinfo: interface, own address, destination; struct in6_pktinfo: own address, interface.
_IN_PKTINFO = struct.Struct("=I4s4s")
_IN6_PKTINFO = struct.Struct("=16sI")
_CONTROL = socket.CMSG_SPACE(_INT.size) + socket.CMSG_SPACE(_IN_PKTINFO.size) + socket.CMSG_SPACE(_IN6_PKTINFO.size)

#: Datagrams as they are, or with their addresses; what stopped it; the messages with several datagrams, and how many
#: datagrams were in those; datagrams that were lost for lack of memory.
Received = tuple[list[bytes] | list[tuple[bytes, Address]], int | BaseException, int, int, int]
#: Datagrams that were sent; what stopped it; how many the message had that was refused; the messages with several
#: datagrams, and how many datagrams were in those.
Sent = tuple[int, int, int, int, int]


def receive_batch(sock: socket.socket, limit: int, enough: int, addresses: Mapping[bytes, Address] | None) -> Received:
    """Receives messages until the next one may go past *limit* datagrams, or there are *enough* bytes.

    The datagrams of one message stay together, so that there may be more than *limit*.

    Args:
        addresses: Gives the address for the bytes of one. None: the datagrams are wanted without.
    """
    datagrams: list[bytes | tuple[bytes, Address]] = []
    messages = segments = size = before = lost = 0
    try:
        for number in range(_MOST_MESSAGES):
            if (len(datagrams) + before > limit if number else limit < 1) or size >= enough:
                break
            data, control, _, name = sock.recvmsg(READ_SIZE, _CONTROL)
            lost = 1  # or as many as turn out to be in it, until they are kept
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
    except OSError as error:
        return datagrams, error.errno or errno.EIO, messages, segments, lost  # type: ignore[return-value]
    except BaseException as error:  # noqa: BLE001 - handed over
        return datagrams, error, messages, segments, lost  # type: ignore[return-value]
    return datagrams, 0, messages, segments, 0  # type: ignore[return-value]


def _address(name: tuple[Any, ...], described: dict[tuple[int, int], bytes]) -> Address:
    """The sender, and the own address to which it was sent if another datagram can come from there."""
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
    """Sends up to *most* of *frames*, from number *start* on, each of at most *largest* bytes.

    Several that follow each other and have one size leave in one message. The last of them may be shorter.

    Args:
        together: Bytes of the largest datagram that leaves together with others.
        to: The address they go to; None for that of a connected socket.

    Returns:
        What stopped it, if that is an ``errno`` or LOOK, belongs to the datagram after those that were sent.
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
    """Those that can leave in one message; none if the first one is not a plain buffer of a size that can be sent."""
    run: list[Buffer] = []
    first = size = all_bytes = 0
    for frame in frames[start:end]:
        try:
            with memoryview(frame) as view:  # type: ignore[arg-type]
                size = view.nbytes if view.c_contiguous else largest + 1
        except Exception:  # noqa: BLE001 - a frame in pieces, or not a frame: whatever its buffer raises
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
    """Sends one datagram that is in several pieces, or in memory with gaps. Returns 0 or the ``errno``."""
    return _send(sock, [b"".join(bytes(piece) for piece in pieces)], b"", to)


def _send(sock: socket.socket, pieces: Sequence[Buffer], segment: bytes, to: Address | None) -> int:
    if to is not None and to.family is socket.AF_INET6 and sock.family is socket.AF_INET:
        return errno.EAFNOSUPPORT  # else it would be looked up as the name of a host
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
        return error.errno or errno.EIO
    return 0
