"""R21 through Kafka: the model is down for a while, and every question gets exactly one answer."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from rtfm.contracts import Contracts
from rtfm.events import Audience, BotQuery, BotResponse, Outcome, OutcomeReason, TimestampMillis
from rtfm.settings import Settings
from tests.fakes import gemini as fake
from tests.fakes.gemini import Behaviour, FakeGemini
from tests.integration.test_processor import QUESTION, Cli, import_guild, processor
from tests.streams import dead_letters, eventually, produce, records

PROBE_INTERVAL_S = 2.0
MIN_REQUESTS = 4


def questions(first: int, count: int) -> list[BotQuery]:
    now = time.time_ns() // 1_000_000
    return [
        BotQuery(
            query_id=f"m{number}",
            guild_id="100",
            channel_id="200",
            message_id=str(number),
            asker_id="7",
            question=QUESTION,
            asked_at=TimestampMillis(now),
            expires_at=TimestampMillis(now + 600_000),
            audience=Audience.PUBLIC,
            visible_channel_ids=["200"],
        )
        for number in range(first, first + count)
    ]


def responses(settings: Settings, contracts: Contracts) -> list[BotResponse]:
    return [record.event for record in records(settings, contracts, "bot-responses")]


def answered(settings: Settings, contracts: Contracts, count: int) -> bool:
    return len(responses(settings, contracts)) == count


def test_a_model_that_is_down_costs_no_answer_and_gets_one_probe_an_interval(
    settings: Settings, contracts: Contracts, cli: Cli, tmp_path: Path
) -> None:
    """R21: While the model is down, questions get extracts, and after the outage new questions get the model's answers.

    Once the first requests have opened the circuit breaker, the model gets at most one request in each probe interval.
    No question becomes a dead letter.
    """
    with FakeGemini(behaviour=Behaviour(fail_share=1.0, status=503)) as gemini:
        environment = {
            "GEMINI_API_KEY": fake.KEY,
            "GEMINI_API_ENDPOINT": gemini.address,
            "MODEL_ATTEMPTS": "1",
            "PROCESSOR_CONCURRENCY": "1",
            "BREAKER_MIN_REQUESTS": str(MIN_REQUESTS),
            "BREAKER_PROBE_INTERVAL_S": str(PROBE_INTERVAL_S),
        }
        with processor(settings, **environment) as running:
            import_guild(settings, cli, tmp_path)
            began = time.monotonic()
            for start in (0, 50, 100):
                produce(settings, contracts, "bot-queries", *questions(20_000 + start, 50))
                eventually(partial(answered, settings, contracts, start + 50))
            down = responses(settings, contracts)
            probes = gemini.counts["requests"] - MIN_REQUESTS
            # The breaker sends one probe at the end of each interval, so there are at most as many probes as intervals.
            assert 0 <= probes <= (time.monotonic() - began) / PROBE_INTERVAL_S
            assert {response.outcome for response in down} == {Outcome.EXTRACTED}
            assert {response.reason for response in down} == {OutcomeReason.MODEL_UNAVAILABLE}
            assert all("ntfs-3g" in response.answer for response in down)

            gemini.behaviour = Behaviour()
            number = iter(range(50_000, 60_000))

            def answers_again() -> bool:
                produce(settings, contracts, "bot-queries", *questions(next(number), 1))
                time.sleep(0.3)
                return any(response.outcome is Outcome.ANSWERED for response in responses(settings, contracts))

            eventually(answers_again)
            produce(settings, contracts, "bot-queries", *questions(90_000, 20))
            asked = 170 + next(number) - 50_000
            eventually(partial(answered, settings, contracts, asked))
            metrics = running.get("/metrics")[1]
            assert running.stop() == 0
        done = responses(settings, contracts)
        assert len({response.query_id for response in done}) == len(done) == asked
        late = [response for response in done if int(response.query_id[1:]) >= 90_000]
        assert {response.outcome for response in late} == {Outcome.ANSWERED}
        assert dead_letters(settings, contracts) == []
        assert 'rtfm_circuit_state{dependency="gemini"} 0.0' in metrics
        assert len(running.logged("circuit open, quoting instead of asking the model")) >= 1
        assert len(running.logged("circuit closed, the model answers again")) == 1
