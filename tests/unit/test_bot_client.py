"""The client with the fake Discord: messages that the client receives over real sockets become events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import discord
import pytest
from attrs import define, field

from rtfm.bot.client import RtfmClient
from rtfm.discord_ids import created_at
from rtfm.events import (
    Audience,
    BotQuery,
    ChannelKind,
    ContextMessage,
    DiscordMessage,
    MessageChange,
    MessageSource,
    QueryOrigin,
    Speaker,
)
from tests.fakes.discord import FakeDiscord, FakeGuild
from tests.fakes.discord.world import ChannelType


@define
class Published:
    """Collects the events that a client publishes."""

    messages: list[DiscordMessage] = field(factory=list)
    queries: list[BotQuery] = field(factory=list)

    def __call__(self, topic: str, event: DiscordMessage | BotQuery) -> bool:
        match event:
            case DiscordMessage():
                assert topic == "discord-messages"
                self.messages.append(event)
            case BotQuery():
                assert topic == "bot-queries"
                self.queries.append(event)
        return True


async def until(condition: Callable[[], bool], what: str) -> None:
    """Let the client work until ``condition`` is true, and fail with ``what`` after about a minute."""
    for _ in range(6_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


@contextlib.asynccontextmanager
async def connected(fake: FakeDiscord, *, ask_for_gateway: bool = False) -> AsyncIterator[tuple[RtfmClient, Published]]:
    """Yield (client, its published events) as soon as the client knows its guilds."""
    published = Published()
    client = RtfmClient(published, query_expiry_s=600, api=fake.api, gateway=None if ask_for_gateway else fake.gateway)
    async with client:
        await client.login(fake.token)
        listening = asyncio.create_task(client.connect())
        await until(lambda: bool(client.guilds) and not client.guilds[0].unavailable, "no guild came")
        yield client, published
    await listening


async def test_a_refused_token_is_reported_at_login(fake: FakeDiscord) -> None:
    """A refused token fails at login, before the gateway is connected."""
    client = RtfmClient(Published(), query_expiry_s=600, api=fake.api, gateway=fake.gateway)
    async with client:
        with pytest.raises(discord.LoginFailure):
            await client.login("another-token")


async def test_messages_that_no_person_wrote_give_no_event(fake: FakeDiscord, guild: FakeGuild) -> None:
    """Messages of bots and webhooks, messages in voice channels and notices that somebody joined make no event."""
    general, voice = guild.channel("general"), guild.channel("talk", kind=ChannelType.VOICE)
    person, robot = fake.person("ada", guild), fake.person("robot", bot=True)
    async with connected(fake) as (_, published):
        fake.says(general, robot, "beep")
        fake.says(general, fake.bot, "an answer of ours")
        fake.says(general, person, "from a webhook", webhook=True)
        fake.says(general, person, "", message_type=7)
        fake.says(voice, person, "in voice")
        last = fake.says(general, person, "the only one")
        await until(lambda: bool(published.messages), "no event came")
    assert [event.message_id for event in published.messages] == [last.id]
    assert published.queries == []


async def test_a_message_becomes_an_event(fake: FakeDiscord, guild: FakeGuild) -> None:
    """A message becomes an event whose fields have the values of the message."""
    general, person, friend = guild.channel("general"), fake.person("ada", guild), fake.person("bob", guild)
    log_file = {"id": "1", "filename": "a.log", "url": "https://cdn.invalid/a.log", "proxy_url": "", "size": 12}
    async with connected(fake) as (_, published):
        first = fake.says(general, person, "how do I mount NTFS?", attachments=(log_file,))
        reply = fake.says(general, friend, "with ntfs-3g", reply_to=first, mentions=(person,))
        await until(lambda: len(published.messages) == 2, "two events")
    event, answer = published.messages
    assert event == DiscordMessage(
        message_id=first.id,
        guild_id=guild.id,
        channel_id=general.id,
        channel_kind=ChannelKind.TEXT,
        channel_name="general",
        author_id=person.id,
        author_name="ada",
        content="how do I mount NTFS?",
        created_at=created_at(int(first.id)),
        change=MessageChange.CREATED,
        observed_at=event.observed_at,
        source=MessageSource.GATEWAY,
        attachments=event.attachments,
    )
    assert [(a.filename, a.size_bytes, a.content_type) for a in event.attachments] == [("a.log", 12, None)]
    assert (answer.reply_to_message_id, answer.mentioned_user_ids) == (reply.reply_to and first.id, [person.id])


async def test_threads_and_posts_name_their_parent(fake: FakeDiscord, guild: FakeGuild) -> None:
    """Events of threads and posts contain the channel's kind and parent, which decide who may read the messages."""
    general, forum = guild.channel("general"), guild.channel("forum", kind=ChannelType.FORUM)
    person = fake.person("ada", guild)
    places = {
        guild.thread(general, "open").id: (ChannelKind.PUBLIC_THREAD, general.id),
        guild.thread(general, "closed", private=True).id: (ChannelKind.PRIVATE_THREAD, general.id),
        guild.thread(forum, "post").id: (ChannelKind.FORUM_POST, forum.id),
    }
    async with connected(fake) as (_, published):
        for channel in guild.channels:
            if channel.id in places:
                fake.says(channel, person, "hello there")
        await until(lambda: len(published.messages) == 3, "three events")
    assert {event.channel_id: (event.channel_kind, event.parent_channel_id) for event in published.messages} == places


async def test_edits_and_deletions_become_events_in_order(fake: FakeDiscord, guild: FakeGuild) -> None:
    """Edits and deletions become events in order, even if the client has not seen the original messages.

    If Discord adds a link preview to a message, this does not count as an edit.
    """
    general, person = guild.channel("general"), fake.person("ada", guild)
    older = [fake.says(general, person, f"before the bot came {n}", announce=False) for n in range(3)]
    async with connected(fake) as (_, published):
        fake.unfurls(older[0])
        fake.edits(older[0], "changed")
        fake.deletes(older[0])
        fake.deletes(*older[1:])
        await until(lambda: len(published.messages) == 4, "four events")
    edited, gone, *bulk = published.messages
    assert (edited.change, edited.content, edited.edited_at) == (MessageChange.EDITED, "changed", 1767323045678)
    assert (gone.change, gone.message_id, gone.channel_kind) == (MessageChange.DELETED, older[0].id, ChannelKind.TEXT)
    assert (gone.content, gone.author_id, gone.created_at) == ("", None, created_at(int(older[0].id)))
    assert [event.message_id for event in bulk] == [message.id for message in older[1:]]


async def test_a_mention_becomes_a_query_and_no_message(fake: FakeDiscord, guild: FakeGuild) -> None:
    """A mention becomes a query with the visible channels, and no DiscordMessage.

    If the question were archived as a message, search would find it as its own answer.
    """
    general, person = guild.channel("general"), fake.person("ada", guild)
    guild.hidden_channel("staff", shown_to=guild.role("staff"))
    async with connected(fake) as (_, published):
        asked = fake.says(general, person, f"<@{fake.bot.id}> how do I mount NTFS?", mentions=(fake.bot,))
        await until(lambda: fake.count("POST", "/typing") == 1, "no typing")
    moment = created_at(int(asked.id))
    assert published.queries == [
        BotQuery(
            query_id=f"m{asked.id}",
            guild_id=guild.id,
            channel_id=general.id,
            message_id=asked.id,
            asker_id=person.id,
            question="how do I mount NTFS?",
            asked_at=moment,
            expires_at=moment + 600_000,  # type: ignore[arg-type]  # the sum of two TimestampMillis is a plain int
            audience=Audience.PUBLIC,
            visible_channel_ids=[general.id],
            origin=QueryOrigin.MENTION,
        )
    ]
    assert published.messages == []


async def test_the_prefix_and_the_bots_role_ask_too(fake: FakeDiscord, guild: FakeGuild) -> None:
    """Messages with the prefix or with a mention of the bot's role become queries.

    In the list of names that Discord offers, people often pick the role instead of the bot.
    """
    general, person = guild.channel("general"), fake.person("ada", guild)
    role = guild.role("rtfm", of_bot=fake.bot)
    async with connected(fake) as (_, published):
        fake.says(general, person, "!rtfm one?")
        fake.says(general, person, f"<@&{role}> two?")
        await until(lambda: len(published.queries) == 2, "two queries")
    assert [query.question for query in published.queries] == ["one?", "two?"]


async def test_a_reply_to_the_bot_carries_what_it_replies_to(fake: FakeDiscord, guild: FakeGuild) -> None:
    """A reply to the bot becomes a query with the bot's message as context; a reply of thanks becomes no query."""
    general, person = guild.channel("general"), fake.person("ada", guild)
    answer = fake.says(general, fake.bot, "Use ntfs-3g.", announce=False)
    async with connected(fake) as (_, published):
        fake.says(general, person, "thank you!", reply_to=answer, mentions=(fake.bot,))
        fake.says(general, person, "and on Windows?", reply_to=answer, mentions=(fake.bot,))
        await until(lambda: bool(published.queries), "a query")
    (query,) = published.queries
    assert (query.question, query.origin) == ("and on Windows?", QueryOrigin.REPLY)
    assert query.context == [ContextMessage(speaker=Speaker.BOT, content="Use ntfs-3g.", message_id=answer.id)]


async def test_a_name_alone_is_told_how_to_ask(fake: FakeDiscord, guild: FakeGuild) -> None:
    """A mention without a question gets a hint that pings nobody, and makes no query."""
    general, person = guild.channel("general"), fake.person("ada", guild)
    async with connected(fake) as (_, published):
        asked = fake.says(general, person, "!rtfm")
        await until(lambda: bool(fake.replies_to(asked)), "no hint")
    assert fake.replies_to(asked)[0].pings() == []
    assert published.queries == []


async def test_a_member_may_ask_directly(fake: FakeDiscord, guild: FakeGuild) -> None:
    """A member may ask in a direct message, and the query lists the channels that every member can read."""
    general, person = guild.channel("general"), fake.person("ada", guild)
    guild.hidden_channel("staff", shown_to=guild.role("staff"))
    async with connected(fake) as (_, published):
        fake.says(fake.direct_channel(person), person, "how do I mount NTFS?")
        await until(lambda: bool(published.queries), "a query")
    (query,) = published.queries
    assert (query.audience, query.origin) == (Audience.ASKER, QueryOrigin.DIRECT)
    assert (query.guild_id, query.visible_channel_ids) == (guild.id, [general.id])


async def test_a_stranger_asking_directly_is_told_nothing(fake: FakeDiscord, guild: FakeGuild) -> None:
    """If a person is in no guild of the bot, a direct message of this person gets a reply, but makes no query."""
    guild.channel("general")
    stranger = fake.person("eve")
    async with connected(fake) as (_, published):
        channel = fake.direct_channel(stranger)
        fake.says(channel, stranger, "what do they say about me?")
        await until(lambda: bool(fake.posted_in(channel)), "no word")
    assert published.queries == []


async def test_what_was_missed_is_replayed_after_a_lost_connection(fake: FakeDiscord, guild: FakeGuild) -> None:
    """When Discord asks the client to reconnect, the session is resumed, and a later message becomes one event."""
    general, person = guild.channel("general"), fake.person("ada", guild)
    async with connected(fake) as (client, published):
        fake.asks_to_reconnect()
        await until(lambda: fake.resumed == 1 and client.not_ready_reason() is None, "no resume")
        fake.says(general, person, "after")
        await until(lambda: bool(published.messages), "an event")
    assert [event.content for event in published.messages] == ["after"]
    assert fake.identified == 1


async def test_another_server_is_asked_for_its_gateway(fake: FakeDiscord, guild: FakeGuild) -> None:
    """If only a REST address is configured, the client asks there for the gateway, and connects to that gateway."""
    general, person = guild.channel("general"), fake.person("ada", guild)
    async with connected(fake, ask_for_gateway=True) as (_, published):
        fake.says(general, person, "hello there")
        await until(lambda: bool(published.messages), "an event")
    assert fake.count("GET", "/gateway/bot") == 1


@pytest.mark.parametrize("debug", [False, True])
async def test_an_unreachable_gateway_is_one_line_in_the_log(
    fake: FakeDiscord, caplog: pytest.LogCaptureFixture, debug: bool
) -> None:
    """If the gateway is unreachable, a warning names the cause; at debug level, an error with a traceback is logged."""
    caplog.set_level(logging.DEBUG if debug else logging.INFO, logger="rtfm")

    def said() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "Attempting a reconnect" in record.getMessage()]

    async with RtfmClient(Published(), query_expiry_s=600, api=fake.api, gateway="ws://127.0.0.1:1") as client:
        await client.login(fake.token)
        listening = asyncio.create_task(client.connect())
        await until(lambda: bool(said()), "nothing was said of the lost connection")
    listening.cancel()
    record = said()[0]
    assert (record.levelname, bool(record.exc_info)) == (("ERROR", True) if debug else ("WARNING", False))
    assert debug or "ClientConnectorError" in record.getMessage()
