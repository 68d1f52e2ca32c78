"""The settings of an interface that are made through one of its queues, by ioctl."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Callable, Mapping

from . import _abi
from ._arguments import check_fd, check_flags, check_whole
from ._device import QueueFile
from ._errors import cannot
from ._interface import Interface
from ._threads import run_in_thread
from ._types import Owning

# What to do, by ``errno``.
_NO_QUEUE = {errno.EPERM: "it takes at least one queue that is enabled"}
_NOT_A_PROGRAM = dict.fromkeys(
    (errno.EBADF, errno.EINVAL), "it must be the descriptor of a loaded program of type BPF_PROG_TYPE_SOCKET_FILTER"
)


class Settings(Owning):
    """What is set through a queue: see `AsyncTuntap`."""

    _interface: Interface

    def _check_open(self) -> None:
        """Raises unless the interface is open, and this is called in its event loop."""
        raise NotImplementedError

    async def set_persist(self, persist: bool) -> None:
        """Sets whether the interface stays when its last queue is closed.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface was closed by this program.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
            TypeError: *persist* is not a bool.
        """
        check_flags(persist=persist)
        self._set("persist", persist, lambda file: file.set_value(_abi.TUNSETPERSIST, int(persist)))

    async def set_carrier(self, carrier: bool) -> None:
        """Sets whether the interface has a carrier. The kernel applies it a few milliseconds later.

        Raises:
            SetupError: The kernel refused. EPERM means that no queue is enabled.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface was closed by this program.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
            TypeError: *carrier* is not a bool.
        """
        check_flags(carrier=carrier)
        self._set("carrier", carrier, lambda file: file.set_int(_abi.TUNSETCARRIER, int(carrier)), _NO_QUEUE)

    async def set_owner(self, owner: int | str) -> None:
        """Sets the user who may attach to the interface without privileges.

        Args:
            owner: Number or name of the user.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface was closed by this program.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
            ValueError, TypeError: The user does not exist, or *owner* is not a number from 0 to 4294967294 or a name.
        """
        self._check_open()
        uid = await _number_of(owner, "user", lambda name: pwd.getpwnam(name).pw_uid)
        self._set("owner", owner, lambda file: file.set_value(_abi.TUNSETOWNER, uid))

    async def set_group(self, group: int | str) -> None:
        """Sets the group whose members may attach to the interface without privileges. If it has an owner, too, both must match.

        Args:
            group: Number or name of the group.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface was closed by this program.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
            ValueError, TypeError: The group does not exist, or *group* is not a number from 0 to 4294967294 or a name.
        """
        self._check_open()
        gid = await _number_of(group, "group", lambda name: grp.getgrnam(name).gr_gid)
        self._set("group", group, lambda file: file.set_value(_abi.TUNSETGROUP, gid))

    async def set_steering(self, program: int | None) -> None:
        """Lets an eBPF program choose the queue for each frame.

        Args:
            program: Descriptor of a loaded program of type BPF_PROG_TYPE_SOCKET_FILTER, such as those that
                `aiotuntap.bpf` makes. It may be closed afterwards. The value that it returns, modulo the number of
                enabled queues, is the index of the queue in the kernel's order: the order of attaching, except that the
                last queue takes the place of one that is closed or disabled. None restores the kernel's own choice.

        Raises:
            SetupError: The kernel refused, for example because the descriptor is not a program of that type.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface was closed by this program.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
            TypeError: *program* is neither a descriptor nor None.
        """
        descriptor = _program(program)
        self._set("steering", program, lambda file: file.set_int(_abi.TUNSETSTEERINGEBPF, descriptor), _NOT_A_PROGRAM)

    async def set_filter(self, program: int | None) -> None:
        """Lets an eBPF program drop or cut frames on their way to the queues.

        Args:
            program: Descriptor of a loaded program of type BPF_PROG_TYPE_SOCKET_FILTER. The value that it returns is the
                number of bytes of the frame to keep; 0 drops the frame. None removes the program that was set.

        Raises:
            SetupError: The kernel refused, for example because the descriptor is not a program of that type.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface was closed by this program.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
            TypeError: *program* is neither a descriptor nor None.
        """
        descriptor = _program(program)
        self._set("filter", program, lambda file: file.set_int(_abi.TUNSETFILTEREBPF, descriptor), _NOT_A_PROGRAM)

    async def set_send_buffer(self, size: int) -> None:
        """Limits the bytes that may be under way from each queue; at the limit, writing waits.

        A frame counts until it has left the machine or reached its receiver, so the limit matters if frames are bridged
        or forwarded to something slow. By default there is no limit.

        Args:
            size: In bytes, as the kernel counts them: more than the frames have.

        Raises:
            SetupError: The kernel refused.
            DeviceGoneError: The interface was deleted.
            QueueClosedError: The interface was closed by this program.
            RuntimeError: The interface is not open yet, or belongs to another thread or event loop.
            ValueError, TypeError: *size* is not a whole number from 1 to 2147483647.
        """
        check_whole("size", size)
        if not 1 <= size < 1 << 31:
            raise ValueError(f"size must be 1 to 2147483647 bytes, not {size}")
        self._check_open()
        self._interface.set_send_buffer(size)

    def _set(
        self,
        setting: str,
        value: object,
        change: Callable[[QueueFile], None],
        fixes: Mapping[int, str] | None = None,
    ) -> None:
        self._check_open()
        self._interface.set(setting, value, change, fixes=fixes)


async def _number_of(who: int | str, kind: str, look_up: Callable[[str], int]) -> int:
    """The number of a user or group. A name is looked up on a thread, because that may ask a server on the network."""
    if isinstance(who, str):
        return await run_in_thread(lambda: _look_up(who, kind, look_up))
    if not isinstance(who, int) or isinstance(who, bool):
        raise TypeError(f"{kind} must be a number or a name, not {who!r}")
    if not 0 <= who < 0xFFFFFFFF:  # the largest number means that none is set
        raise ValueError(f"{kind} must be a number from 0 to 4294967294, not {who}")
    return who


def _look_up(name: str, kind: str, look_up: Callable[[str], int]) -> int:
    try:
        return look_up(name)
    except KeyError:
        try:  # KeyError also means that there was no descriptor left to read the list with
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise cannot(f"look up {kind} {name!r}", error) from error
        raise ValueError(f"{kind} {name!r} does not exist") from None


def _program(program: int | None) -> int:
    """The descriptor of an eBPF program; -1 removes one."""
    return -1 if program is None else check_fd("program", program)
