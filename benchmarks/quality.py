"""Quality of retrieval, against the committed baseline: `make eval`.

``python -m benchmarks.quality [--data FOLDER] [--write] [--json]`` starts PostgreSQL and Chroma. It measures the sample
chat. If FOLDER is given, it also measures the chat in FOLDER/exports/*.json with the questions in
FOLDER/questions.jsonl. The embedding model is the one in RTFM_EMBEDDING_MODEL_DIR or, if that is not set, the one that
was fetched to RTFM_HOME. Without an embedding model, only keyword search is measured.

The benchmark fails if a figure is more than a point (0.01) below ``quality.json``. The figure ``rejected`` is the share
of sixty off-topic questions for which nothing is found. ``kept`` is the share of answerable questions for which
something is found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import evolve, frozen

from benchmarks.off_topic import OFF_TOPIC
from rtfm import settings
from rtfm.errors import RtfmError
from rtfm.knowledge import Knowledge, Retriever, console_scope
from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.embedding import Embedding, OnnxEmbedding, find_model
from rtfm.knowledge.evaluation import measure, read_questions, summarise
from rtfm.knowledge.floor import calibrate
from rtfm.knowledge.imports import read_export
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.local.stack import LocalStack
from rtfm.processor.ingest import Ingest

CHECKOUT = Path(__file__).parent.parent
BASELINE = Path(__file__).with_name("quality.json")
SAMPLE = CHECKOUT / "cli" / "rtfm_cli" / "sample"
DROP = 0.01
BATCH = 500

Figures = dict[str, dict[str, float]]
"""Corpus and mode of search → name of the figure → its value, 0..1."""


@frozen
class EventRecord:
    """A record with the only field that ingest reads."""

    event: object


def main() -> int:
    """Run the benchmark. Return 1 if a figure is more than a point below the baseline."""
    parser = argparse.ArgumentParser(description="Retrieval's quality against the committed baseline.")
    parser.add_argument("--data", type=Path, help="a folder with exports/*.json and questions.jsonl")
    parser.add_argument("--write", action="store_true", help="replace the baseline with the results")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    corpora = {"sample": (sorted(SAMPLE.glob("*.json")), SAMPLE / "questions.jsonl")}
    if arguments.data is not None:
        folder = arguments.data
        corpora[folder.name] = (sorted((folder / "exports").glob("*.json")), folder / "questions.jsonl")
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    loaded = settings.load()
    model = find_model(loaded)
    measured: Figures = {}
    with tempfile.TemporaryDirectory(prefix="rtfm-eval-") as home:
        stack = LocalStack(Path(home), cache_dir=CHECKOUT / ".rtfm" / "cache")
        try:
            addresses = {service.name: service.address for service in stack.up(("chroma", "postgres"))}
            for name, (exports, questions) in corpora.items():
                measured |= measure_corpus(
                    name,
                    exports,
                    questions,
                    database_url=addresses["postgres"],
                    chroma_url=addresses["chroma"],
                    model=model,
                )
        finally:
            stack.down()
    if arguments.write:
        BASELINE.write_text(json.dumps({**baseline, **measured}, indent=2) + "\n", encoding="utf-8")
    _report(measured, baseline, as_json=arguments.json)
    fallen = find_drops(baseline, measured)
    if fallen and not arguments.json:
        print("more than a point below the baseline: " + "; ".join(fallen), file=sys.stderr)
    return 1 if fallen else 0


def find_drops(baseline: Figures, measured: Figures) -> list[str]:
    """Return a line of text for each figure that is more than a point below the baseline."""
    return [
        f"{corpus} {name} {baseline[corpus][name]:.3f} → {value:.3f}"
        for corpus, figures in measured.items()
        for name, value in figures.items()
        if name in baseline.get(corpus, {}) and value < baseline[corpus][name] - DROP
    ]


def measure_corpus(
    name: str,
    exports: Sequence[Path],
    questions: Path,
    *,
    database_url: str,
    chroma_url: str,
    model: OnnxEmbedding | None,
    retriever_of: Callable[[SqlArchive, ChromaVectors, Embedding | None], Retriever] = Retriever,
) -> Figures:
    """Ingest a corpus, and search it for its own questions and the off-topic questions, with and without the model."""
    archive = SqlArchive(database_url)
    archive.migrate()
    vectors = ChromaVectors(chroma_url, f"{name}.")
    knowledge = Knowledge(
        archive=archive, vectors=vectors, embedding=model, retriever=retriever_of(archive, vectors, model)
    )
    ingest = Ingest(knowledge=knowledge)
    for path in exports:
        messages = list(read_export(path).messages())
        for start in range(0, len(messages), BATCH):
            ingest([EventRecord(message) for message in messages[start : start + BATCH]])
    labelled = read_questions(questions)
    figures: Figures = {}
    for embedding in [model, None] if model else [None]:
        searched = evolve(knowledge, embedding=embedding, retriever=retriever_of(archive, vectors, embedding))
        guilds = {question.guild_id for question in labelled}
        for guild_id in sorted(guilds):
            calibrate(archive, searched.retriever, guild_id, force=True)
        visible = {guild_id: console_scope(archive, guild_id)[1] for guild_id in guilds}
        results = [measure(searched.retriever, question, visible[question.guild_id]) for question in labelled]
        summary = summarise(results)
        guild_id = min(guilds)
        rejected = [
            not searched.retriever.search(
                question, guild_id=guild_id, visible_channel_ids=visible[guild_id], limit=1
            ).found
            for question in OFF_TOPIC
        ]
        figures[f"{name} {searched.retriever.mode}"] = {
            "hit@5": round(summary.hit_at_5, 4),
            "MRR@10": round(summary.mrr_at_10, 4),
            "cover@300w": round(summary.coverage, 4),
            "kept": round(1 - summary.nothing_found / summary.questions, 4),
            "rejected": round(sum(rejected) / len(rejected), 4),
        }
    knowledge.close()
    return figures


def _report(measured: Figures, baseline: Figures, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    for column in ("corpus", "figure", "now", "baseline"):
        table.add_column(column, justify="left" if column in ("corpus", "figure") else "right")
    for corpus, figures in measured.items():
        for name, value in figures.items():
            before = baseline.get(corpus, {}).get(name)
            if as_json:
                met = before is None or value >= before - DROP
                print(json.dumps({"name": f"{corpus} {name}", "ours": value, "peer": before, "met": met}))
            table.add_row(corpus, name, f"{value:.3f}", "" if before is None else f"{before:.3f}")
    if not as_json:
        Console().print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RtfmError as exc:
        sys.exit(f"Error: {exc}" + (f"\nHint: {exc.hint}" if exc.hint else ""))
