"""The real services that integration tests talk to, started once a run, and settings of its own for each test.

Containers where an engine has the images of docker-compose.yml and they serve, else processes of this machine;
``RTFM_TEST_STACK=local`` or ``=docker`` wants the one or the other. The summary says which they were.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import structlog
from attrs import evolve, fields, frozen
from hypothesis import settings as hypothesis_settings

from rtfm.contracts import Catalogue
from rtfm.settings import Settings
from tests.forked_cli import run_forked
from tests.shared_stack import SharedStack

if TYPE_CHECKING:
    from rtfm.knowledge.archive import SqlArchive

# Timing is never asserted in a test.
hypothesis_settings.register_profile("rtfm", deadline=None)
hypothesis_settings.load_profile("rtfm")

CHECKOUT = Path(__file__).parent.parent
CACHE_DIR = CHECKOUT / ".rtfm" / "cache"


@frozen(kw_only=True)
class StackAddresses:
    """Where a client finds each service."""

    kafka: str
    schema_registry: str
    chroma: str
    postgres: str


TOGETHER = {
    # These start services at the usual ports.
    "tests/integration/test_demo.py": "local services",
    "tests/integration/test_local.py": "local services",
    # These have much to set up.
    "tests/integration/test_compatibility.py": "verdicts",
    "tests/integration/test_java_avro.py": "Java",
    "tests/integration/test_wheel.py": "wheel",
}
"""Files whose tests one worker runs, one after another; other tests go to whoever is free."""

STACK = pytest.StashKey[str]()
"""What the services are, for the summary."""

RUNNING = pytest.StashKey[SharedStack]()


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """A command that a test runs in this process sets the logs up for itself, not for the tests after it."""
    handlers, level = logging.root.handlers[:], logging.root.level
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StackAddresses:
    """Kafka, registry, Chroma and PostgreSQL, running; one of each for all workers of a run."""
    config, folder = request.config, tmp_path_factory.getbasetemp()
    if hasattr(config, "workerinput"):
        folder = folder.parent
    config.stash[RUNNING] = shared = SharedStack(folder, _start_stack)
    addresses, config.stash[STACK] = shared.join(os.environ.get("RTFM_TEST_STACK", ""))
    return StackAddresses(**addresses)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the services, when no other worker has a use for them; not in a fixture, for that may take a while."""
    config = session.config
    if (shared := config.stash.get(RUNNING, None)) is not None:
        shared.leave()
    if hasattr(config, "workeroutput"):
        config.workeroutput["stack"] = config.stash.get(STACK, "")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests come last: they are short, so no worker is left alone with a long one at the end of a run."""
    items.sort(key=lambda item: "tests/unit/" in item.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who runs what; not by xdist_group marks, which xdist 3.8 writes into node ids that pytest 9.2 no longer reads."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it carries no types

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # its package is not typed
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Tell the summary what a worker's tests ran on."""
    if what := getattr(node, "workeroutput", {}).get("stack"):
        node.config.stash[STACK] = what


def _start_stack(exits: ExitStack, wanted: str) -> tuple[dict[str, str], str]:
    addresses, what = _start_services(exits, wanted)
    with psycopg.connect(addresses["postgres"], autocommit=True) as connection:
        # Each test has a database made for it, most of whose time is the disk's. None has to survive the machine.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    return addresses, what


def _start_services(exits: ExitStack, wanted: str) -> tuple[dict[str, str], str]:
    why = ""
    if wanted != "local":
        from tests import containers

        try:
            return exits.enter_context(containers.running()), "containers"
        except containers.Unusable as exc:
            if wanted == "docker":
                raise
            why = f"; no containers: {exc}"
    from rtfm.local.services import DEFAULT_PORTS, free_ports
    from rtfm.local.stack import LocalStack

    local = LocalStack(exits.enter_context(stack_home()), cache_dir=CACHE_DIR)
    exits.callback(local.down)
    # The usual ports are for the tests that start services as people do.
    services = local.up(ports=free_ports(DEFAULT_PORTS))
    addresses = {service.name.replace("-", "_"): service.address for service in services}
    return addresses, f"processes of this machine{why}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the integration tests ran on."""
    if what := config.stash.get(STACK, ""):
        terminalreporter.write_line(f"Kafka, registry, Chroma and PostgreSQL: {what}")


@pytest.fixture(scope="session")
def migrated_database(stack: StackAddresses) -> str:
    """The name of an archive that is migrated and empty, which tests get copies of."""
    from rtfm.knowledge.archive import SqlArchive

    name = f"template_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(stack.postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    archive = SqlArchive(_database(stack, name))
    archive.migrate()
    archive.close()
    return name


@pytest.fixture
def unmigrated_settings(stack: StackAddresses, tmp_path: Path) -> Iterator[Settings]:
    """Settings with a prefix and a database of their own; no topics, no schemas, no tables."""
    with _settings(stack, tmp_path, template="template1") as settings:
        yield settings


@pytest.fixture
def archive(stack: StackAddresses, migrated_database: str, tmp_path: Path) -> Iterator[SqlArchive]:
    """An archive of its own, migrated and empty."""
    from rtfm.knowledge.archive import SqlArchive

    with (
        _settings(stack, tmp_path, template=migrated_database) as settings,
        closing(SqlArchive(settings.database_url)) as opened,
    ):
        yield opened


@pytest.fixture
def bare_settings(stack: StackAddresses, migrated_database: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings with the archive migrated; no topics, no schemas."""
    with _settings(stack, tmp_path, template=migrated_database) as settings:
        yield settings


@pytest.fixture
def settings(stack: StackAddresses, migrated_database: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings with topics made, contracts registered and the archive migrated; the topics are deleted at the end."""
    from rtfm.contracts import catalogue as catalogues
    from rtfm.streams.topics import TopicAdmin

    with _settings(stack, tmp_path, template=migrated_database) as settings:
        catalogue = catalogues.load()
        topics = TopicAdmin(settings, catalogue)
        topics.apply(topics.plan())
        _register(catalogue, settings)
        yield settings
        topics.delete()


@pytest.fixture(scope="session")
def model_dir(fetched_model: Callable[[], Path]) -> Path:
    """The embedding model: RTFM_EMBEDDING_MODEL_DIR, the one beside the checkout, or the one that anybody fetches."""
    given = os.environ.get("RTFM_EMBEDDING_MODEL_DIR")
    folder = Path(given) if given else CHECKOUT.parent / "shared" / "models" / "all-MiniLM-L6-v2"
    return folder if folder.is_dir() else fetched_model()


@pytest.fixture(scope="session")
def fetched_model() -> Callable[[], Path]:
    """Gives the model as `rtfm-cli local up` fetches it; kept beside the jars for the next run."""
    from rtfm.local import model

    def fetch() -> Path:
        CACHE_DIR.mkdir(parents=True, exist_ok=True)
        with (CACHE_DIR / "model.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return model.fetch(CACHE_DIR / "model")

    return fetch


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `rtfm-cli` as a person would: ``cli(settings, "topics", "init")``."""

    def run(
        settings: Settings, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = run_forked(list(arguments), environment_of(settings) | environment, timeout_s=120)
        return checked(done) if check else done

    return run


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment variables that lead a process to ``settings``."""
    variables = {
        attribute.metadata["env"]: str(value)
        for attribute in fields(Settings)
        if (value := getattr(settings, attribute.name)) not in (None, "")
    }
    return inherited_environment() | variables


def inherited_environment() -> dict[str, str]:
    """What a program of another process needs to run and to download, and nothing that sets RTFM up."""
    needed = re.compile(r"PATH|HOME|LANG|TMPDIR|.*_CA_BUNDLE|SSL_CERT_(FILE|DIR)|(HTTPS?|ALL|NO)_PROXY", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if needed.fullmatch(name)}


def run_cli(
    arguments: list[str], environment: dict[str, str], *, check: bool = True, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the installed `rtfm-cli`; a failure shows what it printed."""
    done = subprocess.run(
        [Path(sys.executable).with_name("rtfm-cli"), *arguments],
        # Not where somebody's .env may be.
        cwd=tempfile.gettempdir(),
        # Not the terminal of whoever runs the tests: tables and lines would be as wide as that is.
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=timeout_s,
    )
    return checked(done) if check else done


def checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """``done`` itself where it went well; else an AssertionError with what was printed."""
    assert done.returncode == 0, f"{done.args} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


@contextmanager
def stack_home() -> Iterator[Path]:
    """A folder for the data of local services.

    Not below ``tmp_path``: for root PostgreSQL runs as another account, and whenever a pytest starts, be it another
    one, it shuts the folder of all runs to other accounts.
    """
    CACHE_DIR.mkdir(parents=True, exist_ok=True)  # for a link from that folder to it
    home = Path(tempfile.mkdtemp(prefix="rtfm-test-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _settings(stack: StackAddresses, tmp_path: Path, *, template: str) -> Iterator[Settings]:
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(stack.postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield evolve(
        Settings(),
        home=tmp_path / "rtfm-home",
        instance_id=name,
        kafka_bootstrap_servers=stack.kafka,
        kafka_topic_prefix=f"{name}.",
        schema_registry_url=stack.schema_registry,
        chroma_url=stack.chroma,
        database_url=_database(stack, name),
    )
    with psycopg.connect(stack.postgres, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _register(catalogue: Catalogue, settings: Settings) -> None:
    """What `schemas register` leaves behind, without its questions: nothing is registered under a new prefix."""
    from rtfm.contracts import COMMAND_TIMEOUT_S, open_registry

    registry = open_registry(settings, timeout_s=COMMAND_TIMEOUT_S)
    for topic in catalogue.topics_with_schema():
        schema = topic.schema or {}
        released = [version for version in catalogue.released_schemas(topic.name).values() if version != schema]
        registry.set_compatibility(topic.name, topic.compatibility)
        for version in [*released, schema]:
            schema_id = registry.register(topic.name, version)
        registry.cache_id(topic.name, schema, schema_id)
    registry.close()


def _database(stack: StackAddresses, name: str) -> str:
    server, _, _ = stack.postgres.rpartition("/")
    return f"{server}/{name}"
