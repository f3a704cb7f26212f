"""The relevance floor of each guild, with the size of the corpus that it was calibrated on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import and_, or_, select, text

from rtfm.knowledge.archive.database import Database
from rtfm.knowledge.archive.tables import corpora, floors, upsert

_LOCK = "hashtextextended('rtfm calibration ' || :guild, 0)"


class ArchiveFloors:
    """Reads and writes of ``floors``. Raises what ``Database.begin`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def outgrown(self, guild_id: str, mode: str, *, growth: float) -> int:
        """The passages of a guild, if it had no calibration or has ``growth`` times those of the last one; else 0."""
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
        """Keep a guild's floor, and the number of passages that it was calibrated on."""
        values = {"guild_id": guild_id, "mode": mode, "floor": floor, "passages": passages}
        with self._database.begin() as connection:
            connection.execute(upsert(floors, "guild_id", "mode"), values)

    @contextmanager
    def try_lock(self, guild_id: str) -> Iterator[bool]:
        """Be the only one who calibrates a guild inside the block; False if another process is at it.

        Holds a connection, without a transaction.
        """
        values = {"guild": guild_id}
        with self._database.read() as connection:
            taken = bool(connection.execute(text(f"SELECT pg_try_advisory_lock({_LOCK})"), values).scalar_one())
            try:
                yield taken
            finally:
                if taken:
                    connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"), values)
