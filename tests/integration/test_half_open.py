"""Half-open connections: both ends treat them as open, and no data passes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from attrs import evolve
from sqlalchemy import text

from rtfm.errors import Unavailable
from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.vectors import ChromaVectors, VectorEntry
from rtfm.settings import Settings
from tests.chaos.faults import through
from tests.integration.test_processor import QUESTION, Cli, import_guild, processor
from tests.network import Link, Proxy
from tests.streams import eventually


@pytest.fixture
def postgres(settings: Settings) -> Iterator[Proxy]:
    """A proxy between the tested client and PostgreSQL."""
    with Proxy(urlsplit(settings.database_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def chroma(settings: Settings) -> Iterator[Proxy]:
    """A proxy between the tested client and Chroma."""
    with Proxy(urlsplit(settings.chroma_url).port or 0) as proxy:
        yield proxy


@pytest.mark.timeout(60, func_only=True)
def test_a_half_open_connection_to_postgresql_is_replaced(settings: Settings, postgres: Proxy) -> None:
    """If all connections to PostgreSQL become half-open, the next transactions use new connections."""
    database = Database(through(settings.database_url, postgres))
    with database.begin(), database.begin(), database.begin():
        pass
    postgres.abandon()
    with database.begin(), database.begin(), database.begin():
        pass
    database.close()


@pytest.mark.timeout(60, func_only=True)
def test_a_statement_whose_answer_never_comes_is_given_up(settings: Settings, postgres: Proxy) -> None:
    """If PostgreSQL's response to a statement never comes, the client gives up after a timeout.

    PostgreSQL has a time limit for statements too, but PostgreSQL's error cannot reach the client.
    """
    database = Database(through(settings.database_url, postgres), statement_timeout_s=1)

    def die_meanwhile() -> None:
        with database.begin() as connection:
            connection.execute(text("SELECT 1"))
            postgres.abandon()
            connection.execute(text("SELECT 2"))

    with pytest.raises(Unavailable, match="no response within 6 s"):
        die_meanwhile()
    with database.begin() as connection:
        assert connection.execute(text("SELECT 3")).scalar() == 3
    database.close()


@pytest.mark.timeout(60, func_only=True)
def test_a_transaction_of_a_vanished_client_releases_its_locks(settings: Settings, postgres: Proxy) -> None:
    """If a client vanishes, PostgreSQL ends the client's transaction, which releases the transaction's locks.

    By default PostgreSQL would wait two hours for the client.
    """
    with psycopg.connect(settings.database_url, autocommit=True) as direct:
        direct.execute("CREATE TABLE held (id int PRIMARY KEY, value int)")
        direct.execute("INSERT INTO held VALUES (1, 0)")
        database = Database(through(settings.database_url, postgres), statement_timeout_s=1)

        def die_meanwhile() -> None:
            with database.begin() as connection:
                connection.execute(text("UPDATE held SET value = 1"))
                postgres.abandon()
                connection.execute(text("UPDATE held SET value = 2"))

        with pytest.raises(Unavailable):
            die_meanwhile()
        direct.execute("SET lock_timeout = '20s'")
        direct.execute("UPDATE held SET value = 3")
        database.close()


def entry(number: int) -> VectorEntry:
    """Return an entry whose vector is 1 at index ``number`` and 0 at the other indexes."""
    import numpy

    vector = numpy.zeros(4, dtype=numpy.float32)
    vector[number] = 1
    return VectorEntry(entry_id=f"p{number}", passage_id=str(number), vector=vector)


@pytest.mark.timeout(60, func_only=True)
def test_a_request_to_chroma_on_a_dead_connection_is_given_up_and_the_next_one_works(
    settings: Settings, chroma: Proxy
) -> None:
    """A request to Chroma on a dead connection times out, and the next request opens a new connection."""
    vectors = ChromaVectors(through(settings.chroma_url, chroma), settings.kafka_topic_prefix, request_timeout_s=2)
    vectors.upsert("1", [entry(0)])
    chroma.abandon()
    with pytest.raises(Unavailable, match=r"no response within|timed out"):
        vectors.upsert("1", [entry(1)])
    vectors.upsert("1", [entry(1)])
    assert vectors.count("1") == 2
    vectors.forget_guild("1")


class OnlyFirst(Proxy):
    """A proxy that passes on the data of its first connection only; later connections are open but silent."""

    _first: Link | None = None

    async def _pass_on(self, link: Link, way: str, piece: bytes, writer: asyncio.StreamWriter) -> None:
        self._first = self._first or link
        link.abandoned = link is not self._first
        await self._passage(link, way)
        await super()._pass_on(link, way, piece, writer)


@pytest.mark.timeout(60, func_only=True)
def test_connecting_to_chroma_is_bounded(settings: Settings) -> None:
    """Connecting to Chroma has a time limit, although the constructor of Chroma's client has no timeout.

    ChromaVectors first requests Chroma's heartbeat on the first connection. Then the constructor of the client
    sends its requests on a second connection, which is silent in this test.
    """
    with OnlyFirst(urlsplit(settings.chroma_url).port or 0) as proxy:
        vectors = ChromaVectors(through(settings.chroma_url, proxy), settings.kafka_topic_prefix, request_timeout_s=2)
        with pytest.raises(Unavailable):
            vectors.count("1")


SETTINGS = {"PostgreSQL": "database_url", "Chroma": "chroma_url", "schema registry": "schema_registry_url"}


@contextmanager
def behind_a_proxy(settings: Settings, service: str) -> Iterator[tuple[Proxy, Settings]]:
    """Yield a proxy in front of the dependency ``service``, and settings in which the proxy replaces it."""
    address: str = getattr(settings, SETTINGS[service])
    with Proxy(urlsplit(address).port or 0) as proxy:
        changed: dict[str, Any] = {SETTINGS[service]: through(address, proxy)}
        yield proxy, evolve(settings, **changed)


@pytest.mark.parametrize("service", ["PostgreSQL", "Chroma"])
def test_a_processor_whose_connections_die_unseen_names_the_service_and_goes_on_by_itself(
    settings: Settings, cli: Cli, tmp_path: Path, service: str
) -> None:
    """If a processor's connections to a dependency die, /readyz names the dependency until new connections work.

    At first the old connections are dead, and new connections get no response. Then new connections work, and the
    old connections stay dead. The processor becomes ready again without a restart.
    """
    with behind_a_proxy(settings, service) as (proxy, ours), processor(ours) as running:
        import_guild(settings, cli, tmp_path)
        eventually(lambda: running.get("/readyz")[0] == 200)
        proxy.abandon()
        proxy.cut()
        eventually(lambda: running.get("/readyz")[0] == 503 and service in running.get("/readyz")[1])
        assert running.get("/healthz")[0] == 200
        proxy.heal()
        eventually(lambda: running.get("/readyz")[0] == 200)
        assert json.loads(cli(settings, "ask", "--json", QUESTION).stdout)["outcome"] == "EXTRACTED"
        assert running.stop() == 0


def test_a_processor_that_starts_while_the_registry_is_silent_names_it_and_goes_on_by_itself(
    settings: Settings, cli: Cli
) -> None:
    """If the registry is silent when a processor starts, /readyz names the registry until the registry responds.

    The registry's port accepts connections, but sends no data. The processor becomes ready without a restart.
    """
    service = "schema registry"
    with behind_a_proxy(settings, service) as (proxy, ours):
        proxy.cut()
        with processor(ours) as running:
            eventually(lambda: running.get("/readyz")[0] == 503 and service in running.get("/readyz")[1])
            assert running.get("/healthz")[0] == 200
            proxy.heal()
            eventually(lambda: running.get("/readyz")[0] == 200)
            assert json.loads(cli(settings, "ask", "--json", QUESTION).stdout)["outcome"] == "NOT_FOUND"
            assert running.stop() == 0
