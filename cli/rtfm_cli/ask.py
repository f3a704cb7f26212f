"""`rtfm-cli ask`: sends a question through Kafka and prints the answer."""

from __future__ import annotations

import re
import uuid
from contextlib import closing
from typing import Any

import click
from attrs import asdict
from attrs.filters import include
from rich.console import Console

from rtfm.clock import now_ms
from rtfm.contracts import catalogue
from rtfm.discord_ids import jump_link
from rtfm.errors import Unavailable
from rtfm.events import Audience, BotQuery, BotResponse, Citation, QueryOrigin, TimestampMillis, to_datetime
from rtfm.knowledge import console_scope
from rtfm.knowledge.archive import SqlArchive
from rtfm.names import QUERIES, RESPONSES
from rtfm.settings import Settings
from rtfm.streams.progress import GroupProgress
from rtfm_cli import exit_codes
from rtfm_cli.options import echo_json, examples, json_option, kafka_and_registry_settings
from rtfm_cli.round_trip import round_trip
from rtfm_cli.tables import styled

CONSOLE_ID = "0"

_CITATION_KEYS = include("number", "message_id", "channel_id", "excerpt", "score")

_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_ESCAPED = re.compile(r"\\([^A-Za-z0-9\s])")

_OUTCOME_TEXTS = {
    "NOT_FOUND": "No archived message answers this question.",
    "EXPIRED": "The question was not answered in time.",
    "REFUSED": "The question was refused.",
    "FAILED": "Answering failed; the processor's log says why.",
    "UNKNOWN": "This version of RTFM does not know the outcome of the answer.",
}


@examples("""
rtfm-cli ask "how do I mount an NTFS disk?"
rtfm-cli ask --guild 1163874448331508 --timeout 10 --json "how do I mount an NTFS disk?"
""")
@click.command("ask")
@click.argument("question")
@click.option("--guild", metavar="ID", help="Answer from this guild; default: the only guild in the archive.")
@click.option("--channel", "channels", multiple=True, metavar="ID", help="Use this channel only; may be repeated.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the answer.",
)
@kafka_and_registry_settings
@json_option
def ask(
    question: str,
    guild: str | None,
    channels: tuple[str, ...],
    timeout_s: float,
    settings: Settings,
    as_json: bool,
) -> int:
    """Produce QUESTION to bot-queries and print the answer from bot-responses.

    Answers use private threads and direct messages only if --channel names them. Exits with 1 if answering failed, and
    with 3 if no answer came in time.
    """
    if not question.strip():
        raise click.BadParameter("the question is empty", param_hint="QUESTION")
    if question.encode(errors="replace").decode() != question:
        raise click.BadParameter("the question is not UTF-8", param_hint="QUESTION")
    query = _build_query(settings, question, guild, channels)
    response, elapsed_ms = _send_and_wait(settings, query, timeout_s)
    if as_json:
        echo_json(_to_json(response, elapsed_ms))
    else:
        _print_response(response, elapsed_ms)
    return exit_codes.CHECK_FAILED if response.outcome.value in ("FAILED", "UNKNOWN") else exit_codes.DONE


def _build_query(settings: Settings, question: str, guild: str | None, channels: tuple[str, ...]) -> BotQuery:
    with closing(SqlArchive(settings.database_url)) as archive:
        guild_id, visible = console_scope(archive, guild, channels)
    asked_at = now_ms()
    return BotQuery(
        query_id=f"c{uuid.uuid4()}",
        guild_id=guild_id,
        channel_id=visible[0] if visible else CONSOLE_ID,
        asker_id=CONSOLE_ID,
        question=question,
        asked_at=asked_at,
        expires_at=TimestampMillis(asked_at + int(settings.query_expiry_s * 1000)),
        audience=Audience.ASKER,
        visible_channel_ids=visible,
        origin=QueryOrigin.CONSOLE,
    )


def _send_and_wait(settings: Settings, query: BotQuery, timeout_s: float) -> tuple[BotResponse, int]:
    """Return the response to ``query``, and the milliseconds until it came.

    Raises Unavailable if no response comes in time.
    """
    answer = round_trip(
        settings, QUERIES, query, RESPONSES, lambda response: response.query_id == query.query_id, timeout_s
    )
    if answer is None:
        raise Unavailable("processor", f"no answer within {timeout_s:g} s", hint=_find_hint(settings))
    return answer


def _find_hint(settings: Settings) -> str:
    try:
        members = GroupProgress(settings, catalogue.load(settings.schemas_dir).group(QUERIES)).count_members()
    except Unavailable as exc:
        return str(exc)
    if members:
        return "a processor is running; read its log and its /readyz"
    return "no processor is running; start one with `rtfm-cli run processor`"


def _to_json(response: BotResponse, elapsed_ms: int) -> dict[str, Any]:
    return {
        "query_id": response.query_id,
        "outcome": response.outcome.value,
        "answer": response.answer,
        "citations": [
            {**asdict(citation, filter=_CITATION_KEYS), "url": _link_to(citation)} for citation in response.citations
        ],
        "elapsed_ms": elapsed_ms,
    }


def _print_response(response: BotResponse, elapsed_ms: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    answer = unescape_markdown(response.answer) or _OUTCOME_TEXTS.get(response.outcome.value, response.outcome.value)
    console.print(styled(answer, newlines=True))
    if response.citations:
        console.print(styled("\nSources", "bold", newlines=True))
    for citation in response.citations:
        console.print(styled(f"[{citation.number}] {_link_to(citation)}", "cyan"))
        date = f"{to_datetime(citation.created_at):%Y-%m-%d}" if citation.created_at is not None else ""
        excerpt = f"{date} {citation.author_name or citation.title or ''}: {citation.excerpt}".strip()
        console.print(styled(f"    {excerpt}", "dim"))
    by = f" by {response.model}" if response.model else ""
    console.print()
    console.print(styled(f"{response.outcome.value.lower()}{by} in {elapsed_ms} ms", "dim"))


def unescape_markdown(answer: str) -> str:
    """Remove the backslashes that escape Discord's markdown, outside code."""
    parts = _CODE.split(answer)
    parts[::2] = [_ESCAPED.sub(r"\1", part) for part in parts[::2]]
    return "".join(parts)


def _link_to(citation: Citation) -> str:
    return citation.url or jump_link(citation.guild_id, citation.channel_id or "", citation.message_id or "")
