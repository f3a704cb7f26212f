"""Reads chat exports in DiscordChatExporter's JSON shape.

Owns the check that a file is such an export, and what of it becomes events. A file that is none raises; a message that
is broken is left out with its place and the reason. Writes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attrs import frozen

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

MAX_FILE_BYTES = 2 * 1024**3
"""A larger file is refused: it is read into memory whole. The exporter splits large channels with --partition."""

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

_SURROGATE = re.compile("[\ud800-\udfff]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@frozen(kw_only=True)
class LeftOut:
    """A message that does not become an event: its place in the file, and why."""

    where: str
    why: str


@frozen(kw_only=True)
class ChatExport:
    """One file: a channel and what was said in it. ``guild_id`` is None for direct messages.

    ``observed_at`` is when the file was written, None where it does not say so.
    """

    path: Path
    guild_id: str | None
    channel_id: str
    channel_kind: ChannelKind
    channel_name: str
    parent_channel_id: str | None
    observed_at: TimestampMillis | None
    messages: list[DiscordMessage]
    left_out: list[LeftOut]


class _Broken(Exception):
    """Why a message, or the head of a file, cannot be read."""


def read_export(path: Path) -> ChatExport:
    """Read one export.

    Raises ConfigError for a file that cannot be read, is no JSON or is something else, with the place in it.
    """
    document = _load(path)
    try:
        guild = _object(document, "guild")
        channel = _object(document, "channel")
        messages = document.get("messages")
        if not isinstance(messages, list):
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
    export = ChatExport(
        path=path,
        guild_id=None if guild_id == _DIRECT_GUILD else guild_id,
        channel_id=channel_id,
        channel_kind=kind,
        channel_name=_clean(str(channel.get("name") or channel_id)),
        # The exporter names a thread's parent in the category's fields.
        parent_channel_id=str(parent) if kind in _THREADS and parent else None,
        observed_at=_exported_at(document),
        messages=[],
        left_out=[],
    )
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        try:
            export.messages.append(_message(message, export))
        except _Broken as exc:
            named = message.get("id") if isinstance(message, dict) else None
            where = f"{place} (id {named})" if isinstance(named, str) and named.isdigit() else place
            export.left_out.append(LeftOut(where=where, why=str(exc)))
    return export


def _load(path: Path) -> Mapping[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{path} has {size} bytes, more than {MAX_FILE_BYTES}", hint="Export it in parts: --partition 100mb."
            )
        data = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}, byte {exc.start}: not UTF-8", hint="Export the channel as JSON.") from exc
    except json.JSONDecodeError as exc:
        raise ConfigError(
            f"{path}, line {exc.lineno}, column {exc.colno}: not JSON: {exc.msg}",
            hint="Export the channel as JSON; an export that was interrupted ends in the middle.",
        ) from exc
    except RecursionError as exc:
        raise ConfigError(f"{path} is nested too deeply to be a chat export") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is not a chat export: it holds no JSON object", hint="Export the channel as JSON.")
    return document


def _message(message: object, export: ChatExport) -> DiscordMessage:
    if not isinstance(message, dict):
        raise _Broken("no JSON object")
    message_id = _snowflake(message, "id", "id")
    kind = message.get("type", "Default")
    if kind not in _SAID:
        raise _Broken(f"a notice of type {kind}" if isinstance(kind, str) else "type is no text")
    author = _object(message, "author")
    content = _string(message, "content", "content")
    edited = message.get("timestampEdited")
    mentions = _people(message)
    return DiscordMessage(
        message_id=message_id,
        guild_id=export.guild_id,
        channel_id=export.channel_id,
        channel_kind=export.channel_kind,
        channel_name=export.channel_name,
        parent_channel_id=export.parent_channel_id,
        author_id=_snowflake(author, "id", "author.id"),
        author_name=_clean(str(author.get("nickname") or _string(author, "name", "author.name"))),
        author_is_bot=author.get("isBot") is True,
        content=_clean(_with_markup(content, mentions)),
        created_at=_time(message.get("timestamp"), "timestamp"),
        edited_at=None if edited is None else _time(edited, "timestampEdited"),
        change=MessageChange.CREATED,
        observed_at=export.observed_at,
        source=MessageSource.IMPORT,
        reply_to_message_id=_reply(message),
        mentioned_user_ids=list(dict.fromkeys(user for user, _ in mentions)),
        attachments=_attachments(message),
    )


def _with_markup(content: str, mentions: list[tuple[str, list[str]]]) -> str:
    """The content as Discord has it: the exporter writes ``@name`` for a mention, Discord ``<@id>``."""
    of_name = {name: user for user, names in mentions for name in names if name}
    if not of_name:
        return content
    longest_first = sorted(of_name, key=lambda name: -len(name))
    pattern = re.compile("@(" + "|".join(re.escape(name) for name in longest_first) + r")(?!\w)")
    return pattern.sub(lambda match: f"<@{of_name[match.group(1)]}>", content)


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
    value = parent.get(key)
    if not isinstance(value, dict):
        raise _Broken(f"{key} is missing" if value is None else f"{key} is no object")
    return value


def _list(parent: Mapping[str, Any], key: str) -> list[Any]:
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _Broken(f"{key} is no list")
    return value


def _string(parent: Mapping[str, Any], key: str, place: str) -> str:
    value = parent.get(key)
    if not isinstance(value, str):
        raise _Broken(f"{place} is missing" if value is None else f"{place} is no text")
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
    if not isinstance(value, str):
        raise _Broken(f"{place} is missing" if value is None else f"{place} is no text")
    try:
        moment = datetime.fromisoformat(value)
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
