"""Small eBPF programs for `AsyncTuntap.set_steering` and `AsyncTuntap.set_filter`, made without a compiler.

::

    with bpf.by_cpu() as program:
        await tun.set_steering(program.fileno())

The interface keeps the program, so the descriptor may be closed at once. What a steering program returns is cut to 16
bits and taken modulo the number of enabled queues; what a filter returns is how many bytes of the frame to keep.

Programs are a few instructions of the set in the kernel's Documentation/bpf/standardization/instruction-set.rst. They
are loaded with bpf(2) as BPF_PROG_TYPE_SOCKET_FILTER, the only type that TUNSETSTEERINGEBPF and TUNSETFILTEREBPF take.
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

from ._errors import SetupError
from ._types import Owning

SOCKET_FILTER = 1  # BPF_PROG_TYPE_SOCKET_FILTER


def _check(what: str, number: int, largest: int, smallest: int = 0) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{what} must be a whole number, not {number!r}")
    if not smallest <= number <= largest:
        raise ValueError(f"{what} must be from {smallest} to {largest}, not {number}")


# -- instructions: bytes only ------------------------------------------------------------------------------------------

_MOVE, _COPY, _CALL, _LOAD_HALF, _EXIT = 0xB7, 0xBF, 0x85, 0x28, 0x95
_R0, _R1, _R6 = 0, 1, 6  # what the program returns, its argument, and where LD_ABS looks for that argument
_GET_SMP_PROCESSOR_ID = 8


@dataclass(frozen=True, slots=True)
class Instruction:
    """``struct bpf_insn``: one instruction of eight bytes.

    Args:
        opcode: 0 to 255.
        destination: A register, 0 to 15 (the verifier has its own idea of which of them exist).
        source: As *destination*.
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
        """As the kernel of a machine with this byte order reads it.

        The two registers are bit fields of one byte: compilers put the first into its low half on little-endian
        machines, and into its high half on big-endian ones.
        """
        order, low, high = "<", self.destination, self.source
        if byteorder == "big":
            order, low, high = ">", high, low
        return struct.pack(f"{order}BBhi", self.opcode, high << 4 | low, self.offset, self.immediate)


#: Ends the program with what is in r0.
EXIT = Instruction(_EXIT)


# -- bpf(2) ------------------------------------------------------------------------------------------------------------

_PROG_LOAD = 5
#: The part of ``union bpf_attr`` that BPF_PROG_LOAD reads. Pointers have 64 bits on every machine.
_ATTRIBUTES = struct.Struct("=IIQQIIQII16sII")
_LOG_SIZE = 1 << 16
# Times to try when signals interrupt the kernel's verifier.
_ATTEMPTS = 100

_SYSCALLS = {
    "x86_64": 321,
    **dict.fromkeys(("i386", "i486", "i586", "i686"), 357),
    **dict.fromkeys(("aarch64", "riscv32", "riscv64", "loongarch64"), 280),
    **dict.fromkeys(("armv5tel", "armv6l", "armv7l", "armv8l"), 386),
    **dict.fromkeys(("ppc", "ppc64", "ppc64le"), 361),
    "s390x": 351,
}
#: What a 64-bit kernel calls itself towards a 32-bit program, and which system calls that program has.
_COMPATIBLE = {"x86_64": "i686", "aarch64": "armv7l"}


def syscall_number(machine: str | None = None, pointer_size: int = struct.calcsize("@P")) -> int:
    """Number of bpf(2) on *machine*, as ``platform.machine()`` reports it; by default on this one."""
    machine = platform.machine() if machine is None else machine
    if pointer_size == 4:
        machine = _COMPATIBLE.get(machine, machine)
    try:
        return _SYSCALLS[machine]
    except KeyError:
        raise SetupError(
            errno.ENOSYS,
            f"the number of bpf(2) on {machine!r} is not known here: load the program with bpftool or libbpf, and pass"
            " its descriptor",
        ) from None


class Program(Owning):
    """An eBPF program, in the kernel while the object is used as a context manager, or from `load` to `close`.

    Args:
        instructions: At least one. The kernel's verifier has the last word, when loading.
    """

    __slots__ = ("_fd", "code")

    def __init__(self, instructions: Iterable[Instruction]) -> None:
        self._fd = -1
        #: The instructions as the kernel takes them, eight bytes each.
        self.code: bytes = b"".join(each.pack() for each in instructions)
        if not self.code:
            raise ValueError("a program has at least one instruction")

    def load(self) -> Self:
        """Hands the program to the kernel and returns the object itself. Takes well under a millisecond.

        Raises:
            SetupError: The kernel refuses. ``errno`` is the kernel's; the message says how to fix it, or contains
                what the verifier said. Also a PermissionError, which EACCES is too: often the verifier's word for a
                program that reads what it must not.
        """
        if self._fd >= 0:
            raise RuntimeError("this program is loaded already")
        number = syscall_number()
        fd, error, _ = _load(number, self.code, 0)
        if fd < 0:
            # Asked for a log only now: a load that would succeed fails when its log does not fit.
            log = _load(number, self.code, _LOG_SIZE)[2] if error in (errno.EINVAL, errno.EACCES) else ""
            raise SetupError(error, f"cannot load the eBPF program: {_explain(error, log)}")
        self._fd = fd
        return self

    def fileno(self) -> int:
        """The descriptor, for `AsyncTuntap.set_steering` and `AsyncTuntap.set_filter`. Children do not inherit it."""
        if self._fd < 0:
            raise ValueError("the program is not loaded: use 'with', or load()")
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
        *(0, 0, b"aiotuntap", 0, 0),  # kernel version, flags, name of the program, interface, place of attachment
    )
    pointer = ctypes.create_string_buffer(attributes, len(attributes))
    for _ in range(_ATTEMPTS):
        fd = libc.syscall(ctypes.c_long(number), ctypes.c_int(_PROG_LOAD), pointer, ctypes.c_uint(len(attributes)))
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:  # a signal came while the verifier was at work
            break
    return fd, ctypes.get_errno(), log.value.decode(errors="replace").strip()


def _explain(error: int, log: str) -> str:
    reason = os.strerror(error)
    if log:
        return f"{reason}; the verifier says:\n{log}"
    if error == errno.EPERM:
        return (
            f"{reason}; it takes CAP_BPF (before Linux 5.8: CAP_SYS_ADMIN) outside of any user namespace, so run as"
            " root, let root set kernel.unprivileged_bpf_disabled to 0, or have the descriptor of a loaded program"
            " passed in"
        )
    if error == errno.ENOSYS:
        return f"{reason}; the kernel was built without CONFIG_BPF_SYSCALL, or a sandbox forbids bpf(2)"
    return reason


# -- programs ----------------------------------------------------------------------------------------------------------


def constant(queue: int) -> Program:
    """Steering: every frame goes to the queue of this index, modulo the number of enabled queues.

    Args:
        queue: 0 to 65535.
    """
    _check("queue", queue, 0xFFFF)
    return Program([Instruction(_MOVE, _R0, immediate=queue), EXIT])


def by_cpu() -> Program:
    """Steering: the number of the CPU on which the kernel sends the frame, modulo the number of enabled queues.

    With one reader for each CPU, pinned there, a frame stays in that CPU's caches.
    """
    return Program([Instruction(_CALL, immediate=_GET_SMP_PROCESSOR_ID), EXIT])


def by_field(offset: int) -> Program:
    """Steering: a 16-bit big-endian field of the frame, modulo the number of enabled queues.

    Frames that are too short for the field go to the queue of index 0: LD_ABS ends the program with 0 for them. Nothing
    is parsed: of frames of another kind, the program takes whatever stands there.

    Args:
        offset: Bytes in front of the field, without packet information and virtio_net_hdr. The UDP or TCP destination
            port of IPv4 without options is at 36 in TAP mode and at 22 in TUN mode.
    """
    _check("offset", offset, 0xFFFF)
    return Program([Instruction(_COPY, _R6, _R1), Instruction(_LOAD_HALF, immediate=offset), EXIT])


def keep(size: int) -> Program:
    """Filter: every frame is cut to *size* bytes at most; 0 drops them all, which ``tx_dropped`` counts."""
    _check("size", size, 0x7FFFFFFF)
    return Program([Instruction(_MOVE, _R0, immediate=size), EXIT])
