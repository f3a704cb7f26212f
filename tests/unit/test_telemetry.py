"""The HTTP port of a service, its health, and traces."""

import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from rtfm import telemetry


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> telemetry.Health:
    return telemetry.Health(max_gap_s=10, clock=clock)


@pytest.fixture
def server(health: telemetry.Health) -> Iterator[telemetry.MetricsServer]:
    server = telemetry.MetricsServer(health, "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


def get(server: telemetry.MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_loop_that_does_not_pass_makes_the_service_unhealthy_and_says_which(
    server: telemetry.MetricsServer, health: telemetry.Health, clock: Clock
) -> None:
    """If a loop makes no pass for 11 s, the service is unhealthy, and the body names the loop and this time."""
    health.beat("ingest")
    clock.now_s = 11
    status, body = get(server, "/healthz")
    assert status == 503
    assert json.loads(body) == {"ok": False, "wrong": {"ingest": "no pass for 11 s"}}


def test_a_loop_that_passes_again_is_healthy_again(
    server: telemetry.MetricsServer, health: telemetry.Health, clock: Clock
) -> None:
    """If the loop makes a pass again, the service is healthy again."""
    health.beat("ingest")
    clock.now_s = 11
    health.beat("ingest")
    assert get(server, "/healthz")[0] == 200


def test_a_condition_that_fails_makes_the_service_not_ready_but_alive(
    server: telemetry.MetricsServer, health: telemetry.Health
) -> None:
    """If a condition fails, the service is not ready but alive, because waiting for a database needs no restart."""
    health.ready_when("database", lambda: "localhost:5432 does not answer")
    assert get(server, "/readyz") == (
        503,
        '{"ok": false, "wrong": {"database": "localhost:5432 does not answer"}}',
    )
    assert get(server, "/healthz")[0] == 200


def test_metrics_are_served_with_their_help(server: telemetry.MetricsServer) -> None:
    """Metrics are served with their help in Prometheus's text format."""
    telemetry.ANSWERS.labels("NOT_FOUND").inc()
    status, body = get(server, "/metrics")
    assert status == 200
    assert "# HELP rtfm_answers_total Answers by outcome." in body
    assert 'rtfm_answers_total{outcome="NOT_FOUND"}' in body


def test_an_unknown_path_is_not_found(server: telemetry.MetricsServer) -> None:
    """The status for an unknown path is 404."""
    assert get(server, "/etc/passwd")[0] == 404


def test_idle_connections_take_few_threads_and_keep_nobody_from_asking(server: telemetry.MetricsServer) -> None:
    """With a hundred idle connections, a probe is answered, and soon at most MAX_CONNECTIONS threads are left."""
    before = threading.active_count()
    with contextlib.ExitStack() as connections:
        for _ in range(100):
            connections.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert get(server, "/healthz")[0] == 200
        deadline = time.monotonic() + 60
        while threading.active_count() - before > telemetry.MAX_CONNECTIONS:
            assert time.monotonic() < deadline, "threads of closed connections"
            time.sleep(0.05)


def test_a_silent_connection_is_closed(server: telemetry.MetricsServer) -> None:
    """A connection that stops in the middle of a request is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"GET /heal")
        assert connection.recv(1) == b""


def test_a_child_stays_in_its_parents_trace_with_a_span_of_its_own() -> None:
    """A child has the trace of its parent and its own span, in W3C trace context, version 00."""
    parent = telemetry.new_traceparent()
    child = telemetry.child_traceparent(parent)
    assert child.split("-")[1] == parent.split("-")[1]
    assert child.split("-")[2] != parent.split("-")[2]


@pytest.mark.parametrize("broken", [None, "", "00-short-x-01", "garbage"])
def test_a_broken_parent_begins_a_new_trace(broken: str | None) -> None:
    """An invalid parent starts a new trace, because another program's header must not stop a record."""
    version, trace_id, span_id, flags = telemetry.child_traceparent(broken).split("-")
    assert (version, len(trace_id), len(span_id), flags) == ("00", 32, 16, "01")
