"""Judges a kept run, and presents the verdict as JSON and as text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from attrs import field, frozen

from tests.judge import evidence
from tests.judge.history import NotJudged
from tests.judge.positions import PositionCommit
from tests.judge.rules import RULES, Rule, Violation, unfinished_messages, unfinished_questions
from tests.judge.segments import Record

EXAMPLES = 5
"""The verdict shows at most this many violations of each rule."""


@frozen(kw_only=True)
class Ruling:
    """The result of one rule: the number of its violations, and the first of them."""

    rule: Rule
    broken: int
    examples: tuple[Violation, ...]


@frozen(kw_only=True)
class Verdict:
    """The verdict on a run. If the run cannot be judged, only ``reason`` is set."""

    reason: str | None = None
    facts: dict[str, object] = field(factory=dict)
    unfinished: dict[str, int] = field(factory=dict)
    """The numbers of unfinished questions and of unfinished changes of messages, if the run did not settle."""
    torn: tuple[str, ...] = ()
    rulings: tuple[Ruling, ...] = ()

    @property
    def word(self) -> str:
        """The verdict in words: right, wrong or not judged."""
        if self.reason is not None:
            return "not judged"
        return "wrong" if any(ruling.broken for ruling in self.rulings) else "right"

    @property
    def exit_code(self) -> int:
        """The exit code of the judge's command."""
        return {"right": 0, "wrong": 1, "not judged": 2}[self.word]

    def as_json(self) -> dict[str, object]:
        """Return the content of verdict.json."""
        return {
            "verdict": self.word,
            "reason": self.reason,
            **self.facts,
            "unfinished": self.unfinished,
            "torn": list(self.torn),
            "rules": [
                {
                    "name": ruling.rule.name,
                    "statement": ruling.rule.statement,
                    "broken": ruling.broken,
                    "examples": [_violation(example) for example in ruling.examples],
                }
                for ruling in self.rulings
            ],
        }

    def as_text(self) -> str:
        """Return the verdict as text for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.reason is not None:
            yield f"not judged: {self.reason}"
            return
        broken = sum(ruling.broken > 0 for ruling in self.rulings)
        yield f"{self.word}: {broken} of {len(self.rulings)} rules are broken"
        yield "  " + ", ".join(f"{name} {value}" for name, value in self.facts.items())
        if any(self.unfinished.values()):
            counts = ", ".join(f"{count} {what}" for what, count in self.unfinished.items())
            yield f"  unfinished, because the run did not settle: {counts}"
        yield from (f"  {torn}" for torn in self.torn)
        for ruling in self.rulings:
            yield f"  {ruling.broken or 'ok':>6}  {ruling.rule.name}: {ruling.rule.statement}"
            for example in ruling.examples:
                yield f"          - {f'{example.id}: ' if example.id is not None else ''}{example.what}"
                yield from (f"              {_line(_record(record))}" for record in example.records)
                yield from (f"              {_line(_position(position))}" for position in example.positions)
            if ruling.broken > len(ruling.examples):
                yield f"          and {ruling.broken - len(ruling.examples)} more"


def judge(folder: Path) -> Verdict:
    """Return the verdict on the kept run in ``folder``."""
    try:
        run = evidence.load(folder)
    except NotJudged as exc:
        return Verdict(reason=str(exc))
    unfinished = {"questions": unfinished_questions, "messages": unfinished_messages}
    return Verdict(
        facts={
            "run": run.begin.run,
            "commit": run.begin.commit,
            "seed": run.begin.seed,
            "questions": len(run.history.asked),
            "answered": len(run.responses),
            "messages": len(run.messages),
            "archived": len(run.history.archived),
            "records": sum(len(log.records) for parts in run.logs.values() for log in parts.values()),
        },
        unfinished={} if run.history.is_settled else {what: _count(found(run)) for what, found in unfinished.items()},
        torn=tuple(log.torn for parts in run.logs.values() for log in parts.values() if log.torn),
        rulings=tuple(_ruling(rule, rule.check(run)) for rule in RULES),
    )


def _ruling(rule: Rule, violations: Iterator[Violation]) -> Ruling:
    examples = tuple(islice(violations, EXAMPLES))
    return Ruling(rule=rule, broken=len(examples) + _count(violations), examples=examples)


def _count(violations: Iterator[Violation]) -> int:
    return sum(1 for _ in violations)


def _violation(violation: Violation) -> dict[str, object]:
    return {
        "what": violation.what,
        "id": violation.id,
        "records": [_record(record) for record in violation.records],
        "positions": [_position(position) for position in violation.positions],
    }


def _record(record: Record) -> dict[str, Any]:
    batch = record.batch
    return {
        "topic": batch.topic,
        "partition": batch.partition,
        "offset": record.offset,
        "time": datetime.fromtimestamp(record.timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "producer_id": batch.producer_id,
        "producer_epoch": batch.producer_epoch,
        "transaction": batch.outcome.value,
        "marker": batch.marker,
    }


def _position(position: PositionCommit) -> dict[str, Any]:
    return {
        "group": position.group,
        "of": f"{position.topic}-{position.partition}",
        "position": position.offset,
        "metadata": position.metadata,
        **_record(position.written),
    }


def _line(fields: dict[str, Any]) -> str:
    """Return one line of text for a record, or for a position with its record."""
    text = (
        f"{fields['topic']}-{fields['partition']}@{fields['offset']}  {fields['time']}"
        f"  producer {fields['producer_id']} epoch {fields['producer_epoch']}  {fields['transaction']}"
    )
    if fields["marker"] is not None:
        text += f" by marker {fields['marker']}"
    if "group" in fields:
        text = f"{fields['group']} at {fields['of']}@{fields['position']} {fields['metadata'][:40]!r}  in {text}"
    return text
