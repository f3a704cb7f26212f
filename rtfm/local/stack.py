"""Kafka, a schema registry, Chroma and PostgreSQL as processes of this machine, without Docker.

Owns ``RTFM_HOME``: ``data/`` of each service, ``log/``, ``cache/`` for what was fetched, ``run/`` for addresses and
processes. Stops only processes that it started: a process is its own while number and start time agree. Whatever was
killed, ``up`` brings back with what it held.
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
"""PostgreSQL's workers end by themselves when it is killed: at once, or at the end of a query."""

ROOM_BYTES = 200_000_000
"""What the services need to start: PostgreSQL 60 MB, Kafka's log segments and indexes, logs."""

LOG_BYTES = 10_000_000
"""A log that is longer at a start is put aside as ``.log.1``."""

_PORT_TRIES = 3
"""Two stacks that start at the same moment choose the same ports; the slower one takes others then."""

_POLL_S = 0.05


@frozen(kw_only=True)
class ServiceStatus:
    """One service: ``state`` is ``running``, ``not answering`` or ``stopped``."""

    name: str
    state: str
    address: str
    pid: int | None


class _PortTaken(Unavailable):
    """Another program was quicker."""


class LocalStack:
    """The four services of one home folder; any number of them at once, of this and other processes, take turns."""

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
        """Start what does not run and wait until all answer; a second call changes nothing.

        ``ports`` are those that must be taken; others are remembered, or the usual one if it is free, or any.
        One that another program takes in the meantime is left to it, unless it was given. Raises ConfigError for a
        taken port, a corrupted download or a full disk, Unavailable for a service that ends or does not answer within
        90 s.
        """
        with self._sole_use():
            running = {name: entry for name in names if (entry := self._running(name))}
            self._refuse_to_move(running, ports or {})
            with ThreadPoolExecutor(len(SERVICES)) as pool:
                # One that was killed a moment ago may still be there.
                answering = list(pool.map(self._await, running, running.values()))
            missing = [name for name in names if not dict(zip(running, answering, strict=True)).get(name)]
            if missing:
                self._make_sure_of_room()
                artifacts.ensure(self.cache_dir, [a for name in missing for a in services.artifacts_of(name)], progress)
            tries = 0
            while missing:
                tries += 1
                missing = self._start_all(missing, ports or {}, last=tries == _PORT_TRIES)
            if "schema-registry" in names:
                services.set_global_level(self._state()["schema-registry"]["address"])
            if "postgres" in names:
                services.create_database(self._state()["postgres"]["address"])
        return self.status()

    def down(self, names: Sequence[str] = SERVICES) -> list[str]:
        """Stop what this folder's stack started; the names of what was stopped. The data stays."""
        with self._sole_use():
            running = [name for name in names if self._running(name)]
            with ThreadPoolExecutor(len(SERVICES)) as pool:
                list(pool.map(self._stop, running))
            with suppress(OSError):  # on a full disk: what has ended is known to have ended without the note
                for name in names:
                    self._note(name, None)
            return running

    def status(self) -> list[ServiceStatus]:
        """One entry for each of the four services, each asked whether it answers."""
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            return list(pool.map(self._status, SERVICES))

    def log_path(self, name: str) -> Path:
        """Where the service ``name`` writes what it has to say."""
        return self.home / "log" / f"{name}.log"

    def _status(self, name: str) -> ServiceStatus:
        entry = self._running(name)
        if entry is None:
            return ServiceStatus(name=name, state="stopped", address="", pid=None)
        state = "running" if services.answers(name, entry["port"]) else "not answering"
        return ServiceStatus(name=name, state=state, address=entry["address"], pid=entry["pid"])

    def _start_all(self, names: Sequence[str], given: Mapping[str, int], *, last: bool) -> list[str]:
        """Start ``names`` at once; those whose port another program took between the choice and the start.

        Raises what keeps one from starting, and of those as well where the port was given or it is the ``last`` try.
        """
        chosen = self._choose_ports(names, given)
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            starts = {name: pool.submit(self._start, name, chosen) for name in names}
        beaten = []
        for name, start in starts.items():
            try:
                start.result()
            except _PortTaken:
                if last or name in given:
                    raise
                beaten.append(name)
        return beaten

    def _start(self, name: str, ports: Mapping[str, int]) -> None:
        data_dir = self.home / "data" / name
        self._clear_orphans(name, data_dir)
        self._note(name, {"begun": True})
        launch = services.prepare(name, data_dir, self.cache_dir, ports, self._broker_settings)
        log = self.log_path(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.is_file() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        with log.open("ab") as output:
            written = output.tell()
            process = self._spawn(launch, data_dir, output)
        entry = {
            "address": services.address(name, ports[name], data_dir),
            "port": ports[name],
            "pid": process.pid,
            "started": psutil.Process(process.pid).create_time(),
            "log_offset": written,
        }
        self._note(name, entry)
        if not self._await(name, entry):
            own = [ports[port] for port in (name, f"{name}-controller") if port in ports]
            taken = [port for port in own if not services.port_is_free(port)]
            if taken:
                raise _PortTaken(
                    name,
                    f"port {taken[0]} for {name} was taken by another program while it started",
                    hint="start again, or give another port",
                )
            raise Unavailable(
                name,
                f"{name} ended at its start: {self._last_words(name, entry)}",
                hint=f"its log is {self.log_path(name)}",
            )

    def _spawn(self, launch: Launch, data_dir: Path, output: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**services.ENVIRONMENT, "HOME": str(data_dir), **launch.environment},
            cwd=launch.folder or data_dir,  # which is how a later start knows what is left of a killed one
            start_new_session=True,
            **launch.account,
        )

    def _await(self, name: str, entry: dict[str, Any]) -> bool:
        """Wait until the service answers; False when its process ends.

        One that does neither is stopped, so that the next start begins anew.
        """
        deadline = self._clock() + START_TIMEOUT_S
        while not (services.answers(name, entry["port"]) and _listens(entry)):
            if _process(entry) is None:
                return False
            if self._clock() > deadline:
                self._stop(name)
                raise Unavailable(
                    name,
                    f"{name} did not answer at {redact_address(entry['address'])} within {START_TIMEOUT_S:.0f} s",
                    hint=f"its log is {self.log_path(name)}",
                )
            self._sleep(_POLL_S)
        return True

    def _last_words(self, name: str, entry: dict[str, Any]) -> str:
        with self.log_path(name).open("rb") as log:
            log.seek(entry["log_offset"])
            return services.reason(log.read().decode("utf-8", errors="replace"))

    def _clear_orphans(self, name: str, data_dir: Path) -> None:
        """Wait for what a killed service left behind, and end what an ``up`` left that was killed while it started."""
        begun = "begun" in self._state().get(name, {})
        deadline = self._clock() + ORPHANS_TIMEOUT_S
        while left := _at_work_in(data_dir):
            if begun:
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            elif self._clock() > deadline:
                raise ConfigError(
                    f"{name}: {data_dir} is in use by processes that this stack does not know: "
                    + ", ".join(str(process.pid) for process in left),
                    hint="end them, then start again",
                )
            self._sleep(_POLL_S)

    def _stop(self, name: str) -> None:
        process = _process(self._state().get(name))
        if process is None:
            return
        try:
            # PostgreSQL waits for its clients on SIGTERM and drops them on SIGINT.
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
            if not self._ends(process):
                process.kill()
                if not self._ends(process):
                    raise Unavailable(name, f"{name} (process {process.pid}) does not end")
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied as exc:
            raise ConfigError(f"{name} (process {process.pid}) belongs to another user") from exc

    def _ends(self, process: psutil.Process) -> bool:
        """Wait until ``process`` ends; False when it does not in time.

        A process that has ended stays listed as a zombie until the program that started it asks for its exit code.
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

    def _running(self, name: str) -> dict[str, Any] | None:
        entry = self._state().get(name)
        return entry if _process(entry) is not None else None

    def _make_sure_of_room(self) -> None:
        if (free := self._free_bytes(self.home)) < ROOM_BYTES:
            raise ConfigError(
                f"{self.home} has {free / 1e6:.0f} MB free, the services need {ROOM_BYTES / 1e6:.0f} MB",
                hint="make room, or set RTFM_HOME to a folder on another disk",
            )

    def _refuse_to_move(self, running: Mapping[str, dict[str, Any]], ports: Mapping[str, int]) -> None:
        for name, port in ports.items():
            if name in running and running[name]["port"] != port:
                raise ConfigError(
                    f"{name} runs at port {running[name]['port']}, not {port}",
                    hint="stop it first: rtfm-cli local down",
                )

    def _choose_ports(self, names: Sequence[str], given: Mapping[str, int]) -> dict[str, int]:
        remembered = self._read("run/ports.json")
        chosen = dict(remembered)
        for name in (*names, *(["kafka-controller"] if "kafka" in names else [])):
            others = {port for other, port in chosen.items() if other != name} | set(given.values())
            if name in given:
                if not services.port_is_free(given[name]):
                    raise ConfigError(
                        f"port {given[name]} for {name} is taken by another program",
                        hint="end that program or give another port",
                    )
                chosen[name] = given[name]
                continue
            candidates = [remembered.get(name), DEFAULT_PORTS[name], *services.free_ports(DEFAULT_PORTS).values()]
            chosen[name] = next(
                port for port in candidates if port and port not in others and services.port_is_free(port)
            )
        if chosen != remembered:
            self._write("run/ports.json", chosen)
        return chosen

    @contextmanager
    def _sole_use(self) -> Iterator[None]:
        """Two commands at once take turns. What the disk refuses becomes one line here."""
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
                hint="make room, or set RTFM_HOME to a folder elsewhere" if full else "set RTFM_HOME to another folder",
            ) from exc

    def _state(self) -> dict[str, dict[str, Any]]:
        state: dict[str, dict[str, Any]] = self._read(LOCAL_STACK_FILE).get("services", {})
        return state

    def _note(self, name: str, entry: dict[str, Any] | None) -> None:
        with self._state_lock:
            state = {other: kept for other, kept in self._state().items() if other != name}
            self._write(LOCAL_STACK_FILE, {"services": state | ({name: entry} if entry else {})})

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.home / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _write(self, name: str, value: object) -> None:
        # PostgreSQL's address has its password.
        write_atomically(self.home / name, json.dumps(value, indent=1), mode=0o600)


def _process(entry: dict[str, Any] | None) -> psutil.Process | None:
    """The running process of a state entry, or None when it ended or its number went to another program."""
    if not entry:
        return None
    try:
        process = psutil.Process(entry["pid"])
        same = abs(process.create_time() - entry["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError):
        return None
    return process if same else None


def _listens(entry: dict[str, Any]) -> bool:
    """Whether the port is the service's own: another program may have taken it a moment before, and answer as well."""
    try:
        process = psutil.Process(entry["pid"])
        try:
            connections = process.net_connections("tcp")
        except psutil.AccessDenied:
            # Not root is not told of processes of others, nor of an own one that has ended: that has no command.
            return bool(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == entry["port"] for c in connections)


def _at_work_in(data_dir: Path) -> list[psutil.Process]:
    """Processes of our programs whose working folder is ``data_dir`` or below, which is where services have theirs."""
    return [
        process
        for process in psutil.process_iter(["cwd", "name", "status"])
        if process.info["cwd"]
        and Path(process.info["cwd"]).is_relative_to(data_dir)
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and process.info["name"].startswith(("java", "postgres", "initdb", "python"))
    ]
