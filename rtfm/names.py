"""The topic names of contracts.toml, without a prefix. The catalogue owns everything else about topics. Pure."""

from __future__ import annotations

MESSAGES = "discord-messages"
QUERIES = "bot-queries"
RESPONSES = "bot-responses"
DEAD_LETTERS = "dead-letters"
