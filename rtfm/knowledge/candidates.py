"""Candidates: the passages that may be near a question, before they are scored.

Two searches find them at the same time: by meaning (in Chroma, or over every visible vector if there are few visible
passages) and by terms (in the archive's term index). Both are limited to one guild and to the visible channels.
``retrieval`` scores every candidate in the same way, whichever search found it. This module does not write.
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
"""Passages that the search by meaning returns at most; with fewer than the second number, Chroma is queried again."""

_MAX_LEXICAL, _MAX_LEXICAL_ALONE = 40, 60
_MAX_COUNTED, _MAX_COUNTED_ALONE = 80, 400
"""Passages that the search by terms contributes at most, and the passages whose terms are counted to choose them.

The second number of each pair applies when there is no search by meaning."""

_MIN_EXACT_LIMIT = 1_000
"""Visible passages that are compared one by one in about the time of Chroma's fastest query."""

_ENTRIES_PER_PASSAGE = 2.5
"""Entries near a question that belong to one passage on average: its own and those of its messages."""

_MIN_ENTRIES, _MAX_ENTRIES = 120, 12_800
"""Entries that one query asks Chroma for."""

_MAX_POSTINGS, _MAX_POSTINGS_ALONE = 1_000, 4_000
"""Passages that a question's rarest terms may match in all; the second number without a search by meaning.

Common terms are searched in pairs only."""

_MAX_PAIRED_TERMS = 6
"""Common terms that are combined into pairs."""

_MAX_THREADS = 64
"""Searches that may wait for Chroma at the same time; a thread starts when it is needed."""

_MAX_GUILDS = 1_000
"""Guilds whose channel sizes are cached, a few kilobytes each."""

_RECOUNT_GROWTH = 1.1
"""Growth of a guild after which its channels are counted again; an outdated count costs time only."""


@frozen(kw_only=True)
class SearchRequest:
    """What to search one guild for. Without ``vector``, the search is by terms alone."""

    guild: GuildSnapshot
    visible_channel_ids: Sequence[str]
    scorer: LexicalScorer
    vector: Vectors | None


@frozen(kw_only=True)
class CandidateSet:
    """The ids of the passages that the searches by meaning and by terms found, best first; some are in both.

    ``compared_count`` is the number of vectors that were compared. ``vectors_lost`` is True if Chroma has no collection
    that the question can be compared with.
    """

    nearest_ids: Sequence[str]
    lexical_ids: Sequence[str]
    compared: Compared
    compared_count: int
    vectors_lost: bool = False


class CandidateSearch:
    """Runs both searches. Thread-safe."""

    def __init__(self, vectors: ChromaVectors, exact_limit: int | None = None) -> None:
        """Compare every vector for up to ``exact_limit`` visible passages; None: as long as that is faster."""
        self._vectors = vectors
        self._exact_limit = exact_limit
        self._sizes = _ChannelSizesState()
        # Chroma is another process: it works while this thread queries the archive.
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="nearest")

    def close(self) -> None:
        """Let the threads end without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def find(self, view: View, search: SearchRequest) -> CandidateSet:
        """Return the candidates for a request. Raises Unavailable when Chroma does not answer."""
        guild = search.guild
        total = max(guild.corpus.passages, 1)
        sizes = self._sizes.read(guild.guild_id, total, view)
        visible = min(sum(sizes.get(channel_id, 0) for channel_id in search.visible_channel_ids), total)
        limit = max(_MIN_EXACT_LIMIT, math.isqrt(100 * total)) if self._exact_limit is None else self._exact_limit
        if visible <= limit:
            found = _search_exactly(view, search, 2 * limit)
            if found is not None:
                return found
            # There are more visible passages than when they were counted.
            visible = 2 * limit
        share = total / max(visible, 1)
        if search.vector is None:
            lexical_ids = _search_terms(view, search, round(_MAX_POSTINGS_ALONE * min(share, 4)), _MAX_COUNTED_ALONE)
            return CandidateSet(nearest_ids=(), lexical_ids=lexical_ids, compared="no vectors", compared_count=0)
        return self._search_chroma(view, search, search.vector, share)

    def _search_chroma(self, view: View, search: SearchRequest, vector: Vectors, share: float) -> CandidateSet:
        """``share`` is the number of the guild's passages for each visible one."""
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
        """Return the ids of the nearest entries; None if Chroma has no collection that ``vector`` compares with."""
        collection = guild.collection
        generation, model = (collection.generation, collection.model or "") if collection else (0, "")
        try:
            return self._vectors.nearest(guild.guild_id, vector, count, generation=generation, model=model)
        except WrongCollection:
            return None


def select_candidates(candidates: Sequence[Candidate], found: CandidateSet, scorer: LexicalScorer) -> list[Candidate]:
    """Select what is worth a score from ``candidates``, which are the passages of ``found``.

    These are all passages that are near by meaning, and the best others by BM25.
    """
    points = {candidate.passage_id: scorer.points(candidate.counts, candidate.length) for candidate in candidates}
    best = sorted(points.keys() & found.lexical_ids, key=lambda passage_id: (-points[passage_id], passage_id))
    kept = {*found.nearest_ids, *best[: _MAX_LEXICAL if found.nearest_ids else _MAX_LEXICAL_ALONE]}
    return [candidate for candidate in candidates if candidate.passage_id in kept]


def _search_exactly(view: View, search: SearchRequest, limit: int) -> CandidateSet | None:
    """Compare all visible passages; None if there are more than ``limit``."""
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
    """Return the rarest terms one by one, and pairs of the next ones, that match about ``max_postings`` passages.

    ``total`` is the number of the guild's passages.
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
    """The number of passages for each access channel of a guild, as last counted."""

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
