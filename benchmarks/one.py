"""A child process that runs one benchmark: ``BENCHMARK ROUNDS quick|full FILE``.

It prints the tables and leaves an entry for ``results.json`` in *FILE*. Each benchmark has a process of its own: the
library chooses its engine when it is imported, and some benchmarks move their process into a network namespace.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from . import results
from .lab import end_on_sigterm
from .native import compiled
from .report import ENGINE, machine


def main(name: str, rounds: str, extent: str, file: str) -> None:
    end_on_sigterm()
    module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
    start = time.monotonic()
    with compiled() as loops:
        tables = module.run(loops, int(rounds), extent == "quick")
    seconds = round(time.monotonic() - start)
    for table in tables:
        print(f"\n{table}", flush=True)
    entry = results.Entry(machine(), time.strftime("%Y-%m-%d"), int(rounds), seconds, results.tables(tables))
    run = results.Results({})
    run.add(ENGINE, name, entry)
    results.save(run, Path(file))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit(130) from None
