"""How ``python -m benchmarks`` runs its benchmarks and keeps their figures. No benchmark runs here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import figures, results
from benchmarks.results import Entry, Figure, Machine, Results, Table

pytestmark = pytest.mark.usefixtures("stand_in")


def entry(median: float) -> Entry:
    table = Table("title", "", {"a column": 2}, {"a row": [Figure(median, median, median)]})
    machine = Machine("6.18.0", "x86_64", "a processor", 2, "CPython 3.11.7", "0.23.0")
    return Entry(machine, "2026-01-02", 7, 12, results.tables([table]))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three benchmarks, and a child that leaves a figure of 2 for one, fails for the second, and hangs in the third."""
    found = Results({})
    for engine in ("C", "Python"):
        found.add(engine, "good", entry(2))
    results.save(found, tmp_path / "child.json")
    child = tmp_path / "python"
    child.write_text(
        "#!/bin/sh\n"
        "# -m benchmarks.one NAME ROUNDS EXTENT FILE\n"
        f'echo "$3 $4 $5 $AIOTUNTAP_EXTENSION" >>{tmp_path}/calls\n'
        "case $3 in\n"
        f'good) cp {tmp_path}/child.json "$6" ;;\n'
        "bad) exit 3 ;;\n"
        "hanging) exec sleep 60 ;;\n"
        "esac\n"
    )
    child.chmod(0o755)
    (tmp_path / "calls").touch()
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(results, "PATH", tmp_path / "results.json")
    monkeypatch.setattr(program, "BENCHMARKS", {"bad": "fails", "good": "does not", "hanging": "does not end"})
    monkeypatch.setattr(program, "BOTH_ENGINES", ("good",))
    monkeypatch.setattr(program, "_LIMIT", 0.1)
    monkeypatch.setattr(program, "find_spec", lambda name: name)
    written: list[str] = []
    monkeypatch.setattr(figures, "main", lambda: written.append("figures"))
    return written


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return program.main()


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_all_run_with_c_and_some_with_python_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch)
    assert calls(tmp_path) == ["bad 7 full 1", "good 7 full 1", "hanging 7 full 1", "good 7 full 0"]


def test_those_that_fail_are_named_and_the_figures_of_the_others_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stand_in: list[str]
) -> None:
    before = Results({})
    for name in ("bad", "good"):
        before.add("C", name, entry(1))
    results.save(before, results.PATH)
    assert run(monkeypatch, "bad", "hanging", "good", "--rounds", "1") == 1
    output = capsys.readouterr().out
    assert "== bad, engine C: FAILED: exit status 3\n" in output
    assert "== hanging, engine C: FAILED: not done after 0.2 seconds\n" in output
    assert "\nfailed: bad (engine C), hanging (engine C); " in output
    after = results.load(results.PATH)
    assert after.figure("good", "a row", "a column").median == 2
    assert after.figure("bad", "a row", "a column").median == 1
    assert stand_in == ["figures"]


def test_a_quick_run_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_in: list[str]) -> None:
    assert run(monkeypatch, "good", "--quick", "--engine", "python") == 0
    assert calls(tmp_path) == ["good 3 quick 0"]
    assert not results.PATH.exists()
    assert stand_in == []


def test_only_the_benchmarks_that_ran_change_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Results({})
    before.add("C", "bad", entry(1))
    before.add("Python", "good", entry(1))
    results.save(before, results.PATH)
    assert run(monkeypatch, "good") == 0
    medians = {
        (engine, name): each["tables"]["title"]["a row"]["a column"]["median"]
        for engine, entries in json.loads(results.PATH.read_text()).items()
        for name, each in entries.items()
    }
    assert medians == {("C", "bad"): 1, ("C", "good"): 2, ("Python", "good"): 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "'none' is not a benchmark: they are bad, good, hanging"),
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments)
    assert message in capsys.readouterr().err
