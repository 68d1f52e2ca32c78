"""Plain values and errors are copied and pickled whole; what owns a descriptor refuses."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pytest

from aiotuntap import (
    AsyncTuntap,
    Change,
    Counters,
    DeviceGoneError,
    InvalidFrameError,
    Link,
    LinkDownError,
    LinkEvent,
    Mode,
    Offload,
    QueueClosedError,
    SetupError,
    Stats,
    TuntapError,
    VnetHeader,
    bpf,
)
from aiotuntap._errors import SetupPermissionError
from aiotuntap.testing import memory_pair

LINK = Link(
    index=7,
    name="tap0",
    kind="tun",
    mtu=1500,
    mac="02:00:00:00:00:01",
    up=True,
    carrier=False,
    txqueuelen=1000,
    master=None,
    counters=Counters(1, 2, 3, 4, 5, 6, 7, 8),
    addresses=("10.0.0.1/24",),
    mode=Mode.TAP,
    owner=0,
)
VALUES: list[Any] = [
    Stats(*range(1, len(fields(Stats)) + 1)),
    LINK,
    LINK.counters,
    LinkEvent(Change.MTU, LINK, 1400),
    VnetHeader(*range(1, len(fields(VnetHeader)) + 1)),
    bpf.Instruction(0xB7, 1, 2, -3, -4),
    *Mode,
    *Change,
    *Offload,
    Offload.NONE,
    Offload.ALL,
]
ERRORS: list[TuntapError] = [
    TuntapError("root"),
    QueueClosedError("closed"),
    DeviceGoneError(errno.EBADFD, "gone"),
    LinkDownError(errno.EIO, "down"),
    InvalidFrameError("one"),
    InvalidFrameError("several", (1, 300)),
    InvalidFrameError("none", ()),
    SetupError(errno.EINVAL, "wrong"),
    SetupError(errno.EPERM, "no right to"),
    SetupError(errno.EACCES, "no right to open it", "/dev/net/tun"),
    SetupError(errno.ENOENT, "two names", "/a", None, "/b"),
    SetupPermissionError(errno.EPERM, "by its own name"),
]


def pickled(protocol: int, value: object) -> Any:
    return pickle.loads(pickle.dumps(value, protocol))


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {protocol}": partial(pickled, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("how", COPIES)
def test_values(how: str) -> None:
    for value in VALUES:
        copied = COPIES[how](value)
        assert copied == value and type(copied) is type(value) and repr(copied) == repr(value)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_errors(error: TuntapError) -> None:
    error = type(error)(*error.args, *((error.indexes,) if isinstance(error, InvalidFrameError) else ()))
    error.add_note("frame 7 and those after it were not written")
    for make in COPIES.values():
        copied = make(error)
        assert type(copied) is type(error)
        assert copied.args == error.args and str(copied) == str(error)
        assert copied.__notes__ == error.__notes__
        for name in ("indexes", "errno", "strerror", "filename", "filename2"):
            assert getattr(copied, name, None) == getattr(error, name, None)


def test_there_is_an_error_of_every_class() -> None:
    def below(kind: type[TuntapError]) -> set[type[TuntapError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    assert set(map(type, ERRORS)) == below(TuntapError)


def test_a_program_owns_its_descriptor() -> None:
    for make in COPIES.values():
        with pytest.raises(TypeError, match="Program cannot be copied or pickled"):
            make(bpf.constant(0))


async def test_a_memory_stream_belongs_to_its_loop() -> None:
    for stream in memory_pair():
        for make in COPIES.values():
            with pytest.raises(TypeError, match="MemoryStream cannot be copied or pickled"):
                make(stream)


def test_no_queues_are_an_empty_tuple() -> None:
    for make in COPIES.values():
        assert make(AsyncTuntap(mode="tap").queues) == ()
