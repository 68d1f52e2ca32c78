"""Answers ping on a TUN interface, and shows what its queues carry to Prometheus. As root::

    python examples/metrics.py metrics0 --port 9101
    curl http://127.0.0.1:9101/metrics

It takes the official client: ``pip install prometheus-client``.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import ip_interface

from echo import Count, Responder, serve
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from workers import first_to_end

from aiotuntap import AsyncTuntap, DeviceGoneError, Link, SetupError, Stats, TuntapQueue

ADDRESS = ip_interface("10.77.0.1/24")


class TuntapCollector(Collector):
    """What an interface and its queues have counted, looked up when Prometheus asks.

    Prometheus asks on a thread of its own, and an interface belongs to its event loop: so the loop is asked, and answers
    between two frames. Nothing is counted twice, and the packet path has nothing to do for it.
    """

    def __init__(self, tun: AsyncTuntap) -> None:
        """Made on the loop's thread, when the interface is open."""
        self._tun = tun
        self._loop = asyncio.get_running_loop()
        #: All that there were, closed ones too: a counter must not vanish, and a queue keeps its number.
        self._queues: list[TuntapQueue] = []

    def describe(self) -> list[Metric]:
        """Nothing: or else the default registry calls `collect` in `register`, on the very thread that it waits for."""
        return []

    async def _look(self) -> tuple[list[Stats], Link]:
        self._queues += [queue for queue in self._tun.queues if queue not in self._queues]
        return [queue.stats for queue in self._queues], await self._tun.link()

    def collect(self) -> Iterator[Metric]:
        try:
            stats, link = asyncio.run_coroutine_threadsafe(self._look(), self._loop).result(timeout=5)
        except DeviceGoneError:
            yield GaugeMetricFamily("tuntap_up", "Whether the interface is there and up.", 0)
            return
        yield GaugeMetricFamily("tuntap_up", "Whether the interface is there and up.", link.up)
        for name in asdict(stats[0]):
            family = CounterMetricFamily(f"tuntap_{name}", f"Stats.{name} of a queue.", labels=["interface", "queue"])
            for number, each in enumerate(stats):
                family.add_metric([link.name, str(number)], getattr(each, name))
            yield family
        for name, value in asdict(link.counters).items():
            family = CounterMetricFamily(f"tuntap_kernel_{name}", f"{name} of the interface.", labels=["interface"])
            family.add_metric([link.name], value)
            yield family


async def main(name: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncTuntap(name, mode="tun", queues=2) as tun:
        await tun.configure(addresses=[str(ADDRESS)], up=True)
        registry = CollectorRegistry()
        registry.register(TuntapCollector(tun))
        server, thread = start_http_server(port, "127.0.0.1", registry)
        try:
            print(f"ready: {tun.name}, http://127.0.0.1:{server.server_port}/metrics", flush=True)
            responder = Responder(tun.mode, [ADDRESS])
            await first_to_end(stop.wait(), *(serve(queue, responder, Count(queue)) for queue in tun.queues))
        finally:
            await asyncio.to_thread(server.shutdown)  # which waits for a request that waits for this loop
            server.server_close()
            thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answers ping, and counts for Prometheus.")
    parser.add_argument("name", help="of the interface, such as metrics0")
    parser.add_argument("--port", type=int, default=9101, help="where Prometheus asks, on the loopback")
    options = parser.parse_args()
    try:
        asyncio.run(main(options.name, options.port))
    except (SetupError, DeviceGoneError) as error:
        sys.exit(f"{parser.prog}: {error.strerror}")
