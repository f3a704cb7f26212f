"""Kafka, a schema registry, Chroma and PostgreSQL as processes of this machine, without Docker.

Owns ``RTFM_HOME``: ``data/`` of each service, ``log/``, ``cache/`` for what was fetched, ``run/`` for addresses and
processes. Stops only processes that it started: a process counts as its own while number and start time agree.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from attrs import frozen

from rtfm.errors import ConfigError, Unavailable
from rtfm.local import artifacts, services
from rtfm.local.services import DEFAULT_PORTS, SERVICES, Launch
from rtfm.settings import LOCAL_STACK_FILE

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05


@frozen(kw_only=True)
class ServiceStatus:
    """One service: ``state`` is ``running``, ``stopped`` or ``not answering``."""

    name: str
    state: str
    address: str
    pid: int | None


class LocalStack:
    """The four services of one home folder."""

    def __init__(
        self, home: Path, *, cache_dir: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.home = home.absolute()
        self.cache_dir = (cache_dir or home / "cache").absolute()
        self._clock = clock

    def up(
        self,
        names: Sequence[str] = SERVICES,
        *,
        ports: Mapping[str, int] | None = None,
        progress: artifacts.Progress | None = None,
    ) -> list[ServiceStatus]:
        """Start what does not run and wait until all answer; a second call changes nothing.

        ``ports`` are those that must be taken; others are remembered, or the usual one if it is free, or any.
        Raises ConfigError for a taken port, a corrupted download or a full disk, Unavailable for a service that
        ends or does not answer within 90 s.
        """
        with self._lock():
            missing = [name for name in names if not self._running(name)]
            if not missing:
                return self.status()
            needed = {"kafka": "kafka", "schema-registry": "registry"}
            artifacts.ensure(self.cache_dir, [needed[name] for name in missing if name in needed], progress)
            chosen = self._choose_ports(missing, ports or {})
            with ThreadPoolExecutor(len(missing)) as pool:
                launches = list(pool.map(lambda name: self._prepare(name, chosen), missing))
                started = [(launch, self._start(launch)) for launch in launches]
                list(pool.map(lambda pair: self._await(*pair), started))
            if "postgres" in missing:
                services.create_database(chosen["postgres"])
            return self.status()

    def down(self, names: Sequence[str] = SERVICES) -> list[str]:
        """Stop what this folder's stack started; the names of what was stopped."""
        with self._lock():
            running = [name for name in names if self._running(name)]
            with ThreadPoolExecutor(max(1, len(running))) as pool:
                list(pool.map(self._stop, running))
            state = self._state()
            for name in names:
                state.pop(name, None)
            self._write_state(state)
            return running

    def status(self) -> list[ServiceStatus]:
        """One entry for each of the four services."""
        state = self._state()
        return [self._status(name, state.get(name)) for name in SERVICES]

    def log_path(self, name: str) -> Path:
        """Where the service ``name`` writes what it has to say."""
        return self.home / "log" / f"{name}.log"

    def _status(self, name: str, entry: dict[str, Any] | None) -> ServiceStatus:
        process = _process(entry)
        if entry is None or process is None:
            return ServiceStatus(name=name, state="stopped", address=(entry or {}).get("address", ""), pid=None)
        return ServiceStatus(name=name, state="running", address=entry["address"], pid=process.pid)

    def _prepare(self, name: str, ports: Mapping[str, int]) -> Launch:
        try:
            return services.prepare(name, self.home / "data" / name, self.cache_dir, ports)
        except OSError as exc:
            raise ConfigError(f"{name}: {exc.strerror}: {exc.filename}", hint="check room and rights there") from exc

    def _start(self, launch: Launch) -> subprocess.Popen[bytes]:
        log = self.log_path(launch.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                launch.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **launch.environment},
                cwd="/" if launch.user else self.home,
                user=launch.user,
                start_new_session=True,
            )
        state = self._state()
        state[launch.name] = {
            "address": launch.address,
            "pid": process.pid,
            "started": psutil.Process(process.pid).create_time(),
        }
        self._write_state(state)
        return process

    def _await(self, launch: Launch, process: subprocess.Popen[bytes]) -> None:
        deadline = self._clock() + START_TIMEOUT_S
        while not launch.answers():
            if process.poll() is not None:
                raise Unavailable(
                    launch.name,
                    f"{launch.name} ended at its start ({process.returncode}): {self._last_line(launch.name)}",
                    hint=f"its log is {self.log_path(launch.name)}",
                )
            if self._clock() > deadline:
                raise Unavailable(
                    launch.name,
                    f"{launch.name} does not answer at {launch.address} after {START_TIMEOUT_S:.0f} s",
                    hint=f"its log is {self.log_path(launch.name)}",
                )
            time.sleep(_POLL_S)

    def _last_line(self, name: str) -> str:
        lines = self.log_path(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no message")

    def _stop(self, name: str) -> None:
        process = _process(self._state().get(name))
        if process is None:
            return
        # PostgreSQL waits for its clients on SIGTERM and drops them on SIGINT.
        process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)

    def _running(self, name: str) -> bool:
        return _process(self._state().get(name)) is not None

    def _choose_ports(self, names: Sequence[str], given: Mapping[str, int]) -> dict[str, int]:
        wanted = [*names, *(["kafka-controller"] if "kafka" in names else [])]
        remembered = self._read("run/ports.json")
        chosen = dict(remembered)
        for name in wanted:
            if name in given:
                if not services.port_is_free(given[name]):
                    raise ConfigError(
                        f"port {given[name]} for {name} is taken by another program",
                        hint="stop it or give another port",
                    )
                chosen[name] = given[name]
                continue
            candidates = [remembered.get(name), DEFAULT_PORTS[name]]
            chosen[name] = next(
                (port for port in candidates if port is not None and services.port_is_free(port)), services.free_port()
            )
        self._write("run/ports.json", chosen)
        return chosen

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Two commands at once take turns."""
        try:
            (self.home / "run").mkdir(parents=True, exist_ok=True)
            with (self.home / "run" / "lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except PermissionError as exc:
            raise ConfigError(
                f"{exc.filename} cannot be written", hint="set RTFM_HOME to a folder of your own"
            ) from exc

    def _state(self) -> dict[str, dict[str, Any]]:
        services_: dict[str, dict[str, Any]] = self._read(LOCAL_STACK_FILE).get("services", {})
        return services_

    def _write_state(self, state: dict[str, dict[str, Any]]) -> None:
        self._write(LOCAL_STACK_FILE, {"services": state})

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.home / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _write(self, name: str, value: object) -> None:
        path = self.home / name
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
        partial.replace(path)


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
