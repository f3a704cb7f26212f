"""Fourteen kinds of poison, which are records that cannot be decoded: each record becomes one dead letter."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from rtfm.contracts import Contracts, open_contracts
from rtfm.settings import Settings
from tests.integration.test_registry import without_limits
from tests.streams import (
    MESSAGES,
    QUERIES,
    RecordingHandler,
    build_message,
    build_query,
    committed,
    dead_letters,
    eventually,
    produce_raw,
    running,
)

GUID_HEADER = ("__value_schema_id", b"\x01" + b"\xee" * 16)
"""Confluent's header that names a schema by a GUID; no schema has this GUID."""


def poisons(contracts: Contracts) -> dict[str, tuple[bytes | None, list[tuple[str, bytes]]]]:
    """Return one poison record of each kind in requirement R13, as name of the kind → (value, headers)."""
    good = contracts.encode(MESSAGES, build_message(1))
    frame, record = good[:5], good[5:]
    text_at = record.index(b"\x0ahello")  # the position of the content's length and text
    kinds: dict[str, bytes | None] = {
        "empty": b"",
        "tombstone": None,
        "another magic byte": b"\x01" + good[1:],
        "unknown id": b"\x00\x7f\xff\xff\xff" + record,
        "truncated": good[:-3],
        "trailing": good + b"\x00",
        "garbage": bytes(range(256)),
        "another schema": contracts.encode(QUERIES, build_query(1)),
        "a text of a megabyte that is not there": frame + b"\x80\x80\x80\x01" + b"x" * 100,
        "negative length": frame + b"\x01" + record[1:],
        "not UTF-8": frame + record[: text_at + 1] + b"\xff\xfe\xff\xfe\xff" + record[text_at + 6 :],
        "no such branch": frame + record.replace(b"\x02\x06100", b"\x08\x06100", 1),
        "huge array": frame + record[:-2] + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" + b"\x00",
    }
    return {name: (value, []) for name, value in kinds.items()} | {"unknown GUID": (b"\x02\x02a", [GUID_HEADER])}


def test_each_of_fourteen_poisons_is_one_dead_letter_and_the_next_record_is_handled(settings: Settings) -> None:
    """R13: Each of the fourteen records becomes exactly one dead letter, and the record after it is handled."""
    contracts = open_contracts(settings)
    kinds = poisons(contracts)
    assert len(kinds) == 14
    for number, (value, headers) in enumerate(kinds.values()):
        produce_raw(settings, MESSAGES, value, headers=headers)
        produce_raw(settings, MESSAGES, contracts.encode(MESSAGES, build_message(number)))
    recorder = RecordingHandler()
    with running(without_limits(settings), contracts, recorder):
        eventually(lambda: committed(settings) == 2 * len(kinds))
    assert recorder.ids == [str(number) for number in range(len(kinds))]
    letters = dead_letters(settings, contracts)
    assert [letter.value for letter in letters] == [value for value, _ in kinds.values()]


def test_poison_among_a_megabyte_of_text_is_read_or_refused_whole(settings: Settings) -> None:
    """A record with 800,000 bytes of text is handled, and the same record without its last byte is a dead letter."""
    contracts = open_contracts(settings)
    long: Any = evolve(build_message(1), content="é" * 400_000)
    value = contracts.encode(MESSAGES, long)
    produce_raw(settings, MESSAGES, value[:-1])
    produce_raw(settings, MESSAGES, value)
    recorder = RecordingHandler()
    with running(settings, contracts, recorder):
        eventually(lambda: committed(settings) == 2)
    (record,) = [record for batch in recorder.batches for record in batch]
    assert record.event == long
    assert len(dead_letters(settings, contracts)) == 1
