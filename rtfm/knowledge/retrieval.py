"""Retrieval: from a question to the passages that may be seen and are near it.

Every candidate is scored exactly, from the archive's vectors and term counts, so that it does not matter how it was
found. Everything is limited to one guild and to the visible channels. Does not write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs
from attrs import field, frozen

from rtfm.errors import InvalidEvent, Unavailable
from rtfm.knowledge.archive import GuildCollection, SqlArchive, guild_key
from rtfm.knowledge.archive.reading import View
from rtfm.knowledge.archive.search_rows import Candidate, PassageVectors
from rtfm.knowledge.candidates import CandidateSearch, Compared, Search, best_of
from rtfm.knowledge.embedding import Embedding, serves
from rtfm.knowledge.float32 import Vectors, from_bytes
from rtfm.knowledge.linking import in_one_conversation
from rtfm.knowledge.packing import AROUND, COMPANY_WEIGHT, company, pack
from rtfm.knowledge.passages import Passage, PassageMessage
from rtfm.knowledge.scoring import Lexical, Mode, Nearness, evidence, nearness, usual_floor
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.knowledge.words import terms
from rtfm.markup import to_plain_name
from rtfm.visibility import MAX_VISIBLE_CHANNELS

MAX_QUESTION_CHARACTERS = 4_000
"""What Discord lets a member with Nitro write; the rest of a longer question is not read."""

TAIL = 0.35
"""Share of the best passage's score below which a passage only fills the list. At a half, coverage falls by a point."""

SAME = 0.98
"""Cosine from which two passages say the same; only the better one is shown."""

FRESH_WEIGHT = 0.002
FRESH_HALF_LIFE_MS = 365 * 24 * 3600 * 1000
"""What the newest candidate gains over an old one, and how fast that fades: it decides between equals only."""

_BESIDE = 20
"""Passages around the best one that are added at most."""

_OTHER_MODEL = "the vectors are not of this embedding model, or there are none"
_LOST = "Chroma does not have this guild's vectors"

_USER = re.compile(r"<@!?(\d+)>")


@frozen(kw_only=True)
class Ranks:
    """Why a passage stands where it does: its rank by each leg, from 1, and what the legs say (0..1)."""

    meaning_rank: int | None
    words_rank: int | None
    meaning: float | None
    words: float


@frozen(kw_only=True)
class Explanation:
    """How a search went. Holds nothing of what may not be seen."""

    guild_id: str
    visible_channels: int
    compared: Compared
    looked_at: int
    candidates: int
    evidence: float
    floor: float
    calibrated: bool
    ranks: Mapping[str, Ranks]


@frozen(kw_only=True)
class SearchResult:
    """Passages, best first. Empty when nothing is near enough.

    ``beside`` are more passages from around the best one. ``rebuild_due`` says why vectors were not used that should be
    there.
    """

    mode: Mode
    passages: list[Passage]
    beside: list[Passage] = field(factory=list)
    explanation: Explanation | None = None
    rebuild_due: str | None = None

    @property
    def found(self) -> bool:
        """Whether anything is near enough to the question."""
        return bool(self.passages)

    def packed(self, max_words: int) -> list[Passage]:
        """What is shown of them: ``max_words`` words at most, what is beside the best passage early."""
        return pack([*self.passages, *self.beside], max_words)


@frozen(kw_only=True)
class _Scored:
    near: Nearness
    candidate: Candidate
    vector: bytes | None
    score: float


class Retriever:
    """Searches one guild within visible channels. Thread-safe."""

    def __init__(
        self,
        archive: SqlArchive,
        vectors: ChromaVectors,
        embedding: Embedding | None,
        *,
        exact_limit: int | None = None,
    ) -> None:
        """``embedding`` None makes search lexical.

        Up to ``exact_limit`` visible passages every vector is compared, by default as many as that is quicker for;
        above, Chroma finds the nearest.
        """
        self._archive = archive
        self._embedding = embedding
        self._candidates = CandidateSearch(vectors, exact_limit)

    def search(
        self, question: str, *, guild_id: str | None, visible_channel_ids: Collection[str], limit: int
    ) -> SearchResult:
        """At most ``limit`` passages of the guild (of direct messages for None), best first.

        A passage may be seen if its channel is listed, or if it is of a public thread or forum post whose parent is.
        Raises InvalidEvent for more than 20,000 channel ids, Unavailable when a store does not answer.
        """
        if len(visible_channel_ids) > MAX_VISIBLE_CHANNELS:
            raise InvalidEvent(f"{len(visible_channel_ids)} visible channels are more than {MAX_VISIBLE_CHANNELS}")
        asked = question[:MAX_QUESTION_CHARACTERS].encode(errors="replace").decode().replace("\x00", " ").strip()
        visible = sorted(set(visible_channel_ids))
        if not visible or not asked or limit < 1:
            return SearchResult(mode=self.mode, passages=[])
        vector = None if self._embedding is None else self._embedding.embed([asked])[0]
        return self._search(_words(asked), vector, guild_key(guild_id), visible, limit)

    def close(self) -> None:
        """Let the threads end. The stores are others' to close."""
        self._candidates.close()

    @property
    def mode(self) -> Mode:
        """With the embedding model, or without."""
        return "lexical" if self._embedding is None else "hybrid"

    def mode_in(self, guild_id: str) -> Mode:
        """How a guild is searched: lexically, too, while its vectors are of another model."""
        return self._mode(self._archive.collections.find([guild_id]).get(guild_id) if self._embedding else None)

    def evidence(self, questions: Sequence[str], *, guild_id: str) -> Iterator[float]:
        """What in all of a guild speaks for an answer to each of ``questions`` in turn, as the floor measures it.

        ``guild_id`` is '' for direct messages.
        """
        vectors: Sequence[Vectors | None] = [None] * len(questions)
        if self._embedding is not None:
            vectors = list(self._embedding.embed(questions))
        visible = sorted({channel.acl_channel_id for channel in self._archive.channels(guild_id)})
        for question, vector in zip(questions, vectors, strict=True):
            explanation = self._search(_words(question), vector, guild_id, visible, 1).explanation
            yield explanation.evidence if explanation else 0.0

    def _search(
        self,
        words: Sequence[str],
        vector: Vectors | None,
        guild_id: str,
        visible_channel_ids: Sequence[str],
        limit: int,
    ) -> SearchResult:
        with self._archive.reading.view(guild_id, visible_channel_ids) as view:
            guild = view.snapshot(words)
            mode = self._mode(guild.collection)
            search = Search(
                guild=guild,
                visible_channel_ids=visible_channel_ids,
                lexical=Lexical.of(words, guild.frequencies, guild.corpus),
                vector=None if mode == "lexical" else vector,
            )
            try:
                result = self._ranked(view, search, mode, limit)
            except Unavailable:
                # Chroma's collection may be gone because it was replaced.
                if view.collection() == guild.collection:
                    raise
            else:
                if view.collection() == guild.collection:
                    return result
        # A rebuild has put other passages and vectors in place meanwhile.
        return self._search(words, vector, guild_id, visible_channel_ids, limit)

    def _ranked(self, view: View, search: Search, mode: Mode, limit: int) -> SearchResult:
        guild, lexical, vector = search.guild, search.lexical, search.vector
        words = list(lexical.rarity)
        found = self._candidates.find(view, search)
        due = _LOST if found.lost else None if mode == self.mode else _OTHER_MODEL
        candidates = best_of(view.candidates({*found.near, *found.by_words}, words), found, lexical)
        scored = _scored(view, candidates, vector, lexical)
        level = evidence([one.near for one in scored], lexical)
        floor = guild.floors.get(mode, usual_floor(mode, guild.corpus))
        explanation = Explanation(
            guild_id=guild.guild_id,
            visible_channels=len(search.visible_channel_ids),
            compared=found.compared,
            looked_at=found.looked_at,
            candidates=len(scored),
            evidence=round(level, 4),
            floor=round(floor, 4),
            calibrated=mode in guild.floors,
            ranks=_ranks(scored, lexical),
        )
        if not scored or level < floor:
            return SearchResult(mode=mode, passages=[], explanation=explanation, rebuild_due=due)
        best = scored[0]
        chosen = _without_copies([best, *(one for one in scored[1:] if one.score >= best.score * TAIL)], limit)
        people = view.around(best.candidate.passage_id, messages=AROUND)
        beside = company(people.pop(best.candidate.passage_id, frozenset()), people)
        listed = {one.candidate.passage_id for one in chosen}
        nearest = sorted(beside.keys() - listed, key=lambda found: (-beside[found], found))[: 2 * _BESIDE]
        added = _scored(view, view.candidates(nearest, words), vector, lexical)[:_BESIDE]
        shown = _with_messages(view, [*chosen, *added], beside, best.score)
        return SearchResult(
            mode=mode,
            passages=[passage for passage in shown if passage.passage_id in listed],
            beside=[passage for passage in shown if passage.passage_id not in listed],
            explanation=explanation,
            rebuild_due=due,
        )

    def _mode(self, collection: GuildCollection | None) -> Mode:
        return "hybrid" if serves(collection, self._embedding) else "lexical"


def _words(question: str) -> list[str]:
    """The terms of a question, each once."""
    return list(dict.fromkeys(terms(question)))


def _scored(view: View, candidates: Sequence[Candidate], vector: Vectors | None, lexical: Lexical) -> list[_Scored]:
    ids = [candidate.passage_id for candidate in candidates]
    vectors = view.vectors_of(ids, only_speakers=vector is None)
    newest = max((candidate.last_at for candidate in candidates), default=0)
    scored = []
    for candidate in candidates:
        own = vectors.get(candidate.passage_id, PassageVectors())
        near = nearness(candidate, own, vector, lexical)
        fresh = FRESH_WEIGHT * 0.5 ** ((newest - candidate.last_at) / FRESH_HALF_LIFE_MS)
        scored.append(_Scored(near=near, candidate=candidate, vector=own.own, score=near.score + fresh))
    return sorted(scored, key=lambda one: (-one.score, one.candidate.passage_id))


def _without_copies(scored: Sequence[_Scored], limit: int) -> list[_Scored]:
    """The first ``limit`` that say something else than those before them."""
    kept: list[_Scored] = []
    texts: set[str] = set()
    vectors: list[Vectors] = []
    for one in scored:
        text = " ".join(one.candidate.text.casefold().split())
        vector = None if one.vector is None else from_bytes([one.vector])[0]
        if text in texts or (vector is not None and any(float(vector @ other) >= SAME for other in vectors)):
            continue
        kept.append(one)
        texts.add(text)
        if vector is not None:
            vectors.append(vector)
        if len(kept) == limit:
            break
    return kept


def _ranks(scored: Sequence[_Scored], lexical: Lexical) -> dict[str, Ranks]:
    meaning = _places({one.candidate.passage_id: one.near.meaning for one in scored if one.near.meaning is not None})
    words = _places({one.candidate.passage_id: one.near.points for one in scored if one.near.points > 0})
    return {
        one.candidate.passage_id: Ranks(
            meaning_rank=meaning.get(one.candidate.passage_id),
            words_rank=words.get(one.candidate.passage_id),
            meaning=None if one.near.meaning is None else round(one.near.meaning, 4),
            words=round(lexical.share(one.near.points), 4),
        )
        for one in scored
    }


def _places(values: Mapping[str, float]) -> dict[str, int]:
    """The rank of each key by its value, from 1 for the highest."""
    return {key: rank for rank, key in enumerate(sorted(values, key=lambda key: -values[key]), start=1)}


def _with_messages(
    view: View, scored: Sequence[_Scored], beside: Mapping[str, float], best_score: float
) -> list[Passage]:
    by_passage = view.messages_of([one.candidate.passage_id for one in scored])
    mentioned = {
        user for messages in by_passage.values() for message in messages for user in _USER.findall(message.content)
    }
    names = view.author_names(mentioned)
    pulls = [one.score + COMPANY_WEIGHT * best_score * beside.get(one.candidate.passage_id, 0.0) for one in scored]
    # The best one stays before what is beside it.
    pulls[0] = max(pulls)
    return [
        Passage(
            passage_id=one.candidate.passage_id,
            score=round(one.score, 4),
            pull=round(pull, 4),
            text=one.candidate.text,
            messages=[_shown(message, names) for message in by_passage[one.candidate.passage_id]],
        )
        for one, pull in zip(scored, pulls, strict=True)
        if one.candidate.passage_id in by_passage
    ]


def _shown(message: PassageMessage, names: Mapping[str, str]) -> PassageMessage:
    return attrs.evolve(
        message,
        thread_title=message.thread_title if in_one_conversation(message.channel_kind) else None,
        author_name=to_plain_name(message.author_name) or "unknown",
        content=_USER.sub(lambda match: f"@{to_plain_name(names.get(match.group(1), 'someone'))}", message.content),
    )
