"""Learns the weights of the linker, and writes them to ``rtfm/knowledge/linker_weights.json``.

``python -m benchmarks.learn_linking FOLDER [--write]``. FOLDER holds ``exports/*.json`` and ``questions.jsonl``. Files
whose name begins with ``dev`` are learned from, those with ``test`` are only measured. No package beyond numpy.

A conversation is known only through the relevant messages of its question. Such a message belongs where most of its
conversation is; any other message may belong to anything that is no known conversation. The loss is the negative log of
the probability of these choices (softmax over the candidates). Each day is learned three times: as it is, with half of
the mentions taken out, and with all: addressing habits differ. Known messages before count as linked right: learning
from the linker's own mistakes as well raises its F, but it then joins too much, and coverage falls.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from rtfm.knowledge import linking
from rtfm.knowledge.archive import StoredMessage
from rtfm.knowledge.imports import read_export
from rtfm.knowledge.linking import LEARNED, WINDOW, Window

ROUNDS = 2
STEPS = 300
RATE = 0.05
SHRINK = 0.15
"""Weight of the squared weights against the loss of one message."""

UNKNOWN_WEIGHT = 0.2
"""What a message outside the known conversations counts."""

OPENING = {"new_speaker": 1.2}
"""What is added to learned weights: the messages that open the known conversations are not in the exports, so that
learning sees fewer new conversations of new speakers than there are."""

FEATURES = tuple(LEARNED)

_MENTION = re.compile(r"<@!?\d+>[,:]?\s*")

Floats = NDArray[np.float64]
Day = Sequence[StoredMessage]
Gold = dict[str, str]


@frozen(kw_only=True)
class Decision:
    """One message: a row of features for each candidate, and which candidates are right."""

    features: Floats
    right: NDArray[np.bool_]
    weight: float


def days_of(folder: Path, split: str) -> list[Day]:
    """The days of a split, in order of time."""
    days: list[Day] = []
    for path in sorted((folder / "exports").glob(f"{split}*.json")):
        messages = [message for message in read_export(path).messages() if not message.author_is_bot]
        messages.sort(key=lambda message: (message.created_at, len(message.message_id), message.message_id))
        days.append(
            [
                StoredMessage(
                    message_id=message.message_id,
                    guild_id=message.guild_id or "",
                    channel_id=message.channel_id,
                    author_id=message.author_id,
                    author_name=message.author_name,
                    author_is_bot=False,
                    content=message.content,
                    created_at=message.created_at,
                    edited_at=None,
                    version=0,
                    deleted=False,
                    reply_to_message_id=message.reply_to_message_id,
                    mentioned_user_ids=message.mentioned_user_ids,
                    attachments=[],
                )
                for message in messages
            ]
        )
    return days


def gold_of(folder: Path) -> Gold:
    """Message id → the conversation that people marked."""
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return {message: f"gold{row['message_id']}" for row in rows for message in row["relevant_message_ids"]}


def without_mentions(day: Day, share: float, rng: random.Random) -> Day:
    """``day`` with that share of its mentions taken out."""
    return [
        attrs.evolve(said, mentioned_user_ids=[], content=_MENTION.sub("", said.content))
        if said.mentioned_user_ids and rng.random() < share
        else said
        for said in day
    ]


def decisions(day: Day, gold: Gold, weights: Floats) -> Iterator[Decision]:
    """What there is to learn from a day, as if all known messages before had been linked right."""
    window = Window()
    linked: dict[str, str] = {}
    for place, said in enumerate(day):
        choices = window.choices(said)
        ids = [conversation for conversation, _ in choices]
        features = np.array([[values.get(name, 0.0) for name in FEATURES] for _, values in choices])
        scores = features @ weights
        mine = gold.get(said.message_id)
        recent = [one.message_id for one in day[max(0, place - WINDOW) : place]]
        held: dict[str, Counter[str | None]] = {}
        for message_id in recent:
            held.setdefault(linked[message_id], Counter())[gold.get(message_id)] += 1
        right = _right(ids, held, mine)
        if len(ids) > 1 and not right.all():
            yield Decision(features=features, right=right, weight=1.0 if mine else UNKNOWN_WEIGHT)
        chosen = mine or ids[int(np.where(right, scores, -math.inf).argmax())] or said.message_id
        linked[said.message_id] = chosen
        window.add(said, chosen)


def _right(ids: Sequence[str | None], held: dict[str, Counter[str | None]], mine: str | None) -> NDArray[np.bool_]:
    if mine is None:
        # Where the known conversations are not in the majority, or a new one.
        return np.array([one is None or 2 * held[one][None] >= held[one].total() for one in ids])
    mates = np.array([0 if one is None else held[one][mine] for one in ids])
    known = np.array([1 if one is None else max(1, held[one].total() - held[one][None]) for one in ids])
    mates[mates / known < 1 / 3] = 0
    right: NDArray[np.bool_] = mates >= max(1, mates.max() / 2)
    if not right.any():
        right[0] = True
    return right


def fit(learned_from: Sequence[Decision], start: Floats) -> Floats:
    """Weights with the least loss, by Adam's method."""
    width = max(len(one.right) for one in learned_from)
    features = np.zeros((len(learned_from), width, len(FEATURES)), dtype=np.float32)
    there = np.zeros((len(learned_from), width), dtype=bool)
    right = np.zeros_like(there)
    for row, one in enumerate(learned_from):
        features[row, : len(one.right)] = one.features
        there[row, : len(one.right)] = True
        right[row, : len(one.right)] = one.right
    counts = np.array([one.weight for one in learned_from])
    weights, mean, square = start.copy(), np.zeros(len(start)), np.zeros(len(start))
    for step in range(1, STEPS + 1):
        scores = np.where(there, features @ weights.astype(np.float32), -1e9)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        wanted = odds * right
        wanted /= wanted.sum(axis=1, keepdims=True) + 1e-12
        slope = np.einsum("nk,nkd->d", (odds - wanted) * counts[:, None], features) + SHRINK * weights
        slope /= counts.sum()
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        rate = RATE if step < STEPS * 2 // 3 else RATE / 5
        weights -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights


def learn(days: Sequence[Day], gold: Gold) -> Floats:
    """Weights learned from ``days``."""
    variants = [without_mentions(day, share, random.Random(1)) for share in (0.0, 0.5, 1.0) for day in days]
    weights = np.zeros(len(FEATURES))
    for _ in range(ROUNDS):
        weights = fit([one for day in variants for one in decisions(day, gold, weights)], weights)
    opening: Floats = np.array([OPENING.get(name, 0.0) for name in FEATURES])
    return weights + opening


def pairs(days: Sequence[Day], gold: Gold, weights: Mapping[str, float]) -> tuple[float, float, float]:
    """Precision, recall and F over the pairs of known messages that are in one conversation."""
    both = ours = theirs = 0
    for day in days:
        linked = linking.link(day, weights=weights)
        known = [said.message_id for said in day if said.message_id in gold]
        for place, one in enumerate(known):
            for other in known[:place]:
                here, there = linked[one] == linked[other], gold[one] == gold[other]
                both, ours, theirs = both + (here and there), ours + here, theirs + there
    precision, recall = both / max(ours, 1), both / max(theirs, 1)
    return precision, recall, 2 * both / max(ours + theirs, 1)


def main() -> None:
    """Learn, measure, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="replace linker_weights.json")
    arguments = parser.parse_args()
    gold = gold_of(arguments.folder)
    fitted = learn(days_of(arguments.folder, "dev"), gold)
    learned = {name: round(float(weight), 3) for name, weight in zip(FEATURES, fitted, strict=True)}
    for name, weight in learned.items():
        print(f"{weight:6.2f}  {name}")
    for split in ("dev", "test"):
        for label, weights in (("committed", LEARNED), ("learned now", learned)):
            for share in (0.0, 0.5, 1.0):
                days = [without_mentions(day, share, random.Random(1)) for day in days_of(arguments.folder, split)]
                precision, recall, f = pairs(days, gold, weights)
                print(
                    f"{split:5} {label:12} without {share:.0%} of the mentions: "
                    f"precision {precision:.3f} recall {recall:.3f} F {f:.3f}"
                )
    if arguments.write:
        path = Path(linking.__file__).with_name("linker_weights.json")
        path.write_text(json.dumps(learned, indent=2) + "\n", encoding="utf-8")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
