"""Which channels an answer may rest on, decided when the question is asked and again before the answer is posted.

The bot knows no member's roles (it does without the members intent), so a reply in a channel may use only what
provably everybody who sees that channel can read: channels that every member reads, and channels that show
themselves to the same roles and members as the destination. Anything unclear counts as hidden. Ids are given as the
design's access ids: channels and forums, for their public threads and posts too; private threads by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

import discord

from rtfm.events import ChannelKind, Citation, RetrievedPassage, SourceKind

# Voice and stage channels ask for another permission to be read; they are not listened to either.
ReadableChannel = discord.TextChannel | discord.ForumChannel


def visible_to_readers_of(destination: discord.TextChannel | discord.Thread) -> list[str]:
    """Ids of the channels that everybody who can read ``destination`` can read, sorted.

    Age-restricted channels are left out unless the destination is one. Empty when the destination is a thread whose
    channel is not known.
    """
    channel = destination.parent if isinstance(destination, discord.Thread) else destination
    if channel is None:
        return []
    rules = _view_rules(channel)
    found = {
        str(other.id)
        for other in _readable_channels(channel.guild)
        if (channel.is_nsfw() or not other.is_nsfw())
        and _history_is_open(other)
        and (_is_open(other) or _view_rules(other) == rules)
    }
    if isinstance(destination, discord.Thread) and destination.is_private():
        # Its readers are its members, and moderators who may open every thread.
        found.add(str(destination.id))
    return sorted(found)


def visible_to_all(guild: discord.Guild) -> list[str]:
    """Ids of the channels that every member of ``guild`` can read, sorted, without age-restricted ones."""
    return sorted(
        str(channel.id)
        for channel in _readable_channels(guild)
        if not channel.is_nsfw() and _is_open(channel) and _history_is_open(channel)
    )


def may_show(
    citations: Iterable[Citation], retrieved: Iterable[RetrievedPassage], visible_channel_ids: Iterable[str]
) -> bool:
    """Whether everything behind an answer, cited or only looked at, stands where its readers can read."""
    visible = set(visible_channel_ids)
    return all(_access_id(citation) in visible for citation in citations) and all(
        passage.kind is SourceKind.MESSAGE and passage.acl_channel_id in visible for passage in retrieved
    )


def _access_id(citation: Citation) -> str | None:
    if citation.kind is not SourceKind.MESSAGE:
        return None
    match citation.channel_kind:
        case ChannelKind.TEXT | ChannelKind.PRIVATE_THREAD:
            return citation.channel_id
        case ChannelKind.PUBLIC_THREAD | ChannelKind.FORUM_POST:
            return citation.parent_channel_id
    return None


def _readable_channels(guild: discord.Guild) -> list[ReadableChannel]:
    return [channel for channel in guild.channels if isinstance(channel, ReadableChannel)]


def _is_open(channel: ReadableChannel) -> bool:
    """Whether every member sees ``channel``."""
    rules = _view_rules(channel)
    everyone = channel.guild.default_role
    return rules.get(everyone.id, everyone.permissions.view_channel) and all(rules.values())


def _view_rules(channel: ReadableChannel) -> dict[int, bool]:
    """Whom ``channel`` is shown to or hidden from by its own overwrites: id of a role or member → shown.

    The same rules mean the same viewers. What everyone may by default is left out of them on purpose: to hide a
    channel from everyone also hides it from a role that may see channels in general, to say nothing does not.
    """
    return {
        target.id: overwrite.view_channel
        for target, overwrite in channel.overwrites.items()
        if overwrite.view_channel is not None
    }


def _history_is_open(channel: ReadableChannel) -> bool:
    """Whether whoever sees ``channel`` can read what was said there earlier."""
    everyone = channel.guild.default_role
    allowed = channel.overwrites_for(everyone).read_message_history
    if allowed is None:
        allowed = everyone.permissions.read_message_history
    return allowed and all(overwrite.read_message_history is not False for overwrite in channel.overwrites.values())
