"""The relevance floor of a guild: how much must speak for an answer before one is given.

Owns the calibration: questions about other things are put to the guild's own corpus, and the floor lies above what they
reach. Scores rise with the text that is searched, so that it is done again when the corpus has grown by half.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.probes import PROBES
from rtfm.knowledge.retrieval import Retriever
from rtfm.telemetry import get_logger

GROWTH = 1.5
"""How much a corpus grows before its floor is calibrated anew."""

MIN_PASSAGES = 50
"""Passages below which a corpus says too little about its floor."""

_log = get_logger(__name__)


def floor_of(levels: Sequence[float]) -> float:
    """The floor above what questions about other things reached, at least four of them.

    The 95th percentile and half of its distance to the upper quartile, kept between 2.5 and 3 standard deviations over
    the median, as the quartiles estimate them: a guild that knows some of the probes' topics is not misled by its own
    best ones.
    """
    cuts = statistics.quantiles(levels, n=20, method="inclusive")
    lower, middle, upper, high = cuts[4], cuts[9], cuts[14], cuts[18]
    deviation = (upper - lower) / 1.349  # of a normal distribution
    return min(max(high + (high - upper) / 2, middle + 2.5 * deviation), middle + 3 * deviation)


def calibrate(
    archive: SqlArchive,
    retriever: Retriever,
    guild_id: str,
    *,
    anew: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Set the floor of a guild that has outgrown its own, or with ``anew`` of any; changes nothing if stopped.

    Raises Unavailable when a store does not answer.
    """
    mode = retriever.mode_in(guild_id)
    passages = archive.floors.count_if_outgrown(guild_id, mode, growth=0.0 if anew else GROWTH)
    if passages < MIN_PASSAGES:
        return
    levels = []
    for level in retriever.evidence(PROBES, guild_id=guild_id):
        if is_stopped():
            return
        levels.append(level)
    floor = floor_of(levels)
    archive.floors.put(guild_id, mode, floor, passages)
    _log.info("relevance floor calibrated", guild_id=guild_id, mode=mode, floor=round(floor, 3), passages=passages)
