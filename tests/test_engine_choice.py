"""Which engine a process runs, what the doctor says about it, and the warning about the slow one."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

HIDDEN = "import sys; sys.modules['aiotuntap._native'] = None"
BROKEN = """
import sys
from importlib.machinery import ModuleSpec

class Broken:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name == "aiotuntap._native" else None
    def create_module(self, spec):
        raise ImportError("undefined symbol: of_another_version")
    def exec_module(self, module): ...

sys.meta_path.insert(0, Broken())
"""


class Machine:
    """Runs Python with or without the extension."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hide(self, how: str) -> None:
        (self._path / "sitecustomize.py").write_text(how)

    def run(self, *arguments: str, extension: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self._path), str(ROOT)])
        environment = {name: value for name, value in os.environ.items() if name != "AIOTUNTAP_EXTENSION"}
        environment |= {"PYTHONPATH": path} | ({} if extension is None else {"AIOTUNTAP_EXTENSION": extension}) | more
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self._path, env=environment, timeout=30
        )

    def doctor_about_the_engine(self, extension: str | None) -> dict[str, Any]:
        run = self.run("-m", "aiotuntap", "doctor", "--json", extension=extension)
        assert run.stderr == ""
        (row,) = (row for row in json.loads(run.stdout) if row["check"] == "engine")
        assert isinstance(row, dict)
        return row


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# -- choosing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [None, "", "1"])
def test_doctor_where_the_extension_is_installed(machine: Machine, extension: str | None) -> None:
    pytest.importorskip("aiotuntap._native", reason="no C extension: ONLY THE ENGINE IN PYTHON IS TESTED")
    row = machine.doctor_about_the_engine(extension)
    assert row["ok"] is True and row["value"] == "C" and row["fix"] == ""


def test_doctor_where_the_extension_is_left_out(machine: Machine) -> None:
    row = machine.doctor_about_the_engine("0")
    assert row["ok"] is False and row["value"] == "Python"
    assert "AIOTUNTAP_EXTENSION=0" in row["detail"] and row["fix"].startswith("unset AIOTUNTAP_EXTENSION")


@pytest.mark.parametrize("extension", [None, ""])
def test_doctor_where_the_extension_was_not_compiled(machine: Machine, extension: str | None) -> None:
    machine.hide(HIDDEN)
    row = machine.doctor_about_the_engine(extension)
    assert row["ok"] is False and row["value"] == "Python" and "was not compiled" in row["detail"]
    assert "build-essential python3-dev" in row["fix"] and "unset" not in row["fix"]


def test_doctor_where_the_extension_is_broken(machine: Machine) -> None:
    machine.hide(BROKEN)
    row = machine.doctor_about_the_engine(None)
    assert row["ok"] is False and row["value"] == "Python"
    assert "undefined symbol: of_another_version" in row["detail"]


@pytest.mark.parametrize(
    ("how", "reason"), [(HIDDEN, "aiotuntap._native"), (BROKEN, "undefined symbol")], ids=["hidden", "broken"]
)
def test_command_line_says_in_one_line_that_the_demanded_extension_is_missing(
    machine: Machine, how: str, reason: str
) -> None:
    machine.hide(how)
    run = machine.run("-m", "aiotuntap", "doctor", "--json", extension="1")
    assert run.returncode == 1 and run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    for words in ("AIOTUNTAP_EXTENSION=1", reason, "build-essential python3-dev", "unset the variable"):
        assert words in run.stderr


# What an installer writes for ``[project.scripts]``.
SCRIPT = "import sys\nfrom aiotuntap._cli.main import main\nsys.exit(main())\n"


@pytest.mark.parametrize(("extension", "words"), [("1", "cannot be imported"), ("2", "must be 0, 1 or empty, not '2'")])
def test_script_says_in_one_line_what_is_wrong_with_the_engine(machine: Machine, extension: str, words: str) -> None:
    machine.hide(HIDDEN)
    script = Path(machine._path, "aiotuntap")
    script.write_text(SCRIPT)
    run = machine.run(str(script), "doctor", extension=extension)
    assert run.returncode == 1 and run.stdout == "" and len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("aiotuntap: AIOTUNTAP_EXTENSION") and words in run.stderr
    script = script.rename(script.with_name("other"))
    run = machine.run(str(script), "doctor", extension=extension)
    assert "ImportError: AIOTUNTAP_EXTENSION" in run.stderr  # as for any other program


def test_import_fails_where_the_demanded_extension_is_missing(machine: Machine) -> None:
    machine.hide(HIDDEN)
    run = machine.run("-c", "import aiotuntap", extension="1")
    assert run.returncode == 1 and run.stderr.splitlines()[-1].startswith("ImportError: AIOTUNTAP_EXTENSION=1, but")
    assert "circular" not in run.stderr


@pytest.mark.parametrize("extension", ["2", "no", "true"])
def test_other_values_are_refused(machine: Machine, extension: str) -> None:
    run = machine.run("-m", "aiotuntap", "doctor", extension=extension)
    assert run.returncode == 1 and run.stdout == "" and len(run.stderr.splitlines()) == 1
    assert f"AIOTUNTAP_EXTENSION must be 0, 1 or empty, not {extension!r}" in run.stderr


# -- the warning ------------------------------------------------------------------------------------------------------

PROGRAM = """\
import asyncio, warnings
import aiotuntap
from aiotuntap import AsyncTuntap, Offload

async def opening(self):
    return self

AsyncTuntap.open = opening  # no interface is needed to see the warning

async def main():
    for _ in range(3):
        async with AsyncTuntap(mode="tun", offload=Offload.ALL):  # line 12
            pass
    task = AsyncTuntap(mode="tap", offload=Offload.CSUM).open()  # line 14
    await asyncio.create_task(task)
    AsyncTuntap(mode="tun", offload=Offload.ALL, vnet_header=True)
    AsyncTuntap(mode="tun")

{}
asyncio.run(main())
"""


def warnings_of(machine: Machine, setting: str = "", extension: str = "0", **more: str) -> str:
    program = Path(machine._path, "program.py")
    program.write_text(PROGRAM.format(setting))
    run = machine.run(str(program), extension=extension, **more)
    assert run.returncode == 0, run.stderr
    return run.stderr


def test_the_slow_engine_warns_once_for_each_line_that_opens(machine: Machine) -> None:
    said = [line for line in warnings_of(machine).splitlines() if "SlowEngineWarning: " in line]
    assert [line.split(" ")[0].rpartition("program.py")[2] for line in said] == [":12:", ":14:"]
    assert "50 times the CPU time" in said[0] and "unset AIOTUNTAP_EXTENSION" in said[0] and "doctor" in said[0]


def test_slow_engine_that_was_not_compiled(machine: Machine) -> None:
    machine.hide(HIDDEN)
    said = warnings_of(machine, extension="")
    assert "build-essential python3-dev" in said and "unset" not in said


def test_fast_engine_is_silent(machine: Machine) -> None:
    pytest.importorskip("aiotuntap._native", reason="no C extension: ONLY THE ENGINE IN PYTHON IS TESTED")
    assert warnings_of(machine, extension="") == ""


@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("warnings.simplefilter('ignore', aiotuntap.SlowEngineWarning)", {}),
        ("", {"PYTHONWARNINGS": "ignore::aiotuntap.SlowEngineWarning"}),
    ],
)
def test_warning_can_be_silenced_by_its_category(machine: Machine, setting: str, more: dict[str, str]) -> None:
    assert warnings_of(machine, setting, **more) == ""


@pytest.mark.parametrize("free_threaded", [False, True])
def test_the_stable_abi_is_only_asked_for_where_it_exists(free_threaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", asked.update)
    monkeypatch.setitem(sysconfig.get_config_vars(), "Py_GIL_DISABLED", int(free_threaded))
    monkeypatch.delenv("AIOTUNTAP_EXTENSION", raising=False)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    (extension,) = asked["ext_modules"]
    names = [name for name, _ in extension.define_macros]
    if free_threaded:
        assert (names, extension.py_limited_api, asked["options"]) == (["SOURCES"], False, {})
    else:
        assert (names, extension.py_limited_api) == (["Py_LIMITED_API", "SOURCES"], True)
        assert asked["options"] == {"bdist_wheel": {"py_limited_api": "cp311"}}
