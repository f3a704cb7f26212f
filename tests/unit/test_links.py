"""Links as Discord detects them, and the removal of unknown links."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtfm.links import find_links, remove_unknown_links
from rtfm.markup import escape_markup, to_plain_name
from tests.attacks import addresses

DOCS = "https://docs.skerry.example/locks"
EVIL = "https://evil.example/login"


@pytest.mark.parametrize(
    "text",
    [
        f"_{EVIL}_",
        f"1{EVIL}",
        f"请看{EVIL}",
        f"см{EVIL}",
        f"{'a' * 32}{EVIL}",
        f"é{EVIL}",
        "discord.com/invite/evil",
        "discordapp.com/invite/evil",
        "_discord.gg/evil_",
        "ptb.discord.com/invite/evil",
        "discord.gift/evil",
        "<https:/evil.example>",
        "<steam:/evil>",
        "[x](https:evil.example)",
        "[x](https:\\/\\/evil.example)",
        "www.evil.example",
        "说www.evil.example",
    ],
)
def test_a_link_is_found_wherever_discord_finds_it(text: str) -> None:
    """A link is found after a letter of any script, a digit or a mark, as Discord finds it.

    Invites are found without a scheme, and addresses without slashes.
    """
    assert "evil" not in remove_unknown_links(f"see {text} there")


@pytest.mark.parametrize(
    "text",
    [
        f"[Download [official]]({DOCS})",
        f"[a\\]b]({DOCS})",
        f"[a\nb]({DOCS})",
        f"[{'long ' * 200}]({DOCS})",
        f'[x]({DOCS} "{"title " * 100}")',
        f"[x]( <{DOCS}> )",
        f"[x](\n{DOCS})",
        f"\\`[x]({DOCS})\\`",
        f"[a [b]({DOCS})]({DOCS})",
        f"]({DOCS})",
        f"[]({DOCS})",
        f"[x]({DOCS}",
    ],
)
def test_no_address_hides_behind_words(text: str) -> None:
    """No address is hidden behind other words, not even the address of a cited message."""
    shown = remove_unknown_links(text, {DOCS})
    assert "](" not in shown
    assert remove_unknown_links(shown, {DOCS}) == shown
    assert "](" not in remove_unknown_links(text)
    assert "skerry" not in remove_unknown_links(text)


def test_words_and_address_of_a_known_link_are_both_shown() -> None:
    """A known link is shown as words and address; if the words are the address, the address is shown once."""
    assert remove_unknown_links(f"see [the [old] docs]({DOCS}).", {DOCS}) == f"see the [old] docs {DOCS}."
    assert remove_unknown_links(f"[{DOCS}]({DOCS})", {DOCS}) == DOCS
    assert remove_unknown_links(f"[a]({DOCS}).evil.example", {DOCS}) == f"a {DOCS} .evil.example"
    assert remove_unknown_links(f"[wiki]({DOCS}_(x)) now", {f"{DOCS}_(x"}) == f"wiki {DOCS}_(x) now"


@pytest.mark.parametrize("text", [f"{DOCS}.evil.example", f"{DOCS}@evil.example", f"{DOCS}\u200b.evil", f"x{DOCS}2"])
def test_an_address_that_begins_like_a_known_one_is_unknown(text: str) -> None:
    """An address that only begins like a known one is not known."""
    assert DOCS not in remove_unknown_links(text, {DOCS})


@pytest.mark.parametrize(
    "text", ["use https: it is safer", "a[0](b)", "x ? y : z", "10:30", "std::vector", "call(a)[1](b)", "awww... nice"]
)
def test_what_is_no_link_stays(text: str) -> None:
    """Code and prose with colons and brackets stay."""
    assert remove_unknown_links(text) == text


_PIECES = st.sampled_from([*"[]()<>`1a\\ \n", '"', "https://", "https:", "evil.example", DOCS, "://"])


@given(st.lists(_PIECES, max_size=25).map("".join))
def test_only_known_links_are_left_and_none_is_hidden(text: str) -> None:
    """Whatever a text contains, only its known links are left, and all of them are visible.

    The test also finds links with its own pattern, which differs from the code's pattern.
    """
    shown = remove_unknown_links(text, {DOCS})
    assert addresses(shown) <= {DOCS}
    assert find_links(shown) <= {DOCS}
    assert remove_unknown_links(shown, {DOCS}) == shown


@pytest.mark.parametrize("name", [EVIL, f"x{EVIL}", "discord.gg/evil", f"[a]({EVIL})", f"_{EVIL}_", "www.evil.example"])
def test_a_name_is_no_link(name: str) -> None:
    """A nickname, which is shown under answers and before quotes, makes no link."""
    assert "evil" not in to_plain_name(name)


def test_a_name_is_one_short_line() -> None:
    """A nickname is one short line without formatting; Unicode line ends become spaces."""
    assert to_plain_name("a\u2028b\n# c") == "a b # c"
    assert escape_markup(to_plain_name("*a* <#5> @here")) == "\\*a\\* \\#channel @\u200bhere"
    assert len(to_plain_name("x" * 5_000)) == 100


@pytest.mark.parametrize("text", [f"https://docs.skerry.example@{EVIL[8:]}", "http:\\\\ada:pw@evil.example/x"])
def test_an_address_with_an_account_is_not_shown(text: str) -> None:
    """An address with a user name is removed, because the part before the @ looks like the host."""
    assert "evil" not in remove_unknown_links(f"see {text} there", find_links(text))
    assert remove_unknown_links(f"{DOCS}/@ada?to=a@b", find_links(f"{DOCS}/@ada?to=a@b")) == f"{DOCS}/@ada?to=a@b"
