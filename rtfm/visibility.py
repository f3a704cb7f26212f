"""The rule that decides who may read a message. Retrieval, answering, the bot and the archive's SQL follow it. Pure.

The rights of a reader are a list of channel ids. The list contains the channels and forums that the reader can read. It
also contains the private threads of which the reader is known to be a member. It does not contain public threads and
forum posts, because Discord cannot list all archived threads.

A reader may read a message if the list contains the message's own channel. A message in a public thread or forum post
may also be read if the list contains the parent channel. A channel of unknown kind counts as private.
"""

from __future__ import annotations

from collections.abc import Collection

from attrs import frozen

from rtfm.events import ChannelKind

MAX_VISIBLE_CHANNELS = 20_000
"""Largest allowed length of a reader's list. Discord's limits for a guild are 500 channels and 1,000 active threads."""

PARENT_DECIDES = frozenset({ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST})
"""The kinds of channels whose parent channel decides who may read them."""

_PRIVATE = frozenset({ChannelKind.UNKNOWN, ChannelKind.PRIVATE_THREAD, ChannelKind.DIRECT})


def acl_channel_id(channel_id: str, parent_channel_id: str | None, kind: ChannelKind) -> str:
    """Return the id of the access channel, whose permissions decide who may read the channel ``channel_id``.

    It is the parent of a public thread or forum post, and otherwise the channel itself.
    """
    return parent_channel_id if kind in PARENT_DECIDES and parent_channel_id else channel_id


def is_readable(
    channel_id: str | None, parent_channel_id: str | None, kind: ChannelKind, listed: Collection[str]
) -> bool:
    """Return whether a reader with the list ``listed`` may read the channel. All channels must be in the same guild."""
    if channel_id is None:
        return False
    return channel_id in listed or acl_channel_id(channel_id, parent_channel_id, kind) in listed


@frozen(kw_only=True)
class ChannelFacts:
    """The facts that decide who can read a channel.

    ``observed_at`` is the time at which they were observed, in milliseconds since the Unix epoch; 0 if it is unknown.
    ``from_discord`` is false if the facts come from an export or another program.
    """

    kind: ChannelKind
    parent_channel_id: str | None
    observed_at: int = 0
    from_discord: bool = False


def is_wider(channel_id: str, known: ChannelFacts, seen: ChannelFacts) -> bool:
    """Return whether the facts ``seen`` may allow readers of the channel that the facts ``known`` do not allow."""
    if seen.kind in _PRIVATE:
        return False
    before = acl_channel_id(channel_id, known.parent_channel_id, known.kind)
    after = acl_channel_id(channel_id, seen.parent_channel_id, seen.kind)
    return known.kind in _PRIVATE or before != after


def merge_facts(channel_id: str, known: ChannelFacts, seen: ChannelFacts, *, unchanged: bool = False) -> ChannelFacts:
    """Decide whether the facts ``seen``, from an event, replace the facts ``known``. Return the facts to keep.

    ``unchanged`` says that the event did not change its message.

    - Facts with an UNKNOWN kind are ignored. With ``unchanged``, facts are ignored unless they are from Discord.
    - Facts that let more people read the channel are accepted only if they are from Discord, newer than the known facts
      and not ``unchanged``.
    - Other facts are accepted if they are not older than the known facts. Facts from Discord are also accepted if the
      known facts are not from Discord, however old they are.
    """
    if seen.kind is ChannelKind.UNKNOWN or (unchanged and not seen.from_discord):
        return known
    if is_wider(channel_id, known, seen):
        accepted = seen.from_discord and seen.observed_at > known.observed_at and not unchanged
    else:
        corrects = seen.from_discord and not known.from_discord
        accepted = corrects or seen.observed_at >= known.observed_at
    return seen if accepted else known
