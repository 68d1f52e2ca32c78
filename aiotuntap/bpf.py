"""Small eBPF programs for `AsyncTuntap.set_steering` and `AsyncTuntap.set_filter`. No compiler is needed.

::

    with bpf.by_cpu() as program:
        await tun.set_steering(program.fileno())

The interface keeps the program, so the descriptor may be closed at once. A steering program returns a number: its low
16 bits, modulo the number of enabled queues, choose the queue. A filter returns how many bytes of the frame to keep.

The instructions are described in the kernel's Documentation/bpf/standardization/instruction-set.rst. Programs are loaded
with bpf(2) as BPF_PROG_TYPE_SOCKET_FILTER, the only type that TUNSETSTEERINGEBPF and TUNSETFILTEREBPF take.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from ._errors import SetupError, cannot
from ._types import Owning

SOCKET_FILTER = 1  # BPF_PROG_TYPE_SOCKET_FILTER


def _check(what: str, number: int, largest: int, smallest: int = 0) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{what} must be a whole number, not {number!r}")
    if not smallest <= number <= largest:
        raise ValueError(f"{what} must be from {smallest} to {largest}, not {number}")


# -- instructions: bytes only ------------------------------------------------------------------------------------------

_MOVE, _COPY, _CALL, _LOAD_HALF, _EXIT = 0xB7, 0xBF, 0x85, 0x28, 0x95
_R0, _R1, _R6 = 0, 1, 6  # return value, argument, and where LD_ABS expects the argument
_GET_SMP_PROCESSOR_ID = 8


@dataclass(frozen=True, slots=True)
class Instruction:
    """``struct bpf_insn``: one instruction of eight bytes.

    Args:
        opcode: 0 to 255.
        destination: Number of a register, 0 to 15. The verifier rejects those that do not exist.
        source: Number of a register, 0 to 15.
        offset: A signed number of 16 bits.
        immediate: A signed number of 32 bits.

    Raises:
        TypeError: A field is not a whole number.
        ValueError: A field is out of its range.
    """

    opcode: int
    destination: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0

    def __post_init__(self) -> None:
        _check("opcode", self.opcode, 0xFF)
        _check("destination", self.destination, 15)
        _check("source", self.source, 15)
        _check("offset", self.offset, 0x7FFF, -0x8000)
        _check("immediate", self.immediate, 0x7FFFFFFF, -0x80000000)

    def pack(self, byteorder: str = sys.byteorder) -> bytes:
        """The instruction in the given byte order, ``"little"`` or ``"big"``.

        The two registers are bit fields in one byte. The first is the low half on little-endian machines, and the high
        half on big-endian ones.
        """
        order, low, high = "<", self.destination, self.source
        if byteorder == "big":
            order, low, high = ">", high, low
        return struct.pack(f"{order}BBhi", self.opcode, high << 4 | low, self.offset, self.immediate)


#: Ends the program. It returns the value of r0.
EXIT = Instruction(_EXIT)


# -- bpf(2) ------------------------------------------------------------------------------------------------------------

_PROG_LOAD = 5
#: The part of ``union bpf_attr`` that BPF_PROG_LOAD reads. Pointers have 64 bits on every machine.
_ATTRIBUTES = struct.Struct("=IIQQIIQII16sII")
_LOG_SIZE = 1 << 16
# How often to try while signals interrupt the kernel's verifier.
_ATTEMPTS = 100

_SYSCALLS = {
    "x86_64": 321,
    **dict.fromkeys(("i386", "i486", "i586", "i686"), 357),
    **dict.fromkeys(("aarch64", "riscv32", "riscv64", "loongarch64"), 280),
    **dict.fromkeys(("armv5tel", "armv6l", "armv7l", "armv8l"), 386),
    **dict.fromkeys(("ppc", "ppc64", "ppc64le"), 361),
    "s390x": 351,
}
#: ``platform.machine()`` of a 64-bit kernel, and the machine whose system call numbers a 32-bit program has there.
_COMPATIBLE = {"x86_64": "i686", "aarch64": "armv7l"}


def syscall_number(machine: str | None = None, pointer_size: int = struct.calcsize("@P")) -> int:
    """Number of the system call bpf(2) on *machine*, which is a ``platform.machine()``; by default on this machine."""
    machine = platform.machine() if machine is None else machine
    if pointer_size == 4:
        machine = _COMPATIBLE.get(machine, machine)
    try:
        return _SYSCALLS[machine]
    except KeyError:
        raise SetupError(
            errno.ENOSYS,
            f"aiotuntap does not know the number of bpf(2) on {machine!r}: load the program with bpftool or libbpf, and"
            " pass its descriptor",
        ) from None


class Program(Owning):
    """An eBPF program. It is loaded by `load` or by ``with``, and closed by `close` or at the end of ``with``.

    Args:
        instructions: At least one. The kernel's verifier checks them when they are loaded.

    Raises:
        ValueError: There are no instructions.
    """

    __slots__ = ("_fd", "code")

    def __init__(self, instructions: Iterable[Instruction]) -> None:
        self._fd = -1
        #: The packed instructions, eight bytes each.
        self.code: bytes = b"".join(each.pack() for each in instructions)
        if not self.code:
            raise ValueError("instructions must have at least one instruction, not none")

    def load(self) -> Self:
        """Loads the program into the kernel and returns the object itself. It takes less than a millisecond.

        Raises:
            SetupError: The kernel refuses the program. ``errno`` is the kernel's. The message says how to fix it, or
                contains the verifier's log. It is also a PermissionError for EPERM (a privilege is missing) and for
                EACCES (the verifier rejects the program, often because it reads memory that it must not read).
            RuntimeError: The program is loaded already.
        """
        if self._fd >= 0:
            raise RuntimeError("this program is loaded already")
        number = syscall_number()
        fd, error, _ = _load(number, self.code, 0)
        if fd < 0:
            # The first try asks for no log: a load that would succeed fails if the log does not fit.
            log = _load(number, self.code, _LOG_SIZE)[2] if error in (errno.EINVAL, errno.EACCES) else ""
            raise cannot("load the eBPF program", OSError(error, os.strerror(error)), _explain(error, log))
        self._fd = fd
        return self

    def fileno(self) -> int:
        """The descriptor, for `AsyncTuntap.set_steering` and `AsyncTuntap.set_filter`. Children do not inherit it.

        Raises:
            ValueError: The program is not loaded.
        """
        if self._fd < 0:
            raise ValueError("this program is not loaded: use 'with', or call load()")
        return self._fd

    def close(self) -> None:
        """Closes the descriptor; interfaces that use the program keep it. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self.load()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


def _load(number: int, code: bytes, log_size: int) -> tuple[int, int, str]:
    """The new descriptor or -1, ``errno``, and the verifier's log of at most *log_size* bytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    instructions = ctypes.create_string_buffer(code, len(code))
    license_name = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(log_size or 1)
    insns, name, text = map(ctypes.addressof, (instructions, license_name, log))
    attributes = _ATTRIBUTES.pack(
        *(SOCKET_FILTER, len(code) // 8, insns, name),
        *(int(log_size > 0), log_size, text if log_size else 0),
        *(0, 0, b"aiotuntap", 0, 0),  # kernel version, flags, name of the program, interface, attach type
    )
    pointer = ctypes.create_string_buffer(attributes, len(attributes))
    for _ in range(_ATTEMPTS):
        fd = libc.syscall(ctypes.c_long(number), ctypes.c_int(_PROG_LOAD), pointer, ctypes.c_uint(len(attributes)))
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:  # EAGAIN: a signal interrupted the verifier
            break
    return fd, ctypes.get_errno(), log.value.decode(errors="replace").strip()


def _explain(error: int, log: str) -> str:
    if log:
        return f"the verifier says:\n{log}"
    if error == errno.EPERM:
        return (
            "loading eBPF programs requires CAP_BPF (before Linux 5.8: CAP_SYS_ADMIN) in the initial user"
            " namespace: run as root, or as root set 'sysctl kernel.unprivileged_bpf_disabled=0', or use a descriptor"
            " of a program that root has loaded"
        )
    if error == errno.ENOSYS:
        return "use a kernel with CONFIG_BPF_SYSCALL, or a sandbox that allows bpf(2)"
    return ""


# -- programs ----------------------------------------------------------------------------------------------------------


def constant(queue: int) -> Program:
    """Steering: every frame goes to the queue with this index, modulo the number of enabled queues.

    Args:
        queue: Index of the queue, 0 to 65535.

    Raises:
        ValueError: *queue* is out of range.
        TypeError: *queue* is not a whole number.
    """
    _check("queue", queue, 0xFFFF)
    return Program([Instruction(_MOVE, _R0, immediate=queue), EXIT])


def by_cpu() -> Program:
    """Steering: the index of the queue is the number of the CPU that sends the frame, modulo the number of queues.

    Only enabled queues count. With one reader for each CPU, pinned to that CPU, a frame stays in the CPU's caches.
    """
    return Program([Instruction(_CALL, immediate=_GET_SMP_PROCESSOR_ID), EXIT])


def by_field(offset: int) -> Program:
    """Steering: the index of the queue is a 16-bit big-endian field of the frame, modulo the number of enabled queues.

    Frames that are too short for the field go to queue 0: LD_ABS ends the program with 0. The program does not parse
    frames: it uses whatever bytes are at this offset, in every kind of frame.

    Args:
        offset: Offset of the field in bytes, 0 to 65535, not counting packet information and virtio_net_hdr. The UDP or
            TCP destination port of IPv4 without options is at 36 in TAP mode and at 22 in TUN mode.

    Raises:
        ValueError: *offset* is out of range.
        TypeError: *offset* is not a whole number.
    """
    _check("offset", offset, 0xFFFF)
    return Program([Instruction(_COPY, _R6, _R1), Instruction(_LOAD_HALF, immediate=offset), EXIT])


def keep(size: int) -> Program:
    """Filter: every frame is cut to at most *size* bytes. 0 drops all frames, which ``tx_dropped`` counts.

    Args:
        size: 0 to 0x7FFFFFFF.

    Raises:
        ValueError: *size* is out of range.
        TypeError: *size* is not a whole number.
    """
    _check("size", size, 0x7FFFFFFF)
    return Program([Instruction(_MOVE, _R0, immediate=size), EXIT])
