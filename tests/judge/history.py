"""Reads the history of a run: the facts about the run, and what was asked, said, acknowledged, seen and archived.

Events that no rule needs are skipped. Reading raises NotJudged if the history is not that of one complete run, or if a
line has missing or wrong fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field, frozen

FORMAT = 1
FILE = "history.jsonl"
_T = TypeVar("_T")
ROLES = ("queries", "messages", "responses", "dead_letters")


class NotJudged(Exception):
    """The run cannot be judged. The message says why in one line."""


@frozen(kw_only=True)
class Begin:
    """The facts about a run, from the first line of its history."""

    run: str
    commit: str
    seed: str
    topics: Mapping[str, str]
    """The names of the topics on the cluster, by role."""
    topic_ids: Mapping[str, str]
    """The ids that the topics had at the beginning, by name. Empty if the history does not contain them."""
    groups: Mapping[str, str]
    partitions: int
    ordered_by_key: tuple[str, ...]
    schemas: Mapping[int, Any]


@frozen(kw_only=True)
class Said:
    """One change of a message, as the run produced it."""

    message_id: str
    version: int
    change: str
    content: str


@frozen(kw_only=True)
class Acknowledged:
    """An acknowledgement that a producer of the run got for a record."""

    topic: str
    partition: int
    offset: int
    query_id: str | None
    message_id: str | None
    version: int | None


@frozen(kw_only=True)
class Archived:
    """A row of the archive at the end of the run."""

    message_id: str
    channel_id: str | None
    content: str
    deleted: bool


@frozen(kw_only=True)
class Tool:
    """The use of a tool that moves a group's positions on purpose."""

    group: str
    at_ms: int
    what: str


@define(kw_only=True)
class History:
    """The history of one complete run."""

    begin: Begin
    asked: dict[str, frozenset[str]] = field(factory=dict)
    """The visible channels of each question, by the id of the question."""
    forged: set[tuple[str, str]] = field(factory=set)
    """The topic and key of each record that the run made invalid on purpose."""
    said: dict[tuple[str, int], Said] = field(factory=dict)
    acknowledged: list[Acknowledged] = field(factory=list)
    seen: dict[tuple[str, str, int], list[tuple[int, str | None]]] = field(factory=dict)
    """For each reader, topic and partition: the offset and key of each record that the reader got, in order."""
    archived: list[Archived] = field(factory=list)
    tools: list[Tool] = field(factory=list)
    is_settled: bool = False
    """Whether the history says that the run settled."""


class _HistoryLine:
    """One line of the history. Methods raise NotJudged if a field is missing or has another type."""

    def __init__(self, number: int, fields: Mapping[str, object]) -> None:
        self._number = number
        self._fields = fields
        self.event = self.text("event")

    def text(self, name: str) -> str:
        """Return the string in field ``name``."""
        return self._take(name, str)

    def number(self, name: str) -> int:
        """Return the integer in field ``name``."""
        return self._take(name, int)

    def flag(self, name: str) -> bool:
        """Return the boolean in field ``name``."""
        return self._take(name, bool)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the list of strings in field ``name``."""
        found = self._take(name, list)
        if not all(isinstance(value, str) for value in found):
            raise self.wrong(f"{name} is not a list of strings")
        return tuple(found)

    def names(self, name: str) -> dict[str, str]:
        """Return the object of strings in field ``name``."""
        found = self._take(name, dict)
        if not all(isinstance(value, str) for value in found.values()):
            raise self.wrong(f"{name} is not an object of strings")
        return found

    def schemas(self, name: str) -> dict[int, Any]:
        """Return the object in field ``name``, which maps ids to schemas."""
        try:
            return {int(number): schema for number, schema in self._take(name, dict).items()}
        except ValueError as exc:
            raise self.wrong(f"{name} has a key that is not a schema id") from exc

    def has(self, name: str) -> bool:
        """Return whether the field ``name`` exists and is not null."""
        return self._fields.get(name) is not None

    def fact(self, name: str) -> str:
        """Return the field ``name`` as text, whatever its type, or an empty text if the field is missing or null."""
        return str(self._fields[name]) if self.has(name) else ""

    def wrong(self, why: str) -> NotJudged:
        """Return the error for this line."""
        return NotJudged(f"line {self._number} of {FILE}: {why}")

    def _take(self, name: str, kind: type[_T]) -> _T:
        value = self._fields.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(f"{self._fields.get('event', 'the event')}: {name} is missing or not a {kind.__name__}")
        return value


def read(path: Path) -> History:
    """Read the history in the file ``path``. Raises NotJudged if it is not that of one complete run."""
    history: History | None = None
    is_ended = False
    for line in _lines(path):
        if is_ended:
            raise line.wrong("a line follows the end: there is more than one run in this folder")
        if history is None:
            if line.event != "begin":
                raise line.wrong(f"the history begins with {line.event!r}: its beginning is missing")
            history = History(begin=_begin(line))
        elif line.event == "begin":
            raise line.wrong("there is more than one run in this folder")
        elif line.fact("run") not in ("", history.begin.run):
            raise line.wrong(f"it belongs to another run, {line.fact('run')}: there are two runs in this folder")
        else:
            _add(history, line)
        is_ended = line.event == "end"
        if is_ended and line.has("failure"):
            raise NotJudged(f"the run failed, so its evidence is incomplete: {line.fact('failure')}")
    if history is None:
        raise NotJudged(f"{FILE} is empty")
    if not is_ended:
        raise NotJudged(f"{FILE} is cut off: it has no end")
    return history


def _lines(path: Path) -> Iterator[_HistoryLine]:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith("\n"):
                    raise NotJudged(f"{FILE} is cut off in line {number}")
                fields = json.loads(text)
                if not isinstance(fields, dict):
                    raise NotJudged(f"line {number} of {FILE} is not an object")
                yield _HistoryLine(number, fields)
    except FileNotFoundError:
        raise NotJudged(f"there is no {FILE} in {path.parent}") from None
    except ValueError as exc:
        raise NotJudged(f"line {number} of {FILE} is not JSON: {exc}") from exc


def _begin(line: _HistoryLine) -> Begin:
    if line.number("format") != FORMAT:
        raise line.wrong(f"the history has format {line.number('format')}, this judge reads {FORMAT}")
    topics, groups, ordered_by_key = line.names("topics"), line.names("groups"), line.texts("ordered_by_key")
    if missing := [role for role in ROLES if role not in topics]:
        raise line.wrong(f"topics has no {missing[0]}")
    if missing := [role for role in ("answer", "ingest") if role not in groups]:
        raise line.wrong(f"groups has no {missing[0]}")
    for topic in ordered_by_key:
        if topic not in (topics["responses"], topics["dead_letters"]):
            raise line.wrong(f"ordered_by_key names {topic}, whose records do not name their input")
    return Begin(
        run=line.text("run"),
        commit=line.fact("commit"),
        seed=line.fact("seed"),
        topics=topics,
        topic_ids=line.names("topic_ids") if line.has("topic_ids") else {},
        groups=groups,
        partitions=line.number("partitions"),
        ordered_by_key=ordered_by_key,
        schemas=line.schemas("schemas"),
    )


def _add(history: History, line: _HistoryLine) -> None:
    match line.event:
        case "asked":
            # If a question was asked several times, the visible channels of the first time count.
            history.asked.setdefault(line.text("query_id"), frozenset(line.texts("visible_channel_ids")))
        case "forged":
            history.forged.add((line.text("topic"), line.text("key")))
        case "said":
            said = Said(
                message_id=line.text("message_id"),
                version=line.number("version"),
                change=line.text("change"),
                content=line.text("content"),
            )
            history.said[said.message_id, said.version] = said
        case "acknowledged":
            is_query = line.has("query_id")
            history.acknowledged.append(
                Acknowledged(
                    topic=line.text("topic"),
                    partition=line.number("partition"),
                    offset=line.number("offset"),
                    query_id=line.text("query_id") if is_query else None,
                    message_id=None if is_query else line.text("message_id"),
                    version=None if is_query else line.number("version"),
                )
            )
        case "seen":
            where = line.text("reader"), line.text("topic"), line.number("partition")
            key = line.text("key") if line.has("key") else None
            history.seen.setdefault(where, []).append((line.number("offset"), key))
        case "archived":
            history.archived.append(
                Archived(
                    message_id=line.text("message_id"),
                    channel_id=line.text("channel_id") if line.has("channel_id") else None,
                    content=line.fact("content"),
                    deleted=line.flag("deleted"),
                )
            )
        case "tool":
            history.tools.append(Tool(group=line.text("group"), at_ms=line.number("at_ms"), what=line.fact("what")))
        case "settled":
            history.is_settled = line.flag("ok")
