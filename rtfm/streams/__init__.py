"""Streams: topics, producers, the pipeline and dead letters, on Kafka.

``open_reader`` and ``open_producer`` are the stable interface for other programs; docs/contracts.md shows both. To
understand the rest, start with ``pipeline``. The terms of these modules, from docs/glossary.md:

- *lane*: the records of one partition and key, or of one partition if they are handled in batches; kept in order.
- *finished*: handled, with outputs or a dead letter; committed a little later. *Unfinished*: polled and not finished.
- *collect*: take the results of the pool, for the next transaction.
- *window*: the offsets of a partition from the lowest unfinished one to the highest one polled.
- *finished map*: the map in a position's metadata of what is finished above its offset.
- *awaited*: unfinished offsets of a restored position that have not been polled yet.
- *tally*: the results of the last 1,000 records of a partition, for the limit on dead letters.
- *suspect*: a record that was being handled when the process died.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtfm.contracts import Contracts
    from rtfm.settings import Settings
    from rtfm.streams.consumer import EventReader
    from rtfm.streams.producer import EventProducer

__all__ = ["open_producer", "open_reader"]


def open_reader(
    topic: str, *, group: str | None = None, from_end: bool = False, settings: Settings | None = None
) -> EventReader:
    """Return a reader of ``topic`` that yields typed records.

    With a ``group`` it continues at the group's position, at first from the start of the topic. Without one it reads
    from the start and commits nothing. ``from_end`` starts at the end of the topic instead. ``settings`` None reads the
    environment, like every command. Nothing is written to this machine. Raises ConfigError for a topic that does not
    exist, Unavailable if Kafka does not answer. Reading may raise Unavailable too, and then continues with the same
    record.
    """
    from rtfm.streams.consumer import EventReader

    loaded, contracts = _open(settings)
    return EventReader(loaded, contracts, topic, group=group, from_end=from_end)


def open_producer(settings: Settings | None = None) -> EventProducer:
    """Return a producer of typed events, which confirms delivery at ``flush`` or at the end of its ``with`` block.

    The schemas must be registered (`rtfm-cli schemas register`); the producer never registers one. ``settings`` None
    reads the environment. Nothing is written to this machine. Raises ConfigError.
    """
    from rtfm.streams.producer import EventProducer

    return EventProducer(*_open(settings))


def _open(settings: Settings | None) -> tuple[Settings, Contracts]:
    """Return the settings and contracts, without a cache on disk: the working folder belongs to another program."""
    from rtfm import settings as loading
    from rtfm.contracts import Contracts, SchemaRegistry, catalogue

    loaded = settings or loading.load()
    registry = SchemaRegistry(loaded.schema_registry_url, prefix=loaded.kafka_topic_prefix)
    return loaded, Contracts(catalogue.load(loaded.schemas_dir), registry)
