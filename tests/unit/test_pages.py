"""The pages that are generated from the code and the contracts."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from rtfm.contracts import catalogue
from rtfm.contracts.tree import parse, walk
from tests.conftest import CHECKOUT


@pytest.fixture
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CHECKOUT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("topic_name", [topic.name for topic in catalogue.load().topics_with_schema()])
def test_a_page_names_every_field_symbol_reader_and_writer(topic_name: str, generate: ModuleType) -> None:
    """A contract's page names every field, symbol, reader and writer."""
    known = catalogue.load()
    topic = known.topic(topic_name)
    page = generate.contract_page(known, topic)
    for _, node in walk(parse(topic.schema)):
        for entry in node.fields:
            assert f"| `{entry.name}`" in page
        for symbol in node.symbols:
            assert f"`{symbol}`" in page
    for name in (*topic.producers, *topic.consumers, topic.subject, str(topic.compatibility)):
        assert name in page


def test_a_page_that_is_stale_missing_or_left_over_is_named(generate: ModuleType, tmp_path: Path) -> None:
    """The check in `make lint` names each page that is out of date, missing or no longer generated."""
    for name in generate.PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / name)
    assert generate.find_stale(tmp_path) == []
    folder = tmp_path / "docs" / "contracts"
    (folder / "bot-queries.md").write_text("old", encoding="utf-8")
    (folder / "bot-responses.md").unlink()
    (folder / "gone.md").write_text("a topic that was", encoding="utf-8")
    assert generate.find_stale(tmp_path) == [
        f"docs/contracts/{name}.md" for name in ("bot-queries", "bot-responses", "gone")
    ]


def test_pages_show_the_examples_as_their_files_have_them(generate: ModuleType) -> None:
    """docs/contracts.md shows its example as it is in the file, but without the docstring of that file."""
    page = generate.page_with_examples("docs/contracts.md")
    _, _, source = (CHECKOUT / "examples" / "write_message.py").read_text(encoding="utf-8").split('"""', 2)
    assert f"```python\n{source.lstrip()}```\n" in page
    assert page == (CHECKOUT / "docs" / "contracts.md").read_text(encoding="utf-8")
