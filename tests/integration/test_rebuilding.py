"""Rebuilds of a guild: after losses, with another embedding model, after other rules, and during ingest."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any

import attrs
import psycopg
import pytest
from attrs import evolve

from rtfm.errors import ConfigError
from rtfm.events import DiscordMessage, MessageChange, TimestampMillis
from rtfm.knowledge import Knowledge
from rtfm.knowledge.rebuilding import RebuildPlan, plan, rebuild
from rtfm.knowledge.retrieval import Retriever
from rtfm.knowledge.vectors import VectorEntry
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from tests.knowledge import GUILD, START, RecordOfEvent, WordEmbedding, deletion, dump, empty, knowledge_of, message

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

TALK = [
    message(number, f"{first} and {second} number{number}", author_id=str(number))
    for number, (first, second) in enumerate(
        [("tulips", "roses"), ("ntfs", "disks"), ("kernel", "panics"), ("sound", "cards"), ("printers", "paper")]
    )
]


@pytest.fixture
def knowledge(bare_settings: Settings) -> Iterator[Knowledge]:
    opened = knowledge_of(bare_settings, WordEmbedding())
    yield opened
    opened.vectors.forget_guild(GUILD)
    opened.close()


def ingest(knowledge: Knowledge, *events: DiscordMessage) -> None:
    Ingest(knowledge=knowledge)([RecordOfEvent(event) for event in events])


def found(knowledge: Knowledge) -> list[list[tuple[str, float]]]:
    # A limit of 0 avoids the exact comparison, so that Chroma is searched.
    retriever = Retriever(knowledge.archive, knowledge.vectors, knowledge.embedding, exact_limit=0)
    results = [
        retriever.search(question, guild_id=GUILD, visible_channel_ids=["200"], limit=5)
        for question in ("tulips roses", "kernel panics", "sound cards", "ntfs disks")
    ]
    return [[(passage.passage_id, passage.score) for passage in result.passages] for result in results]


def start_again(settings: Settings, knowledge: Knowledge) -> None:
    knowledge.vectors.forget_guild(GUILD)
    empty(settings)


def rebuild_and_stop_halfway(settings: Settings, begun: Event) -> None:
    """Begin a rebuild and sleep in the middle of it, so that the test can kill this process."""

    def stop_for_the_kill(what: str, done: int, total: int) -> None:
        begun.set()
        time.sleep(600)

    knowledge = knowledge_of(settings, WordEmbedding())
    rebuild(knowledge, plan(knowledge, GUILD, force=True), progress=stop_for_the_kill)


def retry_until_released(work: Callable[[], object]) -> None:
    """Call ``work`` until it succeeds, which is once PostgreSQL has noticed that the killed process is gone."""
    while True:
        try:
            work()
        except ConfigError:
            time.sleep(0.05)
        else:
            return


def run_rebuild(knowledge: Knowledge, **options: Any) -> RebuildPlan:
    todo = plan(knowledge, GUILD, **options)
    rebuild(knowledge, todo)
    return todo


def entries_in_use(knowledge: Knowledge) -> set[str]:
    generation = knowledge.archive.collections.find([GUILD])[GUILD].generation
    return knowledge.vectors.entry_ids(GUILD, generation=generation)


def is_complete(knowledge: Knowledge) -> bool:
    """Return whether Chroma has exactly the archive's entries, in one collection."""
    held = knowledge.archive.collections.entry_ids(GUILD)
    return entries_in_use(knowledge) == held and len(knowledge.vectors.generations(GUILD)) == 1


def test_a_lost_collection_is_made_again_without_embedding(knowledge: Knowledge) -> None:
    """If a collection is lost, a rebuild makes it again without embedding, and search finds the same as before."""
    ingest(knowledge, *TALK)
    before, entries = found(knowledge), knowledge.vectors.count(GUILD)
    knowledge.vectors.forget_guild(GUILD)
    assert isinstance(knowledge.embedding, WordEmbedding)
    knowledge.embedding.calls.clear()
    todo = plan(knowledge, GUILD)
    assert (todo.work, todo.entries, todo.missing) == ("copy", entries, entries)
    assert knowledge.vectors.generations(GUILD) == []
    rebuild(knowledge, todo)
    assert knowledge.embedding.calls == []
    assert is_complete(knowledge)
    assert found(knowledge) == before
    assert plan(knowledge, GUILD).work == "nothing"


def test_a_rebuild_removes_stale_entries(knowledge: Knowledge) -> None:
    """A rebuild removes an entry of Chroma that the archive does not have."""
    ingest(knowledge, *TALK)
    vector = WordEmbedding().embed(["stray"])[0]
    knowledge.vectors.upsert(GUILD, [VectorEntry(entry_id="m99", passage_id="99", vector=vector)])
    assert run_rebuild(knowledge).superfluous == 1
    assert is_complete(knowledge)


def test_a_model_that_is_added_later_gives_old_texts_vectors(bare_settings: Settings, knowledge: Knowledge) -> None:
    """If an embedding model is added later, search uses keywords until a rebuild has made a vector of every text.

    The result is the same as if the embedding model had been there from the start.
    """
    ingest(knowledge, *TALK)
    expected = found(knowledge)
    rows = dump(bare_settings)
    start_again(bare_settings, knowledge)
    ingest(evolve(knowledge, embedding=None), *TALK)
    assert knowledge.archive.counts()["vectors"] == 0
    ingest(knowledge, message(9, "tulips of late", author_id="9"))
    result = knowledge.retriever.search("tulips roses", guild_id=GUILD, visible_channel_ids=["200"], limit=5)
    assert (result.mode, bool(result.rebuild_due)) == ("lexical", True)
    todo = plan(knowledge, GUILD)
    assert (todo.work, todo.without_vectors) == ("embed", 6)
    ingest(knowledge, deletion(9))
    rebuild(knowledge, plan(knowledge, GUILD))
    assert is_complete(knowledge)
    assert found(knowledge) == expected
    assert [row for row in dump(bare_settings) if "1009" not in str(row)] == rows


def test_another_model_asks_for_a_rebuild_and_search_goes_by_words_meanwhile(knowledge: Knowledge) -> None:
    """If the embedding model has another name or dimension than before, search uses keywords until a rebuild.

    The search result says that a rebuild is due. Messages that are ingested meanwhile get their vectors in the rebuild.
    """
    ingest(knowledge, *TALK)
    for model in (WordEmbedding(name="other words"), WordEmbedding(name="long words", dimension=512)):
        changed = evolve(knowledge, embedding=model, retriever=Retriever(knowledge.archive, knowledge.vectors, model))
        result = changed.retriever.search("kernel panics", guild_id=GUILD, visible_channel_ids=["200"], limit=5)
        assert (result.mode, result.passages[0].passage_id) == ("lexical", "1002")
        assert "not of this embedding model" in str(result.rebuild_due)
        ingest(changed, message(20 + model.dimension, f"gardens{model.dimension} of stones", author_id="20"))
        todo = plan(changed, GUILD)
        assert todo.work == "embed"
        assert model.name in todo.why
        rebuild(changed, todo)
        assert is_complete(changed)
        assert plan(changed, GUILD).work == "nothing"
        assert found(changed)[1][0][0] == "1002"
        result = changed.retriever.search(
            f"gardens{model.dimension}", guild_id=GUILD, visible_channel_ids=["200"], limit=5
        )
        assert (result.mode, result.rebuild_due) == ("hybrid", None)
        assert str(1020 + model.dimension) in [one.message_id for one in result.passages[0].messages]


def test_other_rules_make_the_conversations_again(knowledge: Knowledge, bare_settings: Settings) -> None:
    """If an archive was made with older rules, a rebuild makes it the same as one that was made with the new rules."""
    history = [*TALK, message(6, "<@1> kernel panics after the update", author_id="2", mentioned_user_ids=["1"])]
    ingest(knowledge, *history, deletion(3))
    expected, results = dump(bare_settings), found(knowledge)
    with psycopg.connect(bare_settings.database_url) as connection:
        connection.execute("UPDATE collections SET rules = 'older'")
        connection.execute("UPDATE messages SET conversation_id = '1000', passage_id = '1000' WHERE NOT deleted")
        connection.execute("DELETE FROM passages WHERE passage_id <> '1000'")
    todo = plan(knowledge, GUILD)
    assert (todo.work, "older" in todo.why) == ("link", True)
    rebuild(knowledge, todo)
    assert is_complete(knowledge)
    assert found(knowledge) == results
    assert [row for row in dump(bare_settings) if "1003" not in str(row)] == [
        row for row in expected if "1003" not in str(row)
    ]
    assert plan(knowledge, GUILD).work == "nothing"


@pytest.mark.parametrize("work", ["copy", "link"])
def test_what_happens_during_a_rebuild_is_in_the_new_collection(knowledge: Knowledge, work: str) -> None:
    """The new collection has the messages and edits that were ingested during the rebuild, and no deleted messages.

    Searches during the rebuild find passages.
    """
    ingest(knowledge, *TALK)
    if work == "copy":
        knowledge.vectors.delete(GUILD, ["p1000"])
    todo = plan(knowledge, GUILD, force=True)
    assert todo.work == work
    happened: list[str] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if happened:
            return
        happened.append(what)
        edited_at = TimestampMillis(START + 900_000)
        ingest(
            knowledge,
            message(11, "<@4> sound cards and tulips", author_id="7", mentioned_user_ids=["3"]),
            deletion(2),
            message(4, "printers and toner", author_id="4", change=MessageChange.EDITED, edited_at=edited_at),
            message(12, "a new room for tulips", author_id="8", channel_id="300"),
        )
        assert found(knowledge)[0]

    rebuild(knowledge, todo, progress=meanwhile)
    assert happened
    assert is_complete(knowledge)
    assert not {"p1002", "m1002"} & entries_in_use(knowledge)
    stored = knowledge.archive.writing.messages(["1011", "1002", "1004", "1012"])
    assert stored["1002"].deleted
    assert not stored["1002"].content
    results = {
        question: [
            one.message_id
            for passage in knowledge.retriever.search(
                question, guild_id=GUILD, visible_channel_ids=["200", "300"], limit=5
            ).passages
            for one in passage.messages
        ]
        for question in ("tulips cards sound", "toner printers", "kernel panics", "new room tulips")
    }
    assert "1011" in results["tulips cards sound"]
    assert results["toner printers"][0] == "1004"
    assert "1002" not in results["kernel panics"]
    assert "1012" in results["new room tulips"]


@contextmanager
def in_threads(stop: threading.Event, *works: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Run each of ``works`` in a thread that must end when ``stop`` is set, and yield the list of raised errors."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:
            errors.append(exc)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_ingest_and_searches_at_full_speed_lose_nothing_to_rebuilds(knowledge: Knowledge) -> None:
    """After two rebuilds during ingest and searches, Chroma has exactly the archive's entries."""
    ingest(knowledge, *TALK)
    stop = threading.Event()
    said: list[str] = []

    def speak(channel: str) -> None:
        number = int(channel) * 1000
        while not stop.is_set():
            number += 1
            events = [message(number, f"tulip{number} and rose", author_id="5", channel_id=channel)]
            if number % 3 == 0:
                events.append(deletion(number - 1, channel_id=channel))
            ingest(knowledge, *events)
            said.append(str(1000 + number))

    def ask() -> None:
        while not stop.is_set():
            result = knowledge.retriever.search("tulips roses", guild_id=GUILD, visible_channel_ids=["200"], limit=5)
            assert (result.mode, result.passages[0].passage_id) == ("hybrid", "1000")

    with in_threads(stop, partial(speak, "300"), partial(speak, "400"), ask) as errors:
        for _ in range(2):
            run_rebuild(knowledge, force=True)
            until = len(said) + 4
            while len(said) < until and not errors:
                stop.wait(0.01)
    assert errors == []
    assert is_complete(knowledge)
    stored = knowledge.archive.writing.messages(said)
    assert all(stored[one].deleted or stored[one].passage_id for one in said)


@pytest.mark.parametrize("work", ["copy", "link"])
def test_a_rebuild_that_is_killed_leaves_the_old_collection_in_use(
    knowledge: Knowledge, bare_settings: Settings, work: str
) -> None:
    """If a rebuild is killed, the old collection stays in use, and the next rebuild removes the unfinished one."""
    ingest(knowledge, *TALK)
    if work == "copy":
        knowledge.vectors.delete(GUILD, ["m1000"])
    before, rows = found(knowledge), dump(bare_settings)
    spawn = multiprocessing.get_context("spawn")
    begun = spawn.Event()
    process = spawn.Process(target=rebuild_and_stop_halfway, args=(bare_settings, begun))
    process.start()
    assert begun.wait(120)
    with pytest.raises(ConfigError, match="being rebuilt already"):
        rebuild(knowledge, plan(knowledge, GUILD, force=True))
    assert knowledge.vectors.generations(GUILD) == [0, 1]
    process.kill()
    process.join()
    assert found(knowledge) == before
    assert dump(bare_settings) == rows
    ingest(knowledge, message(30, "late tulips", author_id="9"), deletion(4))
    retry_until_released(lambda: run_rebuild(knowledge, force=True))
    assert is_complete(knowledge)
    assert knowledge.vectors.generations(GUILD) == [1]


@pytest.mark.parametrize("work", ["copy", "link"])
def test_only_the_holder_of_the_lock_switches_collections(
    knowledge: Knowledge, bare_settings: Settings, work: str
) -> None:
    """A rebuild switches collections on a connection that holds an exclusive advisory lock."""
    ingest(knowledge, *TALK)
    if work == "copy":
        knowledge.vectors.delete(GUILD, ["p1000"])
    todo = plan(knowledge, GUILD, force=True)
    assert todo.work == work
    with psycopg.connect(bare_settings.database_url) as connection:
        connection.execute("""
            CREATE FUNCTION only_alone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'
                               AND granted AND pid = pg_backend_pid())
                THEN RAISE EXCEPTION 'not by who holds the lock'; END IF;
                RETURN NEW;
            END $$
        """)
        connection.execute(
            "CREATE TRIGGER only_alone BEFORE INSERT OR UPDATE ON collections"
            " FOR EACH ROW EXECUTE FUNCTION only_alone()"
        )
    rebuild(knowledge, todo)
    assert is_complete(knowledge)


def test_the_commands_say_what_is_due_and_do_it(knowledge: Knowledge, bare_settings: Settings, cli: Cli) -> None:
    """`status`, `doctor` and `rebuild --dry-run` name guild, cause and fix, and a second rebuild has nothing to do."""
    ingest(knowledge, *TALK)
    knowledge.vectors.forget_guild(GUILD)
    entries = len(knowledge.archive.collections.entry_ids(GUILD))
    assert (
        f"vectors lost: Chroma has 0 of {entries} (`rtfm-cli rebuild`"
        in cli(bare_settings, "status", check=False).stdout
    )
    assert f"vectors lost: Chroma misses {entries} and" in cli(bare_settings, "rebuild", "--dry-run").stdout
    assert _vectors_as_doctor_sees_them(bare_settings, cli)["fix"] == "rtfm-cli rebuild"
    done = json.loads(cli(bare_settings, "rebuild", "--json").stdout)
    assert (done["changes"], done["items"][0]["work"]) == (entries, "copy")
    assert cli(bare_settings, "rebuild").stdout.endswith("0 changes\n")
    assert _vectors_as_doctor_sees_them(bare_settings, cli)["state"] == "ok"
    assert is_complete(knowledge)


def _vectors_as_doctor_sees_them(settings: Settings, cli: Cli) -> dict[str, str]:
    findings: list[dict[str, str]] = json.loads(cli(settings, "doctor", "--json", check=False).stdout)["findings"]
    return next(finding for finding in findings if finding["check"] == "vectors")


def test_neither_order_nor_replay_undoes_newer_changes(knowledge: Knowledge) -> None:
    """If changes of twelve messages are ingested in any order and repeatedly, the newest state stays."""
    rng = random.Random(11)
    events: list[DiscordMessage] = []
    gone, text = set(), {}
    for number in range(12):
        created = message(number, f"tulip version0 of number{number}", author_id=str(number))
        text[created.message_id] = created.content
        events.append(created)
        for edit in range(rng.randrange(3)):
            content = f"tulip version{edit + 1} of number{number}"
            edited_at = TimestampMillis(START + number * 60_000 + (edit + 1) * 1000)
            events.append(attrs.evolve(created, content=content, edited_at=edited_at, change=MessageChange.EDITED))
            text[created.message_id] = content
        if rng.random() < 0.4:
            events.append(deletion(number))
            gone.add(created.message_id)
    for _ in range(3):
        shuffled = [*events, *rng.sample(events, 10)]
        rng.shuffle(shuffled)
        while shuffled:
            cut = rng.randrange(1, 8)
            ingest(knowledge, *shuffled[:cut])
            shuffled = shuffled[cut:]
        stored = knowledge.archive.writing.messages(text)
        assert {one for one, row in stored.items() if row.deleted} == gone
        assert {one: row.content for one, row in stored.items() if not row.deleted} == {
            one: content for one, content in text.items() if one not in gone
        }
        with knowledge.archive.reading.view(GUILD, ["200"]) as view:
            passages = view.messages_of([row.passage_id or "" for row in stored.values()])
        shown = {one.message_id for found in passages.values() for one in found}
        assert shown == text.keys() - gone
