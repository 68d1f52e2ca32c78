"""``python -m benchmarks [BENCHMARK …] [--engine c|python] [--quick] [--rounds N]``: all of them by default."""

from __future__ import annotations

import argparse
import importlib
import os

#: Names and what each measures. The module of the same name has a function `run`.
BENCHMARKS = {
    "per-frame": "reading and writing frames, one by one and in batches: CPU time, C = 1",
    "forward": "TCP through a forwarder that moves frame by frame, C = 1, and other ways in Python",
    "relay": "TCP through a relay that passes super-frames on as they are, C = 1",
    "transparent": "TCP through a relay that segments and coalesces, C frame by frame = 1",
    "uso": "UDP datagrams of 1400 bytes, frame by frame, passed through and transparent, C = 1",
    "segmentation": "`segment` and `coalesce` by themselves: Gb/s, and ns a frame, beside C that copies and sums",
    "tunnel": "TCP through an encrypting tunnel: CPU time of a byte with offloads, without = 1",
    "udp": "UDP datagrams of 1400 bytes between two processes: C, `UdpStream`, and the loop's own endpoint",
    "workers": "examples/workers.py with 20 µs of work a frame: two processes, one process = 1",
    "wireguard": "examples/wireguard and wireguard-go: TCP and ping, pair of wireguard-go = 1, and 1000 peers",
    "wireguard-core": "examples/wireguard without descriptors: µs a packet, the cipher alone = 1",
    "ticker": "how late a task that sleeps 1 ms is called beside floods, on one and eight queues",
    "switch": "examples/switch, a relay in C, a bridge of the kernel and vde_switch: TCP and ping",
    "vxlan": "examples/switch with an uplink to the kernel's VXLAN device: TCP, kernel to kernel = 1",
    "ping": "round trip of a ping, C = 1",
    "napi": "what `napi=True` changes",
    "idle": "idle queues, and adding and removing them",
}

_ENGINES = {"c": "1", "python": "0"}


def main() -> None:
    lines = [f"  {name:14} {line}" for name, line in BENCHMARKS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="The figures in the README, as Markdown tables. Run it as root, on an idle machine.",
        epilog="\n".join(["benchmarks, all of them by default:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="benchmark", help="which to run: see below")
    parser.add_argument(
        "--engine", choices=_ENGINES, help="of the library; the C engine by default, if it is installed"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: a look, not a result")
    parser.add_argument("--rounds", type=int, help="how often each contestant runs (7, quick 3)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    if os.geteuid() != 0:
        parser.error("interfaces and namespaces take root")
    rounds = arguments.rounds if arguments.rounds is not None else 3 if arguments.quick else 7
    if rounds < 1:
        parser.error("--rounds: at least 1")
    if arguments.engine is not None:
        os.environ["AIOTUNTAP_EXTENSION"] = _ENGINES[arguments.engine]
    # Not earlier: the library chooses its engine when it is imported.
    from .lab import end_on_sigterm
    from .native import compiled

    try:
        from .report import machine
    except ImportError as error:
        raise SystemExit(str(error)) from None
    end_on_sigterm()
    print(machine())
    with compiled() as loops:
        for name in arguments.names or BENCHMARKS:
            module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
            module.run(loops, rounds, arguments.quick)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
