"""What somebody at the console may see, who has no roles in any guild."""

from __future__ import annotations

from collections.abc import Sequence

from rtfm.errors import ConfigError
from rtfm.events import ChannelKind
from rtfm.knowledge.archive import SqlArchive

_PUBLIC = (ChannelKind.TEXT, ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST)
_NAMED = 20
"""Guilds that an error names at most."""


def console_scope(
    archive: SqlArchive, guild_id: str | None = None, channel_ids: Sequence[str] = ()
) -> tuple[str | None, list[str]]:
    """(guild id, visible channel ids) for the console.

    All channels of ``guild_id``, or ``channel_ids``; without either, of the archive's only guild. Private threads,
    direct messages and channels of unknown kind only where they are named. Nothing for an empty archive.

    Raises ConfigError when there are several guilds to choose from, or when a named guild or channel is not in the
    archive.
    """
    if channel_ids:
        return _of_channels(archive, guild_id, channel_ids)
    guilds = archive.guilds()
    if guild_id is None:
        if len(guilds) > 1:
            raise ConfigError("the archive holds several guilds", hint=f"Choose with --guild: {_listed(guilds)}.")
        if not guilds:
            return None, []
        (guild_id,) = guilds
    elif guild_id not in guilds:
        raise ConfigError(f"guild {guild_id} is not in the archive", hint=f"It holds: {_listed(guilds)}.")
    # A public thread whose parent is silent is reached by the parent's id all the same.
    return guild_id, sorted({c.acl_channel_id for c in archive.channels(guild_id) if c.kind in _PUBLIC})


def _of_channels(archive: SqlArchive, guild_id: str | None, channel_ids: Sequence[str]) -> tuple[str | None, list[str]]:
    guilds_of = archive.guilds_of_channels(channel_ids)
    for channel_id in channel_ids:
        if channel_id not in guilds_of:
            raise ConfigError(f"channel {channel_id} is not in the archive", hint="`rtfm-cli status` shows what is.")
    guilds = set.intersection(*(guilds_of[channel_id] for channel_id in channel_ids))
    if guild_id is not None:
        guilds &= {guild_id}
    if len(guilds) != 1:
        raise ConfigError("the channels are of several guilds", hint="Name channels of one guild, with --guild.")
    return guilds.pop() or None, sorted(set(channel_ids))


def _listed(guilds: Sequence[str]) -> str:
    return ", ".join(guilds[:_NAMED]) or "none"
