"""The errors into which this project translates errors of librdkafka."""

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
def test_temporary_errors_are_unavailable(code: int) -> None:
    """A temporary error is Unavailable, so that no processor ends because a partition's leader changes."""
    assert isinstance(
        KafkaConfig.of(Settings()).translate_error(KafkaException(KafkaError(code)), "reading"), Unavailable
    )


@pytest.mark.parametrize("code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART])
def test_errors_that_need_a_fix_are_not_unavailable(code: int) -> None:
    """An error that an operator must fix is not Unavailable, and names the request that failed."""
    error = KafkaConfig.of(Settings()).translate_error(KafkaException(KafkaError(code)), "reading")
    assert isinstance(error, ConfigError)
    assert "reading" in str(error)
