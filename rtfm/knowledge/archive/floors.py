"""The calibrated floors of each guild: one per mode of search, with the number of passages at the calibration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import and_, or_, select, text

from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.tables import corpora, floors, upsert

_LOCK = "hashtextextended('rtfm calibration ' || :guild, 0)"


class ArchiveFloors:
    """Reads and writes the table ``floors``. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def count_if_outgrown(self, guild_id: str, mode: str, *, growth: float) -> int:
        """Return the number of a guild's passages if the guild's floor for ``mode`` is due for calibration, else 0.

        A floor is due if it does not exist yet, or if the guild has at least ``growth`` times as many passages as at
        the last calibration.
        """
        statement = (
            select(corpora.c.passages)
            .outerjoin(floors, and_(floors.c.guild_id == corpora.c.guild_id, floors.c.mode == mode))
            .where(
                corpora.c.guild_id == guild_id,
                or_(floors.c.passages.is_(None), corpora.c.passages >= growth * floors.c.passages),
            )
        )
        with self._database.read() as connection:
            return int(connection.execute(statement).scalar() or 0)

    def put(self, guild_id: str, mode: str, floor: float, passages: int) -> None:
        """Store a guild's floor for a mode of search, and the number of passages at its calibration."""
        values = {"guild_id": guild_id, "mode": mode, "floor": floor, "passages": passages}
        with self._database.begin() as connection:
            connection.execute(upsert(floors, "guild_id", "mode"), values)

    @contextmanager
    def try_lock(self, guild_id: str) -> Iterator[bool]:
        """Lock the calibration of a guild for the block; yield False if another process holds the lock.

        A connection is in use until the block ends, but no transaction is open.
        """
        values = {"guild": guild_id}
        with self._database.read() as connection:
            is_locked = bool(connection.execute(text(f"SELECT pg_try_advisory_lock({_LOCK})"), values).scalar_one())
            try:
                yield is_locked
            finally:
                if is_locked:
                    connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"), values)
