"""Who may read what was said: the one rule on which retrieval, answering, the bot and the archive's SQL rest. Pure.

A reader's rights come as a list of channel ids: the channels and forums that the reader can read, without their
threads, and those private threads whose membership is proven. A message is readable if its own channel is listed, or if
it stands in a public thread or forum post whose parent is listed: archived threads cannot be enumerated. So a channel
of unknown kind counts as private.
"""

from __future__ import annotations

from collections.abc import Collection

from attrs import frozen

from rtfm.events import ChannelKind

MAX_VISIBLE_CHANNELS = 20_000
"""More ids than any guild has channels (Discord allows 500, and 1,000 active threads)."""

PARENT_DECIDES = frozenset({ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST})
"""Kinds of channels that everybody can read who can read their parent."""

_PRIVATE = frozenset({ChannelKind.UNKNOWN, ChannelKind.PRIVATE_THREAD, ChannelKind.DIRECT})


def acl_channel_id(channel_id: str, parent_channel_id: str | None, kind: ChannelKind) -> str:
    """The channel whose readers can read this one: the parent of a public thread or forum post, else itself."""
    return parent_channel_id if kind in PARENT_DECIDES and parent_channel_id else channel_id


def is_readable(
    channel_id: str | None, parent_channel_id: str | None, kind: ChannelKind, listed: Collection[str]
) -> bool:
    """Whether everyone who can read the ``listed`` channels can read this one, which must be of their guild."""
    if channel_id is None:
        return False
    return channel_id in listed or acl_channel_id(channel_id, parent_channel_id, kind) in listed


@frozen(kw_only=True)
class ChannelFacts:
    """What decides who can read a channel, and who observed it when (0: unknown).

    ``from_discord`` tells Discord's own reports from those of exports and other programs.
    """

    kind: ChannelKind
    parent_channel_id: str | None
    observed_at: int = 0
    from_discord: bool = False


def is_wider(channel_id: str, known: ChannelFacts, seen: ChannelFacts) -> bool:
    """Whether others could read the channel by ``seen`` who cannot by ``known``."""
    if seen.kind in _PRIVATE:
        return False
    before = acl_channel_id(channel_id, known.parent_channel_id, known.kind)
    after = acl_channel_id(channel_id, seen.parent_channel_id, seen.kind)
    return known.kind in _PRIVATE or before != after


def merge_facts(channel_id: str, known: ChannelFacts, seen: ChannelFacts, *, unchanged: bool = False) -> ChannelFacts:
    """What is believed of a channel, of which ``known`` was believed, after ``seen``.

    The newest observation wins, with two exceptions. Exports and other programs never widen who can read a channel, and
    what Discord reports corrects what they said, however old it is. An UNKNOWN kind says nothing. ``unchanged`` is for
    an event that brought nothing new: it never widens either, and counts only if it is Discord's.
    """
    if seen.kind is ChannelKind.UNKNOWN or (unchanged and not seen.from_discord):
        return known
    if is_wider(channel_id, known, seen):
        accepted = seen.from_discord and seen.observed_at > known.observed_at and not unchanged
    else:
        corrects = seen.from_discord and not known.from_discord
        accepted = corrects or seen.observed_at >= known.observed_at
    return seen if accepted else known
