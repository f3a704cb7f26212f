"""Runs Kafka, a schema registry, Chroma and PostgreSQL as processes of this machine, without Docker.

In ``RTFM_HOME``, this module owns ``data/`` with a folder for each of these dependencies, ``log/``, ``cache/`` for
downloads, and ``run/`` with the addresses, ports and process ids. It stops only processes that it started. It
recognises these processes by process id and start time. If a dependency was killed, ``up`` starts it again with its
data.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from attrs import frozen

from rtfm.addresses import redact_address
from rtfm.errors import ConfigError, Unavailable
from rtfm.files import write_atomically
from rtfm.home import make_private
from rtfm.local import artifacts, services
from rtfm.local.services import DEFAULT_PORTS, SERVICES, Launch
from rtfm.settings import LOCAL_STACK_FILE

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
ORPHANS_TIMEOUT_S = 10.0
"""Seconds to wait for the child processes of a killed PostgreSQL. They end by themselves, some only after a query."""

PORT_RELEASE_TIMEOUT_S = 5.0
"""Seconds to wait until a killed process has released its ports.

The process counts as ended when its first thread has ended, but it keeps its ports until its last thread has ended.
"""

MIN_FREE_BYTES = 200_000_000
"""Free disk space that a start needs, in bytes: 60 MB for PostgreSQL, the rest for Kafka's segments and for logs."""

MAX_LOG_BYTES = 10_000_000
"""If a log is larger than this many bytes when its dependency starts, the log is renamed to ``.log.1``."""

_PORT_TRIES = 3
"""Number of attempts to find free ports. If two stacks choose the same port at once, the slower stack tries again."""

_POLL_S = 0.05


@frozen(kw_only=True)
class ServiceStatus:
    """The status of one dependency: ``state`` is ``running``, ``not answering`` or ``stopped``."""

    name: str
    state: str
    address: str
    pid: int | None


class _PortTaken(Unavailable):
    """Another program took a port after it was chosen for a dependency and before the dependency used it."""


class LocalStack:
    """The four dependencies, with their data in one home folder.

    If several threads or processes have a stack with the same home folder, their calls of ``up`` and ``down`` take
    turns.
    """

    def __init__(
        self,
        home: Path,
        *,
        cache_dir: Path | None = None,
        broker_settings: Mapping[str, str] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self.home = home.absolute()
        self.cache_dir = (cache_dir or home / "cache").absolute()
        self._broker_settings = broker_settings
        self._clock = clock
        self._sleep = sleep
        self._free_bytes = free_bytes
        self._state_lock = threading.Lock()

    def up(
        self,
        names: Sequence[str] = SERVICES,
        *,
        ports: Mapping[str, int] | None = None,
        progress: artifacts.Progress | None = None,
    ) -> list[ServiceStatus]:
        """Start the dependencies ``names`` that do not run, and wait until all of ``names`` answer.

        ``ports`` maps dependencies to ports that they must use. A dependency that is not in ``ports`` gets the first
        free port of these: the port that it had before, its default port, any other port. If another program takes the
        chosen port first, the dependency gets a new port. Raises ConfigError if a given port is taken, a download is
        corrupted or the disk is full, and Unavailable if a dependency ends or does not answer within 90 s.
        """
        with self._lock_home():
            running = {name: entry for name in names if (entry := self._running_entry(name))}
            self._check_ports_unchanged(running, ports or {})
            with ThreadPoolExecutor(len(SERVICES)) as pool:
                # A process that was killed a moment ago may still be listed as running, so each one must answer.
                answering = list(pool.map(self._wait_until_answering, running, running.values()))
            missing = [name for name in names if not dict(zip(running, answering, strict=True)).get(name)]
            if missing:
                self._check_free_space()
                artifacts.ensure(self.cache_dir, [a for name in missing for a in services.artifacts_of(name)], progress)
            tries = 0
            while missing:
                tries += 1
                missing = self._start_all(missing, ports or {}, tries)
            if "schema-registry" in names:
                services.set_global_level(self._read_state()["schema-registry"]["address"])
            if "postgres" in names:
                services.create_database(self._read_state()["postgres"]["address"])
        return self.status()

    def down(self, names: Sequence[str] = SERVICES) -> list[str]:
        """Stop the dependencies that this home folder's stack started, and return their names. The data stays."""
        with self._lock_home():
            running = [name for name in names if self._running_entry(name)]
            with ThreadPoolExecutor(len(SERVICES)) as pool:
                list(pool.map(self._stop, running))
            with suppress(OSError):  # if the disk is full, the entries stay; an ended process is recognised anyway
                for name in names:
                    self._save_entry(name, None)
            return running

    def status(self) -> list[ServiceStatus]:
        """Return the status of each of the four dependencies, after checking whether it answers."""
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            return list(pool.map(self._status, SERVICES))

    def log_path(self, name: str) -> Path:
        """Return the log file of the dependency ``name``."""
        return self.home / "log" / f"{name}.log"

    def _status(self, name: str) -> ServiceStatus:
        entry = self._running_entry(name)
        if entry is None:
            return ServiceStatus(name=name, state="stopped", address="", pid=None)
        state = "running" if services.is_answering(name, entry["port"]) else "not answering"
        return ServiceStatus(name=name, state=state, address=entry["address"], pid=entry["pid"])

    def _start_all(self, names: Sequence[str], given: Mapping[str, int], tries: int) -> list[str]:
        """Start the dependencies ``names`` in parallel, and return those whose port another program took.

        Raises the error of a dependency that cannot start. Raises ``_PortTaken`` if the taken port was ``given``, or if
        this is the last of _PORT_TRIES ``tries``.
        """
        chosen = self._choose_ports(names, given, PORT_RELEASE_TIMEOUT_S if tries == 1 else 0)
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            starts = {name: pool.submit(self._start, name, chosen) for name in names}
        without_port = []
        for name, start in starts.items():
            try:
                start.result()
            except _PortTaken:
                if tries == _PORT_TRIES or name in given:
                    raise
                without_port.append(name)
        return without_port

    def _start(self, name: str, ports: Mapping[str, int]) -> None:
        data_dir = self.home / "data" / name
        self._end_orphans(name, data_dir)
        self._save_entry(name, {"begun": True})
        launch = services.prepare(name, data_dir, self.cache_dir, ports, self._broker_settings)
        log = self.log_path(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.is_file() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        with log.open("ab") as output:
            log_offset = output.tell()
            process = self._spawn(launch, data_dir, output)
        entry = {
            "address": services.address(name, ports[name], data_dir),
            "port": ports[name],
            "pid": process.pid,
            "started": psutil.Process(process.pid).create_time(),
            "log_offset": log_offset,
        }
        self._save_entry(name, entry)
        if not self._wait_until_answering(name, entry):
            own = [ports[port] for port in (name, f"{name}-controller") if port in ports]
            taken = [port for port in own if not services.is_port_free(port)]
            if taken:
                raise _PortTaken(
                    name,
                    f"port {taken[0]} for {name} was taken by another program while it started",
                    hint="start again, or give another port",
                )
            raise Unavailable(
                name,
                f"{name} ended at its start: {self._failure_reason(name, entry)}",
                hint=f"read its log, {self.log_path(name)}",
            )

    def _spawn(self, launch: Launch, data_dir: Path, output: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**services.ENVIRONMENT, "HOME": str(data_dir), **launch.environment},
            cwd=launch.folder or data_dir,  # a later start finds orphans by their working folder
            start_new_session=True,
            **launch.account,
        )

    def _wait_until_answering(self, name: str, entry: dict[str, Any]) -> bool:
        """Wait until the dependency ``name`` answers and return True, or False if its process ends.

        If neither happens within 90 s, stops the process and raises Unavailable.
        """
        deadline = self._clock() + START_TIMEOUT_S
        while not (services.is_answering(name, entry["port"]) and _is_listening(entry)):
            if _find_process(entry) is None:
                return False
            if self._clock() > deadline:
                self._stop(name)
                raise Unavailable(
                    name,
                    f"{name} did not answer at {redact_address(entry['address'])} within {START_TIMEOUT_S:.0f} s",
                    hint=f"read its log, {self.log_path(name)}",
                )
            self._sleep(_POLL_S)
        return True

    def _failure_reason(self, name: str, entry: dict[str, Any]) -> str:
        with self.log_path(name).open("rb") as log:
            log.seek(entry["log_offset"])
            return services.find_reason(log.read().decode("utf-8", errors="replace"))

    def _end_orphans(self, name: str, data_dir: Path) -> None:
        """Wait until the child processes of a killed process end.

        If an earlier ``up`` was killed while it started the dependency, kill the processes that this start left.
        """
        was_starting = "begun" in self._read_state().get(name, {})
        deadline = self._clock() + ORPHANS_TIMEOUT_S
        while orphans := _find_processes_in(data_dir):
            if was_starting:
                for process in orphans:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            elif self._clock() > deadline:
                raise ConfigError(
                    f"{name}: {data_dir} is in use by processes that this stack did not start: "
                    + ", ".join(str(process.pid) for process in orphans),
                    hint="end these processes, then start again",
                )
            self._sleep(_POLL_S)

    def _stop(self, name: str) -> None:
        process = _find_process(self._read_state().get(name))
        if process is None:
            return
        try:
            # At SIGTERM PostgreSQL would wait for its clients; at SIGINT it disconnects them.
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
            if not self._wait_until_ended(process):
                process.kill()
                if not self._wait_until_ended(process):
                    raise Unavailable(name, f"{name} (process {process.pid}) does not end after SIGKILL")
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied as exc:
            raise ConfigError(f"{name} (process {process.pid}) belongs to another user") from exc

    def _wait_until_ended(self, process: psutil.Process) -> bool:
        """Wait until ``process`` ends and return True, or False if it does not end in time.

        An ended process stays listed as a zombie until the program that started it reads its exit code.
        """
        deadline = self._clock() + STOP_TIMEOUT_S
        while self._clock() < deadline:
            with suppress(psutil.TimeoutExpired):
                process.wait(_POLL_S)
                return True
            with suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_ZOMBIE:
                    return True
        return False

    def _running_entry(self, name: str) -> dict[str, Any] | None:
        entry = self._read_state().get(name)
        return entry if _find_process(entry) is not None else None

    def _check_free_space(self) -> None:
        if (free := self._free_bytes(self.home)) < MIN_FREE_BYTES:
            raise ConfigError(
                f"{self.home} has {free / 1e6:.0f} MB free, the services need {MIN_FREE_BYTES / 1e6:.0f} MB",
                hint="free disk space, or set RTFM_HOME to a folder on another disk",
            )

    def _check_ports_unchanged(self, running: Mapping[str, dict[str, Any]], ports: Mapping[str, int]) -> None:
        for name, port in ports.items():
            if name in running and running[name]["port"] != port:
                raise ConfigError(
                    f"{name} runs at port {running[name]['port']}, not {port}",
                    hint="stop it first: rtfm-cli local down",
                )

    def _choose_ports(self, names: Sequence[str], given: Mapping[str, int], wait_s: float) -> dict[str, int]:
        remembered = self._read_json("run/ports.json")
        chosen = dict(remembered)
        for name in (*names, *(["kafka-controller"] if "kafka" in names else [])):
            others = {port for other, port in chosen.items() if other != name} | set(given.values())
            if name in given:
                if not services.is_port_free(given[name]):
                    raise ConfigError(
                        f"port {given[name]} for {name} is taken by another program",
                        hint="end that program, or give another port",
                    )
                chosen[name] = given[name]
                continue
            # Clients know the previous port, so the dependency keeps it unless another program uses it.
            previous = remembered.get(name)
            if previous is not None and previous not in others and self._wait_until_free(previous, wait_s):
                continue
            candidates = [DEFAULT_PORTS[name], *services.free_ports(DEFAULT_PORTS).values()]
            chosen[name] = next(port for port in candidates if port not in others and services.is_port_free(port))
        if chosen != remembered:
            self._write_json("run/ports.json", chosen)
        return chosen

    def _wait_until_free(self, port: int, wait_s: float) -> bool:
        """Wait up to ``wait_s`` until ``port`` is free, and return whether it is free."""
        deadline = self._clock() + wait_s
        while not (is_free := services.is_port_free(port)) and self._clock() < deadline:
            self._sleep(_POLL_S)
        return is_free

    @contextmanager
    def _lock_home(self) -> Iterator[None]:
        """Lock the home folder during the block, so that commands take turns. Turns an OSError into a ConfigError."""
        try:
            make_private(self.home)
            (self.home / "run").mkdir(exist_ok=True)
            with (self.home / "run" / "lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            where = exc.filename or self.home
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
            raise ConfigError(
                f"{where}: the disk is full" if full else f"{where}: {exc.strerror}",
                hint="free disk space, or set RTFM_HOME to a folder on another disk"
                if full
                else "set RTFM_HOME to another folder",
            ) from exc

    def _read_state(self) -> dict[str, dict[str, Any]]:
        state: dict[str, dict[str, Any]] = self._read_json(LOCAL_STACK_FILE).get("services", {})
        return state

    def _save_entry(self, name: str, entry: dict[str, Any] | None) -> None:
        with self._state_lock:
            state = {other: kept for other, kept in self._read_state().items() if other != name}
            self._write_json(LOCAL_STACK_FILE, {"services": state | ({name: entry} if entry else {})})

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.home / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _write_json(self, name: str, value: object) -> None:
        # PostgreSQL's address includes its password.
        write_atomically(self.home / name, json.dumps(value, indent=1), mode=0o600)


def _find_process(entry: dict[str, Any] | None) -> psutil.Process | None:
    """Return the running process of a state entry, or None if the process has ended.

    After the process has ended, another process may get the same process id. The two differ in their start times.
    """
    if not entry:
        return None
    try:
        process = psutil.Process(entry["pid"])
        same = abs(process.create_time() - entry["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError):
        return None
    return process if same else None


def _is_listening(entry: dict[str, Any]) -> bool:
    """Return whether the dependency itself listens on its port, and not another program."""
    try:
        process = psutil.Process(entry["pid"])
        try:
            connections = process.net_connections("tcp")
        except psutil.AccessDenied:
            # This user may not read the connections. If the process runs as another user, it is assumed to listen. If
            # it is a process of this user, it has ended. A process that has ended has no command line.
            return bool(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == entry["port"] for c in connections)


def _find_processes_in(data_dir: Path) -> list[psutil.Process]:
    """Return the processes whose working folder is in ``data_dir`` and that run a program of a dependency."""
    return [
        process
        for process in psutil.process_iter(["cwd", "name", "status"])
        if process.info["cwd"]
        and Path(process.info["cwd"]).is_relative_to(data_dir)
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and process.info["name"].startswith(("java", "postgres", "initdb", "python"))
    ]
