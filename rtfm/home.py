"""The access rights of ``RTFM_HOME``. The folder contains passwords, Kafka's logs and people's messages.

Only the folder's owner may use it: its mode should be 0700. If other users have rights to the folder, these rights are
removed and a line is logged, with the exceptions that ``restrict_to_owner`` lists. The modes of the files in the folder
are not changed.
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
    """Create the folder ``home`` if it is missing, and restrict it to its owner.

    The mode of a folder stays as it is if the folder belongs to another user, is the user's home folder, or is shared
    by all users, like ``/tmp``. Raises OSError if the folder cannot be created.
    """
    home = home.absolute()
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process created it first
            home.mkdir(mode=PRIVATE_MODE)
    restrict_to_owner(home)


def restrict_to_owner(home: Path) -> None:
    """Remove the rights of other users from the folder ``home``.

    Does nothing if the folder does not exist or belongs to another user. Only logs a warning if the folder is the
    user's home folder or is shared by all users.
    """
    try:
        status = home.stat()
    except OSError:
        return
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o077 or status.st_uid != os.geteuid():
        return
    path = home.resolve()
    if mode & stat.S_ISVTX or path == Path(path.anchor) or path == Path.home().resolve():
        _log.warning(
            "RTFM_HOME is open to other users; set it to a separate folder",
            folder=str(path),
            mode=f"{mode:04o}",
        )
        return
    with suppress(OSError):
        path.chmod(mode & ~0o077)
        _log.warning(
            "RTFM_HOME was open to other users; their rights are removed",
            folder=str(path),
            mode=f"{mode & ~0o077:04o}",
            was=f"{mode:04o}",
        )
