"""The facts that the archive stores about channels, which decide who may read them, on PostgreSQL and Chroma.

In these tests, a channel is open if the readers of its parent may read it, and closed if they may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from rtfm.events import ChannelKind, DiscordMessage, MessageSource, TimestampMillis
from rtfm.knowledge import Knowledge, console_scope
from rtfm.knowledge.archive import Change
from rtfm.knowledge.rebuilding import plan, rebuild
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from rtfm.visibility import ChannelFacts
from tests.knowledge import GUILD, START, RecordOfEvent, WordEmbedding, deletion, dump, knowledge_of, message

OTHER_GUILD = "101"
THREAD = {"channel_id": "300", "parent_channel_id": "200"}
OPEN = {**THREAD, "channel_kind": ChannelKind.PUBLIC_THREAD}
CLOSED = {**THREAD, "channel_kind": ChannelKind.PRIVATE_THREAD}
OTHERS = [MessageSource.UNKNOWN, MessageSource.IMPORT, MessageSource.OTHER]
DISCORDS = [MessageSource.GATEWAY, MessageSource.HISTORY]


@pytest.fixture
def knowledge(bare_settings: Settings) -> Iterator[Knowledge]:
    opened = knowledge_of(bare_settings, WordEmbedding())
    yield opened
    for guild_id in (GUILD, OTHER_GUILD):
        opened.vectors.forget_guild(guild_id)
    opened.close()


def ingest(knowledge: Knowledge, *events: DiscordMessage) -> None:
    Ingest(knowledge=knowledge)([RecordOfEvent(event) for event in events])


def found(knowledge: Knowledge, question: str, *visible: str, guild_id: str = GUILD) -> list[str]:
    result = knowledge.retriever.search(question, guild_id=guild_id, visible_channel_ids=visible or ["200"], limit=10)
    return sorted(one.message_id for passage in result.passages for one in passage.messages)


def seen(at: int, source: MessageSource = MessageSource.GATEWAY) -> dict[str, Any]:
    """Return the fields of an event that ``source`` observed ``at`` minutes after the start."""
    return {"observed_at": TimestampMillis(START + at * 60_000), "source": source}


@pytest.mark.parametrize("source", OTHERS)
def test_exports_and_programs_never_open_a_channel_that_is_known(knowledge: Knowledge, source: MessageSource) -> None:
    """An event of an export or of another program does not open a known channel, at whatever time it was observed.

    The events are a known message, a new message, an edit and a deletion.
    """
    ingest(knowledge, message(1, "the incident with tulips", **CLOSED, **seen(1)))
    for number, event in enumerate(
        (
            message(1, "the incident with tulips", **OPEN, **seen(50, source)),
            message(2, "more tulips", **OPEN, **seen(51, source)),
            message(1, "tulips", **OPEN, **seen(52, source), edited_at=TimestampMillis(START + 900_000)),
            deletion(2, **OPEN, **seen(53, source)),
            message(3, "tulips", **{**OPEN, "channel_kind": ChannelKind.TEXT}, **seen(54, source)),
        )
    ):
        ingest(knowledge, event)
        assert found(knowledge, "tulips incident more") == [], number
    assert "1001" in found(knowledge, "tulips", "300")
    assert console_scope(knowledge.archive, GUILD) == (GUILD, [])


@pytest.mark.parametrize("source", OTHERS)
def test_a_thread_keeps_its_parent_whatever_an_export_says(knowledge: Knowledge, source: MessageSource) -> None:
    """If an export gives a thread of #staff another parent, the thread is not shown to the readers of that parent."""
    staff = {**OPEN, "parent_channel_id": "900"}
    ingest(knowledge, message(1, "tulips of the staff", **staff, **seen(1)))
    ingest(knowledge, message(2, "tulips", **OPEN, **seen(9, source)))
    assert found(knowledge, "tulips staff") == []
    assert found(knowledge, "tulips staff", "900") == ["1001", "1002"]


@pytest.mark.parametrize("source", DISCORDS)
def test_a_newer_report_of_discord_opens_a_channel_and_an_older_one_does_not(
    knowledge: Knowledge, source: MessageSource
) -> None:
    """If Discord reports a channel several times, the newest observation decides, in any order of arrival.

    A report with a message that is already stored does not open the channel.
    """
    ingest(knowledge, message(1, "the tulips incident", **CLOSED, **seen(5)))
    ingest(knowledge, message(2, "more tulips", **OPEN, **seen(4, source)))
    assert found(knowledge, "tulips incident") == []
    ingest(knowledge, message(1, "the tulips incident", **OPEN, **seen(9, source)))
    assert found(knowledge, "tulips incident") == []
    ingest(knowledge, message(3, "and tulips", **OPEN, **seen(9, source)))
    assert found(knowledge, "tulips incident") == ["1001", "1002", "1003"]
    ingest(knowledge, message(4, "late tulips", **CLOSED, **seen(8)))
    assert found(knowledge, "tulips incident") == ["1001", "1002", "1003", "1004"]


@pytest.mark.parametrize("source", [*OTHERS, *DISCORDS])
def test_any_source_may_close_a_channel(knowledge: Knowledge, source: MessageSource) -> None:
    """An event of any source may close a channel, which also hides the channel's earlier messages."""
    ingest(knowledge, message(1, "open tulips", **OPEN, **seen(1)))
    assert found(knowledge, "tulips") == ["1001"]
    ingest(knowledge, message(2, "closed tulips", **CLOSED, **seen(2, source)))
    assert found(knowledge, "tulips") == []
    assert found(knowledge, "tulips", "300") == ["1001", "1002"]


def test_a_report_of_discord_closes_a_channel_that_a_program_opened(knowledge: Knowledge) -> None:
    """If a program opened a channel, a report of Discord closes it, even if the program's observation is newer.

    The report also hides the message that the program sent.
    """
    ingest(knowledge, message(1, "forged tulips", **OPEN, **seen(9, MessageSource.OTHER)))
    assert found(knowledge, "tulips") == ["1001"]
    ingest(knowledge, message(1, "forged tulips", **CLOSED, **seen(3)))
    assert found(knowledge, "tulips") == []


def test_a_batch_has_the_same_effect_as_single_events(knowledge: Knowledge) -> None:
    """In one batch, neither an import nor an older report opens a channel that Discord's newest report closes."""
    ingest(
        knowledge,
        message(1, "tulips", **CLOSED, **seen(1)),
        message(2, "roses", **OPEN, **seen(2, MessageSource.IMPORT)),
        message(3, "lilies", **OPEN, **seen(0)),
    )
    assert found(knowledge, "tulips roses lilies") == []
    assert found(knowledge, "tulips roses lilies", "300") == ["1001", "1002", "1003"]


def test_two_processors_agree_on_the_newest_facts(knowledge: Knowledge) -> None:
    """If a processor writes outdated facts and a passage that was made with these facts, the newest facts apply."""
    ingest(knowledge, message(1, "tulips", **OPEN, **seen(1)))
    (channel,) = knowledge.archive.channels(GUILD)
    closed = ChannelFacts(
        kind=ChannelKind.PRIVATE_THREAD, parent_channel_id="200", observed_at=START + 300_000, from_discord=True
    )
    knowledge.archive.writing.write(Change(channels=[evolve(channel, facts=closed)], messages=[]))
    older = evolve(channel, facts=evolve(channel.facts, observed_at=START + 200_000))
    (passage,) = knowledge.archive.writing.passages_of([f"thread/{GUILD}/300"]).values()
    assert passage.acl_channel_id == "300"
    wrong = evolve(passage, acl_channel_id="200")
    knowledge.archive.writing.write(Change(channels=[older], messages=[], passages=[wrong]))
    assert found(knowledge, "tulips") == []
    assert [one.facts for one in knowledge.archive.channels(GUILD)] == [closed]


def test_a_deletion_that_knows_no_channel_leaves_its_facts_open(knowledge: Knowledge) -> None:
    """A deletion in an unknown channel leaves the facts of the channel unknown, so that a later import can set them."""
    ingest(knowledge, deletion(9, channel_id="300", **seen(1)))
    ingest(knowledge, message(1, "tulips", **OPEN, **seen(0, MessageSource.IMPORT)))
    assert found(knowledge, "tulips") == ["1001"]


def test_the_name_of_a_channel_is_the_newest(knowledge: Knowledge) -> None:
    """A channel has the newest name from any source, because a name gives nobody access."""
    ingest(knowledge, message(1, "tulips", channel_name="help", **seen(5)))
    ingest(knowledge, message(2, "roses", channel_name="old", **seen(4, MessageSource.IMPORT)))
    assert [one.name for one in knowledge.archive.channels(GUILD)] == ["help"]
    ingest(knowledge, message(3, "lilies", channel_name="new", **seen(6, MessageSource.OTHER)), message(4, "x"))
    assert [one.name for one in knowledge.archive.channels(GUILD)] == ["new"]


@pytest.mark.parametrize("kind", [ChannelKind.TEXT, ChannelKind.PUBLIC_THREAD])
def test_one_channel_id_in_two_guilds_is_two_channels(
    knowledge: Knowledge, bare_settings: Settings, kind: ChannelKind
) -> None:
    """If two guilds use one channel id, no message of one guild is found, linked or changed in the other guild.

    This also holds after a rebuild of each guild.
    """
    said = {"channel_kind": kind, "channel_id": "300", "parent_channel_id": "200"}
    talk = [
        message(1, "how do tulips grow?", **said, **seen(1)),
        message(2, "roses grow here", **said, guild_id=OTHER_GUILD, author_id="2", **seen(2)),
        message(3, "tulips grow in spring", **said, author_id="3", reply_to_message_id="1002", **seen(3)),
        message(
            4, "roses bloom", **{**said, "channel_kind": ChannelKind.PRIVATE_THREAD}, guild_id=OTHER_GUILD, **seen(4)
        ),
    ]
    ingest(knowledge, *talk[:3])
    ingest(knowledge, talk[3])
    for _ in range(2):
        assert found(knowledge, "tulips roses grow", "200", "300") == ["1001", "1003"]
        assert found(knowledge, "tulips roses grow", "200", "300", guild_id=OTHER_GUILD) == ["1002", "1004"]
        for guild_id, word in ((GUILD, "roses"), (OTHER_GUILD, "tulips")):
            texts = [row for row in dump(bare_settings) if row[0] == "passages" and f",{guild_id},300," in str(row[1])]
            assert texts
            assert word not in str(texts)
        for guild_id in (GUILD, OTHER_GUILD):
            rebuild(knowledge, plan(knowledge, guild_id, force=True))
    assert found(knowledge, "roses bloom", "200", guild_id=OTHER_GUILD) == []
    assert {one.kind for one in knowledge.archive.channels(GUILD)} == {kind}
    assert console_scope(knowledge.archive, GUILD, ["300"]) == (GUILD, ["300"])


@pytest.mark.parametrize("forged", ["t300", "thread", "1001.1", "1001-1", "p1001", "m1001"])
def test_an_id_that_looks_like_one_of_the_archive_changes_no_other_conversation(
    knowledge: Knowledge, forged: str
) -> None:
    """A message whose id looks like the id of a conversation, passage or entry changes no other conversation."""
    long = "tulips grow in spring " * 150
    private = {**CLOSED, **seen(1)}
    ingest(knowledge, message(1, long), message(2, "secret lilies", **private), message(3, "secret roses", **private))
    before = found(knowledge, "tulips spring"), found(knowledge, "secret lilies roses", "300")
    ingest(knowledge, evolve(message(9, "a remark", author_id="9"), message_id=forged))
    assert (found(knowledge, "tulips spring"), found(knowledge, "secret lilies roses", "300")) == before
    result = knowledge.retriever.search("secret lilies roses", guild_id=GUILD, visible_channel_ids=["200"], limit=9)
    assert "secret" not in "".join(passage.text for passage in result.passages)
    ingest(knowledge, evolve(deletion(9), message_id=forged))
    assert (found(knowledge, "tulips spring"), found(knowledge, "secret lilies roses", "300")) == before
