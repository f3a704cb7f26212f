"""Helpers for the tests of delivery: responses, their open questions, and a delivery to the fake Discord."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from attrs import evolve
from prometheus_client import REGISTRY

from rtfm.bot.client import RtfmClient
from rtfm.bot.delivery import ReplyDelivery
from rtfm.events import (
    Audience,
    BotQuery,
    BotResponse,
    ChannelKind,
    Citation,
    Outcome,
    RetrievedPassage,
    SourceKind,
    TimestampMillis,
)
from rtfm.knowledge.archive import SqlArchive
from tests.fakes.discord import FakeDiscord, FakeMessage


def now() -> TimestampMillis:
    return TimestampMillis(time.time_ns() // 1_000_000)


def answer_to(asked: FakeMessage, text: str = "Use ntfs-3g.") -> BotResponse:
    assert asked.channel.guild is not None
    return BotResponse(
        query_id=f"m{asked.id}",
        guild_id=asked.channel.guild.id,
        channel_id=asked.channel.id,
        query_message_id=asked.id,
        asker_id=asked.author.id,
        asked_at=TimestampMillis(0),
        audience=Audience.PUBLIC,
        outcome=Outcome.ANSWERED,
        answer=text,
        retrieved=[retrieved_from(asked.channel.id)],
        answered_at=now(),
        elapsed_ms=5,
    )


def retrieved_from(channel_id: str) -> RetrievedPassage:
    return RetrievedPassage(
        passage_id="p5", kind=SourceKind.MESSAGE, acl_channel_id=channel_id, message_ids=["5"], score=1.0
    )


def ask(archive: SqlArchive, response: BotResponse, *, expires_in_ms: int = 600_000) -> BotResponse:
    """Store the open question that ``response`` answers, as the bot does before it produces the BotQuery."""
    archive.questions.open(
        BotQuery(
            query_id=response.query_id,
            guild_id=response.guild_id,
            channel_id=response.channel_id,
            message_id=response.query_message_id,
            asker_id=response.asker_id,
            question="how?",
            asked_at=now(),
            expires_at=TimestampMillis(now() + expires_in_ms),
            audience=response.audience,
            visible_channel_ids=[response.channel_id],
        ),
        now=now(),
    )
    return response


def citing(
    response: BotResponse, channel_id: str, *, kind: ChannelKind = ChannelKind.TEXT, parent: str | None = None
) -> BotResponse:
    citation = Citation(
        number=1,
        kind=SourceKind.MESSAGE,
        guild_id=response.guild_id,
        channel_id=channel_id,
        channel_kind=kind,
        parent_channel_id=parent,
        message_id="5",
        author_name="bob",
        created_at=TimestampMillis(0),
        excerpt="",
        score=1.0,
    )
    return evolve(response, citations=[citation])


@contextlib.asynccontextmanager
async def client_on(fake: FakeDiscord) -> AsyncIterator[RtfmClient]:
    """Connect a client to ``fake``, and yield the client as soon as it knows its guilds."""
    client = RtfmClient(lambda *_: True, query_expiry_s=600, api=fake.api, gateway=fake.gateway)
    async with client:
        await client.login(fake.token)
        listening = asyncio.create_task(client.connect())
        while client.not_ready_reason() or not client.guilds or client.guilds[0].unavailable:
            assert not listening.done()
            await asyncio.sleep(0.01)
        yield client
    await listening


@contextlib.asynccontextmanager
async def delivery_on(fake: FakeDiscord, archive: SqlArchive, *, later_ms: int = 0) -> AsyncIterator[ReplyDelivery]:
    """Yield a delivery whose clock is ``later_ms`` ahead."""
    async with client_on(fake) as client:
        yield ReplyDelivery(client, archive, clock_ms=lambda: TimestampMillis(now() + later_ms))


def delivered(result: str) -> float:
    return REGISTRY.get_sample_value("rtfm_responses_delivered_total", {"result": result}) or 0.0


def skipped(reason: str) -> float:
    labels = {"topic": "bot-responses", "reason": reason}
    return REGISTRY.get_sample_value("rtfm_ignored_events_total", labels) or 0.0
