"""The bot as a whole service, between the fake Discord and real Kafka."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator

import pytest
from attrs import evolve

from rtfm.bot.service import run_bot
from rtfm.contracts import catalogue, open_contracts
from rtfm.errors import ConfigError
from rtfm.events import (
    BotQuery,
    BotResponse,
    DiscordMessage,
    MessageChange,
    Outcome,
    TimestampMillis,
)
from rtfm.knowledge.archive import SqlArchive
from rtfm.processor.service import run_processor
from rtfm.settings import Settings
from rtfm.streams.consumer import EventReader
from rtfm.streams.pipeline import Record
from rtfm.streams.producer import EventProducer
from rtfm.streams.topics import TopicAdmin
from tests.conftest import environment_of
from tests.delivering import answer_to
from tests.fakes.discord import FakeDiscord, FakeGuild, FakeMessage


@pytest.fixture
def guild(fake: FakeDiscord) -> FakeGuild:
    guild = fake.guild()
    guild.channel("general")
    fake.person("ada", guild)
    return guild


@pytest.fixture
def bot_settings(settings: Settings, fake: FakeDiscord) -> Settings:
    return _on_discord(settings, fake)


def _on_discord(settings: Settings, fake: FakeDiscord) -> Settings:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return evolve(
        settings,
        discord_token=fake.token,
        discord_api=fake.api,
        discord_gateway=fake.gateway,
        metrics_port=port,
        shutdown_grace_s=10.0,
    )


@contextlib.contextmanager
def running_bot(settings: Settings, fake: FakeDiscord) -> Iterator[None]:
    """Run the bot in a thread while the context lasts, and fail if the bot did not end cleanly."""
    stop = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            run_bot(settings, stop)
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=run, name="bot")
    thread.start()
    try:
        fake.wait_until(lambda: bool(raised) or _readiness(settings) == (200, {}), "the bot is not ready")
        if not raised:
            yield
    finally:
        stop.set()
        thread.join(timeout=60)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def running_processor(settings: Settings) -> Iterator[None]:
    """Run the processor in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=run_processor, args=(evolve(settings, metrics_port=0), None, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)
        assert not thread.is_alive()


def _until_archived(settings: Settings, messages: int) -> None:
    with contextlib.closing(SqlArchive(settings.database_url)) as archive:
        deadline = time.monotonic() + 120
        while archive.counts()["messages"] < messages:
            assert time.monotonic() < deadline, "not archived"
            time.sleep(0.05)


@contextlib.contextmanager
def bot_process(settings: Settings, fake: FakeDiscord) -> Iterator[subprocess.Popen[str]]:
    """Run the bot as a separate process; wait until it is ready, and kill it at the end."""
    program = "from rtfm import settings; from rtfm.bot.service import run_bot; run_bot(settings.load(dotenv=None))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment_of(settings), stderr=subprocess.PIPE, text=True
    )
    try:
        fake.wait_until(lambda: _readiness(settings) == (200, {}), "the bot is not ready")
        yield process
    finally:
        process.kill()
        process.communicate()


def _readiness(settings: Settings) -> tuple[int, dict[str, str]]:
    address = f"http://127.0.0.1:{settings.metrics_port}/readyz"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status, json.load(answer)["wrong"]
    except urllib.error.HTTPError as exc:
        return exc.code, json.load(exc)["wrong"]
    except OSError:
        return 0, {}


def _lag(settings: Settings) -> int:
    states = {state.topic: state for state in TopicAdmin(settings, catalogue.load()).states()}
    return states["bot-responses"].lag[catalogue.load().group("bot-responses")]


def records(settings: Settings, topic: str, count: int) -> list[Record]:
    """Return the first ``count`` records that a reader of ``topic`` gets."""
    found: list[Record] = []
    deadline = time.monotonic() + 30
    with contextlib.closing(EventReader(settings, open_contracts(settings), topic, group=None)) as reader:
        while len(found) < count and time.monotonic() < deadline:
            if (record := reader.poll(0.2)) is not None:
                found.append(record)
    assert len(found) == count
    return found


def produce(settings: Settings, *responses: BotResponse) -> None:
    with EventProducer(settings, open_contracts(settings)) as producer:
        for response in responses:
            producer.send("bot-responses", response)
        producer.flush(30)


def response_to(asked: FakeMessage, *, ago_ms: int = 0) -> BotResponse:
    response = answer_to(asked)
    return evolve(response, answered_at=TimestampMillis(response.answered_at - ago_ms))


def open_question(settings: Settings, response: BotResponse) -> BotResponse:
    """Store the open question that ``response`` answers, as if the bot had already sent its query."""
    now = TimestampMillis(time.time_ns() // 1_000_000)
    query = BotQuery(
        query_id=response.query_id,
        guild_id=response.guild_id,
        channel_id=response.channel_id,
        message_id=response.query_message_id,
        asker_id=response.asker_id,
        question="how?",
        asked_at=now,
        expires_at=TimestampMillis(now + 600_000),
        audience=response.audience,
        visible_channel_ids=[response.channel_id],
    )
    with contextlib.closing(SqlArchive(settings.database_url)) as archive:
        archive.questions.open(query, now=now)
    return response


def test_a_missing_token_is_named() -> None:
    """Without a token, the bot ends before it starts anything, with an error that names the setting."""
    with pytest.raises(ConfigError, match="DISCORD_TOKEN"):
        run_bot(Settings())


def test_a_metrics_port_that_is_taken_is_named() -> None:
    """If the metrics port is in use, the error names the port; the usual cause is two services on one machine."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"METRICS_PORT: 127.0.0.1:{port}"):
            run_bot(evolve(Settings(), discord_token="made-up-token", metrics_port=port))


def test_a_refused_token_ends_the_service(bot_settings: Settings) -> None:
    """If Discord refuses the bot's token, the bot ends, because frequent attempts get a bot banned."""
    with pytest.raises(ConfigError, match="refused DISCORD_TOKEN") as caught:
        run_bot(evolve(bot_settings, discord_token="another-token"))
    assert "developers/applications" in str(caught.value.hint)


def test_contracts_that_are_not_registered_end_the_service(bare_settings: Settings, fake: FakeDiscord) -> None:
    """If the bot's contracts are not registered, the bot ends, because it could not produce any event."""
    with pytest.raises(ConfigError, match="not registered"):
        run_bot(_on_discord(bare_settings, fake))


@pytest.mark.parametrize(
    ("make_it_so", "complaint"),
    [
        (lambda fake: fake.refuses_message_content(), "Message Content Intent"),
        (lambda fake: fake.closes_every_gateway(4004), "refused DISCORD_TOKEN"),
    ],
    ids=["intent", "token"],
)
def test_a_refusal_by_the_gateway_ends_the_service(
    bot_settings: Settings, fake: FakeDiscord, make_it_so: Callable[[FakeDiscord], None], complaint: str
) -> None:
    """If the gateway refuses a privileged intent or the token, the bot ends, and the error names the cause."""
    make_it_so(fake)
    with pytest.raises(ConfigError, match=complaint):
        run_bot(bot_settings)


def test_messages_edits_and_deletions_reach_kafka(bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild) -> None:
    """Created, edited and deleted messages reach Kafka under the key of their channel, in order."""
    (general,), (ada,) = guild.channels, guild.members
    with running_bot(bot_settings, fake):
        message = fake.says(general, ada, "how do I mount NTFS?")
        fake.edits(message, "how do I mount NTFS on Linux?")
        fake.deletes(message)
        found = records(bot_settings, "discord-messages", 3)
    events = [record.event for record in found]
    assert all(isinstance(event, DiscordMessage) for event in events)
    assert [event.change for event in events] == [MessageChange.CREATED, MessageChange.EDITED, MessageChange.DELETED]
    assert [event.content for event in events] == ["how do I mount NTFS?", "how do I mount NTFS on Linux?", ""]
    assert {record.key for record in found} == {general.id.encode()}


def test_a_mention_is_asked_and_its_answer_is_replied_once(
    bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild
) -> None:
    """A mention becomes a query; if the response is produced several times, the bot still replies once."""
    (general,), (ada,) = guild.channels, guild.members
    with running_bot(bot_settings, fake):
        asked = fake.says(general, ada, f"<@{fake.bot.id}> how do I mount NTFS?", mentions=(fake.bot,))
        (record,) = records(bot_settings, "bot-queries", 1)
        response = response_to(asked)
        produce(bot_settings, response, response, evolve(response, query_id="c0ffee"))
        fake.wait_until(lambda: bool(fake.replies_to(asked)), "no reply")
        last = fake.says(general, ada, "!rtfm and then?")
        produce(bot_settings, response_to(last))
        fake.wait_until(lambda: bool(fake.replies_to(last)), "no second reply")
    assert isinstance(record.event, BotQuery)
    assert (record.event.query_id, record.event.visible_channel_ids) == (f"m{asked.id}", [general.id])
    (reply,) = fake.replies_to(asked)
    assert (reply.content, reply.pings()) == ("Use ntfs-3g.", [])
    assert reply.sent["allowed_mentions"] == {"parse": []}
    assert len(fake.posted_in(general)) == 2


def test_responses_to_the_questions_of_others_do_not_stop_the_bot(
    bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild
) -> None:
    """The bot ignores 400 responses to other programs' questions, and then posts the response to its own question.

    All of the 400 responses name an existing channel, and some of them also name an existing person.
    """
    (general,), (ada,) = guild.channels, guild.members
    with running_bot(bot_settings, fake):
        asked = fake.says(general, ada, "!rtfm how?")
        records(bot_settings, "bot-queries", 1)
        own = response_to(asked)
        foreign = [
            evolve(
                own,
                query_id=f"helpdesk-{uuid.uuid4()}" if number % 2 else str(uuid.uuid4()),
                query_message_id=None if number % 3 else "9" * 40,
                asker_id=ada.id if number % 5 == 0 else f"helpdesk-{number}",
                guild_id=guild.id if number % 4 else None,
                outcome=Outcome.NOT_FOUND if number % 7 else Outcome.ANSWERED,
            )
            for number in range(400)
        ]
        produce(bot_settings, *foreign, evolve(own, asker_id="9" * 40), own)
        fake.wait_until(lambda: bool(fake.replies_to(asked)), "no reply")
        fake.wait_until(lambda: _lag(bot_settings) == 0, "not all responses were read")
        assert _readiness(bot_settings) == (200, {})
    (reply,) = fake.posted_in(general)
    assert (reply.content, fake.count("POST", "/users/@me/channels")) == ("Use ntfs-3g.", 0)
    states = {state.topic: state for state in TopicAdmin(bot_settings, catalogue.load()).states()}
    assert states["dead-letters"].offsets == 0
    with contextlib.closing(SqlArchive(bot_settings.database_url)) as archive:
        assert archive.questions.find(own.query_id) is None


def test_a_question_is_answered_from_what_was_said(bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild) -> None:
    """With a real processor, the answer links to a message of the guild, hides another channel, and pings no one."""
    (general,), (ada,) = guild.channels, guild.members
    staff = guild.hidden_channel("staff", shown_to=guild.role("staff"))
    with running_processor(bot_settings), running_bot(bot_settings, fake):
        said = fake.says(general, ada, "To mount an NTFS partition read-write, install ntfs-3g and add it to fstab.")
        hidden = fake.says(staff, ada, "The NTFS partition of the backup server mounts with the passphrase wombat.")
        _until_archived(bot_settings, 2)
        asked = fake.says(general, ada, "!rtfm how do I mount an NTFS partition?")
        fake.wait_until(lambda: bool(fake.replies_to(asked)), "no reply", timeout_s=60)
    (reply,) = fake.replies_to(asked)
    assert f"https://discord.com/channels/{guild.id}/{general.id}/{said.id}" in reply.content
    assert "wombat" not in reply.content
    assert hidden.id not in reply.content
    assert reply.pings() == []


def test_an_answer_is_not_repeated_by_the_next_bot(bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild) -> None:
    """After a restart, the bot does not post an answer again, even if another copy of its response arrives."""
    (general,), (ada,) = guild.channels, guild.members
    asked = fake.says(general, ada, "!rtfm how?", announce=False)
    response = open_question(bot_settings, response_to(asked))
    with running_bot(bot_settings, fake):
        produce(bot_settings, response)
        fake.wait_until(lambda: bool(fake.replies_to(asked)), "no reply")
    fake.forgets_nonces()
    produce(bot_settings, evolve(response, answered_at=TimestampMillis(response.answered_at - 61_000)))
    with running_bot(bot_settings, fake):
        last = fake.says(general, ada, "!rtfm and then?", announce=False)
        produce(bot_settings, open_question(bot_settings, response_to(last)))
        fake.wait_until(lambda: bool(fake.replies_to(last)), "no second reply")
    assert len(fake.posted_in(general)) == 2


def test_an_answer_waits_while_discord_is_down(bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild) -> None:
    """If Discord reports errors when a response is posted, the response is posted once Discord works again."""
    (general,), (ada,) = guild.channels, guild.members
    with running_bot(bot_settings, fake):
        asked = fake.says(general, ada, "!rtfm how?", announce=False)
        fake.fails("POST", "/messages", 503, times=2)
        produce(bot_settings, open_question(bot_settings, response_to(asked)))
        fake.wait_until(lambda: bool(fake.replies_to(asked)), "no reply")
    assert len(fake.replies_to(asked)) == 1


def test_a_bot_that_starts_before_discord_waits(bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild) -> None:
    """If a bot starts while Discord is down, it becomes ready once Discord is up."""
    fake.fails("GET", "/users/@me", 0)
    with running_bot(bot_settings, fake):
        assert fake.count("GET", "/users/@me") == 2


def test_a_bot_killed_before_its_commit_makes_no_second_reply(
    bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild
) -> None:
    """If a bot is killed after it posted a reply and before its commit, the next bot does not post the reply again.

    The offset is not committed and Discord has forgotten the nonce, so the next bot must look for the reply in the
    history of the channel.
    """
    (general,), (ada,) = guild.channels, guild.members
    asked = fake.says(general, ada, "!rtfm how?", announce=False)
    last = fake.says(general, ada, "!rtfm and then?", announce=False)
    fake.stalls("POST", "/messages")
    with bot_process(bot_settings, fake) as process:
        produce(bot_settings, open_question(bot_settings, response_to(asked, ago_ms=61_000)))
        fake.wait_until(lambda: bool(fake.replies_to(asked)), "no reply")
        process.kill()
        process.wait()
    fake.forgets_nonces()
    with running_bot(bot_settings, fake):
        produce(bot_settings, open_question(bot_settings, response_to(last)))
        fake.wait_until(lambda: bool(fake.replies_to(last)), "no second reply")
        fake.wait_until(lambda: fake.count("GET", "/messages") >= 2, "the first answer was not looked for again")
    assert len(fake.posted_in(general)) == 2


def test_sigterm_flushes_the_outbox(bot_settings: Settings, fake: FakeDiscord, guild: FakeGuild) -> None:
    """After SIGTERM the bot sends all events of its outbox to Kafka, and exits with 0."""
    (general,), (ada,) = guild.channels, guild.members
    with bot_process(bot_settings, fake) as process:
        for number in range(200):
            fake.says(general, ada, f"message {number}")
        # The gateway delivers in order, so once this question has arrived, all 200 messages have arrived.
        fake.says(general, ada, "!rtfm was that all?")
        fake.wait_until(lambda: fake.count("POST", "/typing") > 0, "the question was not heard", timeout_s=60)
        os.kill(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert fake.token not in said
    found = records(bot_settings, "discord-messages", 200)
    assert [record.event.content for record in found] == [f"message {number}" for number in range(200)]
