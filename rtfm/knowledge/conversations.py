"""From a channel's messages to conversations and passages. Pure: no I/O, no clock.

Owns which message belongs to which conversation. Replies and threads are certain; otherwise each conversation of the
channel's last 100 messages, and a new one, gets a linear score, and the best takes the message. A decision is never
revised. What is decided depends on those 100 messages only, so that it does not matter how they were cut into batches.

The features and their weights were learned on public help chat; the reasoning is in docs/decisions/.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from operator import mul

import attrs
from attrs import define, field, frozen

from rtfm.events import ChannelKind, TimestampMillis
from rtfm.knowledge.words import strip_mentions, terms

WINDOW = 100
"""Messages of the channel that a conversation may have been silent for."""

MAX_CANDIDATES = 30
"""Conversations, most recent first, that are weighed for a message."""

PASSAGE_WORDS = 400
"""Words after which a conversation goes on in another passage."""

_NAME_AT_START = re.compile(r"^\W?([\w\[\]{}|`^\-]{2,32})[:,>]\s")
_NAME_AT_END = re.compile(r"[\s,]([\w\[\]{}|`^\-]{2,32})[.!?]*$")
_QUESTION = re.compile(r"\?|^\s*(?:how|what|where|why|who|which|can|could|does|is there|anyone|any)\b", re.IGNORECASE)


@frozen(kw_only=True)
class Said:
    """A message as the linker sees it. ``conversation_id`` is None while it is not linked."""

    message_id: str
    author_id: str
    author_name: str | None
    content: str
    mentioned_user_ids: Sequence[str] = ()
    reply_to_message_id: str | None = None
    conversation_id: str | None = None


@frozen(kw_only=True)
class Weights:
    """Weights of the linear score. Distances are log2(1 + messages between)."""

    addressee_here: float = 1.7
    addressee_last_here: float = 0.72
    addressee_distance: float = -0.69
    speaker_here: float = 1.39
    speaker_last_here: float = 0.52
    speaker_distance: float = -0.23
    spoken_to_here: float = 0.87
    spoken_to_last_here: float = 1.51
    pair_here: float = 0.84
    both_here: float = 0.4
    addressee_elsewhere: float = -3.88
    open_distance: float = -0.88
    open_speaker_absent: float = -1.53
    open_speaker_near: float = 0.77
    same_as_previous: float = 0.43
    overlap: float = 4.2
    overlap_open_absent: float = 1.17
    size: float = -0.32
    known: float = 0.42
    new: float = -0.42
    new_speaker_unseen: float = 0.97
    new_open_question: float = 0.53
    new_speaker_distance: float = -0.27
    new_addressee_unseen: float = 1.33


LEARNED = Weights()
_KNOWN_FEATURES = 19
"""Weights that concern a conversation that exists; the others concern a new one."""


@frozen(kw_only=True)
class Seen:
    """A message in the window. ``place`` counts messages from the start of the run."""

    place: int
    author_id: str
    addressees: tuple[str, ...]
    conversation_id: str
    words: frozenset[str]


def in_one_conversation(kind: ChannelKind) -> bool:
    """Whether the whole channel is one conversation: threads and forum posts are."""
    return kind in (ChannelKind.PUBLIC_THREAD, ChannelKind.PRIVATE_THREAD, ChannelKind.FORUM_POST)


def thread_conversation(channel_id: str) -> str:
    """The conversation of a thread. A thread has the id of the message that it grew from, which is in another one."""
    return f"t{channel_id}"


def link(
    messages: Sequence[Said], *, replied: Mapping[str, str] | None = None, weights: Weights = LEARNED
) -> dict[str, str]:
    """The conversation of each message that had none: message id → conversation id.

    ``messages`` are of one channel, in order, with the linked ones that came before. ``replied`` gives the
    conversation of messages outside ``messages`` that are replied to. A new conversation has its first message's id.
    """
    state = _LinkerState(weights=weights)
    known = dict(replied or {})
    linked: dict[str, str] = {}
    for message in messages:
        addressees = state.addressees(message)
        words = frozenset(terms(message.content))
        conversation = (
            message.conversation_id
            or known.get(message.reply_to_message_id or "")
            or state.best(message, addressees, words)
        )
        if message.conversation_id is None:
            linked[message.message_id] = conversation
        known[message.message_id] = conversation
        state.add(message, addressees, words, conversation)
    return linked


@define
class _ConversationState:
    """What the score needs of a conversation, from its messages in the window."""

    last: int = -1
    size: int = 0
    last_of: dict[str, int] = field(factory=dict)
    spoke_to: set[str] = field(factory=set)
    pairs: set[tuple[str, str]] = field(factory=set)
    words: set[str] = field(factory=set)


@define(kw_only=True)
class _LinkerState:
    weights: Weights
    window: deque[Seen] = field(factory=lambda: deque(maxlen=WINDOW))
    names: dict[str, str] = field(factory=dict)
    place: int = 0

    def addressees(self, message: Said) -> tuple[str, ...]:
        found = [user for user in message.mentioned_user_ids if user != message.author_id]
        if not found:
            for pattern in (_NAME_AT_START, _NAME_AT_END):
                name = pattern.search(message.content)
                author = self.names.get(name.group(1).lower()) if name else None
                if author and author != message.author_id:
                    found.append(author)
                    break
        return tuple(dict.fromkeys(found))

    def add(self, message: Said, addressees: tuple[str, ...], words: frozenset[str], conversation_id: str) -> None:
        self.window.append(
            Seen(
                place=self.place,
                author_id=message.author_id,
                addressees=addressees,
                conversation_id=conversation_id,
                words=words,
            )
        )
        self.place += 1
        if message.author_name:
            self.names[message.author_name.lower()] = message.author_id

    def best(self, message: Said, addressees: tuple[str, ...], words: frozenset[str]) -> str:
        weights = attrs.astuple(self.weights)
        best, best_score = message.message_id, -math.inf
        for conversation_id, features in choices(self.window, self.place, message, addressees, words):
            score = sum(map(mul, weights, features))
            if score > best_score:
                best, best_score = conversation_id or message.message_id, score
        return best


def choices(
    window: Iterable[Seen], place: int, message: Said, addressees: tuple[str, ...], words: frozenset[str]
) -> list[tuple[str | None, tuple[float, ...]]]:
    """Where a message may belong: (conversation id, or None for a new one; a value for each of ``Weights``' fields)."""
    speaker = message.author_id
    seen_last: Seen | None = None
    conversations: dict[str, _ConversationState] = {}
    last_by: dict[str, tuple[int, str]] = {}
    last_to_speaker: tuple[int, str] | None = None
    frequency: Counter[str] = Counter()
    count = 0
    for seen in window:
        count += 1
        state = conversations.setdefault(seen.conversation_id, _ConversationState())
        state.last = seen.place
        state.size += 1
        state.last_of[seen.author_id] = seen.place
        for user in seen.addressees:
            state.spoke_to.add(user)
            state.pairs.add((seen.author_id, user))
        state.words |= seen.words
        frequency.update(seen.words)
        last_by[seen.author_id] = (seen.place, seen.conversation_id)
        if speaker in seen.addressees:
            last_to_speaker = (seen.place, seen.conversation_id)
        seen_last = seen
    addressee = next((user for user in addressees if user in last_by), next(iter(addressees), None))
    rarity = {word: math.log((count + 2) / (frequency[word] + 1)) for word in words}
    total_rarity = sum(rarity.values()) or 1.0
    own_last = last_by.get(speaker)
    is_open = addressee is None

    found: list[tuple[str | None, tuple[float, ...]]] = [
        (
            None,
            (0.0,) * _KNOWN_FEATURES
            + (
                1.0,
                float(own_last is None),
                float(is_open and bool(_QUESTION.search(message.content))),
                math.log2(1 + place - own_last[0]) if own_last else 7.0,
                float(addressee is not None and addressee not in last_by),
            ),
        )
    ]
    for conversation_id, state in sorted(conversations.items(), key=lambda item: -item[1].last)[:MAX_CANDIDATES]:
        speaker_at = state.last_of.get(speaker)
        addressee_at = None if addressee is None else state.last_of.get(addressee)
        here = addressee_at is not None
        absent = is_open and speaker_at is None
        shared = sum(value for word, value in rarity.items() if word in state.words) / total_rarity
        answers_speaker = (
            last_to_speaker is not None
            and last_to_speaker[1] == conversation_id
            and (own_last is None or last_to_speaker[0] > own_last[0])
        )
        goes_on = (
            seen_last is not None and seen_last.conversation_id == conversation_id and seen_last.author_id == speaker
        )
        features = (
            here,
            here and addressee is not None and last_by[addressee][1] == conversation_id,
            0.0 if addressee_at is None else math.log2(1 + place - addressee_at),
            speaker_at is not None,
            own_last is not None and own_last[1] == conversation_id,
            0.0 if speaker_at is None else math.log2(1 + place - speaker_at),
            speaker in state.spoke_to,
            answers_speaker,
            not is_open and ((addressee, speaker) in state.pairs or (speaker, addressee) in state.pairs),
            here and speaker_at is not None,
            not is_open and not here,
            math.log2(1 + place - state.last) if is_open else 0.0,
            absent,
            is_open and speaker_at is not None and place - speaker_at <= 5,
            goes_on,
            shared,
            shared if absent else 0.0,
            math.log2(1 + state.size),
            1.0,
        )
        found.append((conversation_id, (*map(float, features), 0.0, 0.0, 0.0, 0.0, 0.0)))
    return found


@frozen(kw_only=True)
class Line:
    """A message of a conversation, in order. ``text`` is what is searched: no names, no markup."""

    message_id: str
    text: str
    created_at: TimestampMillis


@frozen(kw_only=True)
class PassageText:
    """A passage before it has a vector."""

    passage_id: str
    text: str
    message_ids: tuple[str, ...]
    first_at: TimestampMillis
    last_at: TimestampMillis


def spoken_text(content: str, names: Sequence[str] = ()) -> str:
    """What a message says, without whom it says it to."""
    text = strip_mentions(content).strip()
    start = _NAME_AT_START.match(f"{text} ")
    if start and start.group(1).lower() in {name.lower() for name in names}:
        text = text[start.end() :]
    return text.strip(" ,:")


def passages(conversation_id: str, lines: Sequence[Line]) -> list[PassageText]:
    """The passages of a conversation: whole messages, about 400 words each.

    The first is named for the conversation, the n-th after it ``<conversation>.<n>``. Messages without text are left
    out.
    """
    parts: list[list[Line]] = []
    words = 0
    for line in lines:
        if not line.text:
            continue
        count = len(line.text.split())
        if not parts or words + count > PASSAGE_WORDS:
            parts.append([])
            words = 0
        parts[-1].append(line)
        words += count
    return [
        PassageText(
            passage_id=conversation_id if number == 0 else f"{conversation_id}.{number}",
            text="\n".join(line.text for line in part),
            message_ids=tuple(line.message_id for line in part),
            first_at=part[0].created_at,
            last_at=part[-1].created_at,
        )
        for number, part in enumerate(parts)
    ]
