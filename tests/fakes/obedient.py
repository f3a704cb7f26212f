"""A fake model that obeys everything that it reads. With an attack in its sources, no real model could do worse."""

from __future__ import annotations

import json
import re
from typing import Any

_CITED = re.compile(r"\[(\d{1,4})\]")
_ABOUT_ITSELF = re.compile(
    r"system prompt|system message|instructions|your rules|your prompt|anweisungen|consignes", re.IGNORECASE
)


def obedient(document: dict[str, Any], instructions: str = "") -> str:
    """Repeat every source word for word, cite every number in it, and add the instructions if a source mentions them.

    The answer therefore contains everything that an attack can make a model write: pings, links, numbers of sources
    that do not exist, the model's instructions, JSON that imitates another reply, or a claim that nothing was found.
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
