"""The conversation to which a message belongs."""

from __future__ import annotations

import random

import attrs
from hypothesis import given
from hypothesis import strategies as st

from rtfm.events import ChannelKind, is_id
from rtfm.knowledge.archive import StoredMessage
from rtfm.knowledge.linking import (
    CONTEXT,
    LEARNED_WEIGHTS,
    WINDOW,
    Window,
    is_one_conversation,
    link,
    thread_conversation_id,
)
from tests.knowledge import stored


def said(number: int, author: str, content: str, **fields: object) -> StoredMessage:
    return stored(number, content, author_id=author, author_name=f"nick{author}", **fields)


def test_two_talks_at_once_are_two_conversations() -> None:
    """If two conversations alternate, a message joins its addressee's conversation, not the preceding message's."""
    linked = link(
        [
            said(1, "1", "how do I mount an ntfs disk?"),
            said(2, "2", "my sound card is silent since the upgrade, any idea?"),
            said(3, "3", "use ntfs-3g for the disk", mentioned_user_ids=["1"]),
            said(4, "4", "is the volume of the sound card muted?", mentioned_user_ids=["2"]),
            said(5, "1", "that worked", mentioned_user_ids=["3"]),
            said(6, "2", "it was muted", mentioned_user_ids=["4"]),
        ]
    )
    assert linked["1"] == linked["3"] == linked["5"] == "1"
    assert linked["2"] == linked["4"] == linked["6"] == "2"


def test_a_reply_is_certain_whatever_else_speaks_against_it() -> None:
    """A reply joins the conversation of the message that it refers to, even if another conversation scores higher."""
    linked = link(
        [
            said(1, "1", "how do I mount an ntfs disk?"),
            said(2, "2", "my printer jams"),
            said(3, "2", "the printer again", mentioned_user_ids=["2"], reply_to_message_id="1"),
        ]
    )
    assert linked["3"] == linked["1"]


def test_a_reply_reaches_beyond_the_window() -> None:
    """A reply may refer to a message that is no longer in the window."""
    linked = link([said(9, "1", "solved", reply_to_message_id="5")], replied={"5": "4"})
    assert linked == {"9": "4"}


def test_a_name_written_at_the_start_counts_as_a_mention() -> None:
    """A name at the start of a message counts as a mention."""
    linked = link(
        [
            said(1, "1", "which file system for a usb stick?"),
            said(2, "2", "does the fan spin all the time for anyone?"),
            said(3, "3", "nick1: exfat I guess"),
        ]
    )
    assert linked["3"] == "1"


def test_linked_messages_keep_their_conversation() -> None:
    """A message that was linked once keeps its conversation."""
    linked = link([said(1, "1", "hello", conversation_id="7"), said(2, "1", "hello again")])
    assert linked == {"2": "7"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("12345"), st.sampled_from(["ntfs disk?", "sound card", "yes", "nick2: no", "try apt"])
        ),
        max_size=WINDOW,
    ),
    st.integers(min_value=0, max_value=WINDOW),
)
def test_it_does_not_matter_how_messages_are_cut_into_batches(talk: list[tuple[str, str]], cut: int) -> None:
    """The same messages give the same conversations, however the messages are divided into batches."""
    messages = [said(number, author, text) for number, (author, text) in enumerate(talk, start=1)]
    at_once = link(messages)
    first = link(messages[:cut])
    context = [attrs.evolve(one, conversation_id=first[one.message_id]) for one in messages[:cut]]
    assert {**first, **link([*context, *messages[cut:]])} == at_once


def test_threads_and_posts_are_one_conversation_each() -> None:
    """Each thread and each post is one conversation, whose id differs from the ids of messages and other threads."""
    assert [kind for kind in ChannelKind if is_one_conversation(kind)] == [
        ChannelKind.FORUM_POST,
        ChannelKind.PUBLIC_THREAD,
        ChannelKind.PRIVATE_THREAD,
    ]
    assert thread_conversation_id("1", "5") not in ("5", thread_conversation_id("2", "5"))
    assert not is_id(thread_conversation_id("1", "5"))


def test_long_talks_are_linked_alike_however_they_are_cut() -> None:
    """The cuts between batches do not change the links of long conversations; 200 messages are enough context.

    In the test, some messages begin with a name.
    """
    rng = random.Random(5)
    words = ["ntfs", "disk", "sound", "card", "apt", "kernel", "try", "no", "why?"]
    messages = []
    for number in range(450):
        author = rng.choice("123456789")
        start = f"nick{rng.choice('123456789')}: " if rng.random() < 0.4 else ""
        messages.append(said(number, author, start + " ".join(rng.choices(words, k=4))))
    at_once = link(messages)
    for cut in (260, 300, 449):
        context = [attrs.evolve(one, conversation_id=at_once[one.message_id]) for one in messages[:cut]][-CONTEXT:]
        assert {**at_once, **link([*context, *messages[cut:]])} == at_once


def test_a_name_that_is_also_a_word_does_not_address() -> None:
    """If a member's name is a common word, this word does not address the member."""
    talk = [said(n, "1", "the kernel panics, which kernel is it?") for n in range(1, 6)]
    named = attrs.evolve(said(6, "2", "sound is silent"), author_name="kernel")
    linked = link([*talk, named, said(7, "1", "kernel five it is")])
    assert linked["7"] == linked["5"]


def test_each_weight_is_that_of_a_feature() -> None:
    """The weights have the names of the features; a weight with a misspelled name would have no effect."""
    rng = random.Random(6)
    window = Window()
    computed: set[str] = set()
    for number in range(400):
        mentioned = rng.sample("12345", k=rng.choice([0, 0, 1]))
        message = said(
            number, rng.choice("12345"), rng.choice(["disk?", "yes", "try apt"]), mentioned_user_ids=mentioned
        )
        for _, features in window.choices(message):
            computed |= features.keys()
        window.add(message, str(rng.randrange(max(0, number - 50), number + 1) // 3))
    assert computed == LEARNED_WEIGHTS.keys()
