"""Errors that one package raises and another handles. An error's class says who must act and if a retry can help.

A module that uses a library translates the library's exceptions to these with ``raise … from exc``, so that its callers
need not know the library. The message of each error is one line for the person who must act. It says what is wrong and
where, and ``hint`` says what to do.
"""

from __future__ import annotations


class RtfmError(Exception):
    """The base of every error that this project raises on purpose."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(RtfmError):
    """Something is wrong that the operator must change. A command that fails with this error exits with 2."""


class PermanentError(RtfmError):
    """The record can never be handled, and becomes a dead letter."""


class UndecodableRecord(PermanentError):
    """The bytes are not a value of the schema whose id they carry."""


class UnknownSchema(PermanentError):
    """The registry has no usable schema with the id that the record carries."""


class InvalidEvent(PermanentError):
    """The event does not fit its schema, or breaks a rule that a schema cannot express."""


class TransientError(RtfmError):
    """The operation failed, but a retry can succeed. The caller should wait before it retries."""


class Unavailable(TransientError):
    """A dependency does not respond. A command that fails with this error exits with 3."""

    def __init__(self, dependency: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.dependency = dependency


class Throttled(TransientError):
    """A dependency refuses requests because there were too many; retry after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
