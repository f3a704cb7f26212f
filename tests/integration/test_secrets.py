"""Commands and services print no password and no key, even if dependencies are down or settings are malformed."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from rtfm.settings import Settings
from tests.conftest import environment_of, inherited_environment
from tests.streams import eventually

MARK = "geheim"
"""A text that every secret of these tests contains."""

COMMANDS = (
    "doctor",
    "doctor --json",
    "selftest --test schemas",
    "status",
    "topics check",
    "schemas check --registry {registry}",
    "schemas register --dry-run",
    "dlq stats",
    "rebuild --dry-run",
    "--debug search backup",
    "--debug schemas register --dry-run",
    "--debug doctor --fetch-model",
)

_PROGRAM = "import shlex, sys; from rtfm_cli.main import run\nfor line in sys.argv[1:]: run(shlex.split(line))"


@contextmanager
def dead_port() -> Iterator[int]:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@contextmanager
def server_with_status(status: int) -> Iterator[int]:
    """Run a server that responds to every request with ``status``, and yield its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = f"<html>{status} for {self.path}</html>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_PUT = _answer  # noqa: N815 - the names are the base class's

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def with_password(url: str, name: str) -> str:
    """Return ``url`` with a user and a password that contains ``name``, the name of the setting."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://anna:{MARK}-{name}-x@{rest.rpartition('@')[2]}"


def secret_environment(settings: Settings, port: int) -> dict[str, str]:
    """Return the environment of ``settings``, with a secret in each key and each HTTP or gateway address.

    The addresses of the models and of Discord point at ``port``.
    """
    environment = environment_of(settings)
    for name in ("SCHEMA_REGISTRY_URL", "CHROMA_URL"):
        environment[name] = with_password(environment[name], name)
    for name in ("OPENAI_BASE_URL", "GEMINI_API_ENDPOINT", "RTFM_EMBEDDING_MODEL_URL", "RTFM_DISCORD_API"):
        environment[name] = with_password(f"http://127.0.0.1:{port}/x", name)
    environment["RTFM_DISCORD_GATEWAY"] = with_password(f"ws://127.0.0.1:{port}", "RTFM_DISCORD_GATEWAY")
    for name in ("DISCORD_TOKEN", "GEMINI_API_KEY", "OPENAI_API_KEY"):
        environment[name] = f"{MARK}-{name}-x"
    return environment


def output_of(environment: dict[str, str], commands: tuple[str, ...] = COMMANDS) -> str:
    """Return the output of all ``commands``."""
    registry = environment["SCHEMA_REGISTRY_URL"]
    lines = [command.format(registry=registry) for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *lines],
        cwd=environment["RTFM_HOME"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    return done.stdout + done.stderr


def database_password(settings: Settings) -> str:
    """Return the password of the tests' PostgreSQL."""
    found = re.search(r":([^:@]*)@", settings.database_url)
    return found[1] if found else MARK


def is_free_of_secrets(text: str, settings: Settings) -> bool:
    """Check that ``text`` is not empty and contains no secret, and return True."""
    password = database_password(settings)
    assert text.strip()
    assert [line for line in text.splitlines() if MARK in line] == []
    assert len(password) < 6 or password not in text
    return True


STATES = ["up", "SCHEMA_REGISTRY_URL", "CHROMA_URL", "DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"]


@pytest.mark.parametrize("down", STATES)
def test_commands_show_no_secret_whatever_is_down(settings: Settings, down: str) -> None:
    """Commands print no secret, whether all four dependencies respond or one of them is down."""
    settings.home.mkdir(exist_ok=True)
    with dead_port() as port:
        environment = secret_environment(settings, port)
        if down == "KAFKA_BOOTSTRAP_SERVERS":
            environment[down] = f"127.0.0.1:{port}"
        elif down != "up":
            scheme = "postgresql" if down == "DATABASE_URL" else "http"
            environment[down] = with_password(f"{scheme}://127.0.0.1:{port}/x", down)
        commands = COMMANDS if down != "KAFKA_BOOTSTRAP_SERVERS" else ("doctor --json", "status", "--debug dlq stats")
        assert is_free_of_secrets(output_of(environment, commands), settings)


@pytest.mark.parametrize("status", [200, 401, 500])
def test_commands_show_no_secret_whatever_answers(settings: Settings, status: int) -> None:
    """If the dependencies respond with a proxy's page, a refusal or an error, commands print no secret."""
    settings.home.mkdir(exist_ok=True)
    with server_with_status(status) as port:
        environment = secret_environment(settings, port)
        for name in ("SCHEMA_REGISTRY_URL", "CHROMA_URL"):
            environment[name] = with_password(f"http://127.0.0.1:{port}/x", name)
        environment["DATABASE_URL"] = with_password(settings.database_url, "DATABASE_URL")  # a wrong password
        assert is_free_of_secrets(output_of(environment), settings)


def test_malformed_addresses_are_refused_without_their_password(settings: Settings) -> None:
    """A malformed address is refused without printing its password; unit tests cover more misspellings."""
    settings.home.mkdir(exist_ok=True)
    with dead_port() as port:
        given = secret_environment(settings, port)
        names = [name for name, value in given.items() if MARK in value and "://" in value]
        texts = [
            output_of(given | {name: "http://anna:geheim/7@host:x"}, ("doctor --json", "--debug status"))
            for name in [*names, "DATABASE_URL"]
        ]
    assert is_free_of_secrets("\n".join(texts), settings)
    assert "is not an address such as" in texts[0]


@contextmanager
def service(name: str, environment: dict[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `rtfm-cli run NAME` in a separate process, and stop it at the end."""
    program = Path(sys.executable).with_name("rtfm-cli")
    command = [str(program), "--debug", "run", name]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pages(log: str) -> str:
    """Return the pages of the metrics port; the number of the port is in the service's log."""
    port = re.findall(r"http://127\.0\.0\.1:(\d+)", log)[0]
    text = ""
    for path in ("readyz", "healthz", "metrics"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as response:
                text += response.read().decode()
        except urllib.error.HTTPError as error:
            text += error.read().decode()
    return text


@pytest.mark.parametrize("down", ["CHROMA_URL", "DATABASE_URL", "all of them"])
def test_a_processor_shows_no_secret_while_it_waits(settings: Settings, tmp_path: Path, down: str) -> None:
    """While the processor waits for a dependency, neither its log nor /readyz contains a secret."""
    with dead_port() as port, (tmp_path / "log").open("wb") as log:
        environment = secret_environment(settings, port) | {"LOG_FORMAT": "console"}
        for name in ("SCHEMA_REGISTRY_URL", "CHROMA_URL", "DATABASE_URL"):
            if down in (name, "all of them"):
                scheme = "postgresql" if name == "DATABASE_URL" else "http"
                environment[name] = with_password(f"{scheme}://127.0.0.1:{port}/x", name)
        with service("processor", environment, log):
            eventually(lambda: "waiting to start" in (tmp_path / "log").read_text(), timeout_s=60)
            shown = pages((tmp_path / "log").read_text())
    assert "127.0.0.1" in shown
    assert is_free_of_secrets(shown + (tmp_path / "log").read_text(), settings)


@pytest.mark.parametrize("status", [None, 401, 500])
def test_a_bot_shows_no_secret_while_it_waits(settings: Settings, tmp_path: Path, status: int | None) -> None:
    """While the bot waits for Discord, it prints neither the token nor the secrets in Discord's address.

    Discord's server is missing, or it responds with a refusal or an error.
    """
    port_of = dead_port() if status is None else server_with_status(status)
    with port_of as port, (tmp_path / "log").open("wb") as log:
        environment = secret_environment(settings, port)
        shown = ""
        with service("bot", environment, log) as process:
            eventually(
                lambda: process.poll() is not None or "waiting to start" in (tmp_path / "log").read_text(),
                timeout_s=60,
            )
            with contextlib.suppress(OSError):
                shown = pages((tmp_path / "log").read_text())
    assert is_free_of_secrets(shown + (tmp_path / "log").read_text(), settings)


def test_local_status_shows_no_password(tmp_path: Path) -> None:
    """`local status` does not print PostgreSQL's password, although run/stack.json contains the password."""
    (tmp_path / "run").mkdir()
    entry = f'{{"address": "postgresql://rtfm:{MARK}@localhost:1/rtfm", "port": 1, "pid": {os.getpid()}, "started": 0}}'
    (tmp_path / "run" / "stack.json").write_text(f'{{"services": {{"postgres": {entry}}}}}')
    environment = inherited_environment() | {"RTFM_HOME": str(tmp_path), "SCHEMA_REGISTRY_URL": "http://localhost:1"}
    text = output_of(environment, ("local status", "local status --json"))
    assert MARK not in text
