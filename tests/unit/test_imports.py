"""The events that a chat export becomes, and the errors for a file that is not an export."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rtfm.clock import now_ms
from rtfm.errors import ConfigError
from rtfm.events import ChannelKind, MessageChange, MessageSource, TimestampMillis, find_broken_rule
from rtfm.knowledge.imports import MAX_PLACES, read_export


def export(messages: list[Any], **channel: Any) -> dict[str, Any]:
    return {
        "guild": {"id": "100", "name": "Guild"},
        "channel": {"id": "200", "type": "GuildTextChat", "categoryId": "9", "name": "help", **channel},
        "messages": messages,
    }


def entry(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": str(1000 + number),
        "type": "Default",
        "timestamp": "2024-05-01T12:00:00.250+00:00",
        "timestampEdited": None,
        "content": "hello",
        "author": {"id": "1", "name": "ada", "nickname": "Ada L", "isBot": False},
        "attachments": [],
        "mentions": [],
        **fields,
    }


def write_export(path: Path, document: Any) -> Path:
    file = path / "export.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ('{"guild": {"id": "1"},\n "channel": ', "line 2"),
        ("[]", "does not contain a JSON object"),
        ("", "line 1"),
        ({"messages": []}, "guild is missing"),
        ({"guild": {"id": "100"}, "messages": []}, "channel is missing"),
        ({"guild": {"id": "x"}, "channel": {"id": "1", "type": "GuildTextChat"}, "messages": []}, "guild.id"),
        ({"guild": {"id": "1"}, "channel": {"id": 5, "type": "GuildTextChat"}, "messages": []}, "channel.id"),
        ({"guild": {"id": "1"}, "channel": {"id": "5"}, "messages": []}, "channel.type"),
        ({"guild": {"id": "1"}, "channel": {"id": "5", "type": "GuildTextChat"}, "messages": {}}, "messages"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_foreign_file_is_named_with_the_place_in_it(document: Any, place: str, tmp_path: Path) -> None:
    """The error for a file that is not an export names the file and the position in it."""
    file = write_export(tmp_path, document)
    with pytest.raises(ConfigError) as caught:
        read_export(file)
    assert str(file) in str(caught.value)
    assert place in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    """The error for a missing file, or for a file that is not text, names the file."""
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        read_export(tmp_path / "none.json")
    picture = tmp_path / "picture.json"
    picture.write_bytes(b'{"guild"\xff')
    with pytest.raises(ConfigError, match="byte 8: not UTF-8"):
        read_export(picture)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("text", "not a JSON object"),
        (entry(2, id=None), "id is missing"),
        (entry(2, id="1e3"), "id is not a valid id"),
        (entry(2, content=None), "content is missing"),
        (entry(2, content=5), "content is not text"),
        (entry(2, author=None), "author is missing"),
        (entry(2, author={"name": "x"}), "author.id is missing"),
        (entry(2, timestamp="yesterday"), "not an ISO 8601"),
        (entry(2, timestampEdited=7), "timestampEdited"),
        (entry(2, id=str(2**64)), "id is not a valid id: digits as text, at most 64 bits"),
        (entry(2, timestamp="9999-12-31T23:59:59.999-23:59"), "timestamp must lie in the years 1 to 9999"),
        (entry(2, timestampEdited="0001-01-01T00:00:00+23:59"), "timestampEdited must lie in the years 1 to 9999"),
        (entry(2, mentions={}), "mentions is not a list"),
        (entry(2, attachments=[{"url": "x"}]), "attachments.fileName is missing"),
        (entry(2, type="GuildMemberJoin"), "a system message of type GuildMemberJoin"),
    ],
)
def test_a_broken_message_is_left_out_and_the_rest_is_read(broken: Any, why: str, tmp_path: Path) -> None:
    """A broken message is left out, its position and the reason are reported, and the other messages are read."""
    read = read_export(write_export(tmp_path, export([entry(1), broken, entry(3)])))
    assert [message.message_id for message in read.messages()] == ["1001", "1003"]
    (left_out,) = read.left_out.first
    assert left_out.where.startswith("messages[1]")
    assert why in left_out.why


def test_a_message_keeps_everything_that_the_event_has_room_for(tmp_path: Path) -> None:
    """An event keeps milliseconds, nickname, reply, mentions and attachments of its message.

    In the event's content, mentions are in Discord's format.
    """
    document = export(
        [
            entry(
                1,
                type="Reply",
                content="@Bob B try this, not @Bobby",
                timestampEdited="2024-05-01T13:00:00+01:00",
                mentions=[{"id": "2", "name": "bob", "nickname": "Bob B"}],
                reference={"messageId": "999", "channelId": "200", "guildId": "100"},
                attachments=[{"id": "5", "url": "https://cdn.example/a.log", "fileName": "a.log", "fileSizeBytes": 12}],
            )
        ]
    )
    (message,) = read_export(write_export(tmp_path, document)).messages()
    assert message.created_at == 1_714_564_800_250
    assert message.edited_at == 1_714_564_800_000
    assert message.author_name == "Ada L"
    assert message.content == "<@2> try this, not @Bobby"
    assert message.mentioned_user_ids == ["2"]
    assert message.reply_to_message_id == "999"
    assert message.change is MessageChange.CREATED
    assert (message.guild_id, message.channel_id, message.channel_name) == ("100", "200", "help")
    assert message.parent_channel_id is None
    assert message.attachments[0].size_bytes == 12


def test_the_longest_matching_name_is_the_mentioned_one(tmp_path: Path) -> None:
    """A mention means the member with the longest name that matches.

    The names are not joined in one pattern, because the time for this pattern would be the number of names times the
    length of the content.
    """
    people = [{"id": str(i), "name": "x" * i} for i in range(1, 20)] + [{"id": "77", "name": "a@x"}]
    document = export([entry(1, content="@xxx @a@x @xxxy, @x @@xx @", mentions=people)])
    (message,) = read_export(write_export(tmp_path, document)).messages()
    assert message.content == "<@3> <@77> @xxxy, <@1> @<@2> @"


@pytest.mark.parametrize(
    ("kind", "expected", "parent"),
    [
        ("GuildPublicThread", ChannelKind.PUBLIC_THREAD, "9"),
        ("GuildPrivateThread", ChannelKind.PRIVATE_THREAD, "9"),
        ("DirectTextChat", ChannelKind.DIRECT, None),
        ("SomethingNew", ChannelKind.UNKNOWN, None),
    ],
)
def test_the_kind_of_channel_decides_who_may_read_it(
    kind: str, expected: ChannelKind, parent: str | None, tmp_path: Path
) -> None:
    """A channel of an unknown type gets the kind UNKNOWN, and only threads have a parent."""
    (message,) = read_export(write_export(tmp_path, export([entry(1)], type=kind))).messages()
    assert (message.channel_kind, message.parent_channel_id) == (expected, parent)


def test_direct_messages_are_of_no_guild(tmp_path: Path) -> None:
    """Direct messages, which have the guild id 0 in an export, are events without a guild."""
    document = export([entry(1)], type="DirectTextChat")
    document["guild"]["id"] = "0"
    (message,) = read_export(write_export(tmp_path, document)).messages()
    assert message.guild_id is None


def test_half_a_surrogate_pair_becomes_a_character_that_can_be_sent(tmp_path: Path) -> None:
    """UTF-8 cannot encode half of a surrogate pair. The half is replaced, so that the import does not stop."""
    file = write_export(tmp_path, export([entry(1, content="a\ud800b")]))
    (message,) = read_export(file).messages()
    assert message.content == "a\N{REPLACEMENT CHARACTER}b"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A hostile file cannot exhaust memory, because memory does not grow with the file, not even with skipped parts."""
    file = write_export(tmp_path, export([entry(number) if number % 2 else {} for number in range(36_000)]))
    assert file.stat().st_size > 4_000_000
    tracemalloc.start()
    read = read_export(file)
    count = sum(1 for _ in read.messages())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (count, read.count, read.left_out.count) == (18_000, 18_000, 18_000)
    assert len(read.left_out.first) == MAX_PLACES
    assert read.left_out.reasons == {"id is missing": 18_000}
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("id", "id is not a valid id"),
        ("content", "content is not text"),
        ("timestamp", "timestamp is not text"),
        ("x", None),
    ],
)
def test_a_number_of_5000_digits_affects_only_its_message(place: str, why: str | None, tmp_path: Path) -> None:
    """Python refuses to parse a number of 5,000 digits; only the message with such a number is left out.

    In a field that is not read, such a number does no harm.
    """
    document = json.dumps(export([entry(1), entry(2, **{place: "NUMBER"})])).replace('"NUMBER"', "7" * 5_000)
    read = read_export(write_export(tmp_path, document))
    assert [message.message_id for message in read.messages()] == ["1001"] + ["1002"] * (why is None)
    assert [left_out.why for left_out in read.left_out.first if why and why in left_out.why] == [
        left_out.why for left_out in read.left_out.first
    ]


def test_messages_may_come_before_their_channel(tmp_path: Path) -> None:
    """Messages may come before their channel, because members of a JSON object have no order."""
    document = export([entry(1)])
    read = read_export(write_export(tmp_path, dict(reversed(document.items()))))
    (message,) = read.messages()
    assert (message.guild_id, message.channel_id) == ("100", "200")


def test_a_repeated_list_of_messages_is_refused(tmp_path: Path) -> None:
    """A second list of messages is refused, because JSON parsers disagree which of two members with one name counts."""
    document = json.dumps(export([entry(1)]))[:-1] + ', "messages": []}'
    with pytest.raises(ConfigError, match="messages twice"):
        read_export(write_export(tmp_path, document))


def test_many_names_in_a_long_message_take_no_time(tmp_path: Path) -> None:
    """Many names in a long message take little time, because names are searched only where a mention can be."""
    people = [{"id": str(number), "name": f"{'a' * 20}{number}"} for number in range(20_000)]
    read = read_export(write_export(tmp_path, export([entry(1, content="@" * 500_000, mentions=people)])))
    (message,) = read.messages()
    assert message.content == "@" * 500_000


@pytest.mark.parametrize(
    ("exported_at", "observed_at"),
    [
        ({"exportedAt": "2026-03-16T08:00:00+00:00"}, 1_773_648_000_000),
        ({"exportedAt": "9999-12-31T23:59:59.999-23:59"}, None),
        ({"exportedAt": "yesterday"}, None),
        ({"exportedAt": 5}, None),
        ({}, None),
    ],
)
def test_an_export_was_observed_when_it_was_written(
    exported_at: dict[str, Any], observed_at: int | None, tmp_path: Path
) -> None:
    """The messages of an export count as observed when the export was written; newer reports of Discord prevail.

    If an export has no valid time, its messages have no time of observation.
    """
    (message,) = read_export(write_export(tmp_path, export([entry(1)]) | exported_at)).messages()
    assert (message.observed_at, message.source) == (observed_at, MessageSource.IMPORT)
    assert find_broken_rule(message, now=TimestampMillis(1_800_000_000_000)) is None


def test_an_exporter_whose_clock_is_ahead_observed_nothing_of_the_future(tmp_path: Path) -> None:
    """If the exporter's clock is ahead, the messages are valid, and their time of observation is not in the future."""
    (message,) = read_export(
        write_export(tmp_path, export([entry(1)]) | {"exportedAt": "9000-01-01T00:00:00Z"})
    ).messages()
    assert message.observed_at is not None
    assert find_broken_rule(message, now=now_ms()) is None
