"""The names of the topics in contracts.toml, without a prefix. Pure.

Everything else about topics is in ``rtfm.contracts.catalogue``.
"""

from __future__ import annotations

MESSAGES = "discord-messages"
QUERIES = "bot-queries"
RESPONSES = "bot-responses"
DEAD_LETTERS = "dead-letters"
