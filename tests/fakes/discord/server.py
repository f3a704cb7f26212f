"""The server of the fake Discord: the REST API, the gateway, and the methods that tests call.

The server runs in its own thread with its own event loop. If a method for tests sends something, it does so on this
event loop and waits for the result.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import web
from attrs import define

from tests.fakes.discord.gateway import Gateway
from tests.fakes.discord.world import ChannelType, FakeChannel, FakeGuild, FakeMessage, FakePerson, Payload

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_ROOT = "/api/v10"
_NEVER = -1  # as a status: the request never gets a response


@define
class Fault:
    """A failure of the next ``times`` requests of ``method`` to ``path``.

    These requests get ``status`` and ``body``. Status 0 closes the connection instead. With ``after_doing_it``, a
    request takes effect before it fails.
    """

    method: str
    path: re.Pattern[str]
    status: int
    times: int
    after_doing_it: bool
    body: Payload


def _json(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    # discord.py parses a body as JSON only if the content type is exactly "application/json", without a charset.
    return web.Response(body=json.dumps(body).encode(), status=status, headers=headers, content_type="application/json")


class FakeDiscord:
    """A fake Discord that listens on a loopback port while it is entered as a context manager."""

    def __init__(self) -> None:
        self.token = "made-up-token"
        self.bot = FakePerson("rtfm", bot=True)
        self.requests: list[tuple[str, str]] = []
        self._guilds: list[FakeGuild] = []
        self._channels: dict[str, FakeChannel] = {}
        self._nonces: dict[tuple[str, str], FakeMessage] = {}
        self._faults: list[Fault] = []
        self._gateway = Gateway(self.token, self.bot, self._guilds, lambda: self.gateway)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-discord", daemon=True)
        self._runner: web.AppRunner | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._runner is not None:
            self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def api(self) -> str:
        """The address of the REST API, for RTFM_DISCORD_API."""
        return f"http://127.0.0.1:{self._port}{_ROOT}"

    @property
    def gateway(self) -> str:
        """The address of the gateway, for RTFM_DISCORD_GATEWAY."""
        return f"ws://127.0.0.1:{self._port}/gateway"

    # The world

    def guild(self, name: str = "penguins", **values: Any) -> FakeGuild:
        """Create a guild. Call this before the bot connects."""
        guild = FakeGuild(name=name, **values)
        self._guilds.append(guild)
        return guild

    def person(self, name: str, *guilds: FakeGuild, bot: bool = False) -> FakePerson:
        """Create a person who is a member of ``guilds``."""
        person = FakePerson(name, bot=bot)
        for guild in guilds:
            guild.members.append(person)
        return person

    def direct_channel(self, person: FakePerson) -> FakeChannel:
        """Return the direct channel between the bot and ``person``, and create it if necessary."""
        for channel in self._channels.values():
            if channel.recipient is person:
                return channel
        channel = FakeChannel(name="", type=ChannelType.DIRECT, recipient=person)
        self._channels[channel.id] = channel
        return channel

    # Actions of people

    def says(
        self,
        channel: FakeChannel,
        author: FakePerson,
        content: str,
        *,
        reply_to: FakeMessage | None = None,
        mentions: tuple[FakePerson, ...] = (),
        attachments: tuple[Payload, ...] = (),
        webhook: bool = False,
        message_type: int | None = None,
        announce: bool = True,
    ) -> FakeMessage:
        """Post a message of ``author``. Without ``announce``, the gateway does not report it to the bot."""
        message = FakeMessage(
            channel=channel,
            author=author,
            content=content,
            reply_to=reply_to,
            mentions=list(mentions),
            attachments=list(attachments),
            webhook=webhook,
            type=message_type if message_type is not None else 19 if reply_to else 0,
        )
        self._do(self._say(message, announce=announce))
        return message

    def edits(self, message: FakeMessage, content: str) -> None:
        """Edit a message: change its content and report the edit."""
        message.content = content
        message.edited_timestamp = "2026-01-02T03:04:05.678000+00:00"
        self._do(self._gateway.broadcast("MESSAGE_UPDATE", message.event()))

    def unfurls(self, message: FakeMessage) -> None:
        """Send an update of a message that nobody edited, like Discord when it adds a link's preview."""
        self._do(self._gateway.broadcast("MESSAGE_UPDATE", message.event()))

    def deletes(self, *messages: FakeMessage) -> None:
        """Delete messages of one channel. Several messages are reported as one bulk deletion."""
        channel = messages[0].channel
        place = {"channel_id": channel.id} | ({"guild_id": channel.guild.id} if channel.guild else {})
        for message in messages:
            channel.messages.remove(message)
        if len(messages) == 1:
            event, ids = "MESSAGE_DELETE", {"id": messages[0].id}
            self._do(self._gateway.broadcast(event, place | ids))
        else:
            self._do(
                self._gateway.broadcast("MESSAGE_DELETE_BULK", place | {"ids": [message.id for message in messages]})
            )

    # Faults

    def fails(
        self,
        method: str,
        path: str,
        status: int,
        *,
        times: int = 1,
        after_doing_it: bool = False,
        retry_after_s: float = 0.05,
        code: int = 0,
    ) -> None:
        """Fail the next ``times`` requests of ``method`` to a path that ends in the pattern ``path``, with ``status``.

        Status 0 closes the connection without a response. With ``after_doing_it``, the request takes effect before it
        fails, so the client does not know whether it took effect.
        """
        body = {"code": code, "message": "made to fail", "retry_after": retry_after_s, "global": False}
        self._faults.append(Fault(method, re.compile(rf".*{path}$"), status, times, after_doing_it, body))

    def stalls(self, method: str, path: str) -> None:
        """Carry out the next request of ``method`` to a path that ends in the pattern ``path``, but never respond."""
        self._faults.append(Fault(method, re.compile(rf".*{path}$"), _NEVER, 1, True, {}))

    def heals(self) -> None:
        """Remove all faults of the REST API."""
        self._faults.clear()

    def forgets_nonces(self) -> None:
        """Forget all nonces, as Discord does after a few minutes."""
        self._nonces.clear()

    def refuses_message_content(self) -> None:
        """Turn off the bot's Message Content Intent, so that the gateway refuses clients that request it."""
        self._gateway.allows_message_content = False

    def closes_gateway(self, code: int) -> None:
        """Close every connection to the gateway with ``code``."""
        self._do(self._gateway.close(code))

    def loses_gateway(self) -> None:
        """Close every connection to the gateway, forget all sessions and refuse new connections. REST still works."""
        self._gateway.away = True
        self.closes_gateway(1001)
        self.forgets_sessions()

    def regains_gateway(self) -> None:
        """Accept connections to the gateway again."""
        self._gateway.away = False

    def closes_every_gateway(self, code: int) -> None:
        """From now on, close each connection to the gateway with ``code`` when its client identifies."""
        self._gateway.refuses_with = code

    def asks_to_reconnect(self) -> None:
        """Send a RECONNECT to every client."""
        self._do(self._gateway.ask_to_reconnect())

    def forgets_sessions(self) -> None:
        """Forget all sessions of the gateway, so that clients cannot resume them."""
        self._gateway.sessions.clear()

    # Actions of the bot

    @property
    def identified(self) -> int:
        """How many sessions clients have opened (identify)."""
        return self._gateway.identified

    @property
    def resumed(self) -> int:
        """How many times clients have resumed a session."""
        return self._gateway.resumed

    def posted_in(self, channel: FakeChannel) -> list[FakeMessage]:
        """Return the bot's messages in a channel, in order."""
        return [message for message in list(channel.messages) if message.author is self.bot]

    def replies_to(self, message: FakeMessage) -> list[FakeMessage]:
        """Return the bot's messages that reply to ``message``, in order."""
        return [
            posted
            for posted in self.posted_in(message.channel)
            if posted.sent.get("message_reference", {}).get("message_id") == message.id
        ]

    def count(self, method: str, path: str) -> int:
        """Return how many requests used ``method`` and had a path that ends in the pattern ``path``."""
        return sum(1 for done, where in self.requests if done == method and re.fullmatch(rf".*{path}", where))

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait until ``condition`` is true. Raises AssertionError with the text ``what`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"after {timeout_s} s: {what}"
            time.sleep(0.02)

    # The server

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _open(self) -> None:
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/gateway", self._gateway.serve),
                web.get("/gateway/", self._gateway.serve),
                web.get(f"{_ROOT}/gateway/bot", self._get_gateway),
                web.get(f"{_ROOT}/users/@me", self._get_me),
                web.get(f"{_ROOT}/oauth2/applications/@me", self._get_application),
                web.post(f"{_ROOT}/users/@me/channels", self._make_direct_channel),
                web.get(f"{_ROOT}/guilds/{{guild}}/members/{{person}}", self._get_member),
                web.get(f"{_ROOT}/channels/{{channel}}", self._get_channel),
                web.get(f"{_ROOT}/channels/{{channel}}/messages", self._get_messages),
                web.post(f"{_ROOT}/channels/{{channel}}/messages", self._post_message),
                web.post(f"{_ROOT}/channels/{{channel}}/typing", self._type),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/gateway"):
            return await handler(request)
        self.requests.append((request.method, request.path))
        if request.headers.get("Authorization") != f"Bot {self.token}":
            return _json({"code": 0, "message": "401: Unauthorized"}, status=401)
        for fault in self._faults:
            if fault.method == request.method and fault.path.match(request.path):
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
                if fault.after_doing_it:
                    await handler(request)
                if fault.status == _NEVER:
                    await asyncio.Event().wait()
                if fault.status == 0:
                    assert request.transport is not None
                    request.transport.close()
                # discord.py treats a 429 without the header Via as a Cloudflare ban.
                return _json(fault.body, status=fault.status or 500, headers={"Via": "1.1 fake"})
        return await handler(request)

    async def _say(self, message: FakeMessage, *, announce: bool = True) -> None:
        message.channel.messages.append(message)
        if announce:
            await self._gateway.broadcast("MESSAGE_CREATE", message.event())

    def _channel(self, request: web.Request) -> FakeChannel:
        wanted = request.match_info["channel"]
        known = [channel for guild in self._guilds for channel in guild.channels] + list(self._channels.values())
        for channel in known:
            if channel.id == wanted:
                return channel
        raise web.HTTPNotFound(text='{"code": 10003, "message": "Unknown Channel"}', content_type="application/json")

    async def _get_gateway(self, request: web.Request) -> web.Response:
        limit = {"total": 1000, "remaining": 1000, "reset_after": 0, "max_concurrency": 1}
        return _json({"url": self.gateway, "shards": 1, "session_start_limit": limit})

    async def _get_me(self, request: web.Request) -> web.Response:
        return _json(self.bot.payload())

    async def _get_application(self, request: web.Request) -> web.Response:
        owner = FakePerson("keeper").payload()
        values = {"id": self.bot.id, "name": "rtfm", "description": "", "icon": None, "verify_key": "", "owner": owner}
        return _json(values | {"bot_public": True, "bot_require_code_grant": False, "flags": 0})

    async def _make_direct_channel(self, request: web.Request) -> web.Response:
        wanted = str((await request.json())["recipient_id"])
        for person in (person for guild in self._guilds for person in guild.members):
            if person.id == wanted:
                return _json(self.direct_channel(person).payload())
        return _json({"code": 50033, "message": "Invalid Recipient(s)"}, status=400)

    async def _get_member(self, request: web.Request) -> web.Response:
        for guild in self._guilds:
            for person in guild.members:
                if (guild.id, person.id) == (request.match_info["guild"], request.match_info["person"]):
                    joined = {"roles": [], "joined_at": "2020-01-01T00:00:00+00:00", "deaf": False, "mute": False}
                    return _json({"user": person.payload(), "flags": 0} | joined)
        return _json({"code": 10007, "message": "Unknown Member"}, status=404)

    async def _get_channel(self, request: web.Request) -> web.Response:
        return _json(self._channel(request).payload())

    async def _get_messages(self, request: web.Request) -> web.Response:
        messages = self._channel(request).messages
        limit = int(request.query.get("limit", 50))
        if after := request.query.get("after"):
            found = sorted((m for m in messages if int(m.id) > int(after)), key=lambda m: int(m.id))[:limit]
        else:
            before = int(request.query.get("before", 1 << 63))
            found = sorted((m for m in messages if int(m.id) < before), key=lambda m: int(m.id))[-limit:]
        return _json([message.payload() for message in reversed(found)])

    async def _post_message(self, request: web.Request) -> web.Response:
        channel, body = self._channel(request), await request.json()
        if not 0 < len(body.get("content", "").strip()) <= 2000:
            return _json({"code": 50035, "message": "Invalid Form Body"}, status=400)
        key = (channel.id, str(body.get("nonce")))
        if body.get("enforce_nonce") and key in self._nonces:
            return _json(self._nonces[key].payload())
        reference = body.get("message_reference")
        reply_to = next((m for m in channel.messages if reference and m.id == str(reference["message_id"])), None)
        if reference and reply_to is None and reference.get("fail_if_not_exists", True):
            return _json({"code": 50035, "message": "Unknown message"}, status=400)
        if reference:
            reference["message_id"] = str(reference["message_id"])
        message = FakeMessage(
            channel=channel,
            author=self.bot,
            content=body["content"].strip(),
            type=19 if reply_to else 0,
            reply_to=reply_to,
            sent=body,
        )
        self._nonces[key] = message
        await self._say(message)
        return _json(message.payload() | {"nonce": body.get("nonce")})

    async def _type(self, request: web.Request) -> web.Response:
        self._channel(request)
        return web.Response(status=204)
