"""How near a passage is to a question, and how near is near enough. Pure.

Owns BM25, the weights of the mixed score and the floors. A score is at most 1.56 with the embedding model and 1.03
without; scores of the two modes are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import frozen

from rtfm.knowledge.archive.search_rows import Candidate, Corpus, PassageVectors
from rtfm.knowledge.float32 import Vectors, from_bytes

Mode = Literal["hybrid", "lexical"]
"""With the embedding model, or without."""

CONVERSATION_WEIGHT = 0.65
BEST_MESSAGE_WEIGHT = 0.35
LEXICAL_WEIGHT = 0.5
ANSWERED_WEIGHT, ANSWERED_WEIGHT_LEXICAL = 0.06, 0.03
"""Weights of the mixed score; quality is flat around them (docs/decisions/).

The last two are for passages in which at least two people speak: what nobody replied to seldom holds an answer."""

KNOWN_WEIGHT = 0.2
MEANING_FLOOR = 0.49
POINTS_FLOOR = 10.0
POINTS_FLOOR_GROWTH = 1.5
"""Where nothing is near enough before a floor was calibrated; see ``usual_floor``."""

_K1, _B = 1.2, 0.75  # BM25's usual parameters; quality is flat around them

_SMALL = 1000
"""Passages that a smaller corpus is taken to have when words are weighed: in a handful of passages a word may stand in
most of them and still be rare in the language."""


@frozen(kw_only=True)
class Lexical:
    """BM25 for one question in one guild. ``rarity`` is each word's inverse document frequency."""

    rarity: Mapping[str, float]
    frequencies: Mapping[str, int]
    mean_length: float

    @classmethod
    def of(cls, words: Sequence[str], frequencies: Mapping[str, int], corpus: Corpus) -> Lexical:
        """For the question's ``words``, each once, with the passages that hold them."""
        total = max(corpus.passages, _SMALL)
        rarity = {}
        for word in words:
            count = min(frequencies.get(word, 0), total)
            rarity[word] = math.log(1 + (total - count + 0.5) / (count + 0.5))
        return cls(rarity=rarity, frequencies=frequencies, mean_length=corpus.terms / max(corpus.passages, 1) or 1.0)

    def points(self, counts: Mapping[str, int], length: int) -> float:
        """BM25 of a passage of ``length`` terms that holds the words ``counts`` times."""
        norm = _K1 * (1 - _B + _B * length / self.mean_length)
        return sum(self.rarity[word] * count * (_K1 + 1) / (count + norm) for word, count in counts.items())

    def share(self, points: float) -> float:
        """``points`` of the most that the question's words can reach, 0..1."""
        most = sum(self.rarity.values()) * (_K1 + 1)
        return points / most if most else 0.0

    @property
    def known(self) -> float:
        """How much of the question, by rarity, the guild has ever spoken of, 0..1."""
        total = sum(self.rarity.values())
        return sum(self.rarity[word] for word in self.frequencies) / total if total else 0.0


@frozen(kw_only=True)
class Nearness:
    """How near one passage is. ``meaning`` is the mean of the conversation's and its best message's cosine, or None."""

    score: float
    meaning: float | None
    points: float
    words: int


def nearness(candidate: Candidate, vectors: PassageVectors, question: Vectors | None, lexical: Lexical) -> Nearness:
    """Compare a passage with a question: by meaning and words, or by words alone where either has no vector."""
    points = lexical.points(candidate.counts, candidate.length)
    words = len(candidate.counts)
    share = lexical.share(points)
    answered = vectors.speakers > 1
    if question is None or vectors.own is None:
        score = share + ANSWERED_WEIGHT_LEXICAL * answered
        return Nearness(score=score, meaning=None, points=points, words=words)
    passage, *messages = (from_bytes([vectors.own, *vectors.messages]) @ question).tolist()
    best_message = max(messages, default=passage)
    return Nearness(
        score=CONVERSATION_WEIGHT * passage
        + BEST_MESSAGE_WEIGHT * best_message
        + LEXICAL_WEIGHT * share
        + ANSWERED_WEIGHT * answered,
        meaning=(passage + best_message) / 2,
        points=points,
        words=words,
    )


def evidence(found: Sequence[Nearness], lexical: Lexical) -> float:
    """How much speaks for an answer among ``found``: what is compared with the floor.

    With vectors: the best meaning, raised by how much of the question the guild has ever spoken of. Without: the best
    BM25 points, times that share, doubled where at least two words agree, or the only one that the question has: who
    asks for a symbol or an error code alone must find it.
    """
    meanings = [one.meaning for one in found if one.meaning is not None]
    if meanings:
        return max(meanings) + KNOWN_WEIGHT * lexical.known
    agreeing = min(len(lexical.rarity), 2)
    return max((one.points * (1 + (one.words >= agreeing)) for one in found), default=0.0) * lexical.known


def usual_floor(mode: Mode, corpus: Corpus) -> float:
    """The floor of a guild for which none was calibrated yet.

    Read off 60 questions about other things (cooking, law, sports) and 211 about the matter, on help chat of 27 to
    1,102 passages.
    """
    if mode == "hybrid":
        return MEANING_FLOOR
    return min(POINTS_FLOOR_GROWTH * math.log(max(corpus.passages, 27)), POINTS_FLOOR)
