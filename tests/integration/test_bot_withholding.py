"""Responses that the bot skips or withholds: to questions of other programs, too late, or with hidden sources."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from attrs import evolve

from rtfm.bot import replies
from rtfm.bot.delivery import ReplyDelivery
from rtfm.errors import Unavailable
from rtfm.events import Audience, ChannelKind, Outcome, TimestampMillis
from rtfm.knowledge.archive import Change, SqlArchive, StoredMessage
from tests.delivering import answer_to, ask, citing, client_on, delivered, delivery_on, now, skipped
from tests.fakes.discord import FakeDiscord, FakeGuild, FakeMessage
from tests.fakes.discord.world import VIEW_CHANNEL, ChannelType, new_id


@pytest.mark.parametrize(
    "query_id",
    [
        "helpdesk-6a1ad80c-7b87-4f47-9f92-86d8ff2c2f6a",
        "c6a1ad80-7b87-4f47-9f92-86d8ff2c2f6a",
        "6a1ad80c-7b87-4f47-9f92-86d8ff2c2f6a",
        "m1286754213907726336",
        "",
        "a\x00b",
        "x" * 500_000,
    ],
    ids=["service", "console", "uuid", "message", "empty", "nul", "long"],
)
async def test_a_response_to_a_question_of_others_is_counted_and_skipped(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, query_id: str
) -> None:
    """A response to another program's question is counted and not posted, even if it names an existing channel."""
    ask(archive, answer_to(asked))
    before = skipped("no_open_question")
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(evolve(answer_to(asked), query_id=query_id))
    assert fake.count("POST", ".*") == 0
    assert skipped("no_open_question") == before + 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"guild_id": "5"}, "another_guild"),
        ({"guild_id": None}, "another_guild"),
        ({"channel_id": "5"}, "another_channel"),
        ({"channel_id": ""}, "another_channel"),
        ({"query_message_id": None}, "another_message"),
        ({"query_message_id": "-1"}, "another_message"),
        ({"query_message_id": "9" * 40}, "another_message"),
        ({"asker_id": "helpdesk-7"}, "another_asker"),
        ({"asker_id": "9" * 40}, "another_asker"),
        ({"audience": Audience.ASKER}, "another_audience"),
        ({"audience": Audience.UNKNOWN}, "another_audience"),
    ],
)
async def test_a_response_that_differs_from_its_question_is_skipped(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, change: dict[str, object], reason: str
) -> None:
    """A response that differs from its open question is counted by the differing field and not posted.

    The right response is still posted afterwards.
    """
    response = ask(archive, answer_to(asked))
    before = skipped(reason)
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(evolve(response, **change))  # type: ignore[arg-type]  # a field by its name
        assert fake.count("POST", ".*") == 0
        assert skipped(reason) == before + 1
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == ["Use ntfs-3g."]


async def test_a_response_with_an_impossible_time_does_not_end_the_bot(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """If a response contains an impossible time, it is posted once, and its question is closed."""
    response = citing(ask(archive, answer_to(asked)), asked.channel.id)
    beyond = evolve(
        response,
        citations=[evolve(response.citations[0], created_at=TimestampMillis(2**62))],
        answered_at=TimestampMillis(-(2**63)),
    )
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(beyond)
    assert len(fake.replies_to(asked)) == 1
    assert archive.questions.find(response.query_id) is None


@pytest.mark.parametrize("outcome", [Outcome.ANSWERED, Outcome.EXTRACTED])
async def test_an_answer_without_retrieved_passages_is_withheld(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, outcome: Outcome
) -> None:
    """An answer without its retrieved passages is withheld, because nothing shows who may read the answer."""
    before = delivered("withheld")
    response = ask(archive, evolve(answer_to(asked, "The password is penguin."), outcome=outcome, retrieved=[]))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]
    assert delivered("withheld") == before + 1


def archived(archive: SqlArchive, message_id: str, *, deleted: bool) -> None:
    """Write a message or its tombstone to the archive, as ingest does."""
    said = StoredMessage(
        message_id=message_id,
        guild_id="1",
        channel_id="2",
        author_id="3",
        author_name="bob",
        author_is_bot=False,
        content="" if deleted else "Use ntfs-3g.",
        created_at=TimestampMillis(1),
        edited_at=None,
        version=2,
        deleted=deleted,
        reply_to_message_id=None,
        mentioned_user_ids=[],
        attachments=[],
    )
    archive.writing.write(Change(channels=[], messages=[said]))


@pytest.mark.parametrize("cites", [True, False])
async def test_an_answer_whose_source_was_deleted_is_not_posted(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, cites: bool
) -> None:
    """If a source of an answer was deleted, cited or not, the asker gets one line instead of the answer."""
    response = ask(archive, answer_to(asked))
    if cites:
        response = citing(response, asked.channel.id)
    archived(archive, "5", deleted=False)
    archived(archive, "5", deleted=True)
    before = delivered("removed")
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == [replies.SOURCE_REMOVED]
    assert delivered("removed") == before + 1


async def test_a_part_is_not_posted_when_a_source_is_deleted_after_the_part_before(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """If a source is deleted between two parts of an answer, the remaining parts are not posted."""
    archived(archive, "5", deleted=False)
    response = ask(archive, answer_to(asked, "Use ntfs-3g. " * 250))
    assert len(replies.compose(response)) == 2
    posted = archive.record_sent

    def deleting(*args: Any, **fields: Any) -> None:
        posted(*args, **fields)
        archived(archive, "5", deleted=True)

    archive.record_sent = deleting  # type: ignore[method-assign]  # called between two parts
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert len(fake.replies_to(asked)) == 1


async def test_nothing_is_posted_while_the_gateway_is_down(
    fake: FakeDiscord, guild: FakeGuild, archive: SqlArchive, asked: FakeMessage
) -> None:
    """While the gateway is down, nothing is posted, because the known permissions may be outdated.

    Once the gateway is back, the new permissions apply.
    """
    wiki = guild.channel("wiki")
    response = citing(ask(archive, answer_to(asked, "The wiki says penguin.")), wiki.id)
    async with client_on(fake) as client:
        delivery = ReplyDelivery(client, archive, clock_ms=now)
        fake.loses_gateway()
        wiki.overwrites[guild.id] = (0, VIEW_CHANNEL)
        while client.not_ready_reason() is None:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="gateway"):
            await delivery.deliver(response)
        assert fake.posted_in(asked.channel) == []
        fake.regains_gateway()
        while True:
            with contextlib.suppress(Unavailable):
                await delivery.deliver(response)
                break
            await asyncio.sleep(0.05)
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]


async def test_an_answer_that_comes_too_late_is_not_shown(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """If a question has expired, its asker gets the EXPIRED line once, instead of the answer."""
    before = delivered("late")
    response = ask(archive, answer_to(asked), expires_in_ms=-1)
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == [replies.outcome_text(Outcome.EXPIRED)]
    assert delivered("late") == before + 1


async def test_sources_that_readers_cannot_see_are_withheld(
    fake: FakeDiscord, guild: FakeGuild, archive: SqlArchive, asked: FakeMessage
) -> None:
    """If readers of the reply cannot see the channel of a citation, the answer is withheld."""
    staff = guild.hidden_channel("staff", shown_to=guild.role("staff"))
    response = ask(archive, answer_to(asked, "The password is penguin."))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(citing(response, staff.id))
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("real", ["private thread", "staff channel", "staff thread", "voice channel"])
async def test_a_citation_is_not_trusted_about_its_channel(
    fake: FakeDiscord, archive: SqlArchive, guild: FakeGuild, asked: FakeMessage, real: str, archived: bool
) -> None:
    """The kind and parent of a channel on Discord decide who may read a source; those in the citation do not."""
    staff = guild.hidden_channel("staff", shown_to=guild.role("staff"))
    cited = {
        "private thread": lambda: guild.thread(asked.channel, "incident", private=True, archived=archived),
        "staff channel": lambda: staff,
        "staff thread": lambda: guild.thread(staff, "plans", archived=archived),
        "voice channel": lambda: guild.channel("talk", kind=ChannelType.VOICE),
    }[real]()
    answer = ask(archive, answer_to(asked, "The password is penguin."))
    response = citing(answer, cited.id, kind=ChannelKind.PUBLIC_THREAD, parent=asked.channel.id)
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]


@pytest.mark.parametrize("what", ["gone", "another guild", "no snowflake", "no channel"])
async def test_a_source_that_discord_does_not_know_is_withheld(
    fake: FakeDiscord, archive: SqlArchive, guild: FakeGuild, asked: FakeMessage, what: str
) -> None:
    """If a source is in another guild or in a channel that Discord does not know, the answer is withheld."""
    response = citing(ask(archive, answer_to(asked, "The password is penguin.")), asked.channel.id)
    (citation,) = response.citations
    if what == "another guild":
        citation = evolve(citation, guild_id=new_id())
    else:
        channel_id = {"gone": new_id(), "no snowflake": "helpdesk-7", "no channel": None}[what]
        citation = evolve(
            citation,
            channel_id=channel_id,
            channel_kind=ChannelKind.PUBLIC_THREAD,
            parent_channel_id=asked.channel.id,
        )
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(evolve(response, citations=[citation]))
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]


async def test_threads_and_posts_are_shown_by_what_discord_says(
    fake: FakeDiscord, archive: SqlArchive, guild: FakeGuild, asked: FakeMessage
) -> None:
    """An answer that cites threads and posts is posted, although its citations state UNKNOWN as channel kind.

    The bot requests each archived thread or post from Discord once, although the answer cites it twice.
    """
    forum = guild.channel("forum", kind=ChannelType.FORUM)
    places = [
        guild.thread(asked.channel, "open"),
        guild.thread(asked.channel, "old", archived=True),
        guild.thread(forum, "post", archived=True),
        asked.channel,
    ]
    response = ask(archive, answer_to(asked, "Use ntfs-3g."))
    citations = [
        evolve(citing(response, place.id, kind=ChannelKind.UNKNOWN).citations[0], number=number)
        for number, place in enumerate([*places, *places], start=1)
    ]
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(evolve(response, citations=citations))
    (posted,) = fake.replies_to(asked)
    assert posted.content.startswith("Use ntfs-3g.")
    assert fake.count("GET", r"/channels/\d+") == 2


async def test_nothing_is_posted_while_discord_does_not_describe_a_channel(
    fake: FakeDiscord, archive: SqlArchive, guild: FakeGuild, asked: FakeMessage
) -> None:
    """While Discord reports an error for a source's channel, nothing is posted; later the response is delivered."""
    old = guild.thread(asked.channel, "old", archived=True)
    response = citing(ask(archive, answer_to(asked)), old.id, kind=ChannelKind.PUBLIC_THREAD, parent=asked.channel.id)
    async with delivery_on(fake, archive) as delivery:
        fake.fails("GET", f"/channels/{old.id}", 503, times=5)
        with pytest.raises(Unavailable):
            await delivery.deliver(response)
        assert fake.replies_to(asked) == []
        fake.heals()
        await delivery.deliver(response)
    assert len(fake.replies_to(asked)) == 1


async def test_unknown_outcomes_are_not_posted(fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage) -> None:
    """If a response has an outcome that this version does not know, the response is not posted."""
    response = ask(archive, answer_to(asked))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(evolve(response, outcome=Outcome.UNKNOWN))
    assert fake.count("POST", ".*") == 0
