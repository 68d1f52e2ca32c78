"""eBPF programs as bytes. ``kernel/test_bpf.py`` runs them in the kernel."""

from __future__ import annotations

import errno
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotuntap import SetupError, bpf

U4 = st.integers(0, 15)


@given(st.integers(0, 255), U4, U4, st.integers(-(1 << 15), (1 << 15) - 1), st.integers(-(1 << 31), (1 << 31) - 1))
def test_an_instruction_is_struct_bpf_insn(
    opcode: int, destination: int, source: int, offset: int, number: int
) -> None:
    instruction = bpf.Instruction(opcode, destination, source, offset, number)
    little, big = instruction.pack("little"), instruction.pack("big")
    assert struct.unpack("<BBhi", little) == (opcode, source << 4 | destination, offset, number)
    assert struct.unpack(">BBhi", big) == (opcode, destination << 4 | source, offset, number)


@pytest.mark.parametrize("end", [0, 1], ids=["smallest", "largest"])
@pytest.mark.parametrize("field", ["opcode", "destination", "source", "offset", "immediate"])
def test_a_field_that_does_not_fit_is_named(field: str, end: int) -> None:
    bits, signed = {"opcode": (8, 0), "offset": (16, 1), "immediate": (32, 1)}.get(field, (4, 0))
    bounds = -(1 << bits - 1) if signed else 0, (1 << bits - signed) - 1
    assert bpf.Instruction(**{"opcode": 0, field: bounds[end]}).pack()
    with pytest.raises(ValueError, match=f"^{field} must be from {bounds[0]} to {bounds[1]}, not "):
        bpf.Instruction(**{"opcode": 0, field: bounds[end] + (1 if end else -1)})
    for wrong in (None, "1", 1.0, True):
        with pytest.raises(TypeError, match=f"^{field} must be a whole number, not {wrong!r}"):
            bpf.Instruction(**{"opcode": 0, field: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (bpf.constant(65535), "b7 00 0000 ffff0000  95 00 0000 00000000"),
        (bpf.keep(1 << 20), "b7 00 0000 00001000  95 00 0000 00000000"),
        (bpf.by_cpu(), "85 00 0000 08000000  95 00 0000 00000000"),
        (bpf.by_field(36), "bf 16 0000 00000000  28 00 0000 24000000  95 00 0000 00000000"),
    ],
)
@pytest.mark.skipif(sys.byteorder == "big", reason="written down as little-endian machines have it")
def test_programs(program: bpf.Program, code: str) -> None:
    assert program.code == bytes.fromhex(code)


def test_invalid_arguments() -> None:
    for make in (bpf.constant, bpf.by_field, bpf.keep):
        for wrong, error in ((-1, ValueError), (1 << 31, ValueError), (True, TypeError), ("1", TypeError)):
            with pytest.raises(error):
                make(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        bpf.Program([])


def test_a_program_that_is_not_loaded_has_no_descriptor() -> None:
    program = bpf.constant(0)
    program.close()
    with pytest.raises(ValueError, match="not loaded"):
        program.fileno()


@pytest.mark.parametrize(
    ("machine", "pointer_size", "number"),
    [
        ("x86_64", 8, 321),
        ("x86_64", 4, 357),
        ("i686", 4, 357),
        ("aarch64", 8, 280),
        ("aarch64", 4, 386),
        ("armv7l", 4, 386),
        ("riscv64", 8, 280),
        ("loongarch64", 8, 280),
        ("ppc64le", 8, 361),
        ("s390x", 8, 351),
    ],
)
def test_system_call_numbers(machine: str, pointer_size: int, number: int) -> None:
    assert bpf.syscall_number(machine, pointer_size) == number


def test_an_unknown_machine_is_named_with_a_fix() -> None:
    with pytest.raises(SetupError, match="'vax'.*bpftool") as caught:
        bpf.syscall_number("vax")
    assert caught.value.errno == errno.ENOSYS
