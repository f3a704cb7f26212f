"""Which channels a search from the console may use, where nobody has roles in a guild."""

from __future__ import annotations

from collections.abc import Sequence

from rtfm.errors import ConfigError
from rtfm.events import ChannelKind
from rtfm.knowledge.archive import SqlArchive

_PUBLIC = (ChannelKind.TEXT, ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST)
_MAX_LISTED_GUILDS = 20
"""Guilds that an error lists at most."""


def console_scope(
    archive: SqlArchive, guild_id: str | None = None, channel_ids: Sequence[str] = ()
) -> tuple[str | None, list[str]]:
    """Return the guild id and the visible channel ids for the console.

    These are ``channel_ids``, else all channels of ``guild_id``, else those of the archive's only guild; none for an
    empty archive. Private threads, direct messages and channels of unknown kind are included only if ``channel_ids``
    names them.

    Raises ConfigError when there are several guilds to choose from, or when a named guild or channel is not in the
    archive.
    """
    if channel_ids:
        return _channels_scope(archive, guild_id, channel_ids)
    guilds = archive.guilds()
    if guild_id is None:
        if len(guilds) > 1:
            raise ConfigError(
                "the archive holds several guilds", hint=f"Choose one with --guild: {_join_guilds(guilds)}."
            )
        if not guilds:
            return None, []
        (guild_id,) = guilds
    elif guild_id not in guilds:
        raise ConfigError(f"guild {guild_id} is not in the archive", hint=f"It holds: {_join_guilds(guilds)}.")
    # A public thread is visible by its parent's id, even if the parent itself has no messages.
    return guild_id, sorted({c.acl_channel_id for c in archive.channels(guild_id) if c.kind in _PUBLIC})


def _channels_scope(
    archive: SqlArchive, guild_id: str | None, channel_ids: Sequence[str]
) -> tuple[str | None, list[str]]:
    guilds_of = archive.guilds_of_channels(channel_ids)
    for channel_id in channel_ids:
        if channel_id not in guilds_of:
            raise ConfigError(f"channel {channel_id} is not in the archive", hint="`rtfm-cli status` shows what is.")
    guilds = set.intersection(*(guilds_of[channel_id] for channel_id in channel_ids))
    if guild_id is not None:
        guilds &= {guild_id}
    if len(guilds) != 1:
        raise ConfigError("the channels belong to several guilds", hint="Name channels of one guild, or add --guild.")
    return guilds.pop() or None, sorted(set(channel_ids))


def _join_guilds(guilds: Sequence[str]) -> str:
    return ", ".join(guilds[:_MAX_LISTED_GUILDS]) or "none"
