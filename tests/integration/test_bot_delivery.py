"""Delivery of responses on the fake Discord: the channel, the number of posts, and failures."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from attrs import evolve

from rtfm.bot import replies
from rtfm.errors import Unavailable
from rtfm.events import Audience
from rtfm.knowledge.archive import SqlArchive
from tests.delivering import answer_to, ask, citing, delivered, delivery_on
from tests.fakes.discord import FakeDiscord, FakeMessage
from tests.fakes.discord.world import new_id


async def test_a_response_for_the_asker_is_never_posted_in_a_channel(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """A response with the audience ASKER is sent as a direct message and never posted in a channel."""
    response = ask(archive, evolve(answer_to(asked), audience=Audience.ASKER))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert fake.posted_in(asked.channel) == []
    assert len(fake.posted_in(fake.direct_channel(asked.author))) == 1


async def test_a_question_that_was_answered_is_closed(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """A delivered response closes its question, so that a second response to this question is not posted."""
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
    """A reply whose message id is recorded is not posted again.

    In this test the question is open again, as after a kill, and Discord has forgotten the nonce of the reply. The bot
    does not need to request the channel's history.
    """
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


async def test_a_reply_refers_to_the_question_and_pings_nobody(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """A reply refers to the question, pings nobody even if it quotes mentions, and shows no link preview."""
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
    """If a reply was not recorded and its nonce is forgotten, the bot finds the reply in the channel's history."""
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
    """A delivery that stopped after some parts posts only the missing parts."""
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
    """If the direct channel already has the same text from the bot, the direct message is not sent again."""
    response = ask(archive, evolve(answer_to(asked), audience=Audience.ASKER))
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", 0, after_doing_it=True)
        with pytest.raises(Unavailable):
            await delivery.deliver(response)
        fake.forgets_nonces()
    async with delivery_on(fake, archive, later_ms=later_ms) as delivery:
        await delivery.deliver(response)
    assert len(fake.posted_in(fake.direct_channel(asked.author))) == 1


async def test_a_reply_whose_outcome_is_unknown_is_posted_once(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """If the connection breaks after Discord accepted a reply, the nonce prevents a second reply."""
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
    """If Discord limits the rate, the reply is posted after the pause that Discord demands."""
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", 429, times=2)
        await delivery.deliver(ask(archive, answer_to(asked)))
    assert len(fake.replies_to(asked)) == 1


@pytest.mark.parametrize(("status", "result"), [(403, "forbidden"), (404, "gone")])
async def test_a_reply_to_a_closed_channel_is_counted_and_dropped(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage, status: int, result: str
) -> None:
    """If the channel of a reply is deleted or forbidden, the reply is counted and dropped."""
    before = delivered(result)
    async with delivery_on(fake, archive) as delivery:
        fake.fails("POST", "/messages", status)
        await delivery.deliver(ask(archive, answer_to(asked)))
    assert delivered(result) == before + 1


async def test_a_reply_that_discord_refuses_forever_is_counted(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """If Discord refuses a reply with status 400, the reply is counted, and the response becomes no dead letter.

    Otherwise any program that can write to the topic could make the bot reach its limit of dead letters.
    """
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
    """If Discord does not know the asker (status 400 with code 50033), the reply is counted and dropped."""
    before = delivered("refused")
    response = ask(archive, evolve(answer_to(asked), asker_id=new_id(), audience=Audience.ASKER))
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(response)
    assert delivered("refused") == before + 1


async def test_replies_to_unknown_guilds_and_channels_are_dropped(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """A reply to a guild that the bot is not in, or to a deleted channel, is dropped."""
    before = delivered("gone")
    async with delivery_on(fake, archive) as delivery:
        for number, place in enumerate(({"guild_id": new_id()}, {"channel_id": new_id()})):
            response = evolve(answer_to(asked), query_id=f"m{number}", **place)  # type: ignore[arg-type]  # by its name
            await delivery.deliver(ask(archive, response))
    assert delivered("gone") == before + 2


async def test_a_question_that_was_deleted_still_gets_its_reply(
    fake: FakeDiscord, archive: SqlArchive, asked: FakeMessage
) -> None:
    """If the message of a question was deleted, the answer is posted as an ordinary message and not as a reply."""
    fake.deletes(asked)
    async with delivery_on(fake, archive) as delivery:
        await delivery.deliver(ask(archive, answer_to(asked)))
    assert [message.content for message in fake.posted_in(asked.channel)] == ["Use ntfs-3g."]
