"""The dependencies in docker-compose.yml as containers of one test run, on machines that have the images.

No image is pulled for a test. If the containers cannot be used, ``Unusable`` is raised, so that the run can use local
processes instead. Possible causes are a missing engine, a missing or wrong image, and a container that ends or does not
respond.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not in its __all__

from rtfm.local.services import BROKER_SETTINGS, free_ports

COMPOSE_FILE = Path(__file__).parent.parent / "docker-compose.yml"
SERVICES = {"kafka": 9092, "schema-registry": 8081, "chromadb": 8000, "postgres": 5432}
"""Each dependency with its port inside the container."""

ENGINE_TIMEOUT_S = 20
START_TIMEOUT_S = 90.0
PASSWORD = "rtfm"


class Unusable(Exception):
    """The containers cannot be used on this machine; the text says why in one line."""


def images() -> dict[str, str]:
    """Return the name of each dependency's image from the compose file."""
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    found = {}
    for name in SERVICES:
        match = re.search(rf"^  {name}:\n    image: (\S+)$", text, re.MULTILINE)
        assert match is not None, f"docker-compose.yml has no image for {name}"
        found[name] = match[1]
    return found


@contextmanager
def running(
    image_of: dict[str, str] | None = None, *, start_timeout_s: float = START_TIMEOUT_S
) -> Iterator[dict[str, str]]:
    """Start the four dependencies, and yield their addresses by the names in ``StackAddresses``.

    ``image_of`` replaces the images of the compose file. Raises Unusable.
    """
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.network import Network

    testcontainers_config.ryuk_disabled = True  # Ryuk needs its own image, and no image is pulled for a test
    with ExitStack() as stack:
        try:
            client = _engine()
            image_of = image_of or images()
            for image in image_of.values():
                _look_for(client, image)
            network = stack.enter_context(Network())
            addresses = _start(stack, client.host(), network, image_of, time.monotonic() + start_timeout_s)
        except Unusable:
            raise
        except Exception as exc:  # errors of testcontainers, docker, requests and the operating system
            raise Unusable(" ".join(str(exc).split())[:200]) from exc
        yield addresses


def _engine() -> Any:
    from docker.errors import DockerException
    from testcontainers.core.docker_client import DockerClient

    try:
        return DockerClient(timeout=ENGINE_TIMEOUT_S)
    except DockerException as exc:
        raise Unusable("no engine answers") from exc


def _look_for(client: Any, image: str) -> None:
    from docker.errors import ImageNotFound

    try:
        client.client.images.get(image)
    except ImageNotFound as exc:
        raise Unusable(f"the engine does not have {image}") from exc


def _start(stack: ExitStack, host: str, network: Any, image_of: dict[str, str], deadline: float) -> dict[str, str]:
    from testcontainers.core.container import DockerContainer

    port_of = free_ports(SERVICES)
    environment_of = {
        "kafka": _kafka_environment(host, port_of["kafka"]),
        "schema-registry": {
            "SCHEMA_REGISTRY_HOST_NAME": "schema-registry",
            "SCHEMA_REGISTRY_LISTENERS": "http://0.0.0.0:8081",
            "SCHEMA_REGISTRY_KAFKASTORE_BOOTSTRAP_SERVERS": "PLAINTEXT://kafka:9092",
        },
        "chromadb": {"ANONYMIZED_TELEMETRY": "FALSE"},
        "postgres": {"POSTGRES_USER": "rtfm", "POSTGRES_PASSWORD": PASSWORD, "POSTGRES_DB": "rtfm"},
    }
    containers: dict[str, Any] = {}
    for name, inner_port in SERVICES.items():
        container: Any = DockerContainer(image_of[name]).with_network(network).with_network_aliases(name)
        # Kafka tells clients its port, so the port must be the same inside and outside the container.
        inner = port_of["kafka"] if name == "kafka" else inner_port
        container.ports[inner] = ("127.0.0.1", port_of[name]) if host == "localhost" else port_of[name]
        containers[name] = stack.enter_context(container.with_envs(**environment_of[name]))
    addresses = {
        "kafka": f"{host}:{port_of['kafka']}",
        "schema_registry": f"http://{host}:{port_of['schema-registry']}",
        "chroma": f"http://{host}:{port_of['chromadb']}",
        "postgres": f"postgresql://rtfm:{PASSWORD}@{host}:{port_of['postgres']}/rtfm",
    }
    checks = {
        "postgres": lambda: psycopg.connect(addresses["postgres"], connect_timeout=2).close(),
        "chromadb": lambda: httpx.get(f"{addresses['chroma']}/api/v2/heartbeat", timeout=2).raise_for_status(),
        "schema-registry": lambda: httpx.get(f"{addresses['schema_registry']}/subjects", timeout=2).raise_for_status(),
        "kafka": lambda: _make_a_topic(addresses["kafka"]),
    }
    for name, check in checks.items():
        _until(name, check, containers, deadline)
    return addresses


def _kafka_environment(host: str, port: int) -> dict[str, str]:
    settings = {
        "node.id": "1",
        "process.roles": "broker,controller",
        "controller.quorum.voters": "1@localhost:9093",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"INTERNAL://:9092,CONTROLLER://:9093,HOST://:{port}",
        "advertised.listeners": f"INTERNAL://kafka:9092,HOST://{host}:{port}",
        "listener.security.protocol.map": "INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,HOST:PLAINTEXT",
        "inter.broker.listener.name": "INTERNAL",
        **BROKER_SETTINGS,
    }
    # The image of Kafka reads broker settings from variables of this form.
    variables = {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in settings.items()}
    return {**variables, "KAFKA_HEAP_OPTS": "-Xmx512m"}


def _make_a_topic(address: str) -> None:
    """Create a topic; this fails unless both ``address`` and the address that the broker advertises work."""
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    admin.create_topics([NewTopic("served", 1)], request_timeout=5)["served"].result(6)


def _until(name: str, check: Callable[[], object], containers: dict[str, Any], deadline: float) -> None:
    while True:
        try:
            check()
        except Exception as exc:  # this dependency is not up yet, or the container of another dependency ended
            for other, container in containers.items():
                container.reload()
                if container.status not in ("created", "running"):
                    said = b"".join(container.get_logs()).decode(errors="replace").split("\n")
                    last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
                    raise Unusable(f"the container of {other} ended, saying: {last[:200]}") from exc
            if time.monotonic() > deadline:
                raise Unusable(f"the container of {name} does not answer: {type(exc).__name__}") from exc
            time.sleep(0.2)
        else:
            return
