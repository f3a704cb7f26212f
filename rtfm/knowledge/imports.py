"""Reads chat exports in DiscordChatExporter's JSON format.

This module checks that a file is an export and converts its messages to events. If a file is not an export, an error is
raised. If a message is invalid, it is left out; its place in the file and the reason are recorded. Memory use does not
depend on the size of the file. This module does not write to the archive or to Kafka.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import attrs
from attrs import define, field, frozen

from rtfm.clock import now_ms
from rtfm.errors import ConfigError
from rtfm.events import (
    Attachment,
    ChannelKind,
    DiscordMessage,
    MessageChange,
    MessageSource,
    TimestampMillis,
    is_snowflake,
    is_time,
)
from rtfm.knowledge import json_items
from rtfm.knowledge.json_items import JsonItem, JsonMember, NotJson

MAX_PLACES = 1_000
"""Maximum number of left-out messages of a file whose places are recorded. Further messages are only counted."""

MAX_EVENT_BYTES = 990_000
"""Maximum size of an encoded event, in bytes. A larger event is left out.

Kafka accepts records of at most 1,000,000 bytes, including key and headers."""

_Value = TypeVar("_Value")

_MAX_REASONS = 100
_OTHER_REASONS = "other reasons"
_MESSAGES = "messages"

_KINDS = {
    "GuildTextChat": ChannelKind.TEXT,
    "GuildNews": ChannelKind.TEXT,
    "GuildVoiceChat": ChannelKind.TEXT,
    "GuildStageVoice": ChannelKind.TEXT,
    "GuildPublicThread": ChannelKind.PUBLIC_THREAD,
    "GuildNewsThread": ChannelKind.PUBLIC_THREAD,
    "GuildPrivateThread": ChannelKind.PRIVATE_THREAD,
    "DirectTextChat": ChannelKind.DIRECT,
    "DirectGroupTextChat": ChannelKind.DIRECT,
}
_THREADS = (ChannelKind.PUBLIC_THREAD, ChannelKind.PRIVATE_THREAD, ChannelKind.FORUM_POST)

_MESSAGE_TYPES = ("Default", "Reply")
"""The types of messages that people write. Discord itself writes messages of the other types: joins, pins and so on."""

_DIRECT_GUILD = "0"
"""The guild id that the exporter writes for direct messages."""

_MAX_NAME_CHARACTERS = 100
"""A name in a mention is recognised if it has at most this many characters. Names on Discord have at most 32."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@frozen(kw_only=True)
class LeftOut:
    """A message that does not become an event, with its place in the file and the reason."""

    where: str
    why: str


@define
class LeftOutState:
    """The left-out messages of a file: their number, their number by reason, and the places of the first ones."""

    count: int = 0
    first: list[LeftOut] = field(factory=list)
    reasons: Counter[str] = field(factory=Counter)

    def add(self, where: str, why: str) -> None:
        """Add a left-out message."""
        self.count += 1
        if len(self.first) < MAX_PLACES:
            self.first.append(LeftOut(where=where, why=why))
        self.reasons[why if why in self.reasons or len(self.reasons) < _MAX_REASONS else _OTHER_REASONS] += 1


@frozen(kw_only=True)
class ChatExport:
    """An export file with the messages of one channel. ``guild_id`` is None for direct messages.

    ``count`` is the number of messages that become events. The messages are not kept in memory, because a file may be
    larger than the memory. ``observed_at`` is the time of the export, None if the file does not contain it.
    """

    path: Path
    guild_id: str | None
    channel_id: str
    channel_kind: ChannelKind
    channel_name: str
    parent_channel_id: str | None
    observed_at: TimestampMillis | None
    count: int
    left_out: LeftOutState

    def messages(self) -> Iterator[DiscordMessage]:
        """Read the file again and yield its messages in order.

        Raises ConfigError if the file has changed and is not an export any more.
        """
        place = attrs.asdict(self, filter=attrs.filters.exclude("path", "count", "left_out"), recurse=False)
        for entry in _read_entries(self.path):
            if isinstance(entry, JsonItem):
                with contextlib.suppress(_Invalid):
                    yield _parse_message(entry.value, **place)


class _Invalid(Exception):
    """A message, or the part of a file outside its messages, is invalid. The argument says why."""


def read_export(path: Path) -> ChatExport:
    """Read a whole file, check that it is an export, and return its description.

    Raises ConfigError if the file cannot be read, is not JSON or is not an export.
    """
    head: dict[str, Any] = {}
    left_out, count = LeftOutState(), 0
    for entry in _read_entries(path):
        if isinstance(entry, JsonMember):
            if entry.key == _MESSAGES and _MESSAGES in head:
                raise ConfigError(
                    f"{path} is not a chat export: it contains messages twice", hint="Export the channel again."
                )
            if entry.key in (_MESSAGES, "guild", "channel", "exportedAt"):
                head[entry.key] = entry.value
            continue
        try:
            # The fields of the guild and the channel may come later in the file, so they are not checked here.
            _parse_message(entry.value, channel_id="", channel_kind=ChannelKind.UNKNOWN)
            count += 1
        except _Invalid as exc:
            message_id = entry.value.get("id") if isinstance(entry.value, dict) else None
            place = f"messages[{entry.number}]"
            left_out.add(f"{place} (id {message_id})" if _is_snowflake(message_id) else place, str(exc))
    try:
        guild = _read_object(head, "guild")
        channel = _read_object(head, "channel")
        _require_type(head.get(_MESSAGES), list, _MESSAGES, "a list")
        guild_id = _read_snowflake(guild, "id", "guild.id")
        channel_id = _read_snowflake(channel, "id", "channel.id")
        kind_name = _read_string(channel, "type", "channel.type")
    except _Invalid as exc:
        raise ConfigError(
            f"{path} is not a chat export of DiscordChatExporter: {exc}", hint="Export the channel as JSON."
        ) from exc
    kind = _KINDS.get(kind_name, ChannelKind.UNKNOWN)
    parent = channel.get("categoryId")
    if kind in _THREADS and parent is not None and not _is_snowflake(parent):
        raise ConfigError(f"{path}: channel.categoryId is not a valid id", hint="Export the channel again.")
    return ChatExport(
        path=path,
        guild_id=None if guild_id == _DIRECT_GUILD else guild_id,
        channel_id=channel_id,
        channel_kind=kind,
        channel_name=_replace_surrogates(str(channel.get("name") or channel_id)),
        # For a thread, the exporter writes the id of the parent channel into the field for the category.
        parent_channel_id=str(parent) if kind in _THREADS and parent else None,
        observed_at=_parse_exported_at(head),
        count=count,
        left_out=left_out,
    )


def _read_entries(path: Path) -> Iterator[JsonMember | JsonItem]:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(
                f"{path} is not a regular file; an export is read more than once", hint="Save the export to a file."
            )
        yield from json_items.read(path, array=_MESSAGES)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except NotJson as exc:
        place = f"{path}, {exc}" if str(exc).startswith(("line", "byte")) else f"{path} is not a chat export: {exc}"
        raise ConfigError(place, hint="Export the channel as JSON. An interrupted export is incomplete.") from exc


def _parse_message(message: object, **place: Any) -> DiscordMessage:
    """Return the event of a message. ``place`` contains the fields of the event that describe guild and channel."""
    if not isinstance(message, dict):
        raise _Invalid("not a JSON object")
    message_id = _read_snowflake(message, "id", "id")
    kind = message.get("type", "Default")
    if kind not in _MESSAGE_TYPES:
        raise _Invalid(f"a system message of type {kind[:50]}" if isinstance(kind, str) else "type is not text")
    author = _read_object(message, "author")
    content = _read_string(message, "content", "content")
    edited = message.get("timestampEdited")
    mentions = _parse_mentions(message)
    return DiscordMessage(
        **place,
        message_id=message_id,
        author_id=_read_snowflake(author, "id", "author.id"),
        author_name=_replace_surrogates(str(author.get("nickname") or _read_string(author, "name", "author.name"))),
        author_is_bot=author.get("isBot") is True,
        content=_replace_surrogates(_restore_mentions(content, mentions)),
        created_at=_parse_time(message.get("timestamp"), "timestamp"),
        edited_at=None if edited is None else _parse_time(edited, "timestampEdited"),
        change=MessageChange.CREATED,
        source=MessageSource.IMPORT,
        reply_to_message_id=_parse_reply(message),
        mentioned_user_ids=list(dict.fromkeys(user for user, _ in mentions)),
        attachments=_parse_attachments(message),
    )


def _restore_mentions(content: str, mentions: list[tuple[str, list[str]]]) -> str:
    """Return the content with Discord's mentions ``<@id>`` instead of the names ``@name`` that the exporter wrote."""
    user_of_name = {name: user for user, names in mentions for name in names if 0 < len(name) <= _MAX_NAME_CHARACTERS}
    # The names are looked up by their first letter and length, the longest first. A regular expression of all names
    # would take time in proportion to the number of names times the length of the content.
    lengths: dict[str, list[int]] = {}
    for length, first in sorted({(len(name), name[0]) for name in user_of_name}, reverse=True):
        lengths.setdefault(first, []).append(length)
    parts: list[str] = []
    done = 0
    at = content.find("@") if user_of_name else -1
    while at >= 0:
        for length in lengths.get(content[at + 1 : at + 2], ()):
            end = at + 1 + length
            user = user_of_name.get(content[at + 1 : end])
            if user is not None and not _is_in_word(content[end : end + 1]):
                parts += (content[done:at], f"<@{user}>")
                done = end
                break
        at = content.find("@", max(done, at + 1))
    return "".join([*parts, content[done:]])


def _is_in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _parse_mentions(message: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    found = []
    for person in _read_list(message, "mentions"):
        if not isinstance(person, dict):
            raise _Invalid("mentions contains a value that is not an object")
        names = [name for key in ("nickname", "name") if isinstance(name := person.get(key), str)]
        found.append((_read_snowflake(person, "id", "mentions.id"), names))
    return found


def _parse_reply(message: Mapping[str, Any]) -> str | None:
    reference = message.get("reference")
    if not isinstance(reference, dict) or message.get("type") != "Reply":
        return None
    target = reference.get("messageId")
    return str(target) if _is_snowflake(target) else None


def _parse_attachments(message: Mapping[str, Any]) -> list[Attachment]:
    found = []
    for attachment in _read_list(message, "attachments"):
        if not isinstance(attachment, dict):
            raise _Invalid("attachments contains a value that is not an object")
        size = attachment.get("fileSizeBytes", 0)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise _Invalid("attachments.fileSizeBytes is not a valid size")
        found.append(
            Attachment(
                filename=_replace_surrogates(_read_string(attachment, "fileName", "attachments.fileName")),
                url=_replace_surrogates(_read_string(attachment, "url", "attachments.url")),
                size_bytes=size,
            )
        )
    return found


def _read_object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _require_type(parent.get(key), dict, key, "an object")


def _read_list(parent: Mapping[str, Any], key: str) -> list[Any]:
    return [] if parent.get(key) is None else _require_type(parent[key], list, key, "a list")


def _read_string(parent: Mapping[str, Any], key: str, place: str) -> str:
    return _require_type(parent.get(key), str, place, "text")


def _require_type(value: object, kind: type[_Value], place: str, kind_name: str) -> _Value:
    if not isinstance(value, kind):
        raise _Invalid(f"{place} is missing" if value is None else f"{place} is not {kind_name}")
    return value


def _read_snowflake(parent: Mapping[str, Any], key: str, place: str) -> str:
    value = parent.get(key)
    if value is None:
        raise _Invalid(f"{place} is missing")
    if not _is_snowflake(value):
        raise _Invalid(f"{place} is not a valid id: digits as text, at most 64 bits")
    return str(value)


def _is_snowflake(value: object) -> bool:
    return isinstance(value, str) and is_snowflake(value)


def _parse_time(value: object, place: str) -> TimestampMillis:
    try:
        moment = datetime.fromisoformat(_require_type(value, str, place, "text"))
    except ValueError as exc:
        raise _Invalid(f"{place} is not an ISO 8601 time") from exc
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    timestamp = TimestampMillis((moment - _EPOCH) // timedelta(milliseconds=1))
    if not is_time(timestamp):
        raise _Invalid(f"{place} must lie in the years 1 to 9999 of UTC")
    return timestamp


def _parse_exported_at(document: Mapping[str, Any]) -> TimestampMillis | None:
    """Return the time of the export, or the present time if this is earlier; None if the file has no valid time."""
    try:
        return min(_parse_time(document.get("exportedAt"), "exportedAt"), now_ms())
    except _Invalid:
        return None


def _replace_surrogates(text: str) -> str:
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
