"""``top`` in a process of its own, beside interfaces of this one and of others."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import pty
import subprocess
import sys
from typing import Any

from aiotuntap import AsyncTuntap
from aiotuntap.testing import example_frame

from .support import ip, named_netns, on_one_loop, tap_with_peer, tun, unique
from .test_cli import ROOT, aiotuntap

COMMAND = [sys.executable, "-m", "aiotuntap", "top"]


async def top(*arguments: str) -> list[dict[str, Any]]:
    run = await asyncio.to_thread(aiotuntap, "top", "--once", "--json", "--interval", "0.3", *arguments)
    assert (run.returncode, run.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


async def keep_writing(interface: AsyncTuntap, size: int) -> None:
    while True:
        await interface.queues[0].write_frames([example_frame(number, size) for number in range(10)])
        await asyncio.sleep(0.005)


@on_one_loop
async def test_rates_and_holders_of_this_process() -> None:
    async with tap_with_peer(queues=3) as (interface, _):
        await interface.queues[1].disable()
        writing = asyncio.create_task(keep_writing(interface, 500))
        (row,) = await top()
        writing.cancel()
        assert (row["name"], row["mode"], row["queues"], row["disabled_queues"]) == (interface.name, "tap", 2, 1)
        assert row["written"]["frames"] > 10 and row["written"]["frame_size"] == 500
        assert row["read"]["frames"] == 0 and 0.3 <= row["seconds"] < 20
        assert [(each["pid"], each["fd"]) for each in row["holders"]] == [
            (os.getpid(), queue.fileno()) for queue in interface.queues
        ]
        assert [each["enabled"] for each in row["holders"]] == [True, False, True]


@on_one_loop
async def test_names_of_any_bytes() -> None:
    """Any user may give some to an interface and to a program: no terminal gets what it would take for a command."""
    name = "\udcff\x1b[2J" + unique("t")
    prctl, pr_set_name, pr_get_name = ctypes.CDLL(None).prctl, 15, 16
    before = ctypes.create_string_buffer(16)
    prctl(pr_get_name, before, 0, 0, 0)
    async with AsyncTuntap(name, mode="tun") as interface:
        prctl(pr_set_name, b"\xff\x1b[2J", 0, 0, 0)
        try:
            (row,) = [each for each in await top() if each["index"] == interface.index]
            commands = (["top", "--once", "--interval", "0.05"], ["list"])
            texts = [(await asyncio.to_thread(aiotuntap, *command)).stdout for command in commands]
        finally:
            prctl(pr_set_name, before, 0, 0, 0)
    assert row["name"] == name and [each["command"] for each in row["holders"]] == ["\udcff\x1b[2J"]
    assert all("\x1b" not in text and r"\udcff\x1b[2J" in text for text in texts)
    assert r"held by \udcff\x1b[2J (process" in texts[0]


@on_one_loop
async def test_drops_are_shown() -> None:
    async with tap_with_peer(read_buffer=10) as (interface, peer):
        await interface.configure(txqueuelen=20)

        async def flood() -> None:
            while True:
                for number in range(50):
                    peer.send(example_frame(number))
                await asyncio.sleep(0.01)

        flooding = asyncio.create_task(flood())
        (row,) = await top()
        flooding.cancel()
        assert row["read"]["dropped"] > 100 and row["written"]["dropped"] == 0


@on_one_loop
async def test_an_interface_of_the_same_name_in_another_namespace_is_another_one() -> None:
    with named_netns() as netns:
        async with tun() as here, AsyncTuntap(here.name, mode="tap", netns=netns, multi_queue=False) as there:
            (mine,), (other,) = await top(), await top("--netns", netns)
            assert (mine["mode"], other["mode"]) == ("tun", "tap")
            assert [each["fd"] for each in mine["holders"]] == [here.queues[0].fileno()]
            assert [each["fd"] for each in other["holders"]] == [there.queues[0].fileno()]
            assert other["queues"] is None


def test_the_text_for_an_interface_without_holders() -> None:
    name = unique()
    ip("tuntap", "add", "mode", "tap", "name", name)
    try:
        run = aiotuntap("top", "--once", "--interval", "0.05")
        assert (run.returncode, run.stderr) == (0, "")
        lines = run.stdout.splitlines()
        assert lines[2].split() == [name, "-", *"000000"] and lines[3:] == ["  tap, down"]
    finally:
        ip("link", "del", name)


@on_one_loop
async def test_a_screen_is_drawn_over_and_ctrl_c_ends_it() -> None:
    async with tun() as interface:
        keeper, terminal = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "--interval", "0.05"],
            cwd=ROOT,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        try:
            seen = b""
            async with asyncio.timeout(20):
                while seen.count(b"\033[H") < 3:
                    seen += await asyncio.to_thread(os.read, keeper, 65536)
            assert interface.name.encode() in seen
        finally:
            process.send_signal(2)
            status = await asyncio.to_thread(drain, keeper, process)
            os.close(keeper)
        assert status == 130


def drain(keeper: int, process: subprocess.Popen[bytes]) -> int:
    """The status of a program whose terminal is read until it ends, as terminals are."""
    with contextlib.suppress(OSError):  # EIO: there is nobody at the other end any more
        while os.read(keeper, 65536):
            pass
    return process.wait(10)


def test_a_line_for_each_interval_for_scripts() -> None:
    process = subprocess.Popen([*COMMAND, "--interval", "0.05", "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        assert [json.loads(process.stdout.readline()) for _ in range(3)] == [[], [], []]
        process.terminate()


def test_wrong_calls() -> None:
    for wrong in ("0", "-1", "nan", "x"):
        run = aiotuntap("top", "--interval", wrong)
        assert run.returncode == 2 and f"--interval: must be from 0.01 to 86400 seconds, not {wrong}" in run.stderr
    run = aiotuntap("top", "--netns", "no-such-netns")
    assert run.returncode == 1 and "ip netns add no-such-netns" in run.stderr
