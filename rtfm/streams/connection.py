"""How this project connects to Kafka: client settings and the meaning of librdkafka's errors, in one place."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError, KafkaException

from rtfm.contracts.catalogue import PARTITIONER
from rtfm.errors import ConfigError, RtfmError, Unavailable
from rtfm.settings import Settings
from rtfm.telemetry import get_logger

REQUEST_TIMEOUT_S = 5.0

ANSWER_TIMEOUT_S = 9.0
"""How long a request waits for its answer before its connection is given up. librdkafka's 60 s are what one costs that
is dead without a word, as behind a firewall that forgot it. Less than a transaction may last (EXPIRY_S), which
librdkafka wants, and more than we wait for one (COMMIT_TIMEOUT_S): so a request of it is never sent twice."""

_log = get_logger(__name__)

_UNREACHABLE = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.REQUEST_TIMED_OUT,
    # What a broker answers while partitions or replicas move, or it starts: retriable, as Kafka's protocol calls it
    # (https://kafka.apache.org/protocol, error codes). librdkafka marks few of them so.
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_CONTROLLER,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LISTENER_NOT_FOUND,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
}


def client_config(settings: Settings) -> dict[str, Any]:
    """What every client needs. librdkafka's own log lines go to ours."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": f"rtfm-{settings.instance_id}",
        "socket.keepalive.enable": True,
        "socket.timeout.ms": int(ANSWER_TIMEOUT_S * 1000),
        "reconnect.backoff.max.ms": 2000,
        "allow.auto.create.topics": False,
        "error_cb": lambda error: _log.debug("kafka client", error=error.str()),
        "log_level": 2,
    }


def producer_config(settings: Settings) -> dict[str, Any]:
    """What every producer needs: as ``client_config``, with partitioner and compression."""
    return {
        **client_config(settings),
        "partitioner": PARTITIONER,
        "compression.type": settings.kafka_compression,
    }


def topic_name(settings: Settings, topic: str) -> str:
    """The topic's name on the cluster."""
    return f"{settings.kafka_topic_prefix}{topic}"


def group_name(settings: Settings, group: str) -> str:
    """The consumer group's name on the cluster."""
    return f"{settings.kafka_topic_prefix}{group}"


def translated(exc: KafkaException | KafkaError, settings: Settings, what: str) -> RtfmError:
    """The project's error for one of librdkafka's."""
    error = exc.args[0] if isinstance(exc, KafkaException) else exc
    code = error.code()
    if code in _UNREACHABLE:
        return unreachable(settings, what)
    if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        return ConfigError(f"{what}: the topic does not exist", hint="run `rtfm-cli topics init`")
    return ConfigError(f"{what}: {error.str()}") if not error.retriable() else unreachable(settings, what)


def unreachable(settings: Settings, what: str) -> Unavailable:
    """Kafka does not answer."""
    return Unavailable(
        "kafka",
        f"{what}: Kafka at {settings.kafka_bootstrap_servers} does not answer",
        hint="start it (`rtfm-cli local up`) or set KAFKA_BOOTSTRAP_SERVERS",
    )
