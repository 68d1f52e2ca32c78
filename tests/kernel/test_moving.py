"""What the page on moving shows of this library runs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from textwrap import indent
from typing import Any

import pytest

from .programs import ROOT

BLOCKS = [
    block
    for block in re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "moving.md").read_text(), re.DOTALL | re.MULTILINE
    )
    if "AsyncTuntap" in block
]


@contextlib.asynccontextmanager
async def traffic() -> AsyncIterator[None]:
    """Datagrams to 10.8.0.2, as soon as there is a way to it."""

    async def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while True:
                with contextlib.suppress(OSError):
                    sock.sendto(b"hello", ("10.8.0.2", 9))
                await asyncio.sleep(0.01)

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize("block", BLOCKS, ids=["pytun", "scapy", "netlink"])
async def test_it_runs_as_it_stands(block: str) -> None:
    names: dict[str, Any] = {}
    exec(f"async def main():\n{indent(block, '    ')}", names)  # noqa: S102 - it is the page's own
    main: Callable[[], Awaitable[None]] = names["main"]
    async with traffic(), asyncio.timeout(20):
        await main()
