"""The charts in ``docs/charts`` are those that ``benchmarks/results.json`` gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import charts, pages, results

KEPT = results.load(results.PATH)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", charts.CHARTS)
def test_a_chart_shows_the_figures_of_the_file(name: str) -> None:
    drawn = charts.render(charts.CHARTS[name](KEPT))
    assert (charts.FOLDER / f"{name}.svg").read_text() == drawn, "run 'make figures'"


def test_there_is_no_other_chart() -> None:
    assert {path.stem for path in charts.FOLDER.iterdir()} == set(charts.CHARTS)


def test_another_process_draws_the_same() -> None:
    """With other hashes, and in another time zone."""
    program = "from benchmarks import charts, results; print(end=charts.render(charts.CHARTS['vpn'](results.load(results.PATH))))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    root = Path(charts.__file__).parents[1]
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env=environment)
    assert done.stdout == (charts.FOLDER / "vpn.svg").read_text()


@pytest.mark.parametrize("name", charts.CHARTS)
def test_the_text_of_a_chart_is_text_with_every_label_and_figure(name: str) -> None:
    found = [text.text for text in ElementTree.parse(charts.FOLDER / f"{name}.svg").iter(f"{SVG}text")]
    for panel in charts.CHARTS[name](KEPT):
        assert panel.title in found
        for bar in panel.bars:
            assert bar.label in found
            assert any(text and text.startswith(pages.number(bar.figure.median)) for text in found)


@pytest.mark.parametrize("name", charts.CHARTS)
def test_a_page_shows_the_chart(name: str) -> None:
    assert any(f"charts/{name}.svg" in path.read_text() for path in pages.paths())
