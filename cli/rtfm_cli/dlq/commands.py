"""`rtfm-cli dlq`: dead letters, why they are there, and what becomes of them."""

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
from rtfm.streams.dead_letters.store import DeadLetterStore, Decision, FiledLetter
from rtfm_cli import exit_codes
from rtfm_cli.dlq.rows import day, row_of
from rtfm_cli.dlq.selection import chosen_filter, filter_options, given_any, letter_filter
from rtfm_cli.dlq.show import show
from rtfm_cli.options import echo_json, examples, json_option, kafka_and_registry_settings, kafka_settings
from rtfm_cli.printing import echo
from rtfm_cli.tables import print_table

if TYPE_CHECKING:
    from rtfm.knowledge.archive import Erasures

_AGES_H = (1, 6, 24, 72)


@click.group()
def dlq() -> None:
    """Look into dead letters: records that can never be processed, kept byte for byte. Replay or discard them.

    A dead letter's ID is PARTITION-OFFSET in the topic dead-letters and never changes.
    """


dlq.add_command(show)


@examples("""
rtfm-cli dlq list
rtfm-cli dlq list --topic bot-queries --since 2h --json
rtfm-cli dlq list --error-class UnknownSchema --state all
""")
@dlq.command("list")
@filter_options
@click.option("--id", "ids", multiple=True, metavar="ID", help="This one; may be given again.")
@click.option(
    "--state",
    type=click.Choice(["open", "replayed", "discarded", "all"]),
    default="open",
    show_default=True,
    help="What became of them.",
)
@kafka_settings
@json_option
def list_(ids: tuple[str, ...], state: str, settings: Settings, as_json: bool, **given: Any) -> None:
    """List dead letters, oldest first."""
    with DeadLetterStore(settings) as store:
        rows = [row_of(found) for found in store.find(letter_filter(given, ids, state=state))]
    rows.sort(key=lambda row: (row["dead_since_ms"], row["id"]))
    if as_json:
        echo_json({"dead_letters": rows})
        return
    if not rows:
        echo("There are no dead letters." if not (given_any(given) or ids) else "No dead letters match.")
        return
    for row in rows:
        row |= {"since": day(row["dead_since_ms"]), "from": f"{row['partition']}-{row['offset']}"}
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
    """Count dead letters by topic, error, stage and age; those that are open, and what became of the others."""
    now = now_ms()
    states: Counter[str] = Counter({"open": 0, "replayed": 0, "discarded": 0})
    by: dict[str, Counter[str]] = {name: Counter() for name in ("topic", "error_class", "stage", "age")}
    oldest_ms: int | None = None
    with DeadLetterStore(settings) as store:
        for found in store.find(letter_filter({}, (), state="all")):
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
    echo(f"The oldest open one is of {day(oldest_ms)}.")
    print_table(
        ["open, by", "", "count"],
        [
            (name.replace("_", " "), value or "(none)", count)
            for name, counter in by.items()
            for value, count in counter.most_common()
        ],
    )


@examples("""
rtfm-cli dlq replay 0-17 2-4               shows what would happen
rtfm-cli dlq replay --all --yes
rtfm-cli dlq replay --error-class UnknownSchema --since 2h --yes
""")
@dlq.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filter_options
@click.option("--all", "all_", is_flag=True, help="Every open one.")
@click.option("--force", is_flag=True, help="Also what the rules below refuse.")
@click.option("--yes", is_flag=True, help="Do it; without this it only says what it would do.")
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
    """Produce dead letters again, to the topic and partition that they came from, once their cause is gone.

    Refused are letters whose cause still holds, as far as can be told, that were replayed before, or that failed more
    than three times; and, even with --force, what was erased since with `rtfm-cli forget`. A replay and the mark that
    it happened commit together. Exit code 1: an ID was refused.
    """
    wanted = chosen_filter(given, ids, all_)
    rules = ReplayRules(contracts=open_contracts(settings), force=force, is_erased=_is_erased(settings))
    with DeadLetterStore(settings) as store:
        _require(store, ids)
        if yes:
            decisions: Iterable[Decision] = store.replay(wanted, rules)
        else:
            decisions = (Decision(found=found, refusal=rules(found)) for found in store.find(wanted))
        return _report(decisions, "replay", ids, yes=yes, as_json=as_json)


@examples("""
rtfm-cli dlq discard 0-17 --yes
rtfm-cli dlq discard --error-class UndecodableRecord --until 1d --yes
""")
@dlq.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filter_options
@click.option("--all", "all_", is_flag=True, help="Every open one.")
@click.option("--yes", is_flag=True, help="Do it; without this it only says what it would do.")
@kafka_settings
@json_option
def discard(ids: tuple[str, ...], all_: bool, yes: bool, settings: Settings, as_json: bool, **given: Any) -> int:
    """Mark dead letters as not wanted any more. They are not listed, and stay until retention takes them."""

    def refusal(found: FiledLetter) -> str | None:
        return None if found.state == OPEN else describe_mark(found)

    wanted = chosen_filter(given, ids, all_)
    with DeadLetterStore(settings) as store:
        _require(store, ids)
        if yes:
            decisions: Iterable[Decision] = store.discard(wanted, refusal)
        else:
            decisions = (Decision(found=found, refusal=refusal(found)) for found in store.find(wanted))
        return _report(decisions, "discard", ids, yes=yes, as_json=as_json)


def _erasures(settings: Settings) -> Erasures:
    """What must not come back; nothing where no archive was made yet. Raises Unavailable without PostgreSQL."""
    from rtfm.knowledge.archive import Erasures, SqlArchive  # not in the base install

    with closing(SqlArchive(settings.database_url)) as archive:
        try:
            return archive.removals.erasures()
        except ConfigError:
            return Erasures(before={})


def _is_erased(settings: Settings) -> Callable[[Any], bool]:
    """Whether an event was erased since. Without the packages that read the archive, ingest alone says so."""
    try:
        return _erasures(settings).covers_event
    except ModuleNotFoundError:
        text = "Erasures are not looked up without rtfm-events[processor]; ingest drops what was erased."
        echo(text, err=True)
        return lambda _: False


def _require(store: DeadLetterStore, ids: Collection[str]) -> None:
    """Raise ConfigError for an id of no letter, before anything is done."""
    missing = set(ids) - {found.letter.id for found in store.find(letter_filter({}, ids, state="all"))} if ids else ()
    if missing:
        raise ConfigError(
            f"there is no dead letter {', '.join(sorted(missing))}", hint="`rtfm-cli dlq list` shows their ids"
        )


def _report(decisions: Iterable[Decision], verb: str, ids: Collection[str], *, yes: bool, as_json: bool) -> int:
    """Print what is or would be done; 1 when something that was named is refused."""
    done, items = {"replay": "replayed", "discard": "discarded"}[verb], []
    broken: Unavailable | None = None
    try:
        for decision in decisions:
            letter, refused = decision.found.letter, decision.refusal is not None
            action = "refused" if refused else done if yes else verb
            items.append({"id": letter.id, "topic": letter.topic, "action": action, "reason": decision.refusal})
            if yes and not as_json and len(items) % 1000 == 0:
                echo(f"{len(items)} letters", err=True)
    except Unavailable as exc:  # what was done before is done, and is said
        broken = exc
    refusals = sum(item["action"] == "refused" for item in items)
    if as_json:
        echo_json({"dry_run": not yes, done: (len(items) - refusals) * yes, "refused": refusals, "items": items})
    elif items:
        print_table(["id", "topic", "", "why not"], [[cell or "" for cell in item.values()] for item in items])
    if not as_json:
        last = f"{len(items) - refusals} {'' if yes else 'would be '}{done}, {refusals} refused."
        echo(last if yes else f"{last} Nothing was done: add --yes.")
    if broken is not None:
        raise broken
    return exit_codes.CHECK_FAILED if ids and refusals else exit_codes.DONE


def _age(age_ms: int) -> str:
    hours = age_ms / 3_600_000
    return next((f"under {limit} h" for limit in _AGES_H if hours < limit), f"{_AGES_H[-1]} h and more")
