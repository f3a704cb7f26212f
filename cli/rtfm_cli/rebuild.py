"""`rtfm-cli rebuild`: the vectors made again from the archive, in a new collection."""

from __future__ import annotations

import click
from attrs import asdict
from attrs.filters import exclude

from rtfm.errors import ConfigError
from rtfm.knowledge import rebuilding
from rtfm.knowledge.rebuilding import RebuildPlan
from rtfm_cli.knowledge import opened_knowledge
from rtfm_cli.options import counted, echo_json, examples, json_option
from rtfm_cli.printing import echo
from rtfm_cli.progress import Progress

_WILL = {
    "nothing": "nothing to do",
    "clean": "remove what an earlier rebuild left in Chroma",
    "copy": "copy the archive's vectors to a new collection",
    "embed": "make all vectors anew",
    "link": "make all conversations and vectors anew",
}


@examples("""
rtfm-cli rebuild --dry-run
rtfm-cli rebuild
rtfm-cli rebuild --guild 1163874448331508 --force
""")
@click.command("rebuild")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and why; write nothing.")
@click.option("--force", is_flag=True, help="Make anew even what is right.")
@click.option("--guild", "only", metavar="ID", help="Rebuild this guild only.")
@json_option
def rebuild(dry_run: bool, force: bool, only: str | None, as_json: bool) -> None:
    """Make the vectors again from the archive: in a new collection, which then takes the place of the old one.

    Where Chroma was lost or damaged, from the vectors that the archive keeps, without embedding. Where the embedding
    model is another one, or there was none when the texts came, or a new version splits conversations otherwise, all is
    made anew. Search and ingest go on meanwhile; a rebuild that is interrupted leaves everything as it was.
    """
    with opened_knowledge() as knowledge:
        guilds = [*knowledge.archive.guilds(), *([""] if knowledge.archive.channels(None) else [])]
        if only is not None and only not in guilds:
            raise ConfigError(f"guild {only} is not in the archive", hint="`rtfm-cli rebuild --dry-run` lists them.")
        plans = [
            rebuilding.plan(knowledge, guild_id, force=force) for guild_id in guilds if only is None or guild_id == only
        ]
        for plan in plans:
            if not as_json:
                echo(_line(plan, dry_run=dry_run))
            if not dry_run:
                with Progress("Indexing", plan.messages, as_json or plan.work in ("nothing", "clean")) as progress:
                    rebuilding.rebuild(knowledge, plan, progress=progress.reach)
    changes = sum(plan.changes for plan in plans)
    if as_json:
        echo_json({"changes": changes, "items": [asdict(plan, filter=exclude("collection")) for plan in plans]})
    else:
        echo(f"{changes} changes")
        if not dry_run and any(plan.work == "embed" for plan in plans):
            echo("Processors load the model at their start: restart those that began without this one.", err=True)


def _line(plan: RebuildPlan, *, dry_run: bool) -> str:
    name = f"guild {plan.guild_id}" if plan.guild_id else "direct messages"
    counts = ", ".join(
        counted(count, what)
        for count, what in ((plan.messages, "messages"), (plan.passages, "passages"), (plan.entries, "vectors"))
    )
    if plan.work == "nothing":
        return f"{name}: nothing to do ({counts})"
    return f"{name}: {plan.why}; {'would ' if dry_run else ''}{_WILL[plan.work]} ({counts})"
