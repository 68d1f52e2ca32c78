"""The engine in Python, when a signal handler raises an exception in the middle of it."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any

import pytest

from aiotuntap import _datagrams, _frames


class Stop(Exception): ...


@pytest.fixture(params=[Stop, TimeoutError, KeyboardInterrupt])
def raised(request: pytest.FixtureRequest) -> Iterator[type[BaseException]]:
    """What the handler of SIGUSR1 raises."""

    def stop(*_: object) -> None:
        raise request.param

    before = signal.signal(signal.SIGUSR1, stop)
    yield request.param
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        yield left, right


def signalled(call: Callable[..., Any]) -> Callable[..., Any]:
    """Python calls the handlers of signals right behind a system call."""

    def call_and_raise(*arguments: Any) -> None:
        call(*arguments)
        signal.raise_signal(signal.SIGUSR1)

    return call_and_raise


def test_a_frame_is_written_once(
    raised: type[BaseException], pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = pair
    writes: list[Callable[[], object]] = [
        lambda: _frames.write_one(left.fileno(), 100, get_ident(), b"frame"),
        lambda: _frames.write_one(left.fileno(), 100, get_ident(), bytearray(b"frame")),
        lambda: _frames.write_batch(left.fileno(), 100, 0, 9, [b"frame", b"not written"]),
        lambda: _frames.write_pieces(left.fileno(), [b"fra", b"me"]),
    ]
    for write in writes:
        with monkeypatch.context() as patch:
            for name in ("write", "writev"):
                patch.setattr(os, name, signalled(getattr(os, name)))
            with pytest.raises(raised):
                write()
        assert _frames.read_batch(right.fileno(), 9, 1000) == ([b"frame"], errno.EAGAIN)


def test_it_is_no_error_of_the_kernel_in_reading(
    raised: type[BaseException], pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = pair
    left.send(b"frame")
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", signalled(lambda *_: None))
        frames, error = _frames.read_batch(right.fileno(), 9, 1000)
        assert frames == [] and isinstance(error, raised)
        with pytest.raises(raised):
            _frames.read_one(right.fileno())
    assert _frames.read_batch(right.fileno(), 9, 1000) == ([b"frame"], errno.EAGAIN)


def test_datagrams(raised: type[BaseException]) -> None:
    class Socket(socket.socket):
        recvmsg = signalled(lambda *_: None)
        sendmsg = signalled(socket.socket.sendmsg)

    with Socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.setblocking(False)
        sock.connect(other.getsockname())
        with pytest.raises(raised):
            _datagrams.send_batch(sock, 1000, 0, 0, 9, [b"sent", b"not sent"], None)
        assert _datagrams.receive_batch(other, 9, 1000, None)[:2] == ([b"sent"], errno.EAGAIN)
        datagrams, error, *_ = _datagrams.receive_batch(sock, 9, 1000, None)
        assert datagrams == [] and isinstance(error, raised)


def test_a_signal_while_datagrams_are_gathered(raised: type[BaseException]) -> None:
    frames = [b"x" * 100] * 64
    before = signal.signal(signal.SIGVTALRM, signal.getsignal(signal.SIGUSR1))
    try:
        for _ in range(50):
            with pytest.raises(raised):
                signal.setitimer(signal.ITIMER_VIRTUAL, 1e-5)
                while True:
                    assert len(_datagrams._run(frames, 0, 64, 1000, 1000)) == 64  # and not cut short by the signal
    finally:
        signal.signal(signal.SIGVTALRM, before)
