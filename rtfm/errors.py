"""The errors that cross package boundaries. Their class says who must act and whether a retry can help.

Adapters translate a vendor's exception with ``raise … from exc``; code above them names no vendor's exception. The
first argument of each error is one line for the person who must act: what, where. ``hint`` says what to do.
"""

from __future__ import annotations


class RtfmError(Exception):
    """The base of every error that this project raises on purpose."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(RtfmError):
    """The operator must change something; the command line exits with 2."""


class PermanentError(RtfmError):
    """This record can never be handled; it belongs in dead-letters."""


class UndecodableRecord(PermanentError):
    """The bytes are not a value of the schema whose id they carry."""


class UnknownSchema(PermanentError):
    """The registry has no usable schema of this id."""


class InvalidEvent(PermanentError):
    """The event breaks a rule that the schema cannot express, or does not fit its schema."""


class TransientError(RtfmError):
    """A later retry can succeed: pause and back off."""


class Unavailable(TransientError):
    """A dependency does not respond; the command line exits with 3."""

    def __init__(self, dependency: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.dependency = dependency


class Throttled(TransientError):
    """A dependency limits the rate of requests; retry after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
