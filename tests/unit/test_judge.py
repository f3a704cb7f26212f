"""The rules of the judge: a run without faults breaks no rule, and each rule finds the faults that it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.judging import (
    ANSWER,
    INGEST,
    LETTERS,
    MESSAGES,
    QUERIES,
    RESPONSES,
    Break,
    KeptRun,
    broken,
    right_run,
    verdict,
)


@pytest.fixture
def run(tmp_path: Path) -> KeptRun:
    """A run without faults, which a test changes and then completes."""
    return right_run(tmp_path / "run")


def test_a_right_run_is_right(run: KeptRun) -> None:
    """A run without faults breaks no rule, although it has an aborted and an open transaction."""
    run.conclude()
    found = verdict(run)
    assert (found.word, found.exit_code, broken(found), found.torn) == ("right", 0, {}, ())
    assert (found.facts["questions"], found.facts["answered"], found.facts["messages"]) == (4, 4, 4)


def cite(run: KeptRun, **citation: str) -> None:
    """Ask and answer one more question, with a citation in the answer."""
    run.ask("c9")
    run.respond("c9", citations=[citation])


def swap(run: KeptRun) -> None:
    """Answer two questions of one key in the wrong order."""
    run.ask("c8", key="same")
    run.ask("c9", key="same")
    run.respond("c9")
    run.respond("c8")


def move_back(run: KeptRun) -> None:
    """Commit three positions, each lower than the one before."""
    for offset in (3, 2, 1):
        run.position(INGEST, MESSAGES, offset)


def undecodable(run: KeptRun) -> None:
    """Add a response with an unknown schema id."""
    run.logs[RESPONSES, 0].append("c0", b"\0\0\0\0\x09", at_ms=run.now_ms, ends="commit")


def forge(run: KeptRun, *, letters: int = 1) -> None:
    """Add an unreadable record, and ``letters`` dead letters of it."""
    run.note("forged", topic=MESSAGES, key="forged-0")
    offset = run.logs[MESSAGES, 0].append("forged-0", b"poison", at_ms=run.now_ms)
    add_dead_letters(run, MESSAGES, offset, letters)


def add_dead_letters(run: KeptRun, topic: str, offset: int, times: int = 1) -> None:
    """Add ``times`` dead letters of one record of partition 0."""
    facts = {"topic": topic, "partition": "0", "offset": str(offset)}
    headers = [(f"__connect.errors.{name}", value.encode()) for name, value in facts.items()]
    for _ in range(times):
        run.logs[LETTERS, 0].append("x", b"x", headers, at_ms=run.now_ms, ends="commit")


def answer_after_deletion(run: KeptRun, *, elapsed_ms: int = 1, **said: Any) -> None:
    """Delete a message, commit the deletion, and answer one more question."""
    run.say("109", "the tulips stand behind the shed")
    run.say("109", "", "DELETED")
    run.position(INGEST, MESSAGES, run.logs[MESSAGES, 0].end)
    run.ask("c9")
    run.respond("c9", elapsed_ms=elapsed_ms, **said)


QUOTE = "They said: the tulips stand behind the shed [1]"

BEFORE: list[tuple[str, str, Break]] = [
    ("answered-once", "has 2 responses", lambda run: run.respond("c0")),
    ("answered-once", "has finished the question, but it has no response", lambda run: run.ask("c9")),
    ("answered-once", "was not asked", lambda run: (run.query("c9"), run.respond("c9"))),
    ("in-order", f"{QUERIES}-0@2 comes after that of offset 3", swap),
    ("visible-only", "citation 1", lambda run: cite(run, channel_id="66", channel_kind="TEXT")),
    (
        "visible-only",
        "citation 1",
        lambda run: cite(run, channel_id="66", channel_kind="PRIVATE_THREAD", parent_channel_id="10"),
    ),
    ("visible-only", "passage p1", lambda run: (run.ask("c9"), run.respond("c9", retrieved=["10", "66"]))),
    ("deleted", "quotes message 109", lambda run: answer_after_deletion(run, answer=QUOTE)),
    (
        "deleted",
        "uses message 109",
        lambda run: answer_after_deletion(run, citations=[{"channel_id": "10", "message_id": "109"}]),
    ),
    ("positions-kept", "moved back from 2 to 1", move_back),
    ("positions-kept", "was removed", lambda run: run.position(INGEST, MESSAGES, None, ends=None)),
    ("positions-kept", "offset 1 was finished", lambda run: run.position(ANSWER, QUERIES, 0)),
    ("positions-kept", "unknown format", lambda run: run.position(ANSWER, QUERIES, 1, "of another program")),
    (
        "dead-letters",
        "unexpected dead letter",
        lambda run: run.logs[LETTERS, 0].append("c0", b"x", at_ms=1, ends="commit"),
    ),
    ("dead-letters", "invalid on purpose has 0 dead letters", lambda run: forge(run, letters=0)),
    ("dead-letters", "invalid on purpose has 2 dead letters", lambda run: forge(run, letters=2)),
    ("asked-first", "not in the topic", lambda run: run.respond("c9")),
    ("decodable", "schema id 9", undecodable),
    (
        "kept",
        f"acknowledged at {QUERIES}-0@7, where there is no record",
        lambda run: run.note("acknowledged", topic=QUERIES, partition=0, offset=7, query_id="c0"),
    ),
    (
        "kept",
        "there is no record of it",
        lambda run: run.note("acknowledged", topic=QUERIES, partition=0, offset=-1, query_id="c9"),
    ),
    (
        "kept",
        f"acknowledged at {QUERIES}-0@0, where c0 is",
        lambda run: run.note("acknowledged", topic=QUERIES, partition=0, offset=0, query_id="c1"),
    ),
    ("kept", "is not what was said", lambda run: run.line("said").update(content="other")),
]


@pytest.mark.parametrize(("rule", "what", "change"), BEFORE)
def test_each_rule_finds_a_fault_of_the_run(run: KeptRun, rule: str, what: str, change: Break) -> None:
    """Each rule finds a fault in the content of Kafka's files."""
    change(run)
    run.conclude()
    found = verdict(run)
    assert (found.word, found.exit_code) == ("wrong", 1)
    assert any(what in said for said in broken(found)[rule]), broken(found)


def archive(run: KeptRun, number: str, **fields: object) -> None:
    """Change the row of a message in the archive."""
    run.line("archived", lambda line: line["message_id"] == number).update(fields)


def invent(run: KeptRun) -> None:
    """Add a row to the archive."""
    run.lines.insert(-1, run.line("archived") | {"message_id": "900"})


def read_nothing(run: KeptRun) -> None:
    """Remove all records that a reader got."""
    run.lines = [line for line in run.lines if line["event"] != "seen"]


def forget(run: KeptRun, event: str) -> None:
    """Remove the first line of ``event`` from the history."""
    run.lines.remove(run.line(event))


def repeat(run: KeptRun, event: str) -> None:
    """Write the first line of ``event`` twice."""
    run.lines.insert(run.lines.index(found := run.line(event)), found)


AFTER: list[tuple[str, str, Break]] = [
    ("archived", "does not have the last change", lambda run: archive(run, "101", content="text 1")),
    ("archived", "does not have the last change", lambda run: archive(run, "102", deleted=False, content="text 2")),
    ("archived", "does not have the last change", lambda run: archive(run, "102", content="text 2")),
    ("archived", "does not have the last change", lambda run: archive(run, "100", channel_id="11")),
    ("archived", "is not in the archive", lambda run: forget(run, "archived")),
    ("archived", "not in the topic", invent),
    ("read-right", f"did not get {RESPONSES}-0@2", lambda run: forget(run, "seen")),
    ("read-right", f"got {RESPONSES}-0@2 twice", lambda run: repeat(run, "seen")),
    ("read-right", "which is aborted", lambda run: run.line("seen").update(offset=0)),
    ("read-right", "which does not exist", lambda run: run.line("seen").update(offset=1)),
    ("read-right", "with the key 'c7'", lambda run: run.line("seen").update(key="c7")),
    ("read-right", "no reader read", read_nothing),
    ("read-right", "after 4", lambda run: run.lines.insert(-1, run.lines.pop(run.lines.index(run.line("seen"))))),
]


@pytest.mark.parametrize(("rule", "what", "change"), AFTER)
def test_each_rule_finds_a_fault_in_the_results(run: KeptRun, rule: str, what: str, change: Break) -> None:
    """Each rule finds a difference of Kafka's files from the records that a reader got or from the archive."""
    run.conclude()
    change(run)
    found = verdict(run)
    assert list(broken(found)) == [rule]
    assert any(what in said for said in broken(found)[rule]), broken(found)


def test_an_answer_that_was_begun_before_the_deletion_was_committed_may_quote_it(run: KeptRun) -> None:
    """An answer that was begun before a deletion was committed may quote the deleted message.

    The processor could not have known of the deletion.
    """
    answer_after_deletion(run, answer=QUOTE, elapsed_ms=60)
    run.conclude()
    assert broken(verdict(run)) == {}


def test_a_response_older_than_its_question_is_found(run: KeptRun) -> None:
    """A response that is older than its question breaks a rule."""
    run.ask("c9")
    run.now_ms -= 1000
    run.respond("c9")
    run.now_ms += 1000
    run.conclude()
    assert broken(verdict(run)) == {"asked-first": ["a response is older than its question"]}


def test_an_example_names_the_records_of_a_duplicate(run: KeptRun) -> None:
    """An example of a duplicate names the question and both responses, in JSON and in text.

    Each of these records is given with its place, time, producer and transaction.
    """
    run.respond("c0", producer=12)
    run.conclude()
    found = verdict(run)
    report = json.loads(json.dumps(found.as_json()))
    (example,) = next(rule for rule in report["rules"] if rule["name"] == "answered-once")["examples"]
    assert example["id"] == "c0"
    assert [(r["topic"], r["partition"], r["offset"], r["producer_id"]) for r in example["records"]] == [
        (QUERIES, 0, 0, -1),
        (RESPONSES, 0, 2, 7),
        (RESPONSES, 0, 6, 12),
    ]
    assert [r["transaction"] for r in example["records"]] == ["not transactional", "committed", "committed"]
    assert all(r["time"].startswith("2023-11-14T") for r in example["records"])
    assert f"{RESPONSES}-0@6" in found.as_text()
    assert "producer 12 epoch 0  committed by marker 7" in found.as_text()


def test_only_five_examples_of_a_rule_are_shown(run: KeptRun) -> None:
    """Of many violations of a rule, five examples and the total number are shown."""
    for number in range(8):
        run.respond(f"x{number}")
    run.conclude()
    found = verdict(run)
    assert {(r.broken, len(r.examples)) for r in found.rulings if r.broken} == {(8, 5)}
    assert "and 3 more" in found.as_text()


def test_an_acknowledgement_may_come_without_an_offset(run: KeptRun) -> None:
    """An acknowledgement may have no offset.

    A producer that sends a record again does not learn the offset of the copy that the broker already had.
    """
    run.line("acknowledged").update(offset=-1)
    run.conclude()
    assert broken(verdict(run)) == {}


def test_two_records_of_one_question_count_once(run: KeptRun) -> None:
    """Two records of one question count as one, because producers send again after a lost acknowledgement."""
    run.query("c0")
    run.conclude()
    assert broken(verdict(run)) == {}


def test_a_tool_may_move_positions_back(run: KeptRun) -> None:
    """A tool may move positions back; for each such move, a question may be answered once more."""
    run.position(ANSWER, QUERIES, 2)
    run.note("tool", what="reset-offsets", group=ANSWER)
    run.position(ANSWER, QUERIES, 1, ends=None)
    run.respond("c2")
    run.conclude()
    assert broken(verdict(run)) == {}


def test_a_tool_allows_no_more_than_it_did(run: KeptRun) -> None:
    """A tool's move of positions excuses no other group, no later fault, and no question outside the moved range."""
    run.position(ANSWER, QUERIES, 2)
    run.position(INGEST, MESSAGES, 3)
    run.note("tool", what="reset-offsets", group=ANSWER)
    run.position(ANSWER, QUERIES, 1, ends=None)
    run.position(INGEST, MESSAGES, 2)
    run.respond("c0")
    run.position(ANSWER, QUERIES, 2)
    run.now_ms += 60_000
    run.position(ANSWER, QUERIES, 1)
    run.conclude()
    assert broken(verdict(run)) == {
        "answered-once": ["the question has 2 responses"],
        "positions-kept": ["the position moved back from 3 to 2", "the position moved back from 2 to 1"],
    }


def test_a_forged_record_has_one_dead_letter(run: KeptRun) -> None:
    """If a run adds an invalid record on purpose, the record must have one dead letter.

    The record counts as neither message nor question. As long as the record is unfinished, its dead letter may be
    missing.
    """
    forge(run)
    run.conclude()
    run.note("forged", topic=MESSAGES, key="forged-1")
    run.lines.insert(-1, run.lines.pop())
    run.logs[MESSAGES, 0].append("forged-1", b"poison", at_ms=run.now_ms)
    assert broken(verdict(run)) == {}


def test_unfinished_records_break_no_rule_unless_the_run_settled(tmp_path: Path) -> None:
    """Unfinished records break a rule only if the run settled, because a slow run is not a wrong run."""
    for is_settled in (False, True):
        run = right_run(tmp_path / str(is_settled))
        run.conclude()
        run.lines.insert(-1, run.lines.pop(run.lines.index(run.line("settled"))) | {"ok": is_settled})
        end = run.lines.pop()
        run.ask("c9")
        run.say("109", "late")
        run.say("100", "late, too", "EDITED")
        run.lines.append(end)
        found = verdict(run)
        assert ("finished" in broken(found), found.word) == (is_settled, "wrong" if is_settled else "right")
        assert found.unfinished == ({} if is_settled else {"questions": 1, "messages": 2})
        assert ("unfinished, because the run did not settle" in found.as_text()) is not is_settled
