"""`rtfm-cli search`: shows which passages a question finds, with scores."""

from __future__ import annotations

import attrs
import click

from rtfm.discord_ids import jump_link
from rtfm.knowledge import SearchResult, console_scope
from rtfm_cli.knowledge import open_console_knowledge
from rtfm_cli.options import echo_json, examples, json_option
from rtfm_cli.printing import echo, escape_unprintable
from rtfm_cli.tables import Table, table_console


@examples("""
rtfm-cli search "mount an NTFS disk"
rtfm-cli search "mount an NTFS disk" --explain
rtfm-cli search --guild 1163874448331508 --limit 3 --json "mount an NTFS disk"
""")
@click.command("search")
@click.argument("query")
@click.option("--guild", metavar="ID", help="Search this guild; default: the only guild in the archive.")
@click.option("--channel", "channels", multiple=True, metavar="ID", help="Search this channel only; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 100), default=10, show_default=True, help="Maximum number of passages.")
@click.option("--explain", is_flag=True, help="Also show the ranks by meaning and by words, the floor and the filters.")
@json_option
def search(query: str, guild: str | None, channels: tuple[str, ...], limit: int, explain: bool, as_json: bool) -> None:
    """Show the passages that QUERY finds, best first, with scores.

    Searches private threads and direct messages only if --channel names them.
    """
    if not query.strip():
        raise click.BadParameter("the query is empty", param_hint="QUERY")
    with open_console_knowledge() as knowledge:
        guild_id, visible = console_scope(knowledge.archive, guild, channels)
        result = knowledge.retriever.search(query, guild_id=guild_id, visible_channel_ids=visible, limit=limit)
    if as_json:
        echo_json(
            {
                "mode": result.mode,
                "results": [
                    {
                        "passage_id": passage.passage_id,
                        "score": passage.score,
                        "message_ids": [message.message_id for message in passage.messages],
                        "text": passage.text,
                    }
                    for passage in result.passages
                ],
                **({"rebuild_due": result.rebuild_due} if result.rebuild_due else {}),
                **({"explanation": result.explanation and attrs.asdict(result.explanation)} if explain else {}),
            }
        )
        return
    if result.rebuild_due:
        echo(f"{result.rebuild_due}: run `rtfm-cli rebuild`. Until then RTFM uses keyword search.", err=True)
    if explain:
        _print_explanation(result)
    if not result.found:
        echo(f"No passage is near enough ({result.mode} search).")
        return
    for number, passage in enumerate(result.passages, start=1):
        first = passage.messages[0]
        place = jump_link(first.guild_id, first.channel_id, first.message_id)
        echo(f"{number}. {passage.score:.2f}  {place}", bold=True)
        for message in passage.messages[:6]:
            echo(f"   {escape_unprintable(message.author_name)}: {_to_line(message.content)}")
        if len(passage.messages) > 6:
            echo(f"   … {len(passage.messages) - 6} more messages")
    echo(f"{len(result.passages)} passages ({result.mode} search)")


_READ_CHARACTERS = 2_000
"""The printed line of a message is made from at most this many characters at the beginning of the message."""


def _to_line(text: str) -> str:
    line = escape_unprintable(" ".join(text[:_READ_CHARACTERS].split()))
    return line if len(line) <= 160 else line[:159] + "…"


def _print_explanation(result: SearchResult) -> None:
    details = result.explanation
    if details is None:
        echo("Nothing was searched: no channel is visible, or the query has no words.")
        return
    kind = "calibrated for this guild" if details.calibrated else "the default; not calibrated for this guild yet"
    relation = "reaches" if details.evidence >= details.floor else "is below"
    vectors = "" if details.compared == "no vectors" else f": {details.looked_at:,} vectors"
    echo(f"filters   guild {details.guild_id or 'direct messages'}, {details.visible_channels:,} visible channels")
    echo(f"compared  {details.compared}{vectors}; {details.candidates} candidates scored")
    echo(f"floor     evidence of {details.evidence:.2f} {relation} {details.floor:.2f} ({kind})")
    if not result.found:
        return
    numbers = {passage.passage_id: number for number, passage in enumerate(result.passages, start=1)}
    table = Table(header_style="bold", title_justify="left")
    for name in ("", "first message", "score", "shown by", "meaning", "words", "speakers"):
        table.add_column(name, justify="left" if name == "first message" else "right", no_wrap=True)
    # The rows have the order in which the model gets the passages.
    for passage in sorted([*result.passages, *result.nearby], key=lambda passage: -passage.boosted_score):
        ranks = details.ranks.get(passage.passage_id)
        table.add_row(
            str(numbers.get(passage.passage_id, "near 1")),
            passage.messages[0].message_id,
            f"{passage.score:.3f}",
            f"{passage.boosted_score:.3f}",
            "" if ranks is None else _format_rank(ranks.meaning_rank, ranks.meaning),
            "" if ranks is None else _format_rank(ranks.words_rank, ranks.words),
            str(len({message.author_name for message in passage.messages})),
        )
    table_console().print(table)
    echo(
        "meaning, words: the rank by meaning or words, and the value from 0 to 1 that gives this rank.\n"
        "shown by: the score that decides the order; it is higher for passages near the best passage.\n"
    )


def _format_rank(rank: int | None, value: float | None) -> str:
    return "" if rank is None or value is None else f"{rank}. {value:.2f}"
