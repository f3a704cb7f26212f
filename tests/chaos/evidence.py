"""Collects the evidence of a run when the run ends, and gets the verdict on the run.

The evidence consists of the records that a plain consumer reads, the rows of the archive, Kafka's data and the logs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from rtfm.settings import Settings
from tests.chaos.history import History
from tests.conftest import CHECKOUT

JUDGE = "tests.judge"
VERDICT = "verdict.json"
"""The name of the file that the judge writes into the folder of the run."""
READER = "plain"
_POLL_S = 10.0
"""If nothing arrives from Kafka for this many seconds, Kafka counts as down."""


def write_seen(settings: Settings, history: History, topics: Sequence[str]) -> None:
    """Read the committed records of ``topics`` with a plain consumer, and write each to the history, in order."""
    consumer: Any = Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "group.id": f"{settings.kafka_topic_prefix}{READER}-{uuid.uuid4().hex}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    try:
        for topic in topics:
            name = f"{settings.kafka_topic_prefix}{topic}"
            unread = set(consumer.list_topics(name, timeout=_POLL_S).topics[name].partitions)
            consumer.assign([TopicPartition(name, number, 0) for number in unread])
            while unread:
                message = consumer.poll(_POLL_S)
                if message is None:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"reading {name}"))
                if message.error() is None:
                    key = None if message.key() is None else message.key().decode(errors="replace")
                    where = {"partition": message.partition(), "offset": message.offset()}
                    history.write("seen", reader=READER, topic=name, **where, key=key)
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
                elif not message.error().retriable():
                    raise KafkaException(message.error())
    finally:
        consumer.close()


def write_archived(settings: Settings, history: History) -> None:
    """Write the archive's messages to the history."""
    with psycopg.connect(settings.database_url) as connection:
        rows = connection.execute("SELECT message_id, content, deleted, channel_id FROM messages ORDER BY message_id")
        for message_id, content, deleted, channel_id in rows:
            history.write("archived", message_id=message_id, content=content, deleted=deleted, channel_id=channel_id)


def keep_services(home: Path, history: History) -> None:
    """Move Kafka's data and the logs of the dependencies from ``home`` to the run's folder.

    The dependencies must have ended.
    """
    with suppress(FileNotFoundError):
        shutil.move(home / "data" / "kafka" / "log", history.kafka)
    for path in sorted((home / "log").glob("*.log*")):
        shutil.move(path, history.logs / path.name)


def judge(folder: Path, timeout_s: float) -> int:
    """Run the judge and return its exit code: 0 right, 1 wrong, 2 not judged.

    If the judge ends without a verdict, for example because of a missing package, the exit code is 2.
    """
    command = [sys.executable, "-m", JUDGE, str(folder.absolute())]
    try:
        done = subprocess.run(command, cwd=CHECKOUT, stdout=sys.stderr, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return 2
    has_verdict = (folder / VERDICT).is_file()
    return done.returncode if has_verdict and done.returncode in (0, 1) else 2


def verdict(*, wrong: bool, settled: bool, judged: int) -> str:
    """Return the verdict on a run.

    ``wrong`` says whether the run's own account found an error. ``judged`` is the exit code that ``judge`` returned.
    """
    if wrong or judged == 1:
        return "wrong"
    if not settled:
        return "not settled"
    return "right" if judged == 0 else "not judged"


EXIT_CODES: Mapping[str, int] = {
    "right": 0,
    "wrong": 1,
    "not settled": 1,
    "out of time": 1,
    "failed": 1,
    "not judged": 2,
}
