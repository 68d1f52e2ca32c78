"""The WireGuard example and wireguard-go, as peers of each other."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import blake2s
from pathlib import Path

import pytest

from .support import inside, ip, needs_root, netns_exec
from .wireguard_ends import ROOT, End, send_stream, star, wg

pytestmark = [needs_root, pytest.mark.timeout(120)]

PORT = 51820
#: Which end is which: the first one begins.
ROLES = [("ours", "go"), ("go", "ours"), ("ours", "ours")]
MIXED = ROLES[:2]


def new_psk() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def join(first: End, second: End, *, six: bool = False, psk: str = "") -> None:
    """Both as peers; only the first knows where the other one is."""
    host = f"[{second.outer[2]}]" if six else second.outer[0]
    first.add(second, ["10.20.0.2/32", "fd20::2/128"], f"{host}:{PORT}", psk)
    second.add(first, ["10.20.0.1/32", "fd20::1/128"], psk=psk)


def start(first: End, second: End) -> None:
    first.inner, second.inner = ["10.20.0.1/24", "fd20::1/64"], ["10.20.0.2/24", "fd20::2/64"]
    first.start()
    second.start(PORT)


@pytest.fixture(params=ROLES, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Iterator[list[End]]:
    with star(*request.param) as ends:
        start(*ends)
        yield ends


@pytest.mark.parametrize("six", [False, True], ids=["over IPv4", "over IPv6"])
def test_both_families_inside(pair: list[End], six: bool) -> None:
    first, second = pair
    join(first, second, six=six)
    assert first.reaches("10.20.0.2")
    assert second.ping("10.20.0.1", count=5)
    assert first.ping("fd20::2", count=5)
    assert second.ping("fd20::1", "-s", "1372", count=5)  # as large as the MTU of the tunnel takes
    for sender, receiver, address in ((first, second, "10.20.0.2"), (second, first, "fd20::1")):
        send_stream(sender, receiver, address)
    assert abs(first.handshake_with(second) - time.time()) < 60
    for each, other in ((first, second), (second, first)):
        received, sent = map(int, each.show("transfer")[other.public])
        assert received > 1 << 20
        assert sent > 1 << 20
    # One knew the address, the other one learned it.
    assert second.show("endpoints")[first.public][0].rpartition(":")[0] == (
        f"[{second.outer[3]}]" if six else second.outer[1]
    )


@pytest.mark.parametrize("roles", MIXED, ids="-".join)
def test_a_preshared_key_has_to_be_the_same(roles: tuple[str, str]) -> None:
    with star(*roles) as (first, second):
        start(first, second)
        psk = new_psk()
        join(first, second, psk=psk)
        assert first.reaches("10.20.0.2")
        second.set("peer", first.public, "remove")
        first.set("peer", second.public, "remove")
        join(first, second, psk=psk)
        second.set("peer", first.public, "preshared-key", "/dev/stdin", text=new_psk())
        assert not first.ping("10.20.0.2", seconds=2)
        assert first.handshake_with(second) == 0
        second.set("peer", first.public, "preshared-key", "/dev/stdin", text=psk)
        assert first.reaches("10.20.0.2")


def test_through_rekeys() -> None:
    """Packets go on in both directions while the keys change, again and again."""
    with star("ours", "go", times={"REKEY_AFTER_TIME": 1.0, "REKEY_TIMEOUT": 0.3}) as (first, second):
        start(first, second)
        join(first, second)
        assert first.reaches("10.20.0.2")
        seen = set()
        for _ in range(5):
            assert first.ping("10.20.0.2", count=25)
            assert second.ping("10.20.0.1", count=25)
            seen.add(second.handshake_with(first))
        assert len(seen) > 2


@pytest.mark.parametrize("roles", MIXED, ids="-".join)
def test_the_one_that_was_restarted_begins(roles: tuple[str, str]) -> None:
    with star(*roles) as (first, second):
        start(first, second)
        join(first, second)
        assert first.reaches("10.20.0.2")
        first.stop()
        first.start()
        join(first, second)
        assert first.reaches("10.20.0.2")
        assert second.ping("10.20.0.1", count=5)


@pytest.mark.parametrize("roles", MIXED, ids="-".join)
def test_the_other_one_notices_a_restart(roles: tuple[str, str]) -> None:
    """By data that is not answered, 15 seconds after it was sent; the example's are shortened here."""
    with star(*roles, times={"KEEPALIVE_TIMEOUT": 1.0, "REKEY_TIMEOUT": 1.0}) as (first, second):
        start(first, second)
        join(first, second)
        assert first.reaches("10.20.0.2")
        second.stop()
        second.start(PORT)
        second.add(first, ["10.20.0.1/32", "fd20::1/128"])
        assert not first.ping("10.20.0.2", seconds=1)
        assert any(first.ping("10.20.0.2", seconds=1) for _ in range(30))


def test_a_change_of_port_is_followed(pair: list[End]) -> None:
    first, second = pair
    join(first, second)
    assert first.reaches("10.20.0.2")
    for each, other, address in ((first, second, "10.20.0.2"), (second, first, "10.20.0.1")):
        for port in (PORT + 1, PORT + 2):
            each.set("listen-port", str(port))
            assert each.reaches(address)
            assert other.show("endpoints")[each.public][0].endswith(f":{port}")
            assert other.ping({"10.20.0.2": "10.20.0.1", "10.20.0.1": "10.20.0.2"}[address])


def test_a_peer_that_moves_to_another_address_is_followed() -> None:
    with star("ours", "go") as (first, second):
        start(first, second)
        join(first, second)
        assert first.reaches("10.20.0.2")
        before = second.outer[0]
        after = f"{before.rpartition('.')[0]}.{int(before.rpartition('.')[2]) + 64}"
        ip("-n", second.netns, "address", "add", f"{after}/24", "dev", "ve0")
        ip("-n", second.netns, "address", "del", f"{before}/30", "dev", "ve0")
        ip("-n", first.netns, "route", "add", f"{after}/32", "dev", "ve1")
        assert second.reaches("10.20.0.1")
        assert first.show("endpoints")[second.public][0] == f"{after}:{PORT}"
        assert first.ping("10.20.0.2")


def test_a_local_address_that_the_peer_does_not_answer_any_more_is_dropped() -> None:
    """It was the one that the peer wrote to; the kernel has another one, and chooses it."""
    with star("ours", "go", times={"KEEPALIVE_TIMEOUT": 1.0, "REKEY_TIMEOUT": 1.0}) as (first, second):
        first.inner, second.inner = ["10.20.0.1/24"], ["10.20.0.2/24"]
        first.start(PORT)
        second.start()
        own = "198.51.100.1"
        ip("-n", first.netns, "address", "add", f"{own}/32", "dev", "ve1")
        ip("-n", second.netns, "route", "add", f"{own}/32", "dev", "ve0")
        first.add(second, ["10.20.0.2/32"])
        second.add(first, ["10.20.0.1/32"], f"{own}:{PORT}")
        assert second.reaches("10.20.0.1")
        assert second.show("endpoints")[first.public] == [f"{own}:{PORT}"]
        chain = "{ type filter hook input priority 0; }"
        rules = f"add table ip t; add chain ip t c {chain}; add rule ip t c ip saddr {own} drop"
        subprocess.run(["ip", "netns", "exec", second.netns, "nft", rules], check=True)
        assert not first.ping("10.20.0.2", seconds=1)
        assert first.reaches("10.20.0.2")
        assert second.show("endpoints")[first.public] == [f"{second.outer[1]}:{PORT}"]


@pytest.mark.parametrize("hub", ["ours", "go"])
def test_three_peers_with_routes_that_overlap(hub: str) -> None:
    with star(hub, "go", "ours", "ours") as (middle, wide, narrow, single):
        # All three have all the addresses: the routes alone decide who gets a packet.
        middle.inner = ["10.99.0.1/32"]
        middle.start(PORT)
        ip("-n", middle.netns, "route", "add", "10.20.0.0/16", "dev", middle.name, "src", "10.99.0.1")
        for each, allowed in ((wide, "10.20.0.0/16"), (narrow, "10.20.5.0/24"), (single, "10.20.5.9/32")):
            each.inner = ["10.20.1.1/32", "10.20.5.1/32", "10.20.5.9/32"]
            each.start(PORT)
            ip("-n", each.netns, "route", "add", "10.99.0.1/32", "dev", each.name)
            middle.add(each, [allowed], f"{each.outer[0]}:{PORT}")
            each.add(middle, ["10.99.0.1/32"], f"{each.outer[1]}:{PORT}")
        others = (wide, narrow, single)

        def who_answers(address: str) -> End:
            assert middle.reaches(address)
            before = [middle.received_from(each) for each in others]
            assert middle.ping(address, count=20)
            after = [middle.received_from(each) for each in others]
            (answered,) = (each for each, old, new in zip(others, before, after, strict=True) if new - old >= 20 * 100)
            return answered

        assert who_answers("10.20.1.1") is wide
        assert who_answers("10.20.5.1") is narrow
        assert who_answers("10.20.5.9") is single
        # A peer that sends from an address which is another one's is not believed.
        assert wide.ping("10.99.0.1", "-I", "10.20.1.1")
        assert not wide.ping("10.99.0.1", "-I", "10.20.5.1", seconds=1)
        assert not narrow.ping("10.99.0.1", "-I", "10.20.5.9", seconds=1)
        # What is taken away falls to the next one; what is given away leaves who had it.
        middle.set("peer", narrow.public, "allowed-ips", "")
        assert who_answers("10.20.5.1") is wide
        middle.set("peer", wide.public, "allowed-ips", "10.20.0.0/16,10.20.5.9/32")
        assert who_answers("10.20.5.9") is wide
        assert wg("show", middle.name, "allowed-ips").splitlines().count(f"{single.public}\t(none)") == 1
        middle.set("peer", wide.public, "remove")
        assert not middle.ping("10.20.1.1", seconds=1)


@contextlib.contextmanager
def load_on(end: End, sender: End) -> Iterator[None]:
    """Initiations from *sender*'s address that cost a key exchange each, for they show that *end*'s key is known."""
    key = blake2s(b"mac1----" + base64.b64decode(end.public)).digest()
    stop = threading.Event()

    def flood() -> None:
        while not stop.wait(0.1):
            for _ in range(400):
                message = b"\1\0\0\0" + os.urandom(112)
                mac = blake2s(message, key=key, digest_size=16).digest()
                stranger.sendto(message + mac + bytes(16), (end.outer[0], PORT))

    with inside(sender.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as stranger:
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def datagrams_of(end: End, port: int) -> Iterator[Callable[[], list[bytes]]]:
    """Gives the handshake messages from or to *port* that passed *end*'s interface so far."""

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        made.bind(("ve0", 0x0003))
        made.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE: all of the flood passes here too
        made.setblocking(False)
        return made

    seen: list[bytes] = []

    def look() -> list[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = sniffer.recv(2000)
                if packet[9:10] == b"\x11" and port in struct.unpack_from(">HH", packet, 20):
                    seen.append(packet[28:])
        return seen

    with inside(end.netns, listen) as sniffer:
        yield look


@pytest.mark.parametrize("roles", MIXED, ids="-".join)
def test_under_load_each_takes_the_cookies_of_the_other(roles: tuple[str, str]) -> None:
    with star(*roles, times={"REKEY_TIMEOUT": 1.0}) as (first, second):
        start(first, second)
        with load_on(second, first), datagrams_of(second, first.port) as look:
            # wireguard-go is under load only while it has a queue.
            for _ in range(10):
                time.sleep(0.5)
                join(first, second)
                assert first.reaches("10.20.0.2")
                if any(each[0] == 3 for each in look()):
                    break
                first.set("peer", second.public, "remove")
            messages = look()
        kinds = [(each[0], each[-16:] != bytes(16)) for each in messages if each[0] < 4]
        cookie = kinds.index((3, True))
        assert kinds[cookie - 1] == (1, False)
        assert (1, True) in kinds[cookie:]
        assert 2 in (kind for kind, _ in kinds[kinds.index((1, True)) :])


def test_tshark_reads_what_is_sent(tmp_path: Path) -> None:
    keys, packets = tmp_path / "keys", tmp_path / "packets.pcap"
    psk = new_psk()
    with star("ours", "go") as (first, second):
        first.environment = {"WG_KEYLOGFILE": str(keys)}
        start(first, second)
        # Over veth, several datagrams would arrive as one super-frame, of which tshark reads the first.
        for netns, name in ((first.netns, "ve1"), (second.netns, "ve0")):
            command = netns_exec(netns, "ethtool", "-K", name, "tx-udp-segmentation", "off")
            subprocess.run(command, check=True, capture_output=True)
        capture = ["tcpdump", "--immediate-mode", "-i", "ve0", "-U", "-w", str(packets), "udp"]
        tcpdump = subprocess.Popen(["ip", "netns", "exec", second.netns, *capture], stderr=subprocess.PIPE, text=True)
        try:
            assert tcpdump.stderr is not None
            assert any("listening on" in line for line in tcpdump.stderr)
            join(first, second, psk=psk)
            assert first.reaches("10.20.0.2")
            assert first.ping("10.20.0.2", "-s", "100", "-p", "ab", count=10)
            assert first.ping("fd20::2", count=10)
            time.sleep(0.5)
        finally:
            tcpdump.terminate()
            tcpdump.communicate()
    assert keys.stat().st_mode & 0o777 == 0o600
    assert f"LOCAL_STATIC_PRIVATE_KEY = {first.private}" in keys.read_text()
    fields = [
        "-e",
        "wg.type",
        "-e",
        "wg.static",
        "-e",
        "wg.handshake_ok",
        "-e",
        "icmp.type",
        "-e",
        "icmpv6.type",
        "-e",
        "_ws.malformed",
    ]
    command = ["tshark", "-r", str(packets), "-o", f"wg.keylog_file:{keys}", "-T", "fields", *fields]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    assert ["1", first.public] in [row[:2] for row in rows], rows
    assert ["2", "", "1"] in [row[:3] for row in rows]
    assert sum(row[3] == "8" for row in rows) >= 10, rows
    assert sum(row[3] == "0" for row in rows) >= 10
    assert sum(row[4] == "128" for row in rows) >= 10
    assert not any(row[5] for row in rows)
