"""Measures the time of each stage of a question, in a processor that answers.

``python -m benchmarks.pipeline_stages FILE`` runs a processor whose stages are measured. When it is stopped, it writes
one line for each question to FILE. Ask only one question at a time, because the time of a stage is added to the
question that was begun last.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipeline_setup import percentile
from benchmarks.report import Figure, figure

WAIT, DECODE, FIND, EMBED = "in bot-queries", "decode", "answered before?", "embed"
SQL, CHROMA, RANK, MODEL = "retrieval's SQL", "Chroma", "ranking", "model call"
KEEP, HANDLE, ENCODE = "keep the answer", "rest of handler", "encode"
DUE, COMMIT, READ = "until due", "transaction", "in bot-responses"
STAGES = (WAIT, DECODE, FIND, EMBED, SQL, CHROMA, RANK, MODEL, KEEP, HANDLE, ENCODE, DUE, COMMIT, READ)

_BEGUN, _ENDED, _COMMITTED, _ID = "begun_ns", "ended_ns", "committed_ns", "query_id"


def figures(notes: Path, sent_ns: dict[str, int], seen_ns: dict[str, int]) -> list[Figure]:
    """Return p50 and p99 of each stage in milliseconds.

    ``notes`` is the file that the processor wrote. ``sent_ns`` and ``seen_ns`` are the times when each question was
    sent and when its response was read, by query id.
    """
    samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for line in notes.read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        if (name := note[_ID]) not in sent_ns:
            continue
        note[WAIT] = (note[_BEGUN] - sent_ns[name]) / 1e6 - note.get(DECODE, 0.0)
        note[READ] = (seen_ns[name] - note[_COMMITTED]) / 1e6
        # The measured times of these two stages include other stages, which are subtracted.
        note[HANDLE] -= sum(note.get(stage, 0.0) for stage in (FIND, RANK, MODEL, KEEP))
        note[RANK] = max(0.0, note.get(RANK, 0.0) - sum(note.get(stage, 0.0) for stage in (EMBED, SQL, CHROMA)))
        for stage in STAGES:
            samples[stage].append(note.get(stage, 0.0))
    return [
        figure(f"of that, {stage} p{percent}", percentile(values, percent), None, None, unit="ms")
        for stage, values in samples.items()
        for percent in (50, 99)
    ]


def _install_clocks(stages: list[dict[str, Any]]) -> None:
    """Measure the stages in this process. The times of each question are appended to ``stages``."""
    from rtfm.answering.guarded import GuardedModel
    from rtfm.contracts import Contracts
    from rtfm.knowledge.archive.answers import ArchiveAnswers
    from rtfm.knowledge.archive.reading import View
    from rtfm.knowledge.embedding import OnnxEmbedding
    from rtfm.knowledge.retrieval import Retriever
    from rtfm.knowledge.vectors import ChromaVectors
    from rtfm.processor.answer import Answering
    from rtfm.streams.transactions import Transactions

    now: dict[str, Any] = {}

    def add_clock(owner: type[Any], method: str, stage: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            started_ns = time.perf_counter_ns()
            try:
                return inner(*args, **kwargs)
            finally:
                now[stage] = now.get(stage, 0.0) + (time.perf_counter_ns() - started_ns) / 1e6

        setattr(owner, method, call)

    for owner, method, stage in (
        (Contracts, "decode", DECODE),
        (ArchiveAnswers, "find", FIND),
        (OnnxEmbedding, "embed", EMBED),
        (View, "_select", SQL),
        (ChromaVectors, "nearest", CHROMA),
        (Retriever, "search", RANK),
        (GuardedModel, "complete", MODEL),
        (ArchiveAnswers, "store", KEEP),
        (Contracts, "encode", ENCODE),
        (Answering, "__call__", HANDLE),
        (Transactions, "commit", COMMIT),
    ):
        add_clock(owner, method, stage)
    handle, commit = Answering.__call__, Transactions.commit

    def timed_handle(answering: Answering, records: Sequence[Any]) -> Any:
        now[_BEGUN], now[_ID] = time.time_ns(), records[0].event.query_id
        outputs = handle(answering, records)
        now[_ENDED] = time.time_ns()
        return outputs

    def timed_commit(*args: Any, **kwargs: Any) -> None:
        started_ns = time.time_ns()
        commit(*args, **kwargs)
        if _ENDED in now:
            due_ms = (started_ns - now[_ENDED]) / 1e6 - now.get(ENCODE, 0.0)
            stages.append({**now, DUE: due_ms, _COMMITTED: time.time_ns()})
        now.clear()

    Answering.__call__ = timed_handle  # type: ignore[method-assign, assignment]  # a clock around it
    Transactions.commit = timed_commit  # type: ignore[method-assign]  # a clock around it


def main() -> None:
    """Run the processor until it is stopped, then write the times."""
    from rtfm import settings
    from rtfm.processor.service import run_processor
    from rtfm.telemetry import configure_logging

    configure_logging("WARNING")
    stages: list[dict[str, Any]] = []
    _install_clocks(stages)
    run_processor(settings.load(dotenv=None), "answer")
    Path(sys.argv[1]).write_text("".join(json.dumps(note) + "\n" for note in stages), encoding="utf-8")


if __name__ == "__main__":
    main()
