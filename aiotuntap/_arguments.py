"""Checks of arguments: each message says what is wrong with the value, and what it must be."""

from __future__ import annotations

from ._types import Offload


def check_fd(what: str, fd: int) -> int:
    if not isinstance(fd, int) or isinstance(fd, bool) or not 0 <= fd < 1 << 31:
        raise TypeError(f"{what} must be a file descriptor, which is a number of at least 0, not {fd!r}")
    return fd


def check_transparent(offload: Offload, packet_info: bool) -> None:
    tunnels = offload & (Offload.UDP_TUNNEL | Offload.UDP_TUNNEL_CSUM)
    if tunnels:
        raise ValueError(
            f"offload {tunnels} needs vnet_header=True, because super-frames inside a tunnel are not segmented here"
        )
    if packet_info:
        raise ValueError("packet_info=True with offload needs vnet_header=True")


def check_flags(**flags: bool) -> None:
    for what, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{what} must be True or False, not {flag!r}")


def check_whole(what: str, number: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{what} must be a whole number, not {number!r}")


def check_count(what: str, count: int) -> None:
    check_whole(what, count)
    if count < 1:
        raise ValueError(f"{what} must be at least 1, not {count}")
