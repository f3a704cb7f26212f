"""Which message of a channel belongs to which conversation. Pure: no I/O, no clock.

Replies and threads are certain. Otherwise each conversation of the channel's last 100 messages, and a new one, gets a
linear score, and the best takes the message. A decision is never revised. It depends on those 100 messages, and on
whom they address, only: given the last ``CONTEXT`` messages, it does not matter how the rest was cut into batches.

The weights in ``weights.json`` were learned on public help chat by ``benchmarks/learn_linking.py``; docs/decisions/ has
the reasoning.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from pathlib import Path

from attrs import define, field, frozen

from rtfm.events import ChannelKind
from rtfm.knowledge.words import strip_mentions, terms

WINDOW = 100
"""Messages of the channel that a conversation may have been silent for."""

CONTEXT = 2 * WINDOW
"""Messages that must be known before the first one that is to be linked: the names in a window lie before it."""

MAX_CANDIDATES = 30
"""Conversations, most recent first, that are weighed for a message."""

MAX_CHARACTERS = 4_000
"""Of a message, what is read of it: Discord's own limit. An import may bring more."""

_NAME = r"[\w\[\]{}|`^\-]{2,32}"
NAME_AT_START = re.compile(rf"\A\W{{0,20}}({_NAME})\s*[:,>]\s")
_NAMES = re.compile(_NAME)
_QUESTION = re.compile(r"\?|^\s*(?:how|what|where|why|who|which|can|could|does|is there|anyone|any)\b", re.IGNORECASE)

_AGREEMENT = re.compile(
    r"\b(?:thanks|thank you|thx|ty|cheers|ok|okay|yes|no|yeah|yep|nope|lol|right|sure|oh|ah|hmm|got it|np)\b",
    re.IGNORECASE,
)

_COMMON = 4
"""A name that occurs as often without addressing anybody is a word of the language, too."""

_SCARCE = 60
"""Messages whose share of addressed ones says how people address each other here."""

_MEMORY = 25.0
"""Messages after which a word that was said counts half."""


def _beginning(content: str) -> str:
    return content[:MAX_CHARACTERS]


@frozen(kw_only=True)
class Said:
    """A message as the linker sees it. ``conversation_id`` is None while it is not linked."""

    message_id: str
    author_id: str
    author_name: str | None
    # What is behind them tells nothing about whom it answers, and would be compared with a hundred others.
    content: str = field(converter=_beginning)
    mentioned_user_ids: Sequence[str] = ()
    reply_to_message_id: str | None = None
    conversation_id: str | None = None


@frozen(kw_only=True)
class Seen:
    """A message in the window. ``place`` counts messages from the start of the run."""

    place: int
    author_id: str
    name: str
    addressees: tuple[str, ...]
    conversation_id: str
    words: frozenset[str]
    tokens: frozenset[str]
    asks: bool


FEATURES = (
    # a: whom the message addresses; s: who says it; distances are log2(1 + messages between)
    "a is here",
    "a spoke here last",
    "a and s are here",
    "distance to a",
    "s is here",
    "s spoke here last",
    "distance to s",
    "s was addressed here",
    "distance to what was said to s",
    "here s was addressed since s spoke last",
    "a and s spoke to each other here",
    "a is not here",
    "a is not here, but was addressed here",
    "open: distance to the conversation",
    "open: distance to the conversation, and addressing is scarce",
    "open: s is not here",
    "open: s spoke here within 5",
    "open: here s was addressed since s spoke last",
    "the message before is here",
    "the message before is here, and asks",
    "open: s is here, and asks",
    "agreement: here s was addressed since s spoke last",
    "agreement, open: s is not here",
    "rare words in common",
    "rare words in common, the recent ones more",
    "open: rare words in common, the recent ones more",
    "neither a nor s is here: rare words in common, the recent ones more",
    "size",
    "share of the last 10 messages",
    "open: s is not here, one person asks",
    "speakers",
    "s's share of it",
    "open: s is not here, and addressing is scarce",
    "s began it",
    "open: s is here, by the number of conversations of s",
    "new",
    "new: s is new",
    "new: distance to s",
    "new, open: distance to s",
    "new: rare words",
    "new: addressing is scarce",
    "new, open",
    "new, open: asks",
    "new, open: asks, and s is not new",
    "new: at most 4 words",
    "new: agreement",
)
_KNOWN_FEATURES = 35
"""Features of a conversation that exists; the others are those of a new one."""

LEARNED: tuple[float, ...] = tuple(
    json.loads(Path(__file__).with_name("weights.json").read_text(encoding="utf-8"))[name] for name in FEATURES
)
"""A weight for each feature."""


def in_one_conversation(kind: ChannelKind) -> bool:
    """Whether the whole channel is one conversation: threads and forum posts are."""
    return kind in (ChannelKind.PUBLIC_THREAD, ChannelKind.PRIVATE_THREAD, ChannelKind.FORUM_POST)


def thread_conversation(guild_id: str, channel_id: str) -> str:
    """The conversation of a thread. A thread has the id of the message that it grew from, which is in another one.

    No id has a slash, so that no message's conversation can be taken for that of a thread.
    """
    return f"thread/{guild_id}/{channel_id}"


def link(
    messages: Sequence[Said], *, replied: Mapping[str, str] | None = None, weights: Sequence[float] = LEARNED
) -> dict[str, str]:
    """The conversation of each message that had none: message id → conversation id.

    ``messages`` are of one channel, in order, with the linked ones that came before. ``replied`` gives the
    conversation of messages outside ``messages`` that are replied to. A new conversation has its first message's id.
    """
    window = Window()
    known = dict(replied or {})
    linked: dict[str, str] = {}
    for message in messages:
        conversation = message.conversation_id or known.get(message.reply_to_message_id or "")
        if conversation is None:
            conversation = _best(window.choices(message), weights) or message.message_id
        if message.conversation_id is None:
            linked[message.message_id] = conversation
        known[message.message_id] = conversation
        window.add(message, conversation)
    return linked


def _best(choices: Iterable[tuple[str | None, tuple[float, ...]]], weights: Sequence[float]) -> str | None:
    best, best_score = None, -math.inf
    for conversation_id, features in choices:
        score = sum(map(mul, weights, features))
        if score > best_score:
            best, best_score = conversation_id, score
    return best


@define
class _ConversationState:
    """What the score needs of a conversation, from its messages in the window."""

    began: str
    last: int = -1
    size: int = 0
    recent: int = 0
    asks: bool = False
    last_of: dict[str, int] = field(factory=dict)
    said_by: Counter[str] = field(factory=Counter)
    spoken_to: dict[str, int] = field(factory=dict)
    pairs: set[tuple[str, str]] = field(factory=set)
    words: dict[str, int] = field(factory=dict)


@define
class Window:
    """The last 100 messages of a channel, with their conversations."""

    _seen: deque[Seen] = field(factory=deque)
    _place: int = 0
    _tokens: Counter[str] = field(factory=Counter)

    def add(self, message: Said, conversation_id: str) -> None:
        """Take in a message that is linked."""
        addressees = self._addressees(message)
        named = {seen.name for seen in self._seen if seen.author_id in addressees}
        tokens = frozenset(_tokens(message)) - named
        self._seen.append(
            Seen(
                place=self._place,
                author_id=message.author_id,
                name=(message.author_name or "").lower(),
                addressees=addressees,
                conversation_id=conversation_id,
                words=frozenset(terms(message.content)),
                tokens=tokens,
                asks=bool(_QUESTION.search(message.content)),
            )
        )
        self._tokens.update(tokens)
        self._place += 1
        if len(self._seen) > WINDOW:
            self._tokens.subtract(self._seen.popleft().tokens)

    def _addressees(self, message: Said) -> tuple[str, ...]:
        """Whom a message speaks to: mentions, else a name of the window at its start, its end or within."""
        mentioned = tuple(dict.fromkeys(user for user in message.mentioned_user_ids if user != message.author_id))
        if mentioned:
            return mentioned
        names = {seen.name: seen.author_id for seen in self._seen if seen.author_id != message.author_id}
        start = NAME_AT_START.match(message.content)
        if start and start.group(1).lower() in names:
            return (names[start.group(1).lower()],)
        tokens = _tokens(message)
        for place, token in [*zip((0, -1), tokens[:1] + tokens[-1:], strict=False), *enumerate(tokens, start=1)]:
            rare = self._tokens[token] < (_COMMON if place <= 0 else _COMMON / 2)
            if token in names and rare and len(token) >= (3 if place <= 0 else 4):
                return (names[token],)
        return ()

    def choices(self, message: Said) -> list[tuple[str | None, tuple[float, ...]]]:
        """Where a message may belong: (conversation id, or None for a new one; a value for each of ``FEATURES``)."""
        speaker, place = message.author_id, self._place
        addressees, words = self._addressees(message), frozenset(terms(message.content))
        conversations: dict[str, _ConversationState] = {}
        last_by: dict[str, tuple[int, str]] = {}
        last_to_speaker: tuple[int, str] | None = None
        frequency: Counter[str] = Counter()
        for seen in self._seen:
            state = conversations.get(seen.conversation_id)
            if state is None:
                state = conversations[seen.conversation_id] = _ConversationState(seen.author_id)
            state.last, state.asks = seen.place, seen.asks
            state.size += 1
            state.recent += place - seen.place <= 10
            state.last_of[seen.author_id] = seen.place
            state.said_by[seen.author_id] += 1
            for user in seen.addressees:
                state.spoken_to[user] = seen.place
                state.pairs.add((seen.author_id, user))
            for word in seen.words & words:
                state.words[word] = seen.place
            frequency.update(seen.words & words)
            last_by[seen.author_id] = (seen.place, seen.conversation_id)
            if speaker in seen.addressees:
                last_to_speaker = (seen.place, seen.conversation_id)
        addressee = next((user for user in addressees if user in last_by), next(iter(addressees), None))
        rarity = {word: math.log((len(self._seen) + 2) / (frequency[word] + 1)) for word in words}
        total_rarity = sum(rarity.values()) or 1.0
        own_last = last_by.get(speaker)
        is_open = addressee is None
        asks = bool(_QUESTION.search(message.content))
        agrees = bool(_AGREEMENT.search(message.content[:30]))
        scarce = 1.0 - self._share_addressed()
        own_conversations = sum(speaker in state.last_of for state in conversations.values())
        distance = _log(place - own_last[0]) if own_last else 7.0
        new = (
            1.0,
            float(own_last is None),
            distance,
            distance if own_last and is_open else 0.0,
            min(total_rarity, 30.0) / 10,
            scarce,
            float(is_open),
            float(is_open and asks),
            float(is_open and asks and own_last is not None),
            float(len(message.content.split()) <= 4),
            float(agrees),
        )
        found: list[tuple[str | None, tuple[float, ...]]] = [(None, (0.0,) * _KNOWN_FEATURES + new)]
        latest = sorted(conversations.items(), key=lambda item: -item[1].last)[:MAX_CANDIDATES]
        for conversation_id, state in latest:
            speaker_at = state.last_of.get(speaker)
            addressee_at = None if addressee is None else state.last_of.get(addressee)
            absent = is_open and speaker_at is None
            told_at = state.spoken_to.get(speaker)
            overlap = sum(rarity[word] for word in state.words) / total_rarity
            recent_overlap = (
                sum(rarity[word] * 2 ** ((said - place) / _MEMORY) for word, said in state.words.items()) / total_rarity
            )
            answers_speaker = (
                last_to_speaker is not None
                and last_to_speaker[1] == conversation_id
                and (own_last is None or last_to_speaker[0] > own_last[0])
            )
            features = (
                addressee_at is not None,
                addressee is not None and addressee_at is not None and last_by[addressee][1] == conversation_id,
                addressee_at is not None and speaker_at is not None,
                0.0 if addressee_at is None else _log(place - addressee_at),
                speaker_at is not None,
                own_last is not None and own_last[1] == conversation_id,
                0.0 if speaker_at is None else _log(place - speaker_at),
                told_at is not None,
                0.0 if told_at is None else _log(place - told_at),
                answers_speaker,
                not is_open and ((addressee, speaker) in state.pairs or (speaker, addressee) in state.pairs),
                not is_open and addressee_at is None,
                not is_open and addressee_at is None and addressee in state.spoken_to,
                _log(place - state.last) if is_open else 0.0,
                scarce * _log(place - state.last) if is_open else 0.0,
                absent,
                is_open and speaker_at is not None and place - speaker_at <= 5,
                is_open and answers_speaker,
                state.last == place - 1,
                state.last == place - 1 and state.asks,
                is_open and speaker_at is not None and asks,
                agrees and answers_speaker,
                agrees and absent,
                overlap,
                recent_overlap,
                recent_overlap if is_open else 0.0,
                recent_overlap if speaker_at is None and addressee_at is None else 0.0,
                _log(state.size),
                state.recent / 10,
                absent and len(state.last_of) == 1 and state.asks,
                _log(len(state.last_of)),
                state.said_by[speaker] / state.size,
                scarce if absent else 0.0,
                state.began == speaker,
                1 / own_conversations if is_open and speaker_at is not None else 0.0,
            )
            found.append((conversation_id, (*map(float, features), *(0.0,) * len(new))))
        return found

    def _share_addressed(self) -> float:
        latest = list(self._seen)[-_SCARCE:]
        # As if a few messages had come before, of which as many were addressed as usual.
        return (sum(bool(seen.addressees) for seen in latest) + 8) / (len(latest) + 20)


def _log(distance: int) -> float:
    return math.log2(1 + distance)


def _tokens(message: Said) -> list[str]:
    return _NAMES.findall(strip_mentions(message.content).lower())
