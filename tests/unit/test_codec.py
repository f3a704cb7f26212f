"""Encoding and decoding of events: what is refused, and what comes back."""

import ast
import contextlib
import random
import re
import struct
import tracemalloc
from enum import Enum
from typing import Any

import pytest
from attrs import evolve, fields

from rtfm.contracts import EVENT_OF_TOPIC, catalogue, reference, schema_id_of
from rtfm.contracts.codec import EventCodec
from rtfm.contracts.compiled import varints
from rtfm.errors import ConfigError, InvalidEvent, UndecodableRecord
from rtfm.events import Attachment, ChannelKind, DiscordMessage, MessageChange, TimestampMillis

MESSAGE = DiscordMessage(
    message_id="1286754213907726336",
    guild_id="81384788765712384",
    channel_id="381870553235193857",
    channel_kind=ChannelKind.FORUM_POST,
    channel_name="Où est le câble ?",
    parent_channel_id="381870129706958858",
    author_id="297045071457681409",
    author_name="quillfeather",
    content="E_TIDE_7 again 🌊",
    created_at=TimestampMillis(1_726_854_000_123),
    change=MessageChange.CREATED,
    mentioned_user_ids=["1", "22"],
    attachments=[Attachment(filename="a.log", url="https://cdn.example/a.log", size_bytes=70_000)],
)


def codec() -> EventCodec[DiscordMessage]:
    schema = catalogue.load().topics["discord-messages"].schema
    assert schema is not None
    return EventCodec(DiscordMessage, schema)


@pytest.mark.parametrize("data", [b"", b"\x00\x00\x00\x00", b"\x01\x00\x00\x00\x07abc"])
def test_bytes_without_a_schema_id_are_undecodable(data: bytes) -> None:
    """Bytes that are too short for a schema id, or have another magic byte, are undecodable."""
    with pytest.raises(UndecodableRecord):
        schema_id_of(data)


def test_a_byte_too_few_or_too_many_is_undecodable() -> None:
    """A record with a byte too few or too many is undecodable, because its last field must end at its last byte."""
    data = codec().encode(MESSAGE, 7)
    for broken in (data[:-1], data + b"\x00", data[:5]):
        with pytest.raises(UndecodableRecord):
            codec().decode(broken)


def test_a_value_of_the_wrong_type_is_refused_with_its_field() -> None:
    """A value of the wrong type is refused with an error that names the field."""
    wrong: Any = 5
    with pytest.raises(InvalidEvent, match="author_name"):
        codec().encode(evolve(MESSAGE, author_name=wrong), 7)


def test_a_class_that_drifted_from_its_schema_is_refused_with_the_field() -> None:
    """The codec of a class that does not match its schema cannot be built, so that no service starts with it."""
    schema = catalogue.load().topics["discord-messages"].schema
    assert schema is not None
    fields = [entry for entry in schema["fields"] if entry["name"] != "content"]
    with pytest.raises(ConfigError, match=r"DiscordMessage\.content") as caught:
        EventCodec(DiscordMessage, {**schema, "fields": fields})
    assert "rtfm.events" in str(caught.value.hint)


def test_an_event_comes_back_as_it_was() -> None:
    """An event is the same after it was encoded with a schema id and decoded again."""
    data = codec().encode(MESSAGE, 70_000)
    assert data[:5] == b"\x00" + struct.pack(">I", 70_000)
    assert schema_id_of(data) == 70_000
    assert codec().decode(data) == MESSAGE


def test_generated_code_names_its_variables_for_the_fields() -> None:
    """The variables of generated code have the names of the fields, including nested ones.

    A reader of `schemas show --codec` finds a field by its name.
    """
    made = codec()
    for source in (made.encoder_source, made.decoder_source):
        variables = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        assert {field.name for field in fields(DiscordMessage)} <= variables
        assert {f"attachment_{field.name}" for field in fields(Attachment)} <= variables
        assert not {name for name in variables if re.fullmatch("v[0-9]+.?", name)}


@pytest.mark.parametrize("topic_name", EVENT_OF_TOPIC)
def test_every_event_class_matches_its_schema(topic_name: str) -> None:
    """The codec of every event class can be built; building it compares class and schema field by field."""
    schema = catalogue.load().topics[topic_name].schema
    assert schema is not None
    EventCodec(EVENT_OF_TOPIC[topic_name], schema)


class Word(str, Enum):  # noqa: UP042 - its str() differs from its value, unlike that of StrEnum
    """A string class as some programs use it."""

    HELLO = "hello"


def test_a_subclass_of_str_is_encoded_by_its_value() -> None:
    """A member of a string class is encoded by its value, not by its str()."""
    data = codec().encode(evolve(MESSAGE, content=Word.HELLO), 7)
    assert data == codec().encode(evolve(MESSAGE, content="hello"), 7)


def test_a_record_of_another_name_is_undecodable_though_its_fields_fit() -> None:
    """If writer's and reader's schema have different names, a value is undecodable even if its fields fit."""
    data = codec().encode(MESSAGE, 7)
    with pytest.raises(UndecodableRecord, match="OtherMessage"):
        codec().decode(data, {**codec().schema, "name": "OtherMessage"})


@pytest.mark.parametrize(
    "ids",
    [["a", "bb"], ["7" * 18, "7" * 19] * 20, ["7" * 19] * 40, ["7"], ["7" * 20], ["x" * 128, "7"], ["7" * 18] * 9000],
)
def test_ids_of_any_mixture_of_lengths_come_back(ids: list[str]) -> None:
    """Ids come back unchanged: ids of one length or of several, long ids, many ids, and ids that are not decimal.

    Each of these cases takes its own path through the code.
    """
    schema = catalogue.load().topics["discord-messages"].schema or {}
    for channel_id in ("200", "a" * 128):
        event = evolve(MESSAGE, mentioned_user_ids=ids, guild_id="7" * 20, channel_id=channel_id)
        data = codec().encode(event, 7)
        assert data == reference.encoder(schema)(event, data[:5])
        assert codec().decode(data) == event


@pytest.mark.parametrize("seed", range(20))
def test_texts_that_look_like_the_lengths_of_ids_come_back(seed: int) -> None:
    """Texts that look like encoded lengths of ids come back unchanged.

    The encoding uses characters for the lengths 17 to 19, and these characters can also occur in texts.
    """
    chance = random.Random(seed)
    signs = chance.choice(["0123456789", '0123456789&$"', "07&\x00é€"])
    for count in range(80):
        texts = ["".join(chance.choices(signs, k=chance.choice([0, 17, 18, 19, 24, 64, 300]))) for _ in range(count)]
        data = varints.encode_texts(texts).encode("latin-1") + b"&rest"
        assert varints.decode_texts(data, data.decode("latin-1"), 0) == (texts, len(data) - 5)


def test_a_count_that_no_record_could_hold_allocates_nothing() -> None:
    """If a record claims to contain a huge number of items, decoding it allocates little memory."""
    frame, record = codec().encode(evolve(MESSAGE, attachments=[]), 7)[:5], codec().encode(MESSAGE, 7)[5:]
    codec_once = codec()
    tracemalloc.start()
    for place in range(len(record)):
        with contextlib.suppress(UndecodableRecord):
            codec_once.decode(frame + record[:place] + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" + record[place:])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize(
    ("field_type", "what"),
    [
        ({"type": "array", "items": "null"}, "take no bytes"),
        ({"type": "map", "values": {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}}, "no bytes"),
        ({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, "take no bytes"),
        (
            {
                "type": "map",
                "values": {
                    "type": "record",
                    "name": "Nest",
                    "fields": [{"name": "inner", "type": {"type": "map", "values": "Nest"}}],
                },
            },
            "contains itself",
        ),
    ],
)
def test_schemas_with_unbounded_items_are_not_read(field_type: Any, what: str) -> None:
    """A schema is refused if its items take no bytes, or if it contains itself without bound.

    A count of billions of such items takes five bytes, and each of them would take time. A nesting that is as deep as
    the record is long would overflow fastavro's stack.
    """
    own = codec()
    # the compiled codec leaves a union of so many types to fastavro
    many = ["string", *({"type": "fixed", "name": f"Hash{number}", "size": 1} for number in range(70))]
    fields = [{**entry, "type": many} if entry["name"] == "content" else entry for entry in own.schema["fields"]]
    hostile = {**own.schema, "fields": [*fields, {"name": "extra", "type": field_type}]}
    data = struct.pack(">bI", 0, 7) + b"\x00" * 40
    with pytest.raises(UndecodableRecord, match=what):
        own.decode(data, hostile)


def hostile(field_type: Any, *, by_fastavro: bool) -> Any:
    """Return DiscordMessage's schema with a field of ``field_type`` before all others."""
    own = codec().schema
    # the compiled codec leaves a union of so many types to fastavro
    many = ["string", *({"type": "fixed", "name": f"Hash{number}", "size": 1} for number in range(70))]
    fields = [
        {**entry, "type": many} if by_fastavro and entry["name"] == "content" else entry for entry in own["fields"]
    ]
    return {**own, "fields": [{"name": "extra", "type": field_type}, *fields]}


@pytest.mark.parametrize("by_fastavro", [False, True])
@pytest.mark.parametrize("size", [-1, True, "5", 1.5])
def test_a_fixed_of_an_impossible_size_is_undecodable(size: Any, by_fastavro: bool) -> None:
    """A schema with a fixed type of an impossible size is refused, because skipping its values would never end."""
    fixed = {"type": "array", "items": {"type": "fixed", "name": "F", "size": size}}
    with pytest.raises(UndecodableRecord, match="has the invalid size"):
        codec().decode(struct.pack(">bI", 0, 7) + b"\x02" * 60, hostile(fixed, by_fastavro=by_fastavro))


@pytest.mark.parametrize("by_fastavro", [False, True])
def test_records_without_bytes_take_no_time_however_they_are_nested(by_fastavro: bool) -> None:
    """Records that take no bytes are skipped at once, even if they are nested sixty levels deep.

    If each record has two fields, the records have together more fields than could ever be skipped one by one.
    """
    nest: Any = {"type": "record", "name": "R0", "fields": []}
    for level in range(1, 61):
        fields = [{"name": "a", "type": nest}, {"name": "b", "type": f"R{level - 1}"}]
        nest = {"type": "record", "name": f"R{level}", "fields": fields}
    with pytest.raises(UndecodableRecord):
        codec().decode(struct.pack(">bI", 0, 7) + b"\x00" * 60, hostile(nest, by_fastavro=by_fastavro))


def test_items_without_bytes_take_no_time_however_many_they_are() -> None:
    """Items that take no bytes are skipped at once.

    A block of three bytes can claim as many items as the record has bytes, and a record can have many blocks.
    """
    block = varints.encode_long(150_000).encode("latin-1")
    data = struct.pack(">bI", 0, 7) + block * 100_000 + b"\x00" * 150_000
    with pytest.raises(UndecodableRecord):
        codec().decode(data, hostile({"type": "array", "items": "null"}, by_fastavro=False))


def test_a_schema_that_is_nested_too_deeply_is_undecodable() -> None:
    """A schema that is nested too deeply is refused before it exhausts the stack."""
    nest: Any = "string"
    for level in range(2_000):
        nest = {"type": "record", "name": f"D{level}", "fields": [{"name": "x", "type": nest}]}
    with pytest.raises(UndecodableRecord, match="nested too deeply"):
        codec().decode(struct.pack(">bI", 0, 7) + b"\x00" * 60, hostile(nest, by_fastavro=False))
