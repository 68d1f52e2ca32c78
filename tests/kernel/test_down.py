"""A read that waits on an interface which stays down is reported in the log, once, and nothing else is."""

from __future__ import annotations

import asyncio
import logging

import pytest

from aiotuntap import AsyncTuntap, TuntapProtocol, _queue, create_tuntap_endpoint
from aiotuntap._device import QueueFile
from aiotuntap.testing import example_frame

from .support import ip, tap, tap_with_peer, unique


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue, "_TIME_TO_COME_UP", 0.02)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "aiotuntap"]


async def wait_on(interface: AsyncTuntap, seconds: float = 0.06) -> None:
    reading = [asyncio.ensure_future(queue.read_frame()) for queue in interface.queues]
    await asyncio.sleep(seconds)
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)


async def test_reading_from_an_interface_that_is_down_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncTuntap(unique(), mode="tap", queues=2) as interface:
        for _ in range(2):
            await wait_on(interface)
        assert said(caplog) == [
            f"interface '{interface.name}' is down, and reading from it waits until it is up: call configure(up=True)"
        ]
        assert caplog.records[-1].levelno == logging.WARNING


async def test_a_protocol_that_waits_is_reported_too(caplog: pytest.LogCaptureFixture) -> None:
    transport, _ = await create_tuntap_endpoint(TuntapProtocol, unique(), mode="tap")
    interface = transport.get_extra_info("interface")
    await asyncio.sleep(0.06)
    transport.close()
    while not interface.closed:
        await asyncio.sleep(0.001)
    await interface.aclose()
    assert len(said(caplog)) == 1


async def test_nothing_is_reported_where_it_is_up_or_comes_up_in_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tap() as interface:
        await wait_on(interface)
    monkeypatch.setattr(_queue, "_TIME_TO_COME_UP", 0.5)
    async with AsyncTuntap(unique(), mode="tun") as interface:
        reading = asyncio.ensure_future(interface.read_frame())
        await asyncio.sleep(0)
        await interface.configure(up=True)
        await asyncio.sleep(0.6)
        reading.cancel()
    assert said(caplog) == []


async def test_nothing_is_reported_where_it_was_up_and_goes_down(caplog: pytest.LogCaptureFixture) -> None:
    async with tap() as interface:
        reading = asyncio.ensure_future(wait_on(interface))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert interface._interface.was_waited_for
        ip("link", "set", interface.name, "down")
        await reading
        await wait_on(interface)
    assert said(caplog) == []


async def test_nothing_is_reported_where_the_send_buffer_is_full(caplog: pytest.LogCaptureFixture) -> None:
    async with tap() as interface:
        await interface.set_send_buffer(1)  # the kernel then never reports the queue as writable
        await wait_on(interface)
    assert said(caplog) == []


async def test_the_kernel_is_not_asked_where_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ioctl may have to wait for the kernel's global network lock, and the loop with it."""
    asked: list[int] = []
    async with tap() as interface:
        with monkeypatch.context() as patch:
            patch.setattr(QueueFile, "ioctl", lambda _, request, *__: asked.append(request))
            await wait_on(interface)
    assert not asked


@pytest.mark.parametrize("end", ["close", "delete"])
async def test_nothing_is_reported_where_it_is_gone(caplog: pytest.LogCaptureFixture, end: str) -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:
        reading = asyncio.ensure_future(interface.read_frame())
        await asyncio.sleep(0)
        if end == "close":
            await interface.aclose()
        else:
            ip("link", "del", interface.name)
        await asyncio.sleep(0.06)
        assert reading.done() and reading.exception() is not None
    assert said(caplog) == []


async def test_nothing_is_looked_at_where_frames_are_there(caplog: pytest.LogCaptureFixture) -> None:
    async with tap_with_peer() as (interface, peer):
        peer.send(example_frame(1))
        await asyncio.sleep(0.01)
        assert await interface.read_frame() == example_frame(1)
        assert not interface._interface.was_waited_for
