"""Computes the score of a passage for a question, and the evidence and floor that decide whether there is an answer.

This module owns BM25, the weights of the combined score and the default floors. A score is at most 1.56 with the
embedding model and 1.03 without it. Scores of the two modes cannot be compared. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import frozen

from rtfm.knowledge.archive.search_rows import Candidate, Corpus, PassageVectors
from rtfm.knowledge.float32 import Vectors, from_bytes

Mode = Literal["hybrid", "lexical"]
"""The mode of search: by meaning and terms (hybrid), or by terms alone (lexical)."""

CONVERSATION_WEIGHT = 0.65
BEST_MESSAGE_WEIGHT = 0.35
LEXICAL_WEIGHT = 0.5
ANSWERED_WEIGHT, ANSWERED_WEIGHT_LEXICAL = 0.06, 0.03
"""The weights of the combined score. Other values near them give about the same quality (docs/decisions/0011).

An ``ANSWERED`` weight (the first in hybrid search, the second in keyword search) is added to the score of a passage
with at least two speakers, because a message without a reply rarely contains an answer."""

KNOWN_WEIGHT = 0.2
MEANING_FLOOR = 0.49
POINTS_FLOOR = 10.0
POINTS_FLOOR_GROWTH = 1.5
"""``evidence`` uses the first of these constants, and ``default_floor`` uses the other three."""

_K1, _B = 1.2, 0.75  # BM25's usual parameters; other values near them give about the same quality

_MIN_CORPUS = 1000
"""The rarity of terms is computed as if the corpus had at least this many passages.

In a corpus of a few passages, a term may occur in most of them although it is rare in the language."""


@frozen(kw_only=True)
class LexicalScorer:
    """BM25 for one question in one guild.

    ``rarity`` is the inverse document frequency of each term of the question. ``frequencies`` is the number of passages
    with each of these terms; terms in no passage are left out. ``mean_length`` is the mean number of terms in a
    passage.
    """

    rarity: Mapping[str, float]
    frequencies: Mapping[str, int]
    mean_length: float

    @classmethod
    def of(cls, words: Sequence[str], frequencies: Mapping[str, int], corpus: Corpus) -> LexicalScorer:
        """Build a scorer from the question's terms ``words``, each given once, and from their ``frequencies``."""
        total = max(corpus.passages, _MIN_CORPUS)
        rarity = {}
        for word in words:
            count = min(frequencies.get(word, 0), total)
            rarity[word] = math.log(1 + (total - count + 0.5) / (count + 0.5))
        return cls(rarity=rarity, frequencies=frequencies, mean_length=corpus.terms / max(corpus.passages, 1) or 1.0)

    def points(self, counts: Mapping[str, int], length: int) -> float:
        """Return the BM25 points of a passage of ``length`` terms, with the counts of the question's terms in it."""
        norm = _K1 * (1 - _B + _B * length / self.mean_length)
        return sum(self.rarity[word] * count * (_K1 + 1) / (count + norm) for word, count in counts.items())

    def share(self, points: float) -> float:
        """Return ``points`` as a share of the most points that the question's terms can reach, 0..1."""
        most = sum(self.rarity.values()) * (_K1 + 1)
        return points / most if most else 0.0

    @property
    def known_share(self) -> float:
        """The share of the question's terms, weighted by rarity, that occur anywhere in the guild, 0..1."""
        total = sum(self.rarity.values())
        return sum(self.rarity[word] for word in self.frequencies) / total if total else 0.0


@frozen(kw_only=True)
class Nearness:
    """How near a passage is to a question.

    ``meaning`` is the mean of two cosines: of the passage and the question, and of the passage's best message and the
    question. Without vectors, ``meaning`` is None. ``points`` are the points of BM25. ``words`` is the number of the
    question's terms in the passage.
    """

    score: float
    meaning: float | None
    points: float
    words: int


def nearness(
    candidate: Candidate, vectors: PassageVectors, question: Vectors | None, scorer: LexicalScorer
) -> Nearness:
    """Compare a passage with a question: by meaning and terms, or by terms alone if either of them has no vector."""
    points = scorer.points(candidate.counts, candidate.length)
    words = len(candidate.counts)
    share = scorer.share(points)
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


def evidence(found: Sequence[Nearness], scorer: LexicalScorer) -> float:
    """Return the evidence of ``found``, the number that is compared with the floor.

    - With vectors, it is the highest ``meaning`` plus ``KNOWN_WEIGHT`` times ``known_share``.
    - Without vectors, it is the highest BM25 points times ``known_share``. The points of a passage count twice if it
      contains at least two of the question's terms, or if the question has only one term and the passage contains it.
      Thus a question that consists of a symbol or an error code can reach the floor.
    """
    meanings = [passage.meaning for passage in found if passage.meaning is not None]
    if meanings:
        return max(meanings) + KNOWN_WEIGHT * scorer.known_share
    enough_words = min(len(scorer.rarity), 2)
    points = (passage.points * (1 + (passage.words >= enough_words)) for passage in found)
    return max(points, default=0.0) * scorer.known_share


def default_floor(mode: Mode, corpus: Corpus) -> float:
    """Return the floor of a guild that has no calibrated floor.

    The constants were chosen with 60 off-topic questions (cooking, law, sports) and 211 on-topic questions, on help
    chat of 27 to 1,102 passages.
    """
    if mode == "hybrid":
        return MEANING_FLOOR
    return min(POINTS_FLOOR_GROWTH * math.log(max(corpus.passages, 27)), POINTS_FLOOR)
