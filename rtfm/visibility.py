"""Who may read a message. Retrieval, answering, the bot and the archive's SQL all follow this rule. Pure.

A reader's rights are a list of channel ids: the channels and forums that the reader can read, without their threads,
and the private threads whose membership is proven. A message is readable if its own channel is listed, or if it is in a
public thread or forum post whose parent is listed, because archived threads cannot be enumerated. A channel of unknown
kind counts as private.
"""

from __future__ import annotations

from collections.abc import Collection

from attrs import frozen

from rtfm.events import ChannelKind

MAX_VISIBLE_CHANNELS = 20_000
"""The limit on a reader's list, above any guild's channels (Discord allows 500, and 1,000 active threads)."""

PARENT_DECIDES = frozenset({ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST})
"""Kinds of channels whose readers are the readers of their parent."""

_PRIVATE = frozenset({ChannelKind.UNKNOWN, ChannelKind.PRIVATE_THREAD, ChannelKind.DIRECT})


def acl_channel_id(channel_id: str, parent_channel_id: str | None, kind: ChannelKind) -> str:
    """Return the access channel: the parent of a public thread or forum post, otherwise the channel itself."""
    return parent_channel_id if kind in PARENT_DECIDES and parent_channel_id else channel_id


def is_readable(
    channel_id: str | None, parent_channel_id: str | None, kind: ChannelKind, listed: Collection[str]
) -> bool:
    """Return whether everyone who can read the ``listed`` channels can read this one, which must be of their guild."""
    if channel_id is None:
        return False
    return channel_id in listed or acl_channel_id(channel_id, parent_channel_id, kind) in listed


@frozen(kw_only=True)
class ChannelFacts:
    """The facts that decide who can read a channel.

    ``observed_at`` is in milliseconds, 0 if unknown. ``from_discord`` is false for exports and other programs.
    """

    kind: ChannelKind
    parent_channel_id: str | None
    observed_at: int = 0
    from_discord: bool = False


def is_wider(channel_id: str, known: ChannelFacts, seen: ChannelFacts) -> bool:
    """Return whether ``seen`` would let people read the channel who cannot read it by ``known``."""
    if seen.kind in _PRIVATE:
        return False
    before = acl_channel_id(channel_id, known.parent_channel_id, known.kind)
    after = acl_channel_id(channel_id, seen.parent_channel_id, seen.kind)
    return known.kind in _PRIVATE or before != after


def merge_facts(channel_id: str, known: ChannelFacts, seen: ChannelFacts, *, unchanged: bool = False) -> ChannelFacts:
    """Return the facts to keep of a channel: ``known`` or ``seen``.

    The newest observation wins, with two exceptions. Exports and other programs never widen who can read a channel, and
    Discord's report replaces theirs, however old it is. An UNKNOWN kind is ignored. ``unchanged`` marks
    an event that brought nothing new: it never widens access either, and counts only if it is from Discord.
    """
    if seen.kind is ChannelKind.UNKNOWN or (unchanged and not seen.from_discord):
        return known
    if is_wider(channel_id, known, seen):
        accepted = seen.from_discord and seen.observed_at > known.observed_at and not unchanged
    else:
        corrects = seen.from_discord and not known.from_discord
        accepted = corrects or seen.observed_at >= known.observed_at
    return seen if accepted else known
