"""``python -m benchmarks [BENCHMARK …] [--engine c|python] [--quick] [--rounds N]``: all of them by default."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from . import results
from .lab import end_on_sigterm

#: Names and what each measures. The module of the same name has a function `run`, which gives its tables.
BENCHMARKS = {
    "per-frame": "reading and writing frames, one by one and in batches: CPU time, C = 1",
    "forward": "TCP through a forwarder that moves frame by frame, C = 1, and other ways in Python",
    "relay": "TCP through a relay that passes super-frames on as they are, C = 1",
    "transparent": "TCP through a relay that segments and coalesces, C frame by frame = 1",
    "uso": "UDP datagrams of 1400 bytes, frame by frame, passed through and transparent, C = 1",
    "segmentation": "`segment` and `coalesce` by themselves: Gb/s, and ns a frame, beside C that copies and sums",
    "tunnel": "TCP through an encrypting tunnel: CPU time of a byte with offloads, without = 1",
    "udp": "UDP datagrams of 1400 bytes between two processes: C, `UdpStream`, and the loop's own endpoint",
    "queues": "one process that reads 1 to 256 queues",
    "workers": "examples/workers.py with 20 µs of work a frame: one process = 1",
    "wireguard": "examples/wireguard and wireguard-go: TCP and ping, pair of wireguard-go = 1, and 1000 peers",
    "wireguard-core": "examples/wireguard without descriptors: µs a packet, the cipher alone = 1",
    "ticker": "how late a task that sleeps 1 ms is called beside floods, on one and eight queues",
    "switch": "examples/switch, a relay in C, a bridge of the kernel and vde_switch: TCP and ping",
    "vxlan": "examples/switch with an uplink to the kernel's VXLAN device: TCP, kernel to kernel = 1",
    "ping": "round trip of a ping, C = 1",
    "napi": "what `napi=True` changes",
    "idle": "idle queues, and adding and removing them",
}

#: Those where the engine matters most, which run with the one in Python as well.
BOTH_ENGINES = ("per-frame", "transparent", "segmentation")

_ENGINES = {"c": "C", "python": "Python"}
_EXTENSION = {"c": "1", "python": "0"}

#: Seconds that a benchmark may take for each round, and one more: twice what the longest takes on a busy machine.
_LIMIT = 150
#: Seconds that it may take to clean up.
_PATIENCE = 60


def main() -> int:
    arguments = _arguments()
    end_on_sigterm()
    jobs = [(name, arguments.engine or "c") for name in arguments.names]
    if not jobs and arguments.engine != "python":
        jobs = [(name, "c") for name in BENCHMARKS]
    if not arguments.names and arguments.engine != "c":
        jobs += [(name, "python") for name in BOTH_ENGINES]
    failed = []
    for name, engine in jobs:
        print(f"\n== {name}, engine {_ENGINES[engine]}", flush=True)
        problem = _run(name, engine, arguments.rounds, arguments.quick)
        if problem:
            print(f"== {name}, engine {_ENGINES[engine]}: FAILED: {problem}", flush=True)
            failed.append(f"{name} (engine {_ENGINES[engine]})")
    if failed:
        print(f"\nfailed: {', '.join(failed)}; what {results.PATH.name} has of them is from an earlier run", flush=True)
    if not arguments.quick:
        from . import figures

        figures.main()
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measures, keeps the figures in {results.PATH.name}, and renders the tables and charts of README"
        " and pages from all that it has. Run it as root, on an idle machine.",
        epilog="\n".join(["benchmarks, all of them by default, and how long the last run took:", *_list()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="benchmark", help="which to run: see below")
    parser.add_argument(
        "--engine", choices=_ENGINES, help=f"of the library: c; without names also python for {', '.join(BOTH_ENGINES)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: printed, and not kept")
    parser.add_argument("--rounds", type=int, help="how often each contestant runs (7, quick 3)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not a benchmark: they are {', '.join(BENCHMARKS)}")
    if os.geteuid() != 0:
        parser.error("only root can make the interfaces and namespaces")
    if arguments.rounds is None:
        arguments.rounds = 3 if arguments.quick else 7
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {arguments.rounds}")
    if arguments.engine != "python" and find_spec("aiotuntap._native") is None:
        parser.error("the C engine is not compiled: install a compiler and Python's headers, or use --engine python")
    return arguments


def _list() -> list[str]:
    last = results.load(results.PATH).entries.get("C", {})
    times = {name: f"{last[name].seconds:4} s" if name in last else "" for name in BENCHMARKS}
    return [f"  {name:14} {times[name]:6}  {line}" for name, line in BENCHMARKS.items()]


def _run(name: str, engine: str, rounds: int, quick: bool) -> str | None:
    """Runs one benchmark, keeps its figures unless it is quick, and says what was wrong."""
    limit = _LIMIT * (rounds + 1)
    environment = {**os.environ, "AIOTUNTAP_EXTENSION": _EXTENSION[engine]}
    with tempfile.TemporaryDirectory(prefix="aiotuntap-bench-") as folder:
        file = Path(folder, "entry.json")
        command = [sys.executable, "-m", f"{__package__}.one", name, str(rounds), "quick" if quick else "full"]
        child = subprocess.Popen([*command, str(file)], env=environment, start_new_session=True)
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            return f"not done after {limit} seconds"
        finally:
            # Its own children end with it, and it removes its namespaces.
            child.terminate()
            try:
                child.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
        if status:
            return f"exit status {status}"
        if not quick:
            kept = results.load(results.PATH)
            kept.add(_ENGINES[engine], name, results.load(file).entry(name, _ENGINES[engine]))
            results.save(kept, results.PATH)
    return None


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
