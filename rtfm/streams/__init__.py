"""Streams: topics, producers, the pipeline and dead letters, on Kafka.

``open_reader`` and ``open_producer`` are the stable interface for other programs; docs/contracts.md shows both. To
understand the modules of this package, start with ``pipeline``. The modules use these terms, which docs/glossary.md
defines:

- *lane*: the records of one partition and key, which are handled one after another. With batches, a lane has all
  records of one partition.
- *finished*: handled, so that the outputs or the dead letter are ready to commit. An *unfinished* record was polled and
  is not finished.
- *assignment*: one period in which a partition belongs to this instance. A ``PartitionState`` is the state of one
  assignment. A variable named ``partition`` usually holds a ``PartitionState``.
- *position*: an offset and its metadata, which are committed for one partition of a group.
- *finished map*: the part of a position's metadata that says which offsets above the committed one are finished.
- *awaited*: said of an offset that was unfinished in the group's position when the assignment began, and that has not
  been polled yet.
- *tally*: the results of the last 1,000 records of a partition, from which the limit on dead letters is computed.
- *suspect*: a record that was being handled during a crash or a defect, and that may be the cause.
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

    With a ``group``, the reader continues at the group's position. Without a group, or if the group has no position,
    the reader starts at the beginning of the topic, or at the end of the topic if ``from_end`` is true. The reader
    commits only when its ``commit`` method is called. If ``settings`` is None, the settings are read from the
    environment and the file .env, as they are for every command. Nothing is written to this machine's disk.

    Raises ConfigError if the topic does not exist, Unavailable if Kafka does not answer. Reading may raise Unavailable,
    too. The next read then continues with the record that could not be read.
    """
    from rtfm.streams.consumer import EventReader

    loaded, contracts = _open(settings)
    return EventReader(loaded, contracts, topic, group=group, from_end=from_end)


def open_producer(settings: Settings | None = None) -> EventProducer:
    """Return a producer of typed events, whose ``flush`` raises Unavailable if a record was not delivered.

    The end of its ``with`` block also waits for delivery. If a record was not delivered, the block raises no error and
    the failure is only logged. Register the schemas first (`rtfm-cli schemas register`), because the producer does not
    register them. If ``settings`` is None, the settings are read from the environment and the file .env. Nothing is
    written to this machine's disk. Raises ConfigError if a setting is invalid.
    """
    from rtfm.streams.producer import EventProducer

    return EventProducer(*_open(settings))


def _open(settings: Settings | None) -> tuple[Settings, Contracts]:
    """Return the settings and the contracts. Schemas are cached in memory only; services also cache them in files."""
    from rtfm import settings as loading
    from rtfm.contracts import Contracts, SchemaRegistry, catalogue

    loaded = settings or loading.load()
    registry = SchemaRegistry(loaded.schema_registry_url, prefix=loaded.kafka_topic_prefix)
    return loaded, Contracts(catalogue.load(loaded.schemas_dir), registry)
