"""Decides which conversation each message of a channel belongs to. Pure: no I/O, no clock.

A reply belongs to the conversation of the message that it replies to, and all messages of a thread are one
conversation. For any other message, the choices are a new conversation and the latest conversations of the channel's
last 100 messages. Each choice gets a linear score, and the message joins the conversation with the highest score. Only
a rebuild revises decisions.

A decision depends only on the message, on these 100 messages and on the people whom they address. If the last
``CONTEXT`` messages before a batch are known, the result does not depend on how messages are divided into batches.

The weights in ``linker_weights.json`` were learned on public help chat by ``benchmarks/learn_linking.py``;
docs/decisions/0011 gives the reasons for this design.
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
"""Number of the channel's latest messages whose conversations a message can join."""

CONTEXT = 2 * WINDOW
"""This many messages before the first message to link must be known.

These are the window of the first message to link, and the 100 messages before the window. The messages of the window
may address the authors of the 100 messages before it."""

MAX_CANDIDATES = 30
"""Maximum number of existing conversations that get a score for a message. The most recent ones are chosen."""

MAX_CHARACTERS = 4_000
"""Maximum number of characters of a message that are read.

This is Discord's limit. Messages from other programs may be longer."""

_NAME = r"[\w\[\]{}|`^\-]{2,32}"
NAME_AT_START = re.compile(rf"\A\W{{0,20}}({_NAME})\s*[:,>]\s")
_NAMES = re.compile(_NAME)
_QUESTION = re.compile(r"\?|^\s*(?:how|what|where|why|who|which|can|could|does|is there|anyone|any)\b", re.IGNORECASE)

_AGREEMENT = re.compile(
    r"\b(?:thanks|thank you|thx|ty|cheers|ok|okay|yes|no|yeah|yep|nope|lol|right|sure|oh|ah|hmm|got it|np)\b",
    re.IGNORECASE,
)

_COMMON_NAME = 4
"""If a name occurs this often in the window, except to address somebody, it counts as an ordinary word.

For a name in the middle of a message, half of this number is enough."""

_SCARCITY_WINDOW = 60
"""The share of messages that address someone is computed from this many of the latest messages."""

_WORD_HALF_LIFE = 25.0
"""A word counts half if it last occurred this many messages ago."""


Features = dict[str, float]
"""The features of one choice, by name. Features that are 0 may be left out.

The names use these words:

- *speaker*: the author of the message to link.
- *addressee*: the person whom the message addresses. A message without an addressee is *open*.
- *here* and *absent*: a person is here if they have spoken in the conversation, otherwise absent.
- *awaited*: the speaker was last addressed in this conversation, and has not spoken in the channel since.
- *scarce*: few messages of the channel address anyone.
- *distance*: log2(1 + d) for two messages of the channel, if the second is the d-th message after the first.
"""

LEARNED_WEIGHTS: Mapping[str, float] = json.loads(
    Path(__file__).with_name("linker_weights.json").read_text(encoding="utf-8")
)
"""The weight of each feature."""


def is_one_conversation(kind: ChannelKind) -> bool:
    """Whether all messages of a channel of this kind are one conversation, as in threads and forum posts."""
    return kind in (ChannelKind.PUBLIC_THREAD, ChannelKind.PRIVATE_THREAD, ChannelKind.FORUM_POST)


def thread_conversation_id(guild_id: str, channel_id: str) -> str:
    """Return the conversation id of a thread.

    The id of the thread alone would not be unique: a thread has the same id as its starter message, and another
    conversation may have the id of this message. Ids contain no slash, so the result differs from the id of every
    message.
    """
    return f"thread/{guild_id}/{channel_id}"


def link(
    messages: Sequence[StoredMessage],
    *,
    replied: Mapping[str, str] | None = None,
    weights: Mapping[str, float] = LEARNED_WEIGHTS,
) -> dict[str, str]:
    """Return the conversation id of each message that had none, by message id.

    ``messages`` are messages of one channel in order, including the linked messages before those to link. ``replied``
    gives the conversation ids of messages that were replied to and are not in ``messages``. The id of a new
    conversation is the id of its first message.
    """
    window = Window()
    known = dict(replied or {})
    linked: dict[str, str] = {}
    for message in messages:
        conversation = message.conversation_id or known.get(message.reply_to_message_id or "")
        if conversation is None:
            conversation = _find_best(window.choices(message), weights) or message.message_id
        if message.conversation_id is None:
            linked[message.message_id] = conversation
        known[message.message_id] = conversation
        window.add(message, conversation)
    return linked


def _find_best(choices: Iterable[tuple[str | None, Features]], weights: Mapping[str, float]) -> str | None:
    best, best_score = None, -math.inf
    for conversation_id, features in choices:
        score = sum([weights[name] * value for name, value in features.items()])
        if score > best_score:
            best, best_score = conversation_id, score
    return best


@frozen(kw_only=True)
class WindowMessage:
    """A linked message in the window. ``place`` is the number of messages that were added before it."""

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
    """The facts about a conversation from which its features are computed. Only messages in the window count.

    ``starter`` is the author of the conversation's first message. ``last`` is the place of its last message, and
    ``asks`` is true if its last message is a question. ``recent_size`` is the number of its messages among the
    channel's last 10. ``last_by`` and ``addressed_at`` give, for each person, the place where they last spoke or were
    last addressed. ``pairs`` are (author, addressee). If a word also occurs in the message
    to link, ``words`` gives the place where the word last occurred in the conversation.
    """

    starter: str
    last: int = -1
    size: int = 0
    recent_size: int = 0
    asks: bool = False
    last_by: dict[str, int] = field(factory=dict)
    messages_by: Counter[str] = field(factory=Counter)
    addressed_at: dict[str, int] = field(factory=dict)
    pairs: set[tuple[str, str]] = field(factory=set)
    words: dict[str, int] = field(factory=dict)


@frozen(kw_only=True)
class _IncomingMessage:
    """The facts about the message to link from which the features are computed.

    ``rarity`` says, for each word of the message, how rare the word is in the window. ``scarce`` is the share of
    messages that address nobody. Three fields refer to a message by its place and conversation id: ``own_last`` to the
    speaker's last message, ``addressed_last`` to the last message that addresses the speaker, and ``addressee_last`` to
    the addressee's last message. A field is None if there is no such message in the window. ``own_conversations`` is
    the number of conversations in which the speaker has spoken.
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
        """Add a linked message."""
        text = _beginning(message)
        addressees = self._find_addressees(message, text)
        names = {earlier.name for earlier in self._messages if earlier.author_id in addressees}
        tokens = frozenset(_tokens(text)) - names
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

    def _find_addressees(self, message: StoredMessage, text: str) -> tuple[str, ...]:
        """Return the ids of the people whom a message addresses.

        These are the mentioned people. Without mentions, a name of someone in the window is looked for at the start of
        the message, at its end, and within it.
        """
        speaker = message.author_id or ""
        mentioned = tuple(dict.fromkeys(user for user in message.mentioned_user_ids if user != speaker))
        if mentioned:
            return mentioned
        names = {earlier.name: earlier.author_id for earlier in self._messages if earlier.author_id != speaker}
        start = NAME_AT_START.match(text)
        if start and start.group(1).lower() in names:
            return (names[start.group(1).lower()],)
        tokens = _tokens(text)
        for place, token in [*zip((0, -1), tokens[:1] + tokens[-1:], strict=False), *enumerate(tokens, start=1)]:
            is_rare = self._tokens[token] < (_COMMON_NAME if place <= 0 else _COMMON_NAME / 2)
            if token in names and is_rare and len(token) >= (3 if place <= 0 else 4):
                return (names[token],)
        return ()

    def choices(self, message: StoredMessage) -> list[tuple[str | None, Features]]:
        """Return the ids of the conversations that a message may belong to, with their features.

        The id None stands for a new conversation.
        """
        text = _beginning(message)
        words = frozenset(terms(text))
        conversations = self._describe_conversations(words)
        incoming = self._describe_incoming(message, text, words, conversations)
        latest = sorted(conversations.items(), key=lambda item: -item[1].last)[:MAX_CANDIDATES]
        return [
            (None, _features_of_new(incoming)),
            *(
                (conversation_id, _features_of_existing(incoming, conversation_id, state))
                for conversation_id, state in latest
            ),
        ]

    def _describe_conversations(self, words: frozenset[str]) -> dict[str, _ConversationState]:
        """Return the state of each conversation in the window. ``words`` are the words of the message to link."""
        found: dict[str, _ConversationState] = {}
        for message in self._messages:
            state = found.get(message.conversation_id)
            if state is None:
                state = found[message.conversation_id] = _ConversationState(message.author_id)
            state.last, state.asks = message.place, message.asks
            state.size += 1
            state.recent_size += self._place - message.place <= 10
            state.last_by[message.author_id] = message.place
            state.messages_by[message.author_id] += 1
            for user in message.addressees:
                state.addressed_at[user] = message.place
                state.pairs.add((message.author_id, user))
            for word in message.words & words:
                state.words[word] = message.place
        return found

    def _describe_incoming(
        self,
        message: StoredMessage,
        text: str,
        words: frozenset[str],
        conversations: Mapping[str, _ConversationState],
    ) -> _IncomingMessage:
        speaker = message.author_id or ""
        last_by: dict[str, tuple[int, str]] = {}
        addressed_last: tuple[int, str] | None = None
        frequency: Counter[str] = Counter()
        for earlier in self._messages:
            frequency.update(earlier.words & words)
            last_by[earlier.author_id] = (earlier.place, earlier.conversation_id)
            if speaker in earlier.addressees:
                addressed_last = (earlier.place, earlier.conversation_id)
        addressees = self._find_addressees(message, text)
        addressee = next((user for user in addressees if user in last_by), next(iter(addressees), None))
        rarity = {word: math.log((len(self._messages) + 2) / (frequency[word] + 1)) for word in words}
        return _IncomingMessage(
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
            own_conversations=sum(speaker in state.last_by for state in conversations.values()),
        )

    def _share_addressed(self) -> float:
        latest = list(self._messages)[-_SCARCITY_WINDOW:]
        # The share of a few messages alone would mean little. Therefore 20 earlier messages are assumed, of which 8
        # address someone. This share is usual.
        return (sum(bool(message.addressees) for message in latest) + 8) / (len(latest) + 20)


def _features_of_new(incoming: _IncomingMessage) -> Features:
    """Return the features of beginning a new conversation."""
    is_known = incoming.own_last is not None
    distance = _log_distance(incoming.place - incoming.own_last[0]) if incoming.own_last else 7.0
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


def _features_of_existing(incoming: _IncomingMessage, conversation_id: str, state: _ConversationState) -> Features:
    """Return the features of joining an existing conversation."""
    place, speaker, addressee = incoming.place, incoming.speaker, incoming.addressee
    speaker_at, speaker_addressed_at = state.last_by.get(speaker), state.addressed_at.get(speaker)
    addressee_at = None if addressee is None else state.last_by.get(addressee)
    is_adjacent = state.last == place - 1
    is_awaited = (
        incoming.addressed_last is not None
        and incoming.addressed_last[1] == conversation_id
        and (incoming.own_last is None or incoming.addressed_last[0] > incoming.own_last[0])
    )
    recent_overlap = (
        sum(incoming.rarity[word] * 2 ** ((last - place) / _WORD_HALF_LIFE) for word, last in state.words.items())
        / incoming.total_rarity
    )
    found: Features = {
        "adjacent": is_adjacent,
        "adjacent_question": is_adjacent and state.asks,
        "overlap": sum(incoming.rarity[word] for word in state.words) / incoming.total_rarity,
        "recent_overlap": recent_overlap,
        "size": _log_distance(state.size),
        "share_of_last_10": state.recent_size / 10,
        "speakers": _log_distance(len(state.last_by)),
        "speaker_share": state.messages_by[speaker] / state.size,
        "speaker_began": state.starter == speaker,
        "speaker_awaited": is_awaited,
        "agrees_speaker_awaited": incoming.agrees and is_awaited,
        "speaker_spoke_here_last": incoming.own_last is not None and incoming.own_last[1] == conversation_id,
    }
    if speaker_at is not None:
        found |= {"speaker_here": 1.0, "distance_to_speaker": _log_distance(place - speaker_at)}
    if speaker_addressed_at is not None:
        found |= {"speaker_addressed_here": 1.0, "distance_to_address": _log_distance(place - speaker_addressed_at)}
    if speaker_at is None and addressee_at is None:
        found["both_absent_recent_overlap"] = recent_overlap
    if incoming.is_open:
        distance = _log_distance(place - state.last)
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
                "open_speaker_absent_lone_question": len(state.last_by) == 1 and state.asks,
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
            found |= {"addressee_absent": 1.0, "addressee_absent_but_addressed": addressee in state.addressed_at}
        else:
            found |= {
                "addressee_here": 1.0,
                "addressee_spoke_here_last": incoming.addressee_last is not None
                and incoming.addressee_last[1] == conversation_id,
                "both_here": speaker_at is not None,
                "distance_to_addressee": _log_distance(place - addressee_at),
            }
    return found


def _log_distance(distance: int) -> float:
    return math.log2(1 + distance)


def _beginning(message: StoredMessage) -> str:
    """Return the part of a message that the linker reads."""
    return message.content[:MAX_CHARACTERS]


def _tokens(text: str) -> list[str]:
    return _NAMES.findall(strip_mentions(text).lower())
