"""Fixtures of all tests: dependencies that are started once per run, and separate settings for each test.

The dependencies are Kafka, the schema registry, Chroma and PostgreSQL. They run in containers if a container engine has
the images of docker-compose.yml and the containers respond. Otherwise they are processes of this machine.
``RTFM_TEST_STACK=local`` demands processes, and ``RTFM_TEST_STACK=docker`` demands containers. The summary of the run
says which of the two were used.
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
from tests.fakes.discord import FakeDiscord, FakeGuild
from tests.forked_cli import run_forked
from tests.shared_stack import SharedStack

if TYPE_CHECKING:
    from rtfm.knowledge.archive import SqlArchive

# A slow machine must not fail a test, so Hypothesis sets no deadline for an example.
hypothesis_settings.register_profile("rtfm", deadline=None)
hypothesis_settings.load_profile("rtfm")

CHECKOUT = Path(__file__).parent.parent
CACHE_DIR = CHECKOUT / ".rtfm" / "cache"


@frozen(kw_only=True)
class StackAddresses:
    """The address at which clients reach each dependency."""

    kafka: str
    schema_registry: str
    chroma: str
    postgres: str


TOGETHER = {
    # The tests in these files start the local stack at the default ports.
    "tests/integration/test_demo.py": "local services",
    "tests/integration/test_local.py": "local services",
    # The tests in these files have expensive fixtures.
    "tests/integration/test_compatibility.py": "verdicts",
    "tests/integration/test_java_avro.py": "Java",
    "tests/integration/test_wheel.py": "wheel",
}
"""The tests of all files with the same value run in one xdist worker; any other test runs in a free xdist worker."""

STACK = pytest.StashKey[str]()
"""Description of the dependencies that the run uses; the summary prints this text."""

RUNNING = pytest.StashKey[SharedStack]()


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """Restore the logging configuration after each test. A test that runs a command in this process changes it."""
    handlers, level = logging.root.handlers[:], logging.root.level
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StackAddresses:
    """Return the addresses of the dependencies that all xdist workers of a run share."""
    config, folder = request.config, tmp_path_factory.getbasetemp()
    if hasattr(config, "workerinput"):
        folder = folder.parent
    config.stash[RUNNING] = shared = SharedStack(folder, _start_stack)
    addresses, config.stash[STACK] = shared.join(os.environ.get("RTFM_TEST_STACK", ""))
    return StackAddresses(**addresses)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """If this xdist worker started the dependencies, stop them as soon as no other xdist worker uses them.

    This is done in a hook and not in the teardown of a fixture, because waiting for the other xdist workers may take
    longer than the timeout of a test.
    """
    config = session.config
    if (shared := config.stash.get(RUNNING, None)) is not None:
        shared.leave()
    if hasattr(config, "workeroutput"):
        config.workeroutput["stack"] = config.stash.get(STACK, "")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run unit tests last.

    Unit tests are short. If they run last, it is unlikely that one xdist worker has a long test left while the others
    are idle.
    """
    items.sort(key=lambda item: "tests/unit/" in item.nodeid)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a unit test that needs dependencies, for example because it uses the fixture ``settings``."""
    if "tests/unit/" in item.nodeid and "stack" in getattr(item, "fixturenames", ()):
        pytest.fail("a unit test starts no dependencies; move it to tests/integration", pytrace=False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Assign tests to xdist workers: the files of ``TOGETHER`` as a whole, other tests one by one.

    xdist_group marks do not work: xdist 3.8 adds the group to the id of a test, and pytest 9.2 does not read it there.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # xdist has no types

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Tell the summary which dependencies the tests of an xdist worker used."""
    if what := getattr(node, "workeroutput", {}).get("stack"):
        node.config.stash[STACK] = what


def _start_stack(exits: ExitStack, wanted: str) -> tuple[dict[str, str], str]:
    addresses, what = _start_services(exits, wanted)
    with psycopg.connect(addresses["postgres"], autocommit=True) as connection:
        # Creating a database for each test takes mostly disk time. No database has to survive a crash of the machine,
        # so PostgreSQL need not wait for the disk.
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
    # The default ports are left to the tests that start the local stack as a user does.
    services = local.up(ports=free_ports(DEFAULT_PORTS))
    addresses = {service.name.replace("-", "_"): service.address for service in services}
    return addresses, f"processes of this machine{why}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print which dependencies the integration tests used."""
    if what := config.stash.get(STACK, ""):
        terminalreporter.write_line(f"Kafka, registry, Chroma and PostgreSQL: {what}")


@pytest.fixture(scope="session")
def migrated_database(stack: StackAddresses) -> str:
    """Return the name of an empty, migrated database that tests copy."""
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
    """Settings with their own topic prefix and database, without topics, schemas and tables."""
    with _settings(stack, tmp_path, template="template1") as settings:
        yield settings


@pytest.fixture
def archive(stack: StackAddresses, migrated_database: str, tmp_path: Path) -> Iterator[SqlArchive]:
    """An empty, migrated archive for one test."""
    from rtfm.knowledge.archive import SqlArchive

    with (
        _settings(stack, tmp_path, template=migrated_database) as settings,
        closing(SqlArchive(settings.database_url)) as opened,
    ):
        yield opened


@pytest.fixture
def bare_settings(stack: StackAddresses, migrated_database: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings with a migrated archive, without topics and schemas."""
    with _settings(stack, tmp_path, template=migrated_database) as settings:
        yield settings


@pytest.fixture
def settings(stack: StackAddresses, migrated_database: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings with topics, registered contracts and a migrated archive; the topics are deleted after the test."""
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
    """Return the folder of the embedding model.

    RTFM_EMBEDDING_MODEL_DIR names the folder. Without this variable, it is the folder in shared/models next to the
    checkout. If the folder does not exist, the model is fetched.
    """
    given = os.environ.get("RTFM_EMBEDDING_MODEL_DIR")
    folder = Path(given) if given else CHECKOUT.parent / "shared" / "models" / "all-MiniLM-L6-v2"
    return folder if folder.is_dir() else fetched_model()


@pytest.fixture(scope="session")
def fetched_model() -> Callable[[], Path]:
    """Return a function that fetches the embedding model as `rtfm-cli local up` does.

    The model stays in the cache, next to Kafka's jars, for the next run.
    """
    from rtfm.local import model

    def fetch() -> Path:
        CACHE_DIR.mkdir(parents=True, exist_ok=True)
        with (CACHE_DIR / "model.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return model.fetch(CACHE_DIR / "model")

    return fetch


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `rtfm-cli` like a user: ``cli(settings, "topics", "init")``."""

    def run(
        settings: Settings, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = run_forked(list(arguments), environment_of(settings) | environment, timeout_s=120)
        return checked(done) if check else done

    return run


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the environment variables that make a process use ``settings``."""
    variables = {
        attribute.metadata["env"]: str(value)
        for attribute in fields(Settings)
        if (value := getattr(settings, attribute.name)) not in (None, "")
    }
    return inherited_environment() | variables


def inherited_environment() -> dict[str, str]:
    """Return the variables that a child process needs to run and to download files, without settings of RTFM."""
    needed = re.compile(r"PATH|HOME|LANG|TMPDIR|.*_CA_BUNDLE|SSL_CERT_(FILE|DIR)|(HTTPS?|ALL|NO)_PROXY", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if needed.fullmatch(name)}


def run_cli(
    arguments: list[str], environment: dict[str, str], *, check: bool = True, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the installed `rtfm-cli`; with ``check``, a failure raises AssertionError with the output."""
    done = subprocess.run(
        [Path(sys.executable).with_name("rtfm-cli"), *arguments],
        # This folder has no .env file.
        cwd=tempfile.gettempdir(),
        # The user's terminal is not inherited, because its width would change tables and lines.
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=timeout_s,
    )
    return checked(done) if check else done


def checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Return ``done`` if it succeeded; otherwise raise AssertionError with its output."""
    assert done.returncode == 0, f"{done.args} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


@contextmanager
def stack_home() -> Iterator[Path]:
    """Create a folder for the data of the local stack.

    If the tests run as root, PostgreSQL runs under another account. That account may not read pytest's ``tmp_path``, so
    the new folder is somewhere else.
    """
    CACHE_DIR.mkdir(parents=True, exist_ok=True)  # the home of the stack has a link to CACHE_DIR
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
    """Register the contracts like `schemas register`, but without the checks of that command.

    Under a new topic prefix nothing is registered yet, so the checks would have nothing to compare.
    """
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


@pytest.fixture
def fake() -> Iterator[FakeDiscord]:
    with FakeDiscord() as server:
        yield server


@pytest.fixture
def guild(fake: FakeDiscord) -> FakeGuild:
    return fake.guild()
