"""Answers on their way to the fake Discord: where they go, how often, and what happens when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from attrs import evolve
from prometheus_client import REGISTRY

from rtfm.bot import replies
from rtfm.bot.client import RtfmClient
from rtfm.bot.delivery import ReplyDelivery
from rtfm.errors import Unavailable
from rtfm.events import (
    Audience,
    BotQuery,
    BotResponse,
    ChannelKind,
    Citation,
    Outcome,
    RetrievedPassage,
    SourceKind,
    TimestampMillis,
)
from rtfm.knowledge.archive import Change, SqlArchive, StoredMessage
from tests.fakes.discord import FakeDiscord, FakeGuild, FakeMessage
from tests.fakes.discord.world import VIEW_CHANNEL, ChannelType, new_id


@pytest.fixture
def fake() -> Iterator[FakeDiscord]:
    with FakeDiscord() as server:
        yield server


@pytest.fixture
def guild(fake: FakeDiscord) -> FakeGuild:
    return fake.guild()


@pytest.fixture
def asked(fake: FakeDiscord, guild: FakeGuild) -> FakeMessage:
    """A question in an open channel, asked before the bot came."""
    return fake.says(guild.channel("general"), fake.person("ada", guild), "!rtfm how?", announce=False)


def now() -> TimestampMillis:
    return TimestampMillis(time.time_ns() // 1_000_000)


def answer_to(asked: FakeMessage, text: str = "Use ntfs-3g.") -> BotResponse:
    assert asked.channel.guild is not None
    return BotResponse(
        query_id=f"m{asked.id}",
        guild_id=asked.channel.guild.id,
        channel_id=asked.channel.id,
        query_message_id=asked.id,
        asker_id=asked.author.id,
        asked_at=TimestampMillis(0),
        audience=Audience.PUBLIC,
        outcome=Outcome.ANSWERED,
        answer=text,
        retrieved=[retrieved_from(asked.channel.id)],
        answered_at=now(),
        elapsed_ms=5,
    )


def retrieved_from(channel_id: str) -> RetrievedPassage:
    return RetrievedPassage(
        passage_id="p5", kind=SourceKind.MESSAGE, acl_channel_id=channel_id, message_ids=["5"], score=1.0
    )


def ask(archive: SqlArchive, response: BotResponse, *, expires_in_ms: int = 600_000) -> BotResponse:
    """Open the question to which ``response`` is the answer, as the bot does before it asks."""
    archive.questions.open(
        BotQuery(
            query_id=response.query_id,
            guild_id=response.guild_id,
            channel_id=response.channel_id,
            message_id=response.query_message_id,
            asker_id=response.asker_id,
            question="how?",
            asked_at=now(),
            expires_at=TimestampMillis(now() + expires_in_ms),
            audience=response.audience,
            visible_channel_ids=[response.channel_id],
        ),
        now=now(),
    )
    return response


def citing(
    response: BotResponse, channel_id: str, *, kind: ChannelKind = ChannelKind.TEXT, parent: str | None = None
) -> BotResponse:
    citation = Citation(
        number=1,
        kind=SourceKind.MESSAGE,
        guild_id=response.guild_id,
        channel_id=channel_id,
        channel_kind=kind,
        parent_channel_id=parent,
        message_id="5",
        author_name="bob",
        created_at=TimestampMillis(0),
        excerpt="",
        score=1.0,
    )
    return evolve(response, citations=[citation])


@contextlib.asynccontextmanager
async def client_on(fake: FakeDiscord) -> AsyncIterator[RtfmClient]:
    """A client that knows its guilds."""
    client = RtfmClient(lambda *_: True, query_expiry_s=600, api=fake.api, gateway=fake.gateway)
    async with client:
        await client.login(fake.token)
        listening = asyncio.create_task(client.connect())
        while client.not_ready_reason() or not client.guilds or client.guilds[0].unavailable:
            assert not listening.done()
            await asyncio.sleep(0.01)
        yield client
    await listening


@contextlib.asynccontextmanager
async def delivery_on(fake: FakeDiscord, archive: SqlArchive, *, later_ms: int = 0) -> AsyncIterator[ReplyDelivery]:
    """A delivery whose clock runs ``later_ms`` ahead."""
    async with client_on(fake) as client:
        yield ReplyDelivery(client, archive, clock_ms=lambda: TimestampMillis(now() + later_ms))


def delivered(result: str) -> float:
    return REGISTRY.get_sample_value("rtfm_responses_delivered_total", {"result": result}) or 0.0


def skipped(reason: str) -> float:
    labels = {"topic": "bot-responses", "reason": reason}
    return REGISTRY.get_sample_value("rtfm_ignored_events_total", labels) or 0.0


async def test_a_response_for_the_asker_is_never_posted_in_a_channel(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """An audience of ASKER goes out by direct message."""
    response = ask(archive, evolve(answer_to(asked), audience=Audience.ASKER))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert fake.posted_in(asked.channel) == []
    assert len(fake.posted_in(fake.direct_channel(asked.author))) == 1


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
async def test_clients_1_a_response_to_a_question_of_others_is_counted_and_skipped(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, query_id: str
) -> None:
    """Any service may ask; the bot posts nothing of that, even where channel, message and person exist."""
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
async def test_m8_a_response_that_differs_from_its_question_has_one_outcome(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, change: dict[str, object], reason: str
) -> None:
    """It is counted by what differs and posted nowhere, and the true answer is still posted."""
    response = ask(archive, answer_to(asked))
    before = skipped(reason)
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(evolve(response, **change))  # type: ignore[arg-type]  # a field by its name
        assert fake.count("POST", ".*") == 0
        assert skipped(reason) == before + 1
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == ["Use ntfs-3g."]


async def test_m8_a_response_with_a_time_beyond_all_years_ends_nothing(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """It is given up with a line for the asker, whose question is closed."""
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
async def test_m9_an_answer_without_what_it_rests_on_is_withheld(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, outcome: Outcome
) -> None:
    """Nothing says who may read it."""
    before = delivered("withheld")
    response = ask(archive, evolve(answer_to(asked, "The password is penguin."), outcome=outcome, retrieved=[]))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]
    assert delivered("withheld") == before + 1


def archived(archive: SqlArchive, message_id: str, *, deleted: bool) -> None:
    """Write a message, or its tombstone, as ingest does."""
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
async def test_h4_an_answer_whose_source_was_deleted_is_not_posted(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, cites: bool
) -> None:
    """Whether it is cited or only read: the asker gets a line instead, and once only."""
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


async def test_h4_a_part_is_not_posted_when_a_source_is_deleted_after_the_part_before(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """Each part is checked: the rest of a long answer is left out."""
    archived(archive, "5", deleted=False)
    response = ask(archive, answer_to(asked, "Use ntfs-3g. " * 250))
    assert len(replies.compose(response)) == 2
    posted = archive.record_sent

    def deleting(*args: Any, **fields: Any) -> None:
        posted(*args, **fields)
        archived(archive, "5", deleted=True)

    archive.record_sent = deleting  # type: ignore[method-assign]  # the moment between two parts
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert len(fake.replies_to(asked)) == 1


async def test_m3_nothing_is_posted_while_the_gateway_is_away(
    fake: FakeDiscord, guild: FakeGuild, archive: SqlArchive, asked: FakeMessage
) -> None:
    """REST alone would post by the rights of before; once the gateway is back the new ones count."""
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
    """The asker is told so instead, once, whatever the response holds."""
    before = delivered("late")
    response = ask(archive, answer_to(asked), expires_in_ms=-1)
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == [replies.outcome_text(Outcome.EXPIRED)]
    assert delivered("late") == before + 1


async def test_a_question_that_was_answered_is_closed(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """Another response to it is one that nobody waits for."""
    response = ask(archive, answer_to(asked))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
        fake.forgets_nonces()
        await delivery.deliver(evolve(response, answer="A second answer."))
    (reply,) = fake.replies_to(asked)
    assert reply.content == "Use ntfs-3g."
    assert archive.sent(response.query_id, 0) == reply.id
    assert archive.questions.find(response.query_id) is None


async def test_a_reply_that_is_recorded_is_not_posted_again(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """Killed before the question was closed: the record tells, though neither nonce nor channel would."""
    before = delivered("already_there")
    response = ask(archive, answer_to(asked))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
        fake.forgets_nonces()
        ask(archive, response)
        await delivery.deliver(response)
    assert len(fake.replies_to(asked)) == 1
    assert fake.count("GET", "/messages") == 0
    assert delivered("already_there") == before + 1


async def test_sources_that_readers_cannot_see_are_withheld(
    fake: FakeDiscord, guild: FakeGuild, archive: SqlArchive, asked: FakeMessage
) -> None:
    """A channel may have been hidden since the question was asked."""
    staff = guild.hidden_channel("staff", shown_to=guild.role("staff"))
    response = ask(archive, answer_to(asked, "The password is penguin."))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(citing(response, staff.id))
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("real", ["private thread", "staff channel", "staff thread", "voice channel"])
async def test_m2_a_citation_is_not_believed_about_its_channel(
    fake: FakeDiscord, archive: SqlArchive, guild: FakeGuild, asked: FakeMessage, real: str, archived: bool
) -> None:
    """M2: what Discord says of the channel counts, not what the archive was told of it."""
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
async def test_m2_a_source_that_discord_does_not_know_is_withheld(
    fake: FakeDiscord, archive: SqlArchive, guild: FakeGuild, asked: FakeMessage, what: str
) -> None:
    """M2: a channel that was deleted, of another guild, or of another program has no readers on this one."""
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


async def test_m2_threads_and_posts_are_shown_by_what_discord_says(
    fake: FakeDiscord, archive: SqlArchive, guild: FakeGuild, asked: FakeMessage
) -> None:
    """M2: archived ones are asked for, each once, and a stale kind in the archive hides nothing."""
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


async def test_m2_while_discord_does_not_say_what_a_channel_is_nothing_is_shown(
    fake: FakeDiscord, archive: SqlArchive, guild: FakeGuild, asked: FakeMessage
) -> None:
    """M2: the response is delivered when Discord answers again."""
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
    """They concern a later version."""
    response = ask(archive, answer_to(asked))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(evolve(response, outcome=Outcome.UNKNOWN))
    assert fake.count("POST", ".*") == 0


async def test_a_reply_refers_to_the_question_and_pings_nobody(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """Whatever the answer quotes, no one is called, and no link is unfolded."""
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(
            citing(ask(archive, answer_to(asked, f"<@{asked.author.id}> @everyone <@&5>")), asked.channel.id)
        )
    (reply,) = fake.replies_to(asked)
    assert reply.pings() == []
    assert reply.sent["allowed_mentions"] == {"parse": []}
    assert reply.sent["message_reference"]["fail_if_not_exists"] is False
    assert reply.sent["flags"] == 4  # SUPPRESS_EMBEDS
    assert reply.sent["enforce_nonce"] is True
    assert reply.sent["nonce"] == replies.nonce(f"m{asked.id}", 0)


@pytest.mark.parametrize("later_ms", [61_000, 3_600_000], ids=["in-time", "expired"])
async def test_a_delivery_that_is_repeated_later_makes_no_second_reply(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, later_ms: int
) -> None:
    """Killed before the reply was recorded, and Discord has forgotten the nonce: the channel still holds the reply."""
    response = ask(archive, answer_to(asked))
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", 0, after_doing_it=True)
        with pytest.raises(Unavailable):
            await delivery.deliver(response)
    fake.forgets_nonces()
    before = delivered("already_there")
    async with delivery_on(fake, archive, later_ms=later_ms) as delivery:
        await delivery.deliver(response)
    assert len(fake.replies_to(asked)) == 1
    assert delivered("already_there") == before + 1


async def test_a_delivery_that_stopped_midway_is_continued(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """Only the missing parts are posted."""
    text = "\n".join(f"line {number} of a long answer" for number in range(200))
    response = ask(archive, answer_to(asked, text))
    parts = replies.compose(response)
    assert len(parts) == 3
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", 500, times=99)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await delivery.deliver(response)
        fake.heals()
        fake.says(asked.channel, fake.bot, parts[0], reply_to=asked, announce=False).sent = {
            "message_reference": {"message_id": asked.id}
        }
    async with delivery_on(fake, archive, later_ms=61_000) as delivery:
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == parts


@pytest.mark.parametrize("later_ms", [61_000, 3_600_000], ids=["in-time", "expired"])
async def test_a_direct_message_is_not_repeated_later(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, later_ms: int
) -> None:
    """There the words themselves tell that it was sent."""
    response = ask(archive, evolve(answer_to(asked), audience=Audience.ASKER))
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", 0, after_doing_it=True)
        with pytest.raises(Unavailable):
            await delivery.deliver(response)
        fake.forgets_nonces()
    async with delivery_on(fake, archive, later_ms=later_ms) as delivery:
        await delivery.deliver(response)
    assert len(fake.posted_in(fake.direct_channel(asked.author))) == 1


async def test_a_reply_whose_fate_is_unknown_is_posted_once(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """The connection broke after Discord had taken it: trying again within a minute posts nothing new, by the nonce."""
    response = ask(archive, answer_to(asked))
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", 0, after_doing_it=True)
        with pytest.raises(Unavailable):
            await delivery.deliver(response)
        await delivery.deliver(response)
    (reply,) = fake.replies_to(asked)
    assert fake.count("GET", "/messages") == 0
    assert archive.sent(response.query_id, 0) == reply.id


async def test_a_rate_limit_is_waited_for(fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage) -> None:
    """The reply comes after the pause that Discord asks for."""
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", 429, times=2)
        await delivery.deliver(ask(archive, answer_to(asked)))
    assert len(fake.replies_to(asked)) == 1


@pytest.mark.parametrize(("status", "result"), [(403, "forbidden"), (404, "gone")])
async def test_a_place_that_is_closed_is_counted_and_let_go(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, status: int, result: str
) -> None:
    """A lost right or a deleted channel concerns this reply only; it blocks no other."""
    before = delivered(result)
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", status)
        await delivery.deliver(ask(archive, answer_to(asked)))
    assert delivered(result) == before + 1


async def test_a_reply_that_discord_refuses_for_good_is_counted(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """It is no dead letter: whoever can write the topic could reach the bot's limit with such answers."""
    before = delivered("refused")
    response = ask(archive, answer_to(asked))
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", 400)
        await delivery.deliver(response)
    assert delivered("refused") == before + 1
    assert archive.questions.find(response.query_id) is None


async def test_an_asker_whom_discord_does_not_know_is_counted(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """Discord answers 400 with code 50033 to a direct channel with nobody."""
    before = delivered("refused")
    response = ask(archive, evolve(answer_to(asked), asker_id=new_id(), audience=Audience.ASKER))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert delivered("refused") == before + 1


async def test_unknown_guilds_and_channels_are_let_go(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """The bot was removed, or the channel was."""
    before = delivered("gone")
    async with delivery_on(fake, archive) as delivery:
        for number, place in enumerate(({"guild_id": new_id()}, {"channel_id": new_id()})):
            response = evolve(answer_to(asked), query_id=f"m{number}", **place)  # type: ignore[arg-type]  # by its name
            await delivery.deliver(ask(archive, response))
    assert delivered("gone") == before + 2


async def test_a_question_that_was_deleted_still_gets_its_reply(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """It becomes an ordinary message."""
    fake.deletes(asked)
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(ask(archive, answer_to(asked)))
    assert [message.content for message in fake.posted_in(asked.channel)] == ["Use ntfs-3g."]
