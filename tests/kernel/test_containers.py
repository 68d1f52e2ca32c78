"""What ``doctor`` says where a container lacks the device or the capability, as the page on containers has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .programs import ROOT

# A container has a /dev of its own, and loses capabilities before its program starts.
NO_DEVICE = "mount -t tmpfs tmpfs /dev/net"
NO_CAPABILITY = "setpriv --bounding-set=-net_admin --inh-caps=-net_admin"


@pytest.mark.parametrize(
    "prepare, prefix, node, create",
    [
        ("true", "", True, True),
        (NO_DEVICE, "", False, None),
        ("true", NO_CAPABILITY, True, False),
        (NO_DEVICE, NO_CAPABILITY, False, None),
    ],
    ids=["both", "no device", "no capability", "neither"],
)
def test_doctor_says_what_is_missing(prepare: str, prefix: str, node: bool, create: bool | None) -> None:
    script = f"{prepare} && exec {prefix} {sys.executable} -m aiotuntap doctor --json"
    run = subprocess.run(
        ["unshare", "-Urnm", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found = {each["check"]: each["ok"] for each in json.loads(run.stdout)}
    assert (found["node"], found["create"]) == (node, create), run.stderr
