"""From a ``BotResponse`` to one reply on Discord.

Promises one reply per question as long as the channel's history can be read: each part has a nonce that Discord
checks for some minutes, and after that the channel is searched for the parts that are already there. What is meant
for the asker alone goes out by direct message, never where others read. The caller commits after ``deliver`` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import cast

import aiohttp
import attrs
import discord

from rtfm.bot import messages, replies, visibility
from rtfm.errors import InvalidEvent, Unavailable
from rtfm.events import Audience, BotResponse, Outcome, TimestampMillis
from rtfm.telemetry import IGNORED_EVENTS, RESPONSES_DELIVERED, get_logger

log = get_logger(__name__)

CONSOLE = "c"  # query ids of the command line begin with it
# Discord promises to know a nonce for "the past few minutes"; within this, a second send cannot make a second reply.
NONCE_HOLDS_MS = 60_000
_SEARCHED_MESSAGES = 1_000
_TIMEOUT_S = 15.0  # less than the grace of a shutdown, which waits for replies under way
_CLOCK_SKEW_MS = 60_000


class ReplyDelivery:
    """Posts answers through a client that is logged in."""

    def __init__(self, client: discord.Client, *, clock_ms: Callable[[], TimestampMillis]) -> None:
        self._client = client
        self._clock_ms = clock_ms

    async def deliver(self, response: BotResponse) -> None:
        """Post ``response`` where it belongs, or count why not.

        Raises Unavailable when Discord does not take it now, and InvalidEvent when it never will.
        """
        if response.query_id.startswith(CONSOLE):
            RESPONSES_DELIVERED.labels("console").inc()
            return
        if response.outcome is Outcome.UNKNOWN:
            IGNORED_EVENTS.labels("bot-responses", "unknown_outcome").inc()
            return
        _check_ids(response)
        try:
            async with _discord_errors(response), asyncio.timeout(_TIMEOUT_S):
                result = await self._post(response)
        except (discord.Forbidden, discord.NotFound) as exc:
            result = "forbidden" if isinstance(exc, discord.Forbidden) else "gone"
            log.warning("a reply could not be posted", result=result, query_id=response.query_id, code=exc.code)
        RESPONSES_DELIVERED.labels(result).inc()

    async def _post(self, response: BotResponse) -> str:
        guild = self._client.get_guild(int(response.guild_id)) if response.guild_id else None
        if response.guild_id and guild is None:
            return "gone"
        if guild is not None and guild.unavailable:
            raise Unavailable("Discord", f"guild {guild.id} is not available on Discord now")
        citations = await visibility.as_discord_has_them(guild, response.citations)
        response = attrs.evolve(response, citations=citations)
        if response.audience is Audience.PUBLIC:
            channel = (guild and guild.get_channel_or_thread(int(response.channel_id))) or (
                await self._client.fetch_channel(int(response.channel_id))
            )
            if not isinstance(channel, discord.TextChannel | discord.Thread):
                return "gone"
            visible = visibility.visible_to_readers_of(channel)
            return await self._send(response, channel, visible)
        # UNKNOWN counts as ASKER.
        asker = await self._client.create_dm(discord.Object(int(response.asker_id)))
        return await self._send(response, asker, visibility.visible_to_all(guild) if guild else [])

    async def _send(
        self,
        response: BotResponse,
        channel: discord.TextChannel | discord.Thread | discord.DMChannel,
        visible: list[str],
    ) -> str:
        if visibility.may_show(response.citations, response.retrieved, visible):
            parts, result = replies.compose(response), "posted"
        else:
            parts, result = [replies.NO_LONGER_SHOWN], "withheld"
        reference = self._reference(response, channel)
        done = await self._parts_already_there(response, channel, reference, parts)
        if done >= len(parts):
            return "already_there"
        for number, part in enumerate(parts[done:], start=done):
            await channel.send(
                part,
                nonce=replies.nonce(response.query_id, number),
                allowed_mentions=discord.AllowedMentions.none(),
                suppress_embeds=True,
                reference=cast("discord.MessageReference", reference),  # None is taken, but not in its overloads
            )
        return result

    def _reference(self, response: BotResponse, channel: discord.abc.Snowflake) -> discord.MessageReference | None:
        if response.query_message_id is None or str(channel.id) != response.channel_id:
            return None
        return discord.MessageReference(
            message_id=int(response.query_message_id), channel_id=channel.id, fail_if_not_exists=False
        )

    async def _parts_already_there(
        self,
        response: BotResponse,
        channel: discord.TextChannel | discord.Thread | discord.DMChannel,
        reference: discord.MessageReference | None,
        parts: list[str],
    ) -> int:
        """How many parts an earlier delivery has posted, when that can be longer ago than Discord knows nonces."""
        if self._clock_ms() - response.answered_at < NONCE_HOLDS_MS:
            return 0
        after = messages.snowflake_at(TimestampMillis(response.answered_at - _CLOCK_SKEW_MS))
        own_id = self._client.user.id if self._client.user else 0
        found = 0
        try:
            async for message in channel.history(
                limit=_SEARCHED_MESSAGES, after=discord.Object(after), oldest_first=True
            ):
                if message.author.id == own_id and _is_part(message, reference, parts[found]):
                    found += 1
                if found == len(parts):
                    break
        except discord.Forbidden:
            log.warning("an earlier reply cannot be looked for without the right to read history", channel=channel.id)
        return found


def _check_ids(response: BotResponse) -> None:
    ids = (response.guild_id or "0", response.channel_id, response.query_message_id or "0", response.asker_id)
    if not all(value.isascii() and value.isdigit() for value in ids):
        raise InvalidEvent(f"the response to {response.query_id} names a place or person by what is no Discord id")


def _is_part(message: discord.Message, reference: discord.MessageReference | None, part: str) -> bool:
    if reference is None:
        return message.content.strip() == part.strip()
    return message.reference is not None and message.reference.message_id == reference.message_id


@contextlib.asynccontextmanager
async def _discord_errors(response: BotResponse) -> AsyncIterator[None]:
    """Discord's errors as ours, but for 403 and 404, which are answers."""
    try:
        yield
    except (discord.Forbidden, discord.NotFound):
        raise
    except (discord.DiscordServerError, discord.RateLimited, aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise Unavailable("Discord", f"Discord does not answer: {type(exc).__name__}") from exc
    except discord.HTTPException as exc:
        if exc.status in (401, 429):
            raise Unavailable("Discord", f"Discord refuses requests now: {exc.status}") from exc
        raise InvalidEvent(f"Discord refused the reply to {response.query_id}: {exc.status}, code {exc.code}") from exc
