"""Real questions and messages for a run of ``make chaos``, and what must have become of them.

Everything is made from a seed. Messages are said, edited and deleted in a few channels of one guild; questions ask for
what was said. What was produced is remembered, so that the end can be compared with it.
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
from rtfm.streams.producer import EventProducer
from tests.streams import MESSAGES, QUERIES, RESPONSES, dead_letters, records

GUILD = "4100"
CHANNELS = [str(4200 + number) for number in range(12)]
THINGS = ["disk", "printer", "mirror", "kernel", "screen", "router", "keyboard", "camera"]
FIRST_AT_MS = 1_700_000_000_000


class Load:
    """Produces from a thread of its own until ``stop``."""

    def __init__(
        self, settings: Settings, contracts: Contracts, *, seed: int, questions_per_s: float, messages_per_s: float
    ) -> None:
        self._random = random.Random(seed)
        self._producer = EventProducer(evolve(settings, kafka_delivery_timeout_s=300.0), contracts)
        self._rates = {self._ask: questions_per_s, self._say: messages_per_s}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.asked: list[str] = []
        self.messages: dict[str, DiscordMessage] = {}
        """The last change of each message."""

    def start(self) -> None:
        """Begin."""
        for _ in range(200):
            self._say()
        self._producer.flush()
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until the brokers have everything. Raises Unavailable where they have not."""
        self._done.set()
        self._thread.join()
        self._producer.flush(300)
        self._producer.close()

    def _run(self) -> None:
        due = {action: time.monotonic() for action in self._rates}
        while not self._done.is_set():
            for action, rate in self._rates.items():
                while due[action] <= time.monotonic():
                    due[action] += self._random.expovariate(rate)
                    action()
            time.sleep(0.005)

    def _ask(self) -> None:
        number = len(self.asked)
        thing, place = self._random.choice(THINGS), self._random.randrange(50)
        query = BotQuery(
            query_id=f"c{number}",
            guild_id=GUILD,
            channel_id=self._random.choice(CHANNELS),
            asker_id="7",
            question=f"how do I mend {thing} number {place}?",
            asked_at=At(time.time_ns() // 1_000_000),
            expires_at=At(9_999_999_999_999),
            audience=Audience.PUBLIC,
            visible_channel_ids=CHANNELS,
            origin=QueryOrigin.CONSOLE,
        )
        self._producer.send(QUERIES, query)
        self.asked.append(query.query_id)

    def _say(self) -> None:
        draw = self._random.random()
        if self.messages and draw < 0.25:
            before = self._random.choice(list(self.messages.values()))
            if before.change is MessageChange.DELETED:
                return
            message = self._deleted(before) if draw < 0.05 else self._edited(before)
        else:
            message = self._new(len(self.messages))
        self._producer.send(MESSAGES, message)
        self.messages[message.message_id] = message

    def _new(self, number: int) -> DiscordMessage:
        thing, place = self._random.choice(THINGS), self._random.randrange(50)
        return DiscordMessage(
            message_id=str(10_000 + number),
            guild_id=GUILD,
            channel_id=self._random.choice(CHANNELS),
            channel_kind=ChannelKind.TEXT,
            author_id=str(self._random.randrange(20)),
            author_name=f"nick{number % 20}",
            content=f"to mend {thing} number {place} turn it off and run `mend-{thing} --port {number}`",
            created_at=At(FIRST_AT_MS + 1000 * number),
            change=MessageChange.CREATED,
        )

    def _edited(self, before: DiscordMessage) -> DiscordMessage:
        return evolve(
            before,
            change=MessageChange.EDITED,
            content=f"{before.content.partition(' (again')[0]} (again {self._random.randrange(10**6)})",
            edited_at=At((before.edited_at or before.created_at) + 1),
        )

    def _deleted(self, before: DiscordMessage) -> DiscordMessage:
        return DiscordMessage(
            message_id=before.message_id,
            guild_id=GUILD,
            channel_id=before.channel_id,
            channel_kind=ChannelKind.TEXT,
            created_at=before.created_at,
            change=MessageChange.DELETED,
        )


@frozen(kw_only=True)
class Account:
    """What became of a load. ``archived`` is against ``messages``; the others are zero where nothing is wrong."""

    asked: int
    answered: int
    missing: int
    duplicated: int
    out_of_order: int
    messages: int
    archived: int
    dead_letters: int
    outcomes: dict[str, int] = field(factory=dict)

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        wrong = self.missing or self.duplicated or self.out_of_order or self.dead_letters
        return not wrong and self.asked == self.answered and self.messages == self.archived

    def as_dict(self) -> dict[str, object]:
        """For the accounting line."""
        return asdict(self)


def account(settings: Settings, contracts: Contracts, load: Load) -> Account:
    """Compare bot-responses, as a reader of committed records sees it, and the archive with what was produced.

    A message that the archive has in another state than the last one produced counts as out of order.
    """
    responses = [record.event for record in records(settings, contracts, RESPONSES)]
    counts = Counter(response.query_id for response in responses)
    with psycopg.connect(settings.database_url) as connection:
        rows = connection.execute("SELECT message_id, content, deleted FROM messages").fetchall()
    archived = {message_id: (content, deleted) for message_id, content, deleted in rows}
    wanted = {
        message.message_id: (message.content, message.change is MessageChange.DELETED)
        for message in load.messages.values()
    }
    return Account(
        asked=len(load.asked),
        answered=len(counts.keys() & set(load.asked)),
        missing=len(set(load.asked) - counts.keys()),
        duplicated=sum(count - 1 for count in counts.values()),
        out_of_order=sum(archived[message_id] != wanted[message_id] for message_id in wanted.keys() & archived.keys()),
        messages=len(wanted),
        archived=len(archived),
        dead_letters=len(dead_letters(settings, contracts)),
        outcomes=dict(Counter(response.outcome.value for response in responses)),
    )
