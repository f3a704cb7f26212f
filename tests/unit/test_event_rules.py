"""The rules for ids and times. The encoders refuse an event that breaks a rule."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.events import events
from rtfm.contracts import EVENT_OF_TOPIC, EventCodec, catalogue
from rtfm.errors import InvalidEvent
from rtfm.events import (
    DISCORD_ORIGINS,
    MAX_TIMESTAMP,
    MIN_TIMESTAMP,
    BotQuery,
    ContextMessage,
    MessageSource,
    QueryOrigin,
    Speaker,
    TimestampMillis,
    find_broken_rule,
    find_broken_rules,
    is_id_field,
    to_datetime,
)

NOW = TimestampMillis(time.time_ns() // 1_000_000)
(MESSAGE,) = events("discord-messages", 1)
(QUERY,) = events("bot-queries", 1)
(RESPONSE,) = events("bot-responses", 1)
OF_TOPIC = {"discord-messages": MESSAGE, "bot-queries": QUERY, "bot-responses": RESPONSE}
CODECS: dict[str, EventCodec[Any]] = {
    topic: EventCodec(EVENT_OF_TOPIC[topic], catalogue.load().topics[topic].schema or {}) for topic in OF_TOPIC
}

NO_IDS = [
    "",
    "a b",
    "ann@example.org ",
    "5\n",
    "\u00b2",
    "\u0664\u0665",
    "x" * 129,
    "5" * 129,
    "a\x00",
    "<@5>",
    "a/b",
    "é",
]
NO_SNOWFLAKES = ["helpdesk-7", "ann@example.org", str(2**64), "5" * 21, "-5", "5.0", "c0ffee"]


@pytest.mark.parametrize("value", NO_IDS)
def test_text_of_another_format_is_not_an_id(value: str) -> None:
    """An id must be short, and of a format that each store accepts; the error does not repeat an invalid id."""
    for source, origin in itertools.product(MessageSource, QueryOrigin):
        for event, name in (
            (evolve(MESSAGE, source=source, guild_id=value), "guild_id"),
            (evolve(MESSAGE, source=source, mentioned_user_ids=["5", value]), "mentioned_user_ids"),
            (evolve(QUERY, origin=origin, query_id=value), "query_id"),
            (evolve(QUERY, origin=origin, visible_channel_ids=["5", value]), "visible_channel_ids"),
        ):
            broken = find_broken_rule(event, now=NOW)
            assert broken is not None
            assert str(broken) == f"{name} must match [A-Za-z0-9._:@-]{{1,128}}"


@pytest.mark.parametrize("value", NO_SNOWFLAKES)
def test_other_programs_have_ids_of_their_own_and_discord_has_decimals_of_64_bits(value: str) -> None:
    """Other programs may have ids of their own, and ids of Discord are decimals of at most 64 bits.

    The source of a message and the origin of a question decide which rule applies.
    """
    for source in MessageSource:
        broken = find_broken_rule(evolve(MESSAGE, source=source, author_id=value), now=NOW)
        if source in (MessageSource.GATEWAY, MessageSource.HISTORY):
            assert (
                str(broken)
                == f"author_id must be a Discord id (an integer below 2**64), because source is {source.value}"
            )
        else:
            assert broken is None
    for origin in QueryOrigin:
        broken = find_broken_rule(evolve(QUERY, origin=origin, asker_id=value), now=NOW)
        if origin in DISCORD_ORIGINS:
            assert (
                str(broken)
                == f"asker_id must be a Discord id (an integer below 2**64), because origin is {origin.value}"
            )
        else:
            assert broken is None


def test_the_largest_snowflake_and_the_id_of_a_question_keep_the_rule() -> None:
    """The largest snowflake is valid, and so is a query id with letters and punctuation."""
    assert find_broken_rule(evolve(MESSAGE, message_id=str(2**64 - 1)), now=NOW) is None
    assert find_broken_rule(evolve(QUERY, query_id="i1-a:b@c._"), now=NOW) is None


def test_a_field_inside_a_list_is_named_with_its_place() -> None:
    """The error for an invalid id in a list names the field and the position in the list."""
    turns = [ContextMessage(speaker=Speaker.BOT, content="", message_id=value) for value in ("5", None, "x y")]
    broken = find_broken_rule(evolve(QUERY, context=turns), now=NOW)
    assert broken is not None
    assert broken.field == "context[2].message_id"


@pytest.mark.parametrize("value", [MIN_TIMESTAMP - 1, MAX_TIMESTAMP + 1, -(2**63), 2**63 - 1, 1_700_000_000_000_000])
def test_a_time_outside_the_years_1_to_9999_breaks_the_rule(value: int) -> None:
    """A time outside the years 1 to 9999 breaks the rule; a time in microseconds is the usual mistake."""
    wrong = TimestampMillis(value)
    for topic, name in (
        ("discord-messages", "created_at"),
        ("discord-messages", "edited_at"),
        ("discord-messages", "observed_at"),
        ("bot-queries", "asked_at"),
        ("bot-queries", "expires_at"),
        ("bot-responses", "asked_at"),
        ("bot-responses", "answered_at"),
    ):
        event = evolve(OF_TOPIC[topic], **{name: wrong})
        assert [str(broken) for broken in find_broken_rules(event, now=NOW)] == [
            f"{name} must be in the years 1 to 9999"
        ]
        with pytest.raises(InvalidEvent, match=rf"\.{name} must be in the years 1 to 9999$"):
            CODECS[topic].encode(event, 7)
    citation = evolve(RESPONSE.citations[0], created_at=wrong)
    with pytest.raises(InvalidEvent, match=r"BotResponse\.citations\[0\]\.created_at must be"):
        CODECS["bot-responses"].encode(evolve(RESPONSE, citations=[citation]), 7)


@pytest.mark.parametrize("value", [MIN_TIMESTAMP, MAX_TIMESTAMP, 0, -1])
def test_any_time_of_the_calendar_is_written(value: int) -> None:
    """Any time in the years 1 to 9999 can be written, for example as the time at which a question expires."""
    event = evolve(QUERY, expires_at=TimestampMillis(value))
    assert CODECS["bot-queries"].decode(CODECS["bot-queries"].encode(event, 7)) == event


def test_an_observation_of_the_future_breaks_the_rule() -> None:
    """A time of observation in the future breaks the rule, because it would override all reports until that time."""
    ahead = evolve(MESSAGE, observed_at=TimestampMillis(NOW + 60_001))
    assert str(find_broken_rule(ahead, now=NOW)) == "observed_at must not be more than a minute after the present time"
    assert find_broken_rule(ahead, now=TimestampMillis(NOW + 1)) is None


def test_the_encoder_compares_observations_with_the_clock() -> None:
    """The encoder refuses a time of observation in the future, also after it has encoded a valid time."""
    codec = CODECS["discord-messages"]
    for _ in range(2):
        now = time.time_ns() // 1_000_000
        with pytest.raises(InvalidEvent, match=r"observed_at must not be more than a minute after the present time"):
            codec.encode(evolve(MESSAGE, observed_at=TimestampMillis(now + 120_000)), 7)
        codec.encode(evolve(MESSAGE, observed_at=TimestampMillis(now + 30_000)), 7)


def test_stored_times_of_any_size_make_a_date() -> None:
    """A stored time of any size is shown as a date, because earlier versions stored times beyond the calendar."""
    assert to_datetime(TimestampMillis(2**63 - 1)) == datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC)
    assert to_datetime(TimestampMillis(-(2**63))) == datetime(1, 1, 1, tzinfo=UTC)
    assert to_datetime(TimestampMillis(1_726_854_000_123)) == datetime(2024, 9, 20, 17, 40, 0, 123_000, UTC)


IDS = st.one_of(
    st.integers(0, 2**64 - 1).map(str),
    st.sampled_from([*NO_IDS, *NO_SNOWFLAKES, "5", "5" * 19, "9" * 19, "9" * 20, str(2**64 - 1), "a" * 128]),
)


def with_ids(event: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for ``event`` with some ids changed, including nested ones, and with any source or origin."""
    changed: dict[str, st.SearchStrategy[Any]] = {}
    for attribute in attrs.fields(type(event)):
        value = getattr(event, attribute.name)
        if attribute.name.endswith("_ids"):
            changed[attribute.name] = st.just(value) | st.lists(IDS, max_size=4)
        elif attribute.name.endswith("_id"):
            changed[attribute.name] = st.just(value) | st.just(value) | st.just(value) | IDS
        elif isinstance(value, list) and value and attrs.has(type(value[0])):
            changed[attribute.name] = st.tuples(*map(with_ids, value)).map(list)
    kinds = {"source": MessageSource, "origin": QueryOrigin}
    changed |= {name: st.sampled_from(list(kind)) for name, kind in kinds.items() if hasattr(event, name)}
    return st.builds(evolve, st.just(event), **changed)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(event=st.sampled_from(list(OF_TOPIC)).flatmap(lambda topic: with_ids(OF_TOPIC[topic])))
def test_the_encoder_writes_exactly_the_events_that_keep_the_rules(event: Any) -> None:
    """The encoder refuses exactly the events that break a rule, although its compiled code checks differently."""
    (codec,) = (codec for codec in CODECS.values() if codec.event_class is type(event))
    broken = find_broken_rule(event, now=NOW)
    if broken is None:
        assert codec.decode(codec.encode(event, 7)) == event
    else:
        with pytest.raises(InvalidEvent) as caught:
            codec.encode(event, 7)
        assert str(caught.value) == f"{type(event).__name__}.{broken}"


@pytest.mark.parametrize("event_class", EVENT_OF_TOPIC.values())
def test_every_id_except_those_of_passages_is_checked(event_class: type[Any]) -> None:
    """Every field for ids is checked, except those for ids of passages; a field that is added later is included."""
    names = [attribute.name for attribute in attrs.fields(event_class)]
    assert [name for name in names if name.endswith(("_id", "_ids")) and not is_id_field(name)] == []
    assert not is_id_field("passage_id")


def test_a_query_of_another_program_may_have_ids_of_its_own() -> None:
    """A query of another program may have an e-mail address as an id."""
    asked = BotQuery(
        query_id="helpdesk-5e1c",
        channel_id="0",
        asker_id="ann@example.org",
        question="how?",
        asked_at=NOW,
        expires_at=TimestampMillis(NOW + 60_000),
        audience=QUERY.audience,
        visible_channel_ids=[],
        origin=QueryOrigin.SERVICE,
    )
    assert CODECS["bot-queries"].decode(CODECS["bot-queries"].encode(asked, 7)) == asked
