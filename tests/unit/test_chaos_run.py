"""Pace, verdict and history of a chaos run, and the reports on a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rtfm.errors import ConfigError
from tests.chaos import table
from tests.chaos.evidence import EXIT_CODES, verdict
from tests.chaos.history import History
from tests.chaos.pace import (
    EASY_S,
    FULL_S,
    LEAST_SHARE,
    SETTLE_MOST_S,
    SETTLE_S,
    BacklogReading,
    settle_limit_s,
    share_for,
)
from tests.chaos.report import MOST_POINTS, page, round_step, thinned
from tests.chaos.samples import Sample, Use, growth


def reading(backlog: int, per_s: float) -> BacklogReading:
    """Return a reading with ``backlog`` records that are not committed."""
    return BacklogReading(produced=1000 + backlog, committed=1000, per_s=per_s)


def test_a_backlog_slows_the_load_and_never_stops_it() -> None:
    """Up to a backlog of ten seconds, the load is full; from forty seconds on, the load is at its smallest."""
    assert share_for(0) == share_for(EASY_S) == 1
    assert LEAST_SHARE < share_for((EASY_S + FULL_S) / 2) < 1
    assert share_for(FULL_S) == share_for(1000) == LEAST_SHARE


def test_a_backlog_is_measured_in_seconds_of_commits() -> None:
    """A backlog is measured as the time to commit it; if nothing is committed, a backlog counts as forty seconds."""
    assert reading(100, 20).backlog_s == 5
    assert reading(0, 0).backlog_s == 0
    assert reading(5, 0).backlog_s == FULL_S


def test_settling_may_take_as_long_as_the_backlog_needs() -> None:
    """A run may take three times its backlog to settle, plus a minute for restarts, up to a maximum."""
    assert settle_limit_s({}) == SETTLE_S
    assert settle_limit_s({"a": reading(100, 10), "b": reading(0, 10)}) == SETTLE_S + 30
    assert settle_limit_s({"a": reading(10_000, 10)}) == SETTLE_MOST_S


@pytest.mark.parametrize(
    ("wrong", "settled", "judged", "expected"),
    [
        (False, True, 0, "right"),
        (False, True, 2, "not judged"),
        (False, True, 1, "wrong"),
        (True, True, 0, "wrong"),
        (False, False, 0, "not settled"),
        (True, False, 0, "wrong"),
        (False, False, 1, "wrong"),
    ],
)
def test_a_slow_run_is_not_a_wrong_run(wrong: bool, settled: bool, judged: int, expected: str) -> None:
    """A run that did not settle is wrong only if the judge or the run itself finds an error."""
    found = verdict(wrong=wrong, settled=settled, judged=judged)
    assert found == expected
    assert EXIT_CODES[found] == {"right": 0, "not judged": 2}.get(expected, 1)


def test_a_history_is_json_lines_with_times_and_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """A history consists of JSON lines with times, and a second run in the same folder is refused."""
    history = History(tmp_path / "run")
    history.write("asked", query_id="c1")
    history.close()
    history.write("late")
    with pytest.raises(ConfigError, match="one folder holds one run"):
        History(tmp_path / "run")
    (line,) = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found.pop("at_ms") > 1_700_000_000_000
    assert found == {"event": "asked", "query_id": "c1"}


def test_a_recorded_run_is_a_row_of_the_table(tmp_path: Path) -> None:
    """The row of a run has the columns of docs/chaos-runs.md, and does not count restarts of workers as actions."""
    page = tmp_path / "runs.md"
    page.write_text(table.TABLE.read_text())
    line = {"commit": "abc", "seed": 7, "seconds": 120.0, "load": 8, "asked": 900, "verdict": "right", "slow": True}
    table.add({**line, "actions": {"kill": 3, "freeze": 2, "revived": 4}}, page)
    assert re.search(r"\n\| \d{4}-\d\d-\d\d \| abc \| 7 \| 120 \| 8 \| 5 \| 900 \| right, slow \|\n$", page.read_text())
    assert f"| {' | '.join(table.COLUMNS)} |" in page.read_text()


def samples(pid_changes_at: int = 10_000) -> list[Sample]:
    """Return samples of two hours of a worker.

    The worker's start takes five minutes. After the start, its memory grows by 10 MB an hour. The numbers of its
    threads and handles grow by 2 and 4 an hour from the beginning. The process id changes at sample
    ``pid_changes_at``.
    """
    found = []
    for number in range(1441):
        at_s = number * 5.0
        hours = at_s / 3600
        use = Use(
            pid=1 + (number >= pid_changes_at),
            memory_mb=100 + 10 * hours if at_s >= 300 else at_s,
            threads=round(20 + 2 * hours),
            handles=round(50 + 4 * hours),
        )
        found.append(
            Sample(
                at_s=at_s,
                processes={"w1": use},
                lag={"bot-queries": number % 7},
                disk_mb={"kafka": at_s},
                load_average=1.5,
                share=1.0,
            )
        )
    return found


def test_growth_is_by_the_hour_over_the_longest_life_without_its_start() -> None:
    """Growth is measured by the hour over the longest life of a process, without the minutes of its start.

    If samples from before and after a restart were compared, the restart would look like freed memory.
    """
    grown = growth(samples())["w1"]
    assert grown.memory_mb_per_h == pytest.approx(10, abs=0.2)
    assert grown.threads_per_h == pytest.approx(2, abs=0.2)
    assert grown.handles_per_h == pytest.approx(4, abs=0.2)
    assert growth(samples(pid_changes_at=1000))["w1"].lived_s == 999 * 5


def test_a_report_is_one_self_contained_page() -> None:
    """A report is one page with seven charts. The page needs no other files, and its text is escaped."""
    found = samples(pid_changes_at=1000)
    told = page("Soak <run>", {"verdict": "right", "asked": 5}, found, growth(found))
    assert told.count("<svg") == 7
    assert "Soak &lt;run&gt;" in told
    assert not re.search(r"(src|href)=|https?://|@import", told)
    assert len(told) < 200_000


def test_a_report_of_a_run_that_ended_at_once_says_so() -> None:
    """The report of a run without samples says that there are none."""
    assert "no samples" in page("Soak", {"verdict": "failed"}, [], {})


def test_a_thinned_line_keeps_its_peaks() -> None:
    """If a line of five thousand points is reduced to fewer points, a peak of a single point stays."""
    points = [(float(number), 1.0 if number == 2345 else 0.0) for number in range(5000)]
    assert len(thinned(points)) == MOST_POINTS
    assert (2345.0, 1.0) in thinned(points)


@pytest.mark.parametrize(("least", "step"), [(0, 0.1), (0.15, 0.2), (3, 5), (70, 100), (101, 200)])
def test_axes_have_round_steps(least: float, step: float) -> None:
    """The steps of an axis are 1, 2 or 5 times a power of ten."""
    assert round_step(least) == pytest.approx(step)
