"""Decides which channels an answer may use.

The bot makes this decision when a question is asked, and again before the answer is posted. The channel in which the
answer is posted is called the destination.

The bot does not know the roles of members, because it does not use the members intent. Therefore a reply uses a channel
only if it is certain that everyone who sees the destination can read the channel. These are the channels that all
members can read, and the channels that are visible to the same roles and members as the destination.

The ids of visible channels are ids of access channels. The id of a channel or forum also covers its public threads and
posts. A private thread has an id of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import discord

from rtfm.bot import messages
from rtfm.events import Citation, RetrievedPassage, SourceKind, is_snowflake
from rtfm.visibility import is_readable

# Voice and stage channels are left out. Reading them needs another permission, and their messages are not published.
ReadableChannel = discord.TextChannel | discord.ForumChannel

_NO_CHANNEL_STATUSES = (400, 403, 404)  # HTTP statuses for a channel that does not exist or that the bot cannot see


def channels_visible_to_readers(destination: discord.TextChannel | discord.Thread) -> list[str]:
    """Return the sorted ids of the channels that everyone who can read ``destination`` can also read.

    Age-restricted channels are included only if the destination is age-restricted. The list is empty if the destination
    is a thread whose parent is unknown.
    """
    channel = destination.parent if isinstance(destination, discord.Thread) else destination
    if channel is None:
        return []
    rules = _view_rules(channel)
    found = {
        str(other.id)
        for other in _readable_channels(channel.guild)
        if (channel.is_nsfw() or not other.is_nsfw())
        and _has_open_history(other)
        and (_is_visible_to_everyone(other) or _view_rules(other) == rules)
    }
    if isinstance(destination, discord.Thread) and destination.is_private():
        # A private thread is read by its members, and by moderators, who can read every thread.
        found.add(str(destination.id))
    return sorted(found)


def channels_visible_to_everyone(guild: discord.Guild) -> list[str]:
    """Return the sorted ids of the channels that all members of ``guild`` can read and that are not age-restricted."""
    return sorted(
        str(channel.id)
        for channel in _readable_channels(guild)
        if not channel.is_nsfw() and _is_visible_to_everyone(channel) and _has_open_history(channel)
    )


def can_show(
    citations: Iterable[Citation], retrieved: Iterable[RetrievedPassage], visible_channel_ids: Iterable[str]
) -> bool:
    """Return whether the readers of an answer can read all messages that the answer cites and all retrieved passages.

    ``citations`` must come from ``refresh_citation_channels``. ``visible_channel_ids`` are the channels that the
    readers can read.
    """
    visible = set(visible_channel_ids)
    return all(
        citation.kind is SourceKind.MESSAGE
        and is_readable(citation.channel_id, citation.parent_channel_id, citation.channel_kind, visible)
        for citation in citations
    ) and all(passage.kind is SourceKind.MESSAGE and passage.acl_channel_id in visible for passage in retrieved)


async def refresh_citation_channels(guild: discord.Guild | None, citations: Iterable[Citation]) -> list[Citation]:
    """Return ``citations`` with the current kind and parent of each cited message's channel.

    If the bot cannot see the channel in ``guild``, the citation gets the kind UNKNOWN, so that ``can_show`` is false.
    Raises discord.py's errors if Discord does not answer.
    """
    channels: dict[str | None, object | None] = {}
    refreshed = []
    for citation in citations:
        channel_id = citation.channel_id
        if channel_id not in channels:
            is_of_guild = guild is not None and citation.guild_id == str(guild.id)
            channels[channel_id] = await _find_channel(guild, channel_id) if guild and is_of_guild else None
        channel = channels[channel_id]
        kind, parent_channel_id = messages.classify_channel(channel)
        refreshed.append(
            attrs.evolve(
                citation,
                kind=citation.kind if channel is not None else SourceKind.UNKNOWN,
                channel_kind=kind,
                parent_channel_id=parent_channel_id,
            )
        )
    return refreshed


async def _find_channel(guild: discord.Guild, channel_id: str | None) -> object | None:
    if channel_id is None or not is_snowflake(channel_id):
        return None
    if channel := guild.get_channel_or_thread(int(channel_id)):
        return channel
    try:
        # The channel can be an archived thread, which the gateway does not report.
        return await guild.fetch_channel(int(channel_id))
    except discord.InvalidData:  # the channel is in another guild
        return None
    except discord.HTTPException as exc:
        if exc.status in _NO_CHANNEL_STATUSES:
            return None
        raise


def _readable_channels(guild: discord.Guild) -> list[ReadableChannel]:
    return [channel for channel in guild.channels if isinstance(channel, ReadableChannel)]


def _is_visible_to_everyone(channel: ReadableChannel) -> bool:
    """Return whether every member sees ``channel``."""
    rules = _view_rules(channel)
    everyone = channel.guild.default_role
    return rules.get(everyone.id, everyone.permissions.view_channel) and all(rules.values())


def _view_rules(channel: ReadableChannel) -> dict[int, bool]:
    """Return, for each role or member with an overwrite in ``channel``, whether the overwrite allows viewing it.

    Two channels with the same result have the same viewers. The result does not include the server-wide permissions of
    @everyone, because these permissions have another effect than an overwrite for @everyone. If an overwrite denies
    viewing to @everyone, the channel is also hidden from roles whose server-wide permissions allow viewing. If only the
    server-wide permissions deny viewing to @everyone, these roles see the channel.
    """
    return {
        target.id: overwrite.view_channel
        for target, overwrite in channel.overwrites.items()
        if overwrite.view_channel is not None
    }


def _has_open_history(channel: ReadableChannel) -> bool:
    """Return whether everyone who sees ``channel`` can also read its earlier messages."""
    everyone = channel.guild.default_role
    allowed = channel.overwrites_for(everyone).read_message_history
    if allowed is None:
        allowed = everyone.permissions.read_message_history
    return allowed and all(overwrite.read_message_history is not False for overwrite in channel.overwrites.values())
