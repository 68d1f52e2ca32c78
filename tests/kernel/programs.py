"""The programs of the examples and pages, run as they stand."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .support import PATIENCE

ROOT = Path(__file__).parents[2]


class Program(subprocess.Popen[str]):
    """A program that runs, and the line in which it said that it is ready."""

    ready = ""

    def ended(self) -> tuple[int, str, str]:
        """Its status, and what it wrote to standard output after it was ready and to standard error."""
        out, err = self.communicate(timeout=PATIENCE)
        return self.returncode, out, err


@contextlib.contextmanager
def program(*arguments: str, prefix: tuple[str, ...] = (), **options: Any) -> Iterator[Program]:
    """A program of ``examples`` that is ready, with whatever else Popen takes. It has ended after the block."""
    name, *others = arguments
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [*prefix, sys.executable, str(ROOT / "examples" / name), *others]
    with Program(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    ) as process:
        try:
            assert process.stdout is not None
            process.ready = process.stdout.readline()
            assert process.ready.startswith("ready: "), (process.ready, process.communicate())
            yield process
        finally:
            process.kill()
