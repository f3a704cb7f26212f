"""The values of a damaged record up to its fault, and the byte of the fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rtfm_cli.dlq.show import hex_dump

from rtfm.contracts import EVENT_OF_TOPIC, EventCodec
from rtfm.contracts import catalogue as catalogues
from rtfm.contracts.inspection import DecodingFault, frame_fault, inspect
from rtfm.errors import UndecodableRecord
from tests.streams import MESSAGES, build_message

SCHEMA = catalogues.load().topic(MESSAGES).schema
assert SCHEMA is not None
CODEC = EventCodec(EVENT_OF_TOPIC[MESSAGES], SCHEMA)
GOOD = CODEC.encode(build_message(1, content="hello"), 7)

RECORD: dict[str, Any] = {
    "type": "record",
    "name": "Odd",
    "fields": [
        {"name": "flag", "type": "boolean"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "maybe", "type": ["null", "double"]},
        {"name": "counts", "type": {"type": "map", "values": "long"}},
        {"name": "texts", "type": {"type": "array", "items": "string"}},
        {"name": "mark", "type": {"type": "fixed", "name": "Mark", "size": 2}},
    ],
}
ODD = b"\x00\x00\x00\x00\x01" + b"\x01\x02\x00" + b"\x02\x02k\x08\x00" + b"\x04\x02x\x02y\x00" + b"\xab\xcd"


def test_a_whole_record_is_read_whole() -> None:
    """A valid record has no fault, and all its values are returned in a form that can be written as JSON."""
    found = inspect(GOOD, SCHEMA or {})
    assert found.fault is None
    assert (found.fields["message_id"], found.fields["content"], found.fields["change"]) == ("1", "hello", "CREATED")
    odd = inspect(ODD, RECORD)
    assert odd.fault is None
    assert odd.fields == {
        "flag": True,
        "kind": "B",
        "maybe": None,
        "counts": {"k": 4},
        "texts": ["x", "y"],
        "mark": "abcd",
    }
    json.dumps(odd.fields)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", DecodingFault(0, "the frame", "0 bytes are too few for a value with a schema id")),
        (b"\x00\x00", DecodingFault(2, "the frame", "2 bytes are too few for a value with a schema id")),
        (ODD[:5] + b"\x02" + ODD[6:], DecodingFault(5, "Odd.flag", "the byte of a boolean is neither 0 nor 1")),
        (ODD[:6] + b"\x08" + ODD[7:], DecodingFault(6, "Odd.kind", "the enum has 2 symbols, and 4 is not one of them")),
        (
            ODD[:7] + b"\x04" + ODD[8:],
            DecodingFault(7, "Odd.maybe", "the union has 2 branches, and 2 is not one of them"),
        ),
        (
            ODD[:14] + b"\x7f" + ODD[15:],
            DecodingFault(14, "Odd.texts[0]", "a length is negative, or goes beyond the end of the record"),
        ),
        (ODD[:15] + b"\xff" + ODD[16:], DecodingFault(15, "Odd.texts[0]", "the text is not UTF-8")),
        (ODD[:-1], DecodingFault(len(ODD) - 1, "Odd.mark", "the record ends too early")),
        (ODD + b"zz", DecodingFault(len(ODD), "the end", "2 more bytes follow the record")),
    ],
)
def test_the_fault_is_located_to_the_byte(data: bytes, fault: DecodingFault) -> None:
    """The fault is found at its byte, counted from the first byte of the frame."""
    assert inspect(data, RECORD).fault == fault


def test_values_before_the_fault_are_shown() -> None:
    """The values before the fault are returned, including the beginning of a list."""
    found = inspect(ODD[:17] + b"\xfe" + ODD[18:], RECORD)
    assert found.fields["texts"] == ["x"]
    assert "mark" not in found.fields
    assert frame_fault(GOOD) is None


@given(st.data())
def test_the_inspection_finds_exactly_the_faults_of_the_codec(data: st.DataObject) -> None:
    """The inspection finds a fault if and only if the codec does, for records with random changes of bytes."""
    at = data.draw(st.integers(5, len(GOOD)))
    broken = GOOD[:at] + data.draw(st.binary(max_size=3)) + GOOD[at + data.draw(st.integers(0, 3)) :]
    found = inspect(broken, SCHEMA or {})
    try:
        CODEC.decode(broken)
    except UndecodableRecord:
        assert found.fault is not None
        assert 5 <= found.fault.position <= len(broken)
    else:
        assert found.fault is None


def test_the_dump_shows_the_bytes_around_the_fault_and_points_at_it() -> None:
    """The dump shows the bytes around the fault, and a pointer marks the byte of the fault.

    If the record is cut short, the pointer is after the last byte.
    """
    lines = hex_dump(bytes(range(200)), 100)
    assert lines[0].startswith("  000030  30 31")
    pointer = lines.index(next(line for line in lines if line.strip() == "^^"))
    assert lines[pointer - 1][lines[pointer].index("^^") :].startswith("64")
    assert [line.strip() for line in hex_dump(bytes(16), 16)][-1] == "^^"
    assert hex_dump(b"", None) == []
