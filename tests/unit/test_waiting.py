"""What a pipeline waits for, as its readiness and its metrics show it."""

from __future__ import annotations

from prometheus_client import REGISTRY

from rtfm.errors import Throttled, Unavailable
from rtfm.streams.handling import WaitingState

GROUP = "waiting"


def paused(dependency: str) -> float:
    """Return the metric that says whether the pipeline waits for ``dependency``."""
    labels = {"group": GROUP, "dependency": dependency}
    return REGISTRY.get_sample_value("rtfm_pipeline_paused", labels) or 0.0


def test_a_waiter_that_goes_from_one_dependency_to_another_no_longer_waits_for_the_first() -> None:
    """If PostgreSQL responds again and Chroma does not, the pipeline is shown to wait only for Chroma."""
    waiting = WaitingState(GROUP)
    waiting.note("thread", Unavailable("PostgreSQL", "down"))
    waiting.note("thread", Unavailable("Chroma", "down"))
    assert (paused("PostgreSQL"), paused("Chroma")) == (0, 1)
    assert waiting.dependency == "Chroma"
    waiting.clear("thread")
    assert paused("Chroma") == 0
    assert waiting.dependency is None


def test_a_dependency_is_shown_until_its_last_waiter_goes_on() -> None:
    """If one of two threads that wait for PostgreSQL continues, the pipeline is still shown to wait for PostgreSQL."""
    waiting = WaitingState(GROUP)
    for thread in ("first", "second"):
        waiting.note(thread, Unavailable("PostgreSQL", "down"))
    waiting.note("first", Throttled("slow down", retry_after_s=1.0))
    assert (paused("PostgreSQL"), paused("throttled")) == (1, 1)
    waiting.clear("second")
    assert (paused("PostgreSQL"), paused("throttled")) == (0, 1)
    waiting.clear("first")
    assert waiting.dependency is None
