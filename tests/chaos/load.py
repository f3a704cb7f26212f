"""Produces questions and messages for ``make chaos``. At the end of a run, ``account`` checks what became of them.

The content of questions and messages follows from a seed. The messages are in a few channels of one guild, and some of
them are edited or deleted later. The questions ask about the content of these messages. The load also produces invalid
records. It remembers the questions, the last change of each message, and the keys of the invalid records.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import psycopg
from attrs import asdict, evolve, field, frozen

from rtfm.contracts import Contracts
from rtfm.events import Audience, BotQuery, ChannelKind, DiscordMessage, MessageChange, QueryOrigin
from rtfm.events import TimestampMillis as At
from rtfm.settings import Settings
from rtfm.streams.producer import Delivery, EventProducer
from tests.chaos.forger import Forger
from tests.chaos.history import History, now_ms
from tests.streams import MESSAGES, QUERIES, RESPONSES, dead_letters, records

GUILD = "4100"
FIRST_AT_MS = 1_700_000_000_000
THINGS = ["disk", "printer", "mirror", "kernel", "screen", "router", "keyboard", "camera"]


@frozen
class Place:
    """A channel or thread in which messages are written."""

    channel_id: str
    kind: ChannelKind = ChannelKind.TEXT
    parent_channel_id: str | None = None


CHANNELS = [str(4200 + number) for number in range(8)]
PRIVATE_THREAD = Place("4222", ChannelKind.PRIVATE_THREAD, CHANNELS[2])
PLACES = [
    *map(Place, CHANNELS),
    Place("4220", ChannelKind.PUBLIC_THREAD, CHANNELS[0]),
    Place("4221", ChannelKind.FORUM_POST, CHANNELS[1]),
    PRIVATE_THREAD,
]
LISTED = [*CHANNELS, PRIVATE_THREAD.channel_id]
"""The channels that a question may list as visible. A public thread or a forum post is visible if its parent is."""

SOME_LISTED = (0, 1, 2, 4, 6, 8, 8, 9, 9, 9)
"""For each question, one of these numbers is chosen at random. The question lists this many channels of LISTED."""

FORGED = "forged"
FORGED_PER_S = 0.5
"""This many invalid records per second are sent on average, whatever the rates of questions and messages are.

At the usual rates, about 2 in 100 records are invalid.
"""

FIRST_MESSAGES = 120
"""At most this many changes of messages are sent before the first worker starts.

The speed at which the workers archive these messages shows how fast the machine is.
"""


class Load:
    """Produces questions, messages and invalid records in its own thread until ``stop`` is called.

    Questions and messages have separate random generators. Therefore the content of the n-th question or message
    depends only on the seed, and not on the rates.
    """

    def __init__(
        self,
        settings: Settings,
        contracts: Contracts,
        history: History,
        *,
        seed: int,
        questions_per_s: float,
        messages_per_s: float,
    ) -> None:
        self._asking, self._saying, self._waiting, forging = (
            random.Random(f"{seed} {what}") for what in ("ask", "say", "wait", "forge")
        )
        self._forger = Forger(settings, contracts, history, forging)
        self._producer = EventProducer(evolve(settings, kafka_delivery_timeout_s=300.0), contracts)
        self._prefix = settings.kafka_topic_prefix
        self._history = history
        self._rates = {QUERIES: questions_per_s, MESSAGES: messages_per_s, FORGED: FORGED_PER_S}
        self._shares = dict.fromkeys(self._rates, 1.0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._failure: BaseException | None = None
        self._versions: Counter[str] = Counter()
        self.asked: list[str] = []
        self.sent: Counter[str] = Counter()
        """The number of records that were sent to each topic."""
        self.messages: dict[str, DiscordMessage] = {}
        """The last change of each message."""
        self._refused = 0

    @property
    def forged(self) -> list[str]:
        """The keys of the invalid records that must become one dead letter each."""
        return self._forger.keys

    def say(self, count: int) -> None:
        """Send up to ``count`` changes of messages and wait until the brokers have them. Call this before ``start``."""
        for _ in range(count):
            self._say()
        self._producer.flush()

    def start(self) -> None:
        """Start sending questions and messages at their rates."""
        self._thread.start()

    def set_share(self, topic: str, share: float) -> None:
        """From now on, send to ``topic`` at ``share`` times its full rate."""
        self._shares[topic] = share

    def stop(self, timeout_s: float) -> None:
        """Stop sending, and wait up to ``timeout_s`` until the brokers have all records.

        Raises Unavailable if the brokers have not acknowledged all valid records after this time.
        """
        self._done.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        until_s = time.monotonic() + timeout_s
        # The waits are short, because Python handles no signals during a call of librdkafka.
        while len(self._producer) and time.monotonic() < until_s:
            time.sleep(0.1)
        self._producer.flush(1)
        self._forger.flush(max(1.0, until_s - time.monotonic()))

    def close(self) -> None:
        """Disconnect and drop the records that are not sent yet."""
        self._done.set()
        self._producer.close(0)
        self._forger.close()

    def _run(self) -> None:
        try:
            actions = {QUERIES: self._ask, MESSAGES: self._say, FORGED: self._forge}
            due = {topic: time.monotonic() for topic in self._rates}
            while not self._done.is_set():
                for topic, rate in self._rates.items():
                    while due[topic] <= time.monotonic() and not self._done.is_set():
                        due[topic] += self._waiting.expovariate(rate * self._shares[topic])
                        actions[topic]()
                time.sleep(0.005)
        except Exception as exc:  # raised by stop() in the main thread
            self._failure = exc

    def _ask(self) -> None:
        chance = self._asking
        thing, place = chance.choice(THINGS), chance.randrange(50)
        query = BotQuery(
            query_id=f"c{len(self.asked) - self._refused}",
            guild_id=GUILD,
            channel_id=chance.choice(CHANNELS),
            asker_id="7",
            question=f"how do I repair {thing} number {place}?",
            asked_at=At(now_ms()),
            expires_at=At(9_999_999_999_999),
            audience=Audience.PUBLIC,
            visible_channel_ids=sorted(chance.sample(LISTED, chance.choice(SOME_LISTED))),
            origin=QueryOrigin.CONSOLE,
        )
        self._history.write(
            "asked",
            query_id=query.query_id,
            key=query.query_id,
            channel_id=query.channel_id,
            guild_id=query.guild_id,
            visible_channel_ids=query.visible_channel_ids,
        )
        self.asked.append(query.query_id)
        self._send(QUERIES, query, query_id=query.query_id)

    def _forge(self) -> None:
        topic, query_id = self._forger.forge()
        self.sent[topic] += 1
        if query_id is not None:
            self.asked.append(query_id)
            self._refused += 1

    def _say(self) -> None:
        draw = self._saying.random()
        if self.messages and draw < 0.25:
            before = self._saying.choice(list(self.messages.values()))
            if before.change is MessageChange.DELETED:
                return
            message = self._deleted(before) if draw < 0.05 else self._edited(before)
        else:
            message = self._new(len(self.messages))
        self._versions[message.message_id] += 1
        version = self._versions[message.message_id]
        self._history.write(
            "said",
            message_id=message.message_id,
            channel_id=message.channel_id,
            parent_channel_id=message.parent_channel_id,
            channel_kind=message.channel_kind.value,
            change=message.change.value,
            version=version,
            content=message.content,
        )
        self.messages[message.message_id] = message
        self._send(MESSAGES, message, message_id=message.message_id, version=version)

    def _send(self, topic: str, event: BotQuery | DiscordMessage, **known_as: object) -> None:
        def note(delivery: Delivery) -> None:
            if delivery.error is None:
                where = {"topic": self._prefix + topic, "partition": delivery.partition, "offset": delivery.offset}
                self._history.write("acknowledged", **where, **known_as)

        self._producer.send(topic, event, on_delivery=note)
        self.sent[topic] += 1

    def _new(self, number: int) -> DiscordMessage:
        chance = self._saying
        thing, place, where = chance.choice(THINGS), chance.randrange(50), chance.choice(PLACES)
        return DiscordMessage(
            message_id=str(10_000 + number),
            guild_id=GUILD,
            channel_id=where.channel_id,
            channel_kind=where.kind,
            parent_channel_id=where.parent_channel_id,
            author_id=str(chance.randrange(20)),
            author_name=f"nick{number % 20}",
            content=f"to repair {thing} number {place} turn it off and run `repair-{thing} --port {number}`",
            created_at=At(FIRST_AT_MS + 1000 * number),
            change=MessageChange.CREATED,
        )

    def _edited(self, before: DiscordMessage) -> DiscordMessage:
        return evolve(
            before,
            change=MessageChange.EDITED,
            content=f"{before.content.partition(' (again')[0]} (again {self._saying.randrange(10**6)})",
            edited_at=At((before.edited_at or before.created_at) + 1),
        )

    def _deleted(self, before: DiscordMessage) -> DiscordMessage:
        return DiscordMessage(
            message_id=before.message_id,
            guild_id=GUILD,
            channel_id=before.channel_id,
            channel_kind=before.channel_kind,
            parent_channel_id=before.parent_channel_id,
            created_at=before.created_at,
            change=MessageChange.DELETED,
        )


@frozen(kw_only=True)
class LoadAccount:
    """The part of a run's account that compares the results of the run with what the load produced.

    ``forged`` counts the invalid records that must become dead letters, and ``buried`` those of them that became one.
    ``dead_letters`` counts all other dead letters. If nothing is wrong, ``answered`` equals ``asked``, ``archived``
    equals ``messages``, ``buried`` equals ``forged``, and ``missing``, ``duplicated``, ``out_of_order`` and
    ``dead_letters`` are zero. See docs/delivery.md.
    """

    asked: int
    answered: int
    missing: int
    duplicated: int
    out_of_order: int
    messages: int
    archived: int
    forged: int
    buried: int
    dead_letters: int
    outcomes: dict[str, int] = field(factory=dict)

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        wrong = self.missing or self.duplicated or self.out_of_order or self.dead_letters
        done = self.asked == self.answered and self.messages == self.archived and self.forged == self.buried
        return done and not wrong

    def as_dict(self) -> dict[str, object]:
        """Return the fields by name, for the JSON of the account."""
        return asdict(self)


def account(settings: Settings, contracts: Contracts, load: Load) -> LoadAccount:
    """Compare the committed responses, the dead letters and the archive with what ``load`` produced.

    A message in the archive counts as out of order if its content or its deletion differs from its last change.
    """
    responses = [record.event for record in records(settings, contracts, RESPONSES)]
    counts = Counter(response.query_id for response in responses)
    letters = Counter((letter.key or b"").decode(errors="replace") for letter in dead_letters(settings, contracts))
    forged = set(load.forged)
    with psycopg.connect(settings.database_url) as connection:
        rows = connection.execute("SELECT message_id, content, deleted FROM messages").fetchall()
    archived = {message_id: (content, deleted) for message_id, content, deleted in rows}
    expected = {
        message.message_id: (message.content, message.change is MessageChange.DELETED)
        for message in load.messages.values()
    }
    return LoadAccount(
        asked=len(load.asked),
        answered=len(counts.keys() & set(load.asked)),
        missing=len(set(load.asked) - counts.keys()),
        duplicated=sum(count - 1 for count in counts.values()),
        out_of_order=sum(
            archived[message_id] != expected[message_id] for message_id in expected.keys() & archived.keys()
        ),
        messages=len(expected),
        archived=len(archived),
        forged=len(forged),
        buried=len(forged & letters.keys()),
        dead_letters=sum(count - (key in forged) for key, count in letters.items()),
        outcomes=dict(Counter(response.outcome.value for response in responses)),
    )
