"""The text protocol of ``wg``: https://www.wireguard.com/xplatform/, "Configuration Protocol".

A *set* request is parsed completely before it is applied. So a request that is refused changes nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

from aiotuntap.udp import Address

from .device import Device
from .peer import Peer
from .routes import Network

_KEY_SIZE = 32


class UapiError(Exception):
    """A request is refused. ``wg`` shows *number* as the errno."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@dataclass(slots=True)
class PeerChange:
    """The changes of one peer. None means no change."""

    public_key: bytes
    remove: bool = False
    #: Whether to change the peer only if it exists already.
    update_only: bool = False
    preshared_key: bytes | None = None
    endpoint: Address | None = None
    persistent_keepalive: int | None = None
    replace_allowed_ips: bool = False
    #: Networks in order. True adds the network, False removes it.
    allowed_ips: list[tuple[Network, bool]] = field(default_factory=list)


@dataclass(slots=True)
class Changes:
    """The changes of the interface. None means no change. A private key of zeros removes the key."""

    private_key: bytes | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    #: In order. The same peer may occur twice.
    peers: list[PeerChange] = field(default_factory=list)


def parse(lines: Iterable[str]) -> Changes:
    """Parses the lines after ``set=1``, without the empty line at the end.

    Raises:
        UapiError: EPROTO for a line that is not ``key=value``, EINVAL for an unknown key or an invalid value.
    """
    changes = Changes()
    peer: PeerChange | None = None
    for number, line in enumerate(lines, 1):
        key, equals, value = line.partition("=")
        if not equals:
            raise UapiError(errno.EPROTO, f"line {number} must be KEY=VALUE")  # the line is not shown: it may be a key
        if key == "public_key":
            peer = PeerChange(_key(value))
            changes.peers.append(peer)
        elif peer is None:
            _parse_interface(changes, key, value)
        else:
            _parse_peer(peer, key, value)
    return changes


def _parse_interface(changes: Changes, key: str, value: str) -> None:
    match key:
        case "private_key":
            changes.private_key = _key(value)
        case "listen_port":
            changes.listen_port = _number(key, value, 0xFFFF)
        case "fwmark":
            changes.fwmark = _number(key, value, 0xFFFFFFFF)
        case "replace_peers":
            changes.replace_peers = _true(key, value)
        case _:
            raise UapiError(errno.EINVAL, f"{key!r} is not a setting of an interface")


def _parse_peer(peer: PeerChange, key: str, value: str) -> None:
    match key:
        case "remove":
            peer.remove = _true(key, value)
        case "update_only":
            peer.update_only = _true(key, value)
        case "preshared_key":
            peer.preshared_key = _key(value)
        case "endpoint":
            peer.endpoint = _endpoint(value)
        case "persistent_keepalive_interval":
            peer.persistent_keepalive = _number(key, value, 0xFFFF)
        case "replace_allowed_ips":
            peer.replace_allowed_ips = _true(key, value)
            peer.allowed_ips.clear()
        case "allowed_ip":
            removed = value.startswith("-")
            peer.allowed_ips.append((_network(value[removed:]), not removed))
        case "protocol_version":
            if value != "1":
                raise UapiError(errno.EINVAL, f"protocol_version must be 1, not {value!r}")
        case _:
            raise UapiError(errno.EINVAL, f"{key!r} is not a setting of a peer")


def apply(changes: Changes, device: Device) -> None:
    """Applies all changes except the listening port and the mark, which belong to the owner of the socket."""
    if changes.private_key is not None:
        device.private_key = changes.private_key
    if changes.replace_peers:
        for public_key in list(device.peers):
            device.remove_peer(public_key)
    for change in changes.peers:
        _apply_to_peer(change, device)


def _apply_to_peer(change: PeerChange, device: Device) -> None:
    known = change.public_key in device.peers
    if change.public_key == device.public_key or (change.update_only and not known):
        return
    if change.remove:
        device.remove_peer(change.public_key)
        return
    peer = device.add_peer(change.public_key)
    if change.preshared_key is not None:
        peer.preshared_key = change.preshared_key
    if change.endpoint is not None:
        peer.endpoint = change.endpoint
    if change.replace_allowed_ips:
        device.routes.remove_peer(peer)
    for network, added in change.allowed_ips:
        if added:
            device.routes.insert(network, peer)
        else:
            device.routes.remove(network, peer)
    if change.persistent_keepalive is not None:
        peer.persistent_keepalive = change.persistent_keepalive


def describe(device: Device) -> Iterator[str]:
    """The lines of the answer to ``get=1``, without the final ``errno``."""
    if device.private_key is not None:
        yield f"private_key={device.private_key.hex()}"
    if device.listen_port:
        yield f"listen_port={device.listen_port}"
    if device.fwmark:
        yield f"fwmark={device.fwmark}"
    for peer in device.peers.values():
        yield from _describe_peer(peer, device)


def _describe_peer(peer: Peer, device: Device) -> Iterator[str]:
    yield f"public_key={peer.public_key.hex()}"
    yield f"preshared_key={peer.preshared_key.hex()}"
    yield "protocol_version=1"
    if peer.endpoint is not None:
        yield f"endpoint={peer.endpoint}"
    seconds, nanoseconds = divmod(peer.last_handshake, 10**9)
    yield f"last_handshake_time_sec={seconds}"
    yield f"last_handshake_time_nsec={nanoseconds}"
    yield f"tx_bytes={peer.tx_bytes}"
    yield f"rx_bytes={peer.rx_bytes}"
    yield f"persistent_keepalive_interval={peer.persistent_keepalive}"
    for network in device.routes.of(peer):
        yield f"allowed_ip={network}"


# -- values ------------------------------------------------------------------------------------------------------------


def _endpoint(text: str) -> Address:
    try:
        return Address(text)
    except ValueError as error:
        raise UapiError(errno.EINVAL, f"endpoint: {error}") from error


def _key(text: str) -> bytes:
    # bytes.fromhex() would also take spaces.
    if len(text) == 2 * _KEY_SIZE and not text.strip("0123456789abcdefABCDEF"):
        return bytes.fromhex(text)
    raise UapiError(errno.EINVAL, f"a key must be {2 * _KEY_SIZE} hexadecimal digits, not {len(text)} characters")


def _number(key: str, text: str, largest: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= largest:
        return int(text)
    raise UapiError(errno.EINVAL, f"{key} must be from 0 to {largest}, not {text!r}")


def _true(key: str, text: str) -> bool:
    if text == "true":
        return True
    raise UapiError(errno.EINVAL, f"{key} must be 'true', not {text!r}")


def _network(text: str) -> Network:
    address, slash, length = text.partition("/")
    try:
        if slash and length.isascii() and length.isdecimal() and "%" not in address:
            return ip_network(text, strict=False)
    except ValueError:
        pass
    raise UapiError(errno.EINVAL, f"allowed_ip must be ADDRESS/LENGTH, not {text!r}")
