"""Creation times and message links from Discord's ids. Pure.

An id is a snowflake: its upper 42 bits are the milliseconds from Discord's epoch to the creation of the id (Discord's
API reference, "Snowflakes").
"""

from __future__ import annotations

from rtfm.events import TimestampMillis

_EPOCH_MS = 1_420_070_400_000  # 2015-01-01
_TIME_SHIFT = 22


def created_at(snowflake: int) -> TimestampMillis:
    """Return the time at which ``snowflake`` was created."""
    return TimestampMillis((snowflake >> _TIME_SHIFT) + _EPOCH_MS)


def snowflake_at(timestamp: TimestampMillis) -> int:
    """Return the lowest id that can be created at ``timestamp``; 0 for a time before Discord's epoch."""
    return max(0, timestamp - _EPOCH_MS) << _TIME_SHIFT


def jump_link(guild_id: str | None, channel_id: str, message_id: str) -> str:
    """Return the address that opens a message in Discord's client. A direct message has no ``guild_id``."""
    return f"https://discord.com/channels/{guild_id or '@me'}/{channel_id}/{message_id}"
