"""Compares `segment` with the kernel: both segment the same super-frames.

Usage: ``python -m tests.fuzz.judge [--cases N] [--seed N]``, as root.

A super-frame is written, with its virtio_net_hdr, to one TAP interface. A bridge forwards it to another one without
offloads, so the kernel must segment it. The frames that are read there are compared with the result of each engine.
Frames that `coalesce` has merged are sent in the same way, and must arrive as the original frames. In every second case,
headers are corrupted.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic

from aiotuntap import InvalidFrameError, Mode, Offload, _abi, _engine, coalesce, segment

from ..conftest import _NO_KERNEL
from ..engine import ENGINES
from ..kernel.support import has_uso, raw_queue, unique
from ..offload_packets import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4
from ..offload_rules import checksums_are_right, comparable, parse
from .frames import mutated, packet

# What is sent behind each case, of a type for local experiments.
_MARK = b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x88\xb5"


_RING = 5000

_USO = Offload.USO4 | Offload.USO6

# UDP_MAX_SEGMENTS in <linux/udp.h>, for what is written with a virtio_net_hdr.
_MOST_DATAGRAMS = 128

# Bytes of payload: some kernels make no smaller segments of TCP, whatever gso_size is.
_SMALLEST_SEGMENT = 8

#: How a valid frame may fare: anything else is a defect. The kernel takes fewer super-frames than `segment` does.
EXPLAINED = {
    "same",
    "one segment only, which the kernel's GSO drops",
    "more datagrams than the kernel takes at once",
    "datagrams that the kernel takes one by one",
    "TCP in segments of 8 bytes at least",
    # A broken frame among those to be merged.
    "refused one by one too",
}

#: … and a spoiled one. The library refuses what its headers make no sense of, where the kernel looks at what it needs
#: only; and it computes checksums from the segments, where the kernel goes on from the sum that it was given.
EXPLAINED_IF_SPOILED = (
    "both refuse",
    "same",
    "one segment only",
    "more datagrams",
    "datagrams that the kernel takes one by one",
    "TCP in segments of 8 bytes at least",
    "more frames than fit",
    "refused here, passed by the kernel: ",
    "passed here, refused by the kernel",
    "passed here, dropped by the kernel",
    "a checksum that is right, or wrong, where the kernel's is not",
)


def is_explained(what: str) -> bool:
    if what.startswith("spoiled: "):
        return what.removeprefix("spoiled: ").startswith(EXPLAINED_IF_SPOILED)
    return what in EXPLAINED


class Lab:
    """Two TAP interfaces behind one bridge: super-frames go in, and frames come out."""

    def __init__(self, inlet: int, outlet: int) -> None:
        self.inlet = inlet
        self.outlet = outlet
        self._marks = 0

    def through(self, frames: list[bytes]) -> list[bytes] | None:
        """The resulting frames. None if the kernel refuses a frame."""
        refused = False
        for frame in frames:
            try:
                os.write(self.inlet, frame)
            except OSError:
                refused = True
        out: list[bytes] = []
        until = 0.0
        while True:
            if monotonic() > until:  # the first one is lost where there were more frames than the ring has room for
                self._marks += 1
                mark = _MARK + self._marks.to_bytes(46)
                os.write(self.inlet, bytes(10) + mark)
                until = monotonic() + 0.1
            try:
                frame = os.read(self.outlet, 1 << 17)
            except BlockingIOError:
                continue
            if frame == mark:
                return None if refused else out
            if frame[12:14] != b"\x88\xb5":
                out.append(frame)


@contextmanager
def lab() -> Iterator[Lab]:
    """In this process's namespace, where IPv6 is off and nothing else speaks."""
    with ExitStack() as stack:
        inlet, first = stack.enter_context(raw_queue())
        outlet, second = stack.enter_context(raw_queue(_abi.IFF_NO_PI))
        fcntl.ioctl(inlet, _abi.TUNSETVNETHDRSZ, struct.pack("@i", 10))
        bridge = unique("b")

        def run(*arguments: str) -> None:
            subprocess.run(["ip", "link", *arguments], check=True)

        # Where it is loaded, the bridge would look into IP headers, drop what it does not like and cut off what is behind.
        for setting in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
            setting.write_text("0")
        run("add", bridge, "type", "bridge", "mcast_snooping", "0")
        stack.callback(run, "del", bridge)
        for name in (first, second):
            run("set", name, "master", bridge, "txqueuelen", str(_RING), "mtu", "9000")
            run("set", name, "up")
        run("set", bridge, "up")
        # A port of a bridge forwards when it is up, which takes a moment.
        yield Lab(inlet, outlet)


def same(ours: list[bytes], kernels: list[bytes]) -> str:
    """How two lists of frames differ; "" if they do not."""
    if len(ours) != len(kernels):
        return "another number of frames than the kernel makes"
    for our, their in zip(ours, kernels, strict=True):
        if comparable(our, Mode.TAP) != comparable(their, Mode.TAP):
            if len(our) != len(their):
                return "another length than the kernel's"
            at = next(index for index, pair in enumerate(zip(our, their, strict=True)) if pair[0] != pair[1])
            headers = parse(our, Mode.TAP)
            if headers is None:
                return "other bytes than the kernel's, in what is no frame"
            where = (
                "IP header" if at < headers.transport else "TCP or UDP header" if at < headers.payload else "payload"
            )
            return f"another {where} than the kernel's"
        if (headers := parse(our, Mode.TAP)) and checksums_are_right(our, headers) != checksums_are_right(
            their, headers
        ):
            return "a checksum that is right, or wrong, where the kernel's is not"
    return ""


def judge_segment(lab: Lab, random: Random) -> tuple[str, bytes]:
    """The result for one super-frame ("same", or what happened), and the super-frame."""
    made = packet(random, Mode.TAP, random.choice((1, 100, 1448, 3000, 20000, random.randrange(1, 40000))))
    size = random.choice((1, 8, 100, 536, 1000, 1448, random.randrange(1, 3000)))
    if len(made.payload) // size > 400:
        size = 200
    frame = made.super_frame(size)
    spoiled = random.random() < 0.5
    if spoiled:
        frame = mutated(frame, random, 10 + made.header_length)
        frame = frame[:10] + b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01" + frame[22:] if len(frame) > 22 else frame
    what = _judge_segment(lab, frame)
    return (f"spoiled: {what}" if spoiled else what), frame


def _judge_segment(lab: Lab, frame: bytes) -> str:
    kernels = lab.through([frame])
    results: list[list[bytes] | None] = []
    why = ""
    before = _engine.engine
    for engine in ENGINES:
        _engine.engine = engine
        try:
            results.append(segment(frame, Mode.TAP))
        except InvalidFrameError as error:
            results.append(None)
            why = re.sub(r"[0-9]+", "N", str(error))
        finally:
            _engine.engine = before
    if any(result != results[0] for result in results):
        return "the engines differ"
    ours = results[0]
    if ours is None:
        return "both refuse" if not kernels else f"refused here, passed by the kernel: {why}"
    if not kernels and len(ours) == 1 and frame[1]:
        return "one segment only, which the kernel's GSO drops"
    if kernels is None and frame[1] & 0x7F == GSO_UDP_L4:
        if not has_uso():
            return "datagrams that the kernel takes one by one"
        if len(ours) > _MOST_DATAGRAMS:
            return "more datagrams than the kernel takes at once"
    if not kernels:
        return f"passed here, {'refused' if kernels is None else 'dropped'} by the kernel"
    if len(ours) > _RING:
        return "more frames than fit into the ring"
    gso_size = int.from_bytes(frame[4:6], sys.byteorder)
    if frame[1] & 0x7F in (GSO_TCPV4, GSO_TCPV6) and gso_size < _SMALLEST_SEGMENT and len(ours) != len(kernels):
        larger = segment(frame[:4] + _SMALLEST_SEGMENT.to_bytes(2, sys.byteorder) + frame[6:], Mode.TAP)
        return same(larger, kernels) or "TCP in segments of 8 bytes at least"
    return same(ours, kernels) or "same"


def judge_coalesce(lab: Lab, random: Random) -> tuple[str, bytes]:
    """Merged frames must come out of the kernel as they were."""
    made = packet(random, Mode.TAP, random.choice((100, 3000, 20000, 40000)))
    frames = [each.build() for each in made.pieces(random.choice((200, 536, 1448)))]
    if random.random() < 0.5:
        at = random.randrange(len(frames))
        frames[at] = frames[at][:14] + mutated(frames[at][14:], random, made.header_length)
    frames = [frame for frame in frames if len(frame) <= 9014]
    merged = coalesce(frames, Mode.TAP, offload=Offload.ALL if has_uso() else Offload.ALL & ~_USO)
    separate = [bytes(10) + frame for frame in frames]
    expected = lab.through(separate)
    kernels = lab.through(merged)
    if expected is None or kernels is None:
        return "refused one by one too" if expected is None else "the kernel refuses what was merged", b"".join(merged)
    order = partial(sorted, key=lambda each: comparable(each, Mode.TAP))  # broken frames belong to no flow
    return same(order(expected), order(kernels)) or "same", b"".join(merged)


def run(cases: int, seed: int) -> tuple[Counter[tuple[str, str]], dict[tuple[str, str], bytes]]:
    """How often each thing happened, and for each an example."""
    outcomes: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], bytes] = {}
    with lab() as made:
        for number in range(cases):
            random = Random(f"{seed} {number}")
            judges = {"segment": judge_segment, "coalesce": judge_coalesce}
            name = "coalesce" if number % 4 == 3 else "segment"
            what, example = judges[name](made, random)
            outcomes[name, what] += 1
            examples.setdefault((name, what), example)
    return outcomes, examples


def main() -> int:
    parser = argparse.ArgumentParser(prog="judge", description="what segment and coalesce give against the kernel")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if _NO_KERNEL:
        parser.error(_NO_KERNEL)
    outcomes, examples = run(options.cases, options.seed)
    for key, number in outcomes.most_common():
        print(f"{number:8}  {key[0]:8}  {key[1]}")
        if not is_explained(key[1]):
            print(f"          NOT EXPLAINED, for example {examples[key].hex()}")
    return 0 if all(is_explained(what) for _, what in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
