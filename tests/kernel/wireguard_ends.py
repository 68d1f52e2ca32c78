"""Ends of WireGuard tunnels in namespaces of their own: the example, and wireguard-go as a second opinion."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from .support import inside, ip, named_netns, turn_on_ipv6, unique

ROOT = Path(__file__).parents[2]
SOCKETS = Path("/var/run/wireguard")
_PATIENCE = 20

#: Starts the example with other times than those of the whitepaper, so that a test need not wait for minutes.
_WITH_TIMES = "import sys\nfrom examples.wireguard import __main__, peer, timers\nfor module in (peer, timers):\n  for each in {times}.items(): setattr(module, *each)\nsys.exit(__main__.main())"


def wait_until(condition: Callable[[], object], what: str, seconds: float = _PATIENCE) -> None:
    """The deadline only ends a test that would hang."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def listens(name: str) -> bool:
    """This does not call wg, which deletes sockets on which no process listens yet."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(SOCKETS / f"{name}.sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def wg(*arguments: str, text: str = "", check: bool = True) -> str:
    """The output of wg. It finds interfaces by their sockets, in every namespace."""
    run = subprocess.run(["wg", *arguments], input=text, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    assert run.returncode == 0 or not check, run.stderr
    return run.stdout


def example(*arguments: str, times: dict[str, float] | None = None) -> list[str]:
    """The command that runs the example, with the folder above it as the working directory."""
    how = ["-c", _WITH_TIMES.format(times=times)] if times else ["-m", "examples.wireguard"]
    return [sys.executable, *how, *arguments]


def new_key() -> tuple[str, str]:
    """A private and its public key, as wg writes them."""
    private = X25519PrivateKey.generate()
    return (
        base64.b64encode(private.private_bytes_raw()).decode(),
        base64.b64encode(private.public_key().public_bytes_raw()).decode(),
    )


@contextlib.contextmanager
def running(command: Sequence[str], name: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A program in the foreground, from when wg can reach it until the block ends."""
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        wait_until(lambda: process.poll() is not None or listens(name), f"{command} is ready")
        assert process.poll() is None, f"{command} ended with {process.returncode}"
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        finally:
            process.kill()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@dataclass
class End:
    """One end of tunnels. It starts with ``start`` and is configured by wg, with one key for all its life."""

    kind: str
    netns: str
    #: Its addresses on the network below, and inside.
    outer: list[str] = field(default_factory=list)
    inner: list[str] = field(default_factory=list)
    times: dict[str, float] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    #: A file for all that it has to say.
    log: Path | None = None

    def __post_init__(self) -> None:
        self.name = unique("wg")
        self.private, self.public = new_key()
        self.process: subprocess.Popen[str] | None = None
        self.stack = contextlib.ExitStack()

    def start(self, listen_port: int = 0) -> None:
        command = ["wireguard-go", "-f", self.name] if self.kind == "go" else example("-f", self.name, times=self.times)
        command = ["ip", "netns", "exec", self.netns, *command]
        environment = {**os.environ, "WG_PROCESS_FOREGROUND": "1", **self.environment}
        options = {}
        if self.log is not None:
            environment["LOG_LEVEL"] = "verbose"
            options["stderr"] = self.stack.enter_context(self.log.open("w"))
        self.process = self.stack.enter_context(running(command, self.name, env=environment, **options))
        self.set("private-key", "/dev/stdin", "listen-port", str(listen_port), text=self.private)
        turn_on_ipv6(self.name, self.netns)
        for address in self.inner:
            ip("-n", self.netns, "address", "add", address, "dev", self.name)
        ip("-n", self.netns, "link", "set", self.name, "mtu", "1420", "up")
        wait_until(lambda: self.port, f"{self.name} listens")

    def stop(self) -> None:
        self.stack.close()
        assert not (SOCKETS / f"{self.name}.sock").exists()

    def set(self, *arguments: str, text: str = "") -> None:
        wg("set", self.name, *arguments, text=text)

    def add(self, other: End, allowed_ips: Sequence[str], endpoint: str | None = None, psk: str = "") -> None:
        where = ["endpoint", endpoint] if endpoint else []
        secret = ["preshared-key", "/dev/stdin"] if psk else []
        self.set("peer", other.public, *where, "allowed-ips", ",".join(allowed_ips), *secret, text=psk)

    def show(self, what: str) -> dict[str, list[str]]:
        """By public key, what ``wg show NAME WHAT`` says of each peer."""
        lines = [line.split("\t") for line in wg("show", self.name, what).splitlines()]
        return {key: values for key, *values in lines}

    @property
    def port(self) -> int:
        return int(wg("show", self.name, "listen-port"))

    def handshake_with(self, other: End) -> int:
        """When the last one was, in seconds since the epoch; 0: never."""
        return int(self.show("latest-handshakes")[other.public][0])

    def received_from(self, other: End) -> int:
        return int(self.show("transfer")[other.public][0])

    def ping(self, address: str, *options: str, count: int = 1, seconds: int = 5) -> bool:
        """Whether the first so many are answered. With -w, ping sends more while it waits for an answer that is late."""
        ping = ["ping", "-n", "-c", str(count), "-i", "0.02", "-w", str(seconds), *options, address]
        run = subprocess.run(["ip", "netns", "exec", self.netns, *ping], capture_output=True, text=True, check=False)
        return set(map(int, re.findall(r"icmp_seq=(\d+) ttl=", run.stdout))) == set(range(1, count + 1))

    def reaches(self, address: str, *options: str) -> bool:
        """Whether it answers within a while: what was sent before a handshake could begin is lost."""
        return any(self.ping(address, *options, seconds=1) for _ in range(_PATIENCE))


@contextlib.contextmanager
def star(*kinds: str, times: dict[str, float] | None = None) -> Iterator[list[End]]:
    """The first end in the middle, joined by a pair of veth with each of the others, over IPv4 and IPv6.

    The addresses of the network below are in ``outer`` of the other ends (theirs, and that of the middle towards
    them), in this order: IPv4 theirs, IPv4 of the middle, IPv6 theirs, IPv6 of the middle.
    """
    with contextlib.ExitStack() as stack:
        ends = [End(kind, stack.enter_context(named_netns()), times=times) for kind in kinds]
        middle, *others = ends
        for number, other in enumerate(others, 1):
            other.outer = [
                f"192.0.2.{4 * number + 2}",
                f"192.0.2.{4 * number + 1}",
                f"fd0f:{number}::2",
                f"fd0f:{number}::1",
            ]
            ours, theirs = f"ve{number}", "ve0"
            ip("-n", middle.netns, "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", other.netns)
            for netns, name, four, six in (
                (middle.netns, ours, other.outer[1], other.outer[3]),
                (other.netns, theirs, other.outer[0], other.outer[2]),
            ):
                turn_on_ipv6(name, netns)
                ip("-n", netns, "address", "add", f"{four}/30", "dev", name)
                ip("-n", netns, "address", "add", f"{six}/64", "dev", name, "nodad")
                ip("-n", netns, "link", "set", name, "up")
            stack.callback(ip, "-n", middle.netns, "link", "del", ours, check=False)
        for each in ends:
            stack.callback(each.stop)
        yield ends


def send_stream(sender: End, receiver: End, address: str, size: int = 1 << 20) -> None:
    """One TCP connection, whose bytes arrive as they were sent."""
    data = os.urandom(size)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(receiver.netns, lambda: socket.create_server((address, 0), family=family)) as server:
        received = bytearray()

        def receive() -> None:
            server.settimeout(_PATIENCE)
            connection, _ = server.accept()
            with connection:
                connection.settimeout(_PATIENCE)
                while part := connection.recv(1 << 16):
                    received.extend(part)

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            with inside(sender.netns, lambda: socket.socket(family)) as client:
                client.settimeout(_PATIENCE)
                client.connect((address, server.getsockname()[1]))
                client.sendall(data)
        finally:
            thread.join()
        assert bytes(received) == data


def kill(process: subprocess.Popen[str]) -> None:
    """As a crash would: nothing is tidied up."""
    process.send_signal(signal.SIGKILL)
    process.wait()
