"""Short forms of what goes on for hours elsewhere: the soak, and the kernel as the judge of what is cut and merged."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..fuzz import judge
from ..soak.session import STEPS, plan
from .support import has_uso, needs_root


@needs_root
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.timeout(300)
def test_a_short_soak(seed: int) -> None:
    """One session on each loop with each engine, in a process of its own: descriptors and threads are counted."""
    command = [sys.executable, "-m", "tests.soak", "--sessions", "4", "--length", "12", "--seed", str(4 * seed)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_seed_is_a_session() -> None:
    assert plan(1, 200, "asyncio", "C") == plan(1, 200, "asyncio", "C") != plan(2, 200, "asyncio", "C")
    assert {name for name, _ in plan(1, 2000, "asyncio", "C").steps} == set(STEPS)


def test_the_kernel_segments_super_frames_alike() -> None:
    outcomes, examples = judge.run(cases=1200, seed=1)
    for (name, what), number in outcomes.items():
        assert judge.is_explained(what), f"{name}, {number} times: {what}, for example {examples[name, what].hex()}"
    assert outcomes["segment", "same"] > (300 if has_uso() else 200)
    assert outcomes["coalesce", "same"] > 250
