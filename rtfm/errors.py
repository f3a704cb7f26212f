"""The errors that cross rooms: who must act, and whether trying again can help.

Adapters translate a vendor's exception with ``raise … from exc``; above them no vendor's exception is named.
The first argument of each is one line for the person who must act: what, where. ``hint`` says what to do.
"""

from __future__ import annotations


class RtfmError(Exception):
    """Anything this project raises on purpose."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(RtfmError):
    """The operator must change something; the command line exits with 2."""


class PermanentError(RtfmError):
    """This event can never succeed; it belongs in dead-letters."""


class UndecodableRecord(PermanentError):
    """The bytes are not a record of the schema that they name."""


class UnknownSchema(PermanentError):
    """The registry answered that the schema id does not exist."""


class InvalidEvent(PermanentError):
    """The record decodes, but breaks a rule that the schema cannot say."""


class TransientError(RtfmError):
    """Trying again later can succeed: pause and back off."""


class Unavailable(TransientError):
    """A dependency does not answer; the command line exits with 3."""

    def __init__(self, dependency: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.dependency = dependency


class Throttled(TransientError):
    """A dependency asks for fewer requests."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
