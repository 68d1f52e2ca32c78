"""The callback style of asyncio: `create_tuntap_endpoint` is the twin of ``loop.create_datagram_endpoint``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from ._descriptor import set_done
from ._errors import QueueClosedError
from ._queue import TuntapQueue
from ._threads import outlast
from ._transport import TuntapTransport
from ._tuntap import AsyncTuntap

P = TypeVar("P", bound=asyncio.BaseProtocol)


class TuntapProtocol(asyncio.BaseProtocol):
    """Base class of the protocols that an endpoint calls. Override what you need: the methods here do nothing.

    A protocol may define ``frames_received(frames: list[bytes])``. It is then called instead of `frame_received`, with
    all frames that are available: up to 128, and with offloads perhaps the frames of one super-frame more. This is
    faster, and `TuntapTransport.write_frames` can then merge frames that are forwarded.

    If a method raises an exception, the loop's exception handler gets it, and the endpoint continues.
    """

    __slots__ = ()

    def connection_made(self, transport: TuntapTransport) -> None:  # type: ignore[override]
        """Called once, before all other methods.

        Args:
            transport: Reads and writes frames.
        """

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once, after all other methods. The interface is closed, and its name is free again.

        Args:
            exc: None after `TuntapTransport.close` and `TuntapTransport.abort`; DeviceGoneError if the interface or its
                namespace was deleted; QueueClosedError if the queue was closed, but not by the transport.
        """

    def frame_received(self, frame: bytes) -> None:
        """Called with each frame.

        Args:
            frame: A whole frame, with packet information or virtio_net_hdr if the interface was opened with them.
        """

    def error_received(self, exc: Exception) -> None:
        """Called when a frame could not be written. The frame is dropped.

        Args:
            exc: InvalidFrameError if the kernel refuses the frame or it is too large; LinkDownError if the interface is
                down, once for all frames of one call; OSError for other errors of the kernel, such as ENOBUFS.
        """

    def pause_writing(self) -> None:
        """Called when the write buffer exceeds its upper limit. Stop writing, or it grows without limit."""

    def resume_writing(self) -> None:
        """Called when the write buffer has shrunk to its lower limit again, after `pause_writing`."""


async def create_tuntap_endpoint(
    protocol_factory: Callable[[], P], name: str = "", *, queue: TuntapQueue | None = None, **options: Any
) -> tuple[TuntapTransport, P]:
    """Opens an interface and calls a protocol for each frame, like ``loop.create_datagram_endpoint`` does for a socket.

    ::

        transport, protocol = await create_tuntap_endpoint(Echo, "vpn0", mode="tun")
        await transport.get_extra_info("interface").configure(addresses=["10.0.0.1/24"], up=True)

    If it fails or is cancelled, no interface is left behind.

    Args:
        protocol_factory: Called without arguments when the interface is open. It returns a protocol, such as an instance
            of a subclass of `TuntapProtocol`.
        name: Name of the interface, as for `AsyncTuntap`.
        queue: An open queue that no task reads, instead of *name* and *options*. The transport closes this queue, but
            not the interface. So an interface with several queues can have a transport for each. The queue stays open
            if *protocol_factory* raises.
        options: Options of `AsyncTuntap`. ``mode`` is required, and ``queues`` must be 1.

    Returns:
        The transport and the protocol. `TuntapProtocol.connection_made` has been called.

    Raises:
        SetupError: The interface cannot be opened; see `AsyncTuntap.open`.
        ValueError: An argument has an invalid value. Nothing was opened.
        TypeError: An argument is missing or has the wrong type. Nothing was opened.
        QueueClosedError: *queue* is closed.
        RuntimeError: *queue* belongs to another thread or event loop, or already has a transport.
    """
    if queue is not None:
        interface = _owner_of(queue, name, options)
    else:
        if options.get("queues", 1) != 1:
            _raise_one_queue(options["queues"])
        interface = await AsyncTuntap(name, **options).open()
    transport: TuntapTransport | None = None
    try:
        protocol = protocol_factory()
        transport = TuntapTransport(interface, queue or interface.queues[0], protocol, owns_interface=queue is None)
        loop = asyncio.get_running_loop()
        made = loop.create_future()
        loop.call_soon(transport._tell, "connection_made", transport)
        loop.call_soon(transport._begin)
        loop.call_soon(set_done, made)
        await made
        if transport._ending is not None:  # closed in connection_made: connection_lost comes before this returns
            await asyncio.wait([transport._ending])
    except BaseException:
        if transport is not None:
            transport.abort()
            if transport._ending is not None:
                await outlast(transport._ending)
        elif queue is None:
            await interface.aclose()
        raise
    return transport, protocol


def _owner_of(queue: TuntapQueue, name: str, options: dict[str, Any]) -> AsyncTuntap:
    if not isinstance(queue, TuntapQueue):
        raise TypeError(f"queue must be a TuntapQueue, not {queue!r}")
    if name or options:
        given = ", ".join([repr(name)] * bool(name) + [f"{option}=" for option in options])
        raise ValueError(f"queue= takes an open queue, which has its name and options already: leave out {given}")
    queue._check_loop()
    if queue.closed:
        raise QueueClosedError(f"cannot make an endpoint of a closed queue: {queue!r}")
    if queue._receiver is not None:
        raise RuntimeError(f"{queue!r} already has a transport: a queue can have one")
    assert isinstance(queue._owner, AsyncTuntap)
    return queue._owner


def _raise_one_queue(queues: object) -> NoReturn:
    raise ValueError(
        f"queues must be 1 for an endpoint, not {queues!r}: for several queues, open an AsyncTuntap and make an endpoint"
        " for each of its queues with queue="
    )
