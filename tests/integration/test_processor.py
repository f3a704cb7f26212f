"""The processor as a separate process: its start, outages, questions through Kafka, and signals."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from attrs import evolve, frozen

from rtfm.contracts import Contracts, open_contracts
from rtfm.settings import Settings
from tests.conftest import environment_of
from tests.fakes import gemini as fake
from tests.fakes.gemini import FakeGemini
from tests.streams import RESPONSES, eventually, records

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

QUESTION = "how do I mount an ntfs disk?"


@frozen
class Running:
    """A processor in a separate process."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page of the metrics port, once that port is open."""
        (line, *_) = eventually(lambda: self.logged("metrics and health"))
        response = httpx.get(line["address"] + path, timeout=60)
        return response.status_code, response.text

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def processor(settings: Settings, *arguments: str, **environment: str) -> Iterator[Running]:
    """Run `rtfm-cli run processor`, and kill it at the end if it still runs."""
    program = Path(sys.executable).with_name("rtfm-cli")
    settings.home.mkdir(parents=True, exist_ok=True)
    log = settings.home / f"processor-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "run", "processor", *arguments],
            cwd=settings.home,  # this folder has no .env file
            env=environment_of(settings) | {"LOG_FORMAT": "json"} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Running(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def import_guild(settings: Settings, cli: Cli, folder: Path) -> None:
    """Import a guild with one answered question."""
    document = {
        "guild": {"id": "100", "name": "Guild"},
        "channel": {"id": "200", "type": "GuildTextChat", "name": "help"},
        "messages": [
            {
                "id": str(1000 + number),
                "type": "Default",
                "timestamp": f"2024-11-15T03:{number:02}:00+00:00",
                "content": content,
                "author": {"id": str(number), "name": f"nick{number}", "isBot": False},
                "mentions": [{"id": "0", "name": "nick0"}] if number else [],
            }
            for number, content in enumerate(
                [
                    "how do I mount an ntfs disk from the old laptop?",
                    "mount the ntfs disk with `ntfs-3g /dev/sdb1 /mnt`",
                ]
            )
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "help.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    assert json.loads(cli(settings, "import", "--json", str(file)).stdout)["ingested"] is True


@contextmanager
def open_contracts_of(settings: Settings) -> Iterator[Contracts]:
    """Open the contracts, and close their registry at the end."""
    contracts = open_contracts(settings)
    try:
        yield contracts
    finally:
        contracts.registry.close()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and never sends a response."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(90)
        yield server


def test_contracts_that_are_not_registered_end_it_with_the_fix(bare_settings: Settings, cli: Cli) -> None:
    """If contracts are not registered, the processor prints one line and one hint, and exits with 2."""
    done = cli(bare_settings, "run", "processor", check=False)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "rtfm-cli schemas register" in done.stderr


def test_a_metrics_port_that_is_taken_is_named(bare_settings: Settings, cli: Cli, silent: socket.socket) -> None:
    """If the metrics port is in use, the error names the variable and the address, and the exit code is 2."""
    port = silent.getsockname()[1]
    done = cli(evolve(bare_settings, metrics_port=port), "run", "processor", check=False)
    assert done.returncode == 2
    assert f"METRICS_PORT: 127.0.0.1:{port} cannot be opened" in done.stderr


def test_a_database_that_is_down_is_waited_for(settings: Settings, silent: socket.socket) -> None:
    """While PostgreSQL is down, the processor is alive and not ready, logs once that it waits, and stops cleanly."""
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    database = (
        f"postgresql://nobody@{address}/nothing?sslmode=disable&gssencmode=disable"  # one connection for each attempt
    )
    with processor(settings, DATABASE_URL=database) as running:
        for _ in range(3):
            silent.accept()[0].close()
        silent.close()
        eventually(lambda: running.logged("waiting to start"))
        assert len(running.logged("waiting to start")) == 1
        status, body = running.get("/readyz")
        assert status == 503
        assert address in body
        assert running.get("/healthz")[0] == 200
        assert running.stop() == 0


def test_a_second_signal_does_not_wait(settings: Settings, silent: socket.socket) -> None:
    """A second signal ends the processor at once, even if a silent dependency delays the stop."""
    database = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing"
    with processor(settings, DATABASE_URL=database) as running:
        connection, _ = silent.accept()  # the processor now waits for a response

        def ended_by_another() -> bool:
            running.process.send_signal(signal.SIGTERM)
            return running.process.poll() is not None

        # The kernel merges two signals that arrive at once, and nothing shows that the first one has arrived.
        eventually(ended_by_another)
        assert running.process.returncode == 1
        connection.close()


def test_a_question_goes_through_kafka_and_comes_back_answered(settings: Settings, cli: Cli, tmp_path: Path) -> None:
    """Without a model, `ask` quotes an imported message, and `status` and the metrics count the answers."""
    with processor(settings) as running:
        import_guild(settings, cli, tmp_path)
        eventually(lambda: running.get("/readyz")[0] == 200)
        answer = json.loads(cli(settings, "ask", "--json", QUESTION).stdout)
        assert answer["outcome"] == "EXTRACTED"
        assert answer["query_id"].startswith("c")
        assert "ntfs-3g" in answer["answer"]
        (citation,) = answer["citations"]
        assert set(citation) == {"number", "message_id", "channel_id", "url", "excerpt", "score"}
        assert citation["url"] == "https://discord.com/channels/100/200/1001"
        assert isinstance(answer["elapsed_ms"], int)

        nothing = cli(settings, "ask", "who won the chess championship in Reykjavik?")
        assert "No archived message answers this question" in nothing.stdout

        metrics = running.get("/metrics")[1]
        assert 'rtfm_answers_total{outcome="EXTRACTED"} 1.0' in metrics
        assert 'rtfm_answers_total{outcome="NOT_FOUND"} 1.0' in metrics

        found = json.loads(cli(settings, "status", "--json").stdout)
        assert found["wrong"] == {}
        topics = {topic["topic"]: topic for topic in found["topics"]}
        # The offsets include those of transaction markers.
        assert (topics["bot-responses"]["records"], topics["bot-responses"]["offsets"] > 2) == (2, True)
        assert topics["bot-queries"]["groups"] == [
            {"group": "discord-message-processor-answer", "members": 1, "lag": 0}
        ]
        assert found["archive"]["answers"] == 2
        assert all(schema["registered"] for schema in found["schemas"])
        assert running.stop() == 0
    assert running.logged("stopped")
    assert not running.logged("a rebuild is due")
    # No text of a message is logged.
    assert "ntfs" not in running.log.read_text(encoding="utf-8")

    with psycopg.connect(settings.database_url) as connection:
        connection.execute("UPDATE collections SET rules = 'older'")
    with processor(settings) as running:
        (line,) = eventually(lambda: running.logged("a rebuild is due"))
        assert (line["guild_id"], line["hint"]) == ("100", "rtfm-cli rebuild")


def test_a_question_is_answered_by_the_model_where_there_is_a_key(settings: Settings, cli: Cli, tmp_path: Path) -> None:
    """With a key, the model from the environment writes the answer, and the key is not logged."""
    with FakeGemini() as gemini:
        environment = {"GEMINI_API_KEY": fake.KEY, "GEMINI_API_ENDPOINT": gemini.address}
        with processor(settings, **environment) as running:
            import_guild(settings, cli, tmp_path)
            answer = json.loads(cli(settings, "ask", "--json", QUESTION).stdout)
            assert running.stop() == 0
    assert answer["outcome"] == "ANSWERED"
    assert "ntfs-3g" in answer["answer"]
    assert answer["citations"]
    assert fake.KEY not in running.log.read_text(encoding="utf-8")


def test_work_that_outlasts_the_time_for_stopping_is_done_at_the_next_start(
    settings: Settings, cli: Cli, tmp_path: Path
) -> None:
    """If records are unfinished when the grace period of a stop ends, the exit code is 1 and the log says so.

    The next process answers the unfinished question.
    """
    with FakeGemini() as gemini:
        gemini.faults = [fake.slow(60)]
        environment = {"GEMINI_API_KEY": fake.KEY, "GEMINI_API_ENDPOINT": gemini.address, "SHUTDOWN_GRACE_S": "1"}
        with processor(settings, GEMINI_TIMEOUT_S="60", **environment) as running:
            import_guild(settings, cli, tmp_path)
            assert cli(settings, "ask", "--timeout", "3", QUESTION, check=False).returncode == 3
            eventually(lambda: gemini.requests)
            assert running.stop() == 1
        assert "records were still unfinished" in running.log.read_text(encoding="utf-8")
        with processor(settings, **environment) as running:
            (line,) = eventually(lambda: running.logged("answered"))
            assert line["outcome"] == "ANSWERED"
            assert running.stop() == 0


def test_a_second_signal_drops_unfinished_records_and_none_is_visible(
    settings: Settings, cli: Cli, tmp_path: Path
) -> None:
    """R12: A second signal ends the processor at once with exit code 1, and its unfinished answer is not visible.

    The next process answers the question once.
    """
    with FakeGemini() as gemini:
        gemini.faults = [fake.slow(60)]
        environment = {
            "GEMINI_API_KEY": fake.KEY,
            "GEMINI_API_ENDPOINT": gemini.address,
            "GEMINI_TIMEOUT_S": "60",
            "SHUTDOWN_GRACE_S": "120",
        }
        with processor(settings, **environment) as running:
            import_guild(settings, cli, tmp_path)
            assert cli(settings, "ask", "--timeout", "3", QUESTION, check=False).returncode == 3
            eventually(lambda: gemini.requests)
            running.process.send_signal(signal.SIGTERM)
            eventually(lambda: running.logged("stopping"))
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(110) == 1
        with open_contracts_of(settings) as contracts:
            assert records(settings, contracts, RESPONSES) == []
            with processor(settings, **environment) as running:
                eventually(lambda: running.logged("answered"))
                assert running.stop() == 0
            assert len(records(settings, contracts, RESPONSES)) == 1


def test_a_question_asked_before_the_processor_starts_is_answered_when_it_does(
    settings: Settings, cli: Cli, tmp_path: Path
) -> None:
    """A question that is asked while no processor runs waits in Kafka and is answered later.

    `ask` exits with 3, and says what to do.
    """
    with processor(settings, "--only", "ingest") as running:
        import_guild(settings, cli, tmp_path)
        done = cli(settings, "ask", "--timeout", "2", QUESTION, check=False)
        assert done.returncode == 3
        assert "no answer within 2 s" in done.stderr
        assert "rtfm-cli run processor" in done.stderr
        assert running.stop() == 0
    with processor(settings, "--only", "answer") as running:
        (line,) = eventually(lambda: running.logged("answered"))
        assert line["outcome"] == "EXTRACTED"
        assert running.stop() == 0


def test_a_question_past_its_time_comes_back_expired(settings: Settings, cli: Cli) -> None:
    """A question that has expired gets EXPIRED, which `ask` shows without failing."""
    with processor(settings, "--only", "answer") as running:
        eventually(lambda: running.logged("assigned"))
        done = cli(settings, "ask", "--json", QUESTION, QUERY_EXPIRY_S="0.001")
        assert json.loads(done.stdout)["outcome"] == "EXPIRED"
        assert running.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ask", "  "], "the question is empty"),
        (["ask", "half of a pair: \udcf0"], "the question is not UTF-8"),
        (["search", "  "], "the query is empty"),
        (["ask", "--timeout", "0", QUESTION], "--timeout"),
        (["ask", "--guild", "999", QUESTION], "guild 999 is not in the archive"),
        (["ask", "--channel", "999", QUESTION], "channel 999 is not in the archive"),
    ],
)
def test_an_invalid_question_is_a_usage_error(
    bare_settings: Settings, cli: Cli, arguments: list[str], expected: str
) -> None:
    """An invalid question gets exit code 2 and an error that names the cause."""
    done = cli(bare_settings, *arguments, check=False)
    assert done.returncode == 2
    assert expected in done.stderr


def test_commands_say_that_kafka_is_unreachable(settings: Settings, cli: Cli) -> None:
    """If Kafka is unreachable, commands exit with 3, and `status` still shows the archive."""
    away = evolve(settings, kafka_bootstrap_servers="127.0.0.1:9")
    asked = cli(away, "ask", QUESTION, check=False)
    assert asked.returncode == 3
    assert "127.0.0.1:9" in asked.stderr
    shown = cli(away, "status", "--json", check=False)
    assert shown.returncode == 3
    found = json.loads(shown.stdout)
    assert set(found["wrong"]) == {"topics"}
    assert found["archive"]["messages"] == 0
