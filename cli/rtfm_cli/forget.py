"""`rtfm-cli forget`: erases a person, a channel or a guild."""

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
from rtfm_cli.options import echo_json, examples, json_option, kafka_and_registry_settings, pluralize
from rtfm_cli.printing import echo
from rtfm_cli.progress import Progress
from rtfm_cli.tables import print_table

_PAGE = 200
"""The progress is saved in the archive after this many deletions."""

_REACH_LABELS = {
    "messages": "messages, and their words in the statistics of search",
    "passages": "passages that contain these messages; each is formed again without the messages",
    "vectors": "vectors of these passages, in the archive and in Chroma",
    "answers_that_quote": "stored answers that use one of these messages",
    "answers_to_own_questions": "stored answers to questions of this person, or asked in this channel or guild",
    "answers_that_name": "stored answers that may name this person",
}


@examples("""
rtfm-cli forget --user 80351110224678912 --dry-run
rtfm-cli forget --user 80351110224678912 --yes
rtfm-cli forget --user 80351110224678912 --guild 1163874448331508
rtfm-cli forget --channel 1163874448331511
""")
@click.command("forget")
@click.option("--user", metavar="ID", help="Erase a person's messages and questions, in all guilds or only in --guild.")
@click.option("--channel", metavar="ID", help="Erase a channel, with its threads and posts.")
@click.option("--guild", metavar="ID", help="Erase a guild; with --user, erase the person in this guild only.")
@click.option("--dry-run", is_flag=True, help="Show what would be erased and change nothing.")
@click.option("--yes", is_flag=True, help="Erase without asking for confirmation.")
@click.option(
    "--rate", default=500, show_default=True, type=click.IntRange(1), help="Deletions produced per second, on average."
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
    """Erase the messages and questions of a person, a channel or a guild, up to now.

    From the moment of the confirmation, search does not find what is erased, answers do not use it, and ingest does not
    archive it again. Then the command produces one DELETED event for each archived message, so that the processor and
    every other reader of discord-messages removes the message. If the command is interrupted, run it again to continue.
    docs/privacy.md says how long copies stay in Kafka and in backups. Exits with 1 if the processor has not removed all
    of these messages yet. With --no-wait, the command does not wait for the processor and exits with 0.
    """
    target = _parse_target(user, channel, guild)
    with closing(SqlArchive(settings.database_url)) as archive:
        reach = archive.erasing.count(target)
        named = {"scope": target.scope, "id": target.id, "guild_id": target.guild_id or None}
        if not as_json:
            _print_reach(target, reach)
        if dry_run:
            if as_json:
                echo_json({"dry_run": True, **named, "reach": attrs.asdict(reach)})
            return exit_codes.DONE
        if not yes:
            if as_json:
                raise click.UsageError("--json cannot ask for confirmation: add --yes or --dry-run.")
            click.confirm("Erase this? It cannot be undone", abort=True)
        before = now_ms()
        passes = archive.erasing.begin(target, before=before)
        told, ends = _produce_deletions(
            settings, archive.erasing, target, passes, reach.messages, rate=rate, quiet=as_json
        )
        ingested = not ends or (not no_wait and wait_until_ingested(settings, ends, quiet=as_json))
        left = archive.erasing.count_left(target, before=before)
    if as_json:
        done = {"told": told, "ingested": ingested, "messages_left": left}
        echo_json({"dry_run": False, **named, "reach": attrs.asdict(reach), **done})
    else:
        echo(f"{pluralize(told, 'deletions')} produced, {pluralize(left, 'messages')} left to remove.")
    return exit_codes.CHECK_FAILED if left and not no_wait else exit_codes.DONE


def _parse_target(user: str | None, channel: str | None, guild: str | None) -> Target:
    given = [name for name in (user, channel, guild) if name is not None]
    if not given or (channel is not None and len(given) > 1):
        raise click.UsageError(
            "Name what to erase: --user, --channel or --guild. Only --user and --guild can be combined."
        )
    if not all(is_id(name) for name in given):
        raise click.UsageError("An id has 1 to 128 characters: only letters, digits and the signs ._:@-")
    if user is not None:
        return Target(scope="user", id=user, guild_id=guild or "")
    return Target(scope="channel", id=channel) if channel is not None else Target(scope="guild", id=given[0])


def _produce_deletions(
    settings: Settings,
    erasing: ArchiveErasing,
    target: Target,
    passes: list[ErasurePass],
    total: int,
    *,
    rate: int,
    quiet: bool,
) -> tuple[int, dict[int, int]]:
    """Produce the deletions, on average ``rate`` per second, and save the progress in the archive.

    Returns the number of deletions, and for each partition the offset after its last deletion. Raises Unavailable if
    Kafka does not accept a deletion.
    """
    told, produced, contracts = 0, ProducedEnds(), open_contracts(settings)
    with EventProducer(settings, contracts) as producer, Progress("Producing", total, quiet) as progress:
        for part in passes:
            while page := erasing.read_page(target, part, limit=_PAGE):
                began_s = time.monotonic()
                for message in page:
                    producer.send(MESSAGES, _build_deletion(message), on_delivery=produced.record_delivery)
                producer.flush()
                told += len(page)
                part = attrs.evolve(part, after=page[-1].message_id)
                if part.is_resumable:
                    erasing.save_progress(target, part.after)
                progress.advance(len(page))
                time.sleep(max(len(page) / rate - (time.monotonic() - began_s), 0))
    erasing.save_progress(target, None)
    return told, produced.ends


def _build_deletion(message: ErasedMessage) -> object:
    return DiscordMessage(
        message_id=message.message_id,
        guild_id=message.guild_id or None,
        channel_id=message.channel_id,
        channel_kind=ChannelKind.UNKNOWN,
        # The archive accepts times that an event must not have; 0 replaces such a time.
        created_at=message.created_at if is_time(message.created_at) else TimestampMillis(0),
        change=MessageChange.DELETED,
        observed_at=now_ms(),
        source=MessageSource.OTHER,
    )


def _print_reach(target: Target, reach: ErasureCounts) -> None:
    where = f" in guild {target.guild_id}" if target.guild_id else ""
    rows = [(count, _REACH_LABELS[name]) for name, count in attrs.asdict(reach).items()]
    print_table(["count", f"of {target.scope} {target.id}{where}"], rows)
