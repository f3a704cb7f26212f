"""The rules by which a run is judged. The function of a rule takes a loaded run and yields its violations. No I/O.

A violation names the records that show it, so that a reader of the verdict needs no other tool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import frozen

from tests.judge.evidence import Event, LoadedRun, Setback
from tests.judge.finished import FinishedOffsets
from tests.judge.positions import PositionCommit
from tests.judge.segments import PartitionLog, Record

_SOURCE = "__connect.errors."  # the prefix of Kafka Connect's headers with the origin of a dead letter (KIP-298)


@frozen(kw_only=True)
class Violation:
    """A violation of a rule. ``id`` is that of the question or message, or the key of the record."""

    what: str
    id: str | None = None
    records: tuple[Record, ...] = ()
    positions: tuple[PositionCommit, ...] = ()


Check = Callable[[LoadedRun], Iterator[Violation]]


@frozen
class Rule:
    """A rule of the judge. ``statement`` says in one sentence what must hold."""

    name: str
    statement: str
    check: Check


def check_answered_once(run: LoadedRun) -> Iterator[Violation]:
    """Check that each acknowledged question has exactly one committed response.

    Each committed record with a response counts as one response. A second record of the same question allows no second
    response. A question without a response is a violation only if the answer group has finished the question
    and the question has no dead letter.
    """
    given_up, rewinds = _dead_lettered_questions(run), _rewinds(run)
    for query_id, responses in run.responses.items():
        asked = run.queries.get(query_id, [])
        # Each time that a tool made the finished question unfinished again, one more response is allowed.
        again = max((_times_read_again(event, rewinds) for event in asked), default=0)
        shown = tuple(event.record for event in (*asked, *responses))
        if query_id not in run.history.asked:
            yield Violation(what="there is a response to a question that was not asked", id=query_id, records=shown)
        elif len(responses) > 1 + again:
            yield Violation(what=f"the question has {len(responses)} responses", id=query_id, records=shown)
    for query_id in _acknowledged_questions(run):
        asked = run.queries.get(query_id, [])
        if query_id in run.responses or any(event.place in given_up for event in asked):
            continue
        if any(run.is_finished("answer", event) for event in asked):
            yield Violation(
                what="the group has finished the question, but it has no response",
                id=query_id,
                records=tuple(event.record for event in asked),
            )


def unfinished_questions(run: LoadedRun) -> Iterator[Violation]:
    """Yield a violation for each acknowledged question that was unfinished when the run ended."""
    for query_id in _acknowledged_questions(run):
        asked = run.queries.get(query_id, [])
        if asked and query_id not in run.responses and not any(run.is_finished("answer", event) for event in asked):
            shown = tuple(event.record for event in asked)
            yield Violation(what="the question was unfinished when the run ended", id=query_id, records=shown)


def unfinished_messages(run: LoadedRun) -> Iterator[Violation]:
    """Yield a violation for each committed change of a message that was unfinished when the run ended."""
    for message_id, changes in run.messages.items():
        for event in changes:
            if not run.is_finished("ingest", event):
                shown = (event.record,)
                yield Violation(what="the change was unfinished when the run ended", id=message_id, records=shown)


def check_finished(run: LoadedRun) -> Iterator[Violation]:
    """Check that nothing was unfinished when the run ended, if the history says that the run settled.

    In other runs, unfinished records break no rule. The verdict counts them.
    """
    if run.history.is_settled:
        yield from unfinished_questions(run)
        yield from unfinished_messages(run)


def check_order(run: LoadedRun) -> Iterator[Violation]:
    """Check that the outputs of one key are in the order of their inputs.

    If a question has several responses, only the first one counts.
    """
    for topic in run.begin.ordered_by_key:
        outputs = _responses(run) if topic == run.topic("responses") else _dead_letters(run)
        last: dict[tuple[int, str, int, bytes | None], tuple[int, Record]] = {}
        for output, (source, partition, offset), key, shown in outputs:
            stream = output.batch.partition, source, partition, key
            before, earlier = last.get(stream, (-1, output))
            if offset < before:
                what = f"the output of {source}-{partition}@{offset} comes after that of offset {before}"
                yield Violation(what=what, id=_text(key), records=(*shown, earlier, output))
            last[stream] = max(before, offset), output


def check_archive(run: LoadedRun) -> Iterator[Violation]:
    """Check that the archive has the last change of every message in the topic, and no other message.

    Changes that were unfinished when the run ended may be missing.
    """
    rows = {row.message_id: row for row in run.history.archived}
    for message_id, changes in run.messages.items():
        row = rows.pop(message_id, None)
        handled = [run.is_finished("ingest", event) for event in changes]
        first = max((number for number, done in enumerate(handled) if done), default=None)
        shown = tuple(event.record for event in changes)
        if row is None:
            if first is not None:
                yield Violation(what="the message is not in the archive", id=message_id, records=shown)
            continue
        states = _states(changes)[first or 0 :]
        if (row.content, row.deleted, row.channel_id) not in states:
            state = "deleted" if row.deleted else f"{row.content[:80]!r} in channel {row.channel_id}"
            what = f"the archive does not have the last change of the message; it has {state}"
            yield Violation(what=what, id=message_id, records=shown)
    for message_id in rows:
        yield Violation(what="the archive has a message that is not in the topic", id=message_id)


def check_visibility(run: LoadedRun) -> Iterator[Violation]:
    """Check that all citations and passages are from channels that the question lists as visible.

    A passage without a channel, for example a passage of a document, is visible to everyone.
    """
    for query_id, responses in run.responses.items():
        visible = run.history.asked.get(query_id)
        if visible is None:
            continue
        for event in responses:
            shown = tuple(found.record for found in (*run.queries.get(query_id, ()), event))
            for citation in event.fields.get("citations", ()):
                if not _is_visible(citation, visible):
                    channel = citation["channel_id"]
                    what = f"citation {citation['number']} is from channel {channel}, which is not visible"
                    yield Violation(what=what, id=query_id, records=shown)
            for passage in event.fields.get("retrieved", ()):
                if (channel := passage["acl_channel_id"]) is not None and channel not in visible:
                    what = f"passage {passage['passage_id']} is from channel {channel}, which is not visible"
                    yield Violation(what=what, id=query_id, records=shown)


def check_deletions(run: LoadedRun) -> Iterator[Violation]:
    """Check that no response quotes or uses a message that was deleted before the question was handled.

    A deletion counts from the time at which ingest committed it. Handling began ``elapsed_ms`` before ``answered_at``.
    """
    removed_at = _deletions(run)
    texts = _texts_of(run, removed_at)
    for query_id, responses in run.responses.items():
        for event in responses:
            fields = event.fields
            began_ms = fields["answered_at"].timestamp() * 1000 - fields["elapsed_ms"]
            said = " ".join([fields["answer"], *(str(citation["excerpt"]) for citation in fields["citations"])])
            named = {citation["message_id"] for citation in fields["citations"]}
            named = named.union(*(passage["message_ids"] for passage in fields["retrieved"]))
            for message_id, (at_ms, deletion) in removed_at.items():
                if began_ms <= at_ms:
                    continue
                quoted = any(text in said for text in texts[message_id])
                if quoted or message_id in named:
                    shown = tuple(found.record for found in (deletion, *run.queries.get(query_id, ()), event))
                    what = f"the response {'quotes' if quoted else 'uses'} message {message_id}, which was deleted"
                    yield Violation(what=what, id=query_id, records=shown)


def check_positions(run: LoadedRun) -> Iterator[Violation]:
    """Check that no position lost finished offsets, except by a tool, and that all metadata can be decoded."""
    for position, why in run.undecodable_positions:
        yield Violation(what=why, positions=(position,))
    for setback in run.setbacks:
        if setback.is_allowed:
            continue
        if setback.after.offset is None:
            what = "the position was removed"
        elif setback.after.offset < (setback.before.offset or 0):
            what = f"the position moved back from {setback.before.offset} to {setback.after.offset}"
        else:
            what = f"offset {setback.first_lost} was finished and became unfinished again"
        yield Violation(what=what, positions=(setback.before, setback.after))


def check_readers(run: LoadedRun) -> Iterator[Violation]:
    """Check that each reader got every committed record of its topics once and in order, and no other record.

    A reader of committed records cannot get records from the last stable offset on, so these records may be missing.
    """
    topics = {(reader, topic) for reader, topic, _ in run.history.seen}
    responses = run.topic("responses")
    if run.responses and all(topic != responses for _, topic in topics):
        yield Violation(what=f"no reader read {responses}, which has committed records")
    for reader, topic in sorted(topics):
        for number, log in sorted(run.logs[topic].items()):
            given = run.history.seen.get((reader, topic, number), ())
            yield from _check_given(reader, f"{topic}-{number}", log, given)
            offsets = {offset for offset, _ in given}
            for record in log.records:
                if record.is_visible and record.offset < log.stable_end and record.offset not in offsets:
                    what = f"the reader {reader} did not get {topic}-{number}@{record.offset}"
                    yield Violation(what=what, records=(record,))


def _check_given(
    reader: str, partition: str, log: PartitionLog, given: Iterable[tuple[int, str | None]]
) -> Iterator[Violation]:
    """Check the offsets and keys that a reader got from one partition, in the order in which it got them."""
    held = {record.offset: record for record in log.records}
    last, offsets = -1, set()
    for offset, key in given:
        got = f"the reader {reader} got {partition}@{offset}"
        record = held.get(offset)
        shown = () if record is None else (record,)
        if offset in offsets:
            yield Violation(what=f"{got} twice", records=shown)
        elif offset < last:
            yield Violation(what=f"{got} after {last}", records=shown)
        if record is None:
            yield Violation(what=f"{got}, which does not exist")
        elif not record.is_visible:
            yield Violation(what=f"{got}, which is {record.batch.outcome.value}", records=shown)
        elif key != _text(record.key):
            yield Violation(what=f"{got} with the key {key!r}, not {_text(record.key)!r}", records=shown)
        offsets.add(offset)
        last = max(last, offset)


def check_dead_letters(run: LoadedRun) -> Iterator[Violation]:
    """Check that each record that was invalid on purpose has one dead letter, and no other record has one.

    An invalid record that was unfinished when the run ended needs no dead letter yet.
    """
    letters: dict[tuple[str, int, int], list[Record]] = {}
    for letter in run.dead_letters:
        letters.setdefault(_source(letter), []).append(letter)
    for record in run.forged:
        batch = record.batch
        found = letters.pop((batch.topic, batch.partition, record.offset), [])
        group = "answer" if batch.topic == run.topic("queries") else "ingest"
        if len(found) > 1 or (not found and run.is_finished(group, Event(record, {}))):
            what = f"a record that was invalid on purpose has {len(found)} dead letters"
            yield Violation(what=what, id=_text(record.key), records=(record, *found))
    for found in letters.values():
        for letter in found:
            yield Violation(
                what=f"there is an unexpected dead letter of {_origin(letter)}", id=_text(letter.key), records=(letter,)
            )


def check_order_of_questions(run: LoadedRun) -> Iterator[Violation]:
    """Check that the question of each response is in the topic, and that the response is not older than the question.

    The timestamps of question and response can be compared, because their producers run on one machine.
    """
    for query_id, responses in run.responses.items():
        asked = run.queries.get(query_id, [])
        shown = tuple(event.record for event in (*asked, *responses))
        if not asked:
            yield Violation(
                what="there is a response to a question that is not in the topic", id=query_id, records=shown
            )
        elif asked[0].record.timestamp_ms > min(event.record.timestamp_ms for event in responses):
            yield Violation(what="a response is older than its question", id=query_id, records=shown)


def check_acknowledgements(run: LoadedRun) -> Iterator[Violation]:
    """Check that each acknowledged record is at the offset in its acknowledgement.

    A change of a message must also have the content that was sent. The acknowledgement of a record that was sent twice
    may have no offset. In this case, any record of the same question or message is enough.
    """
    held = {
        (record.batch.topic, *event.place): (known_as, event)
        for found in (run.queries, run.messages)
        for known_as, events in found.items()
        for event in events
        if (record := event.record)
    }
    for line in run.history.acknowledged:
        known_as = line.query_id or line.message_id
        if line.offset < 0:
            if known_as not in run.queries and known_as not in run.messages:
                yield Violation(what="it was acknowledged, but there is no record of it", id=known_as)
            continue
        where = f"{line.topic}-{line.partition}@{line.offset}"
        found_id, event = held.get((line.topic, line.partition, line.offset), (None, None))
        shown = () if event is None else (event.record,)
        if found_id != known_as:
            what = f"acknowledged at {where}, where " + ("there is no record" if event is None else f"{found_id} is")
            yield Violation(what=what, id=known_as, records=shown)
        elif event is not None and line.message_id is not None and line.version is not None:
            said = run.history.said.get((line.message_id, line.version))
            if said is None or (said.content, said.change) != (event.fields["content"], event.fields["change"]):
                what = f"change {line.version} of the message, acknowledged at {where}, is not what was said"
                yield Violation(what=what, id=known_as, records=shown)


def check_decodable(run: LoadedRun) -> Iterator[Violation]:
    """Check that all committed records can be decoded, except those that were invalid on purpose."""
    for record, why in run.undecodable:
        yield Violation(what=f"the record cannot be decoded: {why}", id=_text(record.key), records=(record,))


RULES = (
    Rule(
        "answered-once",
        "Every acknowledged question has exactly one committed response, and no other question has one.",
        check_answered_once,
    ),
    Rule("in-order", "The outputs of one key are in the order of their inputs.", check_order),
    Rule("archived", "The archive holds the last change of every message, and nothing else.", check_archive),
    Rule(
        "visible-only",
        "Every citation and every retrieved passage is from a channel that the question lists as visible.",
        check_visibility,
    ),
    Rule(
        "deleted",
        "No response whose handling began after ingest committed a deletion quotes or uses the deleted message.",
        check_deletions,
    ),
    Rule(
        "positions-kept",
        "No group's position moves back and no finished offset becomes unfinished, except by a tool.",
        check_positions,
    ),
    Rule("read-right", "A reader of committed records gets each of them once, in order, and no others.", check_readers),
    Rule(
        "dead-letters",
        "Each record that was invalid on purpose has exactly one dead letter, and no other record has one.",
        check_dead_letters,
    ),
    Rule(
        "asked-first", "Every committed response follows a committed record of its question.", check_order_of_questions
    ),
    Rule("kept", "Every acknowledged record is at the offset that its producer was told.", check_acknowledgements),
    Rule("decodable", "Every committed record can be decoded with the schema that it names.", check_decodable),
    Rule("finished", "If the run says that it settled, everything is finished.", check_finished),
)


def _acknowledged_questions(run: LoadedRun) -> Iterator[str]:
    yield from dict.fromkeys(line.query_id for line in run.history.acknowledged if line.query_id is not None)


def _rewinds(run: LoadedRun) -> list[Setback]:
    """Return the setbacks by which a tool moved the answer group's positions back."""
    group = run.begin.groups["answer"]
    return [setback for setback in run.setbacks if setback.is_allowed and setback.after.group == group]


def _times_read_again(event: Event, rewinds: list[Setback]) -> int:
    """Return how many of ``rewinds`` made the finished question ``event`` unfinished again."""
    batch = event.record.batch
    return sum(
        (rewind.after.topic, rewind.after.partition) == (batch.topic, batch.partition)
        and rewind.first_lost <= event.record.offset < rewind.end
        for rewind in rewinds
    )


def _dead_lettered_questions(run: LoadedRun) -> set[tuple[int, int]]:
    """Return the partition and offset of each question that became a dead letter."""
    sources = (_source(record) for record in run.dead_letters)
    return {(partition, offset) for topic, partition, offset in sources if topic == run.topic("queries")}


_SHORTEST_QUOTE = 12
"""A text with fewer characters does not count as a quote, because it can occur in an answer by chance."""


def _deletions(run: LoadedRun) -> dict[str, tuple[int, Event]]:
    """Return the first committed deletion of each message, and the time at which ingest committed it."""
    found: dict[str, tuple[int, Event]] = {}
    waiting: dict[int, list[Event]] = {}
    for event in (change for changes in run.messages.values() for change in changes):
        if event.fields["change"] == "DELETED":
            waiting.setdefault(event.record.batch.partition, []).append(event)
    for partition, events in waiting.items():
        events.sort(key=lambda event: event.record.offset)
        for position in run.positions.get((run.begin.groups["ingest"], run.topic("messages"), partition), ()):
            if not position.is_applied or position.offset is None or position.applied_at_ms is None:
                continue
            try:
                finished = FinishedOffsets.decode(position.offset, position.metadata)
            except ValueError:
                finished = FinishedOffsets(((0, position.offset),))
            left = []
            for event in events:
                if finished.is_finished(event.record.offset):
                    found.setdefault(event.fields["message_id"], (position.applied_at_ms, event))
                else:
                    left.append(event)
            events = left
    return found


def _texts_of(run: LoadedRun, removed: Iterable[str]) -> dict[str, set[str]]:
    """Return, for each removed message, its texts that are long enough for a quote and occur in no other message."""
    texts = {name: {event.fields["content"] for event in run.messages[name]} for name in run.messages}
    by = Counter(text for said in texts.values() for text in said)
    return {name: {text for text in texts[name] if len(text) >= _SHORTEST_QUOTE and by[text] == 1} for name in removed}


_Output = tuple[Record, tuple[str, int, int], bytes | None, tuple[Record, ...]]
"""An output, the place of its input (topic, partition, offset), the key, and the record of the input if it is known."""


def _responses(run: LoadedRun) -> Iterator[_Output]:
    firsts: dict[str, Event] = {}
    for events in run.responses.values():
        for event in events:
            query_id = event.fields["query_id"]
            if query_id in run.queries:
                firsts.setdefault(query_id, event)
    for query_id, event in sorted(firsts.items(), key=lambda item: item[1].place):
        record = run.queries[query_id][0].record
        yield event.record, (record.batch.topic, record.batch.partition, record.offset), record.key, (record,)


def _dead_letters(run: LoadedRun) -> Iterator[_Output]:
    for record in run.dead_letters:
        if (source := _source(record))[0]:
            yield record, source, record.key, ()


def _source(letter: Record) -> tuple[str, int, int]:
    """Return the origin of a dead letter as (topic, partition, offset).

    If the headers do not name the origin, the topic is empty.
    """
    facts = {name.removeprefix(_SOURCE): value for name, value in letter.headers if name.startswith(_SOURCE)}
    try:
        return (
            (facts["topic"] or b"").decode(),
            int((facts["partition"] or b"").decode()),
            int((facts["offset"] or b"").decode()),
        )
    except (KeyError, ValueError):
        return "", -1, -1


def _origin(letter: Record) -> str:
    topic, partition, offset = _source(letter)
    return f"{topic}-{partition}@{offset}" if topic else "a record that its headers do not name"


def _states(changes: list[Event]) -> list[tuple[str, bool, Any]]:
    """Return the content of a message, whether it is deleted, and its channel, after each change.

    A deleted message stays deleted and has no content.
    """
    states = []
    is_deleted = False
    for event in changes:
        is_deleted = is_deleted or event.fields["change"] == "DELETED"
        states.append(("" if is_deleted else event.fields["content"], is_deleted, event.fields["channel_id"]))
    return states


def _is_visible(citation: dict[str, Any], visible: frozenset[str]) -> bool:
    """Return whether a cited message is visible: by its channel, or by the parent of a public thread or post.

    A document has no channel and is visible to everyone.
    """
    channel, parent = citation["channel_id"], citation["parent_channel_id"]
    is_public_below = citation["channel_kind"] in ("PUBLIC_THREAD", "FORUM_POST")
    return channel is None or channel in visible or (is_public_below and parent in visible)


def _text(key: bytes | None) -> str | None:
    return None if key is None else key.decode(errors="replace")
