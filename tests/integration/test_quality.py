"""`make eval`: the current ranker reaches the committed baseline, and a worse ranker does not."""

from __future__ import annotations

import json
from collections.abc import Collection

import attrs
import pytest

from benchmarks.quality import BASELINE, SAMPLE, find_drops, measure_corpus
from rtfm.knowledge import Retriever, SearchResult
from rtfm.settings import Settings


class Worse(Retriever):
    """A retriever that returns the found passages in reverse order."""

    def search(
        self, question: str, *, guild_id: str | None, visible_channel_ids: Collection[str], limit: int
    ) -> SearchResult:
        found = super().search(question, guild_id=guild_id, visible_channel_ids=visible_channel_ids, limit=limit)
        return attrs.evolve(
            found,
            passages=[attrs.evolve(one, boosted_score=-one.boosted_score) for one in reversed(found.passages)],
            nearby=[],
        )


@pytest.mark.parametrize("ranker", [Retriever, Worse])
def test_a_worse_ranker_falls_below_the_baseline(bare_settings: Settings, ranker: type[Retriever]) -> None:
    """A worse ranker falls below the baseline, and the current one does not."""
    measured = measure_corpus(
        "sample",
        sorted(SAMPLE.glob("*.json")),
        SAMPLE / "questions.jsonl",
        database_url=bare_settings.database_url,
        chroma_url=bare_settings.chroma_url,
        model=None,
        retriever_of=ranker,
    )
    fallen = find_drops(json.loads(BASELINE.read_text(encoding="utf-8")), measured)
    assert bool(fallen) == (ranker is Worse), fallen


def test_a_drop_of_a_hundredth_is_tolerated_and_more_is_not() -> None:
    """A figure may be 0.01 below its baseline, but not more.

    A corpus or a figure that has no baseline is not compared.
    """
    baseline = {"sample hybrid": {"MRR@10": 0.75, "cover@300w": 0.68}}
    assert find_drops(baseline, {"sample hybrid": {"MRR@10": 0.741, "hit@5": 0.1}, "another": {"MRR@10": 0.1}}) == []
    assert find_drops(baseline, {"sample hybrid": {"MRR@10": 0.739, "cover@300w": 0.68}}) == [
        "sample hybrid MRR@10 0.750 → 0.739"
    ]
