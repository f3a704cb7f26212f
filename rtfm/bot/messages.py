"""Turns Discord's messages into the events of ``discord-messages``.

Only messages that people wrote in text channels, threads and forum posts of guilds become events. Left out are messages
of bots and webhooks, Discord's own notices about joins or pins, messages in voice channels, and direct messages. The
deletion of any message in a guild becomes an event, because Discord does not report who wrote a deleted message.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import discord

from rtfm.clock import now_ms
from rtfm.discord_ids import created_at
from rtfm.events import Attachment, ChannelKind, DiscordMessage, MessageChange, MessageSource, TimestampMillis

PERSON_MESSAGE_TYPES = frozenset({discord.MessageType.default, discord.MessageType.reply})
"""Types of messages that people write. Replies are included because most answers are replies."""

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_from_person(message: discord.Message) -> bool:
    """Return whether a person wrote ``message``."""
    return message.type in PERSON_MESSAGE_TYPES and not message.author.bot and message.webhook_id is None


def to_message_event(message: discord.Message, change: MessageChange) -> DiscordMessage | None:
    """Return the event for a new or edited message, or None for a message that does not become an event."""
    kind, parent_channel_id = classify_channel(message.channel)
    if message.guild is None or kind is ChannelKind.UNKNOWN or not is_from_person(message):
        return None
    reference = message.reference if message.type is discord.MessageType.reply else None
    return DiscordMessage(
        message_id=str(message.id),
        guild_id=str(message.guild.id),
        channel_id=str(message.channel.id),
        channel_kind=kind,
        channel_name=getattr(message.channel, "name", None),
        parent_channel_id=parent_channel_id,
        author_id=str(message.author.id),
        author_name=message.author.display_name,
        content=message.content,
        created_at=created_at(message.id),
        edited_at=_to_millis(message.edited_at),
        change=change,
        observed_at=now_ms(),
        source=MessageSource.GATEWAY,
        reply_to_message_id=str(reference.message_id) if reference and reference.message_id else None,
        mentioned_user_ids=[str(user.id) for user in message.mentions],
        attachments=[
            Attachment(
                filename=attachment.filename,
                url=attachment.url,
                content_type=attachment.content_type,
                size_bytes=attachment.size,
            )
            for attachment in message.attachments
        ],
    )


def to_deletion_event(message_id: int, channel_id: int, guild_id: int, channel: object | None) -> DiscordMessage:
    """Return the event for a deleted message. Discord reports only the ids of a deleted message.

    ``channel`` is the client's channel object, or None if the client does not know the channel.
    """
    kind, parent_channel_id = classify_channel(channel)
    return DiscordMessage(
        message_id=str(message_id),
        guild_id=str(guild_id),
        channel_id=str(channel_id),
        channel_kind=kind,
        parent_channel_id=parent_channel_id,
        created_at=created_at(message_id),
        change=MessageChange.DELETED,
        observed_at=now_ms(),
        source=MessageSource.GATEWAY,
    )


def classify_channel(channel: object | None) -> tuple[ChannelKind, str | None]:
    """Return the kind of ``channel``, and the id of its parent if it is a thread."""
    match channel:
        case discord.TextChannel():
            return ChannelKind.TEXT, None
        case discord.Thread() if channel.is_private():
            return ChannelKind.PRIVATE_THREAD, str(channel.parent_id)
        case discord.Thread() if isinstance(channel.parent, discord.ForumChannel):
            return ChannelKind.FORUM_POST, str(channel.parent_id)
        case discord.Thread():
            return ChannelKind.PUBLIC_THREAD, str(channel.parent_id)
        case discord.DMChannel():
            return ChannelKind.DIRECT, None
    return ChannelKind.UNKNOWN, None


def _to_millis(moment: datetime | None) -> TimestampMillis | None:
    return None if moment is None else TimestampMillis((moment - _UNIX_EPOCH) // timedelta(milliseconds=1))
