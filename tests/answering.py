"""Fixtures for tests of answering.

They make a guild, questions that are asked in the guild, and an answerer. The guild has one answered question in an
open channel, and a secret in another channel.
"""

from __future__ import annotations

from typing import Any

from rtfm.answering.answerer import Answerer
from rtfm.answering.gemini import GeminiModel
from rtfm.events import Audience, BotQuery, DiscordMessage, TimestampMillis
from rtfm.knowledge import Knowledge
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini
from tests.knowledge import GUILD, RecordOfEvent, knowledge_of, message

NOW = TimestampMillis(1_800_000_000_000)
LOCK = (
    message(1, "the printer is locked by a stale job after the power cut", author_id="1", author_name="ada"),
    message(
        2,
        "remove the stale job: `printctl unlock --stale`",
        author_id="2",
        author_name="bea",
        reply_to_message_id="1001",
    ),
)
SECRET = message(
    9,
    "printer unlock code for staff is `printctl unlock --master`, stale or not",
    author_id="3",
    author_name="cyd",
    channel_id="300",
)


def asked(question: str = "printer locked by a stale job, how do I unlock it?", **fields: Any) -> BotQuery:
    """Return a question about the printer. The asker of the question sees only channel 200."""
    values: dict[str, Any] = {
        "query_id": "m42",
        "guild_id": GUILD,
        "channel_id": "200",
        "message_id": "42",
        "asker_id": "7",
        "question": question,
        "asked_at": TimestampMillis(NOW - 1_000),
        "expires_at": TimestampMillis(NOW + 60_000),
        "audience": Audience.PUBLIC,
        "visible_channel_ids": ["200"],
    }
    return BotQuery(**{**values, **fields})


def printer_guild(settings: Settings) -> Knowledge:
    """Write a guild with one answered question in an open channel, and a secret in another channel."""
    opened = knowledge_of(settings, None)
    add(opened, *LOCK, SECRET)
    return opened


def answerer(knowledge: Knowledge, gemini: FakeGemini | None = None, *, timeout_s: float = 30.0) -> Answerer:
    """Build an answerer over ``knowledge`` with a stopped clock and the model ``gemini``; None means no model."""
    model = None
    if gemini is not None:
        model = GeminiModel(api_key=fake.KEY, model=fake.MODEL, endpoint=gemini.address)
    return Answerer(
        knowledge.retriever,
        model,
        clock=lambda: NOW,
        model_timeout_s=timeout_s,
        still_readable=knowledge.archive.answers.find_readable,
    )


def add(knowledge: Knowledge, *events: DiscordMessage) -> None:
    """Write ``events`` to the archive."""
    Ingest(knowledge=knowledge)([RecordOfEvent(event) for event in events])
