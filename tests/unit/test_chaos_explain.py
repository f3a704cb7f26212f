"""The explanation of a question that was answered twice, for a run made by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.chaos import explain
from tests.judging import ANSWER, PRODUCER, QUERIES, RESPONSES, KeptRun, right_run, text

NAME = f"{ANSWER}-w1"


def story_of(run: KeptRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Return the explanation that is printed for ``run``; fails unless the exit code is 0."""
    run.write()
    monkeypatch.setattr("sys.argv", ["explain", str(run.folder), *more])
    assert explain.main() == 0
    return capsys.readouterr().out


@pytest.fixture
def run(tmp_path: Path) -> KeptRun:
    """A run in which worker w1 is killed, its partition's position is lost, and question c1 gets a second response."""
    run = right_run(tmp_path / "run")
    run.logs["__transaction_state", 0].append(
        struct.pack(">h", 0) + text(NAME), struct.pack(">hqh", 0, PRODUCER, 0), at_ms=run.now_ms
    )
    run.note("action", name="kill", phase="begin", target="w1")
    run.note("worker", name="w1", pid=5, phase="exit", code=-9)
    run.note("action", name="kill", phase="end", target="w1", seconds=0.1)
    run.position(ANSWER, QUERIES, 1, partition=1)
    run.position(ANSWER, QUERIES, 0, partition=1)
    run.respond("c1", partition=1)
    run.conclude()
    logs = run.folder / "logs"
    logs.mkdir(parents=True)
    line = {"level": "warning", "event": "no position", "timestamp": "2023-11-14T22:13:21.000000Z"}
    (logs / "w1-1.log").write_text(json.dumps(line) + "\n")
    return run


def test_the_story_of_a_duplicate_shows_both_responses_and_their_workers(
    run: KeptRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The explanation shows both responses with place, time, producer id, epoch and transactional id.

    The transactional id names the worker.
    """
    told = story_of(run, monkeypatch, capsys)
    assert "c1: 2 committed responses" in told
    responses = [line for line in told.splitlines() if line.startswith(f"  {RESPONSES}-1@")]
    assert len(responses) == 2
    assert all(f"producer {PRODUCER} epoch 0 ({NAME})" in line and "committed by marker" in line for line in responses)


def test_the_story_of_a_duplicate_shows_when_its_question_became_unfinished_again(
    run: KeptRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The explanation shows, in order, the kill, the worker's end and the lost position, and also the worker's log."""
    told = story_of(run, monkeypatch, capsys)
    happened = told.partition("Timeline")[2]
    order = [happened.index(what) for what in ("name kill", "code -9", "UNFINISHED AGAIN")]
    assert order == sorted(order)
    assert "no position" in told.partition("Worker logs at these times")[2]


def test_a_question_without_an_answer_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no question has two answers, a question without an answer is explained."""
    run = right_run(tmp_path / "run")
    run.ask("c9")
    run.conclude()
    told = story_of(run, monkeypatch, capsys)
    assert "c9: 0 committed responses" in told
    assert "the question is finished: position" in told


def test_any_question_of_a_right_run_can_be_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--id`` explains a question that was answered once, including its aborted transaction."""
    run = right_run(tmp_path / "run")
    run.conclude()
    assert "Every question was answered once" in story_of(run, monkeypatch, capsys)
    monkeypatch.setattr("sys.argv", ["explain", str(run.folder), "--id", "c0"])
    assert explain.main() == 0
    told = capsys.readouterr().out
    assert "c0: 1 committed responses" in told
    assert "aborted by marker" in told


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without a run is refused in one line."""
    monkeypatch.setattr("sys.argv", ["explain", str(tmp_path)])
    assert explain.main() == 2
    assert capsys.readouterr().err.startswith("Error: there is no history.jsonl")
