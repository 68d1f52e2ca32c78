"""The pages without a kernel: their links, their pictures, what their blocks are, and that a wrong block is found."""

from __future__ import annotations

import ast
import re
import subprocess
import xml.etree.ElementTree
from pathlib import Path

import pytest

from .pages import blocks, types
from .pages.blocks import LANGUAGES, ROOT, RUN, Block, Section, sections
from .pages.stage import Stage

PAGES = [*types.pages(), "examples/wireguard/README.md"]
DRAWINGS = sorted((ROOT / "docs/drawings").glob("*.svg"))


def prose(page: str) -> str:
    """A page without its blocks and comments."""
    return re.sub(r"^```.*?^```$|<!--.*?-->", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """What its headings are called in links, on the usual forges and in MyST alike."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", prose(page)):
        assert text.strip(), f"{target}: a link or a picture without words"
        if re.match(r"https://[\w.-]+(/\S*)?$", target):
            continue
        assert ":" not in target, f"{target}: not a link to a file, and not one to https"
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if "charts/" in target and not path.parent.exists():
            continue  # "make bench" draws them
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(str(path.resolve().relative_to(ROOT))), target


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.name)
def test_drawings_say_what_they_show_and_are_shown(path: Path) -> None:
    root = xml.etree.ElementTree.parse(path).getroot()
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text
    assert "prefers-color-scheme: dark" in path.read_text()
    assert any(f"](drawings/{path.name})" in (ROOT / page).read_text() for page in PAGES)


@pytest.mark.parametrize("page", RUN)
def test_every_block_is_of_a_language_that_runs(page: str) -> None:
    fences = re.findall(r"^```(\S*)", (ROOT / page).read_text(), re.MULTILINE)
    assert {language for language in fences if language and language[0] != "{"} <= set(LANGUAGES)
    opened = [language for language in fences[::2] if not language.startswith("{")]
    visible = [block for section in sections(page) for block in section.blocks]
    assert len(visible) >= len(opened)


SKIPPED = {
    f"{page}:{block.line} {block.skip}": block
    for page in types.pages()
    for section in sections(page)
    for block in section.blocks
    if block.skip is not None
}


@pytest.mark.parametrize("block", SKIPPED.values(), ids=SKIPPED)
def test_what_does_not_run_says_why(block: Block) -> None:
    assert block.skip is not None and len(block.skip.split()) > 2
    assert block.language in LANGUAGES


@pytest.mark.parametrize("page", types.pages())
def test_blocks_compile(page: str) -> None:
    for section in sections(page):
        for block in section.blocks:
            where = f"{page}:{block.line}"
            if block.language == "python":
                compile(block.padded, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
            elif block.language == "sh":
                subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "assert await asyncio.sleep(0, False)\n"),
        ("python", "unknown\n"),
        ("sh", "true\nfalse\ntrue\n"),
        ("console", "$ echo 1\n1\n$ echo 2\n3\n"),
        ("console", "$ echo 1 2\n1 ... 3\n"),
        ("text", "something\n"),
    ],
)
async def test_a_block_that_is_wrong_fails_with_its_place(language: str, text: str, tmp_path: Path) -> None:
    imports = Block("python", "import asyncio\nprint('anything')\n", 2)
    section = Section("docs/howto.md", "Wrong", 1, [imports, Block(language, text, 70)])
    with pytest.raises((AssertionError, NameError)) as failure:
        await Stage(section, tmp_path).play()
    assert failure.value.__notes__ == ["in the block at docs/howto.md:70"]


async def test_what_differs_is_left_out_and_a_reason_is_needed_for_skipping(tmp_path: Path) -> None:
    right = Block("console", "$ echo one; echo two three\none\ntwo ...\n$ true\n", 3)
    skipped = Block("python", "raise AssertionError\n", 9, skip="takes a second machine")
    await Stage(Section("docs/howto.md", "Right", 1, [right, skipped]), tmp_path).play()


def test_sections_and_lines_are_those_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '# Title\n\n```sh\ntrue\n```\n\n## One\n\n<!--- skip: next "why" -->\n\n```python\n## no heading\n1\n```\n\n'
        "<!--- invisible-code-block: python\n2\n-->\n"
    )
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    start, one = sections("page.md")
    assert (start.title, one.title, one.line) == ("start", "One", 7)
    assert [(block.language, block.line, block.skip) for block in (*start.blocks, *one.blocks)] == [
        ("sh", 4, None),
        ("python", 12, "why"),
        ("python", 17, None),
    ]
    (tmp_path / "page.md").write_text("<!--- skip: next -->\n\n```sh\ntrue\n```\n")
    with pytest.raises(AssertionError, match="with a reason"):
        sections("page.md")
