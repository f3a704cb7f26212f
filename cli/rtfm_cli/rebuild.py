"""`rtfm-cli rebuild`: restores the vectors from the archive or computes them again, in a new collection."""

from __future__ import annotations

import click
from attrs import asdict
from attrs.filters import exclude

from rtfm.errors import ConfigError
from rtfm.knowledge import rebuilding
from rtfm.knowledge.rebuilding import RebuildPlan
from rtfm_cli.knowledge import open_console_knowledge
from rtfm_cli.options import echo_json, examples, json_option, pluralize
from rtfm_cli.printing import echo
from rtfm_cli.progress import Progress

_WORK_DESCRIPTIONS = {
    "nothing": "nothing to do",
    "clean": "remove what an earlier rebuild left in Chroma",
    "copy": "copy the archive's vectors to a new collection",
    "embed": "compute all vectors again",
    "link": "form all conversations again and compute all vectors",
}


@examples("""
rtfm-cli rebuild --dry-run
rtfm-cli rebuild
rtfm-cli rebuild --guild 1163874448331508 --force
""")
@click.command("rebuild")
@click.option("--dry-run", is_flag=True, help="Show what would be done and why; change nothing.")
@click.option("--force", is_flag=True, help="Rebuild guilds that are up to date, too.")
@click.option("--guild", "only", metavar="ID", help="Rebuild this guild only.")
@json_option
def rebuild(dry_run: bool, force: bool, only: str | None, as_json: bool) -> None:
    """Restore the vectors from the archive, or compute them again, in a new collection that replaces the old one.

    If Chroma lost vectors, copies them from the archive. If the embedding model changed or was missing, or if a new
    version forms conversations by other rules, computes all vectors again. Search and ingest continue meanwhile; ingest
    waits only while the new collection replaces the old one. If the command is interrupted, the old collection stays in
    use, and the next rebuild removes the unfinished collection.
    """
    with open_console_knowledge() as knowledge:
        guilds = [*knowledge.archive.guilds(), *([""] if knowledge.archive.channels(None) else [])]
        if only is not None and only not in guilds:
            raise ConfigError(
                f"guild {only} is not in the archive", hint="`rtfm-cli rebuild --dry-run` lists the guilds"
            )
        plans = [
            rebuilding.plan(knowledge, guild_id, force=force) for guild_id in guilds if only is None or guild_id == only
        ]
        for plan in plans:
            if not as_json:
                echo(_format_plan(plan, dry_run=dry_run))
            if not dry_run:
                with Progress("Indexing", plan.messages, as_json or plan.work in ("nothing", "clean")) as progress:
                    rebuilding.rebuild(knowledge, plan, progress=progress.reach)
    changes = sum(plan.changes for plan in plans)
    if as_json:
        echo_json({"changes": changes, "items": [asdict(plan, filter=exclude("collection")) for plan in plans]})
    else:
        echo(f"{changes} changes")
        if not dry_run and any(plan.work == "embed" for plan in plans):
            echo("Restart the processors that started before the embedding model was fetched.", err=True)


def _format_plan(plan: RebuildPlan, *, dry_run: bool) -> str:
    name = f"guild {plan.guild_id}" if plan.guild_id else "direct messages"
    counts = ", ".join(
        pluralize(count, what)
        for count, what in ((plan.messages, "messages"), (plan.passages, "passages"), (plan.entries, "vectors"))
    )
    if plan.work == "nothing":
        return f"{name}: nothing to do ({counts})"
    return f"{name}: {plan.why}; {'would ' if dry_run else ''}{_WORK_DESCRIPTIONS[plan.work]} ({counts})"
