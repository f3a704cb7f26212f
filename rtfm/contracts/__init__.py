"""The contracts: what stands in Kafka, by schema, and the way between events and bytes.

Owns schemas, codecs and the registry client. It does not talk to Kafka: ``rtfm.streams`` does, with a ``Contracts``
that is built once a process.
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
"""How long a command waits that has one try, on a machine where everything has just been started."""

EVENT_OF_TOPIC: dict[str, type[Any]] = {
    names.MESSAGES: DiscordMessage,
    names.QUERIES: BotQuery,
    names.RESPONSES: BotResponse,
}


class Contracts:
    """Events of every topic to bytes and back. Built once a process, safe to share between threads."""

    def __init__(self, catalogue: Catalogue, registry: SchemaRegistry) -> None:
        """Build the codecs; ConfigError names the topic or the field where class and schema differ."""
        self.catalogue = catalogue
        self.registry = registry
        self._codecs: dict[str, EventCodec[Any]] = {}
        for name, event_class in EVENT_OF_TOPIC.items():
            topic = catalogue.topic(name)
            if topic.schema is None:
                raise ConfigError(f"the topic {name} has no schema in {catalogue.directory / CATALOGUE_FILE}")
            self._codecs[name] = EventCodec(event_class, topic.schema)
        # Topic → the five bytes that name a schema → its decoder.
        self._decoders: dict[str, dict[bytes, Callable[[bytes], Any]]] = {name: {} for name in self._codecs}
        registry.on_conflict(self._forget_decoders)

    def encode(self, topic_name: str, event: Any) -> bytes:
        """The value of a record: ``event`` in Confluent's wire format.

        Raises InvalidEvent when it does not fit the schema, ConfigError when the schema is not registered and
        Unavailable when the registry does not answer.
        """
        codec = self.codec(topic_name)
        return codec.encode(event, self.registry.id_for(topic_name, codec.schema))

    def decode(self, topic_name: str, data: bytes) -> Any:
        """The event in the value of a record, whichever version of the schema it was written with.

        Raises UndecodableRecord, UnknownSchema, Unavailable when the registry has to be asked and does not answer, and
        ConfigError when it was found to mean something else by an id than it did.
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
        self.registry.schema(schema_id)  # raises if the ids were found to be wrong meanwhile
        return decode

    def _forget_decoders(self) -> None:
        for known in self._decoders.values():
            known.clear()

    def key(self, topic_name: str, event: Any) -> bytes:
        """The key of a record: the field of ``event`` that the catalogue names, as UTF-8."""
        return str(getattr(event, self.catalogue.topic(topic_name).key)).encode()

    def codec(self, topic_name: str) -> EventCodec[Any]:
        """The codec of a topic; ConfigError when it has none."""
        try:
            return self._codecs[topic_name]
        except KeyError:
            raise ConfigError(f"the topic {topic_name} carries no events") from None


def open_registry(settings: Settings, *, timeout_s: float = 2.0) -> SchemaRegistry:
    """The registry client of this process; ``timeout_s`` bounds each request.

    A service asks again by itself, so it waits briefly. A command that writes has one try, and a registry that has
    just started takes seconds for its first write: ``COMMAND_TIMEOUT_S``.
    """
    with suppress(OSError):  # then nothing is cached
        make_private(settings.home)
    return SchemaRegistry(
        settings.schema_registry_url,
        timeout_s=timeout_s,
        cache_dir=settings.home / "cache" / "registry",
        prefix=settings.kafka_topic_prefix,
    )


def open_contracts(settings: Settings) -> Contracts:
    """The contracts as the settings have them; asks no registry yet. Raises ConfigError."""
    return Contracts(catalogues.load(settings.schemas_dir), open_registry(settings))
