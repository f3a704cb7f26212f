"""The names of the topics in contracts.toml, without a prefix; everything else about them is in the catalogue. Pure."""

from __future__ import annotations

MESSAGES = "discord-messages"
QUERIES = "bot-queries"
RESPONSES = "bot-responses"
DEAD_LETTERS = "dead-letters"
