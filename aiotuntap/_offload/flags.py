"""Which offloads go together, and which of them this kernel takes. The rules are those of TUNSETOFFLOAD in tun.c."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

from .._errors import SetupError
from .._types import Offload

_SEGMENTED = Offload.TSO4 | Offload.TSO6 | Offload.USO4 | Offload.USO6

# What the kernel takes or refuses as one, each after those that it needs.
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
    """Raises ValueError for a combination that no kernel takes."""
    if offload and Offload.CSUM not in offload:
        reason = "every other one needs Offload.CSUM: a super-frame has no complete checksum"
    elif bool(offload & Offload.USO4) != bool(offload & Offload.USO6):
        reason = "USO4 and USO6 go only together"
    elif offload & Offload.ECN and not offload & (Offload.TSO4 | Offload.TSO6):
        reason = "ECN needs TSO4 or TSO6"
    elif offload & Offload.UDP_TUNNEL and not offload & _SEGMENTED:
        reason = "UDP_TUNNEL needs TSO4, TSO6, or USO4 and USO6"
    elif offload & Offload.UDP_TUNNEL_CSUM and not offload & Offload.UDP_TUNNEL:
        reason = "UDP_TUNNEL_CSUM needs UDP_TUNNEL"
    else:
        return
    raise ValueError(f"offload {offload}: {reason}")


def negotiate(offload: Offload, set_offload: Callable[[int], None]) -> Offload:
    """Turns offloads on and returns those that are. What the kernel lacks of `Offload.ALL` is left out.

    Raises:
        SetupError: It refuses one that was asked for by name.
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
            f"this kernel does not know {refused}: leave it out, or ask for Offload.ALL, which does so by itself",
        )
    return on
