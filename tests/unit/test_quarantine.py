"""The record that is blamed for a crash. The tests fork processes that really crash."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rtfm.settings import Settings
from rtfm.streams.position import PartitionState
from rtfm.streams.quarantine import FATAL_CRASHES, CrashJournal
from tests.streams import eventually

Suspect = tuple[str, int, int]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "crash-journals" / "processor@one"


def start_handling(journal: CrashJournal, *handled: tuple[str, int, int, int]) -> None:
    """Start handling the records, each in its own thread, and do not finish."""
    for place in handled:
        thread = threading.Thread(target=journal.begin, args=place)
        thread.start()
        thread.join()


def crash_while_handling(
    file: Path, *handled: tuple[str, int, int, int], then: Callable[[CrashJournal], object] = lambda _: None
) -> None:
    """Run a process that starts handling the records, calls ``then``, and crashes without running any except clause."""
    pid = os.fork()
    if pid == 0:
        try:
            journal = CrashJournal(file)
            journal.__enter__()
            start_handling(journal, *handled)
            then(journal)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def suspects(file: Path) -> dict[Suspect, int]:
    """Return the suspects that the next process reads from ``file``, each with the crashes that count for it."""
    with CrashJournal(file) as journal:
        return dict(journal.suspects)


def assigned_partition(number: int, *unfinished: int, committed: int = 0) -> PartitionState:
    """Return a partition with ``unfinished`` records above the committed offset."""
    part = PartitionState(number, start=committed, committed=committed, end=committed)
    for offset in unfinished:
        part.admit(offset)
    return part


def test_all_that_was_being_handled_is_suspected_and_nothing_of_it_is_blamed(file: Path) -> None:
    """All records that were being handled in a crash are suspects, and the crash counts for none of them.

    Any of them may be the cause, the records of a batch as well as the single record of another pipeline.
    """
    crash_while_handling(file, ("g", 0, 5, 7), ("other group", 2, 40, 40))
    assert suspects(file) == {("g", 0, 5): 0, ("g", 0, 6): 0, ("g", 0, 7): 0, ("other group", 2, 40): 0}


def test_crashes_while_other_records_were_handled_never_count(file: Path) -> None:
    """R20: Crashes count for no record if several records were being handled."""
    for offset in range(0, 50, 10):
        crash_while_handling(file, ("g", 0, offset, offset + 2), ("h", 1, 7, 7))
    assert set(suspects(file).values()) == {0}
    assert len(suspects(file)) == 16


def test_only_crashes_while_one_suspect_was_handled_count(file: Path) -> None:
    """R20: Crashes count for a suspect if it alone was being handled."""
    crash_while_handling(file, ("g", 0, 5, 5), ("g", 0, 6, 6))
    for crashes in range(1, FATAL_CRASHES + 1):
        crash_while_handling(file, ("g", 0, 5, 5))
        assert suspects(file) == {("g", 0, 5): crashes, ("g", 0, 6): 0}


def test_a_shutdown_blames_no_record(file: Path) -> None:
    """A shutdown makes no record a suspect, even if SIGKILL follows SIGTERM."""
    crash_while_handling(file, ("g", 0, 5, 9), then=lambda journal: journal.note_shutdown())
    assert suspects(file) == {}
    with CrashJournal(file) as journal:
        start_handling(journal, ("g", 0, 5, 5))
    assert suspects(file) == {}


def test_records_finished_before_the_crash_are_not_suspects(file: Path) -> None:
    """Records that were finished before a crash are not suspects."""

    def work(journal: CrashJournal) -> None:
        for offset in range(100):
            journal.begin("g", 0, offset, offset)
            journal.finish()

    crash_while_handling(file, then=work)
    assert suspects(file) == {}


def test_an_unhandled_exception_counts_as_a_crash_of_its_record(file: Path) -> None:
    """An unhandled exception of a handler counts as a crash of its record, and the fourth such crash is fatal.

    An exception for a batch makes all records of the batch suspects, and counts for none of them.
    """
    with CrashJournal(file) as journal:
        assert journal.count_defect("g", 0, 5, 6) is False
    for _ in range(FATAL_CRASHES - 1):
        with CrashJournal(file) as journal:
            assert journal.count_defect("g", 0, 5, 5) is False
    assert suspects(file) == {("g", 0, 5): FATAL_CRASHES - 1, ("g", 0, 6): 0}
    with CrashJournal(file) as journal:
        assert journal.count_defect("g", 0, 5, 5) is True
        assert [journal.count_defect("g", 1, 9, 9) for _ in range(4)] == [False, False, False, True]


def test_a_crash_is_counted_once_even_if_the_next_start_crashes(file: Path) -> None:
    """A crash is counted once, even if the next process crashes at its start.

    The new count and the note that the crash was counted are written together.
    """
    crash_while_handling(file, ("g", 0, 5, 5))
    crash_while_handling(file, ("g", 0, 5, 5))
    crash_while_handling(file)
    assert suspects(file) == {("g", 0, 5): 1}


def test_suspects_are_tried_one_by_one_until_they_are_finished(file: Path) -> None:
    """The quarantine lasts as long as this process has an unfinished suspect, and then ends."""
    crash_while_handling(file, ("g", 0, 5, 6), ("h", 1, 7, 7))
    with CrashJournal(file) as journal:
        assert not journal.is_active  # no partition of a suspect is assigned
        part = assigned_partition(0, 5, 6)
        journal.review("g", [part])
        assert journal.is_active
        part.finish(5)
        part.finish(6)
        journal.review("g", [part])
        assert not journal.is_active
        assert journal.suspects == {("h", 1, 7): 0}


def test_records_that_another_processor_finished_are_no_longer_suspects(file: Path) -> None:
    """Records that another processor finished are no suspects any more.

    The group's position shows this when the partition is assigned to this process again.
    """
    crash_while_handling(file, ("g", 0, 5, 8), ("g", 1, 5, 5))
    with CrashJournal(file) as journal:
        journal.review("g", [assigned_partition(0, committed=9), assigned_partition(1, 5)])
        assert journal.suspects == {("g", 1, 5): 0}
    assert suspects(file) == {("g", 1, 5): 0}


def test_a_fatal_record_stays_known_until_its_dead_letter_is_committed(file: Path) -> None:
    """A fatal record stays in the journal until its dead letter is committed.

    Otherwise, after a crash before this commit, the next process would handle the record again.
    """
    crash_while_handling(file, ("g", 0, 5, 5))
    for _ in range(FATAL_CRASHES):
        crash_while_handling(file, ("g", 0, 5, 5))
    part = assigned_partition(0, 5)
    part.finish(5)
    with CrashJournal(file) as journal:
        journal.review("g", [part])
        assert journal.count_crashes("g", 0, 5) == FATAL_CRASHES
        part.committed = 6
        journal.review("g", [part])
        assert journal.suspects == {}


def test_with_an_unfinished_suspect_the_process_handles_one_record_at_a_time(file: Path) -> None:
    """While a suspect is unfinished, the process handles one record at a time, in all its pipelines together."""
    crash_while_handling(file, ("g", 0, 5, 5))
    with CrashJournal(file) as journal:
        journal.review("g", [assigned_partition(0, 5)])
        journal.begin("g", 0, 5, 5)
        began = threading.Event()

        def handle() -> None:
            journal.begin("h", 2, 1, 1)
            began.set()
            journal.finish()

        other = threading.Thread(target=handle)
        other.start()
        assert not began.wait(0.3)
        journal.finish()
        other.join(20)
        assert began.is_set()


def test_a_service_that_stops_waits_for_no_turn(file: Path) -> None:
    """When the service stops, a thread that waits for its turn gives up; its record is read again at the next start."""
    crash_while_handling(file, ("g", 0, 5, 5))
    with CrashJournal(file) as journal:
        journal.review("g", [assigned_partition(0, 5)])
        journal.begin("g", 0, 5, 5)
        answers: list[bool] = []
        other = threading.Thread(target=lambda: answers.append(journal.begin("h", 2, 1, 1)))
        other.start()
        journal.note_shutdown()
        eventually(lambda: answers == [False])
        other.join(20)


def test_more_threads_than_lines_in_the_file_work(file: Path) -> None:
    """The journal works with more threads than it has lines."""
    with CrashJournal(file) as journal:
        for number in range(300):
            start_handling(journal, ("g", 0, number, number))


def test_records_are_handled_without_a_writable_folder(file: Path) -> None:
    """If the folder cannot be written, the journal does nothing, and records are handled."""
    file.parent.write_text("a file is in the way")
    with CrashJournal(file) as journal:
        assert journal.begin("g", 0, 1, 1) is True
        journal.finish()


@pytest.mark.parametrize("content", [b"", b"R", b"R" + b"g 0 1 1\n" * 5000, b"\xff" * 50_000])
def test_a_damaged_file_is_ignored(file: Path, content: bytes) -> None:
    """A damaged journal, as a crash of the machine may leave it, is ignored."""
    assert suspects(file) == {}
    file.write_bytes(content)
    assert suspects(file) == {}


def test_each_service_and_instance_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Each service and instance has its own journal, and no instance id leads out of the folder."""
    journal = CrashJournal.of(Settings(home=tmp_path, instance_id="pod/../1"), "bot")
    with journal:
        pass
    assert [path.name for path in (tmp_path / "crash-journals").iterdir()] == ["bot%40pod%2F..%2F1"]
