"""The blocks of a page, by section."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sybil import Document
from sybil.parsers.myst import CodeBlockParser, SkipParser
from sybil.typing import Parser

ROOT = Path(__file__).parents[2]
#: Pages of which every block runs.
RUN = ("README.md", "docs/index.md", "docs/tutorial.md", "docs/howto.md", "docs/offloads.md", "docs/engine.md")
LANGUAGES = ("python", "sh", "console", "text")


@dataclass(frozen=True)
class Block:
    """What stands between two fences, or in a comment for the tests."""

    language: str
    text: str
    #: Number of its first line in the page.
    line: int
    #: Why it does not run, None where it does.
    skip: str | None = None

    @property
    def file(self) -> str | None:
        """The file that the block is, by its first line."""
        found = re.match(r"# (\w+\.py)\n", self.text) if self.language == "python" else None
        return found[1] if found else None

    @property
    def padded(self) -> str:
        """With so many empty lines in front that line numbers are those of the page."""
        return "\n" * (self.line - 1) + self.text


@dataclass
class Section:
    """Everything from one heading of the second level to the next."""

    page: str
    title: str
    line: int
    blocks: list[Block] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{Path(self.page).stem}-{self.title}"


def _no_evaluation(example: Any) -> None: ...


_PARSERS: list[Parser] = [*(CodeBlockParser(language, _no_evaluation) for language in LANGUAGES), SkipParser()]


def sections(page: str) -> list[Section]:
    """The sections of a page that have blocks, in order; the first one is what stands before any heading."""
    path = ROOT / page
    text = path.read_text()
    document = Document.parse(str(path), *_PARSERS)
    examples = list(document.examples())
    inside = {line for each in examples for line in _lines(document, each)}
    found = [Section(page, "start", 1)]
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## ") and number not in inside:
            found.append(Section(page, line[3:].strip("# "), number))
    skip: str | None = None
    for example in examples:
        if isinstance(example.parsed, tuple):
            action, reason = example.parsed
            assert action == "next" and reason, f"{page}:{example.line}: 'skip: next' with a reason is all there is"
            skip = ast.literal_eval(reason)
            continue
        section = next(each for each in reversed(found) if each.line <= example.line)
        language = str(example.region.lexemes["arguments"])
        section.blocks.append(Block(language, str(example.parsed), example.line + example.parsed.line_offset + 1, skip))
        skip = None
    assert skip is None, f"{page}: nothing follows the last 'skip: next'"
    return [each for each in found if each.blocks]


def _lines(document: Document, example: Any) -> Iterator[int]:
    yield from range(example.line, example.line + document.text[example.start : example.end].count("\n") + 1)
