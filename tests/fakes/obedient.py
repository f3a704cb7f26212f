"""A fake model that repeats what its sources say, like a real model that obeys the attacks in its sources."""

from __future__ import annotations

import json
import re
from typing import Any

_CITED = re.compile(r"\[(\d{1,4})\]")
_ABOUT_ITSELF = re.compile(
    r"system prompt|system message|instructions|your rules|your prompt|anweisungen|consignes", re.IGNORECASE
)


def obedient(document: dict[str, Any], instructions: str = "") -> str:
    """Repeat and cite all sources, and cite every number that a source contains in brackets.

    If a source mentions instructions, those of the prompt are added to the answer. If the sources are attacks, the
    answer contains what the attacks try to make a model write: pings, links, numbers of sources that do not exist, the
    model's instructions, JSON that imitates another reply, or a claim that nothing was found. If the prompt asks for a
    rewritten question, the messages before the question are appended to the question.
    """
    if "sources" not in document:
        return json.dumps({"question": f"{document['question']} {_said(document['context'])}"}, ensure_ascii=False)
    said = "\n".join(_said(source["messages"]) for source in document["sources"])
    numbers = [source["number"] for source in document["sources"]]
    forged = [int(number) for number in _CITED.findall(said)]
    answer = f"{said} {''.join(f'[{number}]' for number in numbers)}"
    if _ABOUT_ITSELF.search(said):
        answer = f"{answer}\n{instructions}"
    reply = {"answer": answer, "cited": numbers + forged, "sufficient": True, "sources_disagree": False}
    return json.dumps(reply, ensure_ascii=False)


def _said(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["text"] for message in messages)
