"""Runs a virtual machine whose network card is a TAP interface that this program made. As root, or in ``unshare -Urn``::

    python examples/machine.py vm0 10.30.0.1/24 qemu-system-x86_64 -m 512 disk.img -device virtio-net-pci,netdev=n0

QEMU gets a descriptor of a queue, so it needs no privilege. What this program may do with the interface (configure it,
make it a port of a bridge, watch it) it goes on doing, by another queue that it keeps disabled. The interface stays when
the machine ends, and goes with this program.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from aiotuntap import AsyncTuntap


async def main(name: str, address: str, *command: str) -> int:
    # QEMU finds by itself that frames have a virtio_net_hdr in front, and turns on the offloads that its guest wants.
    async with AsyncTuntap(name, mode="tap", queues=2, vnet_header=True) as tap:
        handle, card = tap.queues
        await handle.disable()
        netdev = ["-netdev", f"tap,id=n0,fd={card.fileno()}"]
        machine = await asyncio.create_subprocess_exec(*command, *netdev, pass_fds=[card.fileno()])
        # Two programs that read one queue take frames away from each other. Ours ends before the first frame comes.
        await tap.remove_queues(card)
        await tap.configure(addresses=[address], up=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, machine.terminate)
        print(f"ready: {tap.name}, process {machine.pid}", flush=True)
        return await machine.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
