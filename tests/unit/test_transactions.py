"""The transactional producer with a broker that does not answer."""

from __future__ import annotations

import socket

import pytest

from rtfm.errors import Unavailable
from rtfm.streams import transactions
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.transactions import Transactions


def test_a_producer_that_could_not_be_replaced_has_to_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """If opening a producer fails, a producer still has to be opened before the next commit."""
    monkeypatch.setattr(transactions, "OPEN_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        made = Transactions(KafkaConfig(bootstrap_servers=address, instance_id="one"), "any")
        made._needs_open = False
        with pytest.raises(Unavailable):
            made.open()
    assert made.needs_open
