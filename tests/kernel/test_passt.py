"""The program of the page on rootless networks: a namespace without any privilege, passt, and a server on the host.

Nothing leaves the machine: passt runs in a namespace that has no way out, and shows the guest the loopback of its host
under the address of the gateway.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from passt import split

from .programs import program
from .support import PATIENCE, ip, is_root, named_netns, netns_exec, socket_in

_PAYLOAD = os.urandom(4 << 20)
_CLIENT = """
import socket, sys
with socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=10) as sock:
    sock.settimeout(None)  # with one, MSG_WAITALL does not wait
    received = sock.recv(int(sys.argv[2]), socket.MSG_WAITALL)
    sock.sendall(received)
"""


@contextmanager
def passt(path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """passt in a namespace with an interface that it can take for the one to the Internet."""
    with named_netns() as outside:
        ip("-n", outside, "link", "add", "ext0", "type", "veth", "peer", "ext1")
        for name in ("ext0", "ext1"):
            ip("-n", outside, "link", "set", name, "up")
        ip("-n", outside, "address", "add", "192.0.2.15/24", "dev", "ext0")
        ip("-n", outside, "route", "add", "default", "via", "192.0.2.1")
        command = ["passt", "--foreground", "--ipv4-only", "--address", "10.0.2.15", "--netmask", "24"]
        command += ["--gateway", "10.0.2.2", "--socket", str(path)]
        if is_root():
            command += ["--runas", "0"]  # the socket is in a folder of root
        with subprocess.Popen(netns_exec(outside, *command), stderr=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + PATIENCE
                while not path.exists():
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.02)
                yield outside, process
            finally:
                process.kill()


def test_a_namespace_without_privileges_reaches_the_host(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with passt(path) as (outside, _), socket_in(outside) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        returned: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(_PAYLOAD)
                returned.append(connection.recv(len(_PAYLOAD), socket.MSG_WAITALL))

        server = threading.Thread(target=serve)
        server.start()
        with program("passt.py", "net0", str(path), prefix=("unshare", "-Urn")) as process:
            client = ["nsenter", "-t", str(process.pid), "-U", "-n", "--preserve-credentials"]
            client += [sys.executable, "-c", _CLIENT, str(listener.getsockname()[1]), str(len(_PAYLOAD))]
            subprocess.run(client, check=True, timeout=30)
            server.join(10)
            assert returned == [_PAYLOAD]
            process.send_signal(signal.SIGTERM)
            assert process.ended() == (0, "", "")


def test_the_end_of_passt_is_told(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with passt(path) as (_, passts), program("passt.py", "net0", str(path), prefix=("unshare", "-Urn")) as process:
        passts.kill()
        assert process.ended() == (1, "", "passt.py: passt has ended\n")


def test_something_else_than_passt_is_told_and_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with program("passt.py", "net0", str(path), prefix=("unshare", "-Urn")) as process:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
                status, _, err = process.ended()
    assert (status, err.count("\n")) == (1, 1) and "is not passt" in err


@pytest.mark.parametrize("size", [1, 3, 4, 5, 7, 1000])
def test_frames_in_any_pieces(size: int) -> None:
    frames = [bytes([number]) * number for number in (1, 60, 0, 255, 14)]
    stream = b"".join(len(frame).to_bytes(4) + frame for frame in frames)
    found, rest = [], b""
    for at in range(0, len(stream), size):
        more, rest = split(rest + stream[at : at + size])
        found += more
    assert (found, rest) == (frames, b"")
