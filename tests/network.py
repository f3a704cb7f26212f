"""A TCP proxy between a client and a server, with network faults that can be switched on and off.

The proxy keeps both sockets of every connection, so that it can treat a TCP stream like a network: delay it, slow it,
hold it back, and end the connection for one side or for both. The proxy cannot drop bytes, because TCP never shows a
gap to a program; a lost packet appears as the delay until its retransmission. The proxy also cannot leave a SYN
unanswered: a connection into a cut network is accepted and stays silent. As soon as the network works again, this
connection is reset.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self, TypeVar

from attrs import define, frozen

RETRANSMISSION_S = 0.2
"""The shortest time that TCP waits before it retransmits a packet (Linux: TCP_RTO_MIN)."""

_PIECE_BYTES = 65_536
_PIECES = 256  # the sender has to wait if the proxy keeps this many pieces of one direction
_LINGER_NONE = struct.pack("ii", 1, 0)  # closing sends RST

Answer = TypeVar("Answer")
Pieces = asyncio.Queue[tuple[float, bytes | None]]
"""(time when the piece is due, piece); an empty piece is the end of the stream, None a reset."""


@frozen(kw_only=True)
class Conditions:
    """The conditions of the network in one direction, for all connections of a proxy.

    ``loss`` is the share of pieces that arrive only after a retransmission.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float | None = None
    held: bool = False
    """While this is true, neither bytes nor the end of a connection pass."""


CLEAR = Conditions()
Clients = Callable[[str], bool]
"""A function that takes the name of a client, and says whether this client is selected."""


def _everybody(_: str) -> bool:
    return True


def _nobody(_: str) -> bool:
    return False


@define(kw_only=True, eq=False)
class Link:
    """A client's connection to the proxy, with the proxy's connection to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    name: str = ""
    abandoned: bool = False

    def reset(self) -> None:
        """Send RST to both ends."""
        reset_socket(self.client)
        reset_socket(self.server)

    def close(self) -> None:
        """Close both connections after sending the data that was written to them."""
        for writer in (self.client, self.server):
            if writer is not None:
                writer.close()


class Proxy:
    """A proxy that listens at ``port`` of 127.0.0.1 (0: any) and connects to the port ``target`` of the same host.

    The methods of a proxy may be called from any thread.
    """

    def __init__(self, target: int, *, port: int = 0, chance: random.Random | None = None) -> None:
        self.target, self.port = target, port
        self._random = chance or random.Random()
        self._conditions = {"up": CLEAR, "down": CLEAR}
        self._is_cut: Clients = _nobody
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._on_loop(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # Faults

    def set_conditions(self, *, up: Conditions = CLEAR, down: Conditions = CLEAR) -> None:
        """Set the conditions towards the server (``up``) and back (``down``)."""
        self._on_loop(self._set(_conditions={"up": up, "down": down}))

    def cut(self, clients: Clients = _everybody) -> None:
        """Block both directions for the clients that ``clients`` selects, without telling either end."""
        self._on_loop(self._set(_is_cut=clients))

    def abandon(self) -> None:
        """Leave the present connections open at both ends, but pass no more data; new connections work."""
        self._on_loop(self._each(lambda link: setattr(link, "abandoned", True)))

    def reset(self) -> None:
        """Send RST to both ends of all connections."""
        self._on_loop(self._each(Link.reset))

    def refuse(self) -> None:
        """Stop listening, and send RST to both ends of all connections."""
        self._on_loop(self._refuse())

    def heal(self) -> None:
        """Work without faults again.

        Held data is delivered, and abandoned connections stay dead.
        """
        self._on_loop(self._heal())

    @property
    def clients(self) -> list[str]:
        """Return the names of the connected clients."""
        return sorted(self._on_loop(self._each(lambda link: link.name)))

    # Methods that run in the loop's thread

    def _on_loop(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _set(self, **state: object) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _each(self, do: Callable[[Link], Answer]) -> list[Answer]:
        return [do(link) for link in list(self._links)]

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._each(Link.reset)

    async def _heal(self) -> None:
        await self._listen()
        await self._set(_conditions={"up": CLEAR, "down": CLEAR}, _is_cut=_nobody)

    async def _close(self) -> None:
        await self._refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        link = Link(client=client)
        self._links.add(link)
        try:
            if self._is_cut(link.name):
                await self._passage(link, "up")
                link.reset()
                return
            from_server, link.server = await asyncio.open_connection("127.0.0.1", self.target)
            async with asyncio.TaskGroup() as tasks:
                for way, reader, writer in (("up", from_client, link.server), ("down", from_server, client)):
                    # Each direction has two tasks, so that the next piece is read while a piece waits until it is due.
                    pieces: Pieces = asyncio.Queue(_PIECES)
                    tasks.create_task(self._take(link, way, reader, pieces))
                    tasks.create_task(self._give(link, way, pieces, writer))
        except* OSError:  # one end closed its connection
            link.reset()
        finally:
            self._links.discard(link)
            link.close()

    async def _take(self, link: Link, way: str, reader: asyncio.StreamReader, pieces: Pieces) -> None:
        due_s = 0.0
        piece: bytes | None = b" "
        while piece:
            try:
                piece = await self._read(reader)
            except OSError:
                piece = None
            if way == "up" and piece:
                link.name = link.name or self._name_of(piece)
            now = self._conditions[way]
            lost_s = RETRANSMISSION_S if self._random.random() < now.loss else 0.0
            delay_s = now.latency_s + self._random.uniform(0, now.jitter_s) + lost_s
            due_s = max(due_s, self._loop.time() + delay_s)  # no piece overtakes an earlier one
            await pieces.put((due_s, piece))

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """Return the next piece, which is empty at the end of the stream."""
        return await reader.read(_PIECE_BYTES)

    def _name_of(self, first: bytes) -> str:
        """Return no name; a subclass reads the client's name from the first piece of a connection."""
        return ""

    async def _give(self, link: Link, way: str, pieces: Pieces, writer: asyncio.StreamWriter) -> None:
        while True:
            due_s, piece = await pieces.get()
            await asyncio.sleep(due_s - self._loop.time())
            await self._passage(link, way)
            if piece is None:
                raise ConnectionResetError
            if not piece:
                writer.write_eof()
                return
            await self._pass_on(link, way, piece, writer)
            if (rate := self._conditions[way].bytes_per_s) is not None:
                await asyncio.sleep(len(piece) / rate)

    async def _pass_on(self, link: Link, way: str, piece: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(piece)
        await writer.drain()

    async def _passage(self, link: Link, way: str) -> None:
        """Wait until the connection may pass data."""
        while link.abandoned or self._conditions[way].held or self._is_cut(link.name):
            await self._changed.wait()


def reset_socket(writer: asyncio.StreamWriter | None) -> None:
    """Close the socket with RST, and discard unsent data."""
    if writer is not None and not writer.is_closing():
        with suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        writer.transport.abort()
