"""Runs one section: ``python -m tests.pages PAGE LINE LOOP FOLDER``, where LINE is that of its heading.

In namespaces that it makes for itself: the network is empty, ``ip netns`` shows what the section makes, and there is a
user alice. So the names that the pages use belong to nobody else.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
ALICE = "alice:x:4242:4242::/:/bin/sh\n"
#: What Python reads first in each program that a page starts. uvloop.run() calls asyncio.run() itself.
UVLOOP = """
import asyncio, uvloop

def run(main, **_):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)

asyncio.run = run
"""


def _move_in(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    users = folder / "passwd"
    users.write_text(Path("/etc/passwd").read_text() + ALICE)
    for command in (
        "mount --make-rprivate /",
        "mount -t tmpfs tmpfs /run",
        f"mount --bind {users} /etc/passwd",
        "ip link set lo up",
    ):
        subprocess.run(command.split(), check=True)


def _make_programs(folder: Path, loop: str) -> None:
    """``python`` is this one, and asyncio.run() runs on that loop; ``sudo`` has nothing to do."""
    programs = folder / "bin"
    programs.mkdir()
    for name, command in {"python": f"exec {sys.executable} -W error", "sudo": "exec"}.items():
        (programs / name).write_text(f'#!/bin/sh\n{command} "$@"\n')
        (programs / name).chmod(0o755)
    if loop == "uvloop":
        (programs / "sitecustomize.py").write_text(UVLOOP)
    os.environ["PATH"] = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    os.environ["PYTHONPATH"] = f"{programs}:{Path(__file__).parents[2]}"
    os.environ["PYTHONUNBUFFERED"] = "1"


def main(page: str, line: str, loop: str, directory: str) -> None:
    folder = Path(directory)
    _move_in(folder)
    _make_programs(folder, loop)
    os.chdir(folder)

    from .blocks import sections
    from .stage import Stage

    warnings.simplefilter("error")
    section = next(each for each in sections(page) if each.line == int(line))
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(debug=True, loop_factory=factory) as runner:
        runner.run(Stage(section, folder).play())


main(*sys.argv[1:])
