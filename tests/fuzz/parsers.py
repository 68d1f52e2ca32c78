"""Every parser in Python, of the library and of the examples, on spoiled input by a seed.

Usage: ``python -m tests.fuzz.parsers [--cases N] [--seed N] [NAME …]``. A parser may return,
or raise the exceptions that it documents, and nothing else. Where there are two engines, both must do the same.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from random import Random

from aiotuntap import InvalidFrameError, Mode, Offload, VnetHeader, _abi
from aiotuntap._address import Address, split
from aiotuntap._netlink import messages, requests
from aiotuntap._netlink.iproute import parse_address, parse_route
from aiotuntap._netns import parse_namespace
from aiotuntap._offload import coalesce as merge_in_python
from aiotuntap._offload import layout
from aiotuntap._offload import segment as segment_in_python
from aiotuntap.testing import example_frame

from ..engine import ENGINES
from .frames import mutated, packet


@dataclass
class Parser:
    """A function to call with corrupt input, and the exceptions that it may raise."""

    seeds: Sequence[bytes]
    call: Callable[[bytes], object]
    raises: tuple[type[Exception], ...] = ()
    #: Bytes at the start that are the most worth spoiling.
    head: int = 100


def _frames() -> list[bytes]:
    random = Random(0)
    return [packet(random, mode, 200).build() for mode in Mode for _ in range(12)]


def _segment(mode: Mode, frame: bytes) -> None:
    results = []
    for engine in ENGINES:
        results.append(engine.segment(frame, mode is Mode.TAP, 10))
    try:
        expected: list[bytes] | None = segment_in_python.segment(frame, mode)
    except InvalidFrameError:
        expected = None
    assert all(result == expected for result in results), "the engines differ"


def _coalesce(mode: Mode, run: bytes) -> None:
    """The spoiled bytes are several frames of one length, so that what is spoiled in one moves the others."""
    frames = [run[at : at + 140] for at in range(0, len(run), 140)]
    made = [engine.merge(frames, mode is Mode.TAP, Offload.ALL.value, 10) for engine in ENGINES]
    expected = [
        (each.data, each.indexes, each.kind.value) for each in merge_in_python.merge(frames, mode, Offload.ALL, 10)
    ]
    assert all(each == expected for each in made), "the engines differ"


def _netlink(data: bytes) -> None:
    for message in messages.split(data):
        messages.index_of(message)
        messages.decode_change(message)
        messages.decode_routes(message)
        messages.error_of(message)


def _netlink_seeds() -> list[bytes]:
    def as_news(request: bytes | bytearray, kind: int) -> bytes:
        return bytes(request[:4]) + struct.pack("=H", kind) + bytes(request[6:])

    return [
        as_news(requests.set_link(7, up=True, mtu=1400, name="vpn0"), 16),
        as_news(requests.new_address(7, parse_address("10.0.0.1/24 brd + metric 7")), 20),
        as_news(requests.new_address(7, parse_address("fd00::1/64 nodad")), 20),
        as_news(requests.new_route(7, parse_route("10.1.0.0/16 via 10.0.0.2 src 10.0.0.1 mtu 1400 table 1000")), 24),
    ]


def _text(call: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: call(data.decode("utf-8", "surrogateescape"))


def parsers() -> dict[str, Parser]:
    """All of them, by name."""
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    import echo
    from wireguard import cryptokey, uapi
    from wireguard.drops import Drops

    frames = _frames()
    taps, tuns = frames[12:], frames[:12]
    supers = {mode: [packet(Random(number), mode, 600).super_frame(100) for number in range(12)] for mode in Mode}
    runs = {
        mode: [
            b"".join(each.build()[:140].ljust(140, b"\0") for each in packet(Random(number), mode, 500).pieces(80))
            for number in range(12)
        ]
        for mode in Mode
    }
    responder = echo.Responder("tap", [ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")])
    routed = echo.Responder("tun", [ip_interface("10.0.0.1/8"), ip_interface("fd00::1/8")])
    request = "private_key=" + "11" * 32 + "\nlisten_port=51820\nreplace_peers=true\npublic_key=" + "22" * 32
    request += "\npreshared_key=" + "33" * 32 + "\nendpoint=[fd00::1]:51820\nallowed_ip=10.0.0.0/8\nallowed_ip=-::/0\n"
    request += "persistent_keepalive_interval=25\nfwmark=7\nremove=true"
    made = {
        "VnetHeader.unpack": Parser(
            [each[:24] for each in supers[Mode.TUN]], VnetHeader.unpack, (InvalidFrameError,), 24
        ),
        "layout.parse": Parser(taps, partial(layout.parse, mode=Mode.TAP), (InvalidFrameError,), 70),
        "segment, TUN": Parser(supers[Mode.TUN], partial(_segment, Mode.TUN)),
        "segment, TAP": Parser(supers[Mode.TAP], partial(_segment, Mode.TAP)),
        "coalesce, TUN": Parser(runs[Mode.TUN], partial(_coalesce, Mode.TUN), head=400),
        "coalesce, TAP": Parser(runs[Mode.TAP], partial(_coalesce, Mode.TAP), head=400),
        "netlink": Parser(_netlink_seeds(), _netlink, (struct.error, ValueError, OverflowError)),
        "ip address": Parser(
            [b"10.0.0.1 peer 10.0.0.2/30 brd + metric 7", b"fd00::1/64 nodad"], _text(parse_address), (ValueError,)
        ),
        "ip route": Parser(
            [b"default via 10.0.0.1 table 7", b"fd00::/8 src fd00::1 mtu 1400"], _text(parse_route), (ValueError,)
        ),
        "Address": Parser([b"192.0.2.1:51820", b"[fd00::1]:51820", b"[fe80::1%lo]:1"], _text(Address), (ValueError,)),
        "address and port": Parser([b"192.0.2.1:51820", b":51820"], _text(split), (ValueError,)),
        "namespace": Parser([b"blue", b"/proc/1/ns/net"], _text(parse_namespace), (ValueError,)),
        "name": Parser([b"vpn%d", b"tap0", b"a" * 15], _text(_abi.encode_name), (ValueError,)),
        "ifreq": Parser(
            [bytes(_abi.Ifreq("vpn0", 2).pack())], lambda data: _abi.Ifreq.unpack(data.ljust(40, b"\0")[:40])
        ),
        "echo, TAP": Parser([*taps, *_requests()], responder.reply, head=80),
        "echo, TUN": Parser([*tuns, *(each[14:] for each in _requests())], routed.reply, head=60),
        "cryptokey, out": Parser(tuns, lambda data: cryptokey.by_peer([data], lambda _: 1, Drops())),
        "cryptokey, in": Parser(tuns, lambda data: cryptokey.allowed([data], 1, lambda _: 1, Drops())),
        "uapi": Parser(
            [request.encode()], _text(lambda text: uapi.parse(text.split("\n"))), (uapi.UapiError,), len(request)
        ),
        "WireGuard": _wireguard(),
        **_switch(taps, supers[Mode.TAP]),
    }
    return made


def _requests() -> list[bytes]:
    """The answer of the responder."""
    mac = b"\x02\0\0\0\0\x01"
    ethernet = mac + b"\x02\0\0\0\0\x02"
    arp = (
        b"\xff" * 6 + mac + b"\x08\x06\0\1\x08\0\6\4\0\1" + mac + bytes([10, 0, 0, 2]) + bytes(6) + bytes([10, 0, 0, 3])
    )
    ping = b"\x45\0\0\x1c\0\0\0\0\x40\x01\x66\xde\x0a\0\0\x02\x0a\0\0\x03\x08\0\xf7\xff\0\0\0\0"
    return [arp, ethernet + b"\x08\x00" + ping, example_frame(1)]


def _switch(frames: Sequence[bytes], super_frames: Sequence[bytes]) -> dict[str, Parser]:
    """The input of the switch: from stations, from other machines, and from virtual machines."""
    from switch import vxlan
    from switch.core import Core
    from switch.guard import Guard
    from switch.ports import MachineFrames
    from switch.table import Table

    core = Core[object](Table(300, 10), Guard(5, None, lambda port: None))
    ports = [object() for _ in range(3)]
    for port in ports:
        core.add(port)

    def decide(data: bytes) -> None:
        found = core.decide([data, data], ports[0], 0)
        assert ports[0] not in found
        assert len(core.table) <= 10

    def fit(largest: int, data: bytes) -> None:
        """The kernel gives no frame without a virtio_net_hdr and an Ethernet header."""
        assert all(len(frame) <= largest for frame in vxlan.fit(data.ljust(24, b"\0"), largest))

    joiner = vxlan.Joiner(7)

    def join(data: bytes) -> None:
        whole = None
        for piece in [data[at : at + 300] for at in range(0, len(data), 300)]:
            whole = joiner.feed(piece, "a")
        if whole and vxlan.vni_of(whole[0]) == 7:
            vxlan.as_sent(bytes(10) + whole[0][vxlan.HEADER_SIZE :], 1400)
            vxlan.joined(*whole)

    def machine(data: bytes) -> None:
        stream = MachineFrames(lambda _: None)
        for at in range(0, len(data), 50):
            stream.data_received(data[at : at + 50])

    plain = [bytes(10) + frame for frame in frames]
    datagrams = [vxlan.header(7) + frame for frame in (*frames, *(frame[10:] for frame in super_frames))]
    return {
        "switch": Parser([*plain, *super_frames], decide),
        "VXLAN, out": Parser([*plain, *super_frames], partial(fit, 300), (InvalidFrameError,), 80),
        "VXLAN, in": Parser(datagrams, join, head=80),
        "QEMU": Parser([b"".join(len(frame).to_bytes(4) + frame for frame in frames[:4])], machine, head=300),
    }


def _wireguard() -> Parser:
    """Datagrams of a handshake and of the traffic behind it, for the one that they were sent to."""
    from ..wireguard.support import ipv4, pair

    world, left, right = pair()
    left.send(ipv4("10.0.0.1", "10.0.0.2", b"payload"))
    world.run(3)
    right.send(ipv4("10.0.0.2", "10.0.0.1", b"answer"))
    world.run(3)
    sent = [datagram for _, _, to, datagram in world.sent if to == right.where]
    assert len(sent) > 1
    received = len(right.received)

    def call(data: bytes) -> None:
        packets, _ = right.device.inbound([(data, left.where)], world.now)
        assert data in sent or not packets, "a datagram that was changed was taken"

    assert received
    return Parser(sent, call, head=150)


def run(names: Sequence[str], cases: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """Tries each parser; yields its name, the cases, and how many of them it refused. Raises what is wrong."""
    with _descriptors():
        for name, parser in parsers().items():
            if names and name not in names:
                continue
            refused = 0
            for number in range(cases):
                random = Random(f"{name} {seed} {number}")
                data = mutated(random.choice(parser.seeds), random, parser.head)
                try:
                    parser.call(data)
                except parser.raises:
                    refused += 1
                except Exception as error:
                    error.add_note(f"{name}, seed {seed}, case {number}: {data.hex()}")
                    raise
            yield name, cases, refused


@contextmanager
def _descriptors() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors were left open"


def main() -> int:
    argument_parser = argparse.ArgumentParser(prog="parsers", description="every parser on spoiled input")
    argument_parser.add_argument("--cases", type=int, default=20_000, help="for each parser (20000)")
    argument_parser.add_argument("--seed", type=int, default=1)
    argument_parser.add_argument("names", nargs="*")
    options = argument_parser.parse_args()
    for name, cases, refused in run(options.names, options.cases, options.seed):
        print(f"{cases:9} cases, {refused:9} refused: {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
