"""What a passage holds."""

from __future__ import annotations

from rtfm.events import TimestampMillis
from rtfm.knowledge.conversations import PASSAGE_WORDS, Line, passages, spoken_text


def line(number: int, text: str) -> Line:
    return Line(message_id=str(number), text=text, created_at=TimestampMillis(number))


def test_a_long_conversation_goes_on_in_another_passage_between_messages() -> None:
    """No message is cut, and the first passage keeps its id when more is said."""
    lines = [line(number, "word " * (PASSAGE_WORDS * 3 // 8)) for number in range(5)]
    made = passages("c", lines)
    assert [passage.passage_id for passage in made] == ["c", "c.1", "c.2"]
    assert [len(passage.message_ids) for passage in made] == [2, 2, 1]
    assert passages("c", lines[:3])[0] == made[0]


def test_a_message_longer_than_a_passage_stands_alone_and_whole() -> None:
    """Better one long passage than a cut code block."""
    lines = [line(1, "short"), line(2, "word " * (PASSAGE_WORDS + 1)), line(3, "short")]
    assert [passage.message_ids for passage in passages("c", lines)] == [("1",), ("2",), ("3",)]


def test_messages_without_text_are_in_no_passage() -> None:
    """There is nothing to find in them."""
    assert passages("c", [line(1, ""), line(2, "")]) == []


def test_names_are_no_part_of_what_is_said() -> None:
    """They make unlike conversations of the same people look alike."""
    assert spoken_text("<@12>, use ntfs-3g") == "use ntfs-3g"
    assert spoken_text("Ada: use ntfs-3g", ["ada"]) == "use ntfs-3g"
    assert spoken_text("error: no such device", ["ada"]) == "error: no such device"
