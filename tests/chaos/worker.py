"""A worker for the tests in this folder. Until SIGTERM, it produces one response for each message.

The command is ``python -m tests.chaos.worker HANDLER_MS PADDING_BYTES CONCURRENCY``. A call of the handler takes
HANDLER_MS, and PADDING_BYTES are added to each answer. With a concurrency of 0, the worker handles batches. Settings
come from the environment.

The key of a response is the message's channel, and the answer begins with the message's id. From the key and the
id, a test can find missing and repeated responses, and check the order in each channel.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Sequence

from attrs import evolve

from rtfm import settings
from rtfm.contracts import open_contracts
from rtfm.errors import RtfmError
from rtfm.events import BotResponse
from rtfm.service import Watchdog
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.limits import DeadLetterPolicy
from rtfm.streams.pipeline import Output, Pipeline, Record
from rtfm.streams.quarantine import CrashJournal
from rtfm.telemetry import Health, configure_logging
from tests.streams import GROUP, MESSAGES, RESPONSES, build_query, build_response

SLEEPER = "sleep"
"""The content of a message that takes 20 s to handle."""

HANGER = "hang"
"""A message with this content, followed by a space and a worker's name, makes this worker hang completely."""

KILLER = "die"
"""The content of a message that makes the process crash."""


def hang() -> None:
    """Hold the interpreter's lock practically forever, so that no other thread can run."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def main(handler_ms: float, padding_bytes: int, concurrency: int) -> int:
    """Run until SIGTERM. Return 1 if the pipeline ended with an error, otherwise 0."""
    configured = settings.load(dotenv=None)
    configure_logging("INFO", "console")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print(f"{configured.instance_id}: listening", file=sys.stderr, flush=True)  # noqa: T201 - read by the fleet

    def handle(records: Sequence[Record]) -> list[Output]:
        if any(r.event.content == f"{HANGER} {configured.instance_id}" for r in records):
            hang()
        if any(r.event.content == KILLER for r in records):
            os._exit(9)
        time.sleep(20 if any(r.event.content == SLEEPER for r in records) else handler_ms / 1000)
        return [Output(topic=RESPONSES, event=_response(record)) for record in records]

    def _response(record: Record) -> BotResponse:
        answer = f"{record.event.message_id}|{secrets.token_hex(padding_bytes // 2)}"
        return evolve(build_response(build_query(0), answer), query_id=record.event.channel_id)

    health, journal = Health(), CrashJournal.of(configured, "worker")
    pipeline = Pipeline(
        KafkaConfig.of(configured),
        open_contracts(configured),
        group=GROUP,
        topic=MESSAGES,
        handler=handle,
        health=health,
        concurrency=max(1, concurrency),
        batch_size=None if concurrency else 500,
        dead_letters=DeadLetterPolicy.of(configured),
        quarantine=journal,
        grace_s=configured.shutdown_grace_s,
        stop=stop,
    )
    try:
        with journal, Watchdog(health, configured.watchdog_s):
            pipeline.run()
    except RtfmError as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)  # noqa: T201 - read by tests
        return 1
    return 0


if __name__ == "__main__":
    code = main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os._exit(code)  # without waiting for handlers that still sleep
