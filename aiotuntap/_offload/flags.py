"""The rules for combining offloads, and which of them this kernel accepts. See TUNSETOFFLOAD in the kernel's tun.c."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

from .._errors import SetupError
from .._types import Offload

_SEGMENTED = Offload.TSO4 | Offload.TSO6 | Offload.USO4 | Offload.USO6

# The kernel accepts or refuses each of these as a whole. Each stands behind those that it needs.
_STEPS = (
    Offload.CSUM,
    Offload.TSO4,
    Offload.TSO6,
    Offload.ECN,
    Offload.USO4 | Offload.USO6,
    Offload.UDP_TUNNEL,
    Offload.UDP_TUNNEL_CSUM,
)


def check(offload: Offload) -> None:
    """Raises ValueError for a combination that every kernel refuses."""
    if offload and Offload.CSUM not in offload:
        reason = "all others need Offload.CSUM, because the checksum of a super-frame is not complete"
    elif bool(offload & Offload.USO4) != bool(offload & Offload.USO6):
        reason = "USO4 and USO6 must be given together"
    elif offload & Offload.ECN and not offload & (Offload.TSO4 | Offload.TSO6):
        reason = "ECN needs TSO4 or TSO6"
    elif offload & Offload.UDP_TUNNEL and not offload & _SEGMENTED:
        reason = "UDP_TUNNEL needs TSO4, TSO6, or USO4 and USO6"
    elif offload & Offload.UDP_TUNNEL_CSUM and not offload & Offload.UDP_TUNNEL:
        reason = "UDP_TUNNEL_CSUM needs UDP_TUNNEL"
    else:
        return
    raise ValueError(f"offload cannot be {offload}: {reason}")


def negotiate(offload: Offload, set_offload: Callable[[int], None]) -> Offload:
    """Turns offloads on and returns those that are on. With `Offload.ALL`, what the kernel does not have is left out.

    Raises:
        SetupError: The kernel refuses one that was asked for by name.
    """
    try:
        set_offload(offload.value)
        return offload
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    on = Offload.NONE
    refused = Offload.NONE
    for step in _STEPS:
        if step not in offload:
            continue
        try:
            set_offload((on | step).value)
            on |= step
        except OSError as error:
            if error.errno != errno.EINVAL:
                with suppress(OSError):
                    set_offload(0)
                raise
            refused |= step
    if Offload.ALL in offload:
        refused &= ~Offload.ALL
    if refused:
        set_offload(0)
        raise SetupError(
            errno.EINVAL,
            f"this kernel does not know {refused}: leave it out, or use Offload.ALL, which means those that the kernel has",
        )
    return on
