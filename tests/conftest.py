"""The real services that integration tests talk to, started once a run, and settings of its own for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from attrs import evolve, frozen

from rtfm.settings import Settings

CHECKOUT = Path(__file__).parent.parent
IMAGES = {
    "kafka": "apache/kafka:4.1.1",
    "schema-registry": "confluentinc/cp-schema-registry:8.0.0",
    "chroma": "chromadb/chroma:1.5.9",
    "postgres": "postgres:17",
}


@frozen(kw_only=True)
class StackAddresses:
    """Where a client finds each service."""

    kafka: str
    schema_registry: str
    chroma: str
    postgres: str


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackAddresses]:
    """Kafka, registry, Chroma and PostgreSQL: containers where an engine has their images, else local processes."""
    if _images_are_there():
        from tests.containers import containers

        with containers(IMAGES) as addresses:
            yield StackAddresses(**addresses)
        return
    from rtfm.local.stack import LocalStack

    home = tmp_path_factory.mktemp("home")
    local = LocalStack(home, cache_dir=CHECKOUT / ".rtfm" / "cache")
    try:
        running = {service.name.replace("-", "_"): service.address for service in local.up()}
        yield StackAddresses(**running)
    finally:
        local.down()


@pytest.fixture
def bare_settings(stack: StackAddresses, tmp_path: Path) -> Iterator[Settings]:
    """Settings with a prefix and a database of their own; no topics, no schemas, no tables."""
    name = f"t{uuid.uuid4().hex[:12]}"
    server, _, _ = stack.postgres.rpartition("/")
    with psycopg.connect(stack.postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield evolve(
        Settings(),
        home=tmp_path / "rtfm-home",
        instance_id=name,
        kafka_bootstrap_servers=stack.kafka,
        kafka_topic_prefix=f"{name}.",
        schema_registry_url=stack.schema_registry,
        chroma_url=stack.chroma,
        database_url=f"{server}/{name}",
    )
    with psycopg.connect(stack.postgres, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def settings(bare_settings: Settings) -> Settings:
    """Settings with topics made, contracts registered and the archive migrated."""
    from rtfm.knowledge.archive import SqlArchive

    environment = environment_of(bare_settings)
    for command in (["topics", "init"], ["schemas", "register"]):
        run_cli(command, environment)
    archive = SqlArchive(bare_settings.database_url)
    archive.migrate()
    archive.close()
    return bare_settings


@pytest.fixture
def model_dir() -> Path | None:
    """The embedding model for tests, where RTFM_EMBEDDING_MODEL_DIR or the folder beside the checkout has one."""
    given = os.environ.get("RTFM_EMBEDDING_MODEL_DIR")
    candidates = [Path(given)] if given else [CHECKOUT.parent / "shared" / "models" / "all-MiniLM-L6-v2"]
    return next((folder for folder in candidates if folder.is_dir()), None)


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `rtfm-cli` as a person would: ``cli(settings, "topics", "init")``."""

    def run(
        settings: Settings, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return run_cli(list(arguments), environment_of(settings) | environment, check=check)

    return run


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment variables that lead a process to ``settings``."""
    from attrs import fields

    variables = {
        attribute.metadata["env"]: str(value)
        for attribute in fields(Settings)
        if (value := getattr(settings, attribute.name)) not in (None, "")
    }
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return inherited | variables


def run_cli(
    arguments: list[str], environment: dict[str, str], *, check: bool = True, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `rtfm-cli` in a process of its own; a failure shows what it printed."""
    program = shutil.which("rtfm-cli", path=str(CHECKOUT / ".venv" / "bin")) or "rtfm-cli"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=timeout_s
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"rtfm-cli {' '.join(arguments)} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done


def _images_are_there() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        done = subprocess.run(
            ["docker", "image", "inspect", *IMAGES.values()], capture_output=True, check=False, timeout=10
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
