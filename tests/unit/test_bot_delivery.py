"""Answers on their way to the fake Discord: where they go, how often, and what happens when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from attrs import evolve
from prometheus_client import REGISTRY

from rtfm.bot import replies
from rtfm.bot.client import RtfmClient
from rtfm.bot.delivery import ReplyDelivery
from rtfm.errors import InvalidEvent, Unavailable
from rtfm.events import Audience, BotResponse, ChannelKind, Citation, Outcome, SourceKind, TimestampMillis
from tests.fakes.discord import FakeDiscord, FakeGuild, FakeMessage
from tests.fakes.discord.world import ChannelType, new_id


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
        answered_at=now(),
        elapsed_ms=5,
    )


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
async def delivery_on(fake: FakeDiscord, *, later_ms: int = 0) -> AsyncIterator[ReplyDelivery]:
    """A delivery whose clock runs ``later_ms`` ahead."""
    client = RtfmClient(lambda *_: True, query_expiry_s=600, api=fake.api, gateway=fake.gateway)
    async with client:
        await client.login(fake.token)
        listening = asyncio.create_task(client.connect())
        while not (client.guilds and not client.guilds[0].unavailable):
            assert not listening.done()
            await asyncio.sleep(0.01)
        yield ReplyDelivery(client, clock_ms=lambda: TimestampMillis(now() + later_ms))
    await listening


def delivered(result: str) -> float:
    return REGISTRY.get_sample_value("rtfm_responses_delivered_total", {"result": result}) or 0.0


async def test_a_response_for_the_asker_is_never_posted_in_a_channel(fake: FakeDiscord, asked: FakeMessage) -> None:
    """An audience of ASKER, or one that this version does not know, goes out by direct message."""
    async with delivery_on(fake) as delivery:
        for audience in (Audience.ASKER, Audience.UNKNOWN):
            await delivery.deliver(evolve(answer_to(asked), query_id=f"m{audience}", audience=audience))
    assert fake.posted_in(asked.channel) == []
    assert len(fake.posted_in(fake.direct_channel(asked.author))) == 2


async def test_sources_that_readers_cannot_see_are_withheld(
    fake: FakeDiscord, guild: FakeGuild, asked: FakeMessage
) -> None:
    """A channel may have been hidden since the question was asked."""
    staff = guild.hidden_channel("staff", shown_to=guild.role("staff"))
    async with delivery_on(fake) as delivery:
        await delivery.deliver(citing(answer_to(asked, "The password is penguin."), staff.id))
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("real", ["private thread", "staff channel", "staff thread", "voice channel"])
async def test_m2_a_citation_is_not_believed_about_its_channel(
    fake: FakeDiscord, guild: FakeGuild, asked: FakeMessage, real: str, archived: bool
) -> None:
    """M2: what Discord says of the channel counts, not what the archive was told of it."""
    staff = guild.hidden_channel("staff", shown_to=guild.role("staff"))
    cited = {
        "private thread": lambda: guild.thread(asked.channel, "incident", private=True, archived=archived),
        "staff channel": lambda: staff,
        "staff thread": lambda: guild.thread(staff, "plans", archived=archived),
        "voice channel": lambda: guild.channel("talk", kind=ChannelType.VOICE),
    }[real]()
    response = citing(
        answer_to(asked, "The password is penguin."), cited.id, kind=ChannelKind.PUBLIC_THREAD, parent=asked.channel.id
    )
    async with delivery_on(fake) as delivery:
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]


@pytest.mark.parametrize("what", ["gone", "another guild", "no snowflake", "no channel"])
async def test_m2_a_source_that_discord_does_not_know_is_withheld(
    fake: FakeDiscord, guild: FakeGuild, asked: FakeMessage, what: str
) -> None:
    """M2: a channel that was deleted, of another guild, or of another program has no readers on this one."""
    response = citing(answer_to(asked, "The password is penguin."), asked.channel.id)
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
    async with delivery_on(fake) as delivery:
        await delivery.deliver(evolve(response, citations=[citation]))
    assert [message.content for message in fake.replies_to(asked)] == [replies.NO_LONGER_SHOWN]


async def test_m2_threads_and_posts_are_shown_by_what_discord_says(
    fake: FakeDiscord, guild: FakeGuild, asked: FakeMessage
) -> None:
    """M2: archived ones are asked for, each once, and a stale kind in the archive hides nothing."""
    forum = guild.channel("forum", kind=ChannelType.FORUM)
    places = [
        guild.thread(asked.channel, "open"),
        guild.thread(asked.channel, "old", archived=True),
        guild.thread(forum, "post", archived=True),
        asked.channel,
    ]
    response = answer_to(asked, "Use ntfs-3g.")
    citations = [
        evolve(citing(response, place.id, kind=ChannelKind.UNKNOWN).citations[0], number=number)
        for number, place in enumerate([*places, *places], start=1)
    ]
    async with delivery_on(fake) as delivery:
        await delivery.deliver(evolve(response, citations=citations))
    (posted,) = fake.replies_to(asked)
    assert posted.content.startswith("Use ntfs-3g.")
    assert fake.count("GET", r"/channels/\d+") == 2


async def test_m2_while_discord_does_not_say_what_a_channel_is_nothing_is_shown(
    fake: FakeDiscord, guild: FakeGuild, asked: FakeMessage
) -> None:
    """M2: the response is delivered when Discord answers again."""
    old = guild.thread(asked.channel, "old", archived=True)
    response = citing(answer_to(asked), old.id, kind=ChannelKind.PUBLIC_THREAD, parent=asked.channel.id)
    async with delivery_on(fake) as delivery:
        fake.fails("GET", f"/channels/{old.id}", 503, times=5)
        with pytest.raises(Unavailable):
            await delivery.deliver(response)
        assert fake.replies_to(asked) == []
        fake.heals()
        await delivery.deliver(response)
    assert len(fake.replies_to(asked)) == 1


async def test_console_answers_and_unknown_outcomes_are_not_posted(fake: FakeDiscord, asked: FakeMessage) -> None:
    """They concern somebody else, or a later version."""
    response = answer_to(asked)
    async with delivery_on(fake) as delivery:
        await delivery.deliver(evolve(response, query_id="c0d4"))
        await delivery.deliver(evolve(response, outcome=Outcome.UNKNOWN))
    assert fake.count("POST", ".*") == 0


async def test_a_reply_refers_to_the_question_and_pings_nobody(fake: FakeDiscord, asked: FakeMessage) -> None:
    """Whatever the answer quotes, no one is called, and no link is unfolded."""
    async with delivery_on(fake) as delivery:
        await delivery.deliver(citing(answer_to(asked, f"<@{asked.author.id}> @everyone <@&5>"), asked.channel.id))
    (reply,) = fake.replies_to(asked)
    assert reply.pings() == []
    assert reply.sent["allowed_mentions"] == {"parse": []}
    assert reply.sent["message_reference"]["fail_if_not_exists"] is False
    assert reply.sent["flags"] == 4  # SUPPRESS_EMBEDS
    assert reply.sent["enforce_nonce"] is True
    assert reply.sent["nonce"] == replies.nonce(f"m{asked.id}", 0)


async def test_a_second_delivery_within_a_minute_makes_no_second_reply(fake: FakeDiscord, asked: FakeMessage) -> None:
    """Discord itself knows the nonce."""
    async with delivery_on(fake) as delivery:
        await delivery.deliver(answer_to(asked))
        await delivery.deliver(answer_to(asked))
    assert len(fake.replies_to(asked)) == 1
    assert fake.count("GET", "/messages") == 0


async def test_a_delivery_that_is_repeated_later_makes_no_second_reply(fake: FakeDiscord, asked: FakeMessage) -> None:
    """When Discord has forgotten the nonce, the channel still holds the reply."""
    response = answer_to(asked)
    async with delivery_on(fake) as delivery:
        await delivery.deliver(response)
    fake.forgets_nonces()
    before = delivered("already_there")
    async with delivery_on(fake, later_ms=3_600_000) as delivery:
        await delivery.deliver(response)
    assert len(fake.replies_to(asked)) == 1
    assert delivered("already_there") == before + 1


async def test_a_delivery_that_stopped_midway_is_continued(fake: FakeDiscord, asked: FakeMessage) -> None:
    """Only the missing parts are posted."""
    text = "\n".join(f"line {number} of a long answer" for number in range(200))
    response = answer_to(asked, text)
    parts = replies.compose(response)
    assert len(parts) == 3
    async with delivery_on(fake) as delivery:
        fake.fails("POST", "/messages", 500, times=99)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await delivery.deliver(response)
        fake.heals()
        fake.says(asked.channel, fake.bot, parts[0], reply_to=asked, announce=False).sent = {
            "message_reference": {"message_id": asked.id}
        }
    async with delivery_on(fake, later_ms=3_600_000) as delivery:
        await delivery.deliver(response)
    assert [message.content for message in fake.replies_to(asked)] == parts


async def test_a_late_direct_message_is_not_repeated(fake: FakeDiscord, asked: FakeMessage) -> None:
    """There the words themselves tell that it was sent."""
    response = evolve(answer_to(asked), audience=Audience.ASKER)
    async with delivery_on(fake) as delivery:
        await delivery.deliver(response)
        fake.forgets_nonces()
    async with delivery_on(fake, later_ms=3_600_000) as delivery:
        await delivery.deliver(response)
    assert len(fake.posted_in(fake.direct_channel(asked.author))) == 1


async def test_a_reply_whose_fate_is_unknown_is_posted_once(fake: FakeDiscord, asked: FakeMessage) -> None:
    """The connection broke after Discord had taken it: trying again posts nothing new."""
    async with delivery_on(fake) as delivery:
        fake.fails("POST", "/messages", 0, after_doing_it=True)
        with pytest.raises(Unavailable):
            await delivery.deliver(answer_to(asked))
        await delivery.deliver(answer_to(asked))
    assert len(fake.replies_to(asked)) == 1


async def test_a_rate_limit_is_waited_for(fake: FakeDiscord, asked: FakeMessage) -> None:
    """The reply comes after the pause that Discord asks for."""
    async with delivery_on(fake) as delivery:
        fake.fails("POST", "/messages", 429, times=2)
        await delivery.deliver(answer_to(asked))
    assert len(fake.replies_to(asked)) == 1


@pytest.mark.parametrize(("status", "result"), [(403, "forbidden"), (404, "gone")])
async def test_a_place_that_is_closed_is_counted_and_let_go(
    fake: FakeDiscord, asked: FakeMessage, status: int, result: str
) -> None:
    """A lost right or a deleted channel concerns this reply only; it blocks no other."""
    before = delivered(result)
    async with delivery_on(fake) as delivery:
        fake.fails("POST", "/messages", status)
        await delivery.deliver(answer_to(asked))
    assert delivered(result) == before + 1


async def test_a_reply_that_discord_refuses_for_good_is_invalid(fake: FakeDiscord, asked: FakeMessage) -> None:
    """It belongs in dead-letters, not in an endless loop."""
    async with delivery_on(fake) as delivery:
        fake.fails("POST", "/messages", 400)
        with pytest.raises(InvalidEvent, match=asked.id):
            await delivery.deliver(answer_to(asked))


async def test_ids_that_are_no_snowflakes_are_invalid(fake: FakeDiscord, asked: FakeMessage) -> None:
    """Another service's mistake ends in dead-letters as well."""
    async with delivery_on(fake) as delivery:
        response = answer_to(asked)
        for wrong in (
            evolve(response, guild_id="penguins"),
            evolve(response, channel_id=""),
            evolve(response, query_message_id="-1"),
            evolve(response, asker_id="ada", audience=Audience.ASKER),
        ):
            with pytest.raises(InvalidEvent):
                await delivery.deliver(wrong)


async def test_unknown_guilds_and_channels_are_let_go(fake: FakeDiscord, asked: FakeMessage) -> None:
    """The bot was removed, or the channel was."""
    before = delivered("gone")
    async with delivery_on(fake) as delivery:
        await delivery.deliver(evolve(answer_to(asked), guild_id=new_id()))
        await delivery.deliver(evolve(answer_to(asked), channel_id=new_id()))
    assert delivered("gone") == before + 2


async def test_a_question_that_was_deleted_still_gets_its_reply(fake: FakeDiscord, asked: FakeMessage) -> None:
    """It becomes an ordinary message."""
    fake.deletes(asked)
    async with delivery_on(fake) as delivery:
        await delivery.deliver(answer_to(asked))
    assert [message.content for message in fake.posted_in(asked.channel)] == ["Use ntfs-3g."]
