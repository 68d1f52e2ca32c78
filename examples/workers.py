"""Answers ping with several unprivileged processes on one TUN interface, each of which holds one of its queues.

The kernel spreads flows over the queues, and so over the workers and their processors. As root::

    ip netns add demo
    ip netns exec demo python examples/workers.py work0 --workers 4 --user nobody

and in a second terminal, to ping, to see which process has which queue, and to kill one::

    ip netns exec demo ping 10.77.0.2
    ip netns exec demo ip -d link show work0
    kill -9 PROCESS

The interface and all other workers go on: the kernel gives the flows of the dead one to those that are left, at the
latest after the three seconds for which it remembers where a flow was answered. With ``--replace`` another worker takes
its place. Ctrl-C ends them all. Then ``ip netns del demo``.

The parent makes the interface and reads no frame of it. It keeps one queue for itself as a handle, disabled: a queue
that is held but not read would swallow the flows that the kernel gives to it. A worker receives its queue over a Unix
socket, disabled as well, adopts it, gives up its privileges and only then enables it, so that whatever a frame may do
to a worker is done to a user who has no rights. (The queue itself stays in its hands: the kernel lets whoever holds one
change settings such as the offloads or the carrier.)
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
    """Makes this process *user*'s for good. In this order: each step takes a privilege that the last one ends."""
    try:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except OSError as error:
        text = f"cannot become user {user.pw_name!r}: {error.strerror}; this takes root, outside of a user namespace"
        raise SetupError(error.errno, text) from error


def slowed_down(reply: Callable[[bytes], bytes | None], seconds: float) -> Callable[[bytes], bytes | None]:
    """The same with more work: what several processes can share is the work, and not what the kernel does."""

    def reply_later(frame: bytes) -> bytes | None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return reply(frame)

    return reply_later


async def work(control: socket.socket, user: pwd.struct_passwd, addresses: list[Interface], seconds: float) -> None:
    """Receives a queue over *control* and answers what comes in on it, until the other end of the socket is closed."""
    loop = asyncio.get_running_loop()
    _, fds, _, _ = socket.recv_fds(control, 1, 1)
    async with contextlib.aclosing(await AsyncTuntap.adopt(fds)) as tun:
        (queue,) = tun.queues
        # Not earlier: adopting imports modules, which may lie where only root can read them.
        drop_privileges(user)
        await queue.enable()
        control.setblocking(False)
        await loop.sock_sendall(control, b"!")
        responder = Responder(tun.mode, addresses)
        if seconds:
            responder.reply = slowed_down(responder.reply, seconds)
        with contextlib.suppress(DeviceGoneError):  # the parent notices too, and says so once
            await first_to_end(serve(queue, responder, Count(queue)), loop.sock_recv(control, 1))


# -- the parent --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def worker(tun: AsyncTuntap) -> AsyncIterator[tuple[Process, socket.socket]]:
    """A new process that gets a new queue, killed on the way out, and the socket on which it says that it is ready.

    Should this process die without a chance to kill anybody, the workers see its end of their sockets closed.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            (queue,) = await tun.add_queues()
            await queue.disable()
            socket.send_fds(ours, [b"!"], [queue.fileno()])
            # The descriptor under way keeps the queue. Two processes that both watch it would take each other's frames.
            await tun.remove_queues(queue)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                *sys.argv[1:],
                f"--worker={theirs.fileno()}",
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent alone
            )
        ours.setblocking(False)
        try:
            yield process, ours
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has nothing to put in order that the kernel does not
                process.kill()
            await process.wait()


async def keep_working(number: int, tun: AsyncTuntap, replace: bool) -> None:
    """Has one worker run, and reports when it is ready and when it died. Returns when it is not to be replaced."""
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
        await asyncio.sleep(0.5)  # one that dies at once should not keep the machine busy


async def keep_all_working(workers: int, tun: AsyncTuntap, replace: bool) -> None:
    """The same for all workers. When one cannot be started, the others end as well."""
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(keep_working(number, tun, replace))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def keep_watch(handle: TuntapQueue) -> None:
    """Raises DeviceGoneError when the interface is deleted: nothing else ever happens on a disabled queue."""
    async for _ in handle:
        pass


async def run(tun: AsyncTuntap, workers: int, replace: bool, addresses: list[Interface]) -> int:
    """Opens the interface and keeps the workers, until SIGINT or SIGTERM. Returns the exit status."""
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
        print("no worker is left", file=sys.stderr)
    return 0 if stop.is_set() else 1


async def first_to_end(*work: Awaitable[object]) -> None:
    """Runs all of *work* until the first of it ends, cancels the rest, and raises what went wrong."""
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
        raise argparse.ArgumentTypeError(f"there is no user {name!r}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers ping with several unprivileged processes.")
    parser.add_argument("name", help="of the interface, such as work0; '' or 'work%%d' lets the kernel choose")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes, each with one queue")
    parser.add_argument("--user", type=user_entry, default="nobody", help="whom the workers run as")
    parser.add_argument("--replace", action="store_true", help="start another worker when one dies")
    parser.add_argument("--address", type=ip_interface, action="append", help="such as 10.77.0.1/24; may be repeated")
    parser.add_argument("--work", type=float, default=0, metavar="US", help="microseconds more that each frame takes")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop, a package of its own")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # in a worker: the socket to its parent
    options = parser.parse_args()
    addresses = options.address or [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]
    if options.workers < 1:
        parser.error("--workers: at least 1")
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
        return 1


if __name__ == "__main__":
    sys.exit(main())
