"""Calibration of the floors of guilds while ingest runs, on real PostgreSQL and Chroma."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import psycopg
import pytest

from rtfm.events import ChannelKind
from rtfm.knowledge import Knowledge
from rtfm.knowledge.floor import MIN_PASSAGES
from rtfm.processor.calibration import Calibration
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from tests.knowledge import GUILD, RecordOfEvent, WordEmbedding, knowledge_of, message

WAIT_S = 120.0
WORDS = [f"word{number}" for number in range(200)]


@pytest.fixture
def knowledge(bare_settings: Settings) -> Iterator[Knowledge]:
    opened = knowledge_of(bare_settings, WordEmbedding())
    yield opened
    opened.vectors.forget_guild(GUILD)
    opened.close()


def grow(knowledge: Knowledge, calibration: Calibration, first: int, count: int) -> None:
    """Add ``count`` passages, each in a public thread of its own."""
    rng = random.Random(first)
    events = [
        message(
            number,
            " ".join(rng.choices(WORDS, k=6)),
            channel_id=str(100_000 + number),
            channel_kind=ChannelKind.PUBLIC_THREAD,
        )
        for number in range(first, first + count)
    ]
    Ingest(knowledge=knowledge, on_guilds_changed=calibration.enqueue)([RecordOfEvent(event) for event in events])


def calibrated_on(settings: Settings) -> int:
    """Return how many passages the guild had at its last calibration, or 0 before the first calibration."""
    with psycopg.connect(settings.database_url) as connection:
        row = connection.execute("SELECT passages FROM floors WHERE guild_id = %s", [GUILD]).fetchone()
    return row[0] if row else 0


def wait_until(settings: Settings, passages: int) -> None:
    until = time.monotonic() + WAIT_S
    while calibrated_on(settings) != passages:
        assert time.monotonic() < until, calibrated_on(settings)
        time.sleep(0.05)


def test_a_guild_is_calibrated_when_it_is_large_enough_and_again_when_it_has_grown_by_half(
    knowledge: Knowledge, bare_settings: Settings
) -> None:
    """A guild is calibrated at ``MIN_PASSAGES`` passages and after growing by half, but not after smaller growth.

    Smaller growth hardly changes the floor, and a calibration costs sixty searches.
    """
    with Calibration(knowledge) as calibration:
        grow(knowledge, calibration, 0, MIN_PASSAGES - 1)
        grow(knowledge, calibration, MIN_PASSAGES - 1, 1)
        wait_until(bare_settings, MIN_PASSAGES)
        grow(knowledge, calibration, MIN_PASSAGES, MIN_PASSAGES // 2 - 1)
        grow(knowledge, calibration, 2 * MIN_PASSAGES, 1)
        wait_until(bare_settings, MIN_PASSAGES * 3 // 2)
    visible = [str(100_000 + number) for number in range(3 * MIN_PASSAGES)]
    found = knowledge.retriever.search("word1 word2", guild_id=GUILD, visible_channel_ids=visible, limit=5)
    assert found.explanation is not None
    assert found.explanation.calibrated


def test_only_one_processor_at_a_time_calibrates_a_guild(knowledge: Knowledge) -> None:
    """While one processor holds the lock of a guild, another processor can lock another guild, but not this guild."""
    floors = knowledge.archive.floors
    with floors.try_lock(GUILD) as is_ours:
        assert is_ours
        with floors.try_lock(GUILD) as is_ours_too, floors.try_lock("other") as is_other_ours:
            assert (is_ours_too, is_other_ours) == (False, True)
    with floors.try_lock(GUILD) as is_free:
        assert is_free
