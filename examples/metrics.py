"""Answers ping on a TUN interface, and exports the counters of its queues to Prometheus. As root::

    python examples/metrics.py metrics0 --port 9101
    curl http://127.0.0.1:9101/metrics

It needs the official client: ``pip install prometheus-client``.
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
    """Reads the counters of an interface and its queues when Prometheus requests them.

    The request comes on another thread, but an interface belongs to its event loop. So the counters are read in the loop.
    The packet path does no additional work.
    """

    def __init__(self, tun: AsyncTuntap) -> None:
        """Call it in the event loop, when the interface is open."""
        self._tun = tun
        self._loop = asyncio.get_running_loop()
        #: All queues, including closed ones: a counter must not disappear, and a queue keeps its number.
        self._queues: list[TuntapQueue] = []

    def describe(self) -> list[Metric]:
        """Returns nothing. Without this method, ``register`` calls `collect` on the loop's thread, which would hang."""
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
            await asyncio.to_thread(server.shutdown)  # in a thread, because it waits for requests, which need this loop
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
    except ValueError as error:  # of the name
        sys.exit(f"{parser.prog}: {error}")
    except (OSError, OverflowError) as error:
        sys.exit(f"{parser.prog}: cannot listen on 127.0.0.1, port {options.port}: {error}; use another --port")
