"""The waits between attempts."""

from rtfm.backoff import Backoff


def test_waits_double_up_to_the_longest() -> None:
    """Without jitter, each wait is twice as long as the wait before it, up to the longest wait."""
    backoff = Backoff(0.5, 3.0, chance=lambda: 1.0)
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_jitter_shortens_a_wait_to_half_at_most() -> None:
    """Jitter shortens a wait by at most half, and does not change the next wait."""
    backoff = Backoff(1.0, 8.0, chance=lambda: 0.0)
    assert [backoff.next_s() for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]


def test_a_success_begins_with_the_first_wait_again() -> None:
    """After a success, the next wait is as long as the first wait."""
    backoff = Backoff(1.0, 60.0, chance=lambda: 1.0)
    for _ in range(9):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() == 1.0
