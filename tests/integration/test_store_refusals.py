"""Errors of real PostgreSQL and Chroma: content that a store refuses, an outage, and a wrong statement."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from sqlalchemy import text

from rtfm.errors import ConfigError, InvalidEvent, RtfmError, Unavailable
from rtfm.events import TimestampMillis
from rtfm.knowledge.archive import Change, SqlArchive, StoredMessage
from rtfm.knowledge.vectors import ChromaVectors, VectorEntry
from rtfm.settings import Settings

STORED = StoredMessage(
    message_id="1",
    guild_id="100",
    channel_id="200",
    author_id="1",
    author_name="ada",
    author_is_bot=False,
    content="x",
    created_at=TimestampMillis(0),
    edited_at=None,
    version=0,
    deleted=False,
    reply_to_message_id=None,
    mentioned_user_ids=[],
    attachments=[],
)


@pytest.mark.parametrize(
    "fields",
    [
        {"message_id": secrets.token_hex(200_000)},
        {"content": "a\x00b"},
        {"content": "half of a pair \ud800"},
        {"attachments": [{"filename": "a\x00"}]},
        {"attachments": [{"filename": "\ud800"}]},
        {"created_at": 2**63},
        {"mentioned_user_ids": ["\x00"]},
        {"author_is_bot": None},
    ],
    ids=["long key", "nul", "surrogate", "nul in JSON", "surrogate in JSON", "number", "nul in a list", "missing"],
)
def test_what_postgresql_refuses_for_its_content_is_invalid(bare_settings: Settings, fields: dict[str, Any]) -> None:
    """If PostgreSQL or its driver refuses content, InvalidEvent is raised, and the next write works."""
    archive = SqlArchive(bare_settings.database_url)
    archive.migrate()
    with pytest.raises(InvalidEvent, match="the archive cannot store a value") as caught:
        archive.writing.write(Change(channels=[], messages=[evolve(STORED, **fields)]))
    assert len(str(caught.value)) < 300
    archive.writing.write(Change(channels=[], messages=[STORED]))
    archive.close()


def test_a_lexeme_and_a_tsvector_that_are_too_long_are_invalid(bare_settings: Settings) -> None:
    """If a word of a search contains a NUL or is longer than PostgreSQL allows, InvalidEvent is raised."""
    archive = SqlArchive(bare_settings.database_url)
    archive.migrate()
    with pytest.raises(InvalidEvent, match="too long"), archive.reading.view("100", ["200"]) as view:
        view._select("SELECT %(words)s::tsvector", words="x" * 3_000)
    with pytest.raises(InvalidEvent), archive.reading.view("100", ["200"]) as view:
        view._select("SELECT %(words)s", words="\x00")
    archive.close()


def test_an_outage_and_a_defect_are_not_taken_for_content(bare_settings: Settings) -> None:
    """A deadlock raises Unavailable, and a wrong statement raises a plain RtfmError; neither raises InvalidEvent."""
    archive = SqlArchive(bare_settings.database_url)
    archive.migrate()
    with pytest.raises(Unavailable, match="deadlock"), archive.database.begin() as connection:
        connection.execute(text("DO $$ BEGIN RAISE deadlock_detected USING MESSAGE = 'deadlock'; END $$"))
    with pytest.raises(RtfmError, match="PostgreSQL refused a statement") as caught:
        with archive.database.begin() as connection:
            connection.execute(text("SELEC 1"))
    assert type(caught.value) is RtfmError
    archive.close()


def test_what_chroma_refuses_for_its_content_is_invalid(bare_settings: Settings) -> None:
    """If Chroma refuses a collection name or a vector, InvalidEvent is raised, and the next request works."""
    vectors = ChromaVectors(bare_settings.chroma_url, f"{bare_settings.kafka_topic_prefix} a b/")
    vector = np.full(4, 0.5, dtype=np.float32)
    with pytest.raises(InvalidEvent, match="Chroma cannot store a value"):
        vectors.upsert("100", [VectorEntry(entry_id="m1", passage_id="1", vector=vector)])
    vectors = ChromaVectors(bare_settings.chroma_url, bare_settings.kafka_topic_prefix)
    with pytest.raises(InvalidEvent):
        vectors.upsert("100", [VectorEntry(entry_id="m1", passage_id="1", vector=np.full(4, np.nan, dtype=np.float32))])
    with pytest.raises(InvalidEvent):
        vectors.upsert("100", [VectorEntry(entry_id="m1", passage_id="1", vector=vector)] * 2)
    vectors.upsert("100", [VectorEntry(entry_id="m1", passage_id="1", vector=vector)])
    with pytest.raises(ConfigError, match="dimension"):
        vectors.upsert("100", [VectorEntry(entry_id="m1", passage_id="1", vector=vector[:3])])
    assert vectors.count("100") == 1
    vectors.forget_guild("100")
