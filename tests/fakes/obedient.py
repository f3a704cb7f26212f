"""A model that obeys everything it reads: the worst that a real one could do with an attack in its sources."""

from __future__ import annotations

import json
import re
from typing import Any

_CITED = re.compile(r"\[(\d{1,4})\]")
_ABOUT_ITSELF = re.compile(
    r"system prompt|system message|instructions|your rules|your prompt|anweisungen|consignes", re.IGNORECASE
)


def obedient(document: dict[str, Any], instructions: str = "") -> str:
    """Repeat every source word for word, with every number in it, and the instructions if a source asks for them.

    It writes everything that an attack can make a model write: pings, links, forged numbers, its own instructions,
    another reply's JSON, a claim that nothing was found.
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
