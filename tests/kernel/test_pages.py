"""The blocks of the pages run as they stand, section by section, on both loops."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import LOOPS
from ..pages.blocks import ROOT, RUN, Section, sections
from .support import is_root

#: What only root of the machine may do: other users, and programs in eBPF.
ROOT_ONLY = {"Attach to an existing interface", "Run without privileges", "Choose the queue for each frame"}
SECTIONS = [each for page in RUN for each in sections(page) if any(block.skip is None for block in each.blocks)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_blocks_run_and_print_what_is_shown(section: Section, loop: str, tmp_path: Path) -> None:
    if section.title in ROOT_ONLY and not is_root():
        pytest.skip("takes root of the machine: a user namespace has one user and no eBPF")
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.pages", section.page, str(section.line), loop, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = run.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):  # and what the section left in the background
            os.killpg(run.pid, signal.SIGKILL)
    # A forgotten interface or a coroutine that was never awaited is told, and changes no status.
    assert (run.returncode, printed) == (0, ""), printed
