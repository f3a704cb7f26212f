"""`rtfm-cli dlq`: the commands that list, count, replay and discard dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from rtfm.clock import now_ms
from rtfm.contracts import open_contracts
from rtfm.errors import ConfigError, Unavailable
from rtfm.settings import Settings
from rtfm.streams.dead_letters.letters import OPEN
from rtfm.streams.dead_letters.replays import ReplayRules, describe_mark
from rtfm.streams.dead_letters.store import DeadLetterStore, Decision, FiledLetter, LetterFilter
from rtfm_cli import exit_codes
from rtfm_cli.dlq.rows import format_time, to_row
from rtfm_cli.dlq.selection import build_change_filter, build_filter, filter_options, has_filter
from rtfm_cli.dlq.show import show
from rtfm_cli.options import echo_json, examples, json_option, kafka_and_registry_settings, kafka_settings
from rtfm_cli.printing import echo
from rtfm_cli.tables import print_table

if TYPE_CHECKING:
    from rtfm.knowledge.archive import Erasures

Refusal = Callable[[FiledLetter], str | None]
"""A function that returns why a dead letter is refused, or None."""

_AGES_H = (1, 6, 24, 72)


@click.group()
def dlq() -> None:
    """List, count, show, replay and discard dead letters.

    A dead letter is a record that could not be handled, kept byte for byte in the topic dead-letters. Its ID is its
    PARTITION-OFFSET in this topic, for example 0-17; the ID never changes. docs/dead-letters.md explains more.
    """


dlq.add_command(show)


@examples("""
rtfm-cli dlq list
rtfm-cli dlq list --topic bot-queries --since 2h --json
rtfm-cli dlq list --error-class UnknownSchema --state all
""")
@dlq.command("list")
@filter_options
@click.option("--id", "ids", multiple=True, metavar="ID", help="Only the dead letter with this ID; may be repeated.")
@click.option(
    "--state",
    type=click.Choice(["open", "replayed", "discarded", "all"]),
    default="open",
    show_default=True,
    help="Only dead letters in this state.",
)
@kafka_settings
@json_option
def list_(ids: tuple[str, ...], state: str, settings: Settings, as_json: bool, **given: Any) -> None:
    """List dead letters, oldest first."""
    with DeadLetterStore(settings) as store:
        rows = [to_row(found) for found in store.find(build_filter(given, ids, state=state))]
    rows.sort(key=lambda row: (row["dead_since_ms"], row["id"]))
    if as_json:
        echo_json({"dead_letters": rows})
        return
    if not rows:
        echo("There are no dead letters." if not (has_filter(given) or ids) else "No dead letters match.")
        return
    for row in rows:
        row |= {"since": format_time(row["dead_since_ms"]), "from": f"{row['partition']}-{row['offset']}"}
        row["error"] = row["error_class"]
    columns = ["id", "since", "topic", "from", "key", "error", "attempt", "message"]
    print_table(columns, [[row[column] for column in columns] for row in rows])


@examples("""
rtfm-cli dlq stats
rtfm-cli dlq stats --json
""")
@dlq.command()
@kafka_settings
@json_option
def stats(settings: Settings, as_json: bool) -> None:
    """Count dead letters.

    Counts all of them by state, and the open ones by topic, error, stage and age.
    """
    now = now_ms()
    states: Counter[str] = Counter({"open": 0, "replayed": 0, "discarded": 0})
    by: dict[str, Counter[str]] = {name: Counter() for name in ("topic", "error_class", "stage", "age")}
    oldest_ms: int | None = None
    with DeadLetterStore(settings) as store:
        for found in store.find(build_filter({}, (), state="all")):
            states[found.state.lower()] += 1
            letter = found.letter
            if found.state != "OPEN":
                continue
            by["topic"][letter.topic] += 1
            by["error_class"][letter.error_class] += 1
            by["stage"][letter.stage] += 1
            by["age"][_age(now - letter.timestamp_ms)] += 1
            oldest_ms = min(letter.timestamp_ms, oldest_ms or letter.timestamp_ms)
    if as_json:
        counts = {f"by_{name}": dict(counter.most_common()) for name, counter in by.items()}
        echo_json({**states, **counts, "oldest_ms": oldest_ms})
        return
    echo(", ".join(f"{count} {state}" for state, count in states.items()))
    if oldest_ms is None:
        return
    echo(f"The oldest open dead letter is from {format_time(oldest_ms)} UTC.")
    print_table(
        ["open, by", "", "count"],
        [
            (name.replace("_", " "), value or "(none)", count)
            for name, counter in by.items()
            for value, count in counter.most_common()
        ],
    )


@examples("""
rtfm-cli dlq replay 0-17 2-4               # shows what would be replayed
rtfm-cli dlq replay --all --yes
rtfm-cli dlq replay --error-class UnknownSchema --since 2h --yes
""")
@dlq.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filter_options
@click.option("--all", "all_", is_flag=True, help="All open dead letters.")
@click.option("--force", is_flag=True, help="Also replay dead letters that are refused by default.")
@click.option("--yes", is_flag=True, help="Replay; without --yes only show what would be replayed.")
@kafka_and_registry_settings
@json_option
def replay(
    ids: tuple[str, ...],
    all_: bool,
    force: bool,
    yes: bool,
    settings: Settings,
    as_json: bool,
    **given: Any,
) -> int:
    """Produce the original records again.

    Each record goes back to its topic and partition. Replay dead letters once their cause is fixed.

    Refuses dead letters that still cannot be decoded, were replayed or discarded before, failed more than three times,
    or crashed the processor; --force replays these, too. Even with --force, refuses dead letters that were erased with
    `rtfm-cli forget` or written by another program. Each dead letter is marked as replayed in the transaction of its
    replay. Exits with 1 if an ID that you named was refused.
    """
    selected = build_change_filter(given, ids, all_)
    rules = ReplayRules(contracts=open_contracts(settings), force=force, is_erased=_build_erasure_check(settings))
    with DeadLetterStore(settings) as store:
        return _decide(store, store.replay, selected, rules, "replay", ids, yes=yes, as_json=as_json)


@examples("""
rtfm-cli dlq discard 0-17 --yes
rtfm-cli dlq discard --error-class UndecodableRecord --until 1d --yes
""")
@dlq.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filter_options
@click.option("--all", "all_", is_flag=True, help="All open dead letters.")
@click.option("--yes", is_flag=True, help="Discard; without --yes only show what would be discarded.")
@kafka_settings
@json_option
def discard(ids: tuple[str, ...], all_: bool, yes: bool, settings: Settings, as_json: bool, **given: Any) -> int:
    """Mark dead letters as not wanted.

    `dlq list` no longer shows them. Their bytes stay in Kafka until retention removes them.
    """

    def refusal(found: FiledLetter) -> str | None:
        return None if found.state == OPEN else describe_mark(found)

    selected = build_change_filter(given, ids, all_)
    with DeadLetterStore(settings) as store:
        return _decide(store, store.discard, selected, refusal, "discard", ids, yes=yes, as_json=as_json)


def _read_erasures(settings: Settings) -> Erasures:
    """Return the erasures that the archive lists, or none if there is no archive yet.

    Raises Unavailable if PostgreSQL does not answer.
    """
    from rtfm.knowledge.archive import Erasures, SqlArchive  # the base install lacks these packages

    with closing(SqlArchive(settings.database_url)) as archive:
        try:
            return archive.removals.erasures()
        except ConfigError:
            return Erasures(before={})


def _build_erasure_check(settings: Settings) -> Callable[[Any], bool]:
    """Return a function that tells whether an event was erased.

    Without the packages of the archive, the function always returns False.
    """
    try:
        return _read_erasures(settings).covers_event
    except ModuleNotFoundError:
        text = "Not checked: what was erased, because rtfm-events[processor] is missing. Ingest drops erased messages."
        echo(text, err=True)
        return lambda _: False


def _check_ids_exist(store: DeadLetterStore, ids: Collection[str]) -> None:
    """Raise ConfigError if there is no dead letter with one of ``ids``."""
    missing = set(ids) - {found.letter.id for found in store.find(build_filter({}, ids, state="all"))} if ids else ()
    if missing:
        raise ConfigError(
            f"there is no dead letter {', '.join(sorted(missing))}", hint="`rtfm-cli dlq list` shows the IDs"
        )


def _decide(
    store: DeadLetterStore,
    change: Callable[[LetterFilter, Refusal], Iterable[Decision]],
    selected: LetterFilter,
    refusal: Refusal,
    verb: str,
    ids: Collection[str],
    *,
    yes: bool,
    as_json: bool,
) -> int:
    """Change the selected dead letters; without ``yes`` only print what would change. Return the exit code."""
    _check_ids_exist(store, ids)
    if yes:
        decisions = change(selected, refusal)
    else:
        decisions = (Decision(found=found, refusal=refusal(found)) for found in store.find(selected))
    return _print_decisions(decisions, verb, ids, yes=yes, as_json=as_json)


def _print_decisions(
    decisions: Iterable[Decision], verb: str, ids: Collection[str], *, yes: bool, as_json: bool
) -> int:
    """Print what is done or would be done. Return the exit code: 1 if ``ids`` were named and one was refused."""
    done, items = {"replay": "replayed", "discard": "discarded"}[verb], []
    broken: Unavailable | None = None
    try:
        for decision in decisions:
            letter, refused = decision.found.letter, decision.refusal is not None
            action = "refused" if refused else done if yes else verb
            items.append({"id": letter.id, "topic": letter.topic, "action": action, "reason": decision.refusal})
            if yes and not as_json and len(items) % 1000 == 0:
                echo(f"{len(items)} dead letters", err=True)
    except Unavailable as exc:  # raised again after the report on the dead letters that were already changed
        broken = exc
    refusals = sum(item["action"] == "refused" for item in items)
    if as_json:
        echo_json({"dry_run": not yes, done: (len(items) - refusals) * yes, "refused": refusals, "items": items})
    elif items:
        print_table(["id", "topic", "", "why not"], [[cell or "" for cell in item.values()] for item in items])
    if not as_json:
        last = f"{len(items) - refusals} {'' if yes else 'would be '}{done}, {refusals} refused."
        echo(last if yes else f"{last} Nothing was changed: add --yes.")
    if broken is not None:
        raise broken
    return exit_codes.CHECK_FAILED if ids and refusals else exit_codes.DONE


def _age(age_ms: int) -> str:
    hours = age_ms / 3_600_000
    return next((f"under {limit} h" for limit in _AGES_H if hours < limit), f"{_AGES_H[-1]} h and more")
