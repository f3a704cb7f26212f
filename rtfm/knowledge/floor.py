"""The relevance floor of a guild: the evidence below which a question gets no answer.

The calibration makes a search in the guild for each of several off-topic questions, and sets the floor above the
evidence that most of these questions reach. Because scores rise with the size of the corpus, a floor is calibrated
again whenever the corpus has grown by half.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.probes import PROBES
from rtfm.knowledge.retrieval import Retriever
from rtfm.telemetry import get_logger

GROWTH = 1.5
"""A floor is calibrated again when the number of passages has grown by this factor since the last calibration."""

MIN_PASSAGES = 50
"""A floor is calibrated only if the corpus has at least this many passages. A smaller corpus has the default floor."""

_log = get_logger(__name__)


def compute_floor(values: Sequence[float]) -> float:
    """Return the floor for ``values``, which are the evidence that at least four off-topic questions reached.

    The floor is the 95th percentile plus half of its distance from the upper quartile, but at least 2.5 and at most 3
    standard deviations above the median. The standard deviation is estimated from the quartiles. So if a guild does
    discuss some of the topics, the high evidence of these topics raises the floor only a little.
    """
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    lower, middle, upper, high = cuts[4], cuts[9], cuts[14], cuts[18]
    deviation = (upper - lower) / 1.349  # the quartiles of a normal distribution are this many deviations apart
    return min(max(high + (high - upper) / 2, middle + 2.5 * deviation), middle + 3 * deviation)


def calibrate(
    archive: SqlArchive,
    retriever: Retriever,
    guild_id: str,
    *,
    force: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Calibrate the floor of a guild if the floor is due (see ``count_if_outgrown``) or ``force`` is True.

    If the guild has fewer than ``MIN_PASSAGES`` passages, nothing is done, not even with ``force``. Stops without a
    change once ``is_stopped`` returns True. Raises Unavailable when a store does not respond.
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
