"""Writes the first corpus for ``target.c``: one file for each shape of super-frame and of a run to merge.

Usage: ``python -m tests.fuzz.seeds FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

from aiotuntap import Mode

from .frames import packet


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(12):
        random = Random(number)
        mode = Mode.TAP if number % 2 else Mode.TUN
        made = packet(random, mode, 300)
        (folder / f"segment-{number}").write_bytes(bytes([(mode is Mode.TAP) | 8]) + made.super_frame(100))
        frames = [each.build() for each in made.pieces(80)]
        run = b"".join(len(each).to_bytes(2) + each for each in frames)
        (folder / f"merge-{number}").write_bytes(bytes([mode is Mode.TAP]) + run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
