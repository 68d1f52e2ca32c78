"""Answers ping with several unprivileged processes on one TUN interface. Each process has one of its queues.

The kernel distributes flows among the queues, and so among the worker processes and their CPUs. Run it as root, from the
root of the repository::

    ip netns add demo
    ip netns exec demo python examples/workers.py work0 --workers 4 --user nobody

and in a second terminal, to ping, to see which process has which queue, and to kill one::

    ip netns exec demo ping 10.77.0.2
    ip netns exec demo python -m aiotuntap top --once
    kill -9 PROCESS

The interface and all other workers continue. The kernel gives the flows of the dead worker to the others, after at most
three seconds: for so long it remembers the queue of a flow. With ``--replace``, a new worker replaces the dead one.
Press Ctrl-C to end all workers. Then remove the namespace: ``ip netns del demo``.

The parent creates the interface, but reads no frames. It keeps one disabled queue, to hold the interface. (An enabled
queue that nobody reads would lose the flows that the kernel gives to it.) A worker receives its queue over a Unix
socket, also disabled. It adopts the queue, drops its privileges, and only then enables the queue. So a frame that exploits
a worker only gets the rights of an unprivileged user. But that user still has the queue, and with it may change settings
such as the offloads or the carrier.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pwd
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_interface

from echo import Count, Interface, Responder, serve

from aiotuntap import AsyncTuntap, DeviceGoneError, SetupError, TuntapQueue

# -- a worker: one process, one queue ----------------------------------------------------------------------------------


def drop_privileges(user: pwd.struct_passwd) -> None:
    """Makes this process run as *user*, irreversibly. The order matters: setuid() drops the privilege for the others."""
    try:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except OSError as error:
        text = f"cannot become user {user.pw_name!r}: {error.strerror}; run as root, outside of a user namespace"
        raise SetupError(error.errno, text) from error


def slowed_down(reply: Callable[[bytes], bytes | None], seconds: float) -> Callable[[bytes], bytes | None]:
    """The same function with additional CPU time for each frame, to show that the work is shared by the processes."""

    def reply_later(frame: bytes) -> bytes | None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return reply(frame)

    return reply_later


async def work(control: socket.socket, user: pwd.struct_passwd, addresses: list[Interface], seconds: float) -> None:
    """Receives a queue over *control* and answers its frames, until the other end of the socket is closed."""
    loop = asyncio.get_running_loop()
    _, fds, _, _ = socket.recv_fds(control, 1, 1)
    async with contextlib.aclosing(await AsyncTuntap.adopt(fds)) as tun:
        (queue,) = tun.queues
        # Not earlier: adopt() imports modules, which may be in a folder that only root can read.
        drop_privileges(user)
        await queue.enable()
        control.setblocking(False)
        await loop.sock_sendall(control, b"!")
        responder = Responder(tun.mode, addresses)
        if seconds:
            responder.reply = slowed_down(responder.reply, seconds)
        with contextlib.suppress(DeviceGoneError):  # the parent reports it
            await first_to_end(serve(queue, responder, Count(queue)), loop.sock_recv(control, 1))


# -- the parent --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def worker(tun: AsyncTuntap) -> AsyncIterator[tuple[Process, socket.socket]]:
    """A new process with a new queue, and a socket on which the process reports that it is ready.

    The process is killed at the end of the block. If the parent dies, the workers notice that the socket is closed.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            (queue,) = await tun.add_queues()
            await queue.disable()
            socket.send_fds(ours, [b"!"], [queue.fileno()])
            # The queue stays open, because its descriptor is in the socket. The parent must not watch it too: it would
            # read frames of the worker.
            await tun.remove_queues(queue)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                *sys.argv[1:],
                f"--worker={theirs.fileno()}",
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C must only reach the parent
            )
        ours.setblocking(False)
        try:
            yield process, ours
        finally:
            with contextlib.suppress(ProcessLookupError):  # the kernel cleans up after it
                process.kill()
            await process.wait()


async def keep_working(number: int, tun: AsyncTuntap, replace: bool) -> None:
    """Runs one worker, and prints when it is ready and when it ends. With *replace*, starts the next one."""
    loop = asyncio.get_running_loop()
    while True:
        async with worker(tun) as (process, control):
            with contextlib.suppress(ConnectionResetError):
                if await loop.sock_recv(control, 1):
                    print(f"worker {number}: process {process.pid} is ready", flush=True)
            status = await process.wait()
        cause = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        print(f"worker {number}: process {process.pid} {cause}", flush=True)
        if not replace:
            return
        await asyncio.sleep(0.5)  # limits the rate if workers fail at once


async def keep_all_working(workers: int, tun: AsyncTuntap, replace: bool) -> None:
    """Runs all workers. If one cannot be started, the others end too."""
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(keep_working(number, tun, replace))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def keep_watch(handle: TuntapQueue) -> None:
    """Raises DeviceGoneError when the interface is deleted. A disabled queue gets no frames."""
    async for _ in handle:
        pass


async def run(tun: AsyncTuntap, workers: int, replace: bool, addresses: list[Interface]) -> int:
    """Opens the interface and runs the workers, until SIGINT or SIGTERM. Returns the exit status."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with tun:
        (handle,) = tun.queues
        await handle.disable()
        await tun.configure(addresses=[str(address) for address in addresses], up=True)
        print(f"{tun.name}: {workers} workers, {' '.join(map(str, addresses))}", flush=True)
        await first_to_end(stop.wait(), keep_watch(handle), keep_all_working(workers, tun, replace))
    if not stop.is_set():
        print("all workers have ended", file=sys.stderr)
    return 0 if stop.is_set() else 1


async def first_to_end(*work: Awaitable[object]) -> None:
    """Runs all of *work* until the first of it ends, cancels the rest, and raises the error of the first if it failed."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def user_entry(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise argparse.ArgumentTypeError(f"user {name!r} does not exist") from None


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers ping with several unprivileged processes.")
    parser.add_argument("name", help="name of the interface, such as work0; with '' or 'work%%d' the kernel chooses")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="number of processes, each with one queue")
    parser.add_argument("--user", type=user_entry, default="nobody", help="user that the workers run as")
    parser.add_argument("--replace", action="store_true", help="start another worker when one dies")
    parser.add_argument(
        "--address",
        type=ip_interface,
        action="append",
        help="address of the interface, such as 10.77.0.1/24; may be repeated",
    )
    parser.add_argument(
        "--work", type=float, default=0, metavar="US", help="additional microseconds of work for each frame"
    )
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop (pip install uvloop)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # in a worker: the socket to its parent
    options = parser.parse_args()
    addresses = options.address or [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, not {options.workers}")
    run_loop = asyncio.run
    if options.uvloop:
        import uvloop

        run_loop = uvloop.run
    try:
        if options.worker is not None:
            with socket.socket(fileno=options.worker) as control:
                run_loop(work(control, options.user, addresses, options.work / 1e6))
            return 0
        tun = AsyncTuntap(options.name, mode="tun")
        return run_loop(run(tun, options.workers, options.replace, addresses))
    except (SetupError, DeviceGoneError) as error:
        print(f"{parser.prog}: {error.strerror}", file=sys.stderr)
    except ValueError as error:  # of the name
        print(f"{parser.prog}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
