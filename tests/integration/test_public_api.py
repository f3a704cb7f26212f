"""The programs in examples/, which the documentation shows, run unchanged."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from rtfm.contracts import Contracts, open_contracts
from rtfm.errors import Unavailable
from rtfm.events import MessageChange
from rtfm.settings import Settings
from rtfm.streams import open_producer, open_reader
from tests.conftest import CHECKOUT, environment_of
from tests.registry_proxy import proxy
from tests.streams import MESSAGES, build_message, produce, produce_raw

EXAMPLES = CHECKOUT / "examples"

FOREIGN_READERS: dict[str, tuple[pytest.MarkDecorator, ...]] = {
    "read_with_confluent.py": (),
    "read_with_fastavro.py": (),
    "read_messages.js": (pytest.mark.debian,),
}
"""Examples that do not import rtfm, each with the pytest marks that say what it needs."""


def program(settings: Settings, name: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start an example in ``folder`` with the environment of ``settings``, but without RTFM_HOME."""
    variables = environment_of(settings) | environment
    del variables["RTFM_HOME"]  # other programs do not set this variable
    return subprocess.Popen(
        [sys.executable if name.endswith(".py") else "node", EXAMPLES / name],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def printed_by(settings: Settings, name: str, folder: Path, lines: int, **environment: str) -> list[str]:
    """Return the first ``lines`` lines that an example prints, and stop the example."""
    with program(settings, name, folder, **environment) as reader:
        assert reader.stdout is not None
        try:
            return [reader.stdout.readline() for _ in range(lines)]
        finally:
            reader.kill()


def test_every_example_is_run() -> None:
    """The tests of this module run every program in the folder examples/."""
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".js")}
    assert names == {"read_messages.py", "write_message.py", *FOREIGN_READERS}


def test_the_reader_of_the_docs_prints_what_is_said_and_goes_on_where_it_stopped(
    settings: Settings, tmp_path: Path
) -> None:
    """The documentation's reader prints messages, skips unreadable bytes, and continues after a restart."""
    source = (EXAMPLES / "read_messages.py").read_text(encoding="utf-8")
    assert len([line for line in source.splitlines() if line.strip()]) <= 14
    produce_raw(settings, MESSAGES, b"\xde\xad")
    produce(settings, open_contracts(settings), MESSAGES, build_message(1, content="tide tables"))
    with program(settings, "read_messages.py", tmp_path) as reader:
        assert reader.stdout is not None
        lines = [reader.stdout.readline() for _ in range(2)]
        produce(settings, open_contracts(settings), MESSAGES, build_message(2, content="and maps"))
        lines.append(reader.stdout.readline())
        reader.send_signal(signal.SIGINT)
    assert lines[0].startswith("skipped")
    assert [line.partition(" said ")[2] for line in lines[1:]] == ["tide tables\n", "and maps\n"]
    produce(settings, open_contracts(settings), MESSAGES, build_message(3, content="later"))
    with program(settings, "read_messages.py", tmp_path) as reader:
        assert reader.stdout is not None
        again = reader.stdout.readline()
        while again.endswith("and maps\n"):  # the program ended between printing and committing
            again = reader.stdout.readline()
        reader.send_signal(signal.SIGINT)
    assert again.endswith("said later\n")


def test_the_writer_of_the_docs_is_read_back(settings: Settings, tmp_path: Path) -> None:
    """An event that the documentation's writer produces can be read like this project's own events."""
    with program(settings, "write_message.py", tmp_path) as writer:
        assert writer.wait(60) == 0
    assert [path.name for path in tmp_path.iterdir() if path.name != settings.home.name] == []
    with open_reader(MESSAGES, settings=settings) as reader:
        (record,) = reader.read_to_end()
    assert record.event.content == "tide tables are in the wiki"


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in FOREIGN_READERS.items()])
def test_readers_without_rtfm_print_what_is_said(
    settings: Settings, contracts: Contracts, node_modules: Callable[[], Path], tmp_path: Path, name: str
) -> None:
    """The examples that do not import rtfm print messages in two alphabets and a deletion."""
    first, second = build_message(1, content="tide tables"), build_message(2, content="карты")
    produce(settings, contracts, MESSAGES, first, second, evolve(first, change=MessageChange.DELETED))
    more = {"NODE_PATH": str(node_modules()), "KAFKAJS_NO_PARTITIONER_WARNING": "1"} if name.endswith(".js") else {}
    assert printed_by(settings, name, tmp_path, 3, **more) == [
        "ada said tide tables\n",
        "ada said карты\n",
        "deleted 1\n",
    ]


def test_a_record_that_could_not_be_decoded_is_returned_again(settings: Settings) -> None:
    """If a record could not be decoded because the registry was down, the reader returns the record later.

    So a program that catches Unavailable and continues loses no record.
    """
    with open_producer(settings) as producer:
        producer.send(MESSAGES, build_message(1))
        producer.send(MESSAGES, build_message(2))
        producer.flush()
    with proxy(settings.schema_registry_url) as between:
        between.fail("503")
        cold = evolve(settings, schema_registry_url=between.url, home=settings.home / "cold")
        with open_reader(MESSAGES, settings=cold) as reader:
            with pytest.raises(Unavailable, match="schema registry"):
                list(reader.read_to_end())
            between.fail("up")
            seen: list[str] = []
            while len(seen) < 2:
                try:
                    record = reader.poll(1.0)
                except Unavailable:
                    continue  # the pause after a failed request has not ended
                if record is not None:
                    seen.append(record.event.message_id)
    assert seen == ["1", "2"]


def test_a_reader_from_the_end_gets_what_comes_from_then_on(settings: Settings, tmp_path: Path) -> None:
    """A reader that starts at the end gets only records that are produced later, and creates no home folder."""
    own = evolve(settings, home=tmp_path / "home")
    with open_producer(own) as producer:
        producer.send(MESSAGES, build_message(1))
        producer.flush()
        with open_reader(MESSAGES, from_end=True, settings=own) as reader:
            producer.send(MESSAGES, build_message(2))
            producer.flush()
            assert next(iter(reader)).event.message_id == "2"
    assert not own.home.exists()
