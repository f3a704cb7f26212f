"""Realistic events for benchmarks.

Ids have the lengths that Discord has used, and a fifth of the texts contains characters that are not ASCII. Everything
is derived from a seed, so that two runs measure the same events.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from rtfm.events import (
    Attachment,
    Audience,
    BotQuery,
    BotResponse,
    ChannelKind,
    Citation,
    ContextMessage,
    DiscordMessage,
    MessageChange,
    MessageSource,
    Outcome,
    OutcomeReason,
    QueryOrigin,
    RetrievedPassage,
    SourceKind,
    Speaker,
    TimestampMillis,
)

WORDS = (
    *("how", "do", "I", "mount", "the", "disk", "error", "again", "why", "log", "says", "nothing", "update", "after"),
    *("restore", "fails", "with", "code", "seven", "and", "it", "is", "a", "new", "server", "`fstab`", "0x80070005"),
)
OTHER_WORDS = ("café", "größer", "naïve", "–", "диск", "не", "монтируется", "ディスク", "🌊", "👍", "“quoted”", "señal")
NAMES = ("quillfeather", "mossy", "tidepool42", "brontë", "Łukasz", "さくら", "north_wind", "Käse", "ada", "kelp")

# Ids had 17 digits until 2017 and 18 digits until July 2022; since then they have 19. On average, the ids of channels
# and people are older than the ids of messages.
_ID_RANGES = ((10**16, 10**17), (10**17, 10**18), (10**18, 14 * 10**17))
_ID_WEIGHTS = {"person": (1, 5, 4), "place": (0, 5, 5), "message": (0, 2, 8)}
_NOT_ASCII = 0.2


def events(topic_name: str, count: int, seed: int = 7) -> list[Any]:
    """Return ``count`` events of a topic. The same seed gives the same events."""
    chance = random.Random(seed)
    return [_MAKERS[topic_name](chance, number) for number in range(count)]


def _id(chance: random.Random, of: str) -> str:
    (bounds,) = chance.choices(_ID_RANGES, weights=_ID_WEIGHTS[of])
    return str(chance.randrange(*bounds))


def _message_ids(chance: random.Random, messages: int) -> list[str]:
    """Return ids of messages that were written within a day of each other."""
    first = int(_id(chance, "message"))
    return [str(first + number) for number in sorted(chance.randrange(86_400_000 << 22) for _ in range(messages))]


def _text(chance: random.Random, most_words: int) -> str:
    words = WORDS + OTHER_WORDS if chance.random() < _NOT_ASCII else WORDS
    return " ".join(chance.choice(words) for _ in range(chance.randrange(1, most_words)))


def _time(number: int) -> TimestampMillis:
    return TimestampMillis(1_790_000_000_000 + number * 977)


def _message(chance: random.Random, number: int) -> DiscordMessage:
    in_thread = chance.random() < 0.3
    edited = chance.random() < 0.1
    attachment = Attachment(
        filename="server.log",
        url=f"https://cdn.discordapp.com/attachments/{_id(chance, 'place')}/{_id(chance, 'message')}/server.log",
        content_type="text/plain; charset=utf-8",
        size_bytes=chance.randrange(100, 200_000),
    )
    return DiscordMessage(
        message_id=_id(chance, "message"),
        guild_id=_id(chance, "place"),
        channel_id=_id(chance, "place"),
        channel_kind=ChannelKind.PUBLIC_THREAD if in_thread else ChannelKind.TEXT,
        channel_name=_text(chance, 8) if in_thread else "support",
        parent_channel_id=_id(chance, "place") if in_thread else None,
        author_id=_id(chance, "person"),
        author_name=chance.choice(NAMES),
        content=_text(chance, 40),
        created_at=_time(number),
        edited_at=_time(number + 60) if edited else None,
        change=MessageChange.EDITED if edited else MessageChange.CREATED,
        observed_at=TimestampMillis(_time(number) - 10**11),
        source=MessageSource.GATEWAY,
        reply_to_message_id=_id(chance, "message") if chance.random() < 0.3 else None,
        mentioned_user_ids=[_id(chance, "person") for _ in range(chance.choice((0, 0, 0, 1, 1, 2)))],
        attachments=[attachment] if chance.random() < 0.08 else [],
    )


def _query(chance: random.Random, number: int) -> BotQuery:
    turns = chance.choice((0, 0, 0, 2, 4))
    return BotQuery(
        query_id="m" + _id(chance, "message"),
        guild_id=_id(chance, "place"),
        channel_id=_id(chance, "place"),
        message_id=_id(chance, "message"),
        asker_id=_id(chance, "person"),
        question=_text(chance, 20),
        asked_at=_time(number),
        expires_at=TimestampMillis(_time(number) + 600_000),
        audience=Audience.PUBLIC,
        visible_channel_ids=sorted(_id(chance, "place") for _ in range(chance.randrange(10, 70))),
        context=[
            ContextMessage(
                speaker=Speaker.BOT if turn % 2 else Speaker.ASKER,
                content=_text(chance, 30),
                message_id=_id(chance, "message"),
            )
            for turn in range(turns)
        ],
        origin=QueryOrigin.MENTION,
    )


def _response(chance: random.Random, number: int) -> BotResponse:
    guild = _id(chance, "place")
    extracted = chance.random() < 0.2
    return BotResponse(
        query_id="m" + _id(chance, "message"),
        guild_id=guild,
        channel_id=_id(chance, "place"),
        query_message_id=_id(chance, "message"),
        asker_id=_id(chance, "person"),
        asked_at=_time(number),
        origin=QueryOrigin.MENTION,
        audience=Audience.PUBLIC,
        outcome=Outcome.EXTRACTED if extracted else Outcome.ANSWERED,
        reason=OutcomeReason.MODEL_UNAVAILABLE if extracted else None,
        answer=_text(chance, 150),
        citations=[_citation(chance, guild, place) for place in range(1, chance.randrange(2, 5))],
        retrieved=[
            RetrievedPassage(
                passage_id=_id(chance, "message"),
                kind=SourceKind.MESSAGE,
                acl_channel_id=_id(chance, "place"),
                message_ids=_message_ids(chance, chance.randrange(1, 14)),
                score=chance.random(),
            )
            for _ in range(8)
        ],
        model=None if extracted else "gemini-flash-latest",
        prompt_tokens=None if extracted else chance.randrange(800, 9000),
        output_tokens=None if extracted else chance.randrange(20, 400),
        answered_at=TimestampMillis(_time(number) + 1500),
        elapsed_ms=chance.randrange(3, 20_000),
    )


def _citation(chance: random.Random, guild: str, number: int) -> Citation:
    return Citation(
        number=number,
        kind=SourceKind.MESSAGE,
        guild_id=guild,
        channel_id=_id(chance, "place"),
        channel_kind=ChannelKind.TEXT,
        message_id=_id(chance, "message"),
        author_id=_id(chance, "person"),
        author_name=chance.choice(NAMES),
        created_at=TimestampMillis(_time(number) - 10**10),
        excerpt=_text(chance, 40),
        score=chance.random(),
    )


_MAKERS: dict[str, Callable[[random.Random, int], Any]] = {
    "discord-messages": _message,
    "bot-queries": _query,
    "bot-responses": _response,
}
