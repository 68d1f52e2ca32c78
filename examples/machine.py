"""Runs a virtual machine. Its network card is a TAP interface of this program. As root, or in ``unshare -Urn``::

    python examples/machine.py vm0 10.30.0.1/24 qemu-system-x86_64 -m 512 disk.img -device virtio-net-pci,netdev=n0

QEMU gets the descriptor of a queue, so it needs no privilege. The program keeps a second, disabled queue: with it, it can
configure the interface, make it a port of a bridge, or watch it. The interface exists until this program ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process

from aiotuntap import AsyncTuntap, SetupError


def stop(machine: Process) -> None:
    """Asks the machine to end. Perhaps it has: Ctrl-C in a terminal also reaches it."""
    if machine.returncode is None:
        # Not terminate(), which would take the status of a machine that has just ended away from asyncio.
        with contextlib.suppress(ProcessLookupError):
            os.kill(machine.pid, signal.SIGTERM)


async def main(name: str, address: str, *command: str) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # before the machine starts: it must not outlive this program
        loop.add_signal_handler(number, task.cancel)
    # QEMU detects that frames begin with a virtio_net_hdr, and turns on the offloads that its guest supports.
    async with AsyncTuntap(name, mode="tap", queues=2, vnet_header=True) as tap:
        handle, card = tap.queues
        await handle.disable()
        netdev = ["-netdev", f"tap,id=n0,fd={card.fileno()}"]
        machine = await asyncio.create_subprocess_exec(*command, *netdev, pass_fds=[card.fileno()])
        try:
            # Only QEMU may read this queue: two readers would take frames from each other. So close it here, before frames
            # come.
            await tap.remove_queues(card)
            await tap.configure(addresses=[address], up=True)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop, machine)
            print(f"ready: {tap.name}, process {machine.pid}", flush=True)
            return await machine.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                machine.kill()
            raise


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: machine.py NAME ADDRESS QEMU [ARGUMENT …]")
    try:
        sys.exit(asyncio.run(main(*sys.argv[1:])))
    except asyncio.CancelledError:
        sys.exit(0)
    except SetupError as error:
        sys.exit(f"machine.py: {error.strerror}")
    except (OSError, ValueError) as error:
        sys.exit(f"machine.py: {error}")
