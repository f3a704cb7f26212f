"""The local dependencies: after a kill each restarts with its data, and no process of another program is touched."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import chromadb
import httpx
import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not in its __all__
from structlog.testing import capture_logs

from rtfm.errors import ConfigError, Unavailable
from rtfm.local.services import allow_traversal, free_ports
from rtfm.local.stack import LocalStack
from tests.conftest import CACHE_DIR, inherited_environment, run_cli, stack_home

LOST = signal.SIGKILL


class _Healthy(BaseHTTPRequestHandler):
    """A server that responds with 200 to every GET request."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def running() -> Iterator[LocalStack]:
    """A stack whose dependencies the tests may kill; the first start of this stack was killed halfway."""
    with stack_home() as home:
        (home / "cache").symlink_to(CACHE_DIR)
        _kill_a_start(home)
        stack = LocalStack(home)
        try:
            stack.up()
            yield stack
        finally:
            stack.down()


@pytest.fixture
def home() -> Iterator[Path]:
    """A home in which nothing runs at first; what a test starts in this home is stopped at the end."""
    with stack_home() as folder:
        (folder / "cache").symlink_to(CACHE_DIR)
        try:
            yield folder
        finally:
            LocalStack(folder).down()


def _address(stack: LocalStack, name: str) -> str:
    return next(service.address for service in stack.status() if service.name == name)


def _pids(stack: LocalStack) -> dict[str, int | None]:
    return {service.name: service.pid for service in stack.status()}


def _environment(home: Path) -> dict[str, str]:
    return inherited_environment() | {"RTFM_HOME": str(home)}


def _kill_a_start(home: Path) -> None:
    """Start all dependencies, and kill the command once it has recorded the first one."""
    program = Path(sys.executable).with_name("rtfm-cli")
    with subprocess.Popen([program, "local", "up"], env=_environment(home), stderr=subprocess.DEVNULL) as start:
        while not (home / "run" / "stack.json").is_file():
            assert start.poll() is None, "the start was over before it could be killed"
            time.sleep(0.01)
        start.send_signal(LOST)


def _kill(stack: LocalStack, name: str) -> None:
    pid = _pids(stack)[name]
    assert pid is not None
    process = psutil.Process(pid)
    process.kill()
    process.wait(60)


def test_an_up_that_was_killed_is_finished_by_the_next(running: LocalStack) -> None:
    """If an `up` was killed, the next `up` starts all four dependencies."""
    assert [service.state for service in running.status()] == ["running"] * 4


def test_a_registry_that_is_killed_right_after_a_registration_keeps_its_ids(running: LocalStack) -> None:
    """If the registry is killed after registrations, it keeps their ids, and gives a new schema an unused id."""
    url = _address(running, "schema-registry")

    def register(name: str) -> int:
        schema = json.dumps({"type": "record", "name": name, "fields": [{"name": "x", "type": "string"}]})
        response = httpx.post(f"{url}/subjects/{name}-value/versions", json={"schema": schema}, timeout=60)
        response.raise_for_status()
        return int(response.json()["id"])

    names = [f"Made{number}" for number in range(5)]
    ids = {name: register(name) for name in names}
    _kill(running, "schema-registry")
    running.up()
    assert {name: register(name) for name in names} == ids
    assert register("Other") not in ids.values()
    held = httpx.get(f"{url}/schemas/ids/{ids['Made4']}", timeout=60).json()
    assert json.loads(held["schema"])["name"] == "Made4"


def test_kafka_that_is_killed_keeps_every_acknowledged_record(running: LocalStack) -> None:
    """If Kafka is killed, it restarts at the same address and still has every acknowledged record."""
    address = _address(running, "kafka")
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic("kept", 1)])["kept"].result(30)
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": address, "acks": "all"})
    for number in range(100):
        producer.produce("kept", str(number).encode(), on_delivery=lambda error, _: refused.append(error))
    assert producer.flush(60) == 0
    assert refused == [None] * 100
    _kill(running, "kafka")
    running.up()
    assert _address(running, "kafka") == address
    consumer = Consumer({"bootstrap.servers": address, "group.id": "reader", "enable.auto.commit": False})
    consumer.assign([TopicPartition("kept", 0, 0)])
    records: list[Any] = []
    until = time.monotonic() + 90
    while len(records) < 100 and time.monotonic() < until:
        records += consumer.consume(100 - len(records), timeout=1)
    consumer.close()
    assert [record.value() for record in records] == [str(number).encode() for number in range(100)]


def test_postgresql_that_is_killed_amid_its_clients_keeps_committed_rows(running: LocalStack) -> None:
    """If PostgreSQL is killed, the next `up` starts it again with the committed rows.

    PostgreSQL starts although postmaster.pid is still there and a client is still connected.
    """
    url = _address(running, "postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (x int)")
        connection.execute("INSERT INTO kept VALUES (7)")
        _kill(running, "postgres")
        running.up()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT x FROM kept").fetchall() == [(7,)]


def test_postgresql_lets_nobody_in_without_the_password(running: LocalStack) -> None:
    """PostgreSQL requires a password, because every user of the machine can reach its port.

    Only the user who started the dependencies can read the files with the password.
    """
    url = _address(running, "postgres")
    password = psycopg.conninfo.conninfo_to_dict(url)["password"]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(url.replace(f":{password}@", "@"), passfile="/dev/null")
    holding = [
        path
        for path in running.home.rglob("*")
        if path.is_file() and path.stat().st_size < 100_000 and str(password).encode() in path.read_bytes()
    ]
    assert {path.name for path in holding} == {"password", "stack.json"}
    assert {path.stat().st_mode & 0o777 for path in holding} == {0o600}


def test_home_is_closed_to_other_users_while_the_services_run(running: LocalStack) -> None:
    """While the dependencies run, other users have no access to the home.

    This also holds if root starts the dependencies, in which case PostgreSQL runs as another account.
    """
    assert running.home.stat().st_mode & 0o777 == 0o700
    _kill(running, "postgres")
    running.up()
    assert running.home.stat().st_mode & 0o777 == 0o700
    with psycopg.connect(_address(running, "postgres")) as connection:
        assert connection.execute("SELECT count(*) FROM pg_database").fetchone() != (0,)


def test_a_folder_that_is_opened_for_another_account_is_named(tmp_path: Path) -> None:
    """If a folder is opened for another account, a line of the log names the folder and its old and new mode."""
    closed = tmp_path / "closed"
    (closed / "programs").mkdir(parents=True)
    closed.chmod(0o700)
    with capture_logs() as lines:
        allow_traversal(closed / "programs")
    assert closed.stat().st_mode & 0o777 == 0o701
    assert [(line["mode"], line["was"]) for line in lines if line["folder"] == str(closed)] == [("0701", "0700")]


def test_chroma_that_is_killed_keeps_added_vectors(running: LocalStack) -> None:
    """If Chroma is killed, it still finds the added vectors, the nearest vector first."""
    port = int(_address(running, "chroma").rpartition(":")[2])
    vectors = [[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]]
    client = chromadb.HttpClient("localhost", port)
    client.create_collection("kept", embedding_function=None).add(["a", "b", "c"], embeddings=vectors)  # type: ignore[arg-type]  # its types ask for arrays
    _kill(running, "chroma")
    running.up()
    found = chromadb.HttpClient("localhost", port).get_collection("kept", embedding_function=None)
    assert found.query(query_embeddings=[[0.1, 0.9]], n_results=3)["ids"] == [["b", "c", "a"]]  # type: ignore[arg-type]


def test_a_second_up_changes_nothing(running: LocalStack) -> None:
    """A second `up` leaves the processes and addresses of the dependencies unchanged."""
    before = running.status()
    assert running.up() == before
    assert [service.state for service in before] == ["running"] * 4


def test_another_port_for_a_running_service_is_refused(running: LocalStack) -> None:
    """If a dependency already runs, a request for another port is an error, because the port cannot change."""
    with pytest.raises(ConfigError, match="chroma runs at port"):
        running.up(ports={"chroma": 1})


def test_services_listen_on_the_loopback_address_only(running: LocalStack) -> None:
    """All ports of the stack, including those for management, listen on the loopback address only."""
    hosts = {
        connection.laddr.ip.removeprefix("::ffff:")
        for pid in _pids(running).values()
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert hosts == {"127.0.0.1"}


def test_a_taken_port_is_named_before_anything_starts(home: Path) -> None:
    """If a port is in use, the error names the port and the dependency, and nothing is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} for chroma is taken"):
            LocalStack(home).up(["chroma"], ports={"chroma": port})
    assert _pids(LocalStack(home))["chroma"] is None


def test_a_full_disk_is_named_before_anything_starts(home: Path) -> None:
    """If the disk is full, the error says how much space is free and how much is needed."""
    with pytest.raises(ConfigError, match="has 1 MB free, the services need 200 MB"):
        LocalStack(home, free_bytes=lambda _: 1_000_000).up(["chroma"])


def test_a_home_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    """If a file is in the place of the home, so that the home cannot be created, the error names the path."""
    (tmp_path / "home").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="home"):
        LocalStack(tmp_path / "home").up(["chroma"])


def test_a_service_that_ends_at_its_start_says_why_and_where_its_log_is(home: Path) -> None:
    """If PostgreSQL ends at its start, the error contains PostgreSQL's own reason and the path of its log.

    Once the configuration of PostgreSQL is corrected, it starts.
    """
    stack = LocalStack(home)
    stack.up(["postgres"])
    stack.down()
    config = home / "data" / "postgres" / "data" / "postgresql.auto.conf"
    good = config.read_text(encoding="utf-8")
    config.write_text("no_such_setting = 1\n", encoding="utf-8")
    with pytest.raises(Unavailable, match=r"postgres ended at its start: .*FATAL") as caught:
        stack.up(["postgres"])
    assert str(stack.log_path("postgres")) in str(caught.value.hint)
    assert _pids(stack)["postgres"] is None
    config.write_text(good, encoding="utf-8")
    stack.up(["postgres"])


def test_a_killed_service_keeps_its_port_although_its_process_releases_it_late(home: Path) -> None:
    """If a killed process releases its port late, the next start waits for that port, because clients use it."""
    holders: list[socket.socket] = []

    def release(_: float) -> None:
        while holders:
            holders.pop().close()
        time.sleep(0.05)

    stack = LocalStack(home, sleep=release)
    stack.up(["chroma"])
    address = _address(stack, "chroma")
    (pid,) = (status.pid for status in stack.status() if status.name == "chroma")
    assert pid is not None
    process = psutil.Process(pid)
    process.kill()
    process.wait(20)
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", int(address.rpartition(":")[2])))
    holder.listen()
    holders.append(holder)
    stack.up(["chroma"])
    assert _address(stack, "chroma") == address
    assert not holders


@pytest.mark.parametrize("given", [False, True])
def test_a_port_that_another_program_takes_meanwhile_is_left_to_it(home: Path, given: bool) -> None:
    """If another program takes a dependency's port during the start, that program is not mistaken for the dependency.

    The dependency gets another port. If the user requested the port, the start fails, and the next start without a
    requested port gets another one.
    """
    taken: list[ThreadingHTTPServer] = []

    def take(seconds: float) -> None:
        if not taken:
            port = json.loads((home / "run" / "ports.json").read_text(encoding="utf-8"))["chroma"]
            taken.append(ThreadingHTTPServer(("127.0.0.1", port), _Healthy))
            threading.Thread(target=taken[0].serve_forever, daemon=True).start()
        time.sleep(seconds)  # like the original sleep

    hasty = LocalStack(home, sleep=take)
    try:
        if given:
            ports = free_ports(["chroma"])
            with pytest.raises(Unavailable, match=r"port \d+ for chroma was taken by another program"):
                hasty.up(["chroma"], ports=ports)
        hasty.up(["chroma"])
        assert not _address(hasty, "chroma").endswith(f":{taken[0].server_port}")
    finally:
        for server in taken:
            server.shutdown()
            server.server_close()


def test_down_does_not_stop_a_process_that_reuses_a_services_pid(home: Path) -> None:
    """If a process has got the process id of a dependency that ended, `down` does not stop this process."""
    stack = LocalStack(home)
    stack.up(["chroma"])
    _kill(stack, "chroma")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        state = home / "run" / "stack.json"
        entries = json.loads(state.read_text(encoding="utf-8"))
        entries["services"]["chroma"]["pid"] = bystander.pid
        entries["services"]["chroma"]["started"] -= 3600
        state.write_text(json.dumps(entries), encoding="utf-8")
        assert stack.down() == []
        assert bystander.poll() is None
        bystander.communicate(b"\n")


def test_a_running_service_without_a_state_file_is_not_started_twice(home: Path) -> None:
    """If run/ is lost while a dependency runs, the next start fails and names the running process.

    Two servers would corrupt the data folder.
    """
    stack = LocalStack(home)
    stack.up(["chroma"])
    state = home / "run" / "stack.json"
    remembered = state.read_text(encoding="utf-8")
    pid = _pids(stack)["chroma"]
    state.unlink()
    hasty = LocalStack(home, clock=itertools.count(0, 60).__next__)
    with pytest.raises(ConfigError, match=f"in use by processes that this stack did not start: {pid}"):
        hasty.up(["chroma"])
    state.write_text(remembered, encoding="utf-8")


def test_the_command_line_shows_the_addresses_and_every_other_command_finds_them(
    running: LocalStack, home: Path
) -> None:
    """`local status` and other commands find the running dependencies.

    `local status` exits with 1 if not all dependencies run. `down` keeps their data.
    """
    done = run_cli(["local", "status", "--json"], _environment(home), check=False)
    assert done.returncode == 1
    assert [service["state"] for service in json.loads(done.stdout)["services"]] == ["stopped"] * 4

    environment = _environment(running.home)
    services = json.loads(run_cli(["local", "status", "--json"], environment).stdout)["services"]
    assert [service["name"] for service in services] == ["kafka", "schema-registry", "chroma", "postgres"]
    assert services[1]["address"].endswith("/apis/ccompat/v7")
    run_cli(["topics", "init"], environment)
    run_cli(["schemas", "register"], environment)
    assert "kafka" in run_cli(["local", "logs", "-n", "3"], environment).stdout
    # This process is the parent of the killed dependencies and has not reaped them; `down` does not wait for zombies.
    assert run_cli(["local", "down"], environment).stdout.startswith("Stopped kafka")

    run_cli(["local", "up", "--json"], environment)
    assert "\n0 changes" in run_cli(["topics", "init"], environment).stdout
    assert "\n0 changes" in run_cli(["schemas", "register"], environment).stdout
