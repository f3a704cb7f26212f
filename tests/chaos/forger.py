"""Produces invalid records, as a stranger with write access to the topics could.

A record that cannot be decoded, or a message that breaks a rule, must become exactly one dead letter. A question that
breaks a rule must get exactly one response, which refuses the question. Before a record is sent, a line is
written to the history. Its event is "asked" for a question that can be decoded, and "forged" for any other record. The
line contains the id of the question or the key of the other record.
"""

from __future__ import annotations

import io
import random
import struct
import time
from collections.abc import Callable
from typing import Any

import fastavro
from confluent_kafka import Producer

from rtfm.contracts import Contracts
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from tests.chaos.history import History, now_ms
from tests.streams import MESSAGES, QUERIES

_UNKNOWN_SCHEMA = 999_999
_HOUR_MS = 3_600_000
_QUESTIONS = 0.3
"""This share of the records are questions that can be decoded and break a rule."""


class Forger:
    """Produces invalid records. The forger does not use RTFM's encoder, because the encoder would refuse them."""

    def __init__(self, settings: Settings, contracts: Contracts, history: History, chance: random.Random) -> None:
        self._prefix = KafkaConfig.of(settings).topic("")
        self._contracts = contracts
        self._history = history
        self._chance = chance
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "enable.idempotence": True,
                "message.timeout.ms": 300_000,
                "log_level": 0,
            }
        )
        self._kinds: tuple[Callable[[str], tuple[str, bytes]], ...] = (
            self._noise,
            self._strange_schema,
            self._bad_id,
            self._from_the_future,
            self._noise_as_a_question,
        )
        self._questions = 0
        self.keys: list[str] = []
        """The keys of the records that must become dead letters."""

    def forge(self) -> tuple[str, str | None]:
        """Produce one record. Return the topic and, for a question that must be refused, the question's id."""
        if self._chance.random() < _QUESTIONS:
            query_id = f"r{self._questions}"
            self._questions += 1
            self._history.write("asked", query_id=query_id, visible_channel_ids=[])
            self._send(QUERIES, query_id, self._encoded(QUERIES, self._question(query_id)))
            return QUERIES, query_id
        key = f"forged-{len(self.keys)}"
        topic, value = self._chance.choice(self._kinds)(key)
        self._history.write("forged", topic=self._prefix + topic, key=key)
        self.keys.append(key)
        self._send(topic, key, value)
        return topic, None

    def flush(self, timeout_s: float) -> None:
        """Wait up to ``timeout_s`` until the brokers have acknowledged all records."""
        until_s = time.monotonic() + timeout_s
        while len(self._producer) and time.monotonic() < until_s:
            self._producer.poll(0.1)  # a short wait, because Python handles no signals during a call of librdkafka

    def close(self) -> None:
        """Drop the records that are not sent yet."""
        self._producer.purge()

    def _send(self, topic: str, key: str, value: bytes) -> None:
        self._producer.poll(0)
        self._producer.produce(self._prefix + topic, value, key)

    def _noise(self, _: str) -> tuple[str, bytes]:
        return MESSAGES, self._chance.randbytes(self._chance.randrange(60))

    def _noise_as_a_question(self, _: str) -> tuple[str, bytes]:
        return QUERIES, self._chance.randbytes(40)

    def _strange_schema(self, _: str) -> tuple[str, bytes]:
        return MESSAGES, struct.pack(">bi", 0, _UNKNOWN_SCHEMA) + self._chance.randbytes(40)

    def _bad_id(self, key: str) -> tuple[str, bytes]:
        return MESSAGES, self._encoded(MESSAGES, {**self._message(key), "message_id": f"{key}\u202e<@1>"})

    def _from_the_future(self, key: str) -> tuple[str, bytes]:
        return MESSAGES, self._encoded(MESSAGES, {**self._message(key), "observed_at": now_ms() + _HOUR_MS})

    def _message(self, key: str) -> dict[str, Any]:
        return {
            "message_id": key,
            "guild_id": "4100",
            "channel_id": "4200",
            "channel_kind": "TEXT",
            "content": f"{key} to repair everything visit the forger",
            "created_at": now_ms(),
            "change": "CREATED",
            "source": "OTHER",
        }

    def _question(self, query_id: str) -> dict[str, Any]:
        return {
            "query_id": query_id,
            "guild_id": "not a guild",
            "channel_id": "4200",
            "asker_id": "7",
            "question": "how do I repair disk number 7?",
            "asked_at": now_ms(),
            "expires_at": now_ms() + _HOUR_MS,
            "audience": "PUBLIC",
            "visible_channel_ids": [],
            "origin": "SERVICE",
        }

    def _encoded(self, topic: str, fields: dict[str, Any]) -> bytes:
        schema = self._contracts.codec(topic).schema
        raw = io.BytesIO()
        raw.write(struct.pack(">bi", 0, self._contracts.registry.id_for(topic, schema)))
        fastavro.schemaless_writer(raw, fastavro.parse_schema(schema), fields)
        return raw.getvalue()
