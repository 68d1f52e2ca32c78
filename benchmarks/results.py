"""Figures, the tables that they are printed in, and the file that keeps them: ``results.json``."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

PATH = Path(__file__).with_name("results.json")

#: Significant digits that the file keeps.
_DIGITS = 4


class Figure(NamedTuple):
    """The median of some samples, and the quartiles: half of the samples lie between these two."""

    median: float
    low: float
    high: float


def figure(samples: Sequence[float]) -> Figure:
    """Of a ratio, each sample is that of two runs that were neighbours in time, and not one of medians.

    The speed of a shared machine drifts over the minutes of a benchmark, and neighbours drift together.
    """
    if len(samples) == 1:
        return Figure(samples[0], samples[0], samples[0])
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return Figure(median(samples), low, high)


def in_rounds(contestants: Iterable[T], rounds: int) -> Iterator[T]:
    """Each contestant once in a round, so that they are neighbours in time, and each round in another order."""
    all_of_them = list(contestants)
    for _ in range(rounds):
        yield from random.sample(all_of_them, len(all_of_them))


class Table(NamedTuple):
    title: str
    #: The head of the first column, which has the names of the rows.
    head: str
    #: The other columns, and how many decimals are printed.
    columns: dict[str, int]
    #: A figure for each of these columns, or None.
    rows: dict[str, list[Figure | None]]

    def __str__(self) -> str:
        decimals = self.columns.values()
        rows = [
            [name, *("" if each is None else f"{each.median:.{n}f}" for each, n in zip(row, decimals, strict=True))]
            for name, row in self.rows.items()
        ]
        return f"### {self.title}\n\n{markdown([self.head, *self.columns], rows)}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, figures to the right."""
    cells = [list(heads), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


class Machine(NamedTuple):
    """What the figures of a benchmark were measured on."""

    kernel: str
    architecture: str
    processor: str
    cpus: int
    python: str
    uvloop: str

    def __str__(self) -> str:
        return (
            f"Linux {self.kernel}, {self.architecture} ({self.processor}), {self.cpus} CPUs, {self.python},"
            f" uvloop {self.uvloop}"
        )


class Entry(NamedTuple):
    """One run of a benchmark."""

    machine: Machine
    date: str
    rounds: int
    #: How long it took.
    seconds: int
    #: By title, row and column.
    tables: dict[str, dict[str, dict[str, Figure]]]


class Results:
    """The last run of each benchmark, with either engine.

    Attributes:
        entries: By engine (``"C"``, ``"Python"``), then by name of the benchmark.
    """

    def __init__(self, entries: dict[str, dict[str, Entry]]) -> None:
        self.entries = entries

    def add(self, engine: str, benchmark: str, entry: Entry) -> None:
        """Keeps a run, in place of the one before."""
        self.entries.setdefault(engine, {})[benchmark] = entry

    def entry(self, benchmark: str, engine: str = "C") -> Entry:
        """
        Raises:
            LookupError: The benchmark was not run with this engine.
        """
        if benchmark not in self.entries.get(engine, {}):
            command = f"{benchmark} --engine {engine.lower()}"
            raise LookupError(f'no run of {benchmark} with the engine in {engine}: make bench ARGS="{command}"')
        return self.entries[engine][benchmark]

    def figure(self, benchmark: str, row: str, column: str, engine: str = "C") -> Figure:
        """A figure of whichever table of the benchmark has this row and column.

        Raises:
            LookupError: There is none, or more than one.
        """
        tables = self.entry(benchmark, engine).tables.values()
        found = [table[row][column] for table in tables if column in table.get(row, {})]
        if len(found) != 1:
            raise LookupError(f"{len(found)} figures of {benchmark}, not 1: row {row!r}, column {column!r}")
        return found[0]


def tables(found: Sequence[Table]) -> dict[str, dict[str, dict[str, Figure]]]:
    """What an entry keeps of tables."""
    return {
        table.title: {
            name: {
                column: each for column, each in zip(table.columns, map(_rounded, row), strict=True) if each is not None
            }
            for name, row in table.rows.items()
        }
        for table in found
    }


def _rounded(of: Figure | None) -> Figure | None:
    return of and Figure(*(float(f"{number:.{_DIGITS}g}") for number in of))


def load(path: Path) -> Results:
    """What the file holds; nothing, if there is no file."""
    if not path.exists():
        return Results({})
    return Results(
        {
            engine: {name: _entry(entry) for name, entry in entries.items()}
            for engine, entries in json.loads(path.read_text()).items()
        }
    )


def save(results: Results, path: Path) -> None:
    """Writes the file, which is never seen half written."""
    content = {
        engine: {name: _plain(entry) for name, entry in sorted(entries.items())}
        for engine, entries in sorted(results.entries.items())
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # A figure on one line.
    text = re.sub(r"\{\s+(\"median\"[^{}]*)\}", lambda found: "{" + " ".join(found[1].split()) + "}", text)
    fresh = path.with_suffix(".new")
    fresh.write_text(text + "\n")
    os.replace(fresh, path)


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        **entry._asdict(),
        "machine": entry.machine._asdict(),
        "tables": {
            title: {row: {column: each._asdict() for column, each in columns.items()} for row, columns in rows.items()}
            for title, rows in entry.tables.items()
        },
    }


def _entry(plain: dict[str, Any]) -> Entry:
    kept = {
        title: {row: {column: Figure(**each) for column, each in columns.items()} for row, columns in rows.items()}
        for title, rows in plain["tables"].items()
    }
    return Entry(**{**plain, "machine": Machine(**plain["machine"]), "tables": kept})
