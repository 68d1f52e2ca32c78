"""Compiles ``loops.c`` on the spot, and gives its functions their Python types."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCE = Path(__file__).with_name("loops.c")


class Loops:
    """The functions of ``loops.c``."""

    def __init__(self, path: str) -> None:
        self.path = path
        # PyDLL keeps the GIL: to give it back and take it again would be part of what is measured.
        library = ctypes.PyDLL(path)
        number, data = ctypes.c_int, ctypes.c_char_p
        self.drain = library.drain
        self.drain.argtypes = [number, number]
        self.flood = library.flood
        self.flood.argtypes = [number, data, number, number]
        self.fill = library.fill
        self.fill.argtypes = [number, data, number, number]
        self.forward = library.forward
        self.forward.argtypes = [number, number]
        self.echo = library.echo
        self.echo.argtypes = [number]
        self._ping = library.ping
        self._ping.argtypes = [data, number, number, ctypes.POINTER(ctypes.c_int64)]
        self.copy_and_sum = library.copy_and_sum
        self.copy_and_sum.argtypes = [data, number, number]
        self.send_datagrams = library.send_datagrams
        self.send_datagrams.argtypes = [data, number, number, number, number]
        self._count_datagrams = library.count_datagrams
        self._count_datagrams.argtypes = [number, number, number, number, ctypes.POINTER(ctypes.c_int64)]

    def ping(self, address: str, count: int, pause: int) -> list[int]:
        """Round trips in nanoseconds, *pause* nanoseconds apart; those without an answer are left out."""
        times = (ctypes.c_int64 * count)()
        result = self._ping(address.encode(), count, pause, times)
        if result != count:
            raise OSError(-result, f"cannot ping {address}")
        return [time for time in times if time]

    def count_datagrams(self, port: int, warm_up: int, time: int, pid: int) -> tuple[int, int, int]:
        """Datagrams in about *time* milliseconds, how many nanoseconds it was, and CPU time that process *pid* used."""
        figures = (ctypes.c_int64 * 3)()
        result = self._count_datagrams(port, warm_up, time, pid, figures)
        if result != 0:
            raise OSError(-result, f"cannot receive on port {port}")
        return figures[0], figures[1], figures[2]


@contextmanager
def compiled() -> Iterator[Loops]:
    """The library, in a folder that is gone afterwards."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("no C compiler: apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory(prefix="aiotuntap-bench-") as folder:
        library = f"{folder}/loops.so"
        subprocess.run([compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, str(_SOURCE)], check=True)
        yield Loops(library)
