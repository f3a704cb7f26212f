"""The events as Python values: frozen attrs classes that mirror the Avro schemas in ``schemas/``.

Nothing else lives here. Field names, their order and their defaults are the schemas' own; the codec checks that
when it is built and names the field that drifted. Ids are Discord snowflakes as decimal strings. Times are whole
milliseconds since the Unix epoch, UTC (Avro's ``timestamp-millis``).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NewType

from attrs import field, frozen

TimestampMillis = NewType("TimestampMillis", int)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(timestamp: TimestampMillis) -> datetime:
    """The aware UTC datetime of ``timestamp``."""
    return _EPOCH + timedelta(milliseconds=timestamp)


class ChannelKind(StrEnum):
    """What kind of channel a message stands in; UNKNOWN counts as private."""

    UNKNOWN = "UNKNOWN"
    TEXT = "TEXT"
    FORUM_POST = "FORUM_POST"
    PUBLIC_THREAD = "PUBLIC_THREAD"
    PRIVATE_THREAD = "PRIVATE_THREAD"
    DIRECT = "DIRECT"


class MessageChange(StrEnum):
    """What happened to a message; a reader does nothing with UNKNOWN and counts it."""

    UNKNOWN = "UNKNOWN"
    CREATED = "CREATED"
    EDITED = "EDITED"
    DELETED = "DELETED"


class Audience(StrEnum):
    """Who may read an answer; UNKNOWN counts as ASKER."""

    UNKNOWN = "UNKNOWN"
    PUBLIC = "PUBLIC"
    ASKER = "ASKER"


class Speaker(StrEnum):
    """Who said a message of the context; UNKNOWN counts as OTHER."""

    UNKNOWN = "UNKNOWN"
    ASKER = "ASKER"
    BOT = "BOT"
    OTHER = "OTHER"


class QueryOrigin(StrEnum):
    """How a question reached the bot."""

    UNKNOWN = "UNKNOWN"
    MENTION = "MENTION"
    COMMAND = "COMMAND"
    REPLY = "REPLY"
    FORUM = "FORUM"
    DIRECT = "DIRECT"
    CONSOLE = "CONSOLE"
    MESSAGE_COMMAND = "MESSAGE_COMMAND"


class Outcome(StrEnum):
    """How answering ended; a reader does nothing with UNKNOWN and counts it."""

    UNKNOWN = "UNKNOWN"
    ANSWERED = "ANSWERED"
    EXTRACTED = "EXTRACTED"
    NOT_FOUND = "NOT_FOUND"
    EXPIRED = "EXPIRED"
    REFUSED = "REFUSED"
    FAILED = "FAILED"


class OutcomeReason(StrEnum):
    """Why an outcome is what it is."""

    UNKNOWN = "UNKNOWN"
    NOTHING_NEAR = "NOTHING_NEAR"
    INSUFFICIENT = "INSUFFICIENT"
    NO_MODEL = "NO_MODEL"
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
    OVER_BUDGET = "OVER_BUDGET"
    BLOCKED = "BLOCKED"
    UNUSABLE_OUTPUT = "UNUSABLE_OUTPUT"
    TOO_MANY_CHANNELS = "TOO_MANY_CHANNELS"


class SourceKind(StrEnum):
    """What a source is; a reader shows none of UNKNOWN kind."""

    UNKNOWN = "UNKNOWN"
    MESSAGE = "MESSAGE"
    DOCUMENT = "DOCUMENT"
    TAUGHT = "TAUGHT"


@frozen(kw_only=True)
class Attachment:
    """A file attached to a message; ``text`` is what the bot read of it."""

    filename: str
    url: str
    content_type: str | None = None
    size_bytes: int
    text: str | None = None


@frozen(kw_only=True)
class DiscordMessage:
    """One change to one Discord message. A deletion carries ids and ``created_at`` only."""

    message_id: str
    guild_id: str | None = None
    channel_id: str
    channel_kind: ChannelKind
    channel_name: str | None = None
    parent_channel_id: str | None = None
    author_id: str | None = None
    author_name: str | None = None
    author_is_bot: bool = False
    content: str = ""
    created_at: TimestampMillis
    edited_at: TimestampMillis | None = None
    change: MessageChange
    reply_to_message_id: str | None = None
    mentioned_user_ids: list[str] = field(factory=list)
    attachments: list[Attachment] = field(factory=list)


@frozen(kw_only=True)
class ContextMessage:
    """An earlier message of the exchange that a question continues."""

    speaker: Speaker
    content: str
    message_id: str | None = None


@frozen(kw_only=True)
class BotQuery:
    """One question, with what its answer may use and who may read it."""

    query_id: str
    guild_id: str | None = None
    channel_id: str
    message_id: str | None = None
    asker_id: str
    question: str
    language: str | None = None
    asked_at: TimestampMillis
    expires_at: TimestampMillis
    audience: Audience
    visible_channel_ids: list[str]
    context: list[ContextMessage] = field(factory=list)
    attachments: list[Attachment] = field(factory=list)
    origin: QueryOrigin = QueryOrigin.UNKNOWN


@frozen(kw_only=True)
class Citation:
    """A source that an answer rests on; the ids are those of a message, the address that of anything else."""

    number: int
    kind: SourceKind
    guild_id: str | None = None
    channel_id: str | None = None
    parent_channel_id: str | None = None
    channel_kind: ChannelKind = ChannelKind.UNKNOWN
    message_id: str | None = None
    url: str | None = None
    title: str | None = None
    author_id: str | None = None
    author_name: str | None = None
    created_at: TimestampMillis | None = None
    excerpt: str
    score: float


@frozen(kw_only=True)
class RetrievedPassage:
    """A passage that answering looked at, cited or not; ``acl_channel_id`` None: all of the guild may read it."""

    passage_id: str
    kind: SourceKind
    acl_channel_id: str | None = None
    message_ids: list[str] = field(factory=list)
    score: float


@frozen(kw_only=True)
class BotResponse:
    """The answer to one question."""

    query_id: str
    guild_id: str | None = None
    channel_id: str
    query_message_id: str | None = None
    asker_id: str
    asked_at: TimestampMillis
    origin: QueryOrigin = QueryOrigin.UNKNOWN
    audience: Audience
    outcome: Outcome
    reason: OutcomeReason | None = None
    answer: str
    citations: list[Citation] = field(factory=list)
    retrieved: list[RetrievedPassage] = field(factory=list)
    model: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    answered_at: TimestampMillis
    elapsed_ms: int
