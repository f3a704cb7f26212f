"""Retrieval: finds the visible passages that are near a question.

Every candidate is scored exactly, with the vectors and term counts in the archive, whichever search found it. Every
search is limited to one guild and its visible channels. This module does not write.
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
from rtfm.knowledge.candidates import CandidateSearch, Compared, SearchRequest, select_candidates
from rtfm.knowledge.embedding import Embedding, is_compatible
from rtfm.knowledge.float32 import Vectors, from_bytes
from rtfm.knowledge.linking import is_one_conversation
from rtfm.knowledge.packing import NEARBY_MESSAGES, NEARBY_WEIGHT, pack, speaker_overlap
from rtfm.knowledge.passages import Passage, PassageMessage
from rtfm.knowledge.scoring import LexicalScorer, Mode, Nearness, default_floor, evidence, nearness
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.knowledge.words import terms
from rtfm.markup import to_plain_name
from rtfm.visibility import MAX_VISIBLE_CHANNELS

MAX_QUESTION_CHARACTERS = 4_000
"""Maximum number of characters of a question that are used. This is Discord's limit for a member with Nitro."""

TAIL_SHARE = 0.35
"""A passage is dropped if its score is less than this share of the best passage's score.

With 0.5, one percentage point fewer of the messages that answer a question are found (`make eval`)."""

DUPLICATE_COSINE = 0.98
"""Two passages are duplicates if the cosine of their vectors is at least this. Only the better passage is shown."""

FRESH_WEIGHT = 0.002
FRESH_HALF_LIFE_MS = 365 * 24 * 3600 * 1000
"""The score of the newest candidate gains ``FRESH_WEIGHT``.

A candidate that is older by ``FRESH_HALF_LIFE_MS`` milliseconds gains half of this. The gain is so small that it
decides only between nearly equal scores."""

_MAX_NEARBY = 20
"""Maximum number of passages that are added to a result because they are near the best passage in its channel."""

_MODEL_DIFFERS = "the vectors are not of this embedding model, or are missing"
_VECTORS_LOST = "Chroma does not have this guild's vectors"

_USER_MENTION = re.compile(r"<@!?(\d+)>")


@frozen(kw_only=True)
class Ranks:
    """A passage's ranks by meaning and by terms, from 1, and the values on which the ranks are based.

    ``meaning_rank`` and ``meaning`` are None without vectors. ``words_rank`` is None if the passage contains no term of
    the question.
    """

    meaning_rank: int | None
    words_rank: int | None
    meaning: float | None
    words: float


@frozen(kw_only=True)
class Explanation:
    """Explains how a search reached its result, without text or ids from channels that are not visible.

    Three fields are counts: ``visible_channels`` of visible channels, ``looked_at`` of compared vectors, ``candidates``
    of passages that were scored. ``calibrated`` is False if ``floor`` is a default floor. ``ranks`` maps the id of a
    passage to the ranks of the passage.
    """

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
    """The result of a search. ``passages`` lists the best passage first.

    If no passage is near enough to the question, ``passages`` is empty. ``nearby`` are further passages from the
    channel of the best passage, shortly before or after the best passage. If there is an embedding model but the search
    could not use vectors, ``rebuild_due`` is the reason; otherwise it is None.
    """

    mode: Mode
    passages: list[Passage]
    nearby: list[Passage] = field(factory=list)
    explanation: Explanation | None = None
    rebuild_due: str | None = None

    @property
    def found(self) -> bool:
        """Whether any passage is near enough to the question."""
        return bool(self.passages)

    def pack(self, max_words: int) -> list[Passage]:
        """Return the passages and messages to show, of at most ``max_words`` words in all; see ``packing.pack``."""
        return pack([*self.passages, *self.nearby], max_words)


@frozen(kw_only=True)
class _ScoredPassage:
    nearness: Nearness
    candidate: Candidate
    vector: bytes | None
    score: float


class Retriever:
    """Makes searches, each in the visible channels of one guild. Thread-safe."""

    def __init__(
        self,
        archive: SqlArchive,
        vectors: ChromaVectors,
        embedding: Embedding | None,
        *,
        exact_limit: int | None = None,
    ) -> None:
        """Prepare for searches. If ``embedding`` is None, they use terms alone.

        If at most ``exact_limit`` passages are visible, all their vectors are compared. Otherwise Chroma finds the
        nearest vectors. By default, the limit is about the number of passages for which comparing all vectors takes
        as long as a query to Chroma.
        """
        self._archive = archive
        self._embedding = embedding
        self._candidates = CandidateSearch(vectors, exact_limit)

    def search(
        self, question: str, *, guild_id: str | None, visible_channel_ids: Collection[str], limit: int
    ) -> SearchResult:
        """Find at most ``limit`` passages of the guild (None: of direct messages), best first.

        A passage is visible if ``visible_channel_ids`` contains its channel, or the parent of its public thread or
        forum post. Raises InvalidEvent for more than 20,000 channel ids, and Unavailable when a store does not respond.
        """
        if len(visible_channel_ids) > MAX_VISIBLE_CHANNELS:
            raise InvalidEvent(f"{len(visible_channel_ids)} visible channels are more than {MAX_VISIBLE_CHANNELS}")
        text = question[:MAX_QUESTION_CHARACTERS].encode(errors="replace").decode().replace("\x00", " ").strip()
        visible = sorted(set(visible_channel_ids))
        if not visible or not text or limit < 1:
            return SearchResult(mode=self.mode, passages=[])
        vector = None if self._embedding is None else self._embedding.embed([text])[0]
        return self._search(_question_terms(text), vector, guild_key(guild_id), visible, limit)

    def close(self) -> None:
        """Let the threads end. The caller closes the stores."""
        self._candidates.close()

    @property
    def mode(self) -> Mode:
        """The mode of search in a guild with vectors of the current embedding model; lexical if there is no model."""
        return "lexical" if self._embedding is None else "hybrid"

    def mode_in(self, guild_id: str) -> Mode:
        """Return the mode of search in a guild. If the guild's vectors are of another model, the mode is lexical."""
        return self._mode(self._archive.collections.find([guild_id]).get(guild_id) if self._embedding else None)

    def evidence(self, questions: Sequence[str], *, guild_id: str) -> Iterator[float]:
        """Yield the evidence for each of ``questions`` in all channels of a guild ('' for direct messages)."""
        vectors: Sequence[Vectors | None] = [None] * len(questions)
        if self._embedding is not None:
            vectors = list(self._embedding.embed(questions))
        visible = sorted({channel.acl_channel_id for channel in self._archive.channels(guild_id)})
        for question, vector in zip(questions, vectors, strict=True):
            explanation = self._search(_question_terms(question), vector, guild_id, visible, 1).explanation
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
            search = SearchRequest(
                guild=guild,
                visible_channel_ids=visible_channel_ids,
                scorer=LexicalScorer.of(words, guild.frequencies, guild.corpus),
                vector=None if mode == "lexical" else vector,
            )
            try:
                result = self._search_view(view, search, mode, limit)
            except Unavailable:
                # A rebuild that replaces the collection during the search can cause this error as well. The error is
                # raised only if the collection is still the same.
                if view.collection() == guild.collection:
                    raise
            else:
                if view.collection() == guild.collection:
                    return result
        # A rebuild has replaced the passages and vectors during the search, so the search is repeated.
        return self._search(words, vector, guild_id, visible_channel_ids, limit)

    def _search_view(self, view: View, search: SearchRequest, mode: Mode, limit: int) -> SearchResult:
        guild, scorer, vector = search.guild, search.scorer, search.vector
        words = list(scorer.rarity)
        found = self._candidates.find(view, search)
        rebuild_due = _VECTORS_LOST if found.vectors_lost else None if mode == self.mode else _MODEL_DIFFERS
        candidates = select_candidates(view.candidates({*found.nearest_ids, *found.lexical_ids}, words), found, scorer)
        scored = _score(view, candidates, vector, scorer)
        level = evidence([passage.nearness for passage in scored], scorer)
        floor = guild.floors.get(mode, default_floor(mode, guild.corpus))
        explanation = Explanation(
            guild_id=guild.guild_id,
            visible_channels=len(search.visible_channel_ids),
            compared=found.compared,
            looked_at=found.compared_count,
            candidates=len(scored),
            evidence=round(level, 4),
            floor=round(floor, 4),
            calibrated=mode in guild.floors,
            ranks=_build_ranks(scored, scorer),
        )
        if not scored or level < floor:
            return SearchResult(mode=mode, passages=[], explanation=explanation, rebuild_due=rebuild_due)
        best = scored[0]
        near_best = [best, *(passage for passage in scored[1:] if passage.score >= best.score * TAIL_SHARE)]
        chosen = _drop_duplicates(near_best, limit)
        speakers = view.speakers_around(best.candidate.passage_id, messages=NEARBY_MESSAGES)
        overlap = speaker_overlap(speakers.pop(best.candidate.passage_id, frozenset()), speakers)
        chosen_ids = {passage.candidate.passage_id for passage in chosen}
        nearby_ids = sorted(overlap.keys() - chosen_ids, key=lambda passage_id: (-overlap[passage_id], passage_id))
        nearby = _score(view, view.candidates(nearby_ids[: 2 * _MAX_NEARBY], words), vector, scorer)[:_MAX_NEARBY]
        passages = _build_passages(view, [*chosen, *nearby], overlap, best.score)
        return SearchResult(
            mode=mode,
            passages=[passage for passage in passages if passage.passage_id in chosen_ids],
            nearby=[passage for passage in passages if passage.passage_id not in chosen_ids],
            explanation=explanation,
            rebuild_due=rebuild_due,
        )

    def _mode(self, collection: GuildCollection | None) -> Mode:
        return "hybrid" if is_compatible(collection, self._embedding) else "lexical"


def _question_terms(question: str) -> list[str]:
    """Return the terms of a question without repetitions."""
    return list(dict.fromkeys(terms(question)))


def _score(
    view: View, candidates: Sequence[Candidate], vector: Vectors | None, scorer: LexicalScorer
) -> list[_ScoredPassage]:
    ids = [candidate.passage_id for candidate in candidates]
    vectors = view.vectors_of(ids, only_speakers=vector is None)
    newest = max((candidate.last_at for candidate in candidates), default=0)
    scored = []
    for candidate in candidates:
        own = vectors.get(candidate.passage_id, PassageVectors())
        near = nearness(candidate, own, vector, scorer)
        fresh = FRESH_WEIGHT * 0.5 ** ((newest - candidate.last_at) / FRESH_HALF_LIFE_MS)
        scored.append(_ScoredPassage(nearness=near, candidate=candidate, vector=own.own, score=near.score + fresh))
    return sorted(scored, key=lambda passage: (-passage.score, passage.candidate.passage_id))


def _drop_duplicates(scored: Sequence[_ScoredPassage], limit: int) -> list[_ScoredPassage]:
    """Return the first ``limit`` passages that are not duplicates of an earlier passage."""
    kept: list[_ScoredPassage] = []
    texts: set[str] = set()
    vectors: list[Vectors] = []
    for passage in scored:
        text = " ".join(passage.candidate.text.casefold().split())
        vector = None if passage.vector is None else from_bytes([passage.vector])[0]
        if text in texts or (
            vector is not None and any(float(vector @ other) >= DUPLICATE_COSINE for other in vectors)
        ):
            continue
        kept.append(passage)
        texts.add(text)
        if vector is not None:
            vectors.append(vector)
        if len(kept) == limit:
            break
    return kept


def _build_ranks(scored: Sequence[_ScoredPassage], scorer: LexicalScorer) -> dict[str, Ranks]:
    near = {passage.candidate.passage_id: passage.nearness for passage in scored}
    meaning = _rank_by_value({key: value.meaning for key, value in near.items() if value.meaning is not None})
    words = _rank_by_value({key: value.points for key, value in near.items() if value.points > 0})
    return {
        passage_id: Ranks(
            meaning_rank=meaning.get(passage_id),
            words_rank=words.get(passage_id),
            meaning=None if value.meaning is None else round(value.meaning, 4),
            words=round(scorer.share(value.points), 4),
        )
        for passage_id, value in near.items()
    }


def _rank_by_value(values: Mapping[str, float]) -> dict[str, int]:
    """Return the rank of each key. The key with the highest value has rank 1."""
    return {key: rank for rank, key in enumerate(sorted(values, key=lambda key: -values[key]), start=1)}


def _build_passages(
    view: View, scored: Sequence[_ScoredPassage], overlap: Mapping[str, float], best_score: float
) -> list[Passage]:
    """Build the passages with their messages. ``overlap`` is the result of ``speaker_overlap``."""
    messages_of = view.messages_of([passage.candidate.passage_id for passage in scored])
    mentioned = {
        user
        for messages in messages_of.values()
        for message in messages
        for user in _USER_MENTION.findall(message.content)
    }
    names = view.author_names(mentioned)
    boosted = [
        passage.score + NEARBY_WEIGHT * best_score * overlap.get(passage.candidate.passage_id, 0.0)
        for passage in scored
    ]
    # The best passage stays first.
    boosted[0] = max(boosted)
    return [
        Passage(
            passage_id=passage.candidate.passage_id,
            score=round(passage.score, 4),
            boosted_score=round(boosted_score, 4),
            text=passage.candidate.text,
            messages=[_to_displayed(message, names) for message in messages_of[passage.candidate.passage_id]],
        )
        for passage, boosted_score in zip(scored, boosted, strict=True)
        if passage.candidate.passage_id in messages_of
    ]


def _to_displayed(message: PassageMessage, names: Mapping[str, str]) -> PassageMessage:
    return attrs.evolve(
        message,
        thread_title=message.thread_title if is_one_conversation(message.channel_kind) else None,
        author_name=to_plain_name(message.author_name) or "unknown",
        content=_USER_MENTION.sub(
            lambda match: f"@{to_plain_name(names.get(match.group(1), 'someone'))}", message.content
        ),
    )
