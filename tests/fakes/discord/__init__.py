"""A Discord of our own: REST and gateway over real sockets, for the unmodified discord.py client."""

from tests.fakes.discord.server import FakeDiscord
from tests.fakes.discord.world import FakeChannel, FakeGuild, FakeMessage, FakePerson

__all__ = ["FakeChannel", "FakeDiscord", "FakeGuild", "FakeMessage", "FakePerson"]
