"""Why the kernel refused to attach, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from .._abi import MAX_QUEUES
from .._device import AttachError, Options, QueueFile, header_size
from .._errors import SetupError
from .._netns import Namespace
from .._types import Link
from .link import find


async def explain(error: AttachError, options: Options, netns: Namespace) -> SetupError:
    """The SetupError that a refused TUNSETIFF stands for."""
    cause = error.cause
    name = error.name or f"{options.mode}%d"
    interface = await find(error.name, netns) if error.name and "%" not in error.name else None
    text = mismatch(interface, options) if interface is not None else None
    if cause.errno == errno.EINVAL and text is not None:
        pass
    elif cause.errno == errno.EINVAL and options.napi:
        text = "the kernel refuses these flags: napi=True needs a kernel that has IFF_NAPI, 4.15 or later"
    elif cause.errno == errno.EBUSY and options.exclusive:
        text = "it exists already, and exclusive=True refuses to attach: use another name, or remove it"
    elif cause.errno == errno.EBUSY:
        text = "its only queue is in use: close the program that holds it, or make the interface with multi_queue=True"
    elif cause.errno == errno.E2BIG:
        text = f"it has {MAX_QUEUES} queues, open ones and disabled ones together, and that is the limit: close some"
    elif cause.errno == errno.EPERM and interface is None:
        text = (
            "creating an interface takes CAP_NET_ADMIN: run as root, inside 'unshare -Urn', or have root make a"
            f" persistent one for you: 'ip tuntap add mode {options.mode} name NAME user USER"
            f"{' multi_queue' if options.multi_queue else ''}'"
        )
    elif cause.errno == errno.EPERM and not _ownership(interface):
        text = (
            "it exists without an owner, and attaching to it takes CAP_NET_ADMIN on this kernel: run as root, or have"
            f" root make it for you: 'ip tuntap add mode {options.mode} name {name} user USER"
            f"{' multi_queue' if options.multi_queue else ''}'"
        )
    elif cause.errno == errno.EPERM:
        text = f"it exists and belongs to {_ownership(interface)}: run as its owner or with CAP_NET_ADMIN"
    else:
        text = f"the kernel refuses: {cause.strerror}"
    return SetupError(cause.errno, f"cannot open {options.mode} interface {name!r}: {text}")


async def check_headers(name: str, options: Options, netns: Namespace, mine: Sequence[QueueFile] = ()) -> None:
    """Raises SetupError when the interface that was attached to frames its packets in another way.

    The kernel ignores these flags on every queue but the first, and echoes them back as if it had accepted them. The
    size of the header it would change for everybody, hence the look at whether anybody else is there.
    """
    interface = await find(name, netns)
    text = mismatch(interface, options) if interface is not None else None
    if text is None and interface is not None and mine and options.has_header:
        others = (interface.queues or 0) + (interface.disabled_queues or 0) - len(mine)
        size = header_size(mine[0])
        if others > 0 and size != options.vnet_header_size:
            text = f"another program uses it with headers of {size} bytes, and these offloads need {options.vnet_header_size}"
    if text is not None:
        raise SetupError(errno.EINVAL, f"cannot open {options.mode} interface {name!r}: {text}")


def mismatch(interface: Link, options: Options) -> str | None:
    """How an existing interface differs from what was asked for."""
    if interface.mode is None:
        kind = "" if interface.kind is None else f", but of the kind {interface.kind!r}"
        return f"an interface of that name exists and is not a TUN/TAP interface{kind}: use another name"
    if interface.mode is not options.mode:
        return f"it exists as a {interface.mode} interface: open it with mode={str(interface.mode)!r}"
    for option, there, asked in (
        ("multi_queue", interface.multi_queue, options.multi_queue),
        ("packet_info", interface.packet_info, options.packet_info),
        ("vnet_header", interface.vnet_header, options.has_header),
    ):
        if there == asked:
            continue
        if option == "vnet_header" and options.transparent:
            return "it exists with vnet_header=False, and offloads need a header: leave them out, or remove it first"
        return f"it exists with {option}={there}: open it with {option}={there}, or remove it first"
    return None


def _ownership(interface: Link | None) -> str:
    assert interface is not None
    owners = []
    if interface.owner is not None:
        owners.append(f"user {interface.owner}")
    if interface.group is not None:
        owners.append(f"group {interface.group}")
    return " and ".join(owners)
