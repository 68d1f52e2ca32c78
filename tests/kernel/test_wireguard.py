"""The WireGuard example as wg and wg-quick find it: its socket, its settings, and how it begins and ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotuntap import _abi

from .support import PATIENCE, inside, ip, link, named_netns, needs_root, unique
from .wireguard_ends import ROOT, SOCKETS, End, end, example, kill, listens, new_key, running, star, wait_until, wg

pytestmark = [needs_root, pytest.mark.timeout(120)]

SCRIPT = ROOT / "examples" / "wireguard" / "wireguard-aiotuntap"
LOOPS = {"asyncio": [], "uvloop": ["--uvloop"]}


def is_there(name: str) -> bool:
    return os.path.exists(f"/sys/class/net/{name}") or bool(ip("link", "show", "dev", name, check=False))


def socket_of(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> list[str]:
    return LOOPS[request.param]


@pytest.fixture
def name() -> Iterator[str]:
    """One that nothing is left of."""
    made = unique("wg")
    yield made
    gone = not is_there(made) and not socket_of(made).exists()
    ip("link", "del", made, check=False)
    socket_of(made).unlink(missing_ok=True)
    assert gone


@pytest.fixture
def process(name: str, loop: list[str]) -> Iterator[subprocess.Popen[str]]:
    with running(example("-f", *loop, name), name, stderr=subprocess.PIPE) as started:
        yield started


@pytest.fixture
def interface(name: str) -> Iterator[str]:
    with running(example("-f", name), name):
        yield name


# -- begin and end -----------------------------------------------------------------------------------------------------


def test_interface_and_socket_while_it_runs(name: str, process: subprocess.Popen[str]) -> None:
    there = link(name)
    assert (there["mtu"], there["linkinfo"]["info_data"]["type"]) == (1420, "tun")
    mode = socket_of(name).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert name in wg("show", "interfaces").split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_on_a_signal(name: str, process: subprocess.Popen[str], number: signal.Signals) -> None:
    wg("set", name, "private-key", "/dev/stdin", text=new_key()[0])
    ip("link", "set", name, "up")
    wait_until(lambda: wg("show", name, "listen-port").strip() != "0", "it listens")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (0, "")


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_it_ends_with_its_interface(name: str, process: subprocess.Popen[str], up: bool) -> None:
    if up:
        ip("link", "set", name, "up")
        wait_until(lambda: wg("show", name, "listen-port").strip() != "0", "it listens")
    ip("link", "del", name)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (0, "")


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_it_ends_with_its_socket(name: str, process: subprocess.Popen[str], how: str, tmp_path: Path) -> None:
    if how == "deleted":
        socket_of(name).unlink()
    else:
        socket_of(name).rename(SOCKETS / f"{name}.away")
    _, stderr = process.communicate(timeout=PATIENCE)
    (SOCKETS / f"{name}.away").unlink(missing_ok=True)
    assert (process.returncode, stderr) == (0, "")


def test_a_client_that_is_connected_does_not_keep_it(name: str, process: subprocess.Popen[str]) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_of(name)))
        client.sendall(b"get=1\n\n")
        assert client.recv(100) == b"errno=0\n\n"
        process.terminate()
        _, stderr = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stderr) == (0, "")
        assert client.recv(100) == b""


def test_without_f_it_is_a_daemon(name: str, loop: list[str]) -> None:
    """The command ends when wg can be used, and holds none of the caller's pipes open."""
    run = subprocess.run(example(*loop, name), cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert wg("show", name).startswith(f"interface: {name}\n")
    (pid,) = daemons(name)
    assert os.getsid(pid) != os.getsid(0)
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    ip("link", "del", name)
    wait_until(lambda: not daemons(name), "the daemon ended")


def daemons(name: str) -> list[int]:
    """Processes with *name* as their last argument."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if each.read_bytes().split(b"\0")[-2:-1] == [name.encode()]:
                found.append(int(each.parent.name))
    return found


def test_the_environment_keeps_it_in_the_foreground(name: str) -> None:
    with running(example(name), name, env={**os.environ, "WG_PROCESS_FOREGROUND": "1"}) as process:
        assert process.poll() is None
        assert daemons(name) == [process.pid]


@pytest.mark.parametrize("foreground", [["-f"], []], ids=["foreground", "daemon"])
@pytest.mark.parametrize(("bad", "why"), [("lo", "not a TUN/TAP interface"), ("x" * 16, "at most 15"), ("a/b", "a/b")])
def test_setup_failures_are_reported(foreground: list[str], bad: str, why: str) -> None:
    run = subprocess.run(example(*foreground, bad), cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == 1
    assert why in run.stderr
    assert "Traceback" not in run.stderr


def test_a_name_that_is_in_use(interface: str) -> None:
    run = subprocess.run(example(interface), cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == 1
    assert "busy" in run.stderr or "in use" in run.stderr
    assert wg("show", interface)


def test_the_socket_of_a_dead_program_is_replaced(name: str) -> None:
    with running(example("-f", name), name) as process:
        kill(process)
        assert socket_of(name).exists()
    with subprocess.Popen(example("-f", name), cwd=ROOT, text=True) as process:
        wait_until(lambda: listens(name), "wg reaches it")
        end(process)


def tun_descriptor(name: str, flags: int) -> int:
    fd = os.open(_abi.NODE, os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, _abi.TUNSETIFF, _abi.Ifreq(name, _abi.IFF_TUN | _abi.IFF_NO_PI | flags).pack())
    return fd


@pytest.mark.parametrize("flags", [0, _abi.IFF_VNET_HDR], ids=["plain", "with headers"])
def test_descriptors_that_are_handed_over(name: str, flags: int, tmp_path: Path) -> None:
    """The name in the arguments is of no meaning then."""
    fd = tun_descriptor(name, flags)
    path = tmp_path / "uapi"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        environment = {**os.environ, "WG_TUN_FD": str(fd), "WG_UAPI_FD": str(listener.fileno())}
        process = subprocess.Popen(
            example("-f", "other"), cwd=ROOT, env=environment, pass_fds=[fd, listener.fileno()], text=True
        )
    os.close(fd)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"set=1\nfwmark=5\n\nget=1\n\n")
            answer = b""
            while not answer.endswith(b"fwmark=5\nerrno=0\n\n"):
                answer += client.recv(1000)
                assert answer
        assert link(name)["mtu"] == 1420
        path.unlink()
        assert process.wait(20) == 0
    finally:
        end(process)


@pytest.mark.parametrize(
    ("level", "expected"), [("verbose", ["DEBUG", "ERROR"]), ("error", ["ERROR"]), ("", ["ERROR"]), ("silent", [])]
)
def test_log_level(name: str, level: str, expected: list[str]) -> None:
    environment = {**os.environ, "LOG_LEVEL": level}
    with running(example("-f", name), name, env=environment, stderr=subprocess.PIPE) as process:
        assert request(name, "set=1\nprivate_key=oops\n") == ["errno=-22"]
        process.terminate()
        _, stderr = process.communicate(timeout=PATIENCE)
    assert sorted({line.partition(":")[0] for line in stderr.splitlines()}) == expected
    assert all(f"({name})" in line for line in stderr.splitlines())
    assert "oops" not in stderr


# -- wg ----------------------------------------------------------------------------------------------------------------


def request(name: str, text: str) -> list[str]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_of(name)))
        client.sendall(f"{text}\n".encode())
        with client.makefile() as answer:
            return [line.rstrip("\n") for line in iter(answer.readline, "\n")]


def test_requests_that_are_refused_change_nothing(interface: str) -> None:
    _, public = new_key()
    wg("set", interface, "peer", public, "allowed-ips", "10.1.0.0/16")
    before = request(interface, "get=1\n")
    assert request(interface, "set=1\nreplace_peers=true\nfwmark=9\nlisten_port=x\n") == ["errno=-22"]
    assert request(interface, "set=1\nreplace_peers\n") == ["errno=-71"]
    assert request(interface, "get=1\nx=1\n") == ["errno=-71"]
    assert request(interface, "hello\n") == ["errno=-71"]
    assert request(interface, "get=1\n") == before
    for broken in (b"", b"set=1", b"set=1\nreplace_peers=true\n", b"\xff\n\n", b"x" * 100_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(socket_of(interface)))
            client.sendall(broken)
    assert request(interface, "get=1\n") == before


def test_many_requests_on_one_connection(interface: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_of(interface)))
        client.sendall(b"".join(b"set=1\nfwmark=%d\n\n" % number for number in range(1, 100)) + b"get=1\n\n")
        with client.makefile() as answer:
            assert [answer.readline() for _ in range(200)] == [*["errno=0\n", "\n"] * 99, "fwmark=99\n", "errno=0\n"]


def test_set_show_and_dump(interface: str, tmp_path: Path) -> None:
    private, public = new_key()
    _, peer = new_key()
    psk, _ = new_key()
    (tmp_path / "psk").write_text(psk)
    wg("set", interface, "private-key", "/dev/stdin", "listen-port", "0", "fwmark", "0x1234", text=private)
    options = ["endpoint", "[2001:db8::7]:1234", "persistent-keepalive", "25", "preshared-key", str(tmp_path / "psk")]
    wg("set", interface, "peer", peer, *options, "allowed-ips", "10.1.2.0/24,fd00:1::/64")
    shown = wg("show", interface)
    assert f"public key: {public}" in shown
    assert "fwmark: 0x1234" in shown
    assert "preshared key: (hidden)" in shown
    assert "endpoint: [2001:db8::7]:1234" in shown
    assert "allowed ips: 10.1.2.0/24, fd00:1::/64" in shown
    assert "persistent keepalive: every 25 seconds" in shown
    assert "latest handshake" not in shown
    dump = [
        line.split("\t")[1:] for line in wg("show", "all", "dump").splitlines() if line.startswith(f"{interface}\t")
    ]
    allowed = "10.1.2.0/24,fd00:1::/64"
    assert dump == [
        [private, public, "0", "0x1234"],
        [peer, psk, "[2001:db8::7]:1234", allowed, "0", "0", "0", "25"],
    ]
    wg("set", interface, "fwmark", "off", "peer", peer, "persistent-keepalive", "off", "preshared-key", "/dev/null")
    assert wg("show", interface, "dump").splitlines()[1].split("\t")[1:] == [
        "(none)",
        "[2001:db8::7]:1234",
        allowed,
        "0",
        "0",
        "0",
        "off",
    ]
    wg("set", interface, "private-key", "/dev/null", "peer", peer, "remove")
    assert wg("show", interface, "dump").split() == ["(none)", "(none)", "0", "off"]


def test_an_allowed_ip_moves(interface: str) -> None:
    first, second = new_key()[1], new_key()[1]
    wg("set", interface, "peer", first, "allowed-ips", "10.1.0.0/16,10.2.0.0/16")
    wg("set", interface, "peer", second, "allowed-ips", "10.2.0.0/16,10.3.0.0/16")
    assert sorted(wg("show", interface, "allowed-ips").splitlines()) == sorted(
        [f"{first}\t10.1.0.0/16", f"{second}\t10.2.0.0/16 10.3.0.0/16"]
    )


def configuration(private: str, peers: dict[str, str], port: int = 51820) -> str:
    lines = ["[Interface]", f"PrivateKey = {private}", f"ListenPort = {port}"]
    for peer, allowed in peers.items():
        lines += ["", "[Peer]", f"PublicKey = {peer}", f"AllowedIPs = {allowed}"]
    return "\n".join([*lines, ""])


def test_setconf_addconf_syncconf_and_showconf(interface: str) -> None:
    private, _ = new_key()
    first, second, third = (new_key()[1] for _ in range(3))

    def peers() -> dict[str, str]:
        rows = [line.split("\t") for line in wg("show", interface, "allowed-ips").splitlines()]
        return {peer: allowed.replace(" ", ", ") for peer, allowed in rows}

    both = {first: "10.1.0.0/16, fd00:1::/64", second: "10.2.0.0/16"}
    wg("setconf", interface, "/dev/stdin", text=configuration(private, both))
    assert peers() == both
    told = wg("showconf", interface)
    assert told.split("\n\n")[0].splitlines() == ["[Interface]", "ListenPort = 51820", f"PrivateKey = {private}"]
    wg("addconf", interface, "/dev/stdin", text=f"[Peer]\nPublicKey = {third}\nAllowedIPs = 10.3.0.0/16\n")
    assert peers() == {**both, third: "10.3.0.0/16"}
    # The first stays with less, the second goes, the third stays as it is.
    wanted = {first: "10.1.0.0/16", third: "10.3.0.0/16"}
    wg("syncconf", interface, "/dev/stdin", text=configuration(private, wanted))
    assert peers() == wanted
    wg("setconf", interface, "/dev/stdin", text=told)
    assert peers() == both
    assert sorted(wg("showconf", interface).split("\n\n")) == sorted(told.split("\n\n"))


def test_syncconf_leaves_sessions_alone() -> None:
    with star("ours", "ours") as (first, second):
        first.inner, second.inner = ["10.20.0.1/24"], ["10.20.0.2/24"]
        first.start(51820)
        second.start(51820)
        second.add(first, ["10.20.0.1/32"])
        first.add(second, ["10.20.0.2/32"], f"{second.outer[0]}:51820")
        assert first.reaches("10.20.0.2")
        before = first.show("latest-handshakes")
        wg("syncconf", first.name, "/dev/stdin", text=configuration(first.private, {second.public: "10.20.0.0/24"}))
        assert first.ping("10.20.0.2", count=5)
        assert first.show("latest-handshakes") == before


# -- ports and marks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def station() -> Iterator[End]:
    """One that is up, in a namespace of its own."""
    with named_netns() as netns:
        made = End("ours", netns)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def listening(each: End) -> set[int]:
    lines = subprocess.run(["ss", "-N", each.netns, "-Hlun"], capture_output=True, text=True, check=True).stdout
    return {int(line.split()[3].rpartition(":")[2]) for line in lines.splitlines()}


def test_the_port_is_there_while_the_interface_is_up(station: End) -> None:
    chosen = station.port
    assert listening(station) == {chosen}
    station.set("listen-port", "7777")
    assert listening(station) == {7777}
    ip("-n", station.netns, "link", "set", station.name, "down")
    wait_until(lambda: not listening(station), "it does not listen any more")
    assert station.port == 7777
    station.set("listen-port", "7778")
    assert not listening(station)
    ip("-n", station.netns, "link", "set", station.name, "up")
    wait_until(lambda: listening(station) == {7778}, "it listens again")
    station.set("listen-port", "0")
    assert listening(station) == {station.port}


def test_a_port_that_is_taken(station: End) -> None:
    before = station.port
    with socket_in(station.netns) as taken:
        number = taken.getsockname()[1]
        wg_set = ["wg", "set", station.name, "listen-port", str(number), "fwmark", "9"]
        run = subprocess.run(wg_set, capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert "Address already in use" in run.stderr
        assert station.port == before
        assert wg("show", station.name, "fwmark").strip() == "off"
        assert listening(station) == {before, number}


def test_a_port_that_was_taken_while_the_interface_was_down(station: End) -> None:
    """It is up, and can be set up, until it gets another port."""
    ip("-n", station.netns, "link", "set", station.name, "down")
    wait_until(lambda: not listening(station), "it does not listen any more")
    with socket_in(station.netns) as taken:
        number = taken.getsockname()[1]
        station.set("listen-port", str(number))
        ip("-n", station.netns, "link", "set", station.name, "up")
        station.set("peer", new_key()[1])
        station.set("listen-port", "7779")
        wait_until(lambda: listening(station) == {7779, number}, "it listens")
    station.set("listen-port", str(number))
    assert listening(station) == {number}


def test_the_socket_stays_where_the_program_is() -> None:
    """The interface alone moves, so that a namespace can have no way out but the tunnel."""
    with star("ours", "go") as (first, second), named_netns() as inside_:
        first.inner, second.inner = ["10.20.0.1/24"], ["10.20.0.2/24"]
        first.start()
        second.start(51820)
        second.add(first, ["10.20.0.1/32"])
        first.add(second, ["10.20.0.2/32"], f"{second.outer[0]}:51820")
        assert first.reaches("10.20.0.2")
        outside, port = first.netns, first.port
        ip("-n", outside, "link", "set", first.name, "netns", inside_)
        wait_until(lambda: not listening(first), "it does not listen any more")
        ip("-n", inside_, "address", "add", "10.20.0.1/24", "dev", first.name)
        ip("-n", inside_, "link", "set", first.name, "up")
        wait_until(lambda: listening(first) == {port}, "it listens again")
        first.netns = inside_
        assert first.reaches("10.20.0.2")
        assert not listening(first)


def socket_in(netns: str) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", 0))
        return made

    return inside(netns, make)


def test_the_mark_chooses_the_route() -> None:
    with star("ours", "ours") as (first, second):
        first.inner, second.inner = ["10.20.0.1/24"], ["10.20.0.2/24"]
        first.start()
        second.start(51820)
        second.add(first, ["10.20.0.1/32"])
        first.add(second, ["10.20.0.2/32"], f"{second.outer[0]}:51820")
        assert first.reaches("10.20.0.2")
        ip("-n", first.netns, "rule", "add", "fwmark", "7", "prohibit")
        port = first.port
        for mark in ("7", "0x7"):
            first.set("fwmark", mark)
            assert not first.ping("10.20.0.2", seconds=1)
            first.set("fwmark", "0")
            assert first.ping("10.20.0.2")
        # A socket that is made anew has it too.
        first.set("fwmark", "7", "listen-port", "5555")
        assert not first.ping("10.20.0.2", seconds=1)
        first.set("fwmark", "off", "listen-port", str(port))
        assert first.ping("10.20.0.2")


# -- wg-quick ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "allowed"),
    [("auto", "10.20.0.0/24, fd20::/64"), ("off", "10.20.0.0/24, fd20::/64"), ("auto", "0.0.0.0/0, ::/0")],
    ids=["auto", "off", "default route"],
)
def test_wg_quick_up_and_down(tmp_path: Path, table: str, allowed: str) -> None:
    """A default route goes by the mark: everything but the datagrams of the tunnel itself goes into it."""
    with star("ours", "go") as (ours, other):
        other.inner = ["10.20.0.2/24", "fd20::2/64"]
        other.start(51820)
        other.add(ours, ["10.20.0.1/32", "fd20::1/128"])
        path = tmp_path / f"{ours.name}.conf"
        lines = ["Address = 10.20.0.1/32, fd20::1/128", "MTU = 1400", f"Table = {table}"]
        text = configuration(ours.private, {other.public: allowed}, 51821)
        text = text.replace("[Interface]\n", "\n".join(["[Interface]", *lines, ""]))
        path.write_text(f"{text}Endpoint = {other.outer[0]}:51820\nPersistentKeepalive = 5\n")
        path.chmod(0o600)
        bin_ = f"{Path(ROOT, '.venv')}:{os.environ['PATH']}"
        environment = {**os.environ, "WG_QUICK_USERSPACE_IMPLEMENTATION": str(SCRIPT), "PATH": bin_}
        environment["PYTHON"] = example("x")[0]

        def wg_quick(verb: str) -> str:
            command = ["ip", "netns", "exec", ours.netns, "wg-quick", verb, str(path)]
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
            assert run.returncode == 0, run.stderr
            return run.stderr

        def policies() -> list[str]:
            listed = [ip("-n", ours.netns, family, "rule") for family in ("-4", "-6")]
            nft = ["ip", "netns", "exec", ours.netns, "nft", "list", "ruleset"]
            return [*listed, subprocess.run(nft, capture_output=True, text=True, check=True).stdout]

        before = policies()
        far = ["203.0.113.9", "2001:db8::9"] if allowed.startswith("0.") else []
        for address in far:
            ip("-n", other.netns, "address", "add", address, "dev", other.name)
        # The interface is new: it takes IPv6 from the defaults of its namespace.
        ip("netns", "exec", ours.netns, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        try:
            assert str(SCRIPT) in wg_quick("up")
            if table == "off":
                ip("-n", ours.netns, "route", "add", "10.20.0.0/24", "dev", ours.name)
                ip("-n", ours.netns, "-6", "route", "add", "fd20::/64", "dev", ours.name)
            # By the keepalive, without a packet of ours.
            wait_until(lambda: ours.handshake_with(other), "a handshake")
            assert ours.reaches("10.20.0.2")
            assert ours.reaches("fd20::2")
            for address in far:
                assert ours.reaches(address)
            assert (policies() != before) == bool(far)
            assert link(ours.name, "-n", ours.netns)["mtu"] == 1400
            assert listening(ours) == {51821}
            wg_quick("down")
            wait_until(lambda: not socket_of(ours.name).exists() and not daemons(ours.name), "the daemon ended")
            assert ours.name not in ip("-n", ours.netns, "link")
            assert policies() == before
        finally:
            ip("-n", ours.netns, "link", "del", ours.name, check=False)
            wait_until(lambda: not daemons(ours.name), "the daemon ended")


# -- traffic that nobody sent for --------------------------------------------------------------------------------------


def test_datagrams_of_strangers_change_nothing_and_log_nothing(tmp_path: Path) -> None:
    with star("ours", "ours") as (first, second):
        first.log = tmp_path / "log"
        first.inner, second.inner = ["10.20.0.1/24"], ["10.20.0.2/24"]
        first.start(51820)
        second.start(51820)
        second.add(first, ["10.20.0.1/32"])
        first.add(second, ["10.20.0.2/32"], f"{second.outer[0]}:51820")
        assert first.reaches("10.20.0.2")
        endpoint, lines = first.show("endpoints"), first.log.read_text()
        assert "Received handshake response" in lines
        with socket_in(second.netns) as stranger:
            for kind in range(6):
                for size in (0, 1, 31, 32, 64, 92, 148, 1400):
                    data = bytes([kind, 0, 0, 0]) + os.urandom(max(size - 4, 0))
                    for _ in range(20):
                        stranger.sendto(data[:size], (second.outer[1], 51820))
        assert first.ping("10.20.0.2", count=5)
        assert first.show("endpoints") == endpoint
        assert first.log.read_text() == lines


def test_idle_it_uses_no_cpu(interface: str) -> None:
    wg("set", interface, "private-key", "/dev/stdin", text=new_key()[0])
    peers = [argument for _ in range(20) for argument in ("peer", new_key()[1], "allowed-ips", "")]
    wg("set", interface, *peers)
    ip("link", "set", interface, "up")
    time.sleep(3)  # it looks after its interface for so long
    (pid,) = daemons(interface)
    before = time.clock_gettime_ns(~pid << 3 | 2)  # as clock_getcpuclockid(3) builds the number
    time.sleep(2)
    assert time.clock_gettime_ns(~pid << 3 | 2) - before < 20_000_000
