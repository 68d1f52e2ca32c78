"""IPv6 of one interface on and off.

rtnetlink tells whether it is on, and does not change it: that takes a write to /proc/sys/net, which shows the settings
of the calling thread's own network namespace, by the names of its interfaces. See ip-sysctl.rst in the kernel's
documentation.
"""

from __future__ import annotations

import errno
import os

from .._errors import SetupError, cannot
from .socket import RouteSocket

_SETTINGS = "/proc/sys/net/ipv6/conf"
_SMALLEST_MTU = 1280
_TRIES = 100


def set_ipv6(route: RouteSocket, index: int, on: bool) -> bool:
    """Turns IPv6 on or off on the interface *index*, where it is not so already.

    Off, the interface loses its IPv6 addresses and routes, and the kernel sends nothing of IPv6 on it. On, it gets a
    link-local address.

    Returns:
        Whether the interface is here.

    Raises:
        SetupError: It may not be changed, or there is no IPv6 to turn on.
    """
    name = ""
    for _ in range(_TRIES):
        link = route.link(index=index)
        if link is None:
            return False
        if link.ipv6 is on:
            return True
        name = link.name
        if link.mtu < _SMALLEST_MTU:
            raise SetupError(
                errno.EINVAL, f"cannot turn on IPv6 of {link.name!r}: it takes an MTU of at least 1280, not {link.mtu}"
            )
        try:
            fd = os.open(f"{_SETTINGS}/{name}/disable_ipv6", os.O_WRONLY | os.O_CLOEXEC)
            try:
                named = route.link(index=index)
                if named is not None and named.name == name:  # and not another's settings by now
                    os.write(fd, b"0" if on else b"1")
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL) and _is_renamed(route, index, name):
                continue
            raise _refused(name, on, error) from None
    raise SetupError(
        errno.EAGAIN, f"cannot turn {'on' if on else 'off'} IPv6 of {name!r}: it was renamed during each try; try again"
    )


def _is_renamed(route: RouteSocket, index: int, name: str) -> bool:
    link = route.link(index=index)
    return link is None or link.name != name


def _refused(name: str, on: bool, error: OSError) -> SetupError:
    hints = {
        errno.EACCES: "it takes CAP_NET_ADMIN in the user namespace of its namespace",
        errno.EPERM: "it takes CAP_NET_ADMIN in the user namespace of its namespace",
        errno.EROFS: (
            "/proc/sys is read-only here, as in most containers: start the container with"
            f" '--sysctl net.ipv6.conf.default.disable_ipv6={int(not on)}'"
        ),
        errno.ENOENT: f"there is no {_SETTINGS} here: the kernel has no IPv6, or /proc is not mounted",
    }
    return cannot(f"turn {'on' if on else 'off'} IPv6 of {name!r}", error, hints.get(error.errno or 0, ""))
