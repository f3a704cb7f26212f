"""The floor of a guild: it is computed from the evidence for sixty unrelated questions, which are called probes."""

from __future__ import annotations

import random

from rtfm.knowledge.floor import compute_floor
from rtfm.knowledge.probes import PROBES


def levels(seed: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0.3, 0.05) for _ in PROBES]


def test_nearly_all_unrelated_questions_are_below_the_floor() -> None:
    """Nearly all unrelated questions are below the floor, even if they were not used to compute it."""
    for seed in range(10):
        floor = compute_floor(levels(seed))
        others = levels(seed + 100)
        assert sum(level >= floor for level in others) <= 3


def test_a_guild_that_knows_a_topic_of_the_probes_is_not_misled() -> None:
    """Even if a guild can answer five of the probes, its floor stays below the evidence for these five."""
    known = [*levels(1)[:-5], 0.9, 0.9, 0.9, 0.9, 0.9]
    assert compute_floor(known) < 0.6


def test_the_sixty_probes_are_distinct() -> None:
    """The sixty probes are different, so that all have the same weight."""
    assert len(PROBES) == len(set(PROBES)) == 60
