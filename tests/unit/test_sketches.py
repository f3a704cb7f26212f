"""Sketches choose what vectors and terms would choose."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rtfm.knowledge.embedding import Vectors, to_bytes
from rtfm.knowledge.sketches import MAX_BYTES, Sketches, sketch

RNG = np.random.default_rng(7)


def unit(count: int, dimension: int) -> Vectors:
    rows: Vectors = RNG.standard_normal((count, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def made(vector: bytes | None, terms: list[str]) -> bytes:
    found = sketch(vector, terms)
    assert found is not None
    return found


def test_cosines_are_those_of_the_vectors_within_a_thousandth() -> None:
    """With 384 dimensions, as the model has; they decide who is compared exactly, not what is shown."""
    vectors, question = unit(300, 384), unit(1, 384)[0]
    places, near = Sketches([made(to_bytes(vector), ["disk"]) for vector in vectors]).cosines(question)
    assert places.tolist() == list(range(300))
    assert near == pytest.approx(vectors @ question, abs=0.002)


def test_points_are_how_rare_the_words_are_less_for_a_long_one() -> None:
    """Each word counts once, however often it is said; unknown ones nothing."""
    words = [f"word{number}" for number in range(50)]
    rng = random.Random(3)
    texts = [rng.choices(words, k=rng.randrange(1, 40)) for _ in range(100)]
    rarity = {"word1": 2.0, "word7": 0.5, "never": 9.0}
    points = Sketches([made(None, text) for text in texts]).points(rarity, 10.0)
    expected = [sum(rarity.get(word, 0) for word in set(text)) / (1 + len(text) / 10) for text in texts]
    assert points.tolist() == pytest.approx(expected)
    assert 0 in points


def test_passages_without_a_vector_or_with_one_of_another_model_are_not_compared() -> None:
    """Their words count all the same."""
    question = unit(1, 384)[0]
    sketches = Sketches([made(None, ["disk"]), made(to_bytes(unit(1, 8)[0]), ["disk"]), made(to_bytes(question), [])])
    places, near = sketches.cosines(question)
    assert places.tolist() == [2]
    assert near == pytest.approx([1.0], abs=0.002)
    assert sketches.points({"disk": 2.0}, 1.0).tolist() == [1.0, 1.0, 0.0]


def test_empty_and_odd_passages_have_sketches() -> None:
    """A vector of zeros, no terms, halves of surrogate pairs; and no passages at all."""
    zeros = made(to_bytes(np.zeros(4, dtype=np.float32)), ["\ud800", "", "🌊"])
    sketches = Sketches([zeros, made(None, [])])
    assert sketches.points({"\ud800": 4.0}, 3.0).tolist() == [2.0, 0.0]
    assert sketches.cosines(np.ones(4, dtype=np.float32))[1].tolist() == [0.0]
    nobody = Sketches([])
    assert nobody.points({"disk": 1.0}, 1.0).tolist() == []
    assert nobody.cosines(np.ones(4, dtype=np.float32))[1].tolist() == []


@pytest.mark.parametrize(
    ("dimension", "terms"), [(384, 500), (MAX_BYTES, 0), (0, MAX_BYTES // 4), (0, 70_000)], ids=lambda value: str(value)
)
def test_what_no_index_could_hold_has_no_sketch(dimension: int, terms: int) -> None:
    """Search reads such a passage itself."""
    vector = to_bytes(np.ones(dimension, dtype=np.float32)) if dimension else None
    assert sketch(vector, [f"word{number}" for number in range(terms)]) is None
    assert sketch(None, ["word"] * 70_000) is None
