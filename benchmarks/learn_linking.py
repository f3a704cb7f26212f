"""Learns the weights of the linker, which are in ``rtfm/knowledge/linker_weights.json``.

``python -m benchmarks.learn_linking FOLDER [--write]`` reads ``exports/*.json`` and ``questions.jsonl`` in FOLDER.
Exports whose names begin with ``dev`` are the training data. Exports whose names begin with ``test`` are only measured.

The data does not contain the conversations. But the relevant messages of each question belong together. These messages
are the known messages, and they form the known conversations. For a known message, the right choices are the
conversations that contain most of the earlier messages of its known conversation, or a new conversation if there are
none. For any other message, all choices are right except the conversations of mostly known messages. The loss is the
negative logarithm of the probability of the right choices (softmax over all choices).

Each day is used three times, with all mentions, with half of them and without any, because communities differ in how
often people mention each other. The known messages before the current message count as linked correctly. If the linker
also learned from its own mistakes, its F would rise, but it would join too many messages, and coverage would fall.
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
from rtfm.knowledge.linking import LEARNED_WEIGHTS, WINDOW, Window

ROUNDS = 2
STEPS = 300
RATE = 0.05
SHRINK = 0.15
"""Half of this number times the sum of the squared weights is added to the sum of the messages' losses."""

UNKNOWN_WEIGHT = 0.2
"""In the loss, a message that is in no known conversation has this weight. A known message has the weight 1."""

ADDED_WEIGHTS = {"new_speaker": 1.2}
"""These amounts are added to the learned weights, by feature.

The exports do not contain the messages that begin the known conversations. Therefore learning sees too few new
conversations of new speakers."""

FEATURES = tuple(LEARNED_WEIGHTS)

_MENTION = re.compile(r"<@!?\d+>[,:]?\s*")

Floats = NDArray[np.float64]
Day = Sequence[StoredMessage]
Gold = dict[str, str]


@frozen(kw_only=True)
class TrainingExample:
    """A message to learn from: a row of features for each choice, and the choices that are right."""

    features: Floats
    right: NDArray[np.bool_]
    weight: float


def read_days(folder: Path, split: str) -> list[Day]:
    """Read the days of a split (``dev`` or ``test``), in order of time."""
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


def read_gold(folder: Path) -> Gold:
    """Read the known conversation of each known message, by message id."""
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return {message: f"gold{row['message_id']}" for row in rows for message in row["relevant_message_ids"]}


def without_mentions(day: Day, share: float, rng: random.Random) -> Day:
    """Return ``day``, where a ``share`` of the messages with mentions, chosen at random, has lost its mentions."""
    return [
        attrs.evolve(message, mentioned_user_ids=[], content=_MENTION.sub("", message.content))
        if message.mentioned_user_ids and rng.random() < share
        else message
        for message in day
    ]


def build_examples(day: Day, gold: Gold, weights: Floats) -> Iterator[TrainingExample]:
    """Yield the examples of a day. In each example, the earlier known messages count as linked correctly."""
    window = Window()
    linked: dict[str, str] = {}
    for place, message in enumerate(day):
        choices = window.choices(message)
        ids = [conversation for conversation, _ in choices]
        features = np.array([[values.get(name, 0.0) for name in FEATURES] for _, values in choices])
        scores = features @ weights
        gold_conversation = gold.get(message.message_id)
        recent = [earlier.message_id for earlier in day[max(0, place - WINDOW) : place]]
        gold_counts: dict[str, Counter[str | None]] = {}
        for message_id in recent:
            gold_counts.setdefault(linked[message_id], Counter())[gold.get(message_id)] += 1
        right = _find_right(ids, gold_counts, gold_conversation)
        if len(ids) > 1 and not right.all():
            yield TrainingExample(features=features, right=right, weight=1.0 if gold_conversation else UNKNOWN_WEIGHT)
        chosen = gold_conversation or ids[int(np.where(right, scores, -math.inf).argmax())] or message.message_id
        linked[message.message_id] = chosen
        window.add(message, chosen)


def _find_right(
    ids: Sequence[str | None], gold_counts: dict[str, Counter[str | None]], gold_conversation: str | None
) -> NDArray[np.bool_]:
    if gold_conversation is None:
        # A new conversation is right, and so is a conversation in which at most half of the messages are known.
        return np.array([name is None or 2 * gold_counts[name][None] >= gold_counts[name].total() for name in ids])
    same = np.array([0 if name is None else gold_counts[name][gold_conversation] for name in ids])
    known = np.array(
        [1 if name is None else max(1, gold_counts[name].total() - gold_counts[name][None]) for name in ids]
    )
    same[same / known < 1 / 3] = 0
    right: NDArray[np.bool_] = same >= max(1, same.max() / 2)
    if not right.any():
        right[0] = True
    return right


def fit(examples: Sequence[TrainingExample], start: Floats) -> Floats:
    """Return the weights with the least loss. They are found with Adam, beginning at ``start``."""
    width = max(len(example.right) for example in examples)
    features = np.zeros((len(examples), width, len(FEATURES)), dtype=np.float32)
    is_candidate = np.zeros((len(examples), width), dtype=bool)
    right = np.zeros_like(is_candidate)
    for row, example in enumerate(examples):
        features[row, : len(example.right)] = example.features
        is_candidate[row, : len(example.right)] = True
        right[row, : len(example.right)] = example.right
    counts = np.array([example.weight for example in examples])
    weights, mean, square = start.copy(), np.zeros(len(start)), np.zeros(len(start))
    for step in range(1, STEPS + 1):
        scores = np.where(is_candidate, features @ weights.astype(np.float32), -1e9)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        target = odds * right
        target /= target.sum(axis=1, keepdims=True) + 1e-12
        slope = np.einsum("nk,nkd->d", (odds - target) * counts[:, None], features) + SHRINK * weights
        slope /= counts.sum()
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        rate = RATE if step < STEPS * 2 // 3 else RATE / 5
        weights -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights


def learn(days: Sequence[Day], gold: Gold) -> Floats:
    """Learn weights from ``days``."""
    variants = [without_mentions(day, share, random.Random(1)) for share in (0.0, 0.5, 1.0) for day in days]
    weights = np.zeros(len(FEATURES))
    for _ in range(ROUNDS):
        weights = fit([example for day in variants for example in build_examples(day, gold, weights)], weights)
    additions: Floats = np.array([ADDED_WEIGHTS.get(name, 0.0) for name in FEATURES])
    return weights + additions


def measure_pairs(days: Sequence[Day], gold: Gold, weights: Mapping[str, float]) -> tuple[float, float, float]:
    """Return precision, recall and F over the pairs of known messages that are in the same conversation."""
    both = ours = theirs = 0
    for day in days:
        linked = linking.link(day, weights=weights)
        known = [message.message_id for message in day if message.message_id in gold]
        for place, message_id in enumerate(known):
            for other in known[:place]:
                is_ours, is_gold = linked[message_id] == linked[other], gold[message_id] == gold[other]
                both, ours, theirs = both + (is_ours and is_gold), ours + is_ours, theirs + is_gold
    precision, recall = both / max(ours, 1), both / max(theirs, 1)
    return precision, recall, 2 * both / max(ours + theirs, 1)


def main() -> None:
    """Learn the weights, measure them, and write them if --write is given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="replace linker_weights.json")
    arguments = parser.parse_args()
    gold = read_gold(arguments.folder)
    fitted = learn(read_days(arguments.folder, "dev"), gold)
    learned = {name: round(float(weight), 3) for name, weight in zip(FEATURES, fitted, strict=True)}
    for name, weight in learned.items():
        print(f"{weight:6.2f}  {name}")
    for split in ("dev", "test"):
        for label, weights in (("committed", LEARNED_WEIGHTS), ("learned now", learned)):
            for share in (0.0, 0.5, 1.0):
                days = [without_mentions(day, share, random.Random(1)) for day in read_days(arguments.folder, split)]
                precision, recall, f = measure_pairs(days, gold, weights)
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
