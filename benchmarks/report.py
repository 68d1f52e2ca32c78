"""Markdown, and the machine the figures are from."""

from __future__ import annotations

import asyncio
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median
from typing import TypeAlias

import uvloop

from aiotuntap import SlowEngineWarning
from aiotuntap._engine import engine

# The first line of the report says which engine runs.
warnings.simplefilter("ignore", SlowEngineWarning)

LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def machine() -> str:
    """One line to stand above the tables."""
    return (
        f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs,"
        f" {platform.python_implementation()} {platform.python_version()}, uvloop {version('uvloop')},"
        f" engine {engine.name}"
    )


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column to the left, figures to the right."""
    cells = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    print(f"\n### {title}\n")
    for line in (lines[0], rule, *lines[1:]):
        print("| " + " | ".join(line) + " |", flush=True)


def ratio(samples: Sequence[float]) -> str:
    """The median of ratios, each of two runs that were neighbours in time.

    Not the ratio of medians: the speed of a shared machine drifts over the minutes of a benchmark, and neighbours
    drift together.
    """
    return f"{median(samples):.2f}"
