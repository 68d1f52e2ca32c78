"""A child process that sends UDP datagrams, or one that counts them.

``send NETNS ADDRESS SIZE COUNT FLOWS LIBRARY`` prints "ready", sends *COUNT* datagrams in each message, from *FLOWS* ports
by turns, and ends by SIGTERM.
``count NETNS WARM_UP TIME PID LIBRARY`` prints how many came, in how many nanoseconds, and what process *PID* used.
`arrive` starts such a pair and returns the result.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from .lab import child, enter
from .native import Loops

_PORT = 5004


class Arrived(NamedTuple):
    #: Datagrams a second.
    rate: float
    #: CPU time for each of whom the counter looks at, in nanoseconds.
    cost: float


def arrive(send: Sequence[str], count: Sequence[str]) -> Arrived:
    """Runs the command *send* until the command *count* has counted."""
    with child(send):
        done = subprocess.run(count, check=True, capture_output=True, text=True, timeout=30)
    datagrams, nanoseconds, used = map(int, done.stdout.split())
    if not datagrams:
        raise SystemExit(f"no datagram arrived by {' '.join(count)}")
    return Arrived(datagrams / nanoseconds * 1e9, used / datagrams)


def main(what: str, netns: str, *arguments: str) -> None:
    *rest, library = arguments
    enter(netns)
    loops = Loops(library)
    if what == "send":
        address, *numbers = rest
        print("ready", flush=True)
        error = loops.send_datagrams(address.encode(), _PORT, *map(int, numbers))
        raise SystemExit(f"cannot send to {address}: {os.strerror(-error)}")
    print(*loops.count_datagrams(_PORT, *map(int, rest)))


if __name__ == "__main__":
    main(*sys.argv[1:])
