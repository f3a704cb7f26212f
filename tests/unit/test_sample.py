"""The sample chat has a realistic form, and contains the answers to the sample's questions."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from rtfm_cli import demo

from rtfm.knowledge.evaluation import LabelledQuestion
from rtfm.knowledge.imports import read_export

DISCORD_EPOCH_MS = 1_420_070_400_000
"""2015-01-01, from which the upper 42 bits of a snowflake count milliseconds (Discord's API reference)."""


def documents() -> list[dict[str, Any]]:
    """The sample's files, parsed."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in demo.exports()]


def test_every_message_is_imported() -> None:
    """Every message of the sample is imported; the sample is one guild with at least 200 messages."""
    exports = [read_export(path) for path in demo.exports()]
    assert [export.left_out.count for export in exports] == [0] * len(exports)
    assert sum(export.count for export in exports) >= 200
    assert len({export.guild_id for export in exports}) == 1


def test_ids_hold_their_times() -> None:
    """Each id is unique, and is a snowflake that contains the time of its message."""
    messages = [message for document in documents() for message in document["messages"]]
    for message in messages:
        written_ms = round(datetime.fromisoformat(message["timestamp"]).timestamp() * 1000)
        assert (int(message["id"]) >> 22) + DISCORD_EPOCH_MS == written_ms
    assert len({message["id"] for message in messages}) == len(messages)


def test_replies_lead_to_messages_of_their_channel() -> None:
    """A reply refers to an earlier message of the same file."""
    replies = 0
    for document in documents():
        seen: set[str] = set()
        for message in document["messages"]:
            if message["type"] == "Reply":
                replies += 1
                assert message["reference"]["messageId"] in seen
            seen.add(message["id"])
    assert replies > 10


def test_questions_have_their_answers_in_the_sample() -> None:
    """Each of the five questions is answered by messages of one channel, and is not itself the text of a message."""
    channel_of = {
        message["id"]: (d["channel"]["id"], message["content"]) for d in documents() for message in d["messages"]
    }
    questions = demo.questions()
    assert len(questions) == 5
    for question in questions:
        assert len({channel_of[message_id][0] for message_id in question.relevant}) == 1
        assert question.question not in {content for _, content in channel_of.values()}


def test_an_answer_is_right_only_with_a_link_to_its_conversation() -> None:
    """An answer is right if it has the expected outcome and cites the right conversation."""
    question = LabelledQuestion(message_id="0", question="?", guild_id="1", relevant=frozenset({"1"}))

    def reply(outcome: str, *cited: str) -> demo.Reply:
        citations = tuple({"message_id": message_id} for message_id in cited)
        return demo.Reply(question=question, outcome=outcome, answer="", citations=citations, elapsed_ms=1)

    assert not reply("EXTRACTED", "2").is_right
    assert not reply("NOT_FOUND", "1").is_right
    assert not reply("ANSWERED").is_right
    assert reply("ANSWERED", "2", "1").is_right
