"""Helpers for tests of streams: a running pipeline, a recording handler, raw records and waiting."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not all of them are in its __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from rtfm.contracts import Contracts
from rtfm.contracts.catalogue import PARTITIONER
from rtfm.errors import Unavailable
from rtfm.events import Audience, BotQuery, BotResponse, ChannelKind, DiscordMessage, MessageChange, Outcome
from rtfm.events import TimestampMillis as At
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.consumer import EventReader, Record
from rtfm.streams.dead_letters.letters import TOPIC as DEAD_LETTERS
from rtfm.streams.dead_letters.limits import DeadLetterPolicy
from rtfm.streams.pipeline import Handler, Output, Pipeline
from rtfm.streams.producer import EventProducer
from rtfm.streams.progress import GroupProgress
from rtfm.streams.quarantine import CrashJournal
from rtfm.streams.topics import TopicAdmin
from rtfm.telemetry import Health

GROUP = "test-group"
MESSAGES = "discord-messages"
QUERIES = "bot-queries"
RESPONSES = "bot-responses"


def build_message(number: int, *, channel: str = "200", content: str = "hello") -> DiscordMessage:
    """Return a message whose id is ``number``."""
    return DiscordMessage(
        message_id=str(number),
        guild_id="100",
        channel_id=channel,
        channel_kind=ChannelKind.TEXT,
        author_id="1",
        author_name="ada",
        content=content,
        created_at=At(1_700_000_000_000 + number),
        change=MessageChange.CREATED,
    )


def build_query(number: int, question: str = "how?") -> BotQuery:
    """Return a query of the console; its id is the letter c and ``number``."""
    return BotQuery(
        query_id=f"c{number}",
        channel_id="0",
        asker_id="0",
        question=question,
        asked_at=At(0),
        expires_at=At(9_999_999_999_999),
        audience=Audience.ASKER,
        visible_channel_ids=[],
    )


def build_response(query: BotQuery, answer: str = "so") -> BotResponse:
    """Return a response to ``query``."""
    return BotResponse(
        query_id=query.query_id,
        channel_id=query.channel_id,
        asker_id=query.asker_id,
        asked_at=At(0),
        audience=query.audience,
        outcome=Outcome.EXTRACTED,
        answer=answer,
        answered_at=At(1),
        elapsed_ms=1,
    )


def eventually(check: Callable[[], Any], *, timeout_s: float = 40.0) -> Any:
    """Return the first true value of ``check``, or raise AssertionError after ``timeout_s``.

    If a check raises Unavailable, as on a busy machine, the check is repeated. After each check, the function sleeps as
    long as the check took, but at least 0.05 s and at most 0.5 s, so that checks do not slow down the code that they
    wait for.
    """
    deadline = time.monotonic() + timeout_s
    silent: Unavailable | None = None
    while (asked_s := time.monotonic()) < deadline:
        try:
            if found := check():
                return found
        except Unavailable as exc:
            silent = exc
        time.sleep(min(0.5, max(0.05, time.monotonic() - asked_s)))
    asked = inspect.getsource(check).strip() if inspect.isfunction(check) else check
    raise AssertionError(f"not within {timeout_s:.0f} s: {asked}") from silent


class RecordingHandler:
    """A handler that keeps its records, and returns for each record the outputs that ``outputs`` makes of it."""

    def __init__(self, outputs: Callable[[Record], Sequence[Output]] = lambda _: ()) -> None:
        self.batches: list[list[Record]] = []
        self._outputs = outputs
        self._lock = threading.Lock()

    def __call__(self, records: Sequence[Record]) -> list[Output]:
        with self._lock:
            self.batches.append(list(records))
        return [output for record in records for output in self._outputs(record)]

    @property
    def ids(self) -> list[str]:
        """Return the ids of the handled messages or queries, in order."""
        with self._lock:
            records = [record for batch in self.batches for record in batch]
        return [getattr(r.event, "message_id" if isinstance(r.event, DiscordMessage) else "query_id") for r in records]


@contextmanager
def running(
    settings: Settings,
    contracts: Contracts,
    handler: Handler | Future[Handler],
    *,
    topic: str = MESSAGES,
    health: Health | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> Iterator[threading.Thread]:
    """Run a pipeline in a thread; at the end, stop the pipeline and raise its error."""
    stop = stop or threading.Event()
    journal = CrashJournal.of(settings, GROUP)
    pipeline = Pipeline(
        KafkaConfig.of(settings),
        contracts,
        group=GROUP,
        topic=topic,
        handler=handler,
        health=health or Health(),
        stop=stop,
        dead_letters=DeadLetterPolicy.of(settings),
        quarantine=journal,
        grace_s=settings.shutdown_grace_s,
        **options,
    )
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with journal:
                pipeline.run()
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(60)
        if errors:
            raise errors[0]
        assert not thread.is_alive(), "the pipeline did not stop"


def produce(settings: Settings, contracts: Contracts, topic: str, *events: Any, headers: Any = None) -> None:
    """Produce events, and wait for their acknowledgements."""
    with EventProducer(settings, contracts) as producer:
        for event in events:
            producer.send(topic, event, headers=headers)
        producer.flush()


def _servers(settings: Settings) -> dict[str, str]:
    return {"bootstrap.servers": settings.kafka_bootstrap_servers, "partitioner": PARTITIONER}


def produce_raw(
    settings: Settings,
    topic: str,
    value: bytes | None,
    *,
    key: bytes | None = b"200",
    headers: Sequence[tuple[str, bytes]] = (),
    timestamp_ms: int = 0,
) -> None:
    """Produce bytes like another program, without the producer of this project."""
    failed: list[Any] = []
    producer: Any = Producer({**_servers(settings), "message.max.bytes": 2_000_000})
    producer.produce(
        f"{settings.kafka_topic_prefix}{topic}",
        value,
        key,
        headers=list(headers),
        timestamp=timestamp_ms,
        on_delivery=lambda error, _: failed.append(error) if error else None,
    )
    assert producer.flush(20) == 0
    assert not failed, failed


def produce_raws(
    settings: Settings,
    topic: str,
    values: Sequence[bytes],
    *,
    key: bytes = b"200",
    headers: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Produce many values under one key, in order."""
    producer: Any = Producer({**_servers(settings), "enable.idempotence": True})
    for value in values:
        producer.produce(f"{settings.kafka_topic_prefix}{topic}", value, key, headers=list(headers))
    assert producer.flush(20) == 0


def limit_record_bytes(settings: Settings, topic: str, limit: int) -> None:
    """Set the largest size, in bytes, of a batch that ``topic`` accepts."""
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
    name = f"{settings.kafka_topic_prefix}{topic}"
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(20)


def records(settings: Settings, contracts: Contracts, topic: str) -> list[Record]:
    """Return all records of ``topic``."""
    with EventReader(settings, contracts, topic) as reader:
        return list(reader.read_to_end())


def dead_letters(settings: Settings, contracts: Contracts) -> list[Record]:
    """Return all records of dead-letters."""
    return records(settings, contracts, DEAD_LETTERS)


def committed(settings: Settings, topic: str = MESSAGES) -> int:
    """Return the sum of the group's committed offsets; in a log without gaps, it is the number of committed records."""
    return sum(_progress(settings).committed_offsets(topic, range(3)).values())


@lru_cache(maxsize=1)
def _progress(settings: Settings) -> GroupProgress:
    return GroupProgress(settings, GROUP)


def produced(settings: Settings, contracts: Contracts, topic: str) -> int:
    """Return the number of offsets of ``topic``."""
    states = TopicAdmin(settings, contracts.catalogue).states()
    return next(state.offsets for state in states if state.topic == topic)
