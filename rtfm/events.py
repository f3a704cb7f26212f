"""The events as Python values: frozen attrs classes that mirror the Avro schemas in ``schemas/``.

The names, the order and the defaults of the fields must be the same as in the schemas. The codec checks this when it is
built, and its error names the field that differs. Times are whole milliseconds since the Unix epoch, UTC (Avro's
``timestamp-millis``).

``find_broken_rule`` checks four rules that a schema cannot express:

- Every id has the form of ``ID``, except the archive's own ids.
- Ids that come from Discord are snowflakes.
- Every time is in the years 1 to 9999.
- ``observed_at`` is not in the future.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NewType

import attrs
from attrs import field, frozen

TimestampMillis = NewType("TimestampMillis", int)

ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
"""The form of an id. Use ``fullmatch``."""

_ARCHIVE_ID_FIELDS = frozenset({"passage_id"})
"""Fields with ids that the archive creates. The rules for ids do not apply to them."""

MAX_SNOWFLAKE = 2**64 - 1

MIN_TIMESTAMP = TimestampMillis(-62_135_596_800_000)
MAX_TIMESTAMP = TimestampMillis(253_402_300_799_999)
"""The first and the last millisecond of the years 1 to 9999, the range of Python's and SQL's calendars."""

MAX_AHEAD_MS = 60_000
"""``observed_at`` may be at most this many milliseconds later than the present time of the process that checks it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(timestamp: TimestampMillis) -> datetime:
    """Return ``timestamp`` as an aware UTC datetime, clamped to the years 1 to 9999."""
    return _EPOCH + timedelta(milliseconds=min(max(timestamp, MIN_TIMESTAMP), MAX_TIMESTAMP))


def is_id_field(field_name: str) -> bool:
    """Return whether the rules for ids apply to a field of this name. They do not apply to the archive's own ids."""
    return field_name.endswith(("_id", "_ids")) and field_name not in _ARCHIVE_ID_FIELDS


def is_id(value: str) -> bool:
    """Return whether ``value`` has the form of an id."""
    return ID.fullmatch(value) is not None


def is_snowflake(value: str) -> bool:
    """Return whether ``value`` can be a Discord id: the decimal digits of an integer below 2**64."""
    return value.isascii() and value.isdigit() and len(value) <= 20 and int(value) <= MAX_SNOWFLAKE


def is_time(value: int) -> bool:
    """Return whether ``value`` is in the years 1 to 9999."""
    return MIN_TIMESTAMP <= value <= MAX_TIMESTAMP


class ChannelKind(StrEnum):
    """The kind of a message's channel. Readers treat UNKNOWN as a private channel."""

    UNKNOWN = "UNKNOWN"
    TEXT = "TEXT"
    FORUM_POST = "FORUM_POST"
    PUBLIC_THREAD = "PUBLIC_THREAD"
    PRIVATE_THREAD = "PRIVATE_THREAD"
    DIRECT = "DIRECT"


class MessageChange(StrEnum):
    """What happened to a message. Readers skip an event with UNKNOWN and count it in a metric."""

    UNKNOWN = "UNKNOWN"
    CREATED = "CREATED"
    EDITED = "EDITED"
    DELETED = "DELETED"


class MessageSource(StrEnum):
    """Where a DiscordMessage comes from. Readers treat UNKNOWN like OTHER."""

    UNKNOWN = "UNKNOWN"
    GATEWAY = "GATEWAY"
    HISTORY = "HISTORY"
    IMPORT = "IMPORT"
    OTHER = "OTHER"


class Audience(StrEnum):
    """Who may read an answer. Readers treat UNKNOWN like ASKER."""

    UNKNOWN = "UNKNOWN"
    PUBLIC = "PUBLIC"
    ASKER = "ASKER"


class Speaker(StrEnum):
    """The author of a context message. Readers treat UNKNOWN like OTHER."""

    UNKNOWN = "UNKNOWN"
    ASKER = "ASKER"
    BOT = "BOT"
    OTHER = "OTHER"


class QueryOrigin(StrEnum):
    """How a question was asked. SERVICE means that another program asked it."""

    UNKNOWN = "UNKNOWN"
    MENTION = "MENTION"
    COMMAND = "COMMAND"
    REPLY = "REPLY"
    FORUM = "FORUM"
    DIRECT = "DIRECT"
    CONSOLE = "CONSOLE"
    MESSAGE_COMMAND = "MESSAGE_COMMAND"
    SERVICE = "SERVICE"


class Outcome(StrEnum):
    """The result of answering. Readers skip an event with UNKNOWN and count it in a metric."""

    UNKNOWN = "UNKNOWN"
    ANSWERED = "ANSWERED"
    EXTRACTED = "EXTRACTED"
    NOT_FOUND = "NOT_FOUND"
    EXPIRED = "EXPIRED"
    REFUSED = "REFUSED"
    FAILED = "FAILED"


class OutcomeReason(StrEnum):
    """The reason for an outcome."""

    UNKNOWN = "UNKNOWN"
    NOTHING_NEAR = "NOTHING_NEAR"
    INSUFFICIENT = "INSUFFICIENT"
    NO_MODEL = "NO_MODEL"
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
    OVER_BUDGET = "OVER_BUDGET"
    BLOCKED = "BLOCKED"
    UNUSABLE_OUTPUT = "UNUSABLE_OUTPUT"
    TOO_MANY_CHANNELS = "TOO_MANY_CHANNELS"
    INVALID_FIELD = "INVALID_FIELD"
    SOURCE_REMOVED = "SOURCE_REMOVED"


class SourceKind(StrEnum):
    """The kind of a source; a reader does not show a source of UNKNOWN kind."""

    UNKNOWN = "UNKNOWN"
    MESSAGE = "MESSAGE"
    DOCUMENT = "DOCUMENT"
    TAUGHT = "TAUGHT"


@frozen(kw_only=True)
class Attachment:
    """A file that is attached to a message. ``text`` is the content that the bot read; None if it read nothing."""

    filename: str
    url: str
    content_type: str | None = None
    size_bytes: int
    text: str | None = None


@frozen(kw_only=True)
class DiscordMessage:
    """One change to one Discord message. A deletion has no author and no content."""

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
    observed_at: TimestampMillis | None = None
    source: MessageSource = MessageSource.UNKNOWN
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
    """One question. It says which channels the answer may use, and who may read the answer."""

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
    """A source that an answer cites. Ids identify a message, and ``url`` identifies any other source."""

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
    """A passage that was used for an answer, whether the answer cites it or not.

    Everyone in the guild may read the passage if ``acl_channel_id`` is None.
    """

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


DISCORD_SOURCES = frozenset({MessageSource.GATEWAY, MessageSource.HISTORY})
"""Sources of messages that Discord itself reported. The ids of these messages are snowflakes."""

DISCORD_ORIGINS = frozenset(QueryOrigin) - {QueryOrigin.UNKNOWN, QueryOrigin.CONSOLE, QueryOrigin.SERVICE}
"""Origins of questions that were asked on Discord. The ids of these questions, except ``query_id``, are snowflakes."""


@frozen(kw_only=True)
class BrokenRule:
    """A field that breaks a rule, and the rule.

    The value is not included, because it may be secret, or harmful to a program that shows it.
    """

    field: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field} {self.rule}"


def find_broken_rule(event: Any, *, now: TimestampMillis) -> BrokenRule | None:
    """Return the first field of ``event`` that breaks a rule for ids or times; None if no field does.

    ``event`` is an event or a part of an event, and all its values have the right types. ``observed_at`` is compared
    with ``now``.
    """
    return next(find_broken_rules(event, now=now), None)


def find_broken_rules(event: Any, *, now: TimestampMillis) -> Iterator[BrokenRule]:
    """Yield every field of ``event`` that breaks a rule for ids or times.

    The arguments are those of ``find_broken_rule``. A list of ids or times is yielded once, even if several of its
    items break the rule.
    """
    yield from _check_part(event, "", _snowflake_reason(event))
    observed_at = getattr(event, "observed_at", None)
    if observed_at is not None and now + MAX_AHEAD_MS < observed_at <= MAX_TIMESTAMP:
        yield BrokenRule(field="observed_at", rule="must not be more than a minute after the present time")


def _snowflake_reason(event: object) -> str:
    """Return why the ids of ``event`` must be snowflakes; an empty text if they need not be."""
    if isinstance(event, DiscordMessage) and event.source in DISCORD_SOURCES:
        return f"because source is {event.source.value}"
    if isinstance(event, BotQuery) and event.origin in DISCORD_ORIGINS:
        return f"because origin is {event.origin.value}"
    return ""


def _check_part(part: object, path: str, snowflake_reason: str) -> Iterator[BrokenRule]:
    for name, check in _checked_fields(type(part)):
        value = getattr(part, name)
        if value is None:
            continue
        where = f"{path}{name}"
        items = value if isinstance(value, list) else (value,)
        if check is _FieldCheck.RECORD:
            for index, item in enumerate(items):
                item_path = f"{where}[{index}]." if items is value else f"{where}."
                yield from _check_part(item, item_path, snowflake_reason)
        elif check is _FieldCheck.TIME:
            if not all(map(is_time, items)):
                yield BrokenRule(field=where, rule="must be in the years 1 to 9999")
        elif not all(map(is_id, items)):
            yield BrokenRule(field=where, rule=f"must match {ID.pattern}")
        elif snowflake_reason and name != "query_id" and not all(map(is_snowflake, items)):
            yield BrokenRule(field=where, rule=f"must be a Discord id (an integer below 2**64), {snowflake_reason}")


class _FieldCheck(StrEnum):
    """How a field is checked. For a list, each item is checked in this way."""

    ID = "id"
    TIME = "time"
    RECORD = "record"


_CHECKED_FIELDS: dict[type[Any], list[tuple[str, _FieldCheck]]] = {}


def _checked_fields(event_class: type[Any]) -> list[tuple[str, _FieldCheck]]:
    """Return the fields of ``event_class`` that need a check, in their order. The result is cached."""
    if event_class in _CHECKED_FIELDS:
        return _CHECKED_FIELDS[event_class]
    hints = typing.get_type_hints(event_class)
    found = []
    for attribute in attrs.fields(event_class):
        options = typing.get_args(hints[attribute.name]) or (hints[attribute.name],)
        if TimestampMillis in options:
            found.append((attribute.name, _FieldCheck.TIME))
        elif str in options and is_id_field(attribute.name):
            found.append((attribute.name, _FieldCheck.ID))
        elif any(isinstance(option, type) and attrs.has(option) for option in options):
            found.append((attribute.name, _FieldCheck.RECORD))
    _CHECKED_FIELDS[event_class] = found
    return found
