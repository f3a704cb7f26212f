"""Opens the archive and the search for commands that run retrieval themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from rtfm.knowledge import Knowledge, open_knowledge
from rtfm_cli.options import load_settings
from rtfm_cli.printing import echo


@contextmanager
def open_console_knowledge() -> Iterator[Knowledge]:
    """Open the archive, the vectors and the search of the settings; print a line if there is no embedding model."""
    with closing(open_knowledge(load_settings(log_level="ERROR"))) as knowledge:
        if knowledge.retriever.mode == "lexical":
            echo(
                "No embedding model: RTFM uses keyword search. `rtfm-cli doctor --fetch-model` fetches the model.",
                err=True,
            )
        yield knowledge
