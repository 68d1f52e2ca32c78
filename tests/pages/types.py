"""The blocks in Python, for type checkers: ``python -m tests.pages.types`` runs those that are installed.

Each page becomes a module in which every line has the number that it has in the page, and each section an asynchronous
function, since blocks use ``await`` outside functions. Blocks that are files become modules of their own.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from .blocks import ROOT, sections


def pages() -> list[str]:
    return ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def write_modules(page: str, folder: Path) -> None:
    """Writes the modules of a page into *folder*, which must be empty but for other files of the same page."""
    lines = [""] * len((ROOT / page).read_text().splitlines())
    lines[0] = "import asyncio; from tests.pages.stage import Stage; page: Stage; import builtins as _"
    for section in sections(page):
        python = [block for block in section.blocks if block.language == "python"]
        for block in python:
            if block.file is not None:
                (folder / block.file).write_text(block.padded)
        if inline := [block for block in python if block.file is None]:
            start = inline[0].line - 2
            lines[start] += f"async def section_{start}() -> None:"
            for block in inline:
                for number, line in enumerate(textwrap.indent(block.text, "    ").splitlines(), block.line - 1):
                    lines[number] = line
    (folder / f"{re.sub(r'[^a-z0-9]', '_', Path(page).stem.lower())}_md.py").write_text("\n".join(lines) + "\n")


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        folders = []
        for page in pages():
            folder = Path(directory, page.replace("/", "_").removesuffix(".md"))
            folder.mkdir()
            write_modules(page, folder)
            folders.append(folder)
        status = 0
        for folder in folders:
            command = [sys.executable, "-m", "mypy", "--strict", f"--config-file={ROOT / 'pyproject.toml'}"]
            checked = subprocess.run([*command, *map(str, sorted(folder.glob("*.py")))], cwd=ROOT, check=False)
            status |= checked.returncode
        if importlib.util.find_spec("pyright") is not None:
            status |= subprocess.run([sys.executable, "-m", "pyright", *map(str, folders)], cwd=ROOT, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
