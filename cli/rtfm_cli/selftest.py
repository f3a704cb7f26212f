"""`rtfm-cli selftest`: tests a running system by sending a message and a question through it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import click

from rtfm.addresses import redact_address
from rtfm.clock import now_ms
from rtfm.contracts import catalogue, open_contracts
from rtfm.errors import ConfigError, PermanentError
from rtfm.events import (
    Audience,
    BotQuery,
    ChannelKind,
    DiscordMessage,
    MessageChange,
    MessageSource,
    QueryOrigin,
    TimestampMillis,
)
from rtfm.names import MESSAGES, QUERIES, RESPONSES
from rtfm.redaction import redact
from rtfm.settings import Settings
from rtfm.streams.dead_letters.store import DeadLetterStore, LetterFilter
from rtfm.streams.progress import GroupProgress
from rtfm.streams.topics import TopicAdmin
from rtfm_cli import exit_codes
from rtfm_cli.options import echo_json, examples, json_option, kafka_and_registry_settings
from rtfm_cli.round_trip import round_trip
from rtfm_cli.tables import print_table, styled

TESTS = ("connection", "topics", "schemas", "messages", "queries", "dead-letters")
_ANSWER_TIMEOUT_S = 15.0


class SkippedTest(Exception):
    """A test cannot run. The text says why, and what to do."""


@examples("""
rtfm-cli selftest
rtfm-cli selftest --bootstrap-servers localhost:29092 --test all
rtfm-cli selftest --test queries --json
""")
@click.command()
@click.option(
    "--test", "which", type=click.Choice(["all", *TESTS]), default="all", show_default=True, help="Test to run."
)
@kafka_and_registry_settings
@json_option
def selftest(which: str, settings: Settings, as_json: bool) -> int:
    """Send a message and a question through the running system, and check what comes back.

    Also checks the topics and the contracts, and counts dead letters. The message is not archived; the answer to the
    question is stored. Exits with 1 if a test fails, with 3 if Kafka or the registry does not answer.
    """
    checks: dict[str, Callable[[Settings], str]] = {
        "connection": _test_connection,
        "topics": _test_topics,
        "schemas": _test_schemas,
        "messages": _test_messages,
        "queries": _test_queries,
        "dead-letters": _test_dead_letters,
    }
    results = []
    for name in TESTS if which == "all" else (which,):
        started = time.monotonic()
        try:
            state, detail = "ok", checks[name](settings)
        except SkippedTest as exc:
            state, detail = "skipped", str(exc)
        except (ConfigError, PermanentError) as exc:
            state, detail = "failed", redact(f"{exc}" + (f" ({exc.hint})" if exc.hint else ""))
        results.append(
            {"test": name, "result": state, "detail": detail, "ms": round(1000 * (time.monotonic() - started))}
        )
    _print_results(results, as_json)
    failed = any(result["result"] == "failed" for result in results)
    return exit_codes.CHECK_FAILED if failed else exit_codes.DONE


def _test_connection(settings: Settings) -> str:
    TopicAdmin(settings, catalogue.load(settings.schemas_dir)).plan()
    return f"Kafka answers at {settings.kafka_bootstrap_servers}"


def _test_topics(settings: Settings) -> str:
    plan = TopicAdmin(settings, catalogue.load(settings.schemas_dir)).plan()
    wrong = [step.topic for step in plan if step.action != "none"]
    if wrong:
        raise ConfigError(
            ", ".join(wrong) + " missing, or different from the catalogue", hint="run `rtfm-cli topics init`"
        )
    return f"{len({step.topic for step in plan})} topics are up to date"


def _test_schemas(settings: Settings) -> str:
    contracts = open_contracts(settings)
    ids = [
        contracts.registry.id_for(topic.name, topic.schema)
        for topic in contracts.catalogue.topics_with_schema()
        if topic.schema is not None
    ]
    return f"{len(ids)} contracts are registered at {redact_address(settings.schema_registry_url)}"


def _test_messages(settings: Settings) -> str:
    now = now_ms()
    # Ingest ignores a message whose change is UNKNOWN, so this message is not archived.
    message = DiscordMessage(
        message_id="0",
        channel_id=f"selftest-{uuid.uuid4()}",
        channel_kind=ChannelKind.UNKNOWN,
        created_at=now,
        change=MessageChange.UNKNOWN,
        observed_at=now,
        source=MessageSource.OTHER,
    )
    back = round_trip(settings, MESSAGES, message, MESSAGES, lambda event: event == message, _ANSWER_TIMEOUT_S)
    if back is None:
        raise ConfigError(f"an acknowledged message could not be read back within {_ANSWER_TIMEOUT_S:.0f} s")
    return "a message was produced to discord-messages and read back unchanged"


def _test_queries(settings: Settings) -> str:
    if GroupProgress(settings, catalogue.load(settings.schemas_dir).group(QUERIES)).count_members() == 0:
        raise SkippedTest("no processor is running; start one with `rtfm-cli run processor`")
    now = now_ms()
    query = BotQuery(
        query_id=f"c{uuid.uuid4()}",
        channel_id="0",
        asker_id="0",
        question="selftest",
        asked_at=now,
        expires_at=TimestampMillis(now + int(_ANSWER_TIMEOUT_S * 1000)),
        audience=Audience.ASKER,
        visible_channel_ids=[],
        origin=QueryOrigin.CONSOLE,
    )
    answer = round_trip(
        settings, QUERIES, query, RESPONSES, lambda response: response.query_id == query.query_id, _ANSWER_TIMEOUT_S
    )
    if answer is None:
        raise ConfigError(
            f"a question was not answered within {_ANSWER_TIMEOUT_S:.0f} s", hint="read the processor's log"
        )
    return f"a question was answered with {answer[0].outcome.value}"


def _test_dead_letters(settings: Settings) -> str:
    with DeadLetterStore(settings) as store:
        count = sum(1 for _ in store.find(LetterFilter()))
    return f"{count} dead letters" + ("; see `rtfm-cli dlq list`" if count else "")


def _print_results(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        echo_json({"ok": all(result["result"] != "failed" for result in results), "tests": results})
        return
    colours = {"ok": "green", "failed": "red", "skipped": "yellow"}
    print_table(
        ["test", "result", "detail", "ms"],
        [(r["test"], styled(r["result"], colours[r["result"]]), r["detail"], r["ms"]) for r in results],
    )
