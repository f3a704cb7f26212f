"""Connection: the configuration of Kafka clients, the names of topics and groups, and the translation of errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import frozen
from confluent_kafka import Consumer, KafkaError, KafkaException

from rtfm.contracts.catalogue import PARTITIONER
from rtfm.errors import ConfigError, RtfmError, Unavailable
from rtfm.telemetry import get_logger

if TYPE_CHECKING:
    from rtfm.settings import Settings

REQUEST_TIMEOUT_S = 5.0
"""Time limit for a single request to Kafka, such as reading metadata."""

POLL_MARGIN_S = 15.0
"""By how much ``max.poll.interval.ms`` is longer than WATCHDOG_S.

If a process hangs, the watchdog therefore ends the process before the group removes the member.
"""

SESSION_TIMEOUT_MS = 6000
"""A classic group removes a member that has sent no heartbeat for this long."""

ANSWER_TIMEOUT_S = 9.0
"""How long a request waits for its response before its connection is closed.

If a firewall drops packets, nothing tells the client that its connection is dead. With librdkafka's default, a request
on this connection would wait for 60 s. librdkafka requires a value below the transaction timeout, which is EXPIRY_S.
The value is above COMMIT_TIMEOUT_S, so that no request of a transaction is sent twice within the time limit of the
transaction.
"""

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
    # A broker responds with the following errors while it starts, or while partitions or replicas move. Kafka's
    # protocol calls these errors retriable (https://kafka.apache.org/protocol, error codes), but librdkafka marks only
    # a few of them as retriable.
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


@frozen(kw_only=True)
class KafkaConfig:
    """The settings of Kafka clients.

    The methods ``topic`` and ``group`` add the topic prefix to a name. In all other code, names of topics and groups
    have no prefix, unless a docstring says otherwise.
    """

    bootstrap_servers: str
    instance_id: str
    """The name of this instance. No other process of a group may use this name. A restart does not change it."""
    topic_prefix: str = ""
    compression: str = "zstd"
    group_protocol: str = "classic"
    """``classic``, or ``consumer`` (KIP-848)."""
    static_membership: bool = True
    max_poll_interval_s: float = 60.0
    """The group takes the partitions away from a member that has not polled for this long."""

    @classmethod
    def of(cls, settings: Settings) -> KafkaConfig:
        """Return the part of ``settings`` that concerns Kafka."""
        return cls(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            instance_id=settings.instance_id,
            topic_prefix=settings.kafka_topic_prefix,
            compression=settings.kafka_compression,
            group_protocol=settings.kafka_group_protocol,
            static_membership=settings.kafka_static_membership,
            max_poll_interval_s=settings.watchdog_s + POLL_MARGIN_S,
        )

    def topic(self, name: str) -> str:
        """Return the topic's name on the cluster."""
        return f"{self.topic_prefix}{name}"

    def group(self, name: str) -> str:
        """Return the consumer group's name on the cluster."""
        return f"{self.topic_prefix}{name}"

    def client_config(self) -> dict[str, Any]:
        """Return the configuration that all clients share. librdkafka's errors go to this process's log at DEBUG."""
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": f"rtfm-{self.instance_id}",
            "socket.keepalive.enable": True,
            "socket.timeout.ms": int(ANSWER_TIMEOUT_S * 1000),
            "reconnect.backoff.max.ms": 2000,
            "allow.auto.create.topics": False,
            "error_cb": lambda error: _log.debug("kafka client", error=error.str()),
            "log_level": 2,
        }

    def producer_config(self) -> dict[str, Any]:
        """Return the configuration that all producers share."""
        return {**self.client_config(), "partitioner": PARTITIONER, "compression.type": self.compression}

    def consumer_config(self, group: str) -> dict[str, Any]:
        """Return the configuration that is common to all consumers that read records.

        With this configuration a consumer reads committed records only, and reports when it reaches the end of a log.
        """
        return {
            **self.client_config(),
            "group.id": self.group(group),
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }

    def member_config(self, group: str) -> dict[str, Any]:
        """Return the configuration of a consumer that joins its group."""
        config = {
            **self.consumer_config(group),
            "group.protocol": self.group_protocol,
            "max.poll.interval.ms": int(self.max_poll_interval_s * 1000),
        }
        if self.group_protocol == "classic":
            config |= {
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                # A cooperative rebalance has two rounds. A member learns of each round from the response to a
                # heartbeat, so a shorter interval makes rebalances shorter.
                "heartbeat.interval.ms": 1000,
            }
            # Membership is static with the classic protocol only. With the consumer protocol, if a static member is
            # killed and started again, the coordinator refuses it with UNRELEASED_INSTANCE_ID until the old session
            # expires, and librdkafka treats this error as fatal.
            if self.static_membership:
                config["group.instance.id"] = f"{self.group(group)}-{self.instance_id}"
        return config

    def list_partitions(self, client: Consumer, topic: str) -> list[int]:
        """Return the partition numbers of ``topic``, which is named with its prefix.

        Raises ConfigError if the topic does not exist, Unavailable if Kafka does not answer.
        """
        with self.translating(f"reading {topic}"):
            found = client.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
        return sorted(found.partitions)

    @contextmanager
    def translating(self, what: str) -> Iterator[None]:
        """Raise errors of librdkafka in the ``with`` block as errors of this project. ``what`` names the operation."""
        try:
            yield
        except KafkaException as exc:
            raise self.translate_error(exc, what) from exc
        except TimeoutError as exc:
            raise self.unreachable_error(what) from exc

    def translate_error(self, exc: KafkaException | KafkaError, what: str) -> RtfmError:
        """Return this project's error for ``exc``: Unavailable if a retry can help, otherwise ConfigError."""
        error = exc.args[0] if isinstance(exc, KafkaException) else exc
        code = error.code()
        if code in _UNREACHABLE:
            return self.unreachable_error(what)
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
            return ConfigError(f"{what}: the topic does not exist", hint="run `rtfm-cli topics init`")
        return ConfigError(f"{what}: {error.str()}") if not error.retriable() else self.unreachable_error(what)

    def unreachable_error(self, what: str) -> Unavailable:
        """Return an error that says that Kafka does not answer."""
        return Unavailable(
            "kafka",
            f"{what}: Kafka at {self.bootstrap_servers} does not answer",
            hint="start it (`rtfm-cli local up`) or set KAFKA_BOOTSTRAP_SERVERS",
        )
