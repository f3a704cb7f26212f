"""The services of docker-compose.yml as containers of one test run, for machines that have their images."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from rtfm.local.services import free_port

COMPOSE_FILE = Path(__file__).parent.parent / "docker-compose.yml"
SERVICES = ("kafka", "schema-registry", "chromadb", "postgres")
START_TIMEOUT_S = 120.0
PASSWORD = "rtfm"


def images() -> dict[str, str]:
    """The image of each service, as the compose file names it."""
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    found = {}
    for name in SERVICES:
        match = re.search(rf"^  {name}:\n    image: (\S+)$", text, re.MULTILINE)
        assert match is not None, f"docker-compose.yml has no image for {name}"
        found[name] = match[1]
    return found


def are_there() -> bool:
    """Whether an engine answers and has every image; nothing is ever pulled for a test."""
    if shutil.which("docker") is None:
        return False
    command = ["docker", "image", "inspect", *images().values()]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Start the four services; gives the address of each."""
    testcontainers_config.ryuk_disabled = True  # an image of its own, which would have to be pulled
    image = images()
    ports = {name: free_port() for name in SERVICES}
    with ExitStack() as stack:
        network = stack.enter_context(Network())

        def start(name: str, inner_port: int, **environment: str) -> DockerContainer:
            container = DockerContainer(image[name]).with_bind_ports(inner_port, ports[name])
            for variable, value in environment.items():
                container = container.with_env(variable, value)
            return stack.enter_context(container.with_network(network).with_network_aliases(name))

        start("kafka", ports["kafka"], **_kafka_environment(ports["kafka"]))
        start(
            "schema-registry",
            8081,
            SCHEMA_REGISTRY_HOST_NAME="schema-registry",
            SCHEMA_REGISTRY_LISTENERS="http://0.0.0.0:8081",
            SCHEMA_REGISTRY_KAFKASTORE_BOOTSTRAP_SERVERS="PLAINTEXT://kafka:9092",
        )
        start("chromadb", 8000, ANONYMIZED_TELEMETRY="FALSE")
        start("postgres", 5432, POSTGRES_USER="rtfm", POSTGRES_PASSWORD=PASSWORD, POSTGRES_DB="rtfm")
        addresses = {
            "kafka": f"localhost:{ports['kafka']}",
            "schema_registry": f"http://localhost:{ports['schema-registry']}",
            "chroma": f"http://localhost:{ports['chromadb']}",
            "postgres": f"postgresql://rtfm:{PASSWORD}@localhost:{ports['postgres']}/rtfm",
        }
        _until("registry", lambda: _responds(f"{addresses['schema_registry']}/subjects"))
        _until("Chroma", lambda: _responds(f"{addresses['chroma']}/api/v2/heartbeat"))
        _until("PostgreSQL", lambda: _connects(addresses["postgres"]))
        yield addresses


def _kafka_environment(port: int) -> dict[str, str]:
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENERS": f"INTERNAL://:9092,CONTROLLER://:9093,HOST://:{port}",
        "KAFKA_ADVERTISED_LISTENERS": f"INTERNAL://kafka:9092,HOST://localhost:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,HOST:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "INTERNAL",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS": "1000",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_LOG_RETENTION_CHECK_INTERVAL_MS": "5000",
        "KAFKA_HEAP_OPTS": "-Xmx512m",
    }


def _until(name: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        assert time.monotonic() < deadline, f"{name} did not answer within {START_TIMEOUT_S:.0f} s"
        time.sleep(0.2)


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - an address of our own
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _connects(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
