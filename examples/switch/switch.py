"""The running switch: it has a task for each port. Ports can be added and removed while it runs."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Self

from aiotuntap import AsyncTuntap, DeviceGoneError, QueueClosedError

from .core import Core
from .guard import Guard
from .ports import Listener, MachineFrames, Port, check_tap, listen, open_tap, tap_argument, tap_port
from .table import Table

#: The prefix of a port that is a socket for virtual machines.
MACHINES = "unix:"

#: How many removed ports are still reported at the end.
_MOST_GONE = 256


class Switch:
    """The ports, the tasks that serve them, and the core that decides where frames go. Make it while the loop runs.

    Use it with ``async with``: the end of the block closes all ports.
    """

    def __init__(self, *, age: float, limit: int, hold: float, flood_limit: float | None) -> None:
        self.core: Core[Port] = Core(Table(age, limit), Guard(hold, flood_limit, self._say_blocked))
        self._hold = hold
        self._ports: dict[str, Port] = {}
        #: All ports in the order in which they were added, including removed ones.
        self._reported: list[Port] = []
        self._machines: dict[str, Listener] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._pinned: dict[bytes, str] = {}
        self._connections = 0
        #: Done when the last port is gone, or with an exception when a task failed.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in list(self._machines):
            await self.remove(name)
        await asyncio.gather(*map(self.remove, list(self._ports)))
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.ended.cancel()

    def _start(self, work: Coroutine[object, object, object], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.ended.done():
            self.ended.set_exception(error)

    # -- ports ---------------------------------------------------------------------------------------------------------

    @property
    def ports(self) -> Mapping[str, Port]:
        """The current ports, by name."""
        return self._ports

    def reported(self) -> Iterable[Port]:
        """All ports in the order in which they were added, including removed ones."""
        return self._reported

    async def add(self, what: str, *, capture: str | None = None) -> str:
        """Opens the port ``[NETNS:]NAME`` or ``unix:PATH``, and returns its name.

        Raises:
            ValueError: *what* is not valid, or such a port exists already.
            OSError: It cannot be opened; also a SetupError.
        """
        if not what.startswith(MACHINES):
            return await self.plug(await open_tap(self._new_tap(what)), capture)
        if what in self._machines:
            raise ValueError(f"port {what!r} already exists")
        if capture is not None:
            raise ValueError(f"port {what!r}: a socket for virtual machines cannot be recorded: leave out the capture")
        if not (path := what.removeprefix(MACHINES)):
            raise ValueError(f"a socket for virtual machines must have a path: {MACHINES}PATH")
        self._machines[what] = await listen(path, lambda frames: self._connected(what, frames))
        return what

    async def adopt(self, fd: int, name: str, *, capture: str | None = None) -> str:
        """Makes a port from a descriptor that was opened elsewhere, with the options of `tap_argument`.

        The descriptor is duplicated: the caller still has to close it.

        Raises:
            ValueError: It is another kind of descriptor, or such a port exists already.
            OSError: It cannot be adopted; also a SetupError.
        """
        self._check_new(name)
        check_tap(fd)
        mine = os.dup(fd)
        try:
            tap = await AsyncTuntap.adopt([mine])
        except BaseException:
            os.close(mine)
            raise
        return await self.plug(tap_port(tap, name), capture)

    async def plug(self, port: Port, capture: str | None = None) -> str:
        """Adds an open port. The switch closes it at the end, or at once if this fails."""
        try:
            if capture is not None:
                await port.record(capture)
            self._check_new(port.name)
        except BaseException:
            await port.aclose()
            raise
        self._ports[port.name] = port
        if len(self._reported) >= len(self._ports) + _MOST_GONE:
            self._reported.remove(next(each for each in self._reported if each not in self._ports.values()))
        self._reported.append(port)
        self.core.add(port)
        for station, name in self._pinned.items():
            if name == port.name:
                self.core.table.pin(station, port)
        self._start(self._serve(port), port.name)
        return port.name

    async def remove(self, name: str) -> None:
        """Closes a port, or a socket for virtual machines with all their ports. Raises ValueError if it does not exist."""
        if name in self._machines:
            server = self._machines.pop(name)
            server.close()
            for each in [each for each in self._ports if each.startswith(f"{name}#")]:
                await self.remove(each)
        elif name in self._ports:
            await self._unplug(self._ports[name])
        else:
            raise ValueError(f"port {name!r} does not exist")

    def pin(self, station: bytes, name: str) -> None:
        """Makes *station* static: it is always behind the port of that name, if the port exists."""
        self._pinned[station] = name
        if name in self._ports:
            self.core.table.pin(station, self._ports[name])

    def _check_new(self, name: str) -> None:
        if name in self._ports:
            raise ValueError(f"port {name!r} already exists")

    def _new_tap(self, what: str) -> AsyncTuntap:
        self._check_new(what)
        return tap_argument(what)

    def _connected(self, what: str, frames: MachineFrames) -> None:
        self._connections += 1
        port = Port(f"{what}#{self._connections}", frames, frames.aclose)
        self._start(self.plug(port), port.name)

    async def _unplug(self, port: Port) -> bool:
        """Removes a port. Returns False if it was removed already."""
        if self._ports.get(port.name) is not port:
            return False
        del self._ports[port.name]
        self.core.remove(port)
        await port.aclose()
        return True

    # -- frames --------------------------------------------------------------------------------------------------------

    async def forward(self, frames: list[bytes], source: Port) -> None:
        """Forwards frames that came in on *source*, in order."""
        for port, batch in self.core.decide(frames, source, time.monotonic()).items():
            await port.write(batch)

    async def _serve(self, port: Port) -> None:
        """Forwards the frames that come in on *port*, until it is closed or deleted."""
        try:
            while True:
                await self.forward(await port.frames.read_frames(), port)
        except (QueueClosedError, DeviceGoneError):
            if await self._unplug(port):
                _say(f"port {port.name} is gone")
                if not self._ports and not self._machines and not self.ended.done():
                    self.ended.set_result(None)

    def _say_blocked(self, port: Port) -> None:
        _say(
            f"port {port.name} is blocked for {self._hold:g} s, because there is a loop: frames that were sent to other"
            " ports come back there"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
