"""Posts a ``BotResponse`` as one reply on Discord. A long reply has several parts.

A response is posted only if it matches an open question of this bot in the archive. All other responses are counted and
skipped. A response that only the asker may read is sent by direct message. Before each part of an answer is posted, the
archive is asked whether a message that the answer uses was removed.

A question gets one reply, even if its response is delivered again after a crash:

- Each posted part is recorded in the archive, and the question is closed after the last part.
- Each part has a nonce. For some minutes, Discord does not post a second part with the same nonce.
- After these minutes, the channel's history is searched for parts that were posted. If the bot lacks the permission to
  read the history, a part can be posted twice.

The caller must commit the response after ``deliver`` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import aiohttp
import attrs
import discord

from rtfm.bot import replies, visibility
from rtfm.bot.client import RtfmClient
from rtfm.discord_ids import snowflake_at
from rtfm.errors import InvalidEvent, Unavailable
from rtfm.events import Audience, BotResponse, Outcome, TimestampMillis
from rtfm.knowledge.archive import OpenQuestion, SqlArchive, source_message_ids
from rtfm.names import RESPONSES
from rtfm.telemetry import IGNORED_EVENTS, RESPONSES_DELIVERED, get_logger

log = get_logger(__name__)

NONCE_VALID_MS = 60_000
"""Discord is trusted to drop a repeated part for this many milliseconds. It checks nonces of "the past few minutes"."""

_MAX_SEARCHED_MESSAGES = 1_000
_TIMEOUT_S = 15.0  # for a whole reply; less than the time for which a shutdown waits for unfinished replies
_CLOCK_SKEW_MS = 60_000
_OUTCOMES_WITH_ANSWER = (Outcome.ANSWERED, Outcome.EXTRACTED)


class _ReplyRefused(Exception):
    """Discord rejected the reply and would reject it again."""


class ReplyDelivery:
    """Posts responses through a client that is logged in."""

    def __init__(self, client: RtfmClient, archive: SqlArchive, *, clock_ms: Callable[[], TimestampMillis]) -> None:
        self._client = client
        self._archive = archive
        self._clock_ms = clock_ms

    async def deliver(self, response: BotResponse) -> None:
        """Post ``response`` as a reply, or count why it was skipped.

        Raises Unavailable if Discord or the archive does not answer. Also raises Unavailable if the gateway is not
        connected, because the permissions that the client knows may then be outdated. No content of a response may
        cause another error. Otherwise anyone who can write to the topic could stop the bot.
        """
        if response.outcome is Outcome.UNKNOWN:
            IGNORED_EVENTS.labels(RESPONSES, "unknown_outcome").inc()
            return
        question = await asyncio.to_thread(self._archive.questions.find, response.query_id)
        if question is None:
            # `rtfm-cli ask` or another program asked, the question is answered already, or the response is forged.
            IGNORED_EVENTS.labels(RESPONSES, "no_open_question").inc()
            return
        if (field := _find_differing_field(question, response)) is not None:
            IGNORED_EVENTS.labels(RESPONSES, f"another_{field}").inc()
            log.warning("response differs from its question, not posted", field=field, query_id=question.query_id)
            return
        self._check_gateway()
        try:
            async with _translated_errors(question), asyncio.timeout(_TIMEOUT_S):
                result = await self._post(response, late=self._clock_ms() > question.expires_at)
        except (discord.Forbidden, discord.NotFound) as exc:
            result = "forbidden" if isinstance(exc, discord.Forbidden) else "gone"
            log.warning("posting a reply failed, not retried", result=result, query_id=question.query_id, code=exc.code)
        except _ReplyRefused:
            result = "refused"
        await asyncio.to_thread(self._archive.questions.close, question.query_id)
        RESPONSES_DELIVERED.labels(result).inc()

    def _check_gateway(self) -> None:
        if (reason := self._client.not_ready_reason()) is not None:
            raise Unavailable("Discord", reason)

    async def _post(self, response: BotResponse, *, late: bool) -> str:
        guild = self._client.get_guild(int(response.guild_id)) if response.guild_id else None
        if response.guild_id and guild is None:
            return "gone"
        if guild is not None and guild.unavailable:
            raise Unavailable("Discord", f"guild {guild.id} is unavailable on Discord")
        citations = await visibility.refresh_citation_channels(guild, response.citations)
        response = attrs.evolve(response, citations=citations)
        if response.audience is Audience.PUBLIC:
            channel = (guild and guild.get_channel_or_thread(int(response.channel_id))) or (
                await self._client.fetch_channel(int(response.channel_id))
            )
            if not isinstance(channel, discord.TextChannel | discord.Thread):
                return "gone"
            visible = visibility.channels_visible_to_readers(channel)
            return await self._send(response, channel, visible, late=late)
        asker = await self._client.create_dm(discord.Object(int(response.asker_id)))
        return await self._send(
            response, asker, visibility.channels_visible_to_everyone(guild) if guild else [], late=late
        )

    async def _send(
        self,
        response: BotResponse,
        channel: discord.TextChannel | discord.Thread | discord.DMChannel,
        visible: list[str],
        *,
        late: bool,
    ) -> str:
        answer = replies.compose(response)
        if late and response.outcome is not Outcome.EXPIRED:
            parts, result = [replies.outcome_text(Outcome.EXPIRED)], "late"
        elif not _can_show(response, visible):
            parts, result = [replies.NO_LONGER_SHOWN], "withheld"
        else:
            parts, result = answer, "posted"
        reference = self._build_reference(response, channel)
        done = await self._count_posted_parts(response, channel, reference, [answer, parts, [replies.SOURCE_REMOVED]])
        if done >= len(parts):
            return "already_there"
        for number, part in enumerate(parts[done:], start=done):
            self._check_gateway()
            # A message may have been removed during the search for posted parts or the wait for a rate limit.
            if result == "posted" and await self._has_removed_source(response):
                result = "removed"
                if number:
                    break
                part = replies.SOURCE_REMOVED
            posted = await channel.send(
                part,
                nonce=replies.nonce(response.query_id, number),
                allowed_mentions=discord.AllowedMentions.none(),
                suppress_embeds=True,
                reference=cast("discord.MessageReference", reference),  # None is accepted, but not in the overloads
            )
            await self._record_part(response, number, posted)
            if result == "removed":
                break
        return result

    async def _has_removed_source(self, response: BotResponse) -> bool:
        """Return whether a message that the answer uses was deleted or erased."""
        try:
            return bool(await asyncio.to_thread(self._archive.removals.find_removed, source_message_ids(response)))
        except InvalidEvent:
            # PostgreSQL cannot store one of the ids. The archive cannot have this message, so it counts as removed.
            return True

    async def _record_part(self, response: BotResponse, part: int, posted: discord.Message) -> None:
        await asyncio.to_thread(
            self._archive.record_sent,
            response.query_id,
            part,
            channel_id=str(posted.channel.id),
            message_id=str(posted.id),
            sent_at=self._clock_ms(),
        )

    def _build_reference(
        self, response: BotResponse, channel: discord.abc.Snowflake
    ) -> discord.MessageReference | None:
        if response.query_message_id is None or str(channel.id) != response.channel_id:
            return None
        return discord.MessageReference(
            message_id=int(response.query_message_id), channel_id=channel.id, fail_if_not_exists=False
        )

    async def _count_posted_parts(
        self,
        response: BotResponse,
        channel: discord.TextChannel | discord.Thread | discord.DMChannel,
        reference: discord.MessageReference | None,
        versions: Sequence[Sequence[str]],
    ) -> int:
        """Return how many parts of the reply were posted by an earlier delivery.

        ``versions`` are the forms in which the reply may have been posted, each as a list of parts. If the earlier
        delivery may be too long ago for Discord to know its nonces, the channel's history is searched, too.
        """
        recorded = await asyncio.to_thread(self._count_recorded_parts, response.query_id)
        if self._clock_ms() - response.answered_at < NONCE_VALID_MS:
            return recorded
        after = snowflake_at(TimestampMillis(response.answered_at - _CLOCK_SKEW_MS))
        own_id = self._client.user.id if self._client.user else 0
        most, found = max(map(len, versions)), 0
        try:
            async for message in channel.history(
                limit=_MAX_SEARCHED_MESSAGES, after=discord.Object(after), oldest_first=True
            ):
                texts = {parts[found].strip() for parts in versions if found < len(parts)}
                if message.author.id == own_id and _is_part(message, reference, texts):
                    found += 1
                if found == most:
                    break
        except discord.Forbidden:
            log.warning(
                "no permission to read the channel's history, an earlier reply cannot be found", channel=channel.id
            )
        return max(recorded, found)

    def _count_recorded_parts(self, query_id: str) -> int:
        number = 0
        while self._archive.sent(query_id, number) is not None:
            number += 1
        return number


def _find_differing_field(question: OpenQuestion, response: BotResponse) -> str | None:
    """Return the name of a field that differs between ``response`` and ``question``, or None if they match."""
    pairs = {
        "guild": (question.guild_id, response.guild_id),
        "channel": (question.channel_id, response.channel_id),
        "message": (question.message_id, response.query_message_id),
        "asker": (question.asker_id, response.asker_id),
        "audience": (question.audience, response.audience),
    }
    return next((field for field, (asked, answered) in pairs.items() if asked != answered), None)


def _can_show(response: BotResponse, visible: list[str]) -> bool:
    if response.outcome in _OUTCOMES_WITH_ANSWER and not response.retrieved:
        return False  # it is unknown which messages the answer uses
    return visibility.can_show(response.citations, response.retrieved, visible)


def _is_part(message: discord.Message, reference: discord.MessageReference | None, texts: set[str]) -> bool:
    if reference is None:
        return message.content.strip() in texts
    return message.reference is not None and message.reference.message_id == reference.message_id


@contextlib.asynccontextmanager
async def _translated_errors(question: OpenQuestion) -> AsyncIterator[None]:
    """Translate Discord's errors. Errors with the status 403 or 404 are final and are raised unchanged."""
    try:
        yield
    except (discord.Forbidden, discord.NotFound):
        raise
    except (discord.DiscordServerError, discord.RateLimited, aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise Unavailable("Discord", f"Discord did not answer: {type(exc).__name__}") from exc
    except discord.HTTPException as exc:
        if exc.status in (401, 429):
            raise Unavailable("Discord", f"Discord refuses requests: HTTP status {exc.status}") from exc
        log.warning(
            "Discord refused a reply, not retried", query_id=question.query_id, status=exc.status, code=exc.code
        )
        raise _ReplyRefused from exc
