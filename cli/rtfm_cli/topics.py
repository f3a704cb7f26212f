"""`rtfm-cli topics`: creates, lists and checks the Kafka topics of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable

import click
from attrs import asdict
from attrs.filters import include

from rtfm.contracts import catalogue
from rtfm.settings import Settings
from rtfm.streams.topics import Step, TopicAdmin
from rtfm_cli import exit_codes
from rtfm_cli.options import echo_json, examples, format_records, json_option, kafka_settings
from rtfm_cli.printing import echo
from rtfm_cli.tables import print_table


@click.group()
def topics() -> None:
    """Create, list and check the Kafka topics of the catalogue, contracts.toml."""


@examples("""
rtfm-cli topics init --dry-run
rtfm-cli topics init
rtfm-cli topics init --bootstrap-servers kafka:9092 --json
""")
@topics.command()
@kafka_settings
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@json_option
def init(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Create missing topics and change wrong ones.

    A topic is wrong if it differs from the catalogue. Adds partitions, but never removes any. A second run changes
    nothing.
    """
    admin = TopicAdmin(settings, catalogue.load(settings.schemas_dir))
    plan = admin.plan()
    planned = sum(step.action != "none" for step in plan)
    changes = planned if dry_run else admin.apply(plan)
    if as_json:
        echo_json({"changes": changes, "items": _to_items(plan)})
        return
    for step in plan:
        echo(f"{step.topic}: {step.detail if step.action == 'none' else f'{step.action} ({step.detail})'}")
    echo(f"{changes} changes" + (" (dry run)" if dry_run and changes else ""))


@examples("""
rtfm-cli topics list
rtfm-cli topics list --json
""")
@topics.command("list")
@kafka_settings
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """List the topics with records and lag.

    Lag is the number of offsets between a consumer group's position and the end of the log.
    """
    admin = TopicAdmin(settings, catalogue.load(settings.schemas_dir))
    states = admin.states()
    counts = {state.topic: admin.count_records(state) for state in states}
    if as_json:
        echo_json({"topics": [{**asdict(state), "records": counts[state.topic]} for state in states]})
        return
    if not states:
        echo("There are no topics yet; `rtfm-cli topics init` creates them.")
        return
    rows = []
    for state in states:
        lag = ", ".join(f"{group}: {behind}" for group, behind in state.lag.items())
        hours = int(state.config.get("retention.ms") or 0) // 3_600_000
        records = format_records(counts[state.topic], state.offsets)
        rows.append((state.topic, state.partitions, records, f"{hours} h", lag))
    print_table(["topic", "partitions", "records", "retention", "lag"], rows)


@examples("""
rtfm-cli topics check
rtfm-cli topics check --bootstrap-servers kafka:9092 --json
""")
@topics.command()
@kafka_settings
@json_option
def check(settings: Settings, as_json: bool) -> int:
    """Compare the topics with the catalogue and change nothing.

    Exits with 1 if a topic is missing or differs from the catalogue.
    """
    wrong = [
        step for step in TopicAdmin(settings, catalogue.load(settings.schemas_dir)).plan() if step.action != "none"
    ]
    if as_json:
        echo_json({"ok": not wrong, "items": _to_items(wrong)})
    else:
        for step in wrong:
            echo(f"{step.topic}: needs {step.action} ({step.detail})")
        echo(f"{len(wrong)} topics need `rtfm-cli topics init`" if wrong else "All topics are up to date.")
    return exit_codes.CHECK_FAILED if wrong else exit_codes.DONE


def _to_items(steps: Iterable[Step]) -> list[dict[str, str]]:
    return [asdict(step, filter=include("topic", "action", "detail")) for step in steps]
