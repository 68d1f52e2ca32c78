"""``python -m benchmarks [BENCHMARK …] [--quick] [--rounds N]``: all of them by default."""

from __future__ import annotations

import argparse
import os

from . import forward, idle, napi, per_frame, ping, relay, segmentation, switch, transparent, uso
from .lab import end_on_sigterm
from .native import compiled
from .report import machine

BENCHMARKS = {
    "per-frame": per_frame.run,
    "forward": forward.run,
    "relay": relay.run,
    "transparent": transparent.run,
    "segmentation": segmentation.run,
    "uso": uso.run,
    "switch": switch.run,
    "ping": ping.run,
    "napi": napi.run,
    "idle": idle.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The figures in the README.")
    parser.add_argument("names", nargs="*", metavar="benchmark", help=f"{', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: a look, not a result")
    parser.add_argument("--rounds", type=int, help="how often each contestant runs (7, quick 3)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    if os.geteuid() != 0:
        parser.error("interfaces and namespaces take root")
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    if rounds < 1:
        parser.error("--rounds: at least 1")
    end_on_sigterm()
    print(machine())
    with compiled() as loops:
        for name in arguments.names or BENCHMARKS:
            BENCHMARKS[name](loops, rounds, arguments.quick)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
