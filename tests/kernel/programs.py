"""The programs of the examples and pages, run as they stand."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def program(*arguments: str, prefix: tuple[str, ...] = (), **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program of ``examples`` that has said ``ready``, with whatever else Popen takes. It has ended after the block."""
    name, *others = arguments
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [*prefix, sys.executable, str(ROOT / "examples" / name), *others]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready"), (line, process.communicate())
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its status, and what it wrote to standard output after it was ready and to standard error."""
    out, err = process.communicate(timeout=10)
    return process.returncode, out, err
