"""Where the warning about the slow engine points, and that it leaves nothing behind as an error."""

from __future__ import annotations

import asyncio
import linecache
import os
import warnings

import pytest

from aiotuntap import AsyncTuntap, Offload, SlowEngineWarning, _engine

from .support import tun


@pytest.fixture(autouse=True)
def slow_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "engine", _engine.PYTHON)


def lines(caught: pytest.WarningsRecorder) -> list[str]:
    """The lines of this file to which the warnings point."""
    assert {each.filename for each in caught} <= {__file__}
    return [linecache.getline(__file__, each.lineno).strip() for each in caught]


async def test_warning_points_at_the_line_that_opens() -> None:
    with pytest.warns(SlowEngineWarning) as caught:
        async with AsyncTuntap(mode="tun", offload=Offload.ALL):
            pass
        interface = AsyncTuntap(mode="tun", offload=Offload.CSUM)
        await asyncio.create_task(interface.open())
        await interface.aclose()
    assert lines(caught) == [
        'async with AsyncTuntap(mode="tun", offload=Offload.ALL):',
        'interface = AsyncTuntap(mode="tun", offload=Offload.CSUM)',
    ]


async def test_adopting_warns_at_the_line_that_adopts() -> None:
    async with tun(vnet_header=True) as interface:
        fd = os.dup(interface.queues[0].fileno())
        with pytest.warns(SlowEngineWarning) as caught:
            adopted = await AsyncTuntap.adopt([fd], vnet_header=False, offload=Offload.ALL)
        await adopted.aclose()
        assert lines(caught) == ["adopted = await AsyncTuntap.adopt([fd], vnet_header=False, offload=Offload.ALL)"]


async def test_warning_that_is_an_error_leaves_the_descriptors_to_their_owner() -> None:
    async with tun(vnet_header=True) as interface:
        fd = os.dup(interface.queues[0].fileno())
        with warnings.catch_warnings():
            warnings.simplefilter("error", SlowEngineWarning)
            with pytest.raises(SlowEngineWarning):
                AsyncTuntap(mode="tun", offload=Offload.ALL)
            with pytest.raises(SlowEngineWarning):
                await AsyncTuntap.adopt([fd], vnet_header=False, offload=Offload.ALL)
        os.close(fd)  # OSError, had it been closed


async def test_no_warning_without_cutting_and_merging() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowEngineWarning)
        async with AsyncTuntap(mode="tun"), AsyncTuntap(mode="tun", vnet_header=True, offload=Offload.ALL):
            pass
