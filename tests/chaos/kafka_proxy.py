"""A proxy before a broker that reads each request's boundaries, client and kind.

Clients go through it if the broker has a listener that is advertised under the proxy's port (``proxied_listener``);
tools that use the first listener bypass it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum

from attrs import define, field

from tests.network import Link, Proxy, reset_socket

_LATE_ANSWER_S = 5.0


class Api(IntEnum):
    """Kinds of requests (https://kafka.apache.org/protocol, API keys)."""

    PRODUCE = 0
    OFFSET_COMMIT = 8
    JOIN_GROUP = 11
    SYNC_GROUP = 14
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


def api_of(request: bytes) -> int:
    """Return the kind of a request: four bytes of length, then the API key."""
    return int.from_bytes(request[4:6])


def client_of(request: bytes) -> str:
    """Return the client id of a request.

    It follows length, API key, version and correlation id, after a length of its own, which is -1 for none.
    """
    length = int.from_bytes(request[12:14], signed=True)
    return request[14 : 14 + max(0, length)].decode(errors="replace")


def proxied_listener(proxy: Proxy, ports: Mapping[str, int]) -> dict[str, str]:
    """Return settings for a broker at ``ports``: an extra listener for ``proxy``, advertised under the proxy's port."""
    own = f"PLAINTEXT://127.0.0.1:{ports['kafka']}"
    return {
        "listeners": f"{own},CONTROLLER://127.0.0.1:{ports['kafka-controller']},PROXIED://127.0.0.1:{proxy.target}",
        "advertised.listeners": f"{own},PROXIED://127.0.0.1:{proxy.port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
    }


@define(kw_only=True, eq=False)
class LateRequest:
    """A request that the broker receives after later requests of the same client.

    The first request that ``picks`` accepts is held back. Its client's connection is reset, and the broker's stays
    open. The request is delivered before number ``overtaken`` of the requests that the client sends on other
    connections and ``until`` accepts, at the latest after ``at_most_s``. ``delivered`` is set when the broker has
    answered it.
    """

    picks: Callable[[bytes], bool]
    until: Callable[[bytes], bool]
    overtaken: int = 1
    at_most_s: float = 30.0
    client: str | None = field(default=None, init=False)
    """The client whose request is held back, once there is one."""
    answer: bytes = field(default=b"", init=False)
    """The broker's answer to the late request."""
    delivered: threading.Event = field(factory=threading.Event, init=False)
    due: asyncio.Event = field(factory=asyncio.Event, init=False)
    done: asyncio.Event = field(factory=asyncio.Event, init=False)
    link: Link | None = field(default=None, init=False)
    request: bytes = field(default=b"", init=False)


class KafkaProxy(Proxy):
    """Identifies clients by their client id, which is ``rtfm-`` and the instance for those of this project."""

    _late: LateRequest | None = None

    def make_late(self, request: LateRequest | None) -> None:
        """Hold back the next request that ``request`` picks; None stops that."""
        self._on_loop(self._set(_late=request))

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """Read a whole request or answer."""
        try:
            length = await reader.readexactly(4)
            return length + await reader.readexactly(int.from_bytes(length))
        except asyncio.IncompleteReadError:
            return b""

    def _name_of(self, first: bytes) -> str:
        return client_of(first)

    async def _pass_on(self, link: Link, way: str, piece: bytes, writer: asyncio.StreamWriter) -> None:
        if (late := self._late) is not None and way == "up":
            await self._keep_or_overtake(link, piece, writer, late)
        elif late is not None and link is late.link:
            if piece[4:8] == late.request[8:12]:  # the correlation id
                late.answer = piece
                late.done.set()
            return
        await super()._pass_on(link, way, piece, writer)

    async def _keep_or_overtake(
        self, link: Link, request: bytes, writer: asyncio.StreamWriter, late: LateRequest
    ) -> None:
        if late.link is None and late.picks(request):
            late.link, late.client, late.request = link, link.name, request
            reset_socket(link.client)
            try:
                with suppress(TimeoutError):
                    await asyncio.wait_for(late.due.wait(), late.at_most_s)
                await super()._pass_on(link, "up", request, writer)
                with suppress(TimeoutError):
                    await asyncio.wait_for(late.done.wait(), _LATE_ANSWER_S)
                late.delivered.set()
            finally:
                late.done.set()
            raise ConnectionResetError  # the client's connection was reset above
        if late.client == link.name and late.until(request):
            late.overtaken -= 1
            if late.overtaken == 0:
                late.due.set()
                await late.done.wait()
