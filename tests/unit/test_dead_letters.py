"""The format of a dead letter: the unchanged original record, and the headers that are added after its own."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from rtfm.errors import InvalidEvent, UndecodableRecord
from rtfm.streams.consumer import Record
from rtfm.streams.dead_letters.letters import (
    DISCARDED,
    MAX_MESSAGE_BYTES,
    MAX_STACK_BYTES,
    DeadLetterBuilder,
    Letter,
    Mark,
    parse_letter,
)
from rtfm.streams.transactions import ProducerRecord

CONNECT = (
    *("topic", "partition", "offset", "connector.name", "task.id", "stage", "class.name"),
    *("exception.class.name", "exception.message", "exception.stacktrace"),
)


def record(**fields: Any) -> Record:
    """Return a record that cannot be decoded."""
    values: dict[str, Any] = {
        "topic": "discord-messages",
        "partition": 2,
        "offset": 17,
        "key": b"200",
        "value": b"\x00\x00\x00\x00\x07abc",
        "headers": [("traceparent", b"00-1"), ("odd", b"\xff"), ("odd", b"")],
        "timestamp_ms": 1_700_000_000_000,
        "event": None,
    }
    return Record(**{**values, **fields})


BUILDER = DeadLetterBuilder(group="test-group", clock_s=lambda: 1_700_000_500.0)


@frozen
class Message:
    """A produced dead letter as confluent_kafka returns it."""

    record: ProducerRecord
    at: int = 5

    def key(self) -> bytes | None:
        return self.record.key

    def value(self) -> bytes | None:
        return self.record.value

    def headers(self) -> list[tuple[str, bytes]]:
        return self.record.headers

    def partition(self) -> int:
        return max(0, self.record.partition)

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_600_000

    def topic(self) -> str:
        return self.record.topic

    def error(self) -> None:
        return None


def read_back(original: Record, error: Exception | None = None) -> Letter:
    """Return the dead letter of ``original`` as a reader gets it."""
    letter = parse_letter(
        Message(BUILDER.build_letter(original, error or UndecodableRecord("cut short"), "DECODE").record)
    )
    assert isinstance(letter, Letter)
    return letter


def error_with_traceback(message: str) -> Exception:
    """Return an error with a traceback."""
    with pytest.raises(InvalidEvent) as caught:
        raise InvalidEvent(message)
    return caught.value


def test_a_dead_letter_has_kafka_connects_headers_and_ours_after_the_original_ones() -> None:
    """R15: A dead letter has the original headers unchanged and in order, then ten of Kafka Connect, then rtfm's."""
    original = record()
    headers = BUILDER.build_letter(original, error_with_traceback("no"), "HANDLE").record.headers
    assert headers[:3] == original.headers
    names = [name for name, _ in headers[3:]]
    assert names[:10] == [f"__connect.errors.{name}" for name in CONNECT]
    ours = {"attempt", "first_failure_ms", "consumer_group", "schema_id", "error_class", "original.timestamp_ms"}
    assert {f"rtfm.{name}" for name in ours} < set(names)
    letter = read_back(original, error_with_traceback("no"))
    assert (letter.topic, letter.origin, letter.schema_id, letter.error_class) == (
        "discord-messages",
        (2, 17),
        "7",
        "InvalidEvent",
    )
    assert (letter.first_failure_ms, letter.attempt) == (1_700_000_500_000, 1)


names = st.sampled_from(["odd", "rtfm.attempt", "rtfm.original.header_count", "rtfm.mark", "__connect.errors.topic"])


@given(st.lists(st.tuples(names, st.binary(max_size=9) | st.none())), st.binary() | st.none(), st.binary() | st.none())
def test_the_original_comes_back_as_it_was_whatever_it_holds(
    headers: list[tuple[str, bytes]], key: bytes | None, value: bytes | None
) -> None:
    """R15: The original comes back unchanged from its dead letter, even if its headers have names of rtfm's headers."""
    letter = read_back(record(headers=headers, key=key, value=value))
    assert (letter.headers, letter.key, letter.value) == (headers, key, value)
    assert letter.topic == "discord-messages"


def test_a_replay_that_fails_again_adds_an_attempt_and_no_headers() -> None:
    """A replay that fails again keeps the original and the time of the first failure, and counts one more attempt.

    The number of headers does not grow with further replays.
    """
    original = record()
    letter = read_back(original)
    for attempt in range(2, 30):
        again = record(headers=[*(letter.headers or []), *letter.to_replay().headers()], offset=100 + attempt)
        later = parse_letter(
            Message(BUILDER.build_letter(again, error_with_traceback("no"), "HANDLE").record, at=attempt)
        )
        assert isinstance(later, Letter)
        assert (later.headers, later.value, later.attempt) == (original.headers, original.value, attempt)
        assert later.number("rtfm.original.timestamp_ms") == original.timestamp_ms
        assert later.first_failure_ms == letter.first_failure_ms
        assert later.facts["rtfm.replay_of"] == letter.id
        letter = later
    assert len(letter.facts) == len(read_back(original).facts) + 1


def test_headers_that_only_look_like_a_replay_are_the_originals() -> None:
    """If headers have the names of a replay's headers, but values that do not parse, they belong to the original."""
    block = read_back(record()).to_replay().headers()
    forged = [*block[:1], ("rtfm.attempt", b"many"), *block[2:]]
    assert read_back(record(headers=forged)).headers == forged


def test_the_stack_is_cut_to_its_end_and_long_messages_to_their_beginning() -> None:
    """The traceback is cut to the last 4 KB of UTF-8 and the message to the first 1 KB, without half a character."""
    letter = read_back(record(), error_with_traceback("ä" * 5000))
    stack = letter.facts["__connect.errors.exception.stacktrace"]
    assert MAX_STACK_BYTES - 4 <= len(stack.encode()) <= MAX_STACK_BYTES
    assert len(letter.message.encode()) <= MAX_MESSAGE_BYTES
    assert set(letter.message) == {"ä"}
    assert (
        "error_with_traceback"
        in read_back(record(), error_with_traceback("short")).facts["__connect.errors.exception.stacktrace"]
    )


@pytest.mark.parametrize("secret", ["AIza" + "x" * 35, "ghp_" + "a" * 36, "someone@example.org", "hunter2-hunter2"])
def test_secrets_are_in_neither_message_nor_stack(secret: str) -> None:
    """Neither message nor traceback contains a secret, even if a cut removed half of the secret.

    Secrets are texts with the form of a known kind of secret, and the configured secrets of the installation.
    """
    writer = evolve(BUILDER, secrets=("hunter2-hunter2",))
    for padding in ("", "x " * (MAX_STACK_BYTES // 2)):
        error = error_with_traceback(f"the model said {secret} {padding}")
        headers = dict(writer.build_letter(record(), error, "HANDLE").record.headers)
        for name in ("exception.message", "exception.stacktrace"):
            assert secret.encode()[-12:] not in headers[f"__connect.errors.{name}"]


def test_a_mark_is_read_as_a_mark_and_no_original_is_taken_for_one() -> None:
    """A mark is read as a mark, and a dead letter whose original has a mark's headers is read as a dead letter."""
    letter = read_back(record())
    mark = parse_letter(Message(Mark.build_record(letter, DISCARDED)))
    assert mark == Mark(letter.id, DISCARDED, 1_700_000_600_000)
    assert isinstance(read_back(record(headers=Mark.build_record(letter, DISCARDED).headers, value=None)), Letter)


def test_what_another_program_wrote_is_shown_by_its_connect_headers_and_has_no_known_original() -> None:
    """Kafka Connect may use the same topic. Its dead letters are shown by their headers, without an original."""
    foreign = ProducerRecord("dead-letters", b"k", b"v", [("__connect.errors.topic", b"t"), ("x", b"y")])
    letter = parse_letter(Message(foreign))
    assert isinstance(letter, Letter)
    assert (letter.topic, letter.headers, letter.attempt, letter.origin) == ("t", None, 1, (-1, -1))
