"""`rtfm-cli rebuild`: Chroma's vectors made again from the archive."""

from __future__ import annotations

import click

from cli.options import echo_json, examples, json_option, load_settings


@examples("""
Examples:
  rtfm-cli rebuild --dry-run
  rtfm-cli rebuild
""")
@click.command("rebuild")
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@json_option
def rebuild(dry_run: bool, as_json: bool) -> None:
    """Make all vectors in Chroma again from those that the archive keeps, without embedding.

    For a lost or damaged Chroma. Search goes on meanwhile, and what is right already stays. The relevance floors are
    calibrated anew.
    """
    import attrs

    from rtfm.knowledge import open_knowledge
    from rtfm.knowledge.floor import calibrate
    from rtfm.knowledge.rebuilding import rebuild as rebuild_guild

    knowledge = open_knowledge(load_settings())
    results = []
    try:
        guilds = [*knowledge.archive.guilds(), *([""] if knowledge.archive.channels(None) else [])]
        for guild_id in guilds:
            done = rebuild_guild(knowledge.archive, knowledge.vectors, guild_id, dry_run=dry_run)
            results.append(done)
            if not as_json:
                name = f"guild {guild_id}" if guild_id else "direct messages"
                click.echo(
                    f"{name}: {done.entries} vectors, {done.missing} missing, {done.superfluous} to be removed"
                    if dry_run
                    else f"{name}: {done.entries} vectors written, {done.missing} had been missing, "
                    f"{done.superfluous} removed"
                )
        if not dry_run:
            calibrate(knowledge.archive, knowledge.retriever, guilds, anew=True)
    finally:
        knowledge.close()
    changes = sum(done.missing + done.superfluous for done in results)
    if as_json:
        echo_json({"changes": changes, "items": [attrs.asdict(done) for done in results]})
    else:
        click.echo(f"{changes} changes")
