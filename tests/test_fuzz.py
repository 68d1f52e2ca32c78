"""A short run of the fuzzing of parsers, the frames that once were found by it, and how a failing soak is made shorter."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiotuntap import Offload

from .engine import ENGINES
from .fuzz import parsers
from .soak.__main__ import shrink
from .soak.session import Plan

_PARSERS = parsers.parsers()


@pytest.mark.parametrize("name", _PARSERS)
def test_parsers_accept_or_refuse_any_input(name: str) -> None:
    assert [each for each, _, _ in parsers.run([name], cases=150, seed=1)] == [name]


CORPUS = sorted((Path(__file__).parent / "fuzz" / "corpus").iterdir())


def test_the_engines_agree_on_the_corpus() -> None:
    """Each file is a frame to segment or frames to merge, as ``fuzz/target.c`` reads it."""
    assert len(CORPUS) > 20
    for file in CORPUS:
        data = file.read_bytes()
        if len(data) < 2:
            continue
        tap, size = bool(data[0] & 1), (10, 12, 20, 24)[data[0] >> 1 & 3]
        frames, at = [], 1
        while at + 2 <= len(data):
            length = int.from_bytes(data[at : at + 2]) & 0x7FFF
            frames.append(data[at + 2 : at + 2 + length])
            at += 2 + length
        results = [
            engine.segment(data[1:], tap, size) if data[0] & 8 else engine.merge(frames, tap, Offload.ALL.value, size)
            for engine in ENGINES
        ]
        assert all(result == results[0] for result in results), file.name


def test_the_input_of_a_failure_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def upset(data: bytes) -> None:
        raise KeyError

    monkeypatch.setattr(parsers, "parsers", lambda: {"upset": parsers.Parser([b"seed"], upset)})
    with pytest.raises(KeyError) as caught:
        list(parsers.run([], cases=1, seed=7))
    assert caught.value.__notes__[0].startswith("upset, seed 7, case 0: ")


def test_a_failing_session_is_made_shorter() -> None:
    steps = tuple((f"step{number}", number) for number in range(30))
    tried = []

    def attempt(plan: Plan) -> str | None:
        tried.append(len(plan.steps))
        names = [name for name, _ in plan.steps]
        return "it fails" if "step7" in names and "step21" in names else None

    short, said = shrink(Plan("asyncio", "C", 1, steps), attempt)
    assert short.steps == (("step7", 7), ("step21", 21)) and said == "it fails"
    assert len(tried) < 120


def test_a_session_that_does_not_fail_again_is_reported_unchanged() -> None:
    plan = Plan("asyncio", "C", 1, (("flood", 1),))
    assert shrink(plan, lambda _: None) == (plan, None)
