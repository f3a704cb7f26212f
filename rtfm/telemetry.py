"""Observability of a service: logs, metrics, health, and the trace context in Kafka headers.

Every metric of the project is defined here. At the levels INFO and above, no module logs a secret or the content of a
message.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog
from attrs import define, field
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

from rtfm.characters import escape_unprintable
from rtfm.redaction import redact

# If OpenTelemetry's conventions for messaging define a name for a metric, the metric has that name. Each help text says
# what is counted, and what to do if the value is unusual. ops/runbook.md says more.
CONSUMED = Counter(
    "messaging_client_consumed_messages_total",
    "Records polled from Kafka. If it does not grow while kafka_consumergroup_lag grows, see /readyz and the log.",
    ["messaging_destination_name", "messaging_consumer_group_name"],
)
SENT = Counter(
    "messaging_client_sent_messages_total",
    "Records that were sent. error_type is empty if a broker acknowledged the record. If the number of records with an"
    " error_type grows, check the brokers.",
    ["messaging_destination_name", "error_type"],
)
PROCESS_SECONDS = Histogram(
    "messaging_process_duration_seconds",
    "Seconds to handle one batch of records. If it grows, check PostgreSQL, Chroma and the language model. If they are"
    " not the cause, add processors.",
    ["messaging_destination_name"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
DEAD_LETTERS = Counter(
    "rtfm_dlq_messages_total",
    "Records that became dead letters. If it grows, run `rtfm-cli dlq stats`, then `rtfm-cli dlq show ID`.",
    ["topic", "reason"],
)
LOST_RECORDS = Counter(
    "rtfm_lost_records_total",
    "Records that retention removed before they were read. If it grows, raise the topic's retention or add processors."
    " Import the missing messages from an export.",
    ["topic", "group"],
)
IGNORED_EVENTS = Counter(
    "rtfm_ignored_events_total",
    "Events that a service skipped, by reason. `another_…`: check who writes to bot-responses. `outbox_full`: check why"
    " Kafka does not accept events. `unsendable`: report the log line `event cannot be sent`. All others are normal.",
    ["topic", "reason"],
)
ANSWERS = Counter(
    "rtfm_answers_total",
    "Answers by outcome. FAILED is a defect in RTFM: report the log lines `answering failed`. If EXTRACTED grows, see"
    " rtfm_model_failures_total.",
    ["outcome"],
)
ANSWER_SECONDS = Histogram(
    "rtfm_answer_duration_seconds",
    "Seconds from reading a question to its answer. If it grows, see whether rtfm_model_request_duration_seconds grows"
    " too.",
)
MODEL_FAILURES = Counter(
    "rtfm_model_failures_total",
    "Questions that the language model did not answer, by reason. Check the key and the model's name if the reason is"
    " `configuration`, the budget if it is `over_budget`, and the address if it is `malformed`. If another reason does"
    " not disappear by itself, choose another model.",
    ["reason"],
)
MODEL_REQUESTS = Counter(
    "rtfm_model_requests_total",
    "Requests to the language model's service, including retries. If results other than `answered` grow, see"
    " rtfm_model_failures_total.",
    ["result"],
)
MODEL_SECONDS = Histogram(
    "rtfm_model_request_duration_seconds",
    "Seconds of one request to the language model's service. If it comes close to GEMINI_TIMEOUT_S, choose a faster"
    " model.",
    buckets=(0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60),
)
MODEL_TOKENS = Counter(
    "rtfm_model_tokens_total",
    "Tokens that the language model's service reported. If they cost too much, set MODEL_TOKENS_PER_DAY.",
    ["kind"],
)
MODEL_BUDGET_REFUSALS = Counter(
    "rtfm_model_budget_refusals_total",
    "Requests that were not made to the language model because a budget had too little left. If too many answers are"
    " extracts for this reason, raise the budget.",
    ["budget"],
)
CIRCUIT_STATE = Gauge(
    "rtfm_circuit_state",
    "State of the circuit breaker: 0 closed, 1 half open (it lets one request through as a test), 2 open. If it stays"
    " 2, check the language model's service.",
    ["dependency"],
)
ARCHIVED = Counter(
    "rtfm_archived_messages_total",
    "Messages written to the archive. If it does not grow while people write, check the bot and the lag of the ingest"
    " pipeline.",
    ["change"],
)
EMBEDDED = Counter(
    "rtfm_embedded_texts_total",
    "Texts that the embedding model turned into vectors. If it stays 0 while messages are archived, run `rtfm-cli"
    " doctor --fetch-model`.",
)
RESPONSES_DELIVERED = Counter(
    "rtfm_responses_delivered_total",
    "Responses to open questions, by result. If `forbidden` grows, check the bot's permissions on Discord. If `late`"
    " grows, check kafka_consumergroup_lag.",
    ["result"],
)
OUTBOX_EVENTS = Gauge(
    "rtfm_outbox_events",
    "Events that the bot received from Discord and that no broker has acknowledged yet. If it grows, check Kafka. When"
    " the outbox is full, further events are lost.",
)
PIPELINE_PAUSED = Gauge(
    "rtfm_pipeline_paused",
    "1 while a pipeline waits for a dependency. Start the dependency; the pipeline then resumes by itself.",
    ["group", "dependency"],
)
POLL_GAP_SECONDS = Gauge(
    "rtfm_poll_gap_seconds",
    "Seconds since the last pass of a pipeline's loop. If it exceeds WATCHDOG_S, the process ends: report the stacks"
    " that it writes to standard error.",
    ["group"],
)
LAG = Gauge(
    "kafka_consumergroup_lag",
    "Records between a group's committed position and the end of a partition. If it grows, add processors, but not more"
    " than there are partitions.",
    ["consumergroup", "topic", "partition"],
)
INFLIGHT = Gauge(
    "rtfm_inflight_records",
    "Records that were polled and are not finished. If it stays high and nothing is committed, see"
    " rtfm_pipeline_paused and rtfm_txn_aborts_total.",
    ["group"],
)
PAUSED_PARTITIONS = Gauge(
    "rtfm_paused_partitions",
    "Partitions that are paused because too many of their records are unfinished. If it stays above 0, records are"
    " handled too slowly: add processors.",
    ["group"],
)
PAUSES = Counter(
    "rtfm_partition_pauses_total",
    "Times that a partition was paused because too many of its records were unfinished. If it grows steadily, records"
    " are handled too slowly: add processors.",
    ["group"],
)
REBALANCES = Counter(
    "rtfm_rebalances_total",
    "Times that partitions were assigned to a pipeline, revoked or lost. If it grows although nothing restarts, check"
    " the log for processes that end, and the network to Kafka.",
    ["group", "kind"],
)
TRANSACTION_SECONDS = Histogram(
    "rtfm_txn_commit_seconds",
    "Seconds from the beginning to the end of a committed transaction. If it grows, check the brokers' load and disks.",
    ["group"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
TRANSACTION_FAILURES = Counter(
    "rtfm_txn_aborts_total",
    "Failed transactions, by reason: `rebalancing`, `refused` by a broker, or of `unknown` outcome. Their work is"
    " repeated. `rebalancing` is normal while partitions move. If another reason grows, check the brokers.",
    ["group", "reason"],
)
BUILD_INFO = Gauge(
    "rtfm_build_info",
    "Always 1. The label is the running version: after an upgrade, check that every process has the new one.",
    ["version"],
)


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def configure_logging(level: str, output: str = "auto") -> None:
    """Send all logs to standard error.

    ``level`` is the lowest level at which this project's modules log; other packages log only warnings and errors.
    ``output`` is ``console``, ``json``, or ``auto`` for console on a terminal and JSON elsewhere.
    """
    as_json = output == "json" or (output == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [
            _escape_values,
            # ``plain_traceback`` does not show local variables, which may contain settings. structlog's default
            # formatter of exceptions shows them.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _RedactingFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("rtfm").setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _escape_values(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters in values, because ids and errors may come from outside.

    The console format needs this. The JSON format escapes control characters anyway.
    """
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = escape_unprintable(value, newlines=True)
    return event


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module. Log a short phrase that is always the same, and pass facts as key-value pairs."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def new_traceparent() -> str:
    """Return a W3C ``traceparent`` header value that begins a trace (https://www.w3.org/TR/trace-context/)."""
    # The ids need not be secret. ``random`` makes no system call, which matters because every record gets an id.
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-01"


def child_traceparent(parent: str | None) -> str:
    """Return a ``traceparent`` that continues the trace of ``parent``.

    If ``parent`` is missing or malformed, a new trace begins.
    """
    parts = (parent or "").split("-")
    if len(parts) != 4 or len(parts[1]) != 32:
        return new_traceparent()
    return f"00-{parts[1]}-{random.getrandbits(64) or 1:016x}-{parts[3]}"


@define
class Health:
    """The liveness and readiness of a service. Loops report to it, and the metrics port and the watchdog read it.

    A loop calls ``beat(name)`` on every pass and ``end(name)`` when it ends normally. ``alive_when`` and ``ready_when``
    add conditions. The check of a condition returns None if the condition is met, and otherwise one line that says what
    is wrong.

    A service is not alive if a loop has reported no pass for ``max_gap_s`` seconds, or if a condition of liveness is
    not met.
    """

    max_gap_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _beats: dict[str, float] = field(factory=dict)
    _alive: dict[str, Callable[[], str | None]] = field(factory=dict)
    _ready: dict[str, Callable[[], str | None]] = field(factory=dict)

    def beat(self, name: str) -> None:
        """Record a pass of the loop ``name``."""
        self._beats[name] = self.clock()

    def end(self, name: str) -> None:
        """Stop watching the loop ``name``, which has ended normally."""
        self._beats.pop(name, None)

    def gap_s(self, name: str) -> float:
        """Return the seconds since the last pass of the loop ``name``; 0 if the loop is not watched."""
        at = self._beats.get(name)
        return 0.0 if at is None else self.clock() - at

    def alive_when(self, name: str, check: Callable[[], str | None]) -> None:
        """Add a condition of liveness."""
        self._alive[name] = check

    def ready_when(self, name: str, check: Callable[[], str | None]) -> None:
        """Add a condition of readiness."""
        self._ready[name] = check

    def find_stalled(self, limit_s: float) -> dict[str, str]:
        """Return a line for each loop that has reported no pass for ``limit_s`` seconds, by the loop's name."""
        return {
            name: f"no pass for {gap_s:.0f} s" for name in list(self._beats) if (gap_s := self.gap_s(name)) > limit_s
        }

    def liveness(self) -> dict[str, str]:
        """Return a line for each reason why the service is not alive, by the name of the loop or condition."""
        return self.find_stalled(self.max_gap_s) | _run_checks(self._alive)

    def readiness(self) -> dict[str, str]:
        """Return a line for each reason why the service is not ready. A service that is not alive is not ready."""
        return self.liveness() | _run_checks(self._ready)


def _run_checks(checks: dict[str, Callable[[], str | None]]) -> dict[str, str]:
    found = {name: check() for name, check in list(checks.items())}
    return {name: line for name, line in found.items() if line is not None}


MAX_CONNECTIONS = 16
"""Largest number of connections to the metrics port. If one more arrives, the oldest connection is closed.

Prometheus, a supervisor and a person need three connections.
"""

IDLE_S = 5.0
"""A connection to the metrics port is closed after this many seconds without a byte."""


class MetricsServer(ThreadingHTTPServer):
    """A small HTTP server for /metrics, /healthz and /readyz.

    Each connection has a thread. If more than ``MAX_CONNECTIONS`` are open, the oldest connection is closed. A client
    that keeps connections open therefore cannot lock out other clients.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, health: Health, host: str, port: int) -> None:
        """Open the port, or any free port if ``port`` is 0. Raises OSError if it cannot be opened."""
        self._open: dict[Any, None] = {}  # in the order of arrival
        self._open_lock = threading.Lock()
        super().__init__((host, port), _build_request_handler(health))
        self.port: int = self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection; close the oldest one if there are more than MAX_CONNECTIONS."""
        with self._open_lock:
            self._open[request] = None
            if len(self._open) > MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread then reads the end of the stream
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the error at DEBUG only, because its usual reason is that the client disconnected."""
        get_logger(__name__).debug("a request to the metrics port failed", exc_info=True)

    def start(self) -> None:
        """Serve requests from a daemon thread."""
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self.shutdown()
        self.server_close()


def _build_request_handler(health: Health) -> type[BaseHTTPRequestHandler]:
    class _RequestHandler(BaseHTTPRequestHandler):
        timeout = IDLE_S

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._answer(200, generate_latest(REGISTRY), CONTENT_TYPE_LATEST)
                case "/healthz":
                    self._answer_health(health.liveness())
                case "/readyz":
                    self._answer_health(health.readiness())
                case _:
                    self._answer(404, b"not found\n", "text/plain")

        def _answer_health(self, wrong: dict[str, str]) -> None:
            body = redact(json.dumps({"ok": not wrong, "wrong": wrong})).encode()
            self._answer(503 if wrong else 200, body, "application/json")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
            return

    return _RequestHandler
