"""The blocks in Python, for type checkers: ``python -m tests.pages.types`` runs those that are installed.

Each page becomes a module in which every line has the number that it has in the page, and each section an asynchronous
function, since blocks use ``await`` outside functions. Blocks that are files become modules of their own.
"""

from __future__ import annotations

import importlib.util
import json
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
    """Writes the modules of a page into *folder*."""
    lines = [""] * len((ROOT / page).read_text().splitlines())
    lines[0] = "from tests.pages.stage import Stage; page: Stage"
    modules: dict[str, str] = {}
    for section in sections(page):
        python = [block for block in section.blocks if block.language == "python"]
        modules |= {block.file: block.padded for block in python if block.file is not None}
        inline = [block for block in python if block.file is None]
        if inline:
            start = inline[0].line - 2
            lines[start] += f"async def section_{start}() -> None:"
        for block in inline:
            for number, line in enumerate(textwrap.indent(block.text, "    ").splitlines(), block.line - 1):
                lines[number] = line
    modules[re.sub(r"[^a-z0-9]", "_", page.lower()) + ".py"] = "\n".join(lines) + "\n"
    for name, text in modules.items():
        path = folder / name
        assert not path.exists(), f"{page}: another page has a file {name}, too"
        path.write_text(text)


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        for page in pages():
            write_modules(page, folder)
        # mypy says so, too, and for which packages it may
        (folder / "pyrightconfig.json").write_text(
            json.dumps({"extraPaths": [str(ROOT)], "reportMissingImports": False})
        )
        options = ["--strict", f"--config-file={ROOT / 'pyproject.toml'}"]
        commands = [["mypy", *options, *map(str, sorted(folder.glob("*.py")))]]
        if importlib.util.find_spec("pyright") is not None:
            commands.append(["pyright", "--project", directory, "--pythonpath", sys.executable])
        return max(
            [subprocess.run([sys.executable, "-m", *each], cwd=ROOT, check=False).returncode for each in commands]
        )


if __name__ == "__main__":
    sys.exit(main())
