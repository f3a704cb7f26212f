"""A proxy of a broker. It recognises the kind and the client of each request.

A broker tells its clients to which address they must connect. If a broker told them only its own address, they would
bypass the proxy. Therefore the broker needs an additional listener, which it advertises under the proxy's port; see
``proxied_listener``. Clients that connect to the broker's first listener bypass the proxy.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum

from attrs import define, field

from tests.network import Link, Proxy, reset_socket

_LATE_ANSWER_S = 5.0  # how long to wait for the broker's response to a late request


class Api(IntEnum):
    """Kinds of requests, by their API key (https://kafka.apache.org/protocol)."""

    PRODUCE = 0
    OFFSET_COMMIT = 8
    JOIN_GROUP = 11
    SYNC_GROUP = 14
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


def api_of(request: bytes) -> int:
    """Return the API key of a request. The key follows the first four bytes, which contain the length."""
    return int.from_bytes(request[4:6])


def client_of(request: bytes) -> str:
    """Return the client id of a request, or an empty text if the request has none.

    The client id follows the length, API key, version and correlation id. It is preceded by its own length, or by
    -1 if the request has no client id.
    """
    length = int.from_bytes(request[12:14], signed=True)
    return request[14 : 14 + max(0, length)].decode(errors="replace")


def proxied_listener(proxy: Proxy, ports: Mapping[str, int]) -> dict[str, str]:
    """Return settings for a broker at ``ports`` with an additional listener, advertised under the port of ``proxy``."""
    own = f"PLAINTEXT://127.0.0.1:{ports['kafka']}"
    return {
        "listeners": f"{own},CONTROLLER://127.0.0.1:{ports['kafka-controller']},PROXIED://127.0.0.1:{proxy.target}",
        "advertised.listeners": f"{own},PROXIED://127.0.0.1:{proxy.port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
    }


@define(kw_only=True, eq=False)
class LateRequest:
    """A request that the broker receives later than requests that the same client sent after it.

    The proxy holds back the first request that ``picks`` accepts. It resets the connection to the client, so that the
    client continues on other connections. The connection to the broker stays open. Among the client's later requests,
    the proxy counts those that ``until`` accepts. It delivers the late request just before the counted request
    number ``overtaken``, but at the latest after ``at_most_s``. ``delivered`` is set when the broker
    has responded to the late request, or if the broker does not respond within a few seconds.
    """

    picks: Callable[[bytes], bool]
    until: Callable[[bytes], bool]
    overtaken: int = 1
    at_most_s: float = 30.0
    client: str | None = field(default=None, init=False)
    """The client id of the request that is held back. None if no request was held back yet."""
    answer: bytes = field(default=b"", init=False)
    """The broker's response to the late request."""
    delivered: threading.Event = field(factory=threading.Event, init=False)
    due: asyncio.Event = field(factory=asyncio.Event, init=False)
    done: asyncio.Event = field(factory=asyncio.Event, init=False)
    link: Link | None = field(default=None, init=False)
    request: bytes = field(default=b"", init=False)


class KafkaProxy(Proxy):
    """A proxy that names clients by their client id. RTFM's clients have the id ``rtfm-`` followed by the instance."""

    _late: LateRequest | None = None

    def make_late(self, request: LateRequest | None) -> None:
        """Hold back the next request that ``request`` picks. With None, hold back no further request."""
        self._on_loop(self._set(_late=request))

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """Read a whole request or response. Return nothing if the connection was closed."""
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
