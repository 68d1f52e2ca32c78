"""README and pages hold the figures of ``benchmarks/results.json``, as ``make figures`` writes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import pages, results
from benchmarks.results import Entry, Figure, Machine, Results, Table, figure

PATHS = pages.paths()
KEPT = results.load(results.PATH)
MACHINE = Machine("6.18.0", "x86_64", "a processor", 2, "CPython 3.11.7", "0.23.0")


def entry(tables: list[Table], date: str = "2026-01-02") -> Entry:
    return Entry(MACHINE, date, 7, 12, results.tables(tables))


def one_figure(median: float) -> Table:
    return Table("title", "", {"a column": 2}, {"a row": [Figure(median, median / 2, 2 * median)]})


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_page_holds_the_figures_of_the_file(path: Path) -> None:
    text = path.read_text()
    assert pages.fill(text, KEPT) == text, "run 'make figures'"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_markers_of_a_page_come_in_pairs(path: Path) -> None:
    """A single figure is not at the beginning of a line: in Markdown, a line that begins with a comment is not text."""
    text = path.read_text()
    assert re.findall(r"<!-- (/?)bench", text) == ["", "/"] * text.count("<!-- /bench -->")
    for block in re.finditer(r"^<!-- bench.*?-->(.*)", text, re.MULTILINE):
        assert block[1] == ""


def test_every_block_stands_on_a_page() -> None:
    text = "".join(path.read_text() for path in PATHS)
    assert [name for name in pages.BLOCKS if f"<!-- bench: {name} -->" not in text] == []


def test_a_stale_figure_is_replaced_and_the_rest_is_left() -> None:
    text = "Up to <!-- bench: µs of read -->9.99 µs<!-- /bench --> each.\n\n<!-- bench: table: idle -->\nold\n<!-- /bench -->\nend\n"
    filled = pages.fill(text, KEPT)
    assert "9.99" not in filled
    assert "old" not in filled
    assert re.match(r"Up to <!-- bench: µs of read -->[\d.]+ µs<!-- /bench --> each\.\n\n<!-- ", filled)
    assert re.search(r"<!-- bench: table: idle -->\n\n\| .*\|\n\n<!-- /bench -->\nend\n$", filled, re.DOTALL)
    assert pages.fill(filled, KEPT) == filled


@pytest.mark.parametrize(
    ("name", "message"),
    [("no such block", "'no such block' is not a block of figures"), ("table: nothing", "no run of nothing with")],
)
def test_a_block_that_does_not_exist_is_an_error(name: str, message: str) -> None:
    with pytest.raises(LookupError, match=message):
        pages.fill(f"<!-- bench: {name} --><!-- /bench -->", KEPT)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert results.load(path).entries == {}
    found = Results({})
    found.add("C", "some", entry([one_figure(1.23456)]))
    found.add("Python", "some", entry([one_figure(20)]))
    results.save(found, path)
    again = results.load(path)
    assert again.entries == found.entries
    assert again.figure("some", "a row", "a column") == Figure(1.235, 0.6173, 2.469)
    assert '"a column": {"median": 1.235, "low": 0.6173, "high": 2.469}\n' in path.read_text()
    before = path.read_bytes()
    results.save(again, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_run_takes_the_place_of_the_last_one_alone() -> None:
    found = Results({})
    for name in ("one", "other"):
        found.add("C", name, entry([one_figure(1)]))
    found.add("C", "one", entry([one_figure(2)], "2026-01-03"))
    assert found.figure("one", "a row", "a column").median == 2
    assert found.figure("other", "a row", "a column").median == 1


def test_a_figure_that_is_missing_or_ambiguous_is_an_error() -> None:
    found = Results({})
    found.add("C", "some", entry([one_figure(1), one_figure(2)._replace(title="another")]))
    with pytest.raises(LookupError, match="2 figures of some, not 1: row 'a row', column 'a column'"):
        found.figure("some", "a row", "a column")
    with pytest.raises(LookupError, match="0 figures of some, not 1: row 'no', column 'a column'"):
        found.figure("some", "no", "a column")
    with pytest.raises(LookupError, match='make bench ARGS="some --engine python"'):
        found.figure("some", "a row", "a column", "Python")


def test_the_line_about_the_machine_names_what_was_run_otherwise() -> None:
    found = Results({})
    found.add("C", "one", entry([]))
    found.add("C", "other", entry([]))
    alike = "Linux 6.18.0, x86_64 (a processor), 2 CPUs, CPython 3.11.7, uvloop 0.23.0, 2026-01-02, 7 rounds"
    assert pages.BLOCKS["machine"](found) == alike
    found.add("Python", "one", entry([], "2026-01-03"))
    different = alike.replace("01-02", "01-03")
    assert pages.BLOCKS["machine"](found) == f"{alike}; one with the engine in Python: {different}"


@pytest.mark.parametrize(
    ("samples", "expected"), [([3], (3, 3, 3)), ([1, 3], (2, 1.5, 2.5)), ([5, 1, 2, 4, 3], (3, 2, 4))]
)
def test_a_figure_has_median_and_quartiles(samples: list[float], expected: tuple[float, ...]) -> None:
    assert figure(samples) == expected


def test_a_table_is_printed_in_markdown() -> None:
    rows: dict[str, list[Figure | None]] = {"first": [Figure(1.234, 1, 2), None], "other": [None, Figure(1234.5, 1, 2)]}
    assert str(Table("Title", "", {"ratio": 2, "ns": 0}, rows)) == (
        "### Title\n\n"
        "|       | ratio |   ns |\n"
        "| ----- | ----: | ---: |\n"
        "| first |  1.23 |      |\n"
        "| other |       | 1234 |"
    )
