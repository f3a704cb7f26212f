"""A fake of Discord for the unmodified discord.py: it serves the REST API and the gateway over real sockets."""

from tests.fakes.discord.server import FakeDiscord
from tests.fakes.discord.world import FakeChannel, FakeGuild, FakeMessage, FakePerson

__all__ = ["FakeChannel", "FakeDiscord", "FakeGuild", "FakeMessage", "FakePerson"]
