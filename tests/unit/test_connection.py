"""What librdkafka's errors mean to the rest of the project."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from rtfm.errors import ConfigError, Unavailable
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._TRANSPORT,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    ],
)
def test_what_passes_by_itself_is_waited_for(code: int) -> None:
    """A processor must not end because a partition has another leader when it reads where the log begins."""
    assert isinstance(
        KafkaConfig.of(Settings()).translate_error(KafkaException(KafkaError(code)), "reading"), Unavailable
    )


@pytest.mark.parametrize("code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART])
def test_what_somebody_must_mend_is_not(code: int) -> None:
    """The error says what was asked."""
    error = KafkaConfig.of(Settings()).translate_error(KafkaException(KafkaError(code)), "reading")
    assert isinstance(error, ConfigError)
    assert "reading" in str(error)
