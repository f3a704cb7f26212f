"""``make chaos-explain DIR=…``: explain why a question of a kept run has two answers, or none.

The output consists of

- the question's record
- every response, with its transaction
- the positions that the group committed for the question's partition, and which worker committed each of them
- the actions and the starts and ends of workers, around the times of the question, the responses and these positions
- lines from the logs of the workers around the same times.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.chaos.history import HISTORY_FILE
from tests.judge.evidence import LoadedRun, load
from tests.judge.finished import FinishedOffsets
from tests.judge.history import NotJudged
from tests.judge.positions import PositionCommit
from tests.judge.segments import Record, partitions, read_partition

TRANSACTIONS = "__transaction_state"
POSITIONS_SHOWN = 3
"""This many positions are shown before and after the question, its responses and the changes of its state."""

AROUND_MS = 5_000
"""The timeline begins this many milliseconds before its first record or position, and ends as long after its last."""

LOG_AROUND_MS, LOG_LINES = 2_000, 60
_WARNING_LEVELS = ("warning", "error", "critical")
_KEYWORDS = ("assign", "revok", "fenc", "rejoin", "abort", "transaction", "position", "offset", "stopp", "starting")


@frozen(order=True)
class TimelineEntry:
    """An event of the run, with its time."""

    at_ms: int
    what: str


class Story:
    """The explanation of what happened to one question of a kept run."""

    def __init__(self, folder: Path, run: LoadedRun, query_id: str) -> None:
        self._folder = folder
        self._run = run
        self._query_id = query_id
        self._lines = list(_history(folder))
        self._names = producer_names(folder / "kafka")
        self._query = next((event.record for event in run.queries.get(query_id, [])), None)

    def lines(self) -> Iterator[str]:
        """Yield the explanation line by line."""
        begin, responses = self._run.begin, self._responses()
        visible = sum(record.is_visible for record in responses)
        yield f"run {begin.run}, commit {begin.commit}, seed {begin.seed}"
        yield f"{self._query_id}: {visible} committed responses"
        yield from self._section(
            "The question's record",
            [self._record(self._query)] if self._query else ["The topic does not hold the question."],
        )
        lines = [line for line in self._lines if line.get("query_id") == self._query_id]
        yield from (f"  {_time(line['at_ms'])}  {line['event']}  {_rest(line)}" for line in lines)
        yield from self._section("Its responses, including aborted ones", map(self._record, responses))
        entries = [TimelineEntry(record.timestamp_ms, f"response {self._record(record)}") for record in responses]
        if self._query is not None:
            entries.append(TimelineEntry(self._query.timestamp_ms, "the question was produced"))
            entries += self._state_changes()
            yield from self._section(
                f"Positions of {self._run.begin.groups['answer']} in {_place(self._query)}", self._positions(entries)
            )
        yield from self._section("Timeline", self._timeline(entries))
        yield from self._section("Worker logs at these times", self._log_entries(entries))

    def _section(self, title: str, lines: Iterable[str]) -> Iterator[str]:
        yield f"\n{title}"
        empty = True
        for line in lines:
            empty = False
            yield f"  {line}"
        if empty:
            yield "  none"

    def _responses(self) -> list[Record]:
        key = self._query_id.encode()
        logs = self._run.logs[self._run.topic("responses")]
        return [record for _, log in sorted(logs.items()) for record in log.records if record.key == key]

    def _record(self, record: Record) -> str:
        batch = record.batch
        ended = f" by marker {batch.marker}" if batch.marker is not None else ""
        return (
            f"{_place(record)}@{record.offset}  {_time(record.timestamp_ms)}  {self._producer(record)}"
            f"  {batch.outcome.value}{ended}"
        )

    def _producer(self, record: Record) -> str:
        """Return the producer of a record as text: its id and epoch and, if it is known, its transactional id."""
        number, epoch = record.batch.producer_id, record.batch.producer_epoch
        name = self._names.get(number)
        return f"producer {number} epoch {epoch}" + (f" ({name})" if name else "")

    def _committed(self) -> list[PositionCommit]:
        assert self._query is not None
        batch = self._query.batch
        return self._run.positions.get((self._run.begin.groups["answer"], batch.topic, batch.partition), [])

    def _state_changes(self) -> Iterator[TimelineEntry]:
        """Yield an entry for each committed position by which the question became finished, or unfinished again."""
        assert self._query is not None
        was = False
        for position in self._committed():
            if position.is_applied and (now := _has_finished(position, self._query.offset)) != was:
                was = now
                what = "finished" if now else "UNFINISHED AGAIN"
                yield TimelineEntry(
                    position.written.timestamp_ms, f"the question is {what}: {self._position(position)}"
                )

    def _position(self, position: PositionCommit) -> str:
        offset = "removed" if position.offset is None else position.offset
        applied = "" if position.is_applied else "  NOT APPLIED"
        metadata = f" {position.metadata[:40]!r}" if position.metadata else ""
        return f"position {offset}{metadata}  by {self._producer(position.written)}{applied}"

    def _positions(self, entries: list[TimelineEntry]) -> Iterator[str]:
        """Yield the positions around each of ``entries``. Where positions are left out, a line says how many."""
        committed = self._committed()
        shown: set[int] = set()
        for entry in entries:
            later = next(
                (n for n, position in enumerate(committed) if position.written.timestamp_ms >= entry.at_ms),
                len(committed),
            )
            shown.update(range(max(0, later - POSITIONS_SHOWN), min(len(committed), later + POSITIONS_SHOWN)))
        left_out = 0
        for number, position in enumerate(committed):
            before = committed[number - 1] if number else None
            changed = before is None or self._producer(before.written) != self._producer(position.written)
            if number in shown or changed or not position.is_applied:
                if left_out:
                    yield f"… {left_out} more"
                left_out = 0
                yield f"{_time(position.written.timestamp_ms)}  {self._position(position)}"
            else:
                left_out += 1
        if left_out:
            yield f"… {left_out} more"

    def _window(self, entries: list[TimelineEntry]) -> tuple[int, int]:
        if not entries:
            return 0, 0
        return min(entries).at_ms - AROUND_MS, max(entries).at_ms + AROUND_MS

    def _timeline(self, entries: list[TimelineEntry]) -> Iterator[str]:
        first, last = self._window(entries)
        done = [
            TimelineEntry(line["at_ms"], f"{line['event']} {_rest(line)}")
            for line in self._lines
            if line["event"] in ("action", "worker", "settled") and first <= line["at_ms"] <= last
        ]
        for entry in sorted(done + entries):
            yield f"{_time(entry.at_ms)}  {entry.what}"

    def _log_entries(self, entries: list[TimelineEntry]) -> Iterator[str]:
        found = []
        for path in sorted((self._folder / "logs").glob("w*.log")):
            for at_ms, level, text in _log_lines(path):
                near = any(abs(at_ms - entry.at_ms) <= LOG_AROUND_MS for entry in entries)
                tells = level in _WARNING_LEVELS or any(word in text.lower() for word in _KEYWORDS)
                if self._query_id in text.split('"') or (near and tells):
                    found.append(TimelineEntry(at_ms, f"{path.stem}  {text}"))
        for entry in sorted(found)[:LOG_LINES]:
            yield f"{_time(entry.at_ms)}  {entry.what[:400]}"
        if len(found) > LOG_LINES:
            yield f"… {len(found) - LOG_LINES} more"


def producer_names(data: Path) -> dict[int, str]:
    """Return the transactional id of each producer id, from Kafka's data folder.

    Source of the format: ``TransactionLogKey.json`` and ``TransactionLogValue.json`` of Kafka's transaction
    coordinator. Only the beginning of a value is read.
    """
    names = {}
    for folder in partitions(data, TRANSACTIONS).values():
        for record in read_partition(folder).records:
            if record.key and record.value:
                _, size = struct.unpack_from(">hh", record.key)
                (number,) = struct.unpack_from(">q", record.value, 2)
                names[number] = record.key[4 : 4 + size].decode()
    return names


def find_wrong_question(run: LoadedRun) -> str | None:
    """Return the id of a question with several responses.

    If there is no such question, return the id of a question without a response. Otherwise return None.
    """
    twice = (query_id for query_id, events in run.responses.items() if len(events) > 1)
    missing = (query_id for query_id in run.history.asked if query_id not in run.responses)
    return next(twice, None) or next(missing, None)


def _has_finished(position: PositionCommit, offset: int) -> bool:
    if position.offset is None:
        return False
    try:
        return FinishedOffsets.decode(position.offset, position.metadata).is_finished(offset)
    except ValueError:
        return offset < position.offset


def _history(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / HISTORY_FILE).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _log_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield time, level and text of each line. A line that is not JSON gets the time of the line before it."""
    at_ms = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        level = "error"
        try:
            fields = json.loads(text)
            level = fields["level"]
            at_ms = int(datetime.fromisoformat(fields["timestamp"]).timestamp() * 1000)
        except (ValueError, KeyError, TypeError):
            pass
        yield at_ms, level, text


def _place(record: Record) -> str:
    return f"{record.batch.topic}-{record.batch.partition}"


def _rest(line: dict[str, Any]) -> str:
    left_out = ("at_ms", "event", "query_id", "key")
    return "  ".join(f"{name} {value}" for name, value in line.items() if name not in left_out)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]


def main() -> int:
    """Print the explanation. Return the exit code: 2 if the run cannot be read or has no such question, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog="make chaos-explain", description="Explain what happened to one question of a kept run."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that `make chaos` kept")
    parser.add_argument("--id", help="id of the question; default: a question with several responses, or with none")
    options = parser.parse_args()
    try:
        run = load(options.folder)
    except NotJudged as exc:
        print(f"Error: {exc}", file=sys.stderr)  # noqa: T201 - for people
        return 2
    query_id = options.id or find_wrong_question(run)
    if query_id is None:
        print("Every question was answered once; choose one with --id.")  # noqa: T201 - the result
        return 0
    if query_id not in run.history.asked:
        print(f"Error: the run has no question {query_id}", file=sys.stderr)  # noqa: T201 - for people
        return 2
    for line in Story(options.folder, run, query_id).lines():
        print(line)  # noqa: T201 - the result
    return 0


if __name__ == "__main__":
    sys.exit(main())
