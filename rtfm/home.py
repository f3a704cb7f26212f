"""``RTFM_HOME`` belongs to one user: it holds passwords, Kafka's logs and what people said.

Owns the folder's mode, 0700: made so, and made so again where it is wider, with a line in the log. What stands in it is
not looked at.
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
    """Make the folder where it is not there, and close it to other users.

    Raises OSError when it cannot be made. One that is another user's, a home folder or shared by all is left as it is.
    """
    home = home.absolute()
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process was quicker
            home.mkdir(mode=PRIVATE_MODE)
    restrict_to_owner(home)


def restrict_to_owner(home: Path) -> None:
    """Take the rights of other users from the folder ``home``, if it is there and our own."""
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
            "RTFM_HOME was open to other users and is closed now",
            folder=str(path),
            mode=f"{mode & ~0o077:04o}",
            was=f"{mode:04o}",
        )
