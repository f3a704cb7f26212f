"""Where the floor lies above what questions about other things reach."""

from __future__ import annotations

import random

from rtfm.knowledge.floor import compute_floor
from rtfm.knowledge.probes import PROBES


def levels(seed: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0.3, 0.05) for _ in PROBES]


def test_nearly_all_other_questions_lie_below() -> None:
    """Also those that it was not set on."""
    for seed in range(10):
        floor = compute_floor(levels(seed))
        others = levels(seed + 100)
        assert sum(level >= floor for level in others) <= 3


def test_a_guild_that_knows_a_topic_of_the_probes_is_not_misled() -> None:
    """Five questions that a guild of cooks can answer do not shut out its own."""
    known = [*levels(1)[:-5], 0.9, 0.9, 0.9, 0.9, 0.9]
    assert compute_floor(known) < 0.6


def test_the_probes_are_sixty_and_none_stands_twice() -> None:
    """Each weighs alike."""
    assert len(PROBES) == len(set(PROBES)) == 60
