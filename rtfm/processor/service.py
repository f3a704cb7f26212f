"""The processor as a service: starts, runs and stops the pipelines of ingest and answering.

If a dependency is down, the service logs the error once, reports that the service is not ready, and waits. The service
ends with an error if an operator must change something, if a partition has too many dead letters, or after a defect. On
SIGTERM or SIGINT it finishes the records that it has begun, for at most ``SHUTDOWN_GRACE_S`` seconds. A second signal
ends the service at once.
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
"""Maximum number of messages of a partition that are embedded in one call and written in one transaction."""

GC_THRESHOLD = 20_000
"""The garbage collector runs after this many new objects.

Python's default is 700, and some hundred records already consist of more objects than that."""

Part = Literal["ingest", "answer"]

_log = get_logger(__name__)


@frozen
class Handlers:
    """The handlers of the two pipelines. Each future is set when its handler can be called."""

    ingest: Future[Handler] = field(factory=Future)
    answer: Future[Handler] = field(factory=Future)


def run_processor(settings: Settings, only: Part | None = None, stop: threading.Event | None = None) -> None:
    """Run ingest and answering, or ``only`` one of them, until SIGTERM, SIGINT or ``stop``.

    Raises ConfigError for an error that an operator must fix, for example an unregistered contract, a missing topic or
    an invalid address. Raises Unfinished if records were still unfinished after ``SHUTDOWN_GRACE_S``.
    """
    stopping = Stop(stop)
    starting: dict[str, str] = {"start": "the service is starting"}
    quarantine = CrashJournal.of(settings, f"processor-{only}" if only else "processor")
    ready = {"start": lambda: starting.get("start")}
    with stopping.handle_signals(), open_monitoring(settings, ready) as health, quarantine:
        contracts = open_contracts(settings)
        handlers = Handlers()
        pipelines = _build_pipelines(settings, contracts, only, handlers, health, stopping.event, quarantine)
        # The pipelines join their groups while the handlers load, and end before ``closing`` closes the stores.
        with ExitStack() as closing, _run_pipelines(settings, pipelines, stopping):
            if _prepare_handlers(settings, contracts, only, stopping, starting, handlers, health, closing):
                starting.clear()
            while not stopping.is_set():
                time.sleep(POLL_S)
            _log.info("stopping")
    _log.info("stopped")


def _build_pipelines(
    settings: Settings,
    contracts: Contracts,
    only: Part | None,
    handlers: Handlers,
    health: Health,
    stop: threading.Event,
    quarantine: Quarantine,
) -> list[Pipeline]:
    """Return the pipelines of ingest and answering, or of ``only`` one of them."""
    dead_letters = DeadLetterPolicy.of(settings)
    new_pipeline = partial(
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
            new_pipeline(
                group=contracts.catalogue.group(MESSAGES),
                topic=MESSAGES,
                handler=handlers.ingest,
                batch_size=INGEST_BATCH,
                dead_letters=dead_letters,
            )
        )
    if only != "ingest":
        pipelines.append(
            new_pipeline(
                group=contracts.catalogue.group(QUERIES),
                topic=QUERIES,
                handler=handlers.answer,
                concurrency=settings.processor_concurrency,
                dead_letters=dead_letters,
            )
        )
    return pipelines


def tune_garbage_collector() -> None:
    """Exclude all current objects from garbage collection, and let the collector run less often.

    Unfinished records consist of many objects that live until their transaction ends. With Python's defaults, the
    collector traverses these objects again and again. These traversals took a fifth of the processing time of a record.
    The current objects can be excluded because a service never frees the objects that it loads at its start.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 10)


def _prepare_handlers(
    settings: Settings,
    contracts: Contracts,
    only: Part | None,
    stop: Stop,
    starting: dict[str, str],
    handlers: Handlers,
    health: Health,
    closing: ExitStack,
) -> bool:
    """Wait for the dependencies, migrate the archive and set the ``handlers``; return False if ``stop`` is set."""
    from rtfm.knowledge import open_knowledge

    knowledge = open_knowledge(settings)
    closing.callback(knowledge.close)
    # With wait_s=0, ``migrate`` does not wait for a migration by another process. Instead, ``retry_until_available``
    # calls ``migrate`` again, so that the wait can be interrupted.
    steps: list[Callable[[], object]] = [partial(knowledge.archive.migrate, wait_s=0), knowledge.vectors.check]
    if only != "ingest":
        codec = contracts.codec(RESPONSES)
        steps.insert(0, partial(contracts.registry.id_for, RESPONSES, codec.schema))
    for step in steps:
        retry_until_available(step, stop, lambda error: starting.update(start=str(error)))
    if stop.is_set():
        return False
    _warn_of_due_rebuilds(knowledge)
    health.ready_when("archive", partial(_failure_of, knowledge.archive.check))
    health.ready_when("Chroma", partial(_failure_of, knowledge.vectors.check))
    ingest = None if only == "answer" else _build_ingest(knowledge, closing)
    answer = None if only == "ingest" else _build_answering(settings, knowledge)
    tune_garbage_collector()
    if ingest is not None:
        handlers.ingest.set_result(ingest)
    if answer is not None:
        handlers.answer.set_result(answer)
    return True


def _failure_of(check: Callable[[], None]) -> str | None:
    """Return the error that ``check`` raises as text, or None if it raises no error."""
    try:
        check()
    except RtfmError as exc:
        return str(exc)
    return None


def _warn_of_due_rebuilds(knowledge: Knowledge) -> None:
    """Log each guild whose vectors or passages were not made by the current embedding model and rules."""
    from rtfm.knowledge import rebuilding

    model = knowledge.embedding.name if knowledge.embedding else None
    with suppress(RtfmError):  # the service must start even if the warning fails
        for guild_id, reason in rebuilding.find_outdated(knowledge.archive, model).items():
            _log.warning("a rebuild is due", guild_id=guild_id, reason=reason, hint="rtfm-cli rebuild")


@contextmanager
def _run_pipelines(settings: Settings, pipelines: Sequence[Pipeline], stop: Stop) -> Iterator[None]:
    """Run ``pipelines`` in threads during the block, then stop the pipelines.

    Raises the first error of a pipeline, or Unfinished if a pipeline did not stop within ``SHUTDOWN_GRACE_S``.
    """
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
            f"records were still unfinished after {settings.shutdown_grace_s:g} s",
            hint="Nothing is lost: unfinished records are read again at the next start. SHUTDOWN_GRACE_S is the limit.",
        )


def _build_ingest(knowledge: Knowledge, closing: ExitStack) -> Handler:
    from rtfm.processor.calibration import Calibration
    from rtfm.processor.ingest import Ingest

    return Ingest(knowledge=knowledge, on_guilds_changed=closing.enter_context(Calibration(knowledge)).enqueue)


def _build_answering(settings: Settings, knowledge: Knowledge) -> Handler:
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
        still_readable=knowledge.archive.answers.find_readable,
    )
    _log.info("answering", by="extract" if model is None else model.name)
    return Answering(answerer=answerer, archive=knowledge.archive)
