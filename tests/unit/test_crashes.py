"""What a process had in hand when it died, and who is blamed for it. The deaths are real, of forked processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from rtfm.settings import Settings
from rtfm.streams.crashes import FATAL_DEATHS, FOLDER, QUARANTINE_S, InHand
from rtfm.streams.position import PartitionState


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return evolve(Settings(), home=tmp_path, instance_id="pod/1")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def opened(settings: Settings, *, group: str = "g", threads: int = 4, clock: Clock | None = None) -> InHand:
    hand = InHand(settings, group=group, threads=threads, stop=threading.Event(), clock=clock or Clock())
    hand.open()
    return hand


def dies(settings: Settings, *taken: tuple[int, int, int], then: Callable[[InHand], object] = lambda _: None) -> None:
    """A process that takes these, each in a thread, and dies before any except clause runs."""
    pid = os.fork()
    if pid == 0:
        try:
            hand = opened(settings)
            for what in taken:
                thread = threading.Thread(target=hand.take, args=what)
                thread.start()
                thread.join()
            then(hand)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def suspects(settings: Settings) -> dict[tuple[int, int], int]:
    """Who is suspected by the next process."""
    hand = opened(settings)
    hand.close()
    return hand.suspects


def test_all_that_was_in_hand_is_suspected_and_nothing_of_it_is_blamed(settings: Settings) -> None:
    """Any of them may have done it; the batch of one thread and the record of another."""
    dies(settings, (0, 5, 7), (2, 40, 40))
    assert suspects(settings) == {(0, 5): 0, (0, 6): 0, (0, 7): 0, (2, 40): 0}


def test_deaths_beside_others_never_count_however_many(settings: Settings) -> None:
    """R20: whoever kills the process, an innocent record that was in hand beside it is not blamed."""
    for offset in range(0, 50, 10):
        dies(settings, (0, offset, offset + 2), (1, offset, offset))
    assert set(suspects(settings).values()) == {0}
    assert len(suspects(settings)) == 20


def test_only_deaths_while_alone_count_and_after_three_it_is_not_tried_again(settings: Settings) -> None:
    """R20: the one that killed it three times with nothing else in hand."""
    dies(settings, (0, 5, 5), (0, 6, 6))
    for deaths in range(1, FATAL_DEATHS + 1):
        dies(settings, (0, 5, 5))
        assert suspects(settings) == {(0, 5): deaths, (0, 6): 0}
    dies(settings, (0, 5, 5))  # it is no longer handled, so it is in hand as others are
    assert suspects(settings)[0, 5] == FATAL_DEATHS


def test_an_end_in_order_blames_nobody(settings: Settings) -> None:
    """SIGTERM and then, the grace being over, SIGKILL, is no record's doing."""
    dies(settings, (0, 5, 9), then=lambda hand: hand.ending())
    assert suspects(settings) == {}
    hand = opened(settings)
    hand.take(0, 5, 5)
    hand.close()
    assert suspects(settings) == {}


def test_a_defect_counts_as_a_death_of_the_record_that_it_broke_on(settings: Settings) -> None:
    """The process ends in order, and what was in hand beside it is not even suspected."""
    for alone in range(FATAL_DEATHS):
        hand = opened(settings)
        beside = threading.Thread(target=hand.take, args=(1, 9, 9))
        if not alone:
            beside.start()
            beside.join()
        hand.take(0, 5, 5)
        assert not hand.is_last_try(0, 5)
        hand.blame()
        hand.release()
        assert not hand.take(0, 6, 6)  # the pool may not have heard of the end
        hand.close()
        assert suspects(settings) == {(0, 5): alone}
    hand = opened(settings)
    assert hand.is_last_try(0, 5)
    hand.take(0, 5, 5)
    hand.release()
    assert hand.suspects == {}
    hand.close()


def test_what_was_finished_before_the_death_is_not_suspected(settings: Settings) -> None:
    """Only what was in hand at that moment."""

    def work(hand: InHand) -> None:
        for offset in range(100):
            hand.take(0, offset, offset)
            hand.release()

    dies(settings, then=work)
    assert suspects(settings) == {}


def test_what_waits_for_a_dependency_is_not_in_hand(settings: Settings) -> None:
    """Whoever kills a process that waits for a database blames no record."""

    def wait(hand: InHand) -> None:
        hand.take(0, 5, 5)
        with hand.laid_aside():
            os._exit(9)

    dies(settings, then=wait)
    assert suspects(settings) == {}

    def after(hand: InHand) -> None:
        hand.take(0, 5, 5)
        with hand.laid_aside():
            pass

    dies(settings, then=after)
    assert suspects(settings) == {(0, 5): 0}


def test_a_death_is_counted_once_even_if_the_next_start_is_cut_short(settings: Settings) -> None:
    """The list says which run it has counted."""
    dies(settings, (0, 5, 5))
    dies(settings, (0, 5, 5))
    last_run = next(path for path in (settings.home / FOLDER).iterdir() if path.suffix != ".json")
    content = last_run.read_bytes()
    assert suspects(settings) == {(0, 5): 1}
    last_run.write_bytes(content)
    assert suspects(settings) == {(0, 5): 1}


def test_what_another_worker_finished_meanwhile_is_suspected_no_longer(settings: Settings) -> None:
    """The partition was elsewhere and comes back, with its position."""
    dies(settings, (0, 5, 8), (1, 5, 5))
    hand = opened(settings)
    part = PartitionState.restored(0, 7, "")
    hand.assigned(part)
    assert hand.suspects == {(0, 7): 0, (0, 8): 0, (1, 5): 0}
    part.admit(7)
    part.admit(8)
    hand.assigned(part)
    assert len(hand.suspects) == 3
    hand.close()


def test_suspects_are_cut_out_of_batches(settings: Settings) -> None:
    """Each by itself, the others together."""
    dies(settings, (0, 5, 6))
    hand = opened(settings)
    assert [hand.together(0, offsets) for offsets in ([3, 4, 5, 6], [5, 6, 7], [6, 7, 8], [7, 8])] == [2, 1, 1, 2]
    assert hand.together(1, [5, 6]) == 2
    hand.close()


def test_a_suspect_is_alone_in_the_process_and_free_when_it_is_through(settings: Settings) -> None:
    """Another pipeline of the process waits, too; it goes on while the suspect waits for a dependency."""
    dies(settings, (0, 5, 5))
    hand, other = opened(settings), opened(settings, group="other")
    log: list[str] = []
    other_busy, let_go, other_done = threading.Event(), threading.Event(), threading.Event()

    def before() -> None:
        other.take(0, 1, 1)
        other_busy.set()
        let_go.wait(20)
        log.append("other is through")
        other.release()

    def during() -> None:
        other.take(0, 2, 2)
        log.append("other has the next")
        other.release()
        other_done.set()

    def suspect() -> None:
        hand.take(0, 5, 5)
        log.append("suspect is alone")
        threads.append(threading.Thread(target=during))
        threads[-1].start()
        assert not other_done.wait(0.3)
        log.append("suspect waits")
        with hand.laid_aside():
            assert other_done.wait(20)
        log.append("suspect again")
        hand.release()

    threads = [threading.Thread(target=before)]
    threads[0].start()
    other_busy.wait(20)
    threads.append(threading.Thread(target=suspect))
    threads[-1].start()
    let_go.set()
    for thread in threads:
        thread.join(20)
    threads[-1].join(20)
    assert log == [
        "other is through",
        "suspect is alone",
        "suspect waits",
        "other has the next",
        "suspect again",
    ]
    assert hand.suspects == {}
    hand.close()
    other.close()


def test_a_slow_suspect_holds_up_others_only_for_a_while(settings: Settings) -> None:
    """Then they are let in, it goes on beside them, and a death from then on is not counted against it."""
    dies(settings, (0, 5, 5))
    clock, taken = Clock(), threading.Event()
    hand, other = opened(settings, clock=clock), opened(settings, group="other")
    hand.take(0, 5, 5)

    def wait() -> None:
        other.take(0, 1, 1)
        taken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not taken.wait(0.2)
    clock.now_s = QUARANTINE_S
    waiting.join(20)
    assert taken.is_set()
    assert suspects(settings) == {(0, 5): 0}
    hand.close()
    other.close()


def test_suspects_whose_turn_does_not_come_go_as_others_do_and_have_longer_after_the_next_death(
    settings: Settings,
) -> None:
    """One kill costs a second; what kills again and again is found all the same."""
    dies(settings, (0, 5, 6))
    clock = Clock()
    hand = opened(settings, clock=clock)
    slow = threading.Thread(target=hand.take, args=(0, 5, 5))
    slow.start()
    slow.join(20)
    clock.now_s = QUARANTINE_S
    assert hand.take(0, 6, 6) is True
    assert hand.suspects == {}
    hand.close()
    times = []
    for _ in range(3):
        hand = opened(settings)
        hand.close()
        times.append(hand.quarantine_s)
        dies(settings, (0, 6, 7), then=lambda hand: hand.suspects.clear())
    assert times == [QUARANTINE_S, 4 * QUARANTINE_S, 16 * QUARANTINE_S]
    dies(settings, (2, 7, 7))
    hand = opened(settings)
    hand.close()
    assert hand.quarantine_s == QUARANTINE_S  # another story, for which a second is enough


def test_a_service_that_stops_waits_for_no_turn(settings: Settings) -> None:
    """Neither a suspect for the others, nor the others for a suspect."""
    dies(settings, (0, 5, 5))
    stop = threading.Event()
    hand = InHand(settings, group="g", threads=2, stop=stop, clock=Clock())
    hand.open()
    busy = threading.Thread(target=hand.take, args=(0, 1, 1))
    busy.start()
    busy.join()
    threading.Timer(0.2, stop.set).start()
    assert hand.take(0, 5, 5) is False
    hand.close()
    after = opened(settings, group="another")
    assert after.take(0, 1, 1) is True
    after.close()


def test_without_a_folder_to_write_to_records_are_handled_all_the_same(settings: Settings) -> None:
    """A read-only file system takes the protection away, not the service."""
    (settings.home / FOLDER).write_text("a file is in the way")
    hand = opened(settings)
    assert hand.take(0, 1, 1) is True
    hand.release()
    hand.close()


@pytest.mark.parametrize("content", [b"", b"RTF", b"RTF1\x01" + b"x" * 8 + b"\x01" * 20, b"\xff" * 500])
def test_a_damaged_file_is_nothing(settings: Settings, content: bytes) -> None:
    """The machine may die, too, and leave anything."""
    hand = opened(settings)
    hand.close()
    for path in (settings.home / FOLDER).iterdir():
        path.write_bytes(content)
        path.with_name(path.name + ".suspects.json").write_bytes(content)
    assert suspects(settings) == {}
