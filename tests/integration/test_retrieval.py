"""The passages that search finds, and for which readers, on real PostgreSQL and Chroma."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from rtfm.errors import ConfigError, InvalidEvent
from rtfm.events import ChannelKind, DiscordMessage
from rtfm.knowledge import Knowledge, Retriever, console_scope
from rtfm.processor.ingest import Ingest
from rtfm.settings import Settings
from tests.knowledge import GUILD, RecordOfEvent, WordEmbedding, knowledge_of, message

FLOWERS = ["tulip", "rose", "lily", "daisy", "iris", "poppy", "peony", "aster"]


@pytest.fixture(params=["hybrid", "lexical"])
def knowledge(bare_settings: Settings, request: pytest.FixtureRequest) -> Iterator[Knowledge]:
    """The knowledge, once with and once without an embedding model."""
    opened = knowledge_of(bare_settings, WordEmbedding() if request.param == "hybrid" else None)
    yield opened
    opened.vectors.forget_guild(GUILD)
    opened.close()


def ingest(knowledge: Knowledge, *events: DiscordMessage) -> None:
    Ingest(knowledge=knowledge)([RecordOfEvent(event) for event in events])


def found(knowledge: Knowledge, question: str, visible: list[str], guild_id: str | None = GUILD) -> set[str]:
    result = knowledge.retriever.search(question, guild_id=guild_id, visible_channel_ids=visible, limit=50)
    return {one.message_id for passage in [*result.passages, *result.nearby] for one in passage.messages}


def in_channel(number: int, text: str, channel: str, kind: ChannelKind, parent: str | None = None) -> DiscordMessage:
    return message(number, text, channel_id=channel, channel_kind=kind, parent_channel_id=parent, author_id=str(number))


ROOMS = (
    in_channel(1, "tulip bulbs in the open", "200", ChannelKind.TEXT),
    in_channel(2, "tulip bulbs in the staff room", "300", ChannelKind.TEXT),
    in_channel(3, "tulip bulbs in a thread", "201", ChannelKind.PUBLIC_THREAD, "200"),
    in_channel(4, "tulip bulbs in a post", "401", ChannelKind.FORUM_POST, "400"),
    in_channel(5, "tulip bulbs in a private thread", "202", ChannelKind.PRIVATE_THREAD, "200"),
    in_channel(6, "tulip bulbs in a place unknown", "203", ChannelKind.UNKNOWN, "200"),
    in_channel(7, "tulip bulbs in a thread without parent", "204", ChannelKind.PUBLIC_THREAD),
)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ([], set()),
        (["999"], set()),
        (["200"], {"1001", "1003"}),
        (["400"], {"1004"}),
        (["202"], {"1005"}),
        (["201"], {"1003"}),
        (["203", "204"], {"1006", "1007"}),
        (["200", "300", "400"], {"1001", "1002", "1003", "1004"}),
    ],
)
def test_only_what_may_be_seen_is_found(knowledge: Knowledge, visible: list[str], expected: set[str]) -> None:
    """Search finds messages of the visible channels, and of public threads and posts whose parent is visible.

    If no channel is visible, search finds nothing.
    """
    ingest(knowledge, *ROOMS)
    assert found(knowledge, "tulip bulbs", visible) == expected


def test_another_guild_finds_nothing_even_with_the_right_channels(knowledge: Knowledge) -> None:
    """A search in one guild finds no message of another guild and no direct message, even in listed channels."""
    ingest(
        knowledge,
        *ROOMS,
        message(8, "tulip bulbs in private", guild_id=None, channel_id="500", channel_kind=ChannelKind.DIRECT),
    )
    assert found(knowledge, "tulip bulbs", ["200"], guild_id="101") == set()
    assert found(knowledge, "tulip bulbs", ["500"]) == set()
    assert found(knowledge, "tulip bulbs", ["500", "200"], guild_id=None) == {"1008"}


def test_more_channels_than_a_guild_can_have_are_refused(knowledge: Knowledge) -> None:
    """A search with more channels than a guild can have is refused, because the SQL statement would be huge."""
    with pytest.raises(InvalidEvent, match="20000"):
        found(knowledge, "tulip", [str(number) for number in range(20_001)])


@pytest.mark.parametrize("question", ["", "  ", "?", "\x00", "the of and", "<@1>", "x" * 20_000, "'|&!:*\\"])
def test_a_question_without_words_is_no_error(knowledge: Knowledge, question: str) -> None:
    """A question without words that can be searched raises no error."""
    ingest(knowledge, *ROOMS)
    found(knowledge, question, ["200"])


def test_a_question_about_something_else_finds_nothing(knowledge: Knowledge) -> None:
    """If no passage is related to a question, search finds nothing.

    An unrelated answer is worse than none.
    """
    ingest(knowledge, *ROOMS)
    result = knowledge.retriever.search(
        "which gearbox oil suits a tractor", guild_id=GUILD, visible_channel_ids=["200"], limit=5
    )
    assert not result.found


def test_random_channels_leak_nothing_and_lose_nothing(knowledge: Knowledge) -> None:
    """For 60 random readers, search finds all visible messages that contain the given flower, and no hidden message."""
    rng = random.Random(7)
    kinds = [*ChannelKind]
    rooms = []
    for number in range(30):
        kind = rng.choice(kinds)
        parent = str(200 + rng.randrange(8)) if rng.random() < 0.6 else None
        rooms.append((str(200 + number), kind, parent))
    said = []
    for number in range(120):
        channel, kind, parent = rng.choice(rooms)
        said.append(in_channel(number, f"{rng.choice(FLOWERS)} bulbs number{number}", channel, kind, parent))
    ingest(knowledge, *said)
    for _ in range(60):
        visible = [str(200 + rng.randrange(34)) for _ in range(rng.randrange(6))]
        flower = rng.choice(FLOWERS)
        for one in found(knowledge, f"{flower} bulbs", visible):
            event = said[int(one) - 1000]
            public = event.channel_kind in (ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST)
            assert event.channel_id in visible or (public and event.parent_channel_id in visible)
        expected = {
            event.message_id
            for event in said
            if flower in event.content
            and (
                event.channel_id in visible
                or (
                    event.channel_kind in (ChannelKind.PUBLIC_THREAD, ChannelKind.FORUM_POST)
                    and event.parent_channel_id in visible
                )
            )
        }
        assert expected <= found(knowledge, f"{flower} bulbs", visible)


def test_mentions_are_shown_by_name(knowledge: Knowledge) -> None:
    """A mention is shown as the name that the mentioned person has in the guild.

    The person's id would mean nothing to a reader, and a real mention would notify the person. A name from another
    guild stays private.
    """
    ingest(
        knowledge,
        message(3, "tulips are my secret", author_id="9", author_name="eve", guild_id="77", channel_id="770"),
        message(1, "my tulips wither", author_id="1", author_name="ada"),
        message(2, "<@1> water your tulips, ask <@9>", author_id="2", mentioned_user_ids=["1", "9"]),
    )
    result = knowledge.retriever.search("tulips wither water", guild_id=GUILD, visible_channel_ids=["200"], limit=1)
    assert result.passages[0].messages[1].content == "@ada water your tulips, ask @someone"


def test_a_large_guild_is_searched_through_chroma(bare_settings: Settings) -> None:
    """If a guild is searched in Chroma, as large guilds are, hidden passages do not displace visible passages."""
    knowledge = knowledge_of(bare_settings, WordEmbedding())
    narrow = Retriever(knowledge.archive, knowledge.vectors, knowledge.embedding, exact_limit=0)
    crowd = [
        in_channel(number, f"tulip bulbs tulip garden number{number}", "300", ChannelKind.TEXT) for number in range(300)
    ]
    ingest(knowledge, *crowd, in_channel(900, "garden of tulip and much else besides", "200", ChannelKind.TEXT))
    result = narrow.search("tulip garden", guild_id=GUILD, visible_channel_ids=["200"], limit=5)
    assert [one.message_id for passage in result.passages for one in passage.messages] == ["1900"]
    knowledge.vectors.forget_guild(GUILD)
    knowledge.close()


def test_the_console_sees_the_only_guild_but_no_private_places(knowledge: Knowledge) -> None:
    """If there is one guild, the console searches it without private threads, unknown kinds and direct messages.

    Such channels are searched only if the command names them.
    """
    ingest(knowledge, *ROOMS, message(8, "tulip", guild_id=None, channel_id="500", channel_kind=ChannelKind.DIRECT))
    guild_id, visible = console_scope(knowledge.archive)
    assert guild_id == GUILD
    assert found(knowledge, "tulip bulbs", visible) == {"1001", "1002", "1003", "1004", "1007"}
    assert console_scope(knowledge.archive, channel_ids=["202"]) == (GUILD, ["202"])
    assert console_scope(knowledge.archive, channel_ids=["500"]) == (None, ["500"])


def test_the_console_asks_which_guild_when_there_are_several(knowledge: Knowledge) -> None:
    """If there are several guilds, the command must name one of them, because a guess would mix communities."""
    assert console_scope(knowledge.archive) == (None, [])
    ingest(knowledge, *ROOMS, message(9, "tulip", guild_id="101", channel_id="600"))
    with pytest.raises(ConfigError, match="several guilds") as caught:
        console_scope(knowledge.archive)
    assert "100, 101" in str(caught.value.hint)
    assert console_scope(knowledge.archive, "101") == ("101", ["600"])
    for wrong in ({"guild_id": "5"}, {"channel_ids": ["5"]}, {"guild_id": "101", "channel_ids": ["200"]}):
        with pytest.raises(ConfigError):
            console_scope(knowledge.archive, **wrong)
