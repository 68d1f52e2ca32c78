"""The event loops that are compared, and the machine the figures are from."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import uvloop

from aiotuntap import SlowEngineWarning
from aiotuntap._engine import engine

from .results import Machine

# What the figures are from says which engine runs.
warnings.simplefilter("ignore", SlowEngineWarning)

LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

#: "C" or "Python".
ENGINE: str = engine.name


def machine() -> Machine:
    """This one."""
    # The numbers alone: what follows them is the name of a build.
    kernel = re.match(r"[\d.]*\d", platform.release())
    models = re.findall(r"^model name\s*: *(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return Machine(
        kernel=kernel[0] if kernel else "",
        architecture=platform.machine(),
        processor=models[0] if models else "unknown",
        cpus=os.cpu_count() or 0,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        uvloop=version("uvloop"),
    )
