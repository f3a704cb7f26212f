"""The contracts of Kafka's topics, and the conversion between events and bytes.

This package contains the catalogue, the codecs, the rules for schemas and the registry client. It does not talk to
Kafka. The package ``rtfm.streams`` talks to Kafka, and uses one ``Contracts`` per process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rtfm import names
from rtfm.contracts import catalogue as catalogues
from rtfm.contracts.catalogue import CATALOGUE_FILE, Catalogue, Topic
from rtfm.contracts.codec import FRAME_BYTES, EventCodec, schema_id_of
from rtfm.contracts.registry import SchemaRegistry
from rtfm.errors import ConfigError
from rtfm.events import BotQuery, BotResponse, DiscordMessage
from rtfm.home import make_private

if TYPE_CHECKING:
    from rtfm.settings import Settings

__all__ = [
    "COMMAND_TIMEOUT_S",
    "EVENT_OF_TOPIC",
    "Catalogue",
    "Contracts",
    "EventCodec",
    "SchemaRegistry",
    "Topic",
    "open_contracts",
    "open_registry",
    "schema_id_of",
]

COMMAND_TIMEOUT_S = 15.0
"""Timeout, in seconds, of each registry request of a command that writes to the registry.

The timeout of services is shorter, because services retry and commands do not. A registry that has just started takes
seconds to respond.
"""

EVENT_OF_TOPIC: dict[str, type[Any]] = {
    names.MESSAGES: DiscordMessage,
    names.QUERIES: BotQuery,
    names.RESPONSES: BotResponse,
}


class Contracts:
    """The encoder and decoder for the events of every topic.

    A process builds one instance and may share it between threads.
    """

    def __init__(self, catalogue: Catalogue, registry: SchemaRegistry) -> None:
        """Build a codec for each topic of ``EVENT_OF_TOPIC``.

        Raises ConfigError if an event class differs from its schema; the message names the topic or the field.
        """
        self.catalogue = catalogue
        self.registry = registry
        self._codecs: dict[str, EventCodec[Any]] = {}
        for name, event_class in EVENT_OF_TOPIC.items():
            topic = catalogue.topic(name)
            if topic.schema is None:
                raise ConfigError(f"the topic {name} has no schema in {catalogue.directory / CATALOGUE_FILE}")
            self._codecs[name] = EventCodec(event_class, topic.schema)
        # Topic → the first five bytes of a value (the frame, with the schema id) → the decoder for that schema.
        self._decoders: dict[str, dict[bytes, Callable[[bytes], Any]]] = {name: {} for name in self._codecs}
        registry.on_conflict(self._forget_decoders)

    def encode(self, topic_name: str, event: Any) -> bytes:
        """Encode ``event`` in Confluent's wire format, as the value of a record.

        Raises InvalidEvent if the event does not fit the schema or breaks a rule, ConfigError if the schema is not
        registered, and Unavailable if the registry does not respond.
        """
        codec = self.codec(topic_name)
        return codec.encode(event, self.registry.id_for(topic_name, codec.schema))

    def decode(self, topic_name: str, data: bytes) -> Any:
        """Decode the value of a record that was written with any version of the schema.

        Raises UndecodableRecord if the bytes are not a value of the schema whose id they carry, and UnknownSchema if
        the registry has no usable schema with that id. Raises Unavailable if the schema must be looked up and the
        registry does not respond. Raises ConfigError if the registry now has another schema under an id that this
        process has used.
        """
        try:
            decode = self._decoders[topic_name][data[:FRAME_BYTES]]
        except KeyError:
            decode = self._find_decoder(topic_name, data)
        return decode(data)

    def _find_decoder(self, topic_name: str, data: bytes) -> Callable[[bytes], Any]:
        codec = self.codec(topic_name)
        schema_id = schema_id_of(data)
        decode = codec.decoder(self.registry.schema(schema_id))
        self._decoders[topic_name][data[:FRAME_BYTES]] = decode
        # Another thread may have found a conflict of ids since the first look-up, and has then forgotten all decoders.
        # If so, this second look-up raises ConfigError, and the new decoder must be forgotten, too.
        try:
            self.registry.schema(schema_id)
        except ConfigError:
            self._forget_decoders()
            raise
        return decode

    def _forget_decoders(self) -> None:
        for known in self._decoders.values():
            known.clear()

    def key(self, topic_name: str, event: Any) -> bytes:
        """Return the record key for ``event``: the value of the field that the catalogue names, as UTF-8."""
        return str(getattr(event, self.catalogue.topic(topic_name).key)).encode()

    def codec(self, topic_name: str) -> EventCodec[Any]:
        """Return the codec of a topic. Raises ConfigError if the topic carries no events."""
        try:
            return self._codecs[topic_name]
        except KeyError:
            raise ConfigError(f"the topic {topic_name} carries no events") from None


def open_registry(settings: Settings, *, timeout_s: float = 2.0) -> SchemaRegistry:
    """Build the registry client of this process. ``timeout_s`` is the time limit of each request, in seconds.

    The default is short, because services retry. Commands that write use ``COMMAND_TIMEOUT_S``.
    """
    with suppress(OSError):  # if the folder cannot be created, the client works without a disk cache
        make_private(settings.home)
    return SchemaRegistry(
        settings.schema_registry_url,
        timeout_s=timeout_s,
        cache_dir=settings.home / "cache" / "registry",
        prefix=settings.kafka_topic_prefix,
    )


def open_contracts(settings: Settings) -> Contracts:
    """Build the contracts from the settings, without a request to the registry.

    Raises ConfigError if the catalogue is malformed, or if an event class differs from its schema.
    """
    return Contracts(catalogues.load(settings.schemas_dir), open_registry(settings))
