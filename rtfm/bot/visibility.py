"""Which channels an answer may rest on, decided when the question is asked and again before the answer is posted.

The bot knows no member's roles (it does without the members intent), so a reply in a channel may use only what
provably everybody who sees that channel can read: channels that every member reads, and channels that show
themselves to the same roles and members as the destination. Anything unclear counts as hidden. Ids are given as the
design's access ids: channels and forums, for their public threads and posts too; private threads by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import discord

from rtfm.bot import messages
from rtfm.events import Citation, RetrievedPassage, SourceKind, is_snowflake
from rtfm.visibility import is_readable

# Voice and stage channels ask for another permission to be read; they are not listened to either.
ReadableChannel = discord.TextChannel | discord.ForumChannel

_NO_SUCH_CHANNEL = (400, 403, 404)


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
    """Whether everything behind an answer, cited or only looked at, stands where its readers can read.

    The citations are those of ``as_discord_has_them``.
    """
    visible = set(visible_channel_ids)
    return all(
        citation.kind is SourceKind.MESSAGE
        and is_readable(citation.channel_id, citation.parent_channel_id, citation.channel_kind, visible)
        for citation in citations
    ) and all(passage.kind is SourceKind.MESSAGE and passage.acl_channel_id in visible for passage in retrieved)


async def as_discord_has_them(guild: discord.Guild | None, citations: Iterable[Citation]) -> list[Citation]:
    """``citations`` with what Discord itself says of their channels, whatever they say.

    A source whose channel Discord does not show to the bot, or not in ``guild``, becomes one of UNKNOWN kind, which
    nobody is shown. Raises what discord.py raises when Discord does not answer.
    """
    channels: dict[str | None, object | None] = {}
    found = []
    for citation in citations:
        channel_id = citation.channel_id
        if channel_id not in channels:
            is_of_guild = guild is not None and citation.guild_id == str(guild.id)
            channels[channel_id] = await _channel(guild, channel_id) if guild and is_of_guild else None
        channel = channels[channel_id]
        kind, parent_channel_id = messages.place_of(channel)
        found.append(
            attrs.evolve(
                citation,
                kind=citation.kind if channel is not None else SourceKind.UNKNOWN,
                channel_kind=kind,
                parent_channel_id=parent_channel_id,
            )
        )
    return found


async def _channel(guild: discord.Guild, channel_id: str | None) -> object | None:
    if channel_id is None or not is_snowflake(channel_id):
        return None
    if channel := guild.get_channel_or_thread(int(channel_id)):
        return channel
    try:
        # An archived thread, or one that the gateway has not told of.
        return await guild.fetch_channel(int(channel_id))
    except discord.InvalidData:  # of another guild
        return None
    except discord.HTTPException as exc:
        if exc.status in _NO_SUCH_CHANNEL:
            return None
        raise


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
