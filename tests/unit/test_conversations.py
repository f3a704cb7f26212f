"""The passages that are made of a conversation."""

from __future__ import annotations

from rtfm.events import TimestampMillis
from rtfm.knowledge.conversations import PASSAGE_WORDS, ConversationLine, build_passages, spoken_text
from tests.knowledge import CHANNEL


def line(number: int, text: str) -> ConversationLine:
    return ConversationLine(message_id=str(number), text=text, created_at=TimestampMillis(number))


def test_a_long_conversation_goes_on_in_another_passage_between_messages() -> None:
    """A long conversation continues in another passage at the end of a message.

    The first passage keeps its id when messages are added.
    """
    lines = [line(number, "word " * (PASSAGE_WORDS * 3 // 8)) for number in range(5)]
    made, passage_of = build_passages("c", lines, CHANNEL)
    assert [passage.passage_id for passage in made] == ["c", "c/1", "c/2"]
    assert passage_of == {"0": "c", "1": "c", "2": "c/1", "3": "c/1", "4": "c/2"}
    assert build_passages("c", lines[:3], CHANNEL)[0][0] == made[0]


def test_a_long_message_has_passages_of_its_own() -> None:
    """A long message gets its own passages, and the messages around it stay together.

    The passages keep their ids when messages are added.
    """
    long = "word " * 10_000
    made, passage_of = build_passages("c", [line(1, "short"), line(2, long), line(3, "short too")], CHANNEL)
    assert passage_of == {"1": "c", "3": "c", "2": "2#1"}
    parts = made[1:]
    assert [part.passage_id for part in parts[:2]] == ["2#1", "2#2"]
    assert {part.part_of for part in parts} == {"2"}
    assert " ".join(part.text for part in parts).split() == long.split()
    assert build_passages("c", [line(2, long), line(4, "later")], CHANNEL)[0][1:] == parts


def test_a_file_is_cut_like_a_long_message() -> None:
    """A long file gets its own passages, like a long message.

    The message stays in its conversation. If the message has no text, it is found by the file's passages only.
    """
    log = "kern.log\n" + "\n".join(f"line {number}" for number in range(500))
    said = ConversationLine(message_id="1", text="see the log", created_at=TimestampMillis(1), files=(log,))
    (whole, *parts), passage_of = build_passages("1", [said], CHANNEL)
    assert passage_of == {"1": "1"}
    assert (whole.text, whole.part_of) == ("see the log", None)
    assert parts[0].passage_id == "1#1"
    assert parts[0].text.startswith("kern.log")
    assert "line 499" in parts[-1].text
    silent = ConversationLine(message_id="1", text="", created_at=TimestampMillis(1), files=(log,))
    assert build_passages("1", [silent], CHANNEL) == (parts, {"1": "1#1"})


def test_messages_without_text_are_in_no_passage() -> None:
    """Messages without text are in no passage, because search could find nothing in them."""
    assert build_passages("c", [line(1, ""), line(2, "")], CHANNEL) == ([], {})


def test_names_are_not_part_of_a_passage() -> None:
    """Names are not part of a passage, because they would make unrelated conversations of the same people similar."""
    assert spoken_text("<@12>, use ntfs-3g") == "use ntfs-3g"
    assert spoken_text("Ada: use ntfs-3g", ["ada"]) == "use ntfs-3g"
    assert spoken_text("error: no such device", ["ada"]) == "error: no such device"
