"""Whether every line of the conformance checks is there because some broken stream needs it.

Usage: ``python -m tests.mutants [WORDS]``. It removes one statement of the checks, or
one element of a list of cases, at a time, and runs the broken streams of `tests.broken_streams` with the rest. A mutant
survives if the correct stream still passes and each broken stream is still found: then the removed part is not needed, or
a broken stream for it is missing. WORDS select mutants by their names.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from aiotuntap.testing import MemoryStream, ending, example_frame, memory_pair, reading, trial, writing
from aiotuntap.testing.trial import Terms

from . import broken_corners  # noqa: F401 - adds to FAULTS
from .broken_streams import FAULTS, Fault, Through

CHECKED = (reading, writing, ending, trial)

# Seconds that frames of the slow stream are under way.
_LATENCY = 0.004

_TERMS = Terms(example_frame, (18, 65549), 1500, None, 300, patience=0.3)

Check = Callable[[trial.Trial], Awaitable[None]]


class Mutant(NamedTuple):
    module: ModuleType
    line: int
    #: The function or method in which the part stood.
    where: str
    #: What was left out.
    part: str
    tree: ast.Module

    def __str__(self) -> str:
        return f"{Path(str(self.module.__file__)).name}:{self.line} {self.where}: {self.part}"


def mutants(module: ModuleType) -> Iterator[Mutant]:
    """The module without one of its parts, each in turn."""
    source = Path(str(module.__file__)).read_text()
    count = len(list(_parts(ast.parse(source))))
    for number in range(count):
        tree = ast.parse(source)
        where, line, part, leave_out = list(_parts(tree))[number]
        leave_out()
        ast.fix_missing_locations(tree)
        yield Mutant(module, line, where, " ".join(part.split())[:90], tree)


def _parts(tree: ast.Module) -> Iterator[tuple[str, int, str, Callable[[], None]]]:
    """A part of a module that can be removed: its function, its line, its text, and how to remove it."""
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in _own(function):
            for _, body in ast.iter_fields(node):
                if not isinstance(body, list):
                    continue
                for index, child in enumerate(body):
                    if isinstance(child, (ast.Expr, ast.Assert, ast.Raise)) and not _is_exempt(child):
                        yield function.name, child.lineno, ast.unparse(child), _replace(body, index)
            if isinstance(node, (ast.List, ast.Tuple)) and len(node.elts) > 1 and isinstance(node.ctx, ast.Load):
                for index, element in enumerate(node.elts):
                    yield function.name, element.lineno, f"{ast.unparse(element)} in a list", _delete(node.elts, index)
            if isinstance(node, ast.Dict) and len(node.keys) > 1:
                for index, key in enumerate(node.keys):
                    if key is not None:
                        yield (
                            function.name,
                            key.lineno,
                            f"{ast.unparse(key)} in a dict",
                            _delete(node.keys, index, node.values),
                        )


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, but for those of functions within it."""
    yield function
    for name, value in ast.iter_fields(function):
        for child in value if isinstance(value, list) else [value]:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            # What a handler catches is for streams that may refuse a frame: there the caller's words count.
            skipped = name in ("annotation", "returns") or (name == "type" and isinstance(function, ast.ExceptHandler))
            if isinstance(child, ast.AST) and not is_function and not skipped:
                yield from _own(child)


#: Parts that no broken stream in memory needs: why they are there. By the function, and what the part begins with.
EXEMPT = {
    ("_in_parts", "parts.append([])"): "sockets have room for so many bytes; a stream in memory has room for any",
    (
        "every_kind_of_frame_is_written",
        "'bytes' in a dict",
    ): "all other checks write bytes; here they begin a mixed batch",
    (
        "same",
        "_fail(f'{what}: frame {len(got)}",
    ): "most checks wait for the last frame, and find what is missing before it",
    ("starts_like", "each in a list"): "tells how large a changed frame was where frames before it are missing, too",
    (
        "a_cancelled_reader_leaves_the_line",
        "first.cancel()",
    ): "a frame that comes between the cancellation and its task",
    ("__init__", "0.0 in a list"): "the pace that is taken where none was measured",
    ("run", "await self.cancel"): "ends what a check leaves behind",
    ("start", "self._tasks.append"): "… knows what that is",
    ("cancel", "await asyncio.gather"): "… and waits for it",
    ("asked", "await asyncio.sleep"): "time, for streams that need it",
    ("before_refused", "await asyncio.sleep"): "time, for streams that need it",
    ("write_frames_nowait", "await asyncio.sleep"): "time, for streams that need it",
    ("collect", "await batches.aclose"): "an iteration that nobody refers to is left by the loop",
    (
        "iteration_can_be_left_and_resumed",
        "await batches.aclose",
    ): "leaves the iteration; an iteration that nobody refers to is left by the loop",
    ("burst", "await self.send"): "for far ends that write in one way only",
    ("writers_do_not_mix", "trial.frame() in a list"): "the frame behind all others, which ends the wait",
    ("a_device_that_is_gone_stays_gone", "await trial.raises(DeviceGoneError, trial.stream.read_frame,"): (
        "lets a stream notice that learns of it by reading"
    ),
}

# Methods of a trial that only give time, to streams that need it.
_WAITS = ("asked", "settle", "turns")


def _is_exempt(node: ast.stmt) -> bool:
    """Docstrings; what gives time; and ``raise``, which passes on what the stream raised."""
    if isinstance(node, ast.Raise):
        return node.exc is None
    match node:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Await(value=ast.Call(func=ast.Attribute(attr=name)))):
            return name in _WAITS
    return False


def _replace(body: list[Any], index: int) -> Callable[[], None]:
    def act() -> None:
        body[index] = ast.copy_location(ast.Pass(), body[index])

    return act


def _delete(*lists: Any) -> Callable[[], None]:
    first, index, *others = lists

    def act() -> None:
        for each in (first, *others):
            del each[index]

    return act


class Slow(Through):
    """A correct stream of which frames are under way for a while."""


@asynccontextmanager
async def _around(stream: type[Through]) -> AsyncIterator[tuple[Through, MemoryStream]]:
    inner, far = memory_pair(latency=_LATENCY if stream is Slow else 0)
    yield stream(inner), far
    for each in (inner, far):
        await each.aclose()


async def _run(check: Check, make: type[trial.Trial], stream: type[Through]) -> str | None:
    """The failure of the check for a stream, or None if it passes."""
    async with asyncio.timeout(20), _around(stream) as (made, far):
        try:
            await make(made, far, _TERMS, (_LATENCY, _LATENCY) if stream is Slow else (0, 0)).run(check)
        except AssertionError as error:
            return str(error)
    return None


class Hung(BaseException):
    """Without the part that is left out, a check goes on for ever."""


def _on_alarm(*_: object) -> None:
    raise Hung


def killed(mutant: Mutant) -> str | None:
    """The stream for which the mutant differs from the original checks. None if the mutant survives."""
    changed = ModuleType(mutant.module.__name__)
    changed.__dict__.update(__name__=mutant.module.__name__, __package__=mutant.module.__package__)
    sys.modules[mutant.module.__name__] = changed
    with_it = [changed]
    try:
        exec(compile(mutant.tree, str(mutant.module.__file__), "exec"), changed.__dict__)  # noqa: S102
        if mutant.module is trial:
            with_it = []
            for each in CHECKED[:3]:
                again = ModuleType(each.__name__)
                again.__dict__.update(__name__=each.__name__, __package__=each.__package__)
                exec(compile(Path(str(each.__file__)).read_text(), str(each.__file__), "exec"), again.__dict__)  # noqa: S102
                with_it.append(again)
        checks: dict[str, Check] = {}
        for each in with_it:
            for list_of_checks in ("READING", "WRITING", "ENDING"):
                checks |= {check.__name__: check for check in getattr(each, list_of_checks, ())}
        # Again and again: a task swallows the first exception, and whoever waits for it goes on.
        signal.setitimer(signal.ITIMER_REAL, 60, 0.5)
        return asyncio.run(_judge(checks, changed, mutant))
    except Hung:
        return "the correct stream: it hangs"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.modules[mutant.module.__name__] = mutant.module


async def _judge(checks: dict[str, Check], changed: ModuleType, mutant: Mutant) -> str | None:
    make = changed.Trial if mutant.module is trial else trial.Trial
    concerned = [mutant.where] if mutant.where in checks else list(checks)
    faults: list[tuple[str, Fault]] = [
        (check, fault) for fault in FAULTS for check in fault.checks if check in concerned
    ]
    # Those of one check first in the file are not the most telling ones: look where the words fit.
    words = set(re.findall(r"\w+", mutant.part))
    faults.sort(key=lambda each: -len(words & set(re.findall(r"\w+", each[1].says))))
    for correct, name in product((Through, Slow), concerned):
        try:
            if (says := await _run(checks[name], make, correct)) is not None:
                return f"the correct stream: {says}"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is noticed
            return f"the correct stream: {error!r}"
    for name, fault in faults:
        try:
            says = await _run(checks[name], make, fault.stream)
        except Exception as error:  # noqa: BLE001
            return f"{fault.stream.__name__}: {error!r}"
        if says is None:
            return f"{fault.stream.__name__} is not found"
        if name == fault.checks[0] and not re.search(fault.says, says):
            return f"{fault.stream.__name__}: {says}"
    return None


def main(words: list[str]) -> int:
    signal.signal(signal.SIGALRM, _on_alarm)
    survivors = []
    count = 0
    for module in CHECKED:
        for mutant in mutants(module):
            if not all(word in str(mutant) for word in words):
                continue
            count += 1
            reason = [
                why for (where, part), why in EXEMPT.items() if where == mutant.where and mutant.part.startswith(part)
            ]
            by = f"nothing, but {reason[0]}" if reason else killed(mutant)
            gc.collect()  # now, because what it ends may raise, and ast.parse() would fail of it
            if by is None:
                survivors.append(mutant)
            print(
                f"{count:4} {'SURVIVES' if by is None else 'killed  '} {mutant}" + (f"  by {by}"[:90] if by else ""),
                flush=True,
            )
    print(f"{count} mutants, {len(survivors)} survive")
    for mutant in survivors:
        print(f"  {mutant}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
