"""The codec that encodes and decodes events in Confluent's wire format.

In this format a value begins with a frame of five bytes: 0x00, then the schema id as 4 big-endian bytes. The Avro value
follows. The codec guarantees three things:

- It decodes bytes only if the frame is followed by exactly one value of the schema whose id the frame carries.
- It refuses to encode an event that does not fit its schema or breaks a rule of ``rtfm.events``. The error names the
  field.
- The memory that it allocates is at most a small multiple of the input's size.

Decoding does not check the rules of ``rtfm.events``, because handlers check them. The codec does not use a registry.
For encoding, callers pass the schema id. For decoding, they pass the writer's schema if it is not the codec's own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rtfm.clock import now_ms
from rtfm.contracts import compiled, reference, shapes
from rtfm.contracts.catalogue import Schema
from rtfm.errors import InvalidEvent, UndecodableRecord
from rtfm.events import find_broken_rule

Event = TypeVar("Event")

MAGIC = 0
FRAME_BYTES = 5
_FRAME = struct.Struct(">bI")


def schema_id_of(data: bytes) -> int:
    """Return the id of the schema that ``data`` was written with. Raises UndecodableRecord if there is no id."""
    if len(data) < FRAME_BYTES:
        raise UndecodableRecord(f"{len(data)} bytes are too few for a value with a schema id")
    magic, schema_id = _FRAME.unpack_from(data)
    if magic != MAGIC:
        raise UndecodableRecord(f"the first byte is {data[0]:#04x}, not 0x00 as in Confluent's wire format")
    return int(schema_id)


class EventCodec(Generic[Event]):
    """The codec of one event class and its schema. Threads may share an instance."""

    def __init__(self, event_class: type[Event], schema: Schema) -> None:
        """Match the class with the schema and build the codec.

        Raises ConfigError if the two differ; the message names the field.
        """
        self.event_class = event_class
        self.schema = schema
        self.shape = shapes.match(event_class, schema)
        self.encoder_source = self.decoder_source = ""
        if shapes.is_covered(self.shape):
            self._encoder_for, self.encoder_source = compiled.encoder(self.shape)
            self._decode, self.decoder_source = compiled.decoder(self.shape, schema)
        else:
            self._encoder_for = self._fastavro_encoder
            self._decode = self._fastavro_decoder(schema)
        self._encoders: dict[int, Callable[[Event], bytes]] = {}

    def encode(self, event: Event, schema_id: int) -> bytes:
        """Encode ``event`` and put the frame before it.

        Raises InvalidEvent if the event is invalid; the message names the field.
        """
        try:
            return self._encoders[schema_id](event)
        except KeyError:
            return self.encoder(schema_id)(event)

    def decode(self, data: bytes, writer_schema: Schema | None = None) -> Event:
        """Decode the framed bytes ``data``.

        ``writer_schema`` is the schema whose id the frame carries, or None if that is the codec's own schema. Raises
        UndecodableRecord if the bytes are not exactly one record of that schema.
        """
        schema_id_of(data)
        return self.decoder(writer_schema)(data)

    def encoder(self, schema_id: int) -> Callable[[Event], bytes]:
        """Build a function that encodes events with ``schema_id``. The function is faster than ``encode``."""
        encode = self._encoder_for(_FRAME.pack(MAGIC, schema_id).decode("latin-1"))
        self._encoders[schema_id] = encode
        return encode

    def decoder(self, writer_schema: Schema | None = None) -> Callable[[bytes], Event]:
        """Build a function that decodes records of ``writer_schema``. The function does not check their frames."""
        try:
            return self._build_decoder(writer_schema or self.schema)
        except RecursionError:
            why = f"{self.event_class.__name__} cannot be decoded: the writer's schema is nested too deeply"
            return lambda _: _raise_undecodable(why)

    def source_for(self, writer_schema: Schema) -> str:
        """Return the source of the compiled decoder for records of ``writer_schema``.

        Raises compiled.Unresolvable if these records cannot be read as the event. Raises compiled.NotCovered if the
        compiled codec does not support a type of the schemas; fastavro then decodes these records.
        """
        return compiled.decoder(self.shape, writer_schema)[1]

    def _build_decoder(self, writer_schema: Schema) -> Callable[[bytes], Event]:
        if writer_schema == self.schema:
            return self._decode
        if not shapes.is_covered(self.shape):
            return self._fastavro_decoder(writer_schema)
        try:
            return compiled.decoder(self.shape, writer_schema)[0]
        except compiled.NotCovered:
            return self._fastavro_decoder(writer_schema)
        except compiled.Unresolvable as exc:
            why = f"{self.event_class.__name__} cannot be decoded from the writer's schema: {exc}"
            return lambda _: _raise_undecodable(why)

    def _fastavro_encoder(self, frame: str) -> Callable[[Any], bytes]:
        write, before = reference.encoder(self.schema), frame.encode("latin-1")

        def encode(event: Any) -> bytes:
            try:
                data = write(event, before)
            except Exception as exc:  # fastavro raises its own errors, ValueError and TypeError
                raise compiled.build_refusal(self.shape, event, exc) from exc
            if (broken := find_broken_rule(event, now=now_ms())) is not None:
                raise InvalidEvent(f"{self.event_class.__name__}.{broken}")
            return data

        return encode

    def _fastavro_decoder(self, writer_schema: Schema) -> Callable[[bytes], Event]:
        name = self.event_class.__name__
        if found := reference.find_hazard(writer_schema):
            why = f"{name} cannot be decoded, because in the writer's schema {found}"
            return lambda _: _raise_undecodable(why)
        read = reference.decoder(self.shape, self.schema, writer_schema, FRAME_BYTES)

        def decode(data: bytes) -> Event:
            try:
                return read(data)  # type: ignore[no-any-return]  # the shape's class is Event
            except Exception as exc:  # fastavro raises EOFError, IndexError, UnicodeDecodeError and its own
                raise UndecodableRecord(f"{name}: {type(exc).__name__}: {str(exc)[:200]}") from exc

        return decode


def _raise_undecodable(why: str) -> Any:
    raise UndecodableRecord(why)
