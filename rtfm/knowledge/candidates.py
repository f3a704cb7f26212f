"""Candidates: the passages that may be near a question, out of all that may be seen.

Two legs find them at the same time: by meaning (Chroma, or every visible vector where few passages may be seen) and by
words (the archive's term index). Both are limited to one guild and to the visible channels. What they find is scored
elsewhere, so that it does not matter which leg found it. Does not write.
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
from rtfm.knowledge.scoring import Lexical
from rtfm.knowledge.vectors import ChromaVectors, WrongCollection

Compared = Literal["every visible passage", "the nearest passages", "no vectors"]

_DENSE = 50
_ENOUGH = 25
"""Passages by meaning, and those without which Chroma is asked again."""

_LEXICAL, _LEXICAL_ALONE = 40, 60
_DRAFT, _DRAFT_ALONE = 80, 400
"""Passages by words, beside those by meaning and without them; and passages whose words are counted for that."""

_EXACT = 1_000
"""Visible passages that are compared one by one in about the time that Chroma takes for its least."""

_ENTRIES_PER_PASSAGE = 2.5
"""Of the entries near a question, so many are of one passage: its own and those of its messages."""

_FEWEST, _MOST = 120, 12_800
"""Entries that Chroma is asked for."""

_POSTINGS, _POSTINGS_ALONE = 1_000, 4_000
"""Passages that a question's rarest words bring up together, beside the nearest ones by meaning and without them.

Of common words, those are brought up that hold two of them."""

_PAIRED = 6

_ASKING = 64
"""Searches that may wait for Chroma at a time; threads come as they are needed."""

_GUILDS = 1_000
"""Guilds whose sizes are kept in mind, a few kilobytes each."""

_GROWTH = 1.1
"""How much a guild grows before its channels are counted again; being wrong meanwhile costs time only."""


@frozen(kw_only=True)
class Search:
    """A question as one guild is searched for it. ``vector`` None finds by words alone."""

    guild: GuildSnapshot
    visible_channel_ids: Sequence[str]
    lexical: Lexical
    vector: Vectors | None


@frozen(kw_only=True)
class Found:
    """The passages nearest by meaning, and those by words, some of them in both; best first.

    ``looked_at`` counts the vectors that were compared; ``lost`` when Chroma does not have them.
    """

    near: Sequence[str]
    by_words: Sequence[str]
    compared: Compared
    looked_at: int
    lost: bool = False


class CandidateSearch:
    """Both legs. Thread-safe."""

    def __init__(self, vectors: ChromaVectors, exact_limit: int | None = None) -> None:
        """Up to ``exact_limit`` visible passages every vector is compared; None: as many as that is quicker for."""
        self._vectors = vectors
        self._exact_limit = exact_limit
        self._sizes = _SizesState()
        # Chroma, another process, works while this one asks the archive.
        self._threads = ThreadPoolExecutor(_ASKING, thread_name_prefix="nearest")

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def find(self, view: View, search: Search) -> Found:
        """The candidates for a question. Raises Unavailable when Chroma does not answer."""
        guild = search.guild
        total = max(guild.corpus.passages, 1)
        sizes = self._sizes.of(guild.guild_id, total, view)
        visible = min(sum(sizes.get(channel_id, 0) for channel_id in search.visible_channel_ids), total)
        limit = max(_EXACT, math.isqrt(100 * total)) if self._exact_limit is None else self._exact_limit
        if visible <= limit:
            found = _exact(view, search, 2 * limit)
            if found is not None:
                return found
            # There are more than when they were counted.
            visible = 2 * limit
        share = total / max(visible, 1)
        if search.vector is None:
            by_words = _by_words(view, search, round(_POSTINGS_ALONE * min(share, 4)), _DRAFT_ALONE)
            return Found(near=(), by_words=by_words, compared="no vectors", looked_at=0)
        return self._by_chroma(view, search, search.vector, share)

    def _by_chroma(self, view: View, search: Search, vector: Vectors, share: float) -> Found:
        """``share`` is how many of the guild's passages there are for each visible one."""
        count = min(max(math.ceil(_DENSE * _ENTRIES_PER_PASSAGE * share), _FEWEST), _MOST)
        asked = self._threads.submit(self._nearest, search.guild, vector, count)
        by_words = _by_words(view, search, _POSTINGS, _DRAFT)
        entries = asked.result()
        while True:
            near = _visible(view, entries or ())
            if entries is None or len(near) >= _ENOUGH or len(entries) < count or count >= _MOST:
                return Found(
                    near=near[:_DENSE],
                    by_words=by_words,
                    compared="the nearest passages",
                    looked_at=len(entries or ()),
                    lost=entries is None,
                )
            count = min(2 * count, _MOST)
            entries = self._nearest(search.guild, vector, count)

    def _nearest(self, guild: GuildSnapshot, vector: Vectors, count: int) -> list[str] | None:
        """Chroma's entries; None where it has none that can be compared."""
        collection = guild.collection
        generation, model = (collection.generation, collection.model or "") if collection else (0, "")
        try:
            return self._vectors.nearest(guild.guild_id, vector, count, generation=generation, model=model)
        except WrongCollection:
            return None


def best_of(candidates: Sequence[Candidate], found: Found, lexical: Lexical) -> list[Candidate]:
    """Those of ``candidates``, which are the passages in ``found``, that are worth a score.

    All that are near by meaning, and the best of the others by BM25.
    """
    points = {one.passage_id: lexical.points(one.counts, one.length) for one in candidates}
    best = sorted(points.keys() & found.by_words, key=lambda passage_id: (-points[passage_id], passage_id))
    kept = {*found.near, *best[: _LEXICAL if found.near else _LEXICAL_ALONE]}
    return [one for one in candidates if one.passage_id in kept]


def _exact(view: View, search: Search, limit: int) -> Found | None:
    """Compare all visible passages; None when there are more than ``limit``."""
    lexical, vector = search.lexical, search.vector
    rarity = {word: lexical.rarity[word] for word in lexical.frequencies}
    every = view.score_all(rarity, mean_length=lexical.mean_length, with_vectors=vector is not None, limit=limit)
    if every is None:
        return None
    holding = sorted((one for one in every if one.points > 0), key=lambda one: (-one.points, one.passage_id))
    whole = {one.passage_id: one.vector for one in every if one.vector is not None}
    cosines: dict[str, float] = {}
    if vector is not None and whole:
        cosines = dict(zip(whole, (from_bytes(list(whole.values())) @ vector).tolist(), strict=True))
    return Found(
        near=sorted(cosines, key=lambda passage_id: (-cosines[passage_id], passage_id))[:_DENSE],
        by_words=[one.passage_id for one in holding[: _DRAFT_ALONE if vector is None else _DRAFT]],
        compared="no vectors" if vector is None else "every visible passage",
        looked_at=len(cosines),
    )


def _by_words(view: View, search: Search, postings: int, limit: int) -> list[str]:
    groups = _rarest_words(search.lexical, max(search.guild.corpus.passages, 1), postings)
    return view.find_by_words(groups, mean_length=search.lexical.mean_length, limit=limit)


def _visible(view: View, entries: Sequence[str]) -> list[str]:
    """The passages of ``entries`` that may be seen, in the same order, each once."""
    passage_of = view.visible_entries(entries)
    return list(dict.fromkeys(passage_of[entry] for entry in entries if entry in passage_of))


def _rarest_words(lexical: Lexical, total: int, most: int) -> list[WordGroup]:
    """The rarest words, each alone, and pairs of the next ones, so that about ``most`` passages hold one."""
    frequencies = lexical.frequencies
    rarest = sorted(frequencies, key=lambda word: (frequencies[word], word))
    brought_up = list(itertools.accumulate(frequencies[word] for word in rarest))
    alone = sum(postings <= most for postings in brought_up)
    common = rarest[alone : alone + _PAIRED]
    while sum(frequencies[one] * frequencies[other] for one, other in itertools.combinations(common, 2)) > (
        most * total
    ):
        common.pop()
    if not alone and len(common) < 2:
        alone = 1
    groups = [WordGroup(words=[word], rarity=lexical.rarity[word]) for word in rarest[:alone]]
    return groups + [
        WordGroup(words=pair, rarity=sum(lexical.rarity[word] for word in pair))
        for pair in itertools.combinations(common, 2)
    ]


@define
class _SizesState:
    """How many passages each channel of a guild decides on, as of the last time that they were counted."""

    _guilds: OrderedDict[str, tuple[int, Mapping[str, int]]] = field(factory=OrderedDict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def of(self, guild_id: str, total: int, view: View) -> Mapping[str, int]:
        with self._lock:
            known = self._guilds.get(guild_id)
            if known is not None:
                self._guilds.move_to_end(guild_id)
        if known is not None and known[0] <= _GROWTH * total and total <= _GROWTH * known[0]:
            return known[1]
        sizes = view.count_by_access_channel()
        with self._lock:
            self._guilds[guild_id] = (total, sizes)
            while len(self._guilds) > _GUILDS:
                self._guilds.popitem(last=False)
        return sizes
