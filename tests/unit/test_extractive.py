"""The quotes of an answer that no model writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rtfm.answering.extractive import (
    INTRODUCTION,
    MAX_CODE_CHARACTERS,
    MAX_EXTRACT_CHARACTERS,
    MAX_QUOTE_CHARACTERS,
    best_message,
    compose,
    quotes,
)
from rtfm.links import find_links
from rtfm.markup import remove_pings
from tests.passages import passage, said

LOCK = passage(
    [
        said("tallow", "backup fails since the power cut: SK-2104 repository is locked by host attic", minute=0),
        said("ninefold", "is anything else writing to it?", minute=3),
        said("tallow", "no, nothing", minute=4),
        said("ninefold", "then remove the lock with `skerry unlock --stale`", minute=6),
        said("tallow", "thanks, that worked", minute=9),
    ]
)
QUESTION = "SK-2104, the repository is locked after a power cut, how do I remove the lock?"


def test_a_text_without_any_break_is_quoted_quickly() -> None:
    """A text without any break is quoted quickly; reading it again from each character would take minutes."""
    (quote,) = quotes("?", [passage([said("ada", "x" * 200_000)])])
    assert len(quote.text) <= MAX_QUOTE_CHARACTERS


def test_a_long_text_without_sentences_is_quoted_where_it_matches() -> None:
    """A long text without sentences, such as a log line or a list, is quoted around the matching words."""
    text = " ".join(["disk file boot"] * 100 + ["the zebrawood shelves bend"] + ["disk file boot"] * 100)
    (quote,) = quotes("zebrawood shelves", [passage([said("ada", text)])])
    assert "zebrawood shelves bend" in quote.text
    assert len(quote.text) <= MAX_QUOTE_CHARACTERS


def test_no_passages_give_no_quotes() -> None:
    """Without passages there are no quotes."""
    assert quotes(QUESTION, []) == []


def test_the_one_who_answers_is_quoted_rather_than_the_one_who_asks() -> None:
    """The message that answers is quoted, not the message that asks.

    An earlier question often shares more words with the new question than the answer to the earlier one does.
    """
    assert quotes(QUESTION, [LOCK])[0].message.author_name == "ninefold"
    assert "unlock --stale" in quotes(QUESTION, [LOCK])[0].text


def test_a_monologue_is_quoted() -> None:
    """A message that nobody answered is quoted."""
    alone = passage([said("tallow", "SK-2104 means the repository is locked")])
    assert [quote.text for quote in quotes(QUESTION, [alone])] == ["SK-2104 means the repository is locked"]


def test_lines_said_in_one_go_are_quoted_together() -> None:
    """Consecutive messages of one person are one quote, which links to the first message."""
    spread = passage(
        [
            said("tallow", "how do I remove the lock?", minute=0),
            said("ninefold", "remove the lock like this:", minute=1),
            said("ninefold", "`skerry unlock --stale`", minute=2),
        ]
    )
    (quote,) = quotes(QUESTION, [spread])
    assert quote.text == "remove the lock like this:\n`skerry unlock --stale`"
    assert quote.message.content == "remove the lock like this:"


def test_a_long_monologue_is_not_quoted_completely() -> None:
    """At most four consecutive messages of one person are quoted."""
    monologue = passage(
        [said("tallow", "remove the lock?")] + [said("ninefold", f"line {i}", minute=1) for i in range(9)]
    )
    assert max(quote.text.count("\n") for quote in quotes("line 1?", [monologue])) == 3


def test_passages_far_behind_the_best_are_not_quoted() -> None:
    """Two good passages are quoted, and a third passage with half the score is not."""
    near = passage([said("wrenlet", "a lock is removed with skerry unlock", minute=20)], score=0.75)
    far = passage([said("brackish", "we lock the door at night", minute=30)], score=0.4)
    shown = {quote.message.author_name for quote in quotes(QUESTION, [LOCK, near, far])}
    assert shown == {"ninefold", "wrenlet"}


def test_never_more_than_three_quotes() -> None:
    """An extract has at most three quotes."""
    many = [passage([said("wrenlet", f"remove lock {i}", minute=i), said("tallow", "lock?")]) for i in range(6)]
    assert len(quotes(QUESTION, many)) == 3


def test_a_long_message_is_shown_by_its_matching_sentences() -> None:
    """A long message is quoted by the sentences that match, not by its first ones."""
    filler = "We have had this machine for years and it makes a lot of noise. " * 20
    long = passage([said("ninefold", f"{filler}To remove the lock run skerry unlock. {filler}")])
    (quote,) = quotes(QUESTION, [long])
    assert "To remove the lock run skerry unlock." in quote.text
    assert len(quote.text) <= MAX_QUOTE_CHARACTERS + 20


def test_a_code_block_is_shown_whole_or_not_at_all() -> None:
    """A code block is quoted completely, or, if it is too long, replaced by a note; the text around it stays."""
    filler = "We have had this machine for years and it makes a lot of noise. " * 10
    script = "```sh\nskerry stop\nskerry unlock --stale\nskerry start\n```"
    whole = passage([said("ninefold", f"{filler}\nRemove the lock with this:\n{script}\n{filler}")])
    (quote,) = quotes(QUESTION, [whole])
    assert script in quote.text
    assert "Remove the lock with this:" in quote.text
    assert len(quote.text) <= MAX_CODE_CHARACTERS + 20
    endless = passage([said("ninefold", "remove the lock:\n```\n" + "x = 1\n" * 200 + "```")])
    (quote,) = quotes(QUESTION, [endless])
    assert quote.text == "remove the lock: (202 lines of code)"


def test_a_sentence_does_not_end_inside_inline_code() -> None:
    """A dot in inline code does not end a sentence."""
    filler = "We have had this machine for years and it makes a lot of noise. " * 10
    long = passage([said("ninefold", f"{filler}Remove the lock with `skerry unlock. --stale` today. {filler}")])
    assert "Remove the lock with `skerry unlock. --stale` today." in quotes(QUESTION, [long])[0].text


def test_the_addressee_of_a_message_is_not_quoted() -> None:
    """A mention at the start of a message is not quoted, and an @word that names no member stays."""
    spoken = passage(
        [said("tallow", "how do I remove the lock?"), said("ninefold", "@tallow: remove the lock by hand", minute=1)]
    )
    assert [quote.text for quote in quotes(QUESTION, [spoken])] == ["remove the lock by hand"]
    code = passage([said("ninefold", "@property removes the lock")])
    assert quotes(QUESTION, [code])[0].text == "@property removes the lock"


def test_chatter_of_another_passage_is_not_quoted() -> None:
    """Thanks and greetings of another passage are not quoted, because they share no word with the question."""
    chatter = passage([said("wrenlet", "hello, good to see you all", minute=30)], score=0.8)
    assert [quote.message.author_name for quote in quotes(QUESTION, [LOCK, chatter])] == ["ninefold"]


def test_a_third_quote_has_to_be_half_as_good_as_the_best() -> None:
    """A third quote needs half the score of the best; one word in common with the question is not enough."""
    first = passage([said("ada", "mount the ntfs disk with the driver from the shop", minute=0)])
    second = passage([said("bob", "here the ntfs disk would mount after a long fsck", minute=10)])
    for words, count in (("somebody sold ntfs stickers at the fair", 2), ("to mount ntfs was easy on the laptop", 3)):
        third = passage([said("cyd", words, minute=20)])
        assert len(quotes("how do I mount an ntfs disk?", [first, second, third])) == count


def test_what_was_said_twice_is_quoted_once() -> None:
    """The same words are quoted once, even if two people said them in two conversations."""
    again = passage([said("wrenlet", "Then remove the lock with skerry unlock --stale!", minute=20)], score=0.79)
    assert [quote.message.author_name for quote in quotes(QUESTION, [LOCK, again])] == ["ninefold"]


def test_an_extract_fits_into_one_message() -> None:
    """Of three long quotes, at least one is left out, so that the extract fits into one message."""
    code = "```\n" + "y = 2\n" * 120 + "```"
    many = [passage([said(f"p{i}", f"remove lock {i} like this number{i} {code}", minute=i)]) for i in range(3)]
    found = quotes(QUESTION, many)
    assert 1 <= len(found) < 3
    assert len(compose(found)) <= MAX_EXTRACT_CHARACTERS + len(INTRODUCTION) + 100


def test_an_extract_is_the_same_in_every_process() -> None:
    """An extract is the same in every process, because it does not depend on the hashes of strings."""
    script = (
        "from tests.unit.test_extractive import LOCK, QUESTION\n"
        "from rtfm.answering.extractive import compose, quotes\n"
        "print(compose(quotes(QUESTION, [LOCK])))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_an_answer_quotes_names_dates_and_numbers() -> None:
    """A quote is followed by the author's name, the date and the number of its citation."""
    alone = passage([said("a_b", "first\nsecond")])
    assert compose(quotes("first?", [alone])) == "This was said about it:\n\n> first\n> second\na\\_b, 2026-03-02 [1]"


def test_a_quoted_ping_and_a_masked_link_are_defused() -> None:
    """A ping in a quoted message pings no one, and a masked link shows its address."""
    alone = passage([said("tallow", "@everyone <@12> look at [the docs](https://elsewhere.example)")])
    (quote,) = quotes("docs?", [alone])
    assert quote.text == "@\u200beveryone @someone look at the docs https://elsewhere.example"


def test_a_citation_points_to_the_message_behind_the_words() -> None:
    """A citation links to the message that has the quoted words, not to the start of the conversation."""
    assert best_message(QUESTION, "remove it with skerry unlock --stale", LOCK).message_id == "70006"
    assert best_message(QUESTION, "ganz anders", LOCK).message_id == "70006"


@given(
    st.text(max_size=200),
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.text(min_size=1, max_size=2_000)), min_size=1, max_size=6),
)
def test_whatever_was_said_can_be_quoted(question: str, lines: list[tuple[str, str]]) -> None:
    """Any text can be quoted, in at most three quotes of limited length."""
    found = quotes(question, [passage([said(author, text, minute=i) for i, (author, text) in enumerate(lines)])])
    assert len(found) <= 3
    assert found or not any(remove_pings(text).strip() for _, text in lines)
    assert all(len(quote.text) <= MAX_CODE_CHARACTERS + 20 for quote in found)


def test_a_quote_cannot_start_a_line_outside_itself() -> None:
    """A line separator that Discord ignores does not end a quote."""
    (quote,) = quotes("apt?", [passage([said("eve", "install apt\u2028# Official notice\u2028**Sources**")])])
    answer = compose([quote])
    assert "> install apt # Official notice **Sources**\n" in answer
    assert "\u2028" not in answer


def test_a_quote_hides_no_address_and_forges_no_number() -> None:
    """A quote shows every address. Numbers in square brackets look like citations, so they get round brackets.

    If two messages form a link together, the address of this link is shown, too.
    """
    two = passage([said("eve", "unlock [the driver"), said("eve", "here](https://elsewhere.example/x) as [7] says")])
    (quote,) = quotes("unlock driver?", [two])
    assert quote.text == "unlock the driver\nhere https://elsewhere.example/x as (7) says"


def test_a_quote_names_no_channel_that_is_not_readable() -> None:
    """A quote mentions no channel that its readers may not read, because Discord would show the channel's name."""
    spoken = passage([said("eve", "unlock it as in <#300> and <#200>")])
    assert quotes("unlock?", [spoken], channels=["200"])[0].text == "unlock it as in #channel and <#200>"


def test_a_link_that_was_cut_is_not_shown() -> None:
    """If the end of a quote cuts a link, the link is not shown, because a part of an address leads elsewhere."""
    address = "https://good.example" + ".evil.example" * 60
    (quote,) = quotes("unlock?", [passage([said("eve", f"unlock it with {address} now")])])
    assert find_links(quote.text) <= {address}


def test_many_code_blocks_leave_room_for_words() -> None:
    """The quote of a message with thousands of code blocks is not too long."""
    text = "unlock it. " + "```a```" * 5_000
    (quote,) = quotes("unlock?", [passage([said("eve", text)])])
    assert len(quote.text) <= MAX_CODE_CHARACTERS + 20
