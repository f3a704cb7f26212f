"""Ingest of created, edited and deleted messages up to their search, on real PostgreSQL and Chroma."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from attrs import evolve

from rtfm.clock import now_ms
from rtfm.errors import InvalidEvent, Unavailable
from rtfm.events import Attachment, ChannelKind, DiscordMessage, MessageChange, MessageSource, TimestampMillis
from rtfm.knowledge import Knowledge
from rtfm.knowledge.archive import Change, SqlArchive
from rtfm.knowledge.rebuilding import plan, rebuild
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from tests.knowledge import GUILD, START, RecordOfEvent, WordEmbedding, deletion, dump, empty, knowledge_of, message


@pytest.fixture
def embedding() -> WordEmbedding:
    return WordEmbedding()


@pytest.fixture
def knowledge(bare_settings: Settings, embedding: WordEmbedding) -> Iterator[Knowledge]:
    opened = knowledge_of(bare_settings, embedding)
    yield opened
    opened.vectors.forget_guild(GUILD)
    opened.close()


def ingest(knowledge: Knowledge, *events: DiscordMessage) -> None:
    Ingest(knowledge=knowledge)([RecordOfEvent(event) for event in events])


def found(knowledge: Knowledge, question: str, *visible: str) -> list[str]:
    result = knowledge.retriever.search(question, guild_id=GUILD, visible_channel_ids=visible or ["200"], limit=10)
    return [one.message_id for passage in result.passages for one in passage.messages]


TALK = (
    message(1, "how do I mount an ntfs disk?"),
    message(2, "use ntfs-3g to mount the disk", author_id="2", author_name="bo", mentioned_user_ids=["1"]),
    message(3, "my printer prints blank pages", author_id="3", author_name="cy"),
)


def test_a_late_creation_never_undoes_a_deletion(knowledge: Knowledge) -> None:
    """A creation that arrives after its message's deletion, as from a backfill, does not restore the message."""
    ingest(knowledge, deletion(1))
    ingest(knowledge, message(1, "the secret word is tulip"))
    assert found(knowledge, "secret word tulip") == []
    assert knowledge.archive.counts()["messages"] == 0


def test_a_late_creation_or_edit_never_undoes_a_newer_edit(knowledge: Knowledge) -> None:
    """The newest version of a message stays, in any order of arrival."""
    newest = message(1, "use exfat", change=MessageChange.EDITED, edited_at=TimestampMillis(START + 900_000))
    older = message(1, "use vfat", change=MessageChange.EDITED, edited_at=TimestampMillis(START + 800_000))
    ingest(knowledge, newest)
    ingest(knowledge, older, message(1, "use ext2"))
    assert found(knowledge, "exfat") == ["1001"]
    assert found(knowledge, "ext2 vfat") == []


def test_an_edit_within_the_millisecond_of_an_import_that_holds_it_changes_nothing(knowledge: Knowledge) -> None:
    """If an import already contains the text of an edit of the same millisecond, the edit changes nothing."""
    at = TimestampMillis(START + 900_000)
    ingest(knowledge, message(1, "use exfat", edited_at=at))
    ingest(knowledge, message(1, "use exfat", change=MessageChange.EDITED, edited_at=at), message(1, "use ext2"))
    assert found(knowledge, "exfat") == ["1001"]


def test_deleting_removes_text_and_vectors_and_leaves_a_tombstone(
    knowledge: Knowledge, bare_settings: Settings
) -> None:
    """A deletion removes the text from archive, term index and Chroma, and leaves a tombstone."""
    ingest(knowledge, *TALK)
    ingest(knowledge, deletion(1), deletion(2), deletion(3))
    assert found(knowledge, "mount ntfs disk printer") == []
    assert knowledge.vectors.count(GUILD) == 0
    rows = "".join(str(row) for row in dump(bare_settings))
    assert "ntfs" not in rows
    assert "printer" not in rows
    assert knowledge.archive.counts() | {"channels": 1} == {
        "messages": 0,
        "deleted": 3,
        "passages": 0,
        "vectors": 0,
        "channels": 1,
        "answers": 0,
    }


def test_deleting_one_message_leaves_the_rest_of_its_conversation(knowledge: Knowledge) -> None:
    """After a deletion, the passage of the conversation is built from the other messages, and keeps its id."""
    ingest(knowledge, *TALK)
    ingest(knowledge, deletion(1))
    result = knowledge.retriever.search("ntfs-3g mount", guild_id=GUILD, visible_channel_ids=["200"], limit=1)
    assert [one.message_id for one in result.passages[0].messages] == ["1002"]
    assert result.passages[0].passage_id == "1001"


def test_a_replay_leaves_everything_as_it_was(
    knowledge: Knowledge, bare_settings: Settings, embedding: WordEmbedding
) -> None:
    """Ingesting the same events again, in one batch or one by one, changes nothing and embeds nothing."""
    history = [
        *TALK,
        message(2, "use ntfs-3g", author_id="2", change=MessageChange.EDITED, edited_at=START),
        deletion(3),
    ]
    ingest(knowledge, *history)
    before, calls, entries = dump(bare_settings), len(embedding.calls), knowledge.vectors.count(GUILD)
    ingest(knowledge, *history)
    for event in history:
        ingest(knowledge, event)
    assert dump(bare_settings) == before
    assert len(embedding.calls) == calls
    assert knowledge.vectors.count(GUILD) == entries


def test_one_batch_is_one_embedding_call(knowledge: Knowledge, embedding: WordEmbedding) -> None:
    """One batch embeds its five texts (three messages and two conversations) in one call."""
    ingest(knowledge, *TALK)
    assert embedding.calls == [5]


def test_batches_of_one_give_what_one_batch_gives(bare_settings: Settings, knowledge: Knowledge) -> None:
    """Batches of one record have the same result as one batch with all these records."""
    ingest(knowledge, *TALK)
    at_once = dump(bare_settings)
    empty(bare_settings)
    for event in TALK:
        ingest(knowledge, event)
    assert dump(bare_settings) == at_once


def test_a_change_that_is_not_known_is_ignored(knowledge: Knowledge) -> None:
    """If a later version of the contract has a new kind of change, the change is ignored."""
    ingest(knowledge, message(1, "hello tulip", change=MessageChange.UNKNOWN))
    assert knowledge.archive.counts()["messages"] == 0


FAR = TimestampMillis(253_402_300_800_000)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"author_id": None}, "author_id is required"),
        ({"message_id": ""}, "message_id must match"),
        ({"guild_id": "a b"}, "guild_id must match"),
        ({"message_id": "f" * 400_000}, "message_id must match"),
        ({"channel_id": "2\x00"}, "channel_id must match"),
        ({"mentioned_user_ids": ["5", "<5>"]}, "mentioned_user_ids must match"),
        ({"author_id": "helpdesk-7", "source": MessageSource.GATEWAY}, "author_id must be a Discord id"),
        ({"parent_channel_id": str(2**64), "source": MessageSource.HISTORY}, "parent_channel_id must be a Discord id"),
        ({"created_at": FAR}, "created_at must be in the years 1 to 9999"),
        ({"edited_at": TimestampMillis(-(2**63))}, "edited_at must be in the years 1 to 9999"),
        (
            {"observed_at": TimestampMillis(now_ms() + 86_400_000)},
            "observed_at must not be more than a minute",
        ),
        ({"change": MessageChange.DELETED, "guild_id": "a b"}, "guild_id must match"),
        ({"change": MessageChange.UNKNOWN, "guild_id": "a b"}, "guild_id must match"),
    ],
    ids=range(13),
)
def test_a_message_that_breaks_a_rule_is_refused(knowledge: Knowledge, fields: dict[str, Any], said: str) -> None:
    """A message that breaks a rule is refused, and the reason names the field and the rule.

    The error is InvalidEvent, so the partition does not wait as it would if a store were down.
    """
    with pytest.raises(InvalidEvent, match=rf"^DiscordMessage\.{said}"):
        ingest(knowledge, message(1, "x", **fields))
    assert knowledge.archive.counts()["messages"] == 0


@pytest.mark.parametrize("guild_id", ["team:a@example.org", "x" * 128, "-", "direct", "9.._"])
def test_any_guild_that_keeps_the_rule_is_kept_and_found(knowledge: Knowledge, guild_id: str) -> None:
    """Messages of a guild with any valid id are found, although Chroma's names allow fewer characters than such ids."""
    try:
        ingest(knowledge, message(1, "tulips grow here", guild_id=guild_id))
        result = knowledge.retriever.search("tulips", guild_id=guild_id, visible_channel_ids=["200"], limit=1)
        assert [one.message_id for one in result.passages[0].messages] == ["1001"]
        assert knowledge.vectors.count(guild_id) == 2
        assert knowledge.vectors.generations(guild_id) == [0]
        assert knowledge.vectors.count("") == 0
    finally:
        knowledge.vectors.forget_guild(guild_id)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"channel_id": "201"}, "channel_id differs from the known"),
        ({"guild_id": "101"}, "guild_id differs from the known"),
        ({"guild_id": None}, "guild_id differs from the known"),
    ],
)
def test_a_known_message_stays_in_its_channel_and_guild(
    knowledge: Knowledge, bare_settings: Settings, fields: dict[str, Any], said: str
) -> None:
    """A newer record that moves a known message to another channel or guild is refused, and changes nothing.

    This holds for a record that is alone in its batch, and for a record after the creation of the message.
    """
    ingest(knowledge, *TALK)
    before = dump(bare_settings)
    newer = {"change": MessageChange.EDITED, "edited_at": TimestampMillis(START + 900_000), **fields}
    for number in (1, 2):
        with pytest.raises(InvalidEvent, match=rf"^DiscordMessage\.{said}"):
            ingest(knowledge, message(number, "moved tulips", author_id=str(number), **newer))
    with pytest.raises(InvalidEvent, match=said):
        ingest(knowledge, message(5, "fresh"), message(5, "moved", **newer))
    assert dump(bare_settings) == before
    ingest(knowledge, deletion(1), deletion(2), message(6, "tulips stay", author_id="6"))
    assert found(knowledge, "tulips stay") == ["1006"]
    rebuild(knowledge, plan(knowledge, GUILD, force=True))
    assert found(knowledge, "tulips stay") == ["1006"]


def test_a_deletion_elsewhere_is_refused_and_one_without_a_guild_is_not(knowledge: Knowledge) -> None:
    """A deletion with a wrong channel is refused, and a deletion without a guild is applied.

    Discord names the channel of each deletion, but a program that reports a deletion need not know the guild.
    """
    ingest(knowledge, *TALK)
    for fields in ({"channel_id": "201"}, {"guild_id": "101"}):
        with pytest.raises(InvalidEvent, match="differs from the known"):
            ingest(knowledge, deletion(1, **fields))
    ingest(knowledge, deletion(1, guild_id=None))
    assert knowledge.archive.counts()["deleted"] == 1
    ingest(knowledge, deletion(7, guild_id=None), message(7, "late"), deletion(7))
    assert knowledge.archive.counts()["deleted"] == 2


def test_two_processors_with_one_message_in_two_channels_store_it_once(knowledge: Knowledge) -> None:
    """If a second processor writes a known message in another channel, this write is refused."""
    first, second = message(1, "tulips"), message(1, "roses", channel_id="201")
    writing = knowledge.archive.writing
    ingest(knowledge, first)
    stored = writing.messages(["1001"])["1001"]
    with pytest.raises(InvalidEvent, match="must stay in the channel"):
        writing.write(Change(channels=[], messages=[evolve(stored, channel_id="201", version=stored.version + 9)]))
    with pytest.raises(InvalidEvent, match="channel_id differs from the known"):
        ingest(knowledge, second)
    assert found(knowledge, "tulips roses", "200", "201") == ["1001"]


def test_text_that_postgresql_cannot_hold_is_kept_without_the_character(knowledge: Knowledge) -> None:
    """If a message contains a NUL, which PostgreSQL cannot store, the NUL is left out and the rest is stored."""
    ingest(
        knowledge, message(1, "a\x00b tulip bulbs", attachments=[Attachment(filename="\x00", url="u", size_bytes=1)])
    )
    assert found(knowledge, "tulip bulbs") == ["1001"]


@pytest.mark.parametrize(
    "text", ["", " ", "😀", "\u202eabc", "```py\nprint(1)\n```", "word " * 10_000, "'; \\ : | & !"]
)
def test_odd_messages_are_kept(knowledge: Knowledge, text: str) -> None:
    """Messages are stored even if they are empty, emoji, right-to-left, code, very long or full of operators."""
    ingest(knowledge, message(1, text), message(2, "a tulip"))
    assert knowledge.archive.counts()["messages"] == 2
    found(knowledge, text or "tulip")


def test_secrets_and_addresses_are_taken_out_before_embedding(
    knowledge: Knowledge, embedding: WordEmbedding, bare_settings: Settings
) -> None:
    """Secrets and addresses are removed from text and files before the text and files are split and embedded.

    If a secret were split first, its halves would not be recognised.
    """
    token, where = "ghp_" + "y" * 36, "ada@mail.example.org"
    file = "tulip words " * 90 + f"{token} {where} " + "tulip words " * 90
    ingest(
        knowledge,
        message(1, f"tulips: my key {token}, write to {where}"),
        message(2, file, author_id="2"),
        message(3, "", author_id="3", attachments=[Attachment(filename="a.log", url="u", size_bytes=1, text=file)]),
    )
    assert any("tulip" in text for text in embedding.texts)
    searched = [row for row in dump(bare_settings) if row[0] in ("passages", "document_frequencies")]
    for secret in (token, where, "ghp", "example.org"):
        assert secret not in str(embedding.texts)
        assert secret not in str(searched)


def test_what_a_bot_says_is_kept_but_not_found(knowledge: Knowledge) -> None:
    """Messages of bots are stored but not found, so that the bot's own answer never becomes a source."""
    ingest(knowledge, message(1, "tulips grow in spring", author_is_bot=True))
    assert knowledge.archive.counts()["messages"] == 1
    assert found(knowledge, "tulips spring") == []


def test_an_outage_of_chroma_loses_nothing(bare_settings: Settings, knowledge: Knowledge) -> None:
    """If Chroma fails, the whole batch fails, and a repetition of the batch stores it completely."""
    unplugged = evolve(
        knowledge, vectors=knowledge_of(evolve(bare_settings, chroma_url="http://127.0.0.1:9"), None).vectors
    )
    with pytest.raises(Unavailable, match="Chroma"):
        ingest(unplugged, *TALK)
    assert knowledge.archive.counts()["messages"] == 0
    ingest(knowledge, *TALK)
    assert knowledge.vectors.count(GUILD) == 5
    assert found(knowledge, "blank pages printer")[0] == "1003"


def test_an_outage_of_postgresql_is_no_failure_of_the_event(bare_settings: Settings) -> None:
    """If PostgreSQL fails, Unavailable is raised, so that the pipeline waits without dead letters."""
    away = evolve(bare_settings, database_url="postgresql://rtfm@127.0.0.1:9/rtfm")
    knowledge = evolve(knowledge_of(bare_settings, None), archive=_archive(away))
    with pytest.raises(Unavailable, match=r"PostgreSQL at 127\.0\.0\.1:9"):
        ingest(knowledge, *TALK)


def test_erased_messages_are_not_stored_again(knowledge: Knowledge, bare_settings: Settings) -> None:
    """Records of erased messages are ignored, and later messages of the same person are stored."""
    with psycopg.connect(bare_settings.database_url) as connection:
        connection.execute(f"INSERT INTO erasures VALUES ('user', '2', {START + 150_000})")  # noqa: S608 - a number
    ingest(knowledge, *TALK, message(4, "tulips", author_id="2"))
    assert "1002" not in found(knowledge, "ntfs-3g mount")
    assert found(knowledge, "tulips")[0] == "1004"


def test_a_thread_is_read_by_the_readers_of_its_parent(knowledge: Knowledge) -> None:
    """A thread is readable by the readers of its parent, even if an earlier message reported no channel kind."""
    late: dict[str, Any] = {"channel_id": "201", "parent_channel_id": "200", "source": MessageSource.GATEWAY}
    ingest(knowledge, message(1, "tulips grow here", channel_kind=ChannelKind.UNKNOWN, **late))
    assert found(knowledge, "tulips") == []
    late |= {"channel_kind": ChannelKind.PUBLIC_THREAD, "observed_at": START}
    ingest(knowledge, message(2, "and roses grow there", **late))
    assert sorted(found(knowledge, "tulips roses grow")) == ["1001", "1002"]


def test_chroma_holds_its_collection_under_the_prefix(knowledge: Knowledge, bare_settings: Settings) -> None:
    """The names of Chroma's collections begin with the topic prefix, so that installations can share one Chroma."""
    ingest(knowledge, *TALK)
    assert knowledge.vectors.counts() == {f"{bare_settings.kafka_topic_prefix}rtfm-{GUILD}": 5}


def test_a_collection_that_another_program_removed_is_created_again(
    knowledge: Knowledge, bare_settings: Settings
) -> None:
    """If another program removed a collection, one attempt raises Unavailable, and the next creates the collection."""
    ingest(knowledge, TALK[0])
    name = f"{bare_settings.kafka_topic_prefix}rtfm-{GUILD}"
    address = f"{bare_settings.chroma_url}/api/v2/tenants/default_tenant/databases/default_database/collections/{name}"
    httpx.delete(address).raise_for_status()
    with pytest.raises(Unavailable):
        ingest(knowledge, TALK[2])
    ingest(knowledge, TALK[2])
    assert knowledge.vectors.count(GUILD) == 2


def _archive(settings: Settings) -> SqlArchive:

    return SqlArchive(settings.database_url)
