"""`rtfm-cli eval`: measures search with questions whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import click
from attrs import asdict
from attrs.filters import exclude, include

from rtfm.errors import ConfigError
from rtfm.knowledge import console_scope
from rtfm.knowledge.evaluation import measure, read_questions, summarise
from rtfm_cli.knowledge import open_console_knowledge
from rtfm_cli.options import echo_json, examples, json_option
from rtfm_cli.printing import echo


@examples("""
rtfm-cli eval questions.jsonl
rtfm-cli eval questions.jsonl --out results.jsonl --json
""")
@click.command("eval")
@click.argument("questions", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write one JSON object per question to this file.")
@json_option
def eval_(questions: Path, out: Path | None, as_json: bool) -> None:
    """Measure search with QUESTIONS, a file with one JSON object per line.

    Each object has question, message_id, guild_id and relevant_message_ids. Prints hit@5, MRR@10 and cover@300w.
    cover@300w is the share of the relevant messages that is in the first 300 words of the passages found.
    """
    asked = read_questions(questions)
    with open_console_knowledge() as knowledge:
        visible = {
            guild_id: console_scope(knowledge.archive, guild_id)[1]
            for guild_id in {question.guild_id for question in asked}
        }
        results = [measure(knowledge.retriever, question, visible[question.guild_id]) for question in asked]
    if out is not None:
        try:
            with out.open("w", encoding="utf-8") as file:
                for result in results:
                    line = {**asdict(result, filter=exclude("mode")), "coverage": round(result.coverage, 4)}
                    file.write(json.dumps(line) + "\n")
        except OSError as exc:
            raise ConfigError(f"{out} cannot be written: {exc.strerror or exc}") from exc
    summary = summarise(results)
    figures = {
        "hit@5": round(summary.hit_at_5, 4),
        "MRR@10": round(summary.mrr_at_10, 4),
        "cover@300w": round(summary.coverage, 4),
    }
    if as_json:
        counts = asdict(summary, filter=include("questions", "nothing_found"))
        echo_json({"mode": results[0].mode, **counts, **figures})
        return
    for name, value in figures.items():
        echo(f"{name:12} {value:.3f}")
    echo(f"{summary.questions} questions, {summary.nothing_found} without a result ({results[0].mode} search)")
