"""One session: a list of steps, each with a seed of its own, so that any of them can be left out and the others stay."""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from aiotuntap import SlowEngineWarning, _engine

from ..conftest import LOOPS
from ..engine import ENGINES
from .lives import LIVES
from .traffic import TRAFFIC
from .world import World, nothing_left

STEPS = {step.__name__: step for step in (*TRAFFIC, *LIVES)}


class Plan(NamedTuple):
    loop: str
    engine: str
    seed: int
    #: Names of steps, each with its seed.
    steps: tuple[tuple[str, int], ...]


class Outcome(NamedTuple):
    frames: int
    done: Counter[str]


def plan(seed: int, length: int, loop: str, engine: str) -> Plan:
    """The session of a seed."""
    random = Random(seed)
    names = sorted(STEPS)
    return Plan(loop, engine, seed, tuple((random.choice(names), random.randrange(2**32)) for _ in range(length)))


def run(plan: Plan, tell: Callable[[str], object] = lambda _: None) -> Outcome:
    """Runs a session and raises what is wrong, with a note that says where.

    Args:
        plan: What to do.
        tell: Called with the name of each step before it begins.
    """
    done: Counter[str] = Counter()
    warnings.simplefilter("ignore", SlowEngineWarning)
    before = _engine.engine
    _engine.engine = next(engine for engine in ENGINES if engine.name == plan.engine)
    try:
        with nothing_left(), asyncio.Runner(loop_factory=LOOPS[plan.loop]) as runner:
            frames = runner.run(_session(plan.seed, plan.steps, done, tell))
    finally:
        _engine.engine = before
    return Outcome(frames, done)


async def _session(
    seed: int, steps: Sequence[tuple[str, int]], done: Counter[str], tell: Callable[[str], object]
) -> int:
    world = World(Random(seed))
    await world.open()
    tasks = asyncio.all_tasks()
    try:
        for number, (name, own) in enumerate(steps):
            tell(name)
            try:
                async with asyncio.timeout(90):
                    await STEPS[name](world, Random(own))
                    await world.check()
            except Exception as error:
                error.add_note(f"in step {number + 1} of {len(steps)}: {name}, seed {own}")
                raise
            done[name] += 1
    finally:
        await world.close()
    left = {task for task in asyncio.all_tasks() - tasks if not task.done()}
    assert not left, f"tasks left behind: {left}"
    return world.frames
