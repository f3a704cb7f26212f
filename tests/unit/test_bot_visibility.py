"""The channels that an answer may use. The tests make discord.py's objects from payloads in Discord's format."""

from __future__ import annotations

import random
from typing import Any

import discord
import pytest
from attrs import evolve

from rtfm.bot.visibility import can_show, channels_visible_to_everyone, channels_visible_to_readers
from rtfm.events import ChannelKind, Citation, RetrievedPassage, SourceKind, TimestampMillis
from tests.fakes.discord import FakeChannel, FakeGuild
from tests.fakes.discord.world import (
    READ_AND_WRITE,
    READ_MESSAGE_HISTORY,
    SEND_MESSAGES,
    VIEW_CHANNEL,
    ChannelType,
    new_id,
)


def as_seen(guild: FakeGuild) -> discord.Guild:
    """Return the guild as discord.py knows it from the gateway."""
    client = discord.Client(intents=discord.Intents(guilds=True))
    data: Any = guild.payload()
    return discord.Guild(data=data, state=client._connection)


def visible(guild: FakeGuild, destination: FakeChannel) -> set[str]:
    channel = as_seen(guild).get_channel_or_thread(int(destination.id))
    assert isinstance(channel, discord.TextChannel | discord.Thread)
    return set(channels_visible_to_readers(channel))


@pytest.fixture
def guild() -> FakeGuild:
    return FakeGuild("penguins")


def test_a_hidden_channel_is_not_visible_in_an_open_one(guild: FakeGuild) -> None:
    """An answer in an open channel does not use a channel that only one role can read."""
    general = guild.channel("general")
    guild.hidden_channel("staff", shown_to=guild.role("staff"))
    assert visible(guild, general) == {general.id}


def test_a_channel_that_hides_from_one_role_is_not_visible(guild: FakeGuild) -> None:
    """An answer in an open channel does not use a channel that is denied to any role or person."""
    general = guild.channel("general")
    guild.channel("no-guests", overwrites={guild.role("guest"): (0, VIEW_CHANNEL)})
    guild.channel("not-you", overwrites={new_id(): (0, VIEW_CHANNEL)})
    guild.channel("no-past", overwrites={new_id(): (0, READ_MESSAGE_HISTORY)})
    assert visible(guild, general) == {general.id}


def test_channels_without_history_for_all_are_not_visible() -> None:
    """An answer does not use a channel if the answer's readers may not read the channel's history."""
    guild = FakeGuild("penguins", everyone=VIEW_CHANNEL | SEND_MESSAGES)
    general = guild.channel("general")
    archive = guild.channel("archive", overwrites={guild.id: (READ_MESSAGE_HISTORY, 0)})
    assert visible(guild, general) == {archive.id}


def test_another_hidden_channel_is_not_visible_in_a_hidden_one(guild: FakeGuild) -> None:
    """An answer in a hidden channel does not use a hidden channel that another role can read."""
    staff = guild.hidden_channel("staff", shown_to=guild.role("staff"))
    guild.hidden_channel("owners", shown_to=guild.role("owner"))
    assert visible(guild, staff) == {staff.id}


def test_age_restricted_channels_stay_among_themselves(guild: FakeGuild) -> None:
    """An answer uses age-restricted channels only if it is posted in an age-restricted channel."""
    general = guild.channel("general")
    adult = guild.channel("adult", nsfw=True)
    assert visible(guild, general) == {general.id}
    assert visible(guild, adult) == {general.id, adult.id}


def test_voice_channels_are_not_visible(guild: FakeGuild) -> None:
    """An answer does not use voice channels, because reading them requires another permission."""
    general = guild.channel("general")
    guild.channel("talk", kind=ChannelType.VOICE)
    assert visible(guild, general) == {general.id}


def test_channels_shown_to_the_same_people_are_visible_to_each_other(guild: FakeGuild) -> None:
    """An answer in a staff channel may use open channels, and channels with the same readers."""
    staff = guild.role("staff")
    one, other = guild.hidden_channel("one", shown_to=staff), guild.hidden_channel("other", shown_to=staff)
    general = guild.channel("general")
    assert visible(guild, one) == {one.id, other.id, general.id}


def test_a_thread_sees_what_its_channel_sees(guild: FakeGuild) -> None:
    """An answer in a thread uses the channels that an answer in its parent may use."""
    general, forum = guild.channel("general"), guild.channel("forum", kind=ChannelType.FORUM)
    thread = guild.thread(general, "how to mount")
    post = guild.thread(forum, "mounting")
    assert visible(guild, thread) == visible(guild, post) == {general.id, forum.id}


def test_a_private_thread_sees_itself_and_no_other(guild: FakeGuild) -> None:
    """An answer in a private thread uses that thread and no other private thread.

    Membership is known only for the thread in which the question was asked.
    """
    general = guild.channel("general")
    private = guild.thread(general, "incident", private=True)
    guild.thread(general, "other incident", private=True)
    assert visible(guild, private) == {general.id, private.id}
    assert visible(guild, general) == {general.id}


def test_all_members_read_the_open_channels_only(guild: FakeGuild) -> None:
    """An answer in a direct message uses the channels that every member can read."""
    general = guild.channel("general")
    guild.channel("adult", nsfw=True)
    guild.hidden_channel("staff", shown_to=guild.role("staff"))
    assert channels_visible_to_everyone(as_seen(guild)) == [general.id]


def citation(kind: ChannelKind, channel_id: str, parent_channel_id: str | None = None) -> Citation:
    return Citation(
        number=1,
        kind=SourceKind.MESSAGE,
        channel_id=channel_id,
        parent_channel_id=parent_channel_id,
        channel_kind=kind,
        message_id="9",
        author_name="penguin",
        created_at=TimestampMillis(0),
        excerpt="",
        score=1.0,
    )


@pytest.mark.parametrize(
    ("cited", "allowed"),
    [
        (citation(ChannelKind.TEXT, "1"), True),
        (citation(ChannelKind.TEXT, "2"), False),
        (citation(ChannelKind.PUBLIC_THREAD, "5", "1"), True),
        (citation(ChannelKind.FORUM_POST, "5", "2"), False),
        (citation(ChannelKind.PRIVATE_THREAD, "5", "1"), False),
        (citation(ChannelKind.PRIVATE_THREAD, "1", "2"), True),
        (citation(ChannelKind.UNKNOWN, "5", "1"), False),
        (citation(ChannelKind.PUBLIC_THREAD, "5", None), False),
        (evolve(citation(ChannelKind.TEXT, "1"), kind=SourceKind.UNKNOWN), False),
    ],
)
def test_only_what_readers_see_may_be_cited(cited: Citation, allowed: bool) -> None:
    """A citation from a public thread or a forum post is allowed if the parent channel is visible.

    A citation from a private thread or a channel of unknown kind is allowed only if that channel itself is visible.
    """
    assert can_show([cited], [], ["1"]) is allowed


@pytest.mark.parametrize(
    ("kind", "acl_channel_id", "allowed"),
    [
        (SourceKind.MESSAGE, "1", True),
        (SourceKind.MESSAGE, "2", False),
        (SourceKind.MESSAGE, None, False),
        (SourceKind.UNKNOWN, "1", False),
    ],
)
def test_retrieved_passages_count_even_if_they_are_not_cited(
    kind: SourceKind, acl_channel_id: str | None, allowed: bool
) -> None:
    """If a passage from a hidden channel was retrieved for an answer, the answer is withheld, even without a citation.

    A model may repeat a passage without citing it.
    """
    passage = RetrievedPassage(passage_id="p", kind=kind, acl_channel_id=acl_channel_id, score=1.0)
    assert can_show([citation(ChannelKind.TEXT, "1")], [passage], ["1"]) is allowed


def test_no_member_is_shown_what_they_cannot_read() -> None:
    """In random guilds, every reader of the destination can read every channel that the answer may use."""
    rng = random.Random(7)
    used = 0
    for _ in range(300):
        guild = FakeGuild("random", everyone=rng.choice([READ_AND_WRITE, VIEW_CHANNEL, 0, READ_MESSAGE_HISTORY]))
        roles = [guild.role(f"r{n}", rng.choice([0, 0, READ_AND_WRITE, VIEW_CHANNEL])) for n in range(3)]
        people = [(new_id(), [role for role in roles if rng.random() < 0.5]) for _ in range(6)]
        targets = [guild.id, *roles, people[0][0]]
        for number in range(6):
            overwrites = {t: _some_overwrite(rng) for t in targets if rng.random() < 0.3}
            guild.channel(f"c{number}", overwrites=overwrites)
        seen = as_seen(guild)
        members = [_member(seen, *person) for person in people]
        for destination in seen.text_channels:
            readers = [m for m in members if destination.permissions_for(m).view_channel]
            for channel_id in channels_visible_to_readers(destination):
                channel = seen.get_channel(int(channel_id))
                assert channel is not None
                used += channel != destination
                for reader in readers:
                    rights = channel.permissions_for(reader)
                    assert rights.view_channel
                    assert rights.read_message_history
    assert used > 500


def _some_overwrite(rng: random.Random) -> tuple[int, int]:
    bits = [VIEW_CHANNEL, READ_MESSAGE_HISTORY, SEND_MESSAGES]
    allow = sum(bit for bit in bits if rng.random() < 0.3)
    return allow, sum(bit for bit in bits if not allow & bit and rng.random() < 0.3)


def _member(guild: discord.Guild, person_id: str, roles: list[str]) -> discord.Member:
    data: Any = {
        "user": {"id": person_id, "username": "p", "discriminator": "0", "avatar": None},
        "roles": roles,
        "joined_at": "2020-01-01T00:00:00+00:00",
        "deaf": False,
        "mute": False,
        "flags": 0,
    }
    return discord.Member(data=data, guild=guild, state=guild._state)
