"""The soak: sessions by seed on both loops and both engines, with progress, replay, shrinking and a summary."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import count, product

from ..conftest import LOOPS
from ..engine import ENGINES
from .session import STEPS, Outcome, Plan, plan, run


def warm_up() -> None:
    """Creates what event loops create once for the process, so that it is not reported as a leak of a session."""

    async def once() -> None:
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()

    for factory in LOOPS.values():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(once())


def fails(plan: Plan) -> str | None:
    """Runs a session in its own process. Returns the error, or None."""
    command = [sys.executable, "-m", "tests.soak", "--plan", json.dumps(plan)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return "it hangs"
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip()


def shrink(plan: Plan, attempt: Callable[[Plan], str | None] = fails) -> tuple[Plan, str | None]:
    """The plan with as few steps as still fail, and how it fails; as it is, and None, if it does not fail again."""
    steps, said = list(plan.steps), attempt(plan)
    if said is None:
        return plan, None
    size = max(1, len(steps) // 2)
    while True:
        shorter = False
        for start in range(len(steps) - size, -1, -size):
            without = steps[:start] + steps[start + size :]
            if (says := attempt(plan._replace(steps=tuple(without)))) is not None:
                steps, said, shorter = without, says, True
        if size == 1 and not shorter:
            return plan._replace(steps=tuple(steps)), said
        size = max(1, size // 2)


def _report_failure(failed: Plan, error: BaseException) -> None:
    print(f"\nFAILED: seed {failed.seed} on {failed.loop} with the engine in {failed.engine}")
    traceback.print_exception(error)
    print("making it shorter ...", flush=True)
    short, said = shrink(failed)
    if said is None:
        print("it does not fail when it is run again by itself; the whole session:")
    else:
        print(
            f"{len(short.steps)} of {len(failed.steps)} steps are enough: {' '.join(name for name, _ in short.steps)}"
        )
        print(said)
    print(f"again: {sys.executable} -m tests.soak --plan '{json.dumps(short)}'", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on (60)")
    parser.add_argument("--sessions", type=int, default=None, help="how many at most (no limit)")
    parser.add_argument("--seed", type=int, default=None, help="the first one; then one after the other (by the clock)")
    parser.add_argument("--length", type=int, default=25, help="steps in each session (25)")
    parser.add_argument("--loop", choices=LOOPS, help="this one only")
    parser.add_argument("--engine", choices=[engine.name for engine in ENGINES], help="this one only")
    parser.add_argument("--replay", type=int, metavar="SEED", help="the sessions of one seed, told step by step")
    parser.add_argument("--plan", help="one session, as a failure prints it")
    options = parser.parse_args()
    warm_up()
    if options.plan:
        loop, engine, seed, steps = json.loads(options.plan)
        run(Plan(loop, engine, seed, tuple((name, own) for name, own in steps)))
        return 0
    kinds = list(
        product(
            [options.loop] if options.loop else LOOPS, [options.engine] if options.engine else [e.name for e in ENGINES]
        )
    )
    if options.replay is not None:
        for loop, engine in kinds:
            print(f"== {loop}, engine in {engine}")
            run(plan(options.replay, options.length, loop, engine), lambda name: print("  ", name, flush=True))
        return 0
    first = int(time.time()) if options.seed is None else options.seed
    return _go_on(options.seconds, options.sessions, first, options.length, kinds)


def _go_on(seconds: float, most: int | None, first: int, length: int, kinds: list[tuple[str, str]]) -> int:
    started = last = time.monotonic()
    done: Counter[str] = Counter()
    sessions: Counter[tuple[str, str]] = Counter()
    frames = failures = 0
    seed = first
    for seed in count(first):
        if time.monotonic() - started >= seconds or failures >= 10 or seed - first == most:
            break
        loop, engine = kinds[(seed - first) % len(kinds)]
        session = plan(seed, length, loop, engine)
        try:
            outcome = run(session)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            failures += 1
            _report_failure(session, error)
            outcome = Outcome(0, Counter())
        sessions[loop, engine] += 1
        frames += outcome.frames
        done += outcome.done
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            passed = last - started
            print(
                f"{passed:7.0f} s  seed {seed}  {sum(sessions.values())} sessions  {done.total()} steps"
                f"  {frames} frames  {failures} failures",
                flush=True,
            )
    print(f"seeds {first} to {seed - 1}: {time.monotonic() - started:.0f} s, {done.total()} steps, {frames} frames")
    for (loop, engine), number in sorted(sessions.items()):
        print(f"  {number:6} sessions on {loop} with the engine in {engine}")
    for name in sorted(STEPS):
        print(f"  {done[name]:6} times {name}")
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
