"""Streams: topics, producers, the pipeline and dead letters, on Kafka.

What other programs need is here, and stays: ``open_reader`` and ``open_producer``. docs/contracts.md shows both.

``pipeline`` is where to begin. The words that all of its modules use:

- *lane*: the records of one partition and key, or of one partition where batches are handled; one after another.
- *finished*: handled, with its outputs or a dead letter; committed a little later. *Unfinished*: taken, not finished.
- *settle*: take what the pool has finished into the next transaction.
- *window*: a partition's offsets from the lowest unfinished one to the highest taken, which the position's map covers.
- *awaited*: unfinished offsets of a restored position that have not come from the log again yet.
- *tally*: what became of the last 1,000 records of a partition, for the limit on dead letters.
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
    """The events of ``topic`` as typed records, from where ``group`` had come to, at first from the start.

    Without a group everything is read from the start, and nothing is committed. ``from_end``: what comes from now on
    instead of everything. ``settings`` None: those of the environment, as every command has them. Nothing is written to
    this machine. Raises ConfigError for a topic that does not exist, Unavailable when Kafka does not answer; reading
    raises Unavailable too, and then the same record comes again.
    """
    from rtfm.streams.consumer import EventReader

    known, contracts = _opened(settings)
    return EventReader(known, contracts, topic, group=group, from_end=from_end)


def open_producer(settings: Settings | None = None) -> EventProducer:
    """A producer of typed events, with delivery confirmed at ``flush`` or at the end of its ``with`` block.

    The schemas must be registered (`rtfm-cli schemas register`); it never registers one. Nothing is written to this
    machine. Raises ConfigError.
    """
    from rtfm.streams.producer import EventProducer

    return EventProducer(*_opened(settings))


def _opened(settings: Settings | None) -> tuple[Settings, Contracts]:
    """The settings, and contracts without a cache on disk: the folder is that of another program."""
    from rtfm import settings as loading
    from rtfm.contracts import Contracts, SchemaRegistry, catalogue

    known = settings or loading.load()
    registry = SchemaRegistry(known.schema_registry_url, prefix=known.kafka_topic_prefix)
    return known, Contracts(catalogue.load(known.schemas_dir), registry)
