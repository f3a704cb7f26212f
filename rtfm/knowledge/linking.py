"""Which message of a channel belongs to which conversation. Pure: no I/O, no clock.

Replies and threads are certain. Otherwise each conversation of the channel's last 100 messages, and a new one, gets a
linear score, and the best takes the message. A decision is never revised. It depends on those 100 messages, and on
whom they address, only: given the last ``CONTEXT`` messages, it does not matter how the rest was cut into batches.

The weights in ``linker_weights.json`` were learned on public help chat by ``benchmarks/learn_linking.py``;
docs/decisions/0011 has the reasoning.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import define, field, frozen

from rtfm.events import ChannelKind
from rtfm.knowledge.archive.rows import StoredMessage
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


Features = dict[str, float]
"""Features of one choice by name, those that are 0 left out.

The *speaker* says the message and may address an *addressee*, else the message is *open*. Both are *here* if they spoke
in the conversation, else *absent*; the speaker is *awaited* where somebody addressed them since they last spoke.
Addressing is *scarce* in a channel where few messages address anybody. Distances are log2(1 + messages between).
"""

LEARNED: Mapping[str, float] = json.loads(Path(__file__).with_name("linker_weights.json").read_text(encoding="utf-8"))
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
    messages: Sequence[StoredMessage],
    *,
    replied: Mapping[str, str] | None = None,
    weights: Mapping[str, float] = LEARNED,
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


def _best(choices: Iterable[tuple[str | None, Features]], weights: Mapping[str, float]) -> str | None:
    best, best_score = None, -math.inf
    for conversation_id, features in choices:
        score = sum([weights[name] * value for name, value in features.items()])
        if score > best_score:
            best, best_score = conversation_id, score
    return best


@frozen(kw_only=True)
class WindowMessage:
    """A linked message in the window. ``place`` counts messages from the start of the run."""

    place: int
    author_id: str
    name: str
    addressees: tuple[str, ...]
    conversation_id: str
    words: frozenset[str]
    tokens: frozenset[str]
    asks: bool


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


@frozen(kw_only=True)
class _Incoming:
    """What the score needs of the message to be linked, and of the window around it.

    ``own_last`` is where the speaker spoke last, ``addressed_last`` where they were last addressed, and
    ``addressee_last`` where the addressee spoke last: (place, conversation id), None outside the window.
    """

    place: int
    speaker: str
    addressee: str | None
    is_open: bool
    is_short: bool
    asks: bool
    agrees: bool
    rarity: Mapping[str, float]
    total_rarity: float
    scarce: float
    own_last: tuple[int, str] | None
    addressed_last: tuple[int, str] | None
    addressee_last: tuple[int, str] | None
    own_conversations: int


@define
class Window:
    """The last 100 messages of a channel, with their conversations."""

    _messages: deque[WindowMessage] = field(factory=deque)
    _place: int = 0
    _tokens: Counter[str] = field(factory=Counter)

    def add(self, message: StoredMessage, conversation_id: str) -> None:
        """Take in a message that is linked."""
        text = _read(message)
        addressees = self._addressees(message, text)
        named = {one.name for one in self._messages if one.author_id in addressees}
        tokens = frozenset(_tokens(text)) - named
        self._messages.append(
            WindowMessage(
                place=self._place,
                author_id=message.author_id or "",
                name=(message.author_name or "").lower(),
                addressees=addressees,
                conversation_id=conversation_id,
                words=frozenset(terms(text)),
                tokens=tokens,
                asks=bool(_QUESTION.search(text)),
            )
        )
        self._tokens.update(tokens)
        self._place += 1
        if len(self._messages) > WINDOW:
            self._tokens.subtract(self._messages.popleft().tokens)

    def _addressees(self, message: StoredMessage, text: str) -> tuple[str, ...]:
        """Whom a message speaks to: mentions, else a name of the window at its start, its end or within."""
        speaker = message.author_id or ""
        mentioned = tuple(dict.fromkeys(user for user in message.mentioned_user_ids if user != speaker))
        if mentioned:
            return mentioned
        names = {one.name: one.author_id for one in self._messages if one.author_id != speaker}
        start = NAME_AT_START.match(text)
        if start and start.group(1).lower() in names:
            return (names[start.group(1).lower()],)
        tokens = _tokens(text)
        for place, token in [*zip((0, -1), tokens[:1] + tokens[-1:], strict=False), *enumerate(tokens, start=1)]:
            rare = self._tokens[token] < (_COMMON if place <= 0 else _COMMON / 2)
            if token in names and rare and len(token) >= (3 if place <= 0 else 4):
                return (names[token],)
        return ()

    def choices(self, message: StoredMessage) -> list[tuple[str | None, Features]]:
        """Where a message may belong: (conversation id, or None for a new one; the features of that choice)."""
        text = _read(message)
        words = frozenset(terms(text))
        conversations = self._conversations(words)
        incoming = self._incoming(message, text, words, conversations)
        latest = sorted(conversations.items(), key=lambda item: -item[1].last)[:MAX_CANDIDATES]
        return [
            (None, _of_new(incoming)),
            *((conversation_id, _of_known(incoming, conversation_id, state)) for conversation_id, state in latest),
        ]

    def _conversations(self, words: frozenset[str]) -> dict[str, _ConversationState]:
        """The conversations of the window, with those of ``words`` that occur in them."""
        found: dict[str, _ConversationState] = {}
        for one in self._messages:
            state = found.get(one.conversation_id)
            if state is None:
                state = found[one.conversation_id] = _ConversationState(one.author_id)
            state.last, state.asks = one.place, one.asks
            state.size += 1
            state.recent += self._place - one.place <= 10
            state.last_of[one.author_id] = one.place
            state.said_by[one.author_id] += 1
            for user in one.addressees:
                state.spoken_to[user] = one.place
                state.pairs.add((one.author_id, user))
            for word in one.words & words:
                state.words[word] = one.place
        return found

    def _incoming(
        self,
        message: StoredMessage,
        text: str,
        words: frozenset[str],
        conversations: Mapping[str, _ConversationState],
    ) -> _Incoming:
        speaker = message.author_id or ""
        last_by: dict[str, tuple[int, str]] = {}
        addressed_last: tuple[int, str] | None = None
        frequency: Counter[str] = Counter()
        for one in self._messages:
            frequency.update(one.words & words)
            last_by[one.author_id] = (one.place, one.conversation_id)
            if speaker in one.addressees:
                addressed_last = (one.place, one.conversation_id)
        addressees = self._addressees(message, text)
        addressee = next((user for user in addressees if user in last_by), next(iter(addressees), None))
        rarity = {word: math.log((len(self._messages) + 2) / (frequency[word] + 1)) for word in words}
        return _Incoming(
            place=self._place,
            speaker=speaker,
            addressee=addressee,
            is_open=addressee is None,
            is_short=len(text.split()) <= 4,
            asks=bool(_QUESTION.search(text)),
            agrees=bool(_AGREEMENT.search(text[:30])),
            rarity=rarity,
            total_rarity=sum(rarity.values()) or 1.0,
            scarce=1.0 - self._share_addressed(),
            own_last=last_by.get(speaker),
            addressed_last=addressed_last,
            addressee_last=None if addressee is None else last_by.get(addressee),
            own_conversations=sum(speaker in state.last_of for state in conversations.values()),
        )

    def _share_addressed(self) -> float:
        latest = list(self._messages)[-_SCARCE:]
        # As if a few messages had come before, of which as many were addressed as usual.
        return (sum(bool(one.addressees) for one in latest) + 8) / (len(latest) + 20)


def _of_new(incoming: _Incoming) -> Features:
    """The features of a new conversation."""
    is_known = incoming.own_last is not None
    distance = _log(incoming.place - incoming.own_last[0]) if incoming.own_last else 7.0
    found: Features = {
        "new": 1.0,
        "new_distance_to_speaker": distance,
        "new_rarity": min(incoming.total_rarity, 30.0) / 10,
        "new_scarce": incoming.scarce,
        "new_speaker": not is_known,
        "new_short": incoming.is_short,
        "new_agrees": incoming.agrees,
    }
    if incoming.is_open:
        found |= {
            "new_open": 1.0,
            "new_open_distance_to_speaker": distance if is_known else 0.0,
            "new_open_asks": incoming.asks,
            "new_open_asks_known_speaker": incoming.asks and is_known,
        }
    return found


def _of_known(incoming: _Incoming, conversation_id: str, state: _ConversationState) -> Features:
    """The features of a conversation that exists."""
    place, speaker, addressee = incoming.place, incoming.speaker, incoming.addressee
    speaker_at, addressed_at = state.last_of.get(speaker), state.spoken_to.get(speaker)
    addressee_at = None if addressee is None else state.last_of.get(addressee)
    is_adjacent = state.last == place - 1
    is_awaited = (
        incoming.addressed_last is not None
        and incoming.addressed_last[1] == conversation_id
        and (incoming.own_last is None or incoming.addressed_last[0] > incoming.own_last[0])
    )
    recent_overlap = (
        sum(incoming.rarity[word] * 2 ** ((said - place) / _MEMORY) for word, said in state.words.items())
        / incoming.total_rarity
    )
    found: Features = {
        "adjacent": is_adjacent,
        "adjacent_question": is_adjacent and state.asks,
        "overlap": sum(incoming.rarity[word] for word in state.words) / incoming.total_rarity,
        "recent_overlap": recent_overlap,
        "size": _log(state.size),
        "share_of_last_10": state.recent / 10,
        "speakers": _log(len(state.last_of)),
        "speaker_share": state.said_by[speaker] / state.size,
        "speaker_began": state.began == speaker,
        "speaker_awaited": is_awaited,
        "agrees_speaker_awaited": incoming.agrees and is_awaited,
        "speaker_spoke_here_last": incoming.own_last is not None and incoming.own_last[1] == conversation_id,
    }
    if speaker_at is not None:
        found |= {"speaker_here": 1.0, "distance_to_speaker": _log(place - speaker_at)}
    if addressed_at is not None:
        found |= {"speaker_addressed_here": 1.0, "distance_to_address": _log(place - addressed_at)}
    if speaker_at is None and addressee_at is None:
        found["both_absent_recent_overlap"] = recent_overlap
    if incoming.is_open:
        distance = _log(place - state.last)
        found |= {
            "open_distance": distance,
            "open_distance_scarce": incoming.scarce * distance,
            "open_recent_overlap": recent_overlap,
            "open_speaker_awaited": is_awaited,
        }
        if speaker_at is None:
            found |= {
                "open_speaker_absent": 1.0,
                "open_speaker_absent_scarce": incoming.scarce,
                "open_speaker_absent_lone_question": len(state.last_of) == 1 and state.asks,
                "agrees_open_speaker_absent": incoming.agrees,
            }
        else:
            found |= {
                "open_speaker_within_5": place - speaker_at <= 5,
                "open_speaker_here_asks": incoming.asks,
                "open_speaker_here_by_conversations": 1 / incoming.own_conversations,
            }
    elif addressee is not None:
        found["both_spoke_to_each_other"] = (addressee, speaker) in state.pairs or (speaker, addressee) in state.pairs
        if addressee_at is None:
            found |= {"addressee_absent": 1.0, "addressee_absent_but_addressed": addressee in state.spoken_to}
        else:
            found |= {
                "addressee_here": 1.0,
                "addressee_spoke_here_last": incoming.addressee_last is not None
                and incoming.addressee_last[1] == conversation_id,
                "both_here": speaker_at is not None,
                "distance_to_addressee": _log(place - addressee_at),
            }
    return found


def _log(distance: int) -> float:
    return math.log2(1 + distance)


def _read(message: StoredMessage) -> str:
    """The beginning of a message: what is behind it tells nothing about whom it answers."""
    return message.content[:MAX_CHARACTERS]


def _tokens(text: str) -> list[str]:
    return _NAMES.findall(strip_mentions(text).lower())
