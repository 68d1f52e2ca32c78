"""What a user of the example programs may get wrong is told in one line, with the name of the thing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .programs import ROOT
from .support import PATIENCE, unique

_LONG = "a-name-of-16-byte"


def refused(*arguments: str, **environment: str) -> str:
    """The only line of standard error of a program that fails, or its last one, after how it is called."""
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert run.returncode in (1, 2) and "Traceback" not in run.stderr, run.stderr
    lines = run.stderr.splitlines()
    assert len(lines) == 1 or lines[0].startswith("usage: ")
    return lines[-1]


@pytest.mark.parametrize("name", ["echo", "kept", "machine", "metrics", "stopping", "workers"])
def test_a_name_that_is_too_long(name: str) -> None:
    more = ["10.77.0.1/24", "true"] if name == "machine" else []
    said = refused(f"examples/{name}.py", _LONG, *more)
    assert said.startswith(f"{name}.py: ") and _LONG in said


@pytest.mark.parametrize("name", ["echo", "kept", "machine", "metrics", "stopping", "workers"])
def test_a_name_that_is_taken(name: str) -> None:
    more = ["10.77.0.1/24", "true"] if name == "machine" else []
    said = refused(f"examples/{name}.py", "lo", *more)
    assert said.startswith(f"{name}.py: cannot open ") and "use another name" in said


@pytest.mark.parametrize(
    ("more", "told"), [(["10.77.0.1", "true"], "prefix"), (["10.77.0.1/24", "/no/such/program"], "/no/such/program")]
)
def test_machine(more: list[str], told: str) -> None:
    assert told in refused("examples/machine.py", unique("err"), *more)


def test_metrics_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for number in (port, "65536", "-1"):
            assert number in refused("examples/metrics.py", unique("err"), "--port", number)


def test_passt(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    assert path in refused("examples/passt.py", "net0", path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert _LONG in refused("examples/passt.py", _LONG, path)
        assert "'x'" in refused("examples/passt.py", unique("err"), path, "--address", "x")
        assert "'x'" in refused("examples/passt.py", unique("err"), path, "--gateway", "x")


@pytest.mark.parametrize("variable", ["WG_TUN_FD", "WG_UAPI_FD"])
@pytest.mark.parametrize("value", ["x", "-1", "999", "0"])
def test_wireguard_descriptors(variable: str, value: str) -> None:
    said = refused("-m", "examples.wireguard", "-f", unique("err"), **{variable: value})
    assert variable in said


def test_wireguard_that_waits_to_be_brought_up_is_silent() -> None:
    """The library warns after a second, and names a remedy that the users of ``wg`` do not have."""
    name = unique("err")
    command = [sys.executable, "-m", "examples.wireguard", "-f", name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOG_LEVEL": "verbose"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        try:
            assert process.stderr is not None
            assert "is ready" in process.stderr.readline()
            time.sleep(1.5)
            process.terminate()
            assert "configure" not in process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
