"""`rtfm-cli forget`: a person, a channel or a guild erased."""

from __future__ import annotations

import time
from contextlib import closing

import attrs
import click

from rtfm.clock import now_ms
from rtfm.contracts import open_contracts
from rtfm.events import ChannelKind, DiscordMessage, MessageChange, MessageSource, TimestampMillis, is_id, is_time
from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.archive.erasing import ArchiveErasing, ErasedMessage, ErasureCounts, ErasurePass, Target
from rtfm.names import MESSAGES
from rtfm.settings import Settings
from rtfm.streams.producer import EventProducer
from rtfm_cli import exit_codes
from rtfm_cli.import_ import ProducedEnds, wait_until_ingested
from rtfm_cli.options import counted, echo_json, examples, json_option, kafka_and_registry_settings
from rtfm_cli.printing import echo
from rtfm_cli.progress import Progress
from rtfm_cli.tables import print_table

_PAGE = 200
"""Deletions that are told before it is noted how far they are."""

_WHAT = {
    "messages": "messages, with their words in the statistics",
    "passages": "passages that hold one of them; made again from what is left",
    "vectors": "vectors, in the archive and in Chroma",
    "answers_that_quote": "kept answers that rest on one of them",
    "answers_to_own_questions": "kept answers to questions of theirs",
    "answers_that_name": "kept answers that may give their name",
}


@examples("""
rtfm-cli forget --user 80351110224678912 --dry-run
rtfm-cli forget --user 80351110224678912 --yes
rtfm-cli forget --user 80351110224678912 --guild 1163874448331508
rtfm-cli forget --channel 1163874448331511
""")
@click.command("forget")
@click.option("--user", metavar="ID", help="A person: what they said and asked, in all guilds or that of --guild.")
@click.option("--channel", metavar="ID", help="A channel, with its threads and posts.")
@click.option("--guild", metavar="ID", help="A guild; with --user, that person there only.")
@click.option("--dry-run", is_flag=True, help="Show what would go; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--rate", default=500, show_default=True, type=click.IntRange(1), help="Deletions told to Kafka a second."
)
@click.option("--no-wait", is_flag=True, help="Do not wait until the processor has removed everything.")
@kafka_and_registry_settings
@json_option
def forget(
    user: str | None,
    channel: str | None,
    guild: str | None,
    dry_run: bool,
    yes: bool,
    rate: int,
    no_wait: bool,
    settings: Settings,
    as_json: bool,
) -> int:
    """Erase what a person said and asked, or all of a channel or guild, up to now.

    From the first moment on nothing of it is found, shown or taken again. Then one DELETED event is produced for each
    message that is known, so that the processor and every other reader of discord-messages removes it. A command that
    was interrupted goes on when it is run again. What stays in Kafka and in backups for how long: docs/privacy.md.
    Exit code 1: no processor has removed the messages yet.
    """
    target = _target(user, channel, guild)
    with closing(SqlArchive(settings.database_url)) as archive:
        reach = archive.erasing.count(target)
        named = {"scope": target.scope, "id": target.id, "guild_id": target.guild_id or None}
        if not as_json:
            _print(target, reach)
        if dry_run:
            if as_json:
                echo_json({"dry_run": True, **named, "reach": attrs.asdict(reach)})
            return exit_codes.DONE
        if not yes:
            if as_json:
                raise click.UsageError("--json asks nobody: add --yes, or --dry-run.")
            click.confirm("Erase this? It cannot be undone", abort=True)
        passes = archive.erasing.begin(target, before=now_ms())
        told, ends = _tell(settings, archive.erasing, target, passes, reach.messages, rate=rate, quiet=as_json)
        ingested = not ends or (not no_wait and wait_until_ingested(settings, ends, quiet=as_json))
        left = archive.erasing.count(target).messages
    if as_json:
        done = {"told": told, "ingested": ingested, "messages_left": left}
        echo_json({"dry_run": False, **named, "reach": attrs.asdict(reach), **done})
    else:
        echo(f"{counted(told, 'deletions')} told, {counted(left, 'messages')} left to remove.")
    return exit_codes.CHECK_FAILED if left and not no_wait else exit_codes.DONE


def _target(user: str | None, channel: str | None, guild: str | None) -> Target:
    given = [name for name in (user, channel, guild) if name is not None]
    if not given or (channel is not None and len(given) > 1):
        raise click.UsageError("Say one of --user, --channel and --guild; --guild may stand beside --user.")
    if not all(is_id(name) for name in given):
        raise click.UsageError("An id holds letters, digits and . _ : @ - only, 128 at most.")
    if user is not None:
        return Target(scope="user", id=user, guild_id=guild or "")
    return Target(scope="channel", id=channel) if channel is not None else Target(scope="guild", id=given[0])


def _tell(
    settings: Settings,
    erasing: ArchiveErasing,
    target: Target,
    passes: list[ErasurePass],
    total: int,
    *,
    rate: int,
    quiet: bool,
) -> tuple[int, dict[int, int]]:
    """Produce the deletions, no more than ``rate`` a second, and note how far it is.

    Gives how many there were, and partition → offset after the last one. Raises Unavailable when Kafka does not take
    one.
    """
    told, produced, contracts = 0, ProducedEnds(), open_contracts(settings)
    with EventProducer(settings, contracts) as producer, Progress("Telling", total, quiet) as progress:
        for part in passes:
            while page := erasing.read_page(target, part, limit=_PAGE):
                began_s = time.monotonic()
                for one in page:
                    producer.send(MESSAGES, _deletion(one), on_delivery=produced.note)
                producer.flush()
                told += len(page)
                part = attrs.evolve(part, after=page[-1].message_id)
                if part.is_resumable:
                    erasing.save_progress(target, part.after)
                progress.advance(len(page))
                time.sleep(max(len(page) / rate - (time.monotonic() - began_s), 0))
    erasing.save_progress(target, None)
    return told, produced.ends


def _deletion(told: ErasedMessage) -> object:
    return DiscordMessage(
        message_id=told.message_id,
        guild_id=told.guild_id or None,
        channel_id=told.channel_id,
        channel_kind=ChannelKind.UNKNOWN,
        # An earlier version stored times that no event may hold.
        created_at=told.created_at if is_time(told.created_at) else TimestampMillis(0),
        change=MessageChange.DELETED,
        observed_at=now_ms(),
        source=MessageSource.OTHER,
    )


def _print(target: Target, reach: ErasureCounts) -> None:
    where = f" in guild {target.guild_id}" if target.guild_id else ""
    rows = [(count, _WHAT[name]) for name, count in attrs.asdict(reach).items()]
    print_table(["count", f"of {target.scope} {target.id}{where}"], rows)
