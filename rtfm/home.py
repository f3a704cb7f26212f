"""The access rights of ``RTFM_HOME``, which holds passwords, Kafka's logs and people's messages.

Owns the folder's mode, 0700. A wider mode is narrowed, with a line in the log. The files in it are left alone.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from rtfm.telemetry import get_logger

_log = get_logger(__name__)

PRIVATE_MODE = 0o700


def make_private(home: Path) -> None:
    """Create the folder if it is missing, and restrict it to its owner.

    A folder that belongs to another user, is a home folder or is shared by all users stays as it is. Raises OSError
    if it cannot be created.
    """
    home = home.absolute()
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process created it first
            home.mkdir(mode=PRIVATE_MODE)
    restrict_to_owner(home)


def restrict_to_owner(home: Path) -> None:
    """Remove other users' rights from the folder ``home``, if it exists and is our own."""
    try:
        status = home.stat()
    except OSError:
        return
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o077 or status.st_uid != os.geteuid():
        return
    path = home.resolve()
    if mode & stat.S_ISVTX or path == Path(path.anchor) or path == Path.home().resolve():
        _log.warning("RTFM_HOME can be read by other users", folder=str(path), mode=f"{mode:04o}")
        return
    with suppress(OSError):
        path.chmod(mode & ~0o077)
        _log.warning(
            "RTFM_HOME was open to other users; its mode is restricted now",
            folder=str(path),
            mode=f"{mode & ~0o077:04o}",
            was=f"{mode:04o}",
        )
