"""The command line in processes of its own, against what iproute2 says."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aiotuntap import AsyncTuntap

from .support import ip, ipv4, is_root, link, named_netns, needs_root, on_one_loop, tap, tun, tun_info, unique

ROOT = Path(__file__).resolve().parents[2]


def aiotuntap(*arguments: str, through: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*through, sys.executable, "-m", "aiotuntap", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def doctor(through: tuple[str, ...] = ()) -> tuple[int, dict[str, dict[str, Any]]]:
    run = aiotuntap("doctor", "--json", through=through)
    assert run.stderr == ""
    return run.returncode, {row["check"]: row for row in json.loads(run.stdout)}


def listed(*arguments: str) -> dict[str, dict[str, Any]]:
    run = aiotuntap("list", "--json", *arguments)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    return {row["name"]: row for row in json.loads(run.stdout)}


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_finds_no_problem_where_the_tests_run() -> None:
    status, checks = doctor()
    assert status == 0
    needed = {"node", "driver", "create", "multi_queue", "vnet_header", "offload csum", "offload tso4", "offload tso6",
              "offload ecn", "napi", "pyroute2", "uvloop"}  # fmt: skip
    assert {name for name in needed if checks[name]["ok"] is not True} == set()
    if is_root():
        assert checks["steering"]["ok"] is True, checks["steering"]
    assert all((row["fix"] == "") is (row["ok"] is True) for row in checks.values() if row["ok"] is not None)


def test_doctor_as_text() -> None:
    run = aiotuntap("doctor")
    assert run.returncode == 0
    assert run.stdout.endswith("\n\nThe demo can run.\n")
    assert run.stdout.startswith("ok  node")


def test_doctor_leaves_nothing_behind() -> None:
    monitor = subprocess.Popen(["ip", "monitor", "link"], stdout=subprocess.PIPE, text=True)
    time.sleep(0.2)
    before = socket.if_nameindex()
    aiotuntap("doctor")
    monitor.terminate()
    seen, _ = monitor.communicate()
    assert socket.if_nameindex() == before
    assert seen == "", "an interface appeared in this namespace"


@needs_root
def test_doctor_misses_the_capability() -> None:
    before = socket.if_nameindex()
    status, checks = doctor(("setpriv", "--bounding-set=-net_admin,-sys_admin"))
    assert checks["node"]["ok"] is True
    assert checks["create"]["ok"] is False
    assert "CAP_NET_ADMIN" in checks["create"]["detail"] and "root" in checks["create"]["fix"]
    namespaces = checks["user namespaces"]["ok"]
    assert checks["multi_queue"]["ok"] is (True if namespaces else None)
    assert status == (0 if namespaces else 1)
    assert socket.if_nameindex() == before


@needs_root
def test_doctor_works_without_the_right_to_create_namespaces() -> None:
    before = socket.if_nameindex()
    status, checks = doctor(("setpriv", "--bounding-set=-sys_admin"))
    assert status == 0 and checks["create"]["ok"] is True and checks["napi"]["ok"] is True
    assert socket.if_nameindex() == before


@needs_root
def test_doctor_misses_the_permission_on_the_node() -> None:
    # A node of somebody else, and root without the capability that overrides permissions.
    script = (
        "mount -t tmpfs tmpfs /dev/net && mknod -m 0600 /dev/net/tun c 10 200 && chown 12345 /dev/net/tun"
        ' && exec setpriv --bounding-set=-dac_override,-dac_read_search,-net_admin,-sys_admin "$@"'
    )
    status, checks = doctor(("unshare", "-m", "sh", "-c", script, "sh"))
    assert status == 1
    assert checks["node"]["ok"] is False and "chmod 0666 /dev/net/tun" in checks["node"]["fix"]
    assert checks["create"]["ok"] is None and checks["multi_queue"]["ok"] is None


def test_doctor_misses_the_node() -> None:
    script = 'mount -t tmpfs tmpfs /dev/net && exec "$@"'
    status, checks = doctor(("unshare", "-m", "sh", "-c", script, "sh"))
    assert status == 1
    assert checks["node"]["ok"] is False and "mknod" in checks["node"]["fix"]
    assert checks["create"]["ok"] is None


# -- list -------------------------------------------------------------------------------------------------------------


def test_list_without_interfaces() -> None:
    assert listed() == {}
    run = aiotuntap("list")
    assert run.returncode == 0 and run.stdout == "No TUN/TAP interfaces in this network namespace.\n"


def test_list_agrees_with_iproute2_on_a_persistent_tun_with_an_owner() -> None:
    name = unique()
    user = pwd.getpwuid(os.getuid()).pw_name
    ip("tuntap", "add", "mode", "tun", "name", name, "user", str(os.getuid()), "pi")
    try:
        ip("link", "set", name, "mtu", "1400")
        ip("addr", "add", "10.9.8.7/24", "dev", name)
        (row,) = listed().values()
        other, info = link(name), tun_info(name)
        assert row["name"] == name and row["index"] == other["ifindex"]
        assert row["mtu"] == other["mtu"] == 1400
        assert row["mode"] == info["type"] == "tun"
        assert row["persistent"] is info["persist"] is True
        assert row["packet_info"] is info["pi"] is True
        assert row["vnet_header"] is info["vnet_hdr"] is False
        assert row["multi_queue"] is info["multi_queue"] is False
        assert row["owner"] == os.getuid() and row["owner_name"] == info["user"] == user
        assert row["group"] is None and row["group_name"] is None
        assert row["addresses"] == ["10.9.8.7/24"]
        assert row["up"] is False and row["queues"] is None

        text = aiotuntap("list").stdout
        assert text.startswith(f"{name}\n")
        for words in ("tun", "down", "1400", "persistent", f"{user} ({os.getuid()})", "10.9.8.7/24"):
            assert words in text
    finally:
        ip("link", "del", name)


@on_one_loop
async def test_list_agrees_with_iproute2_on_a_tap_with_a_disabled_queue() -> None:
    async with tap(queues=3, vnet_header=True) as interface:
        await interface.queues[1].disable()
        row = listed()[interface.name]
        info = tun_info(interface.name)
        assert row["mode"] == info["type"] == "tap"
        assert (row["queues"], row["disabled_queues"]) == (info["numqueues"], info["numdisabled"]) == (2, 1)
        assert row["multi_queue"] and row["vnet_header"] and row["up"] and not row["persistent"]
        assert row["mac"] == link(interface.name)["address"]
        assert "2 enabled, 1 disabled" in aiotuntap("list").stdout


@on_one_loop
async def test_list_shows_the_counters_of_the_kernel() -> None:
    async with tun() as interface:
        for number in range(3):
            await interface.queues[0].write_frame(ipv4(number))
        row, other = listed()[interface.name], link(interface.name)["stats64"]
        assert row["counters"]["rx_packets"] == other["rx"]["packets"] == 3
        assert row["counters"]["rx_bytes"] == other["rx"]["bytes"]
        assert row["counters"]["tx_packets"] == other["tx"]["packets"]
        assert "3 packets" in aiotuntap("list").stdout


@on_one_loop
async def test_list_of_another_namespace() -> None:
    with named_netns() as netns:
        run = aiotuntap("list", "--netns", netns)
        assert run.returncode == 0 and "No TUN/TAP" in run.stdout and netns in run.stdout
        async with AsyncTuntap(unique(), mode="tun", queues=2, netns=netns) as there, tap() as here:
            assert set(listed("--netns", netns)) == set(listed("--netns", f"/run/netns/{netns}")) == {there.name}
            assert set(listed()) == {here.name}
            assert listed("--netns", netns)[there.name]["queues"] == tun_info(there.name, "-n", netns)["numqueues"] == 2


@pytest.mark.parametrize("netns", ["no-such-namespace", "/no/such/path", "/proc/self/status"])
def test_list_of_a_namespace_that_does_not_exist(netns: str) -> None:
    run = aiotuntap("list", "--netns", netns)
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.startswith("aiotuntap: ") and netns in run.stderr and "Traceback" not in run.stderr


def test_list_of_a_namespace_of_another_user() -> None:
    run = aiotuntap("list", "--netns", "/proc/1/ns/net", through=("unshare", "-Urn"))
    assert run.returncode == 1 and "takes CAP_SYS_PTRACE: run as root" in run.stderr and "Traceback" not in run.stderr


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_wrong_calls_are_explained() -> None:
    for arguments in ([], ["no-such-command"], ["list", "--no-such-option"]):
        run = aiotuntap(*arguments)
        assert run.returncode == 2 and "usage: aiotuntap" in run.stderr


def test_names_that_the_encoding_of_the_output_does_not_have() -> None:
    name = unique("é")
    ip("tuntap", "add", "mode", "tun", "name", name)
    try:
        for command in (["list"], ["top", "--once", "--interval", "0.01"]):
            arguments = [sys.executable, "-m", "aiotuntap", *command]
            environment = os.environ | {"PYTHONIOENCODING": "ascii"}
            run = subprocess.run(arguments, capture_output=True, check=False, cwd=ROOT, env=environment)
            assert (run.returncode, run.stderr) == (0, b"") and name.encode("ascii", "backslashreplace") in run.stdout
    finally:
        ip("link", "del", name)


@pytest.mark.parametrize("command", ["list", "doctor", "top --once"])
def test_without_standard_output(command: str) -> None:
    run = aiotuntap(*command.split(), through=("sh", "-c", 'exec "$@" >&-', "sh"))
    assert (run.returncode, run.stderr) == (
        1,
        "aiotuntap: standard output is closed: redirect it, for example to /dev/null\n",
    )


def test_a_reader_that_closes_the_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "aiotuntap", "list"]
    try:
        run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    finally:
        os.close(writer)
    assert run.returncode == 1 and run.stderr == ""
