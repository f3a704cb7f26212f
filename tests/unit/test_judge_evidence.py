"""The files that the judge needs: a run with incomplete or mixed files is not judged. Also the judge's command."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.judge.__main__ import main
from tests.judge.verdict import judge
from tests.judging import (
    ANSWER,
    LETTERS,
    MESSAGES,
    OFFSETS,
    QUERIES,
    RESPONSES,
    Break,
    KeptRun,
    batch,
    broken,
    record,
    right_run,
    verdict,
)

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "tests" / "judge"


@pytest.fixture
def run(tmp_path: Path) -> KeptRun:
    """A run without faults, which a test changes and completes."""
    return right_run(tmp_path / "run")


def test_records_after_an_open_transaction_are_not_expected(run: KeptRun) -> None:
    """A reader need not have got the records after an open transaction, because these records are not visible yet."""
    run.conclude()
    run.logs[RESPONSES, 0].append("x", b"", at_ms=0, ends="open", producer=9)
    run.ask("c9")
    run.lines.append(run.lines.pop(next(n for n, line in enumerate(run.lines) if line["event"] == "end")))
    run.respond("c9")
    run.position(ANSWER, QUERIES, 3)
    assert broken(verdict(run)) == {}


def test_a_torn_tail_is_reported_and_breaks_no_rule(run: KeptRun) -> None:
    """An incomplete batch at the end of a segment is reported, and breaks no rule.

    A killed broker leaves such a batch, and removes it at its next start.
    """
    run.conclude()
    log = run.logs[LETTERS, 1]
    log.segment = batch(0, [record(b"k", b"v")])[:-1]
    found = verdict(run)
    assert broken(found) == {}
    assert [f"{LETTERS}-1" in torn for torn in found.torn] == [True]


def without_newline(run: KeptRun) -> None:
    """Cut off the end of the last line of the history."""
    path = run.folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-9])


def remove(run: KeptRun, name: str) -> None:
    """Remove a folder of Kafka's data."""
    path = run.folder / "kafka" / name
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def flip_a_bit(run: KeptRun) -> None:
    """Change one bit in the middle of a segment."""
    path = run.folder / "kafka" / f"{QUERIES}-0" / f"{0:020}.log"
    data = bytearray(path.read_bytes())
    data[80] ^= 1
    path.write_bytes(data)


def topic_id(run: KeptRun, number: int, name: str) -> None:
    """Give a partition a topic id."""
    path = run.folder / "kafka" / f"{QUERIES}-{number}" / "partition.metadata"
    path.write_text(f"version: 0\ntopic_id: {name}")


def give_ids(run: KeptRun) -> None:
    """Give two partitions of one topic different topic ids."""
    topic_id(run, 0, "one")
    topic_id(run, 1, "two")


def metadata(run: KeptRun, *values: bytes) -> None:
    """Write Kafka's metadata log with ``values``."""
    path = run.folder / "kafka" / "__cluster_metadata-0" / f"{0:020}.log"
    path.parent.mkdir()
    path.write_bytes(b"".join(batch(n, [record(None, value)]) for n, value in enumerate(values)))


def topic_record(number: int) -> bytes:
    """Return a TopicRecord of bot-queries with the topic id ``number``."""
    return b"\x01\x02\x00" + bytes([len(QUERIES) + 1]) + QUERIES.encode() + bytes([number]) * 16 + b"\0"


def remove_topic_record(number: int) -> bytes:
    """Return a RemoveTopicRecord of the topic id ``number``."""
    return b"\x01\x09\x00" + bytes([number]) * 16 + b"\0"


LINES: list[tuple[str, Break]] = [
    ("cut off: it has no end", lambda run: run.lines.pop()),
    ("its beginning is missing", lambda run: run.lines.pop(0)),
    ("more than one run", lambda run: run.lines.insert(5, run.lines[0])),
    ("more than one run", lambda run: run.lines.append(run.lines[3])),
    ("two runs", lambda run: run.lines[3].update(run="cd34")),
    ("format 2", lambda run: run.lines[0].update(format=2)),
    ("the run failed", lambda run: run.lines[-1].update(ok=False, failure="no room")),
    ("asked: query_id is missing", lambda run: run.line("asked").pop("query_id")),
    ("topics has no messages", lambda run: run.lines[0]["topics"].pop("messages")),
    ("ordered_by_key names", lambda run: run.lines[0]["ordered_by_key"].append(MESSAGES)),
    ("schema 1 of the history", lambda run: run.lines[0]["schemas"].update({"1": {"type": "nothing"}})),
    ("lacks offsets 0 to 4", lambda run: setattr(run.logs[LETTERS, 0], "segment", batch(5, [record(b"k", b"v")]))),
    (f"folders of {OFFSETS} are missing", lambda run: run.logs.pop((OFFSETS, 3))),
    ("is cut off in line", without_newline),
    ("not JSON", lambda run: (run.folder / "history.jsonl").write_text('{"at_ms": 1,\n')),
    ("is empty", lambda run: (run.folder / "history.jsonl").write_text("")),
    ("there is no history.jsonl", lambda run: (run.folder / "history.jsonl").unlink()),
    ("Kafka's data is missing", lambda run: (run.folder / "kafka").rename(run.folder / "other")),
    (f"{QUERIES}-1 is missing", lambda run: remove(run, f"{QUERIES}-1")),
    ("was deleted during the run", lambda run: (run.folder / "kafka" / f"{QUERIES}-0.{'0af3' * 8}-delete").mkdir()),
    ("is unreadable at byte 0", flip_a_bit),
    ("created again", give_ids),
    ("created again", lambda run: metadata(run, topic_record(1), topic_record(2))),
    ("was deleted during the run", lambda run: metadata(run, topic_record(1), remove_topic_record(1))),
]


@pytest.mark.parametrize(("reason", "change"), LINES)
def test_an_incomplete_run_is_not_judged(run: KeptRun, reason: str, change: Break) -> None:
    """A run with incomplete files is not judged: one line gives the reason, and no rule is checked."""
    run.conclude()
    if LINES.index((reason, change)) < 13:
        change(run)
        run.write()
    else:
        run.write()
        change(run)
    found = judge(run.folder)
    assert (found.word, found.exit_code, found.rulings) == ("not judged", 2, ())
    assert reason in (found.reason or "")
    assert len(found.as_text().splitlines()) == 1


def test_the_deletion_of_another_topic_is_ignored(run: KeptRun) -> None:
    """The deletion of another topic is ignored, even if its name begins with that of a judged topic."""
    run.conclude()
    run.write()
    metadata(run, topic_record(1), b"\x01\x02\x00\x02x" + bytes([2]) * 16 + b"\0", remove_topic_record(2))
    (run.folder / "kafka" / f"{QUERIES}-old-0").mkdir()
    assert judge(run.folder).word == "right"


@pytest.mark.parametrize(("change", "code"), [(lambda _: 0, 0), (lambda run: run.respond("c0"), 1)])
def test_the_program_writes_and_prints_the_verdict(
    run: KeptRun, capsys: pytest.CaptureFixture[str], change: Break, code: int
) -> None:
    """The command writes verdict.json, and exits with 0 for a right run and 1 for a wrong one.

    --json prints the content of verdict.json.
    """
    change(run)
    run.conclude()
    folder = run.write()
    assert main([str(folder)]) == code
    written = (folder / "verdict.json").read_text()
    assert capsys.readouterr().out.startswith(found := json.loads(written)["verdict"])
    assert found == ("right", "wrong")[code]
    assert main([str(folder), "--json"]) == code
    assert capsys.readouterr() == (written, "")


def test_the_program_does_not_judge_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """For a missing folder, the command prints one line and exits with 2."""
    command = [sys.executable, "-m", "tests.judge", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("not judged: there is no history.jsonl")
    assert len(done.stdout.splitlines()) == 1


def test_the_judge_shares_no_code_with_what_it_judges() -> None:
    """No file of the judge imports rtfm or other tests, and importing the judge loads neither rtfm nor rtfm_cli."""
    allowed = {"tests", "cramjam", "numpy", "attrs", "fastavro", *sys.stdlib_module_names}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in allowed, f"{path.name} imports {name}"
                assert not name.startswith("tests") or name.startswith("tests.judge"), f"{path.name} imports {name}"
    look = (
        "import sys, tests.judge.__main__;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('rtfm', 'rtfm_cli')))"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
