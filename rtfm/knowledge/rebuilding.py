"""Makes Chroma's entries again from the vectors that the archive keeps.

Owns the order: what should be there is written first, what should not is removed afterwards, so that a search finds at
every moment what it found before. Nothing is embedded. Promises that doing it twice is doing it once.
"""

from __future__ import annotations

from attrs import frozen

from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.embedding import from_bytes
from rtfm.knowledge.vectors import ChromaVectors, Entry, message_entry, passage_entry

BATCH = 1000
"""Vectors that are read and written at once: 1.5 MB."""

_TABLES = (("passages", passage_entry), ("messages", message_entry))


@frozen(kw_only=True)
class Rebuilt:
    """What was done for a guild, or would be: entries in all, those that were missing, and those that are no more."""

    guild_id: str
    entries: int
    missing: int
    superfluous: int


def rebuild(
    archive: SqlArchive,
    vectors: ChromaVectors,
    guild_id: str,
    *,
    dry_run: bool = False,
) -> Rebuilt:
    """Bring a guild's collection ('' for direct messages) in line with the archive.

    Raises Unavailable when a store does not answer.
    """
    before = vectors.entry_ids(guild_id)
    wanted: set[str] = set()
    for table, named in _TABLES:
        after = ""
        while stored := archive.writing.vectors_after(table, guild_id, after, limit=BATCH):
            after = stored[-1].id
            rows = from_bytes([one.vector for one in stored])
            entries = [
                Entry(entry_id=named(one.id), passage_id=one.passage_id, vector=row)
                for one, row in zip(stored, rows, strict=True)
            ]
            wanted.update(entry.entry_id for entry in entries)
            if not dry_run:
                vectors.upsert(guild_id, entries)
    # Ingest writes to Chroma first: what it wrote before the beginning may have come into the archive meanwhile.
    superfluous = before - wanted
    for table, named in _TABLES:
        ids = [entry_id[1:] for entry_id in superfluous if entry_id == named(entry_id[1:])]
        superfluous -= {named(found) for found in archive.writing.having_vectors(table, ids)}
    if not dry_run:
        vectors.delete(guild_id, sorted(superfluous))
    return Rebuilt(guild_id=guild_id, entries=len(wanted), missing=len(wanted - before), superfluous=len(superfluous))
