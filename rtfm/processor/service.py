"""The message processor as a service: both pipelines, from start to drained shutdown.

Owns the order of starting and stopping. While a dependency is down it waits, says so once and is not ready; only what
an operator must change ends it. On SIGTERM or SIGINT it finishes what is in hand within ``SHUTDOWN_GRACE_S``; a second
signal ends it at once.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Literal

from attrs import define, field

from rtfm.clock import now_ms
from rtfm.contracts import Contracts, open_contracts
from rtfm.errors import ConfigError, RtfmError, TransientError
from rtfm.settings import Settings
from rtfm.streams.pipeline import Handler, Output, Pipeline, Record, Unfinished
from rtfm.telemetry import Health, MetricsServer, get_logger
from rtfm.watchdog import Watchdog

if TYPE_CHECKING:
    from rtfm.knowledge import Knowledge

MESSAGES, QUERIES, RESPONSES = "discord-messages", "bot-queries", "bot-responses"
INGEST_GROUP = "discord-message-processor"
ANSWER_GROUP = "discord-message-processor-answer"

INGEST_BATCH = 500
"""Messages of a partition that are embedded in one call and written in one transaction."""

NEW_OBJECTS = 20_000
"""That the garbage collector waits for; Python's default of 700 is that of some hundred records."""

Part = Literal["ingest", "answer"]

_POLL_S = 0.1
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
_STORE_CHECK_EVERY_S = 5.0

_log = get_logger(__name__)


@define(kw_only=True)
class _StopState:
    """Whether the service was asked to end."""

    event: threading.Event
    signals: int = 0

    def asked(self) -> bool:
        # A signal's handler may interrupt whoever holds the event's lock, so it only counts.
        if self.signals:
            self.event.set()
        return self.event.is_set()


@define(kw_only=True)
class _StoreCheckState:
    """What a store said when it was last asked; it is asked at most every few seconds."""

    check: Callable[[], None]
    asked_at_s: float = float("-inf")
    line: str | None = None
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def __call__(self) -> str | None:
        with self._lock:
            if time.monotonic() - self.asked_at_s >= _STORE_CHECK_EVERY_S:
                try:
                    self.check()
                    self.line = None
                except RtfmError as exc:
                    self.line = str(exc)
                self.asked_at_s = time.monotonic()
            return self.line


def run_processor(settings: Settings, only: Part | None = None, stop: threading.Event | None = None) -> None:
    """Run ingest and answering, or ``only`` one, until SIGTERM, SIGINT or ``stop``.

    Raises ConfigError for what an operator must change: a contract that is not registered, a topic that does not exist,
    an address that is none. Raises Unfinished when the work in hand took longer than ``SHUTDOWN_GRACE_S``.
    """
    state = _StopState(event=stop or threading.Event())
    health = Health(max_gap_s=settings.watchdog_s * 2 / 3)
    starting = {"start": "the service is starting"}
    health.ready_when("start", lambda: starting.get("start"))
    with _signals(state), _metrics(settings, health):
        contracts = open_contracts(settings)
        handlers: dict[str, Handler] = {}
        ready = threading.Event()
        pipelines = _pipelines(settings, contracts, only, health, state.event, handlers, ready)
        # Transactions begin while what the handlers need is loaded; it is closed when the pipelines have ended.
        with ExitStack() as closing, _running(settings, pipelines, state, health):
            if _prepared(settings, contracts, only, state, starting, handlers, health, closing):
                starting.clear()
                collect_seldom()
                ready.set()
            while not state.asked():
                time.sleep(_POLL_S)
            _log.info("stopping")
    _log.info("stopped")


def collect_seldom() -> None:
    """Have the garbage collector leave alone what there is now, and look at what is new less often.

    Records in hand are many objects that live for a transaction, which the collector takes for a reason to go through
    them again and again: a fifth of the time that a record costs. What a service loads at its start never goes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)


def _prepared(
    settings: Settings,
    contracts: Contracts,
    only: Part | None,
    state: _StopState,
    starting: dict[str, str],
    handlers: dict[str, Handler],
    health: Health,
    closing: ExitStack,
) -> bool:
    """Fill ``handlers`` once what they need is there and the archive is of this version; False if stopped meanwhile."""
    from rtfm.knowledge import open_knowledge

    knowledge = open_knowledge(settings)
    closing.callback(knowledge.close)
    # While another process migrates, this one waits here, where it can be stopped.
    steps: list[Callable[[], object]] = [partial(knowledge.archive.migrate, wait_s=0), knowledge.vectors.check]
    if only != "ingest":
        codec = contracts.codec(RESPONSES)
        steps.insert(0, partial(contracts.registry.id_for, RESPONSES, codec.schema))
    for step in steps:
        _waited_for(step, state, starting)
    if state.asked():
        return False
    _say_if_a_rebuild_is_due(knowledge)
    health.ready_when("archive", _StoreCheckState(check=knowledge.archive.check))
    health.ready_when("Chroma", _StoreCheckState(check=knowledge.vectors.check))
    if only != "answer":
        handlers[MESSAGES] = _ingesting(knowledge, closing)
    if only != "ingest":
        handlers[QUERIES] = _answering(settings, knowledge)
    return True


def _say_if_a_rebuild_is_due(knowledge: Knowledge) -> None:
    """One line a guild whose vectors are not used: nobody who gave the service a model expects search by words."""
    from rtfm.knowledge import rebuilding

    model = knowledge.embedding.name if knowledge.embedding else None
    with suppress(RtfmError):  # a store that cannot say it now does not keep the service from starting
        for guild_id, reason in rebuilding.outdated(knowledge.archive, model).items():
            _log.warning("a rebuild is due", guild_id=guild_id, reason=reason, mend="rtfm-cli rebuild")


def _waited_for(step: Callable[[], object], state: _StopState, starting: dict[str, str]) -> None:
    """Return when ``step`` is done, or the service was asked to stop."""
    wait_s, said = _FIRST_WAIT_S, False
    while not state.asked():
        try:
            step()
            return
        except TransientError as exc:
            starting["start"] = str(exc)
            if not said:
                _log.warning("waiting to start", reason=str(exc), mend=exc.hint)
            said = True
        until = time.monotonic() + wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
        while time.monotonic() < until and not state.asked():
            time.sleep(_POLL_S)
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)


def _pipelines(
    settings: Settings,
    contracts: Contracts,
    only: Part | None,
    health: Health,
    stop: threading.Event,
    handlers: dict[str, Handler],
    ready: threading.Event,
) -> list[Pipeline]:
    def handled_by(topic: str) -> Handler:
        return lambda records: handlers[topic](records)

    made = partial(Pipeline, settings, contracts, health=health, stop=stop, ready=ready)
    pipelines = []
    if only != "answer":
        pipelines.append(
            made(group=INGEST_GROUP, topic=MESSAGES, handler=handled_by(MESSAGES), batch_size=INGEST_BATCH)
        )
    if only != "ingest":
        concurrency = settings.processor_concurrency
        pipelines.append(made(group=ANSWER_GROUP, topic=QUERIES, handler=handled_by(QUERIES), concurrency=concurrency))
    return pipelines


@contextmanager
def _running(settings: Settings, pipelines: Sequence[Pipeline], state: _StopState, health: Health) -> Iterator[None]:
    """Run ``pipelines`` beside the block, and stop them at its end; whatever error ends one is raised then."""
    failures: list[BaseException] = []

    def work(pipeline: Pipeline) -> None:
        try:
            pipeline.run()
        except BaseException as exc:
            failures.append(exc)
        finally:
            state.event.set()

    threads = [
        threading.Thread(target=work, args=(pipeline,), name=f"pipeline-{number}", daemon=True)
        for number, pipeline in enumerate(pipelines)
    ]
    with Watchdog(health, settings.watchdog_s):
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            state.event.set()
            until = time.monotonic() + settings.shutdown_grace_s
            for thread in threads:
                thread.join(max(until - time.monotonic(), 0))
    if failures:
        raise failures[0]
    if any(thread.is_alive() for thread in threads):
        raise Unfinished(
            f"the work in hand was not finished within {settings.shutdown_grace_s:g} s",
            hint="Nothing is lost: it is read again at the next start. SHUTDOWN_GRACE_S gives it longer.",
        )


def _ingesting(knowledge: Knowledge, closing: ExitStack) -> Handler:
    from rtfm.processor.calibration import Calibration
    from rtfm.processor.ingest import Ingest

    handler = Ingest(knowledge=knowledge, note_guilds=closing.enter_context(Calibration(knowledge)).note)

    def handle(records: Sequence[Record]) -> Sequence[Output]:
        handler(records)
        return []

    return handle


def _answering(settings: Settings, knowledge: Knowledge) -> Handler:
    from rtfm.answering.answerer import Answerer
    from rtfm.answering.guarded import open_model
    from rtfm.processor.answer import Answering

    model = open_model(settings)
    answerer = Answerer(
        knowledge.retriever,
        model,
        clock=now_ms,
        passages_per_answer=settings.passages_per_answer,
        model_timeout_s=settings.gemini_timeout_s,
        standing=knowledge.archive.answers.standing,
    )
    _log.info("answering", by="extract" if model is None else model.name)
    return Answering(answerer=answerer, archive=knowledge.archive)


@contextmanager
def _metrics(settings: Settings, health: Health) -> Iterator[None]:
    try:
        server = MetricsServer(health, settings.metrics_host, settings.metrics_port)
    except OSError as exc:
        raise ConfigError(
            f"METRICS_PORT: {settings.metrics_host}:{settings.metrics_port} cannot be opened: {exc.strerror}",
            hint="Choose another METRICS_PORT; 0 takes a free one.",
        ) from exc
    server.start()
    _log.info("metrics and health", address=f"http://{settings.metrics_host}:{server.port}")
    try:
        yield
    finally:
        server.stop()


@contextmanager
def _signals(state: _StopState) -> Iterator[None]:
    """SIGTERM and SIGINT ask for the end, a second one does not wait for it. Nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def received(*_: object) -> None:
        if state.signals:
            os._exit(1)
        state.signals += 1

    before = {number: signal.signal(number, received) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        # Once asked to end, the process ends: until it has, a second signal must find who listens.
        if not state.signals:
            for number, handler in before.items():
                signal.signal(number, handler)
