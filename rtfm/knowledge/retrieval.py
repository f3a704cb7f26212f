"""Retrieval: from a question to the passages that may be seen and are near it.

Two legs find candidates: Chroma (meaning) and the archive's term index (words). Every candidate is then scored exactly,
from the archive's vectors and term counts, so that it does not matter which leg found it. Both legs are limited to one
guild and to the visible channels. Does not write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from attrs import frozen

from rtfm.errors import InvalidEvent
from rtfm.events import ChannelKind, TimestampMillis
from rtfm.knowledge.archive import SqlArchive, guild_key
from rtfm.knowledge.archive.reading import Candidate, FoundMessage
from rtfm.knowledge.embedding import Embedding, Vectors, from_bytes
from rtfm.knowledge.scoring import Lexical, Nearness, near_enough, nearness
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.knowledge.words import terms

MAX_VISIBLE_CHANNELS = 20_000
"""More ids than any guild has channels (Discord allows 500, and 1,000 active threads)."""

MAX_QUESTION_CHARACTERS = 4_000
"""What Discord lets a member with Nitro write; the rest of a longer question is not read."""

TAIL = 0.35
"""Share of the best passage's score below which a passage only fills the list. At a half, coverage falls by a point."""

EXACT_LIMIT = 2_000
"""Visible passages that are compared one by one in less time than Chroma takes to find as many that may be seen."""

_DENSE_CANDIDATES = 100
_LEXICAL_CANDIDATES = 50
_NEAREST = 200
_MOST_NEAREST = 12_800
_POSTINGS = 3_000
"""Passages that the words of a question may bring up together; the rarest words come first."""

_USER = re.compile(r"<@!?(\d+)>")


@frozen(kw_only=True)
class PassageMessage:
    """A message of a passage. Mentions of users are replaced by their names."""

    message_id: str
    guild_id: str | None
    channel_id: str
    parent_channel_id: str | None
    channel_kind: ChannelKind
    author_name: str
    created_at: TimestampMillis
    content: str


@frozen(kw_only=True)
class Passage:
    """What was found: a conversation or a part of one, with its messages in order."""

    passage_id: str
    score: float
    text: str
    messages: list[PassageMessage]


@frozen(kw_only=True)
class SearchResult:
    """Passages, best first. Empty when nothing is near enough."""

    mode: Literal["hybrid", "lexical"]
    passages: list[Passage]

    @property
    def found(self) -> bool:
        """Whether anything is near enough to the question."""
        return bool(self.passages)


class Retriever:
    """Searches one guild within visible channels. Thread-safe."""

    def __init__(
        self,
        archive: SqlArchive,
        vectors: ChromaVectors,
        embedding: Embedding | None,
        *,
        exact_limit: int = EXACT_LIMIT,
    ) -> None:
        """``embedding`` None makes search lexical.

        Up to ``exact_limit`` visible passages every vector is compared; above, Chroma finds the nearest.
        """
        self._archive = archive
        self._vectors = vectors
        self._embedding = embedding
        self._exact_limit = exact_limit

    def search(
        self, question: str, *, guild_id: str | None, visible_channel_ids: Collection[str], limit: int
    ) -> SearchResult:
        """At most ``limit`` passages of the guild (of direct messages for None), best first.

        A passage may be seen if its channel is listed, or if it is of a public thread or forum post whose parent is.
        Raises InvalidEvent for more than 20,000 channel ids, Unavailable when a store does not answer.
        """
        if len(visible_channel_ids) > MAX_VISIBLE_CHANNELS:
            raise InvalidEvent(f"{len(visible_channel_ids)} visible channels are more than {MAX_VISIBLE_CHANNELS}")
        mode: Literal["hybrid", "lexical"] = "lexical" if self._embedding is None else "hybrid"
        asked = question[:MAX_QUESTION_CHARACTERS].replace("\x00", " ").strip()
        visible = sorted(set(visible_channel_ids))
        if not visible or not asked or limit < 1:
            return SearchResult(mode=mode, passages=[])
        guild = guild_key(guild_id)
        words = list(dict.fromkeys(terms(asked)))
        frequencies = self._archive.reading.frequencies(guild, words)
        corpus = self._archive.reading.corpus(guild)
        lexical = Lexical.of(words, frequencies, corpus)
        vector = None if self._embedding is None else self._embedding.embed([asked])[0]

        ids = self._lexical_candidates(guild, visible, lexical)
        if vector is not None:
            ids |= self._dense_candidates(guild, visible, vector)
        candidates = self._archive.reading.candidates(guild, visible, ids, words)
        scored = [(nearness(candidate, vector, lexical), candidate) for candidate in candidates]
        if not near_enough([near for near, _ in scored], lexical, corpus):
            return SearchResult(mode=mode, passages=[])
        scored.sort(key=lambda pair: (-pair[0].score, pair[1].passage_id))
        lowest = scored[0][0].score * TAIL
        scored = [(near, candidate) for near, candidate in scored if near.score >= lowest]
        return SearchResult(mode=mode, passages=self._with_messages(scored[:limit], visible))

    def _lexical_candidates(self, guild: str, visible: Sequence[str], lexical: Lexical) -> set[str]:
        chosen: list[str] = []
        brought_up = 0
        for word in sorted(lexical.frequencies, key=lambda word: lexical.frequencies[word]):
            brought_up += lexical.frequencies[word]
            if chosen and brought_up > _POSTINGS:
                break
            chosen.append(word)
        counts = self._archive.reading.containing(guild, visible, chosen, limit=_POSTINGS)
        lengths = self._archive.reading.lengths(counts)
        best = sorted(counts, key=lambda found: (-lexical.points(counts[found], lengths.get(found, 0)), found))
        return set(best[:_LEXICAL_CANDIDATES])

    def _dense_candidates(self, guild: str, visible: Sequence[str], vector: Vectors) -> set[str]:
        exact = self._archive.reading.visible_vectors(guild, visible, limit=self._exact_limit)
        if exact is not None:
            ids = list(exact)
            near = np.argsort(-(from_bytes(list(exact.values())) @ vector), kind="stable")[:_DENSE_CANDIDATES]
            return {ids[i] for i in near}
        count = _NEAREST
        while True:
            nearest = self._vectors.nearest(guild, vector, count)
            seen = self._archive.reading.visible_among(guild, visible, nearest)
            if len(seen) >= _DENSE_CANDIDATES or count >= _MOST_NEAREST:
                return set([found for found in nearest if found in seen][:_DENSE_CANDIDATES])
            count *= 2

    def _with_messages(self, scored: Sequence[tuple[Nearness, Candidate]], visible: Sequence[str]) -> list[Passage]:
        by_passage: dict[str, list[FoundMessage]] = {}
        for message in self._archive.reading.messages_of([found.passage_id for _, found in scored], visible):
            by_passage.setdefault(message.passage_id, []).append(message)
        mentioned = {
            user for messages in by_passage.values() for message in messages for user in _USER.findall(message.content)
        }
        names = self._archive.reading.author_names(mentioned)
        return [
            Passage(
                passage_id=candidate.passage_id,
                score=round(near.score, 4),
                text=candidate.text,
                messages=[_shown(message, names) for message in by_passage[candidate.passage_id]],
            )
            for near, candidate in scored
            if candidate.passage_id in by_passage
        ]


def _shown(message: FoundMessage, names: Mapping[str, str]) -> PassageMessage:
    return PassageMessage(
        message_id=message.message_id,
        guild_id=message.guild_id or None,
        channel_id=message.channel_id,
        parent_channel_id=message.parent_channel_id,
        channel_kind=message.kind,
        author_name=message.author_name or "unknown",
        created_at=message.created_at,
        content=_USER.sub(lambda match: f"@{names.get(match.group(1), 'someone')}", message.content),
    )
