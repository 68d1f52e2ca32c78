"""A virtual machine on a TAP interface, with each way of giving it one that the page shows.

QEMU boots from its network card, as far as it gets: it asks for an address.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from .programs import ROOT, program
from .support import PacketPeer, ip, link, tun_info, unique

_MAC = "02:00:00:00:00:77"
_IPV4 = 0x0800


def qemu(*options: str) -> list[str]:
    return [
        "qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults", "-boot", "n", "-no-reboot",
        "-device", f"e1000,netdev=n0,mac={_MAC},romfile=/usr/lib/ipxe/qemu/pxe-e1000.rom", *options,
    ]  # fmt: skip


def asks_for_an_address(name: str) -> bool:
    """Whether the first IPv4 packet from behind an interface is a DHCP request of the machine."""
    with PacketPeer(name, _IPV4) as peer:
        peer.socket.settimeout(40)
        frame = peer.socket.recv(2000)
    return frame[6:12].hex(":") == _MAC and frame[34:38] == b"\0\x44\0\x43"  # UDP from port 68 to port 67


def test_it_gets_the_descriptor_of_a_queue() -> None:
    name = unique("vm")
    with program("machine.py", name, "10.30.0.1/24", *qemu()) as process:
        assert asks_for_an_address(name)
        info = tun_info(name)
        assert (info["numqueues"], info["numdisabled"]) == (1, 1)
        process.send_signal(signal.SIGTERM)
        status, _, err = process.ended()
        assert status == 0, err


def test_the_machine_ends_if_the_interface_cannot_be_configured() -> None:
    """Otherwise it would go on for ever, and the interface with it."""
    command = [sys.executable, str(ROOT / "examples/machine.py"), unique("vm"), "10.30.0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, "sh", "-c", "exec sleep 60"],
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
        env=environment,
    )
    assert run.returncode == 1 and "the prefix length is missing" in run.stderr


def test_a_signal_before_it_is_ready_ends_the_machine_too() -> None:
    command = ["sh", "-c", "kill -TERM $PPID; exec sleep 60"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples/machine.py"), unique("vm"), "10.30.0.1/24", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            _, err = process.communicate(timeout=15)  # the machine has this pipe too
        finally:
            process.kill()
        assert err == b"" and process.returncode != -signal.SIGTERM


def test_a_signal_when_the_machine_has_ended_is_silent() -> None:
    """As with Ctrl-C in a terminal, where the machine gets the signal too."""
    with program("machine.py", unique("vm"), "10.30.0.1/24", "sh", "-c", "exec sleep 60") as process:
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert process.ended()[2] == ""


def test_it_opens_a_persistent_interface_itself() -> None:
    name = unique("vm")
    ip("tuntap", "add", "mode", "tap", "name", name, "vnet_hdr")
    try:
        ip("link", "set", name, "up")
        command = qemu("-netdev", f"tap,id=n0,ifname={name},script=no,downscript=no")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as machine:
            try:
                assert asks_for_an_address(name)
            finally:
                machine.kill()
        assert "NO-CARRIER" in link(name)["flags"]
    finally:
        ip("link", "del", name)
