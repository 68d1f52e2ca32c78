"""The service of the page on systemd, with a stand-in for systemd that keeps its descriptors."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .programs import ROOT, Program, program
from .support import ip, link, needs_root, unique

# What systemd does between fork and exec: the descriptors from 3 on, and whom they are for.
_LISTEN = """
import os, sys
count = int(sys.argv[1])
for target, fd in enumerate(map(int, sys.argv[2 : 2 + count]), start=3):
    os.dup2(fd, target)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


class Manager:
    """Listens as systemd does, and keeps what it is sent."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(10)
        self._path = str(path)
        self._socket.bind(self._path)
        self.kept: list[int] = []

    @contextmanager
    def service(self, name: str, *prefix: str) -> Iterator[Program]:
        """The service, with the descriptors that were kept so far."""
        # Out of the way of those that the service gets.
        kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in self.kept]
        names = ":".join("queue" for _ in kept)
        listen = (sys.executable, "-c", _LISTEN, str(len(kept)), *map(str, kept)) if kept else ()
        environment = {"NOTIFY_SOCKET": self._path, "LISTEN_FDS": str(len(kept)), "LISTEN_FDNAMES": names}
        try:
            with program("kept.py", name, prefix=(*prefix, *listen), env=environment, pass_fds=kept) as process:
                yield process
        finally:
            for fd in kept:
                os.close(fd)

    def told(self) -> list[str]:
        """The next message of the service. Descriptors that came with it are kept."""
        data, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
        self.kept += fds
        return data.decode().split("\n")

    def forget(self) -> None:
        for fd in self.kept:
            os.close(fd)
        self.kept = []

    def close(self) -> None:
        self.forget()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def echo(count: int, seconds: float = 10) -> tuple[socket.socket, list[bytes]]:
    """A socket that has sent so many datagrams to the service, and what they were."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(seconds)
    sock.connect(("10.77.0.2", 7))
    sent = [b"%d" % number for number in range(count)]
    for datagram in sent:
        sock.send(datagram)
    return sock, sent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_interface_outlives_a_restart_and_no_frame_is_lost(manager: Manager, number: int) -> None:
    name = unique("kept")
    with manager.service(name) as process:
        assert manager.told() == ["FDSTORE=1", "FDNAME=queue"]
        assert manager.told() == ["READY=1"]
        index = link(name)["ifindex"]
        process.send_signal(number)
        status, _, err = process.ended()
        assert (status, err) == ((0, "") if number == signal.SIGTERM else (-number, ""))
    if number == signal.SIGTERM:
        assert manager.told() == ["STOPPING=1"]
    assert len(manager.kept) == 2
    assert link(name)["ifindex"] == index
    assert {"UP", "LOWER_UP"} <= set(link(name)["flags"])
    # Nobody reads now.
    sock, sent = echo(100)
    with sock, manager.service(name) as process:
        assert [sock.recv(2000) for _ in sent] == sent
        assert manager.told() == ["READY=1"]
        assert link(name)["ifindex"] == index
        assert link(name)["stats64"]["tx"]["dropped"] == 0
        process.terminate()
        assert process.ended() == (0, "", "")
    manager.forget()  # as systemd does when the service is stopped
    assert name not in {name for _, name in socket.if_nameindex()}


def test_a_deleted_interface_is_made_anew(manager: Manager) -> None:
    name = unique("kept")
    with manager.service(name) as process:
        assert (manager.told(), manager.told()) == (["FDSTORE=1", "FDNAME=queue"], ["READY=1"])
        ip("link", "del", name)
        status, _, err = process.ended()
        assert status == 1
        assert f"'{name}' is gone" in err
    with manager.service(name) as process:
        assert manager.told() == ["FDSTOREREMOVE=1", "FDNAME=queue"]
        manager.forget()
        assert (manager.told(), manager.told()) == (["FDSTORE=1", "FDNAME=queue"], ["READY=1"])
        sock, sent = echo(10)
        with sock:
            assert [sock.recv(2000) for _ in sent] == sent
        process.terminate()
        status, _, err = process.ended()
        assert status == 0
        assert err.startswith("starting anew: ")
        assert err.count("\n") == 1


@needs_root
def test_one_capability_is_enough(manager: Manager) -> None:
    name = unique("kept")
    only = "-all,+net_admin"
    prefix = ("setpriv", f"--bounding-set={only}", f"--inh-caps={only}", "--no-new-privs")
    for told in (["FDSTORE=1", "FDNAME=queue"], ["READY=1"]), (["READY=1"],):
        with manager.service(name, *prefix) as process:
            for each in told:
                assert manager.told() == each
            assert "CapEff:\t0000000000001000\n" in Path(f"/proc/{process.pid}/status").read_text()
            process.kill()


def test_without_systemd(tmp_path: Path) -> None:
    name = unique("kept")
    with program("kept.py", name) as process:
        process.terminate()
        assert process.ended() == (0, "", "")
        assert name not in {name for _, name in socket.if_nameindex()}


def test_systemd_understands_the_unit() -> None:
    # It works in /tmp whatever TMPDIR says, and a guest's is read-only.
    script = "mount -t tmpfs tmpfs /tmp && cat >/tmp/kept.service && systemd-analyze verify /tmp/kept.service"
    unit = (ROOT / "examples" / "kept.service").read_text()
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], input=unit, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, "")
