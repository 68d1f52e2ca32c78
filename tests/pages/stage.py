"""Runs the blocks of one section, and what a reader would do beside them."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shlex
import signal
import tempfile
from pathlib import Path
from typing import Any

from .blocks import ROOT, Block, Section, sections

# Only ends what hangs: a busy machine is not the fault of a page.
_SECONDS = 60


class Program:
    """A command that runs beside the blocks."""

    def __init__(self, command: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.command = command
        self.process = process
        self._log = log

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    async def until(self, words: str, times: int = 1) -> None:
        """Waits until it has printed these words, as often as that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SECONDS):
                while self.output.count(words) < times and self.process.returncode is None:
                    await asyncio.sleep(0.02)
        assert self.output.count(words) >= times, f"{self.command} did not print {words!r}, but: {self.output}"

    async def stop(self) -> str:
        """Presses Ctrl-C, and returns everything that it printed."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(_SECONDS):
            await self.process.wait()
        return self.output


class Stage:
    """Runs blocks in order. The invisible ones know it as ``page``.

    Attributes:
        output: What the last block or command printed.
    """

    def __init__(self, section: Section, folder: Path) -> None:
        self.section = section
        self.folder = folder
        self.output = ""
        self._names: dict[str, Any] = {"__name__": "page", "page": self}
        self._printed = io.StringIO()
        self._programs: list[Program] = []
        (folder / "examples").symlink_to(ROOT / "examples")
        for each in sections(section.page):
            if each.line < section.line:
                self._write_files(each)

    def _write_files(self, section: Section) -> None:
        for block in section.blocks:
            if block.file is not None:
                (self.folder / block.file).write_text(block.text)

    # -- for invisible blocks --

    async def start(self, command: str, until: str = "") -> Program:
        """Starts a command, and waits until it has printed *until*."""
        handle, log = tempfile.mkstemp(dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            process = await asyncio.create_subprocess_exec(
                "sh",
                "-c",
                f"exec {command}",
                cwd=self.folder,
                stdout=file,
                stderr=file,
                stdin=asyncio.subprocess.DEVNULL,
            )
        program = Program(command, process, Path(log))
        self._programs.append(program)
        await program.until(until)
        return program

    async def run(self, commands: str, status: int = 0) -> str:
        """Runs commands in a shell, and returns what they print; a background process may go on."""
        program = await self.start(f"sh -euc {shlex.quote(commands)}")
        async with asyncio.timeout(_SECONDS):
            await program.process.wait()
        self.output = program.output
        assert program.process.returncode == status, f"{commands}: status {program.process.returncode}\n{self.output}"
        return self.output

    @property
    def printed(self) -> str:
        """What the blocks in Python have printed so far, and the tasks that they started."""
        return self._printed.getvalue()

    # -- blocks --

    async def play(self) -> None:
        """Runs the section."""
        asyncio.get_running_loop().slow_callback_duration = _SECONDS
        self._write_files(self.section)
        try:
            with contextlib.redirect_stdout(self._printed):
                for block in self.section.blocks:
                    if block.skip is None and block.file is None:
                        await self._run(block)
        finally:
            for program in self._programs:
                with contextlib.suppress(ProcessLookupError):
                    program.process.kill()
                await program.process.wait()

    async def _run(self, block: Block) -> None:
        try:
            await getattr(self, f"_{block.language}")(block)
        except BaseException as error:
            error.add_note(f"in the block at {self.section.page}:{block.line}")
            raise

    async def _python(self, block: Block) -> None:
        path = ROOT / self.section.page
        code = compile(block.padded, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        already = len(self.printed)
        result = eval(code, self._names)
        if inspect.isawaitable(result):
            async with asyncio.timeout(_SECONDS):
                await result
        if new := self.printed[already:]:
            self.output = new

    async def _sh(self, block: Block) -> None:
        await self.run(block.text)

    async def _console(self, block: Block) -> None:
        for command, shown in re.findall(r"^[#$] (.*)\n((?:(?![#$] ).*\n)*)", block.text, re.MULTILINE):
            program = await self.start(f"sh -c {shlex.quote(command)}")
            async with asyncio.timeout(_SECONDS):
                await program.process.wait()
            self.output = program.output
            self._compare(shown)

    async def _text(self, block: Block) -> None:
        self._compare(block.text)

    def _compare(self, shown: str) -> None:
        pattern = ".*?".join(map(re.escape, _stripped(shown).split("...")))
        assert re.fullmatch(pattern, _stripped(self.output), re.DOTALL), f"shown:\n{shown}\nprinted:\n{self.output}"


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
