"""Knowledge: stores messages, and finds those that are relevant to a question.

The package owns the archive (PostgreSQL, the source of truth), the vectors (Chroma, derived from the archive), the
embedding model and retrieval. ``open_knowledge`` opens all four. The package does not use Kafka and does not write
answers.
"""

from __future__ import annotations

from attrs import frozen

from rtfm.knowledge.archive import SqlArchive
from rtfm.knowledge.embedding import Embedding, find_model
from rtfm.knowledge.passages import Passage, PassageMessage
from rtfm.knowledge.retrieval import Retriever, SearchResult
from rtfm.knowledge.scope import console_scope
from rtfm.knowledge.vectors import ChromaVectors
from rtfm.settings import Settings

__all__ = [
    "Knowledge",
    "Passage",
    "PassageMessage",
    "Retriever",
    "SearchResult",
    "console_scope",
    "open_knowledge",
]


@frozen(kw_only=True)
class Knowledge:
    """The archive, the vectors, the embedding model and retrieval. ``embedding`` is None if there is no model."""

    archive: SqlArchive
    vectors: ChromaVectors
    embedding: Embedding | None
    retriever: Retriever

    def close(self) -> None:
        """Close all connections."""
        self.retriever.close()
        self.archive.close()
        self.vectors.close()


def open_knowledge(settings: Settings) -> Knowledge:
    """Open the stores and the embedding model of the settings.

    The connections to the stores are made at their first use. Raises ConfigError when the address of a store or the
    folder of the embedding model is invalid.
    """
    archive = SqlArchive(settings.database_url)
    vectors = ChromaVectors(settings.chroma_url, settings.kafka_topic_prefix)
    embedding = find_model(settings)
    return Knowledge(
        archive=archive, vectors=vectors, embedding=embedding, retriever=Retriever(archive, vectors, embedding)
    )
