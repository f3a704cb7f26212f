"""A search during which a store fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rtfm.errors import Unavailable
from rtfm.knowledge.archive import GuildCollection
from rtfm.knowledge.retrieval import Retriever


def test_a_search_that_fails_before_it_knows_the_collection_says_so() -> None:
    """If a search fails before it knows the collection, the error is raised, and the search is not repeated.

    A search is repeated only if its collection was replaced meanwhile.
    """
    failures = iter([Unavailable("PostgreSQL", "no answer")])

    def view(*_: object) -> Any:
        raise next(failures, AssertionError("it was begun again"))

    collection = GuildCollection(guild_id="1", generation=1, model=None, dimension=None, rules="1")
    archive = SimpleNamespace(
        reading=SimpleNamespace(view=view), collections=SimpleNamespace(find=lambda _: {"1": collection})
    )
    searched = Retriever(cast("Any", archive), cast("Any", None), None)
    with pytest.raises(Unavailable, match="no answer"):
        searched.search("how do I mount it?", guild_id="1", visible_channel_ids=["2"], limit=3)
