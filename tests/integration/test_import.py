"""`rtfm-cli import` from a file to search, over real Kafka, registry, PostgreSQL and Chroma."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rtfm.settings import Settings
from tests.conftest import CHECKOUT, environment_of

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def entry(number: int, content: str, author: str = "1", **fields: Any) -> dict[str, Any]:
    return {
        "id": str(1000 + number),
        "type": "Default",
        "timestamp": f"2004-11-15T03:{number:02}:00+00:00",
        "content": content,
        "author": {"id": author, "name": f"nick{author}", "isBot": False},
        **fields,
    }


def write_export(folder: Path, name: str, messages: list[Any], channel: str = "200") -> Path:
    file = folder / name
    document = {
        "guild": {"id": "100", "name": "Guild"},
        "channel": {"id": channel, "type": "GuildTextChat", "name": "help"},
        "messages": messages,
    }
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


TALK = [
    entry(1, "how do I mount an ntfs disk from the old laptop?"),
    entry(2, "install ntfs-3g and mount the disk with it", "2", mentions=[{"id": "1", "name": "nick1"}]),
    entry(3, "my printer prints blank pages", "3"),
]


@contextmanager
def processor(settings: Settings) -> Iterator[None]:
    """Run a processor with only the pipeline *ingest* in a separate process, and stop it with SIGTERM at the end."""
    program = shutil.which("rtfm-cli", path=str(CHECKOUT / ".venv" / "bin")) or "rtfm-cli"
    running = subprocess.Popen(
        [program, "run", "processor", "--only", "ingest"],
        cwd=tempfile.gettempdir(),  # this folder has no .env file
        env=environment_of(settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


def messages_in_kafka(settings: Settings) -> int:
    from rtfm.contracts import open_contracts
    from rtfm.streams.consumer import EventReader

    with EventReader(settings, open_contracts(settings), "discord-messages", group=None) as reader:
        return len(list(reader.read_to_end()))


def test_one_foreign_file_stops_the_import_before_anything_is_sent(
    settings: Settings, cli: Cli, tmp_path: Path
) -> None:
    """If one of several files is not an export, nothing is sent, and the error names the file and the wrong place."""
    good = write_export(tmp_path, "good.json", TALK)
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"guild": \n oops}', encoding="utf-8")
    done = cli(settings, "import", str(good), str(foreign), check=False)
    assert done.returncode == 2
    assert f"{foreign}, line 2, column 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert messages_in_kafka(settings) == 0


def test_an_unreachable_kafka_is_exit_3(settings: Settings, cli: Cli, tmp_path: Path) -> None:
    """If Kafka is unreachable, the exit code is 3; the exit code of a wrong file is 2."""
    file = write_export(tmp_path, "good.json", TALK)
    done = cli(
        settings, "import", str(file), check=False, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9", KAFKA_DELIVERY_TIMEOUT_S="2"
    )
    assert done.returncode == 3
    assert "127.0.0.1:9" in done.stderr


def test_without_a_processor_the_messages_wait_and_import_says_so(settings: Settings, cli: Cli, tmp_path: Path) -> None:
    """Without a processor, import succeeds and says that the messages wait in Kafka."""
    done = cli(settings, "import", str(write_export(tmp_path, "talk.json", TALK)))
    assert "No processor is running" in done.stderr
    assert done.stdout.strip().splitlines()[-1] == "1 file: 3 messages sent, 0 left out"
    assert messages_in_kafka(settings) == 3


def test_what_was_imported_can_be_found_when_import_returns(settings: Settings, cli: Cli, tmp_path: Path) -> None:
    """When import returns, the imported messages can be found.

    The last line of the output counts the messages that were left out. A second import does not change what is found.
    """
    broken = [*TALK, {"id": "1004"}, entry(5, "x", type="GuildMemberJoin")]
    files = [
        str(write_export(tmp_path, "one.json", broken)),
        str(write_export(tmp_path, "two.json", [entry(9, "roses need compost")], channel="300")),
    ]
    with processor(settings):
        done = cli(settings, "import", *files)
        assert done.stdout.strip().splitlines()[-1] == (
            "2 files: 4 messages imported and searchable, 2 left out"
            " (1 × author is missing; 1 × a system message of type GuildMemberJoin)"
        )
        assert "messages[3] (id 1004)" in done.stderr
        found = json.loads(cli(settings, "search", "mount ntfs disk", "--json").stdout)
        again = json.loads(cli(settings, "import", *files, "--json").stdout)
        found_again = json.loads(cli(settings, "search", "mount ntfs disk", "--json").stdout)
        explained = cli(settings, "search", "mount ntfs disk", "--explain")
    assert found["mode"] == "lexical"
    assert found["results"][0]["message_ids"] == ["1001", "1002"]
    assert found_again == found
    assert (again["messages"], again["ingested"], len(again["left_out"])) == (4, True, 2)
    for word in ("filters", "2 visible channels", "floor", "meaning", "words", "│ 1001"):
        assert word in explained.stdout
    assert explained.stderr.startswith("No embedding model: RTFM uses keyword search.")
    assert "{" not in explained.stdout + explained.stderr


def test_a_message_that_no_record_can_hold_is_left_out(settings: Settings, cli: Cli, tmp_path: Path) -> None:
    """If a message is too large for a record, it is left out with a printed reason, and the rest is imported."""
    file = write_export(tmp_path, "talk.json", [TALK[0], entry(7, "é" * 600_000), TALK[2]])
    done = cli(settings, "import", "--no-wait", str(file))
    assert done.stdout.startswith("1 file: 2 messages sent, 1 left out (1 × more than the 990000 bytes")
    assert "message 1007" in done.stderr
    assert messages_in_kafka(settings) == 2


def test_search_and_eval_say_what_is_wrong_in_one_line(settings: Settings, cli: Cli, tmp_path: Path) -> None:
    """`search` and `eval` print one line for an unknown guild, an invalid file of questions and a missing database."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "x"}\n', encoding="utf-8")
    for arguments, code, text in (
        (["search", "x", "--guild", "5"], 2, "guild 5 is not in the archive"),
        (["search", "x", "--channel", "5"], 2, "channel 5 is not in the archive"),
        (["eval", str(questions)], 2, "line 1"),
        (["eval", str(tmp_path / "none.jsonl")], 2, "none.jsonl cannot be read"),
    ):
        done = cli(settings, *arguments, check=False)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert json.loads(cli(settings, "search", "x", "--json").stdout) == {"mode": "lexical", "results": []}
    away = cli(settings, "search", "x", check=False, DATABASE_URL="postgresql://127.0.0.1:9/rtfm")
    assert away.returncode == 3
    assert "PostgreSQL at 127.0.0.1:9" in away.stderr


def test_eval_measures_what_is_found(settings: Settings, cli: Cli, tmp_path: Path) -> None:
    """`eval` writes one line for each question to the file of `--out`, and prints the figures."""
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": "mount ntfs disk", "message_id": "1", "guild_id": "100", "relevant_message_ids": ["1002", "1001"]},
        {"question": "bake a cake", "message_id": "2", "guild_id": "100", "relevant_message_ids": ["1003"]},
    ]
    questions.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    out = tmp_path / "out.jsonl"
    with processor(settings):
        cli(settings, "import", str(write_export(tmp_path, "talk.json", TALK)))
        done = cli(settings, "eval", str(questions), "--out", str(out), "--json")
    assert json.loads(done.stdout) == {
        "mode": "lexical",
        "questions": 2,
        "nothing_found": 1,
        "hit@5": 0.5,
        "MRR@10": 0.5,
        "cover@300w": 0.5,
    }
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [
        {"message_id": "1", "retrieved": ["1001", "1002"], "hit_rank": 1, "coverage": 1.0},
        {"message_id": "2", "retrieved": [], "hit_rank": None, "coverage": 0.0},
    ]
