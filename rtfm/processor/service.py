"""The message processor as a service: both pipelines, from start to drained shutdown.

Owns the order of starting and stopping. While a dependency is down it waits, says so once and is not ready; only what
an operator must change ends it. On SIGTERM or SIGINT it finishes what is in hand within ``SHUTDOWN_GRACE_S``; a second
signal ends it at once.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from rtfm.clock import now_ms
from rtfm.contracts import Contracts, open_contracts
from rtfm.errors import RtfmError
from rtfm.names import MESSAGES, QUERIES, RESPONSES
from rtfm.service import POLL_S, Stop, open_monitoring, retry_until_available
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.limits import DeadLetterPolicy
from rtfm.streams.pipeline import Handler, Pipeline, Unfinished
from rtfm.streams.quarantine import CrashJournal, Quarantine
from rtfm.telemetry import Health, get_logger

if TYPE_CHECKING:
    from rtfm.knowledge import Knowledge

INGEST_BATCH = 500
"""Messages of a partition that are embedded in one call and written in one transaction."""

NEW_OBJECTS = 20_000
"""That the garbage collector waits for; Python's default of 700 is that of some hundred records."""

Part = Literal["ingest", "answer"]

_log = get_logger(__name__)


@frozen
class Handlers:
    """What the pipelines are to call, once it is there."""

    ingest: Future[Handler] = field(factory=Future)
    answer: Future[Handler] = field(factory=Future)


def run_processor(settings: Settings, only: Part | None = None, stop: threading.Event | None = None) -> None:
    """Run ingest and answering, or ``only`` one, until SIGTERM, SIGINT or ``stop``.

    Raises ConfigError for what an operator must change: a contract that is not registered, a topic that does not exist,
    an address that is none. Raises Unfinished when the work in hand took longer than ``SHUTDOWN_GRACE_S``.
    """
    stopping = Stop(stop)
    starting: dict[str, str] = {"start": "the service is starting"}
    quarantine = CrashJournal.of(settings, f"processor-{only}" if only else "processor")
    ready = {"start": lambda: starting.get("start")}
    with stopping.handle_signals(), open_monitoring(settings, ready) as health, quarantine:
        contracts = open_contracts(settings)
        handlers = Handlers()
        pipelines = _pipelines(settings, contracts, only, handlers, health, stopping.event, quarantine)
        # Transactions begin while what the handlers need is loaded; it is closed when the pipelines have ended.
        with ExitStack() as closing, _running(settings, pipelines, stopping):
            if _prepare(settings, contracts, only, stopping, starting, handlers, health, closing):
                starting.clear()
            while not stopping.is_set():
                time.sleep(POLL_S)
            _log.info("stopping")
    _log.info("stopped")


def _pipelines(
    settings: Settings,
    contracts: Contracts,
    only: Part | None,
    handlers: Handlers,
    health: Health,
    stop: threading.Event,
    quarantine: Quarantine,
) -> list[Pipeline]:
    """The two pipelines, each with its own policies."""
    dead_letters = DeadLetterPolicy.of(settings)
    made = partial(
        Pipeline,
        KafkaConfig.of(settings),
        contracts,
        health=health,
        stop=stop,
        quarantine=quarantine,
        grace_s=settings.shutdown_grace_s,
    )
    pipelines = []
    if only != "answer":
        pipelines.append(
            made(
                group=contracts.catalogue.group(MESSAGES),
                topic=MESSAGES,
                handler=handlers.ingest,
                batch_size=INGEST_BATCH,
                dead_letters=dead_letters,
            )
        )
    if only != "ingest":
        pipelines.append(
            made(
                group=contracts.catalogue.group(QUERIES),
                topic=QUERIES,
                handler=handlers.answer,
                concurrency=settings.processor_concurrency,
                dead_letters=dead_letters,
            )
        )
    return pipelines


def collect_seldom() -> None:
    """Have the garbage collector leave alone what there is now, and look at what is new less often.

    Records in hand are many objects that live for a transaction, which the collector takes for a reason to go through
    them again and again: a fifth of the time that a record costs. What a service loads at its start never goes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)


def _prepare(
    settings: Settings,
    contracts: Contracts,
    only: Part | None,
    stop: Stop,
    starting: dict[str, str],
    handlers: Handlers,
    health: Health,
    closing: ExitStack,
) -> bool:
    """Give the ``handlers`` once what they need is there and the archive is of this version; False if stopped."""
    from rtfm.knowledge import open_knowledge

    knowledge = open_knowledge(settings)
    closing.callback(knowledge.close)
    # While another process migrates, this one waits here, where it can be stopped.
    steps: list[Callable[[], object]] = [partial(knowledge.archive.migrate, wait_s=0), knowledge.vectors.check]
    if only != "ingest":
        codec = contracts.codec(RESPONSES)
        steps.insert(0, partial(contracts.registry.id_for, RESPONSES, codec.schema))
    for step in steps:
        retry_until_available(step, stop, lambda error: starting.update(start=str(error)))
    if stop.is_set():
        return False
    _say_if_a_rebuild_is_due(knowledge)
    health.ready_when("archive", partial(_trouble, knowledge.archive.check))
    health.ready_when("Chroma", partial(_trouble, knowledge.vectors.check))
    ingest = None if only == "answer" else _ingesting(knowledge, closing)
    answer = None if only == "ingest" else _answering(settings, knowledge)
    collect_seldom()
    if ingest is not None:
        handlers.ingest.set_result(ingest)
    if answer is not None:
        handlers.answer.set_result(answer)
    return True


def _trouble(check: Callable[[], None]) -> str | None:
    """What a store says when it is asked; None if it can be used."""
    try:
        check()
    except RtfmError as exc:
        return str(exc)
    return None


def _say_if_a_rebuild_is_due(knowledge: Knowledge) -> None:
    """One line a guild whose vectors are not used: nobody who gave the service a model expects search by words."""
    from rtfm.knowledge import rebuilding

    model = knowledge.embedding.name if knowledge.embedding else None
    with suppress(RtfmError):  # a store that cannot say it now does not keep the service from starting
        for guild_id, reason in rebuilding.outdated(knowledge.archive, model).items():
            _log.warning("a rebuild is due", guild_id=guild_id, reason=reason, mend="rtfm-cli rebuild")


@contextmanager
def _running(settings: Settings, pipelines: Sequence[Pipeline], stop: Stop) -> Iterator[None]:
    """Run ``pipelines`` beside the block, and stop them at its end; whatever error ends one is raised then."""
    failures: list[BaseException] = []

    def work(pipeline: Pipeline) -> None:
        try:
            pipeline.run()
        except BaseException as exc:
            failures.append(exc)
        finally:
            stop.set()

    threads = [
        threading.Thread(target=work, args=(pipeline,), name=f"pipeline-{number}", daemon=True)
        for number, pipeline in enumerate(pipelines)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        until_s = time.monotonic() + settings.shutdown_grace_s
        for thread in threads:
            thread.join(max(until_s - time.monotonic(), 0))
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

    return Ingest(knowledge=knowledge, note_guilds=closing.enter_context(Calibration(knowledge)).note)


def _answering(settings: Settings, knowledge: Knowledge) -> Handler:
    from rtfm.answering.answerer import Answerer
    from rtfm.answering.providers import open_model
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
