"""A child process that sends UDP datagrams, or one that counts them.

``send NETNS ADDRESS SIZE COUNT FLOWS LIBRARY`` prints "ready", sends *COUNT* datagrams in each message, from *FLOWS* ports
by turns, and ends by SIGTERM.
``count NETNS WARM_UP TIME PID LIBRARY`` prints how many came, in how many nanoseconds, and what process *PID* used.
"""

from __future__ import annotations

import os
import sys

from .lab import enter
from .native import Loops

_PORT = 5004


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
