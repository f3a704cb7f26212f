"""A fake Discord with a guild and a question, for the tests of the bot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.discord import FakeDiscord, FakeGuild, FakeMessage


@pytest.fixture
def fake() -> Iterator[FakeDiscord]:
    with FakeDiscord() as server:
        yield server


@pytest.fixture
def guild(fake: FakeDiscord) -> FakeGuild:
    return fake.guild()


@pytest.fixture
def asked(fake: FakeDiscord, guild: FakeGuild) -> FakeMessage:
    """A question in an open channel that was asked before the bot started."""
    return fake.says(guild.channel("general"), fake.person("ada", guild), "!rtfm how?", announce=False)
