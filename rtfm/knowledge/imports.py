"""Reads chat exports in DiscordChatExporter's JSON shape.

Owns the check that a file is such an export, and what of it becomes events. A file that is none raises; a message that
is broken is left out with its place and the reason. Memory does not grow with the file. Writes nothing.
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
from rtfm.knowledge.json_items import Item, Member, NotJson

MAX_PLACES = 1_000
"""Messages of a file that are left out with their place; more are counted only."""

MAX_EVENT_BYTES = 990_000
"""A longer event is left out: with its key and headers it would be over what Kafka takes, 1,000,000 bytes."""

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

_SAID = ("Default", "Reply")
"""What people wrote. The other types are notices of Discord: joins, pins, calls, boosts, thread starts."""

_DIRECT_GUILD = "0"
"""The guild id that the exporter gives to direct messages."""

_MAX_NAME_CHARACTERS = 100
"""Of a name that is mentioned; Discord's are 32 at most."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@frozen(kw_only=True)
class LeftOut:
    """A message that does not become an event: its place in the file, and why."""

    where: str
    why: str


@define
class LeftOutState:
    """The messages of a file that were left out: how many, for which reasons, and the first ones with their places."""

    count: int = 0
    first: list[LeftOut] = field(factory=list)
    reasons: Counter[str] = field(factory=Counter)

    def add(self, where: str, why: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < MAX_PLACES:
            self.first.append(LeftOut(where=where, why=why))
        self.reasons[why if why in self.reasons or len(self.reasons) < _MAX_REASONS else _OTHER_REASONS] += 1


@frozen(kw_only=True)
class ChatExport:
    """One file: a channel and what was said in it. ``guild_id`` is None for direct messages.

    ``count`` messages become events; they are read again for each use, since a file may be larger than memory.
    ``observed_at`` is when the file was written, None where it does not say so.
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
        """The messages in their order. Raises ConfigError when the file has changed and is no export any more."""
        place = attrs.asdict(self, filter=attrs.filters.exclude("path", "count", "left_out"), recurse=False)
        for entry in _entries(self.path):
            if isinstance(entry, Item):
                with contextlib.suppress(_Broken):
                    yield _message(entry.value, **place)


class _Broken(Exception):
    """Why a message, or the head of a file, cannot be read."""


def read_export(path: Path) -> ChatExport:
    """Check one export, all of it.

    Raises ConfigError for a file that cannot be read, is no JSON or is something else, with the place in it.
    """
    head: dict[str, Any] = {}
    left_out, count = LeftOutState(), 0
    for entry in _entries(path):
        if isinstance(entry, Member):
            if entry.key == _MESSAGES and _MESSAGES in head:
                raise ConfigError(
                    f"{path} is not a chat export: it has messages twice", hint="Export the channel again."
                )
            if entry.key in (_MESSAGES, "guild", "channel", "exportedAt"):
                head[entry.key] = entry.value
            continue
        try:
            # What follows may be the guild and the channel.
            _message(entry.value, channel_id="", channel_kind=ChannelKind.UNKNOWN)
            count += 1
        except _Broken as exc:
            named = entry.value.get("id") if isinstance(entry.value, dict) else None
            place = f"messages[{entry.number}]"
            left_out.add(f"{place} (id {named})" if _is_snowflake(named) else place, str(exc))
    try:
        guild = _object(head, "guild")
        channel = _object(head, "channel")
        if not isinstance(head.get(_MESSAGES), list):
            raise _Broken("messages is no list")
        guild_id = _snowflake(guild, "id", "guild.id")
        channel_id = _snowflake(channel, "id", "channel.id")
        kind_name = _string(channel, "type", "channel.type")
    except _Broken as exc:
        raise ConfigError(
            f"{path} is not a chat export of DiscordChatExporter: {exc}", hint="Export the channel as JSON."
        ) from exc
    kind = _KINDS.get(kind_name, ChannelKind.UNKNOWN)
    parent = channel.get("categoryId")
    if kind in _THREADS and parent is not None and not _is_snowflake(parent):
        raise ConfigError(f"{path}: channel.categoryId is no id", hint="Export the channel again.")
    return ChatExport(
        path=path,
        guild_id=None if guild_id == _DIRECT_GUILD else guild_id,
        channel_id=channel_id,
        channel_kind=kind,
        channel_name=_clean(str(channel.get("name") or channel_id)),
        # The exporter names a thread's parent in the category's fields.
        parent_channel_id=str(parent) if kind in _THREADS and parent else None,
        observed_at=_exported_at(head),
        count=count,
        left_out=left_out,
    )


def _entries(path: Path) -> Iterator[Member | Item]:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is no file, which is read more than once", hint="Save the export to a file.")
        yield from json_items.read(path, array=_MESSAGES)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except NotJson as exc:
        place = f"{path}, {exc}" if str(exc).startswith(("line", "byte")) else f"{path} is not a chat export: {exc}"
        raise ConfigError(
            place, hint="Export the channel as JSON; an export that was interrupted ends in the middle."
        ) from exc


def _message(message: object, **place: Any) -> DiscordMessage:
    """The event of a message; ``place`` are the fields that it does not carry itself."""
    if not isinstance(message, dict):
        raise _Broken("no JSON object")
    message_id = _snowflake(message, "id", "id")
    kind = message.get("type", "Default")
    if kind not in _SAID:
        raise _Broken(f"a notice of type {kind[:50]}" if isinstance(kind, str) else "type is no text")
    author = _object(message, "author")
    content = _string(message, "content", "content")
    edited = message.get("timestampEdited")
    mentions = _people(message)
    return DiscordMessage(
        **place,
        message_id=message_id,
        author_id=_snowflake(author, "id", "author.id"),
        author_name=_clean(str(author.get("nickname") or _string(author, "name", "author.name"))),
        author_is_bot=author.get("isBot") is True,
        content=_clean(_with_markup(content, mentions)),
        created_at=_time(message.get("timestamp"), "timestamp"),
        edited_at=None if edited is None else _time(edited, "timestampEdited"),
        change=MessageChange.CREATED,
        source=MessageSource.IMPORT,
        reply_to_message_id=_reply(message),
        mentioned_user_ids=list(dict.fromkeys(user for user, _ in mentions)),
        attachments=_attachments(message),
    )


def _with_markup(content: str, mentions: list[tuple[str, list[str]]]) -> str:
    """The content as Discord has it: the exporter writes ``@name`` for a mention, Discord ``<@id>``."""
    of_name = {name: user for user, names in mentions for name in names if 0 < len(name) <= _MAX_NAME_CHARACTERS}
    # By first letter and longest first: a pattern of all names would take the product of names and content.
    lengths: dict[str, list[int]] = {}
    for length, first in sorted({(len(name), name[0]) for name in of_name}, reverse=True):
        lengths.setdefault(first, []).append(length)
    parts: list[str] = []
    done = 0
    sign = content.find("@") if of_name else -1
    while sign >= 0:
        for length in lengths.get(content[sign + 1 : sign + 2], ()):
            end = sign + 1 + length
            user = of_name.get(content[sign + 1 : end])
            if user is not None and not _is_in_word(content[end : end + 1]):
                parts += (content[done:sign], f"<@{user}>")
                done = end
                break
        sign = content.find("@", max(done, sign + 1))
    return "".join([*parts, content[done:]])


def _is_in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _people(message: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    found = []
    for person in _list(message, "mentions"):
        if not isinstance(person, dict):
            raise _Broken("mentions holds something else than objects")
        names = [name for key in ("nickname", "name") if isinstance(name := person.get(key), str)]
        found.append((_snowflake(person, "id", "mentions.id"), names))
    return found


def _reply(message: Mapping[str, Any]) -> str | None:
    reference = message.get("reference")
    if not isinstance(reference, dict) or message.get("type") != "Reply":
        return None
    target = reference.get("messageId")
    return str(target) if _is_snowflake(target) else None


def _attachments(message: Mapping[str, Any]) -> list[Attachment]:
    found = []
    for attachment in _list(message, "attachments"):
        if not isinstance(attachment, dict):
            raise _Broken("attachments holds something else than objects")
        size = attachment.get("fileSizeBytes", 0)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise _Broken("attachments.fileSizeBytes is no size")
        found.append(
            Attachment(
                filename=_clean(_string(attachment, "fileName", "attachments.fileName")),
                url=_clean(_string(attachment, "url", "attachments.url")),
                size_bytes=size,
            )
        )
    return found


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _of_type(parent.get(key), dict, key, "object")


def _list(parent: Mapping[str, Any], key: str) -> list[Any]:
    return [] if parent.get(key) is None else _of_type(parent[key], list, key, "list")


def _string(parent: Mapping[str, Any], key: str, place: str) -> str:
    return _of_type(parent.get(key), str, place, "text")


def _of_type(value: object, kind: type[_Value], place: str, named: str) -> _Value:
    if not isinstance(value, kind):
        raise _Broken(f"{place} is missing" if value is None else f"{place} is no {named}")
    return value


def _snowflake(parent: Mapping[str, Any], key: str, place: str) -> str:
    value = parent.get(key)
    if value is None:
        raise _Broken(f"{place} is missing")
    if not _is_snowflake(value):
        raise _Broken(f"{place} is no id: digits as text, at most 64 bits")
    return str(value)


def _is_snowflake(value: object) -> bool:
    return isinstance(value, str) and is_snowflake(value)


def _time(value: object, place: str) -> TimestampMillis:
    try:
        moment = datetime.fromisoformat(_of_type(value, str, place, "text"))
    except ValueError as exc:
        raise _Broken(f"{place} is no ISO 8601 time") from exc
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    timestamp = TimestampMillis((moment - _EPOCH) // timedelta(milliseconds=1))
    if not is_time(timestamp):
        raise _Broken(f"{place} must lie in the years 1 to 9999 of UTC")
    return timestamp


def _exported_at(document: Mapping[str, Any]) -> TimestampMillis | None:
    """When an export was written; by this machine's clock where the exporter's is ahead."""
    try:
        return min(_time(document.get("exportedAt"), "exportedAt"), now_ms())
    except _Broken:
        return None


def _clean(text: str) -> str:
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
