"""The exit codes of commands. ``of`` returns the exit code of an error."""

from __future__ import annotations

from rtfm.errors import ConfigError, RtfmError, TransientError

DONE = 0
CHECK_FAILED = 1
USAGE = 2  # wrong usage or configuration; click uses the same code
UNREACHABLE = 3
INTERRUPTED = 130  # 128 + SIGINT, as in shells


def of(error: RtfmError) -> int:
    """Return the exit code of an error."""
    match error:
        case ConfigError():
            return USAGE
        case TransientError():
            return UNREACHABLE
        case _:
            return CHECK_FAILED
