"""The events as Python values: frozen attrs classes that mirror the Avro schemas in ``schemas/``.

Owns the two rules that a schema cannot express, for ids and for times: ``find_broken_rule``. Names, order and defaults
of fields must equal the schemas'; the codec checks that when it is built and names the field that differs. Times are
whole milliseconds since the Unix epoch, UTC (Avro's ``timestamp-millis``).
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
"""The form of every id; use ``fullmatch``."""

_ARCHIVE_ID_FIELDS = frozenset({"passage_id"})
"""Fields with the archive's own ids, which have no form."""

MAX_SNOWFLAKE = 2**64 - 1

MIN_TIMESTAMP = TimestampMillis(-62_135_596_800_000)
MAX_TIMESTAMP = TimestampMillis(253_402_300_799_999)
"""The first and the last millisecond of the years 1 to 9999, the range of Python's and SQL's calendars."""

MAX_AHEAD_MS = 60_000
"""Milliseconds that ``observed_at`` may be ahead of the clock that checks it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(timestamp: TimestampMillis) -> datetime:
    """Return ``timestamp`` as an aware UTC datetime, clamped to the years 1 to 9999."""
    return _EPOCH + timedelta(milliseconds=min(max(timestamp, MIN_TIMESTAMP), MAX_TIMESTAMP))


def is_id_field(field_name: str) -> bool:
    """Return whether the rule for ids applies to a field of this name; it does not apply to the archive's own ids."""
    return field_name.endswith(("_id", "_ids")) and field_name not in _ARCHIVE_ID_FIELDS


def is_id(value: str) -> bool:
    """Return whether ``value`` has the form of an id."""
    return ID.fullmatch(value) is not None


def is_snowflake(value: str) -> bool:
    """Return whether ``value`` can be a Discord id: a decimal of at most 64 bits."""
    return value.isascii() and value.isdigit() and len(value) <= 20 and int(value) <= MAX_SNOWFLAKE


def is_time(value: int) -> bool:
    """Return whether ``value`` is in the years 1 to 9999."""
    return MIN_TIMESTAMP <= value <= MAX_TIMESTAMP


class ChannelKind(StrEnum):
    """The kind of a message's channel; UNKNOWN counts as private."""

    UNKNOWN = "UNKNOWN"
    TEXT = "TEXT"
    FORUM_POST = "FORUM_POST"
    PUBLIC_THREAD = "PUBLIC_THREAD"
    PRIVATE_THREAD = "PRIVATE_THREAD"
    DIRECT = "DIRECT"


class MessageChange(StrEnum):
    """What happened to a message; a reader ignores UNKNOWN and counts it."""

    UNKNOWN = "UNKNOWN"
    CREATED = "CREATED"
    EDITED = "EDITED"
    DELETED = "DELETED"


class MessageSource(StrEnum):
    """The origin of a message event; UNKNOWN counts as OTHER."""

    UNKNOWN = "UNKNOWN"
    GATEWAY = "GATEWAY"
    HISTORY = "HISTORY"
    IMPORT = "IMPORT"
    OTHER = "OTHER"


class Audience(StrEnum):
    """Who may read an answer; UNKNOWN counts as ASKER."""

    UNKNOWN = "UNKNOWN"
    PUBLIC = "PUBLIC"
    ASKER = "ASKER"


class Speaker(StrEnum):
    """The author of a context message; UNKNOWN counts as OTHER."""

    UNKNOWN = "UNKNOWN"
    ASKER = "ASKER"
    BOT = "BOT"
    OTHER = "OTHER"


class QueryOrigin(StrEnum):
    """How a question reached the bot; SERVICE means that another program asks."""

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
    """The result of answering; a reader ignores UNKNOWN and counts it."""

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
    """A source that an answer cites: a message by its ids, any other source by ``url``."""

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
    """A passage that answering used, cited or not; everyone in the guild may read it if ``acl_channel_id`` is None."""

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


DISCORDS_OWN_SOURCES = frozenset({MessageSource.GATEWAY, MessageSource.HISTORY})
"""Sources of messages that Discord itself reported; their ids are snowflakes."""

DISCORDS_OWN_ORIGINS = frozenset(QueryOrigin) - {QueryOrigin.UNKNOWN, QueryOrigin.CONSOLE, QueryOrigin.SERVICE}
"""Origins of questions that were asked on Discord; their ids, except ``query_id``, are snowflakes."""


@frozen(kw_only=True)
class BrokenRule:
    """A field that breaks a rule, and the rule; without the value, which may be secret or harmful."""

    field: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field} {self.rule}"


def find_broken_rule(event: Any, *, now: TimestampMillis) -> BrokenRule | None:
    """Return the first field of ``event`` that breaks the rule for ids or times; None if there is none.

    ``event`` is an event or a part of one, with values of the right types. ``observed_at`` is compared with ``now``.
    """
    return next(find_broken_rules(event, now=now), None)


def find_broken_rules(event: Any, *, now: TimestampMillis) -> Iterator[BrokenRule]:
    """Yield every field of ``event`` that breaks a rule, as for ``find_broken_rule``; a list is reported once."""
    why = _snowflake_reason(event)
    yield from _check_part(event, "", why)
    observed_at = getattr(event, "observed_at", None)
    if observed_at is not None and now + MAX_AHEAD_MS < observed_at <= MAX_TIMESTAMP:
        yield BrokenRule(field="observed_at", rule="must not lie more than a minute ahead")


def _snowflake_reason(event: object) -> str:
    """Return why the ids of ``event`` must be snowflakes; empty if they need not be."""
    if isinstance(event, DiscordMessage) and event.source in DISCORDS_OWN_SOURCES:
        return f"since source is {event.source.value}"
    if isinstance(event, BotQuery) and event.origin in DISCORDS_OWN_ORIGINS:
        return f"since origin is {event.origin.value}"
    return ""


def _check_part(part: object, path: str, why: str) -> Iterator[BrokenRule]:
    for name, form in _checked_fields(type(part)):
        value = getattr(part, name)
        if value is None:
            continue
        where = f"{path}{name}"
        items = value if isinstance(value, list) else (value,)
        if form is _FieldCheck.RECORD:
            for place, item in enumerate(items):
                yield from _check_part(item, f"{where}[{place}]." if items is value else f"{where}.", why)
        elif form is _FieldCheck.TIME:
            if not all(map(is_time, items)):
                yield BrokenRule(field=where, rule="must lie in the years 1 to 9999")
        elif not all(map(is_id, items)):
            yield BrokenRule(field=where, rule=f"must match {ID.pattern}")
        elif why and name != "query_id" and not all(map(is_snowflake, items)):
            yield BrokenRule(field=where, rule=f"must be a decimal of at most 64 bits, {why}")


class _FieldCheck(StrEnum):
    """How a field is checked, or each item of a list."""

    ID = "id"
    TIME = "time"
    RECORD = "record"


_CHECKED_FIELDS: dict[type[Any], list[tuple[str, _FieldCheck]]] = {}


def _checked_fields(event_class: type[Any]) -> list[tuple[str, _FieldCheck]]:
    """Return the fields of ``event_class`` that are checked, in their order; computed once per class."""
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
