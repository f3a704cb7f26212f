"""The wording of replies, and how a long reply is split into parts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtfm.bot.replies import PART_LIMIT, compose, nonce, split
from rtfm.events import Audience, BotResponse, ChannelKind, Citation, Outcome, SourceKind, TimestampMillis

LINK = re.compile(r"https://example\.org/[a-z0-9]+")


def response(
    outcome: Outcome, answer: str = "", *, author_name: str = "penguin", sources: int = 0, guild_id: str | None = "1"
) -> BotResponse:
    return BotResponse(
        query_id="m5",
        guild_id=guild_id,
        channel_id="2",
        query_message_id="5",
        asker_id="9",
        asked_at=TimestampMillis(0),
        audience=Audience.PUBLIC,
        outcome=outcome,
        answer=answer,
        citations=[
            Citation(
                number=number,
                kind=SourceKind.MESSAGE,
                guild_id=guild_id,
                channel_id="2",
                channel_kind=ChannelKind.TEXT,
                message_id=str(number),
                author_name=author_name,
                created_at=TimestampMillis(1_700_000_000_000),
                excerpt="",
                score=1.0,
            )
            for number in range(1, sources + 1)
        ],
        answered_at=TimestampMillis(0),
        elapsed_ms=0,
    )


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def test_an_unknown_outcome_is_not_posted() -> None:
    """If the outcome of a response is unknown, as from a later version, the response is not posted."""
    assert compose(response(Outcome.UNKNOWN, "an answer")) == []


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.UNKNOWN])
def test_every_outcome_has_a_text(outcome: Outcome) -> None:
    """Every known outcome gives a text that is not empty, because Discord rejects an empty message."""
    (part,) = compose(response(outcome, " \n"))
    assert part.strip()


def test_sources_are_numbered_jump_links() -> None:
    """The answer is followed by its sources; each source has its number, a jump link, the author and the date."""
    (part,) = compose(response(Outcome.ANSWERED, "Use ntfs-3g [1].", sources=2))
    assert part.splitlines()[0] == "Use ntfs-3g [1]."
    assert "[2] https://discord.com/channels/1/2/2 · penguin, 2023-11-14" in part


def test_a_direct_channel_has_its_own_kind_of_link() -> None:
    """A jump link to a direct channel has @me in place of a guild id."""
    (part,) = compose(response(Outcome.ANSWERED, "Yes.", sources=1, guild_id=None))
    assert "https://discord.com/channels/@me/2/1" in part


def test_a_name_cannot_write_markdown() -> None:
    """An author's name that looks like a masked link is shown as text."""
    (part,) = compose(response(Outcome.ANSWERED, "Yes.", sources=1, author_name="[free](x) **y** `z`"))
    assert r"\[free\]\(x\) \*\*y\*\* \`z\`" in part


def test_nonces_are_stable_and_differ() -> None:
    """The nonce of a part is the same in each delivery, and differs from the nonces of all other parts in the test."""
    assert nonce("m5", 0) == nonce("m5", 0)
    assert len({nonce("m5", 0), nonce("m5", 1), nonce("m6", 0), nonce("m50", 0)}) == 4
    assert len(nonce("m5", 0)) == 24


def test_a_long_answer_keeps_its_words_in_order() -> None:
    """The parts of a long answer contain all words of the answer in order."""
    words = [f"word{number}" for number in range(2_000)]
    parts = split(" ".join(words))
    assert len(parts) > 5
    assert " ".join(parts).split() == words


def test_a_fence_is_closed_and_opened_again_in_its_language() -> None:
    """If a code block is cut, it is closed at the end of one part, and opened in its language in the next part."""
    parts = split("Try:\n```python\n" + "\n".join(f"line_{n} = {n}" for n in range(300)) + "\n```\nDone.")
    assert len(parts) > 1
    assert all(part.count("```") % 2 == 0 for part in parts)
    assert all(part.startswith("```python\n") for part in parts[1:])
    assert parts[-1].endswith("```\nDone.")


def test_a_masked_link_is_not_cut() -> None:
    """A masked link is not cut, so that text and address stay together."""
    link = "[the long manual page](<https://example.org/manual>)"
    parts = split("x" * 1_940 + " " + link + " " + "y" * 100)
    assert any(link in part for part in parts)


def test_wide_characters_count_twice() -> None:
    """An emoji counts as two characters, as in Discord's limit."""
    assert all(units(part) <= PART_LIMIT for part in split("🐧" * 3_000))


_LINES = st.lists(
    st.one_of(
        st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=300),
        st.sampled_from(["```", "```python", "text ```", "", "   ", "x" * 400]),
        st.integers(0, 10**30).map(lambda number: f"see https://example.org/{number} there"),
    ),
    max_size=40,
)


@given(_LINES)
def test_any_text_is_cut_into_parts_that_can_be_sent(lines: list[str]) -> None:
    """Any text is cut into parts that fit and are not empty, with closed code blocks and whole links."""
    text = "\n".join(lines)
    parts = split(text, limit=200)
    assert all(0 < units(part) <= 200 and part.strip() for part in parts)
    assert all(part.count("```") % 2 == 0 for part in parts)
    assert [link for part in parts for link in LINK.findall(part)] == LINK.findall(text)


def test_a_line_of_a_quote_stays_in_the_quote() -> None:
    """A line separator that Discord ignores does not end a quote.

    Otherwise the words after the separator would look like words of the bot.
    """
    quote = "> install apt\u2028# Official notice\u2029**Sources**\x85x\x0by\x0cz\x1c\x1d\x1e"
    (part,) = compose(response(Outcome.EXTRACTED, f"This was said about it:\n\n{quote}\na, 2026-01-01 [1]"))
    said = [line for line in re.split("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", part) if "Official" in line]
    assert [line.rstrip() for line in said] == ["> install apt # Official notice **Sources** x y z"]


def test_a_name_under_an_answer_is_no_link() -> None:
    """An author's name under an answer makes no link, pings no one and starts no line."""
    (part,) = compose(response(Outcome.ANSWERED, "Yes.", sources=1, author_name="https://evil.gg\u2028@everyone"))
    assert "evil" not in part
    assert "@everyone" not in part
    assert part.split("\n")[-1].startswith("[1] https://discord.com/channels/1/2/1 · ")
