"""One TCP stream of iperf3 from one namespace to another."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from . import lab

if TYPE_CHECKING:
    from collections.abc import Iterator


class Received(NamedTuple):
    gigabits: float
    bytes: int


@contextmanager
def server(netns: str) -> Iterator[None]:
    """Waits for streams to any address of the namespace until the block ends."""
    command = lab.in_namespace(netns, ["iperf3", "-4", "-s", "--forceflush"])
    with lab.child(command, ready="Server listening", quiet=True):  # it says how it ended
        yield


def stream(netns: str, address: str, seconds: int) -> Received:
    """Sends for that long, and gives what the server received: gigabits each second, and bytes altogether."""
    client = lab.in_namespace(netns, ["iperf3", "-4", "-c", address, "-t", str(seconds), "-J"])
    done = subprocess.run(client, check=False, capture_output=True, text=True, timeout=seconds + 10)
    report = json.loads(done.stdout)
    if "error" in report:
        raise SystemExit(f"iperf3 to {address}: {report['error']}")
    received = report["end"]["sum_received"]
    return Received(received["bits_per_second"] / 1e9, received["bytes"])
