"""Finds candidates: the passages that may be near a question, before they are scored.

Two searches find candidates, one by meaning and one by terms. If few passages are visible, both compare every visible
passage. Otherwise, Chroma finds the nearest vectors while the archive's term index finds the passages with the rarest
terms. Every candidate is from the given guild and from a visible channel. ``retrieval`` scores all candidates in the
same way, whichever search found them. This module does not write.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from attrs import define, field, frozen

from rtfm.knowledge.archive.reading import View
from rtfm.knowledge.archive.search_rows import Candidate, GuildSnapshot, WordGroup
from rtfm.knowledge.float32 import Vectors, from_bytes
from rtfm.knowledge.scoring import LexicalScorer
from rtfm.knowledge.vectors import ChromaVectors, WrongCollection

Compared = Literal["every visible passage", "the nearest passages", "no vectors"]

_MAX_NEAREST = 50
_MIN_NEAREST = 25
"""The search by meaning returns at most ``_MAX_NEAREST`` passages.

If it has found fewer than ``_MIN_NEAREST`` visible passages, it asks Chroma for more entries."""

_MAX_LEXICAL, _MAX_LEXICAL_ALONE = 40, 60
_MAX_COUNTED, _MAX_COUNTED_ALONE = 80, 400
"""BM25 chooses at most ``_MAX_LEXICAL`` passages from at most ``_MAX_COUNTED`` passages that match the terms.

The constants ending in ``ALONE`` apply when there is no search by meaning."""

_MIN_EXACT_LIMIT = 1_000
"""If at most this many passages are visible, they are compared without Chroma, unless ``exact_limit`` is given.

Comparing this many passages one by one takes about as long as Chroma's fastest query."""

_ENTRIES_PER_PASSAGE = 2.5
"""If a passage is near a question, on average this many of its entries are near the question.

The entries of a passage are the entry of the passage itself and the entries of its messages."""

_MIN_ENTRIES, _MAX_ENTRIES = 120, 12_800
"""Minimum and maximum number of entries that a query asks Chroma for."""

_MAX_POSTINGS, _MAX_POSTINGS_ALONE = 1_000, 4_000
"""The rarest terms are searched singly while the sum of their matching passages is at most this number.

The next terms are searched only in pairs. The second number applies when there is no search by meaning. If only some of
the guild's passages are visible, the second number is multiplied by up to 4."""

_MAX_PAIRED_TERMS = 6
"""Maximum number of terms that are combined into pairs."""

_MAX_THREADS = 64
"""Maximum number of searches that wait for Chroma at the same time. Threads are started when they are needed."""

_MAX_GUILDS = 1_000
"""Maximum number of guilds in the cache of passage counts. The cache takes a few kilobytes for each guild."""

_RECOUNT_GROWTH = 1.1
"""The passages of a guild are counted again when their number has changed by this factor.

Outdated counts make a search slower, but its result stays correct."""


@frozen(kw_only=True)
class SearchRequest:
    """A search in one guild. If ``vector`` is None, passages are found by terms alone."""

    guild: GuildSnapshot
    visible_channel_ids: Sequence[str]
    scorer: LexicalScorer
    vector: Vectors | None


@frozen(kw_only=True)
class CandidateSet:
    """The candidates of a search: the passages that were found by meaning and by terms, best first.

    A passage may be in both lists. ``compared_count`` is the number of vectors that the search has compared itself, or
    that Chroma has returned. ``vectors_lost`` is True if Chroma has no collection with vectors of the question's model
    for this guild.
    """

    nearest_ids: Sequence[str]
    lexical_ids: Sequence[str]
    compared: Compared
    compared_count: int
    vectors_lost: bool = False


class CandidateSearch:
    """Runs the searches by meaning and by terms. Thread-safe."""

    def __init__(self, vectors: ChromaVectors, exact_limit: int | None = None) -> None:
        """Compare all visible vectors if at most ``exact_limit`` passages are visible; by default, choose by speed."""
        self._vectors = vectors
        self._exact_limit = exact_limit
        self._sizes = _ChannelSizesState()
        # A query to Chroma waits in one of these threads while the calling thread queries the archive.
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="nearest")

    def close(self) -> None:
        """Let the threads end without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def find(self, view: View, search: SearchRequest) -> CandidateSet:
        """Return the candidates for a request. Raises Unavailable when Chroma does not respond."""
        guild = search.guild
        total = max(guild.corpus.passages, 1)
        sizes = self._sizes.read(guild.guild_id, total, view)
        visible = min(sum(sizes.get(channel_id, 0) for channel_id in search.visible_channel_ids), total)
        limit = max(_MIN_EXACT_LIMIT, math.isqrt(100 * total)) if self._exact_limit is None else self._exact_limit
        if visible <= limit:
            found = _search_exactly(view, search, 2 * limit)
            if found is not None:
                return found
            # The counts are outdated: more than twice ``limit`` passages are visible.
            visible = 2 * limit
        share = total / max(visible, 1)
        if search.vector is None:
            lexical_ids = _search_terms(view, search, round(_MAX_POSTINGS_ALONE * min(share, 4)), _MAX_COUNTED_ALONE)
            return CandidateSet(nearest_ids=(), lexical_ids=lexical_ids, compared="no vectors", compared_count=0)
        return self._search_chroma(view, search, search.vector, share)

    def _search_chroma(self, view: View, search: SearchRequest, vector: Vectors, share: float) -> CandidateSet:
        """Search by meaning in Chroma and by terms. ``share`` is the ratio of all passages to the visible passages."""
        count = min(max(math.ceil(_MAX_NEAREST * _ENTRIES_PER_PASSAGE * share), _MIN_ENTRIES), _MAX_ENTRIES)
        future = self._threads.submit(self._query_chroma, search.guild, vector, count)
        lexical_ids = _search_terms(view, search, _MAX_POSTINGS, _MAX_COUNTED)
        entries = future.result()
        while True:
            nearest = _to_visible_passages(view, entries or ())
            if entries is None or len(nearest) >= _MIN_NEAREST or len(entries) < count or count >= _MAX_ENTRIES:
                return CandidateSet(
                    nearest_ids=nearest[:_MAX_NEAREST],
                    lexical_ids=lexical_ids,
                    compared="the nearest passages",
                    compared_count=len(entries or ()),
                    vectors_lost=entries is None,
                )
            count = min(2 * count, _MAX_ENTRIES)
            entries = self._query_chroma(search.guild, vector, count)

    def _query_chroma(self, guild: GuildSnapshot, vector: Vectors, count: int) -> list[str] | None:
        """Return the ids of the nearest entries; None if Chroma has no collection with vectors of the same model."""
        collection = guild.collection
        generation, model = (collection.generation, collection.model or "") if collection else (0, "")
        try:
            return self._vectors.nearest(guild.guild_id, vector, count, generation=generation, model=model)
        except WrongCollection:
            return None


def select_candidates(candidates: Sequence[Candidate], found: CandidateSet, scorer: LexicalScorer) -> list[Candidate]:
    """Select the passages to score from ``candidates``, which are the passages of ``found`` with their terms.

    All passages that were found by meaning are selected. Of the passages that were found by terms, those with the most
    BM25 points are selected.
    """
    points = {candidate.passage_id: scorer.points(candidate.counts, candidate.length) for candidate in candidates}
    best = sorted(points.keys() & found.lexical_ids, key=lambda passage_id: (-points[passage_id], passage_id))
    kept = {*found.nearest_ids, *best[: _MAX_LEXICAL if found.nearest_ids else _MAX_LEXICAL_ALONE]}
    return [candidate for candidate in candidates if candidate.passage_id in kept]


def _search_exactly(view: View, search: SearchRequest, limit: int) -> CandidateSet | None:
    """Compare all visible passages with the question. Return None if there are more than ``limit``."""
    scorer, vector = search.scorer, search.vector
    rarity = {term: scorer.rarity[term] for term in scorer.frequencies}
    visible = view.score_all(rarity, mean_length=scorer.mean_length, with_vectors=vector is not None, limit=limit)
    if visible is None:
        return None
    matching = sorted(
        (passage for passage in visible if passage.points > 0),
        key=lambda passage: (-passage.points, passage.passage_id),
    )
    vectors = {passage.passage_id: passage.vector for passage in visible if passage.vector is not None}
    cosines: dict[str, float] = {}
    if vector is not None and vectors:
        cosines = dict(zip(vectors, (from_bytes(list(vectors.values())) @ vector).tolist(), strict=True))
    counted = matching[: _MAX_COUNTED_ALONE if vector is None else _MAX_COUNTED]
    return CandidateSet(
        nearest_ids=sorted(cosines, key=lambda passage_id: (-cosines[passage_id], passage_id))[:_MAX_NEAREST],
        lexical_ids=[passage.passage_id for passage in counted],
        compared="no vectors" if vector is None else "every visible passage",
        compared_count=len(cosines),
    )


def _search_terms(view: View, search: SearchRequest, postings: int, limit: int) -> list[str]:
    groups = _group_rarest_terms(search.scorer, max(search.guild.corpus.passages, 1), postings)
    return view.find_by_words(groups, mean_length=search.scorer.mean_length, limit=limit)


def _to_visible_passages(view: View, entries: Sequence[str]) -> list[str]:
    """Return the ids of the visible passages of ``entries`` in the same order, each once."""
    passage_of = view.visible_entries(entries)
    return list(dict.fromkeys(passage_of[entry] for entry in entries if entry in passage_of))


def _group_rarest_terms(scorer: LexicalScorer, total: int, max_postings: int) -> list[WordGroup]:
    """Return the groups of terms to search for: the rarest terms singly, and pairs of the next terms.

    The single terms have at most ``max_postings`` matches in all. The pairs, by estimate, also have at most this many.
    If these limits allow no group, the rarest term is the only group. ``total`` is the number of the guild's passages.
    """
    frequencies = scorer.frequencies
    rarest = sorted(frequencies, key=lambda term: (frequencies[term], term))
    postings_so_far = list(itertools.accumulate(frequencies[term] for term in rarest))
    single = sum(postings <= max_postings for postings in postings_so_far)
    common = rarest[single : single + _MAX_PAIRED_TERMS]
    while sum(frequencies[first] * frequencies[second] for first, second in itertools.combinations(common, 2)) > (
        max_postings * total
    ):
        common.pop()
    if not single and len(common) < 2:
        single = 1
    groups = [WordGroup(words=[term], rarity=scorer.rarity[term]) for term in rarest[:single]]
    return groups + [
        WordGroup(words=pair, rarity=sum(scorer.rarity[term] for term in pair))
        for pair in itertools.combinations(common, 2)
    ]


@define
class _ChannelSizesState:
    """A cache of the number of passages in each access channel, by guild."""

    _guilds: OrderedDict[str, tuple[int, Mapping[str, int]]] = field(factory=OrderedDict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def read(self, guild_id: str, total: int, view: View) -> Mapping[str, int]:
        with self._lock:
            cached = self._guilds.get(guild_id)
            if cached is not None:
                self._guilds.move_to_end(guild_id)
        if cached is not None and cached[0] <= _RECOUNT_GROWTH * total and total <= _RECOUNT_GROWTH * cached[0]:
            return cached[1]
        sizes = view.count_by_access_channel()
        with self._lock:
            self._guilds[guild_id] = (total, sizes)
            while len(self._guilds) > _MAX_GUILDS:
                self._guilds.popitem(last=False)
        return sizes
