"""The Discord client: listens to the gateway and publishes messages and questions as events.

Messages, edits and deletions are published in the order in which Discord sends them. To keep this order, the client
awaits nothing between receiving a message, edit or deletion and publishing it. A question to the bot is published as a
query and not as a message. If a question were in the archive, a search for its answer would rank the question itself
above the answer.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, Protocol

import aiohttp
import discord
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from rtfm.bot import messages, triggers, visibility
from rtfm.bot.replies import EMPTY_QUESTION
from rtfm.discord_ids import created_at
from rtfm.events import (
    Audience,
    BotQuery,
    ContextMessage,
    DiscordMessage,
    MessageChange,
    QueryOrigin,
    Speaker,
    TimestampMillis,
)
from rtfm.names import MESSAGES, QUERIES
from rtfm.telemetry import IGNORED_EVENTS, get_logger

log = get_logger(__name__)

_DISCORD_API = Route.BASE
_DISCORD_GATEWAY = DiscordWebSocket.DEFAULT_GATEWAY
discord.VoiceClient.warn_nacl = discord.VoiceClient.warn_dave = False  # the bot does not use voice
_ASK_IN_A_CHANNEL = "Please ask me in a channel of the server that you mean."


class _ShortReconnectLogs(logging.Filter):
    """Shortens discord.py's traceback of a lost connection to a one-line warning.

    A warning is enough because discord.py reconnects by itself. With debug logs, the traceback stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.msg.startswith("Attempting a reconnect") and not _is_debugging():
            error = record.exc_info[1]
            reason = str(error).partition("\n")[0]
            record.msg, record.args = f"{record.getMessage()} ({type(error).__name__}: {reason})", None
            record.exc_info = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


_SHORT_RECONNECT_LOGS = _ShortReconnectLogs()


def _is_debugging() -> bool:
    return logging.getLogger(__name__).isEnabledFor(logging.DEBUG)


class Publish(Protocol):
    """A function that accepts an event for a topic without blocking. It returns False if it dropped the event."""

    def __call__(self, topic: str, event: DiscordMessage | BotQuery) -> bool:
        """Publish ``event``, or drop it."""
        ...


class RtfmClient(discord.Client):
    """A gateway client that publishes messages, edits, deletions and questions."""

    def __init__(
        self,
        publish: Publish,
        *,
        query_expiry_s: float,
        api: str | None = None,
        gateway: str | None = None,
    ) -> None:
        """Create a client of Discord, or of a compatible server at the addresses ``api`` and ``gateway``.

        The addresses apply to the whole process, because discord.py keeps them in class attributes. If only ``api`` is
        given, the client asks that server for the address of its gateway. A question expires ``query_expiry_s`` seconds
        after it was asked.
        """
        super().__init__(
            intents=discord.Intents(guilds=True, guild_messages=True, dm_messages=True, message_content=True),
            allowed_mentions=discord.AllowedMentions.none(),
            max_messages=None,
            chunk_guilds_at_startup=False,
            member_cache_flags=discord.MemberCacheFlags.none(),
        )
        logging.getLogger("discord.client").addFilter(_SHORT_RECONNECT_LOGS)
        Route.BASE = api or _DISCORD_API
        DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(gateway) if gateway else _DISCORD_GATEWAY
        self._looks_up_gateway = api is not None and gateway is None
        self._publish = publish
        self._query_expiry_ms = int(query_expiry_s * 1000)
        self._connected = False

    def not_ready_reason(self) -> str | None:
        """Return why the bot is not ready, or None while the gateway is connected."""
        return None if self._connected else "not connected to Discord's gateway"

    async def setup_hook(self) -> None:
        """Ask the server for the address of its gateway if only the address of its API was given."""
        if self._looks_up_gateway:
            _, address, _ = await self.http.get_bot_gateway()
            DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(address)

    async def on_connect(self) -> None:
        """Note that a new session with the gateway began."""
        self._connected = True
        log.info("connected to Discord", bot_id=self._own_id())

    async def on_resumed(self) -> None:
        """Note that the session was resumed and the gateway has sent the missed events."""
        self._connected = True
        log.info("resumed the session with Discord")

    async def on_disconnect(self) -> None:
        """Note that the connection was lost. discord.py reconnects by itself."""
        if self._connected and not self.is_closed():
            log.warning("disconnected from Discord, reconnecting")
        self._connected = False

    async def on_message(self, message: discord.Message) -> None:
        """Publish a new message. If it is a question to the bot, publish it as a query instead."""
        if not messages.is_from_person(message):
            return
        question = self._find_question(message)
        if question is None:
            self._publish_message(message, MessageChange.CREATED)
        elif message.guild is None:
            await self._ask_directly(message, question)
        else:
            await self._ask_in_channel(message, question)

    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        """Publish a person's edit of a message.

        Discord also sends an update when it adds the preview of a link. Such an update is not published. An edited
        message that is a question to the bot is not published either.
        """
        message = payload.message
        if message.edited_at is not None and self._find_question(message) is None:
            self._publish_message(message, MessageChange.EDITED)

    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        """Publish a deletion."""
        self._publish_deletions([payload.message_id], payload.channel_id, payload.guild_id)

    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        """Publish one deletion for each of several messages that were deleted at once."""
        self._publish_deletions(sorted(payload.message_ids), payload.channel_id, payload.guild_id)

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:
        """Log that a method for an event of Discord failed.

        The event contains what people wrote, so it is not logged.
        """
        error = sys.exc_info()[1]
        log.error("handling an event from Discord failed", handler=event_method, error=f"{type(error).__name__}")
        log.debug("traceback", exc_info=True)

    def _publish_message(self, message: discord.Message, change: MessageChange) -> None:
        event = messages.to_message_event(message, change)
        if event is None:
            IGNORED_EVENTS.labels(MESSAGES, "not_listened_to").inc()
        else:
            self._publish(MESSAGES, event)

    def _publish_deletions(self, message_ids: list[int], channel_id: int, guild_id: int | None) -> None:
        if guild_id is None:
            return
        guild = self.get_guild(guild_id)
        channel = guild.get_channel_or_thread(channel_id) if guild else None
        for message_id in message_ids:
            self._publish(MESSAGES, messages.to_deletion_event(message_id, channel_id, guild_id, channel))

    def _find_question(self, message: discord.Message) -> triggers.FoundQuestion | None:
        role = message.guild.self_role if message.guild else None
        return triggers.find_question(
            triggers.IncomingMessage(
                content=message.content,
                bot_id=str(self._own_id()),
                bot_role_ids=(str(role.id),) if role else (),
                replies_to_bot=self._find_replied_message(message) is not None,
                direct=message.guild is None,
            )
        )

    def _find_replied_message(self, message: discord.Message) -> discord.Message | None:
        """Return the message of the bot to which ``message`` replies, or None."""
        resolved = message.reference.resolved if message.reference else None
        if isinstance(resolved, discord.Message) and resolved.author.id == self._own_id():
            return resolved
        return None

    def _own_id(self) -> int:
        return self.user.id if self.user else 0

    async def _ask_in_channel(self, message: discord.Message, question: triggers.FoundQuestion) -> None:
        channel = message.channel
        if not isinstance(channel, discord.TextChannel | discord.Thread):
            IGNORED_EVENTS.labels(QUERIES, "not_listened_to").inc()
        elif not question.text:
            await message.reply(EMPTY_QUESTION, mention_author=False)
        else:
            self._publish_query(
                message, question, channel.guild.id, Audience.PUBLIC, visibility.channels_visible_to_readers(channel)
            )
            with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
                await channel.typing()

    async def _ask_directly(self, message: discord.Message, question: triggers.FoundQuestion) -> None:
        guild = await self._find_only_guild(message.author)
        if guild is None or not question.text:
            await message.channel.send(_ASK_IN_A_CHANNEL if guild is None else EMPTY_QUESTION)
        else:
            self._publish_query(
                message, question, guild.id, Audience.ASKER, visibility.channels_visible_to_everyone(guild)
            )

    async def _find_only_guild(self, person: discord.abc.User) -> discord.Guild | None:
        """Return the guild about which ``person`` asks in a direct message, or None if that is unclear.

        The guild is clear only if the bot is in exactly one guild and ``person`` is a member of this guild. People who
        left a guild can no longer read its messages and must not get them from the bot.
        """
        if len(self.guilds) != 1:
            return None
        try:
            await self.guilds[0].fetch_member(person.id)
        except (discord.NotFound, discord.Forbidden):
            return None
        return self.guilds[0]

    def _publish_query(
        self,
        message: discord.Message,
        question: triggers.FoundQuestion,
        guild_id: int,
        audience: Audience,
        visible_channel_ids: list[str],
    ) -> None:
        asked_at = created_at(message.id)
        replied = self._find_replied_message(message)
        self._publish(
            QUERIES,
            BotQuery(
                query_id=f"m{message.id}",
                guild_id=str(guild_id),
                channel_id=str(message.channel.id),
                message_id=str(message.id),
                asker_id=str(message.author.id),
                question=question.text,
                asked_at=asked_at,
                expires_at=TimestampMillis(asked_at + self._query_expiry_ms),
                audience=audience,
                visible_channel_ids=visible_channel_ids,
                context=[ContextMessage(speaker=Speaker.BOT, content=replied.content, message_id=str(replied.id))]
                if replied
                else [],
                origin=question.origin if message.guild else QueryOrigin.DIRECT,
            ),
        )
