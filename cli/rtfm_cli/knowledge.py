"""What was said, for commands that search it themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from rtfm.knowledge import Knowledge, open_knowledge
from rtfm_cli.options import load_settings
from rtfm_cli.printing import echo


@contextmanager
def opened_knowledge() -> Iterator[Knowledge]:
    """The knowledge of the settings, and one line for people when search goes by words alone."""
    with closing(open_knowledge(load_settings(log_level="ERROR"))) as knowledge:
        if knowledge.retriever.mode == "lexical":
            echo("No embedding model: search goes by words. `rtfm-cli doctor --fetch-model` fetches it.", err=True)
        yield knowledge
