"""The gateway of the fake Discord. Clients open sessions (identify), and resume them after a lost connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web
from attrs import define, field

from tests.fakes.discord.world import FakeGuild, FakePerson, Payload, new_id

DISPATCH, HEARTBEAT, IDENTIFY, RESUME, RECONNECT, INVALID_SESSION, HELLO, HEARTBEAT_ACK = 0, 1, 2, 6, 7, 9, 10, 11
AUTHENTICATION_FAILED = 4004
DISALLOWED_INTENTS = 4014
MESSAGE_CONTENT = 1 << 15


@define(eq=False)
class Session:
    """The session of one client. It keeps all events, so that a client that resumes gets those that it missed."""

    intents: int
    id: str = field(factory=new_id)
    sent: list[Payload] = field(factory=list)
    socket: web.WebSocketResponse | None = None

    async def dispatch(self, event: str, data: Payload) -> None:
        """Send an event. If the client is not connected, it gets the event when it resumes the session."""
        frame = {"op": DISPATCH, "t": event, "s": len(self.sent) + 1, "d": data}
        self.sent.append(frame)
        if self.socket is not None and not self.socket.closed:
            await self.socket.send_str(json.dumps(frame))


@define(eq=False)
class Gateway:
    """Accepts connections and sends events to all sessions."""

    token: str
    bot: FakePerson
    guilds: list[FakeGuild]
    address: Callable[[], str]
    allows_message_content: bool = True
    refuses_with: int | None = None
    away: bool = False
    heartbeats: int = 0
    identified: int = 0
    resumed: int = 0
    sessions: dict[str, Session] = field(factory=dict)

    async def broadcast(self, event: str, data: Payload) -> None:
        """Send an event to every session."""
        for session in list(self.sessions.values()):
            hidden = {} if session.intents & MESSAGE_CONTENT or "content" not in data else {"content": ""}
            await session.dispatch(event, data | hidden)

    async def close(self, code: int) -> None:
        """Close every connection with ``code``. The sessions stay, so clients can resume them."""
        for session in list(self.sessions.values()):
            if session.socket is not None:
                await session.socket.close(code=code)

    async def ask_to_reconnect(self) -> None:
        """Tell every client to connect again and resume its session."""
        for session in list(self.sessions.values()):
            if session.socket is not None and not session.socket.closed:
                await session.socket.send_str(json.dumps({"op": RECONNECT, "d": None}))

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one connection of a client until it is closed."""
        if self.away:
            raise web.HTTPServiceUnavailable
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(json.dumps({"op": HELLO, "d": {"heartbeat_interval": 5_000}}))
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            frame = json.loads(message.data)
            match frame["op"]:
                case 1:
                    self.heartbeats += 1
                    await socket.send_str(json.dumps({"op": HEARTBEAT_ACK}))
                case 2:
                    await self._identify(socket, frame["d"])
                case 6:
                    await self._resume(socket, frame["d"])
        return socket

    async def _identify(self, socket: web.WebSocketResponse, data: dict[str, Any]) -> None:
        if self.refuses_with is not None or data["token"] != self.token:
            await socket.close(code=self.refuses_with or AUTHENTICATION_FAILED)
            return
        if data["intents"] & MESSAGE_CONTENT and not self.allows_message_content:
            await socket.close(code=DISALLOWED_INTENTS)
            return
        self.identified += 1
        session = Session(intents=data["intents"], socket=socket)
        self.sessions[session.id] = session
        await session.dispatch(
            "READY",
            {
                "v": 10,
                "user": self.bot.payload(),
                "guilds": [{"id": guild.id, "unavailable": True} for guild in self.guilds],
                "session_id": session.id,
                "resume_gateway_url": self.address(),
                "application": {"id": self.bot.id, "flags": 0},
            },
        )
        for guild in self.guilds:
            await session.dispatch("GUILD_CREATE", guild.payload())

    async def _resume(self, socket: web.WebSocketResponse, data: dict[str, Any]) -> None:
        session = self.sessions.get(data["session_id"] or "")
        if session is None or data["token"] != self.token:
            await socket.send_str(json.dumps({"op": INVALID_SESSION, "d": False}))
            return
        self.resumed += 1
        session.socket = socket
        for frame in session.sent[data["seq"] or 0 :]:
            await socket.send_str(json.dumps(frame))
        await session.dispatch("RESUMED", {})
