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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

from attrs import define, field, frozen

from rtfm.knowledge.archive import GuildCollection, SqlArchive
from rtfm.knowledge.archive.reading import Candidate, Standing, View, WordGroup
from rtfm.knowledge.embedding import Vectors, from_bytes
from rtfm.knowledge.scoring import Lexical, Mode
from rtfm.knowledge.vectors import ChromaVectors, WrongCollection, message_entry, passage_entry
from rtfm.knowledge.words import terms

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


@frozen
class Found:
    """What was found, how, and among how many vectors; ``lost`` when Chroma does not have them."""

    standing: Standing
    mode: Mode
    lexical: Lexical
    candidates: Sequence[Candidate]
    compared: Compared
    looked_at: int
    lost: bool = False


class CandidateSearch:
    """Both legs. Thread-safe."""

    def __init__(self, archive: SqlArchive, vectors: ChromaVectors, exact_limit: int | None = None) -> None:
        """Up to ``exact_limit`` visible passages every vector is compared; None: as many as that is quicker for."""
        self._archive = archive
        self._vectors = vectors
        self._exact_limit = exact_limit
        self._sizes = _SizesState()
        # Chroma, another process, works while this one asks the archive.
        self._threads = ThreadPoolExecutor(_ASKING, thread_name_prefix="nearest")

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def found(
        self,
        question: str,
        vector: Vectors | None,
        *,
        mode_of: Callable[[GuildCollection | None], Mode],
        guild: str,
        visible: Sequence[str],
    ) -> Iterator[tuple[Found, View]]:
        """The candidates for a question whose vector is ``vector``, or None; and the view that they were read in.

        ``mode_of`` says whether vectors of the guild's collection can be compared with it.
        """
        words = list(dict.fromkeys(terms(question)))
        with self._archive.reading.view(guild, visible) as view:
            standing = view.standing(words)
            mode = mode_of(standing.collection)
            vector = None if mode == "lexical" else vector
            lexical = Lexical.of(words, standing.frequencies, standing.corpus)
            total = max(standing.corpus.passages, 1)
            sizes = self._sizes.of(guild, total, view)
            seen = min(sum(sizes.get(channel_id, 0) for channel_id in visible), total)
            limit = max(_EXACT, math.isqrt(100 * total)) if self._exact_limit is None else self._exact_limit
            few = seen <= limit
            count = _clamped(_DENSE * _ENTRIES_PER_PASSAGE * total / max(seen, 1))
            postings = _POSTINGS if vector is not None else round(_POSTINGS_ALONE * min(total / max(seen, 1), 4))
            asked = None
            if vector is not None and not few:
                asked = self._threads.submit(self._nearest, guild, vector, count, standing.collection)
            draft = _DRAFT_ALONE if vector is None else _DRAFT
            every = _every(view, lexical, vector, 2 * limit) if few else None
            if every is not None:
                by_words = every.with_most_points(draft)
            else:
                groups = _rarest_words(lexical, total, postings)
                by_words = view.holding(groups, mean_length=lexical.mean_length, limit=draft)
            if vector is None or every is not None:
                compared: Compared = "no vectors" if vector is None else "every visible passage"
                near = [] if every is None else every.nearest(_DENSE)
                looked_at = 0 if every is None else len(every.cosines)
                candidates = _candidates(view, near, by_words, words, lexical)
                yield Found(standing, mode, lexical, candidates, compared, looked_at), view
                return
        if asked is None:
            # More than was counted lately.
            count = _clamped(_DENSE * _ENTRIES_PER_PASSAGE * total / max(2 * limit, 1))
        entries = asked.result() if asked else self._nearest(guild, vector, count, standing.collection)
        while True:
            with self._archive.reading.view(guild, visible) as view:
                near = _seen(view, entries or ())
                if entries is None or len(near) >= _ENOUGH or len(entries) < count or count >= _MOST:
                    candidates = _candidates(view, near[:_DENSE], by_words, words, lexical)
                    compared, looked_at, lost = "the nearest passages", len(entries or ()), entries is None
                    yield Found(standing, mode, lexical, candidates, compared, looked_at, lost), view
                    return
            count = min(2 * count, _MOST)
            entries = self._nearest(guild, vector, count, standing.collection)

    def _nearest(self, guild: str, vector: Vectors, count: int, collection: GuildCollection | None) -> list[str] | None:
        """Chroma's entries; None where it has none that can be compared."""
        generation, model = (collection.generation, collection.model or "") if collection else (0, "")
        try:
            return self._vectors.nearest(guild, vector, count, generation=generation, model=model)
        except WrongCollection:
            return None


def _candidates(
    view: View, near: Sequence[str], by_words: Sequence[str], words: Sequence[str], lexical: Lexical
) -> list[Candidate]:
    """All of ``near``, and the best by BM25 of ``by_words``."""
    candidates = view.candidates({*near, *by_words}, words)
    points = {one.passage_id: lexical.points(one.counts, one.length) for one in candidates}
    best = sorted(points.keys() & by_words, key=lambda found: (-points[found], found))
    best = best[: _LEXICAL if near else _LEXICAL_ALONE]
    kept = {*near, *best}
    return [one for one in candidates if one.passage_id in kept]


def _seen(view: View, entries: Sequence[str]) -> list[str]:
    """The passages of ``entries`` that may be seen, in the same order, each once."""
    passages, messages = (
        [entry[1:] for entry in entries if entry == named(entry[1:])] for named in (passage_entry, message_entry)
    )
    seen = view.seen_of(passages, messages)
    passage_of = {passage_entry(found): found for found in seen.passages}
    passage_of |= {message_entry(message): found for message, found in seen.messages.items()}
    return list(dict.fromkeys(passage_of[entry] for entry in entries if entry in passage_of))


def _clamped(count: float) -> int:
    return min(max(math.ceil(count), _FEWEST), _MOST)


@frozen
class _Every:
    """All visible passages, where they are few: how near those with a vector are, and how many points those with words.

    Good enough to choose by, not to score.
    """

    cosines: Mapping[str, float]
    points: Mapping[str, float]

    def nearest(self, limit: int) -> list[str]:
        return sorted(self.cosines, key=lambda found: (-self.cosines[found], found))[:limit]

    def with_most_points(self, limit: int) -> list[str]:
        holding = [found for found, points in self.points.items() if points > 0]
        return sorted(holding, key=lambda found: (-self.points[found], found))[:limit]


def _every(view: View, lexical: Lexical, vector: Vectors | None, limit: int) -> _Every | None:
    """None when there are more than ``limit``."""
    rarity = {word: lexical.rarity[word] for word in lexical.frequencies}
    found = view.every(rarity, mean_length=lexical.mean_length, with_vectors=vector is not None, limit=limit)
    if found is None:
        return None
    whole = {one.passage_id: one.vector for one in found if one.vector is not None}
    cosines: dict[str, float] = {}
    if vector is not None and whole:
        cosines = dict(zip(whole, (from_bytes(list(whole.values())) @ vector).tolist(), strict=True))
    return _Every(cosines, {one.passage_id: one.points for one in found})


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

    def of(self, guild: str, total: int, view: View) -> Mapping[str, int]:
        with self._lock:
            known = self._guilds.get(guild)
            if known is not None:
                self._guilds.move_to_end(guild)
        if known is not None and known[0] <= _GROWTH * total and total <= _GROWTH * known[0]:
            return known[1]
        sizes = view.sizes()
        with self._lock:
            self._guilds[guild] = (total, sizes)
            while len(self._guilds) > _GUILDS:
                self._guilds.popitem(last=False)
        return sizes
