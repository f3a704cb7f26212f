"""What a command's exit code tells a script. A command returns one of these; an error that it raises becomes one."""

from __future__ import annotations

from rtfm.errors import ConfigError, RtfmError, TransientError

DONE = 0
CHECK_FAILED = 1
USAGE = 2  # usage or configuration; click's own code for usage
UNREACHABLE = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def of(error: RtfmError) -> int:
    """The exit code of an error."""
    match error:
        case ConfigError():
            return USAGE
        case TransientError():
            return UNREACHABLE
        case _:
            return CHECK_FAILED
