"""The example for Prometheus: what it shows is what passed."""

from __future__ import annotations

import asyncio
import signal
import socket
import urllib.request
from collections.abc import Iterable

from metrics import TuntapCollector
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from .programs import program
from .support import ip, ipv4, link, tap, tun, unique


def values(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    """By name, and number of the queue where there is one."""
    return {
        (sample.name, *[value for label, value in sample.labels.items() if label == "queue"]): sample.value
        for family in families
        for sample in family.samples
    }


def scrape(url: str) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(url, timeout=10) as response:
        return values(text_string_to_metric_families(response.read().decode()))


async def collect(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """As Prometheus does, from another thread."""
    return values(await asyncio.to_thread(lambda: list(registry.collect())))


def test_counters_are_what_passed() -> None:
    name = unique("met")
    with program("metrics.py", name, "--port", "0") as process:
        url = process.ready.split()[-1]
        before = scrape(url)
        assert before["tuntap_up",] == 1
        assert before["tuntap_frames_read_total", "0"] == before["tuntap_frames_read_total", "1"] == 0
        for _ in range(30):  # many ports, so that both queues get some
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.connect(("10.77.0.2", 7))
                sock.send(bytes(100))
                assert sock.recv(200) == bytes(100)
        after = scrape(url)
        for counter in ("frames_read", "frames_written"):
            each = [after[f"tuntap_{counter}_total", queue] for queue in ("0", "1")]
            assert sum(each) == 30 and all(each)
        assert after["tuntap_kernel_tx_bytes_total",] == after["tuntap_kernel_rx_bytes_total",] == 30 * 128
        kernel = link(name)["stats64"]
        assert after["tuntap_kernel_tx_packets_total",] == kernel["tx"]["packets"] == 30
        process.send_signal(signal.SIGTERM)
        assert process.ended() == (0, "", "")


def test_it_says_what_went_wrong() -> None:
    name = unique("met")
    with program("metrics.py", name, "--port", "0") as process:
        ip("link", "del", name)
        status, _, err = process.ended()
        assert (status, err.count("\n")) == (1, 1)
        assert f"'{name}' is gone" in err


async def test_a_queue_that_is_closed_keeps_its_number_and_its_counts() -> None:
    async with tun(queues=2) as interface:
        registry = CollectorRegistry()
        registry.register(TuntapCollector(interface))
        first, second = interface.queues
        await first.write_frames([ipv4(number) for number in range(3)])
        await second.write_frame(ipv4())
        assert (await collect(registry))["tuntap_frames_written_total", "0"] == 3
        await interface.remove_queues(first)
        found = await collect(registry)
        assert found["tuntap_frames_written_total", "0"] == 3
        assert found["tuntap_frames_written_total", "1"] == 1


async def test_an_interface_that_is_gone_is_not_up() -> None:
    async with tap() as interface:
        registry = CollectorRegistry()
        registry.register(TuntapCollector(interface))
        assert (await collect(registry))["tuntap_up",] == 1
        await interface.configure(up=False)
        assert (await collect(registry))["tuntap_up",] == 0
        ip("link", "del", interface.name)
        assert await collect(registry) == {("tuntap_up",): 0}


async def test_the_default_registry_does_not_wait_for_the_loop() -> None:
    async with tap() as interface:
        collector = TuntapCollector(interface)
        REGISTRY.register(collector)
        REGISTRY.unregister(collector)
