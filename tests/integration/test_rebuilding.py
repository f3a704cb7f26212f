"""Chroma made again from the archive: lost, damaged, or as it was."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator

import attrs
import pytest

from rtfm.events import DiscordMessage, MessageChange, TimestampMillis
from rtfm.knowledge import Knowledge
from rtfm.knowledge.rebuilding import rebuild
from rtfm.knowledge.retrieval import Retriever
from rtfm.knowledge.vectors import Entry
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from tests.knowledge import GUILD, START, Heard, WordEmbedding, deletion, knowledge_of, message

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
    Ingest(knowledge=knowledge)([Heard(event) for event in events])


def found(knowledge: Knowledge) -> list[list[tuple[str, float]]]:
    # Without the exact comparison, so that Chroma is asked.
    retriever = Retriever(knowledge.archive, knowledge.vectors, knowledge.embedding, exact_limit=0)
    results = [
        retriever.search(question, guild_id=GUILD, visible_channel_ids=["200"], limit=5)
        for question in ("tulips roses", "kernel panics", "sound cards", "ntfs disks")
    ]
    return [[(passage.passage_id, passage.score) for passage in result.passages] for result in results]


def test_a_lost_collection_is_made_again_without_embedding(knowledge: Knowledge) -> None:
    """The same is found afterwards as before."""
    ingest(knowledge, *TALK)
    before, entries = found(knowledge), knowledge.vectors.count(GUILD)
    knowledge.vectors.forget_guild(GUILD)
    assert isinstance(knowledge.embedding, WordEmbedding)
    knowledge.embedding.calls.clear()
    dry = rebuild(knowledge.archive, knowledge.vectors, GUILD, dry_run=True)
    assert (dry.entries, dry.missing) == (entries, entries)
    assert knowledge.vectors.count(GUILD) == 0
    assert rebuild(knowledge.archive, knowledge.vectors, GUILD) == dry
    assert knowledge.embedding.calls == []
    assert knowledge.vectors.count(GUILD) == entries
    assert found(knowledge) == before
    assert rebuild(knowledge.archive, knowledge.vectors, GUILD).missing == 0


def test_what_should_not_be_there_goes(knowledge: Knowledge) -> None:
    """A deletion that Chroma did not hear of."""
    ingest(knowledge, *TALK)
    vector = WordEmbedding().embed(["stray"])[0]
    knowledge.vectors.upsert(GUILD, [Entry(entry_id="m99", passage_id="99", vector=vector)])
    entries = knowledge.vectors.count(GUILD)
    assert rebuild(knowledge.archive, knowledge.vectors, GUILD).superfluous == 1
    assert knowledge.vectors.count(GUILD) == entries - 1


def test_the_command_says_what_it_would_do_and_does_it(
    knowledge: Knowledge, bare_settings: Settings, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A second time there is nothing to do."""
    ingest(knowledge, *TALK)
    knowledge.vectors.forget_guild(GUILD)
    assert "missing" in cli(bare_settings, "rebuild", "--dry-run").stdout
    assert json.loads(cli(bare_settings, "rebuild", "--json").stdout)["changes"] > 0
    assert cli(bare_settings, "rebuild").stdout.endswith("0 changes\n")


def test_no_order_and_no_replay_undoes_what_is_newer(knowledge: Knowledge) -> None:
    """Creations, edits and a deletion of twelve messages, shuffled and repeated: the newest state stands."""
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
            shown = {one.message_id for one in view.messages_of([row.passage_id or "" for row in stored.values()])}
        assert shown == text.keys() - gone
