"""The relevance floor of a guild: the evidence below which a question gets no answer.

Owns the calibration: it asks the guild's own corpus off-topic questions and sets the floor above the evidence that they
reach. Scores rise with the size of the corpus, so calibration repeats whenever the corpus has grown by half.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.probes import PROBES
from rtfm.knowledge.retrieval import Retriever
from rtfm.telemetry import get_logger

GROWTH = 1.5
"""Growth of a corpus after which its floor is calibrated again."""

MIN_PASSAGES = 50
"""Passages that a corpus needs for a calibrated floor; with fewer, the default floor applies."""

_log = get_logger(__name__)


def compute_floor(values: Sequence[float]) -> float:
    """Return the floor above ``values``, the evidence that at least four off-topic questions reached.

    This is the 95th percentile plus half of its distance to the upper quartile, limited to between 2.5 and 3 standard
    deviations above the median. The deviation is estimated from the quartiles, so a guild that does know some of the
    topics does not raise its own floor by much.
    """
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    lower, middle, upper, high = cuts[4], cuts[9], cuts[14], cuts[18]
    deviation = (upper - lower) / 1.349  # the interquartile range of a normal distribution in standard deviations
    return min(max(high + (high - upper) / 2, middle + 2.5 * deviation), middle + 3 * deviation)


def calibrate(
    archive: SqlArchive,
    retriever: Retriever,
    guild_id: str,
    *,
    force: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Calibrate the floor of a guild if it has outgrown its last one, or always with ``force``.

    Changes nothing once ``is_stopped`` returns True. Raises Unavailable when a store does not answer.
    """
    mode = retriever.mode_in(guild_id)
    passages = archive.floors.count_if_outgrown(guild_id, mode, growth=0.0 if force else GROWTH)
    if passages < MIN_PASSAGES:
        return
    values = []
    for value in retriever.evidence(PROBES, guild_id=guild_id):
        if is_stopped():
            return
        values.append(value)
    floor = compute_floor(values)
    archive.floors.put(guild_id, mode, floor, passages)
    _log.info("relevance floor calibrated", guild_id=guild_id, mode=mode, floor=round(floor, 3), passages=passages)
