"""The channels that a search from the command line may use. Such a search has no Discord roles to check."""

from __future__ import annotations

from collections.abc import Sequence

from rtfm.errors import ConfigError
from rtfm.events import ChannelKind
from rtfm.knowledge.archive import SqlArchive

_PUBLIC = (ChannelKind.TEXT, ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST)
_MAX_LISTED_GUILDS = 20
"""Maximum number of guilds that an error lists."""


def console_scope(
    archive: SqlArchive, guild_id: str | None = None, channel_ids: Sequence[str] = ()
) -> tuple[str | None, list[str]]:
    """Return the guild id and the visible channel ids for a search from the command line.

    - With ``channel_ids``, these channels are visible.
    - Otherwise the channels of ``guild_id`` are visible. If ``guild_id`` is None, the channels of the archive's only
      guild are visible. Private threads, direct messages and channels of unknown kind are left out.
    - If neither argument is given and the archive contains no guild, no channel is visible.

    Raises ConfigError when neither argument is given and the archive has several guilds, when a given guild or channel
    is not in the archive, and when the channels do not all belong to one guild (``guild_id``, if given).
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
    # Access channels are returned. For a public thread this is the parent, even if the archive has no message of it.
    return guild_id, sorted({c.acl_channel_id for c in archive.channels(guild_id) if c.kind in _PUBLIC})


def _channels_scope(
    archive: SqlArchive, guild_id: str | None, channel_ids: Sequence[str]
) -> tuple[str | None, list[str]]:
    guilds_of = archive.guilds_of_channels(channel_ids)
    for channel_id in channel_ids:
        if channel_id not in guilds_of:
            raise ConfigError(
                f"channel {channel_id} is not in the archive",
                hint="Check the id. A channel is in the archive once one of its messages is archived.",
            )
    guilds = set.intersection(*(guilds_of[channel_id] for channel_id in channel_ids))
    if guild_id is not None:
        guilds &= {guild_id}
    if len(guilds) != 1:
        raise ConfigError(
            "the channels do not all belong to one guild",
            hint="Give channels of one guild only, and with --guild, channels of that guild.",
        )
    return guilds.pop() or None, sorted(set(channel_ids))


def _join_guilds(guilds: Sequence[str]) -> str:
    return ", ".join(guilds[:_MAX_LISTED_GUILDS]) or "none"
