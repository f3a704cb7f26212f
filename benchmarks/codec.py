"""What a typed event costs: the compiled codec against fastavro, on the three contracts; no Kafka.

Peers: fastavro writing from a ready dictionary, and fastavro reading plus a generated constructor. Every value
that comes out is dropped at once, so that the garbage collector is not what is measured. Rates are per second of this
thread's processor time: what else the machine does is no part of the figure.
"""

from __future__ import annotations

import gc
import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import fastavro

from benchmarks.report import Figure, figure, interleaved, report
from rtfm.contracts import EVENT_OF_TOPIC, EventCodec, catalogue, reference
from rtfm.events import (
    Attachment,
    Audience,
    BotQuery,
    BotResponse,
    ChannelKind,
    Citation,
    ContextMessage,
    DiscordMessage,
    MessageChange,
    Outcome,
    QueryOrigin,
    SourceKind,
    Speaker,
    TimestampMillis,
)

WORDS = (
    *("how", "do", "I", "mount", "the", "disk", "error", "again", "why", "log", "says", "nothing", "update", "after"),
    *("restore", "fails", "with", "code", "seven", "and", "it", "is", "a", "new", "server", "café"),
)
EVENTS = 2_000
_IDS = (10**18, 15 * 10**17)
ENCODE_TARGET, DECODE_TARGET, VERSION_TARGET = 2.5, 1.7, 0.5


def events(topic_name: str, count: int = EVENTS, seed: int = 7) -> list[Any]:
    """Believable events of a topic, the same for the same seed."""
    chance = random.Random(seed)
    return [_MAKERS[topic_name](chance, number) for number in range(count)]


def _snowflake(chance: random.Random) -> str:
    return str(chance.randrange(*_IDS))  # 19 digits, which all ids have that Discord gave out since July 2022


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randrange(1, words)))


def _message(chance: random.Random, number: int) -> DiscordMessage:
    return DiscordMessage(
        message_id=_snowflake(chance),
        guild_id=_snowflake(chance),
        channel_id=_snowflake(chance),
        channel_kind=ChannelKind.TEXT if number % 3 else ChannelKind.PUBLIC_THREAD,
        channel_name="support",
        parent_channel_id=None if number % 3 else _snowflake(chance),
        author_id=_snowflake(chance),
        author_name=f"member{number % 97}",
        content=_text(chance, 40),
        created_at=TimestampMillis(1_790_000_000_000 + number * 977),
        change=MessageChange.CREATED,
        reply_to_message_id=_snowflake(chance) if number % 4 == 0 else None,
        mentioned_user_ids=[_snowflake(chance) for _ in range(number % 3)],
        attachments=[Attachment(filename="a.log", url="https://cdn.example/a.log", size_bytes=70_000)]
        * (number % 9 == 0),
    )


def _query(chance: random.Random, number: int) -> BotQuery:
    asked_at = TimestampMillis(1_790_000_000_000 + number * 977)
    context = [ContextMessage(speaker=Speaker.ASKER, content=_text(chance, 20))] * (number % 3)
    return BotQuery(
        query_id="m" + _snowflake(chance),
        guild_id=_snowflake(chance),
        channel_id=_snowflake(chance),
        message_id=_snowflake(chance),
        asker_id=_snowflake(chance),
        question=_text(chance, 20),
        asked_at=asked_at,
        expires_at=TimestampMillis(asked_at + 600_000),
        audience=Audience.PUBLIC,
        visible_channel_ids=[_snowflake(chance) for _ in range(40)],
        context=context,
        origin=QueryOrigin.MENTION,
    )


def _response(chance: random.Random, number: int) -> BotResponse:
    citations = [
        Citation(
            number=place,
            kind=SourceKind.MESSAGE,
            guild_id=_snowflake(chance),
            channel_id=_snowflake(chance),
            channel_kind=ChannelKind.TEXT,
            message_id=_snowflake(chance),
            author_name="quillfeather",
            created_at=TimestampMillis(1_690_000_000_000 + number),
            excerpt=_text(chance, 30),
            score=chance.random(),
        )
        for place in range(1, 4)
    ]
    return BotResponse(
        query_id="m" + _snowflake(chance),
        guild_id=_snowflake(chance),
        channel_id=_snowflake(chance),
        query_message_id=_snowflake(chance),
        asker_id=_snowflake(chance),
        asked_at=TimestampMillis(0),
        audience=Audience.PUBLIC,
        outcome=Outcome.ANSWERED,
        answer=_text(chance, 120),
        citations=citations,
        model="gemini-flash-latest",
        prompt_tokens=1800,
        output_tokens=210,
        answered_at=TimestampMillis(1_790_000_000_000 + number),
        elapsed_ms=1234 + number,
    )


_MAKERS: dict[str, Callable[[random.Random, int], Any]] = {
    "discord-messages": _message,
    "bot-queries": _query,
    "bot-responses": _response,
}


def rate(operation: Callable[[Any], object], values: Iterable[Any], count: int) -> float:
    """Operations of ``operation`` over ``values`` in a second of processor time, results dropped."""
    start = time.thread_time()
    for value in values:
        operation(value)
    return count / (time.thread_time() - start)


def figures(topic_name: str, rounds: int) -> list[Figure]:
    """Encode, decode, and decode of another version, for one contract."""
    schema = catalogue.load().topic(topic_name).schema
    assert schema is not None
    codec: EventCodec[Any] = EventCodec(EVENT_OF_TOPIC[topic_name], schema)
    values = events(topic_name)
    encode, decode = codec.encoder(7), codec.decoder()
    records = [encode(value) for value in values]
    plain = [reference.plain(value) for value in values]
    parsed = reference.parsed(schema)
    build = reference_constructor(EVENT_OF_TOPIC[topic_name], codec)
    frame = records[0][:5]

    def fastavro_encode(value: Any) -> bytes:
        out = io.BytesIO()
        out.write(frame)
        fastavro.schemaless_writer(out, parsed, value)
        return out.getvalue()

    def fastavro_decode(data: bytes) -> Any:
        source = io.BytesIO(data)
        source.seek(5)
        plain_event: Any = fastavro.schemaless_reader(source, parsed, None)
        return build(plain_event)

    assert [fastavro_encode(value) for value in plain] == records
    assert all(decode(data) == value == fastavro_decode(data) for data, value in zip(records, values, strict=True))
    older = json.loads(json.dumps(schema))
    older["fields"].append({"name": "added", "type": ["null", "string"], "default": None, "doc": "Unknown to readers."})
    of_another_version = codec.decoder(older)
    other_records = [data + b"\x02\x08text" for data in records]
    assert of_another_version(other_records[0]) == values[0]
    gc.collect()
    gc.freeze()
    samples = interleaved(
        {
            "encode": lambda: rate(encode, values, EVENTS),
            "fastavro encode": lambda: rate(fastavro_encode, plain, EVENTS),
            "decode": lambda: rate(decode, records, EVENTS),
            "fastavro decode": lambda: rate(fastavro_decode, records, EVENTS),
            "decode other version": lambda: rate(of_another_version, other_records, EVENTS),
        },
        rounds=rounds,
    )
    return [
        figure(
            f"{topic_name}: encode against fastavro from a dictionary",
            samples["encode"],
            samples["fastavro encode"],
            ENCODE_TARGET,
            unit="/s",
        ),
        figure(
            f"{topic_name}: decode against fastavro and a generated constructor",
            samples["decode"],
            samples["fastavro decode"],
            DECODE_TARGET,
            unit="/s",
        ),
        figure(
            f"{topic_name}: decode of another version against the direct path",
            samples["decode other version"],
            samples["decode"],
            VERSION_TARGET,
            unit="/s",
        ),
    ]


def reference_constructor(event_class: type[Any], codec: EventCodec[Any]) -> Callable[[dict[str, Any]], Any]:
    """The peer's constructor: generated Python from fastavro's dictionary to the event, nested ones included."""
    from rtfm.contracts import shapes

    names: dict[str, Any] = {}

    def expression(shape: shapes.Shape, value: str) -> str:
        match shape:
            case shapes.Record(event_class=known, slots=slots):
                names[known.__name__] = known
                parts = (f"{slot.name}={expression(slot.shape, f'{value}[{slot.name!r}]')}" for slot in slots)
                return f"{known.__name__}({', '.join(parts)})"
            case shapes.Enumeration(enum_class=enum_class, symbols=symbols):
                table = f"OF_{enum_class.__name__}"
                names[table] = {symbol: enum_class(symbol) for symbol in symbols}
                return f"{table}[{value}]"
            case shapes.Sequence(items=items) if isinstance(items, shapes.Record):
                return f"[{expression(items, 'item')} for item in {value}]"
            case _:
                return value

    assert codec.shape.event_class is event_class
    build: Callable[[dict[str, Any]], Any] = eval(f"lambda d: {expression(codec.shape, 'd')}", names)  # noqa: S307 - made here
    return build


def main() -> int:
    """Print the figures; 1 when a target was missed."""
    found = [entry for topic_name in EVENT_OF_TOPIC for entry in figures(topic_name, rounds=7)]
    return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
