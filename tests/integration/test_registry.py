"""The registry through outages, lost answers and a rebuild: a real one, behind a proxy that fails on demand."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from rtfm.contracts import Contracts, catalogue, open_contracts, open_registry, registration
from rtfm.contracts.catalogue import Catalogue
from rtfm.contracts.registry import UNKNOWN_ID_TTL_S, SchemaRegistry
from rtfm.errors import ConfigError, Unavailable, UnknownSchema
from rtfm.settings import Settings
from rtfm.streams.producer import EventProducer
from rtfm.telemetry import Health
from tests.registry_proxy import MODES, RegistryProxy, proxy
from tests.streams import GROUP, MESSAGES, Noting, committed, dead_letters, eventually, produce_raws, running, said

UNKNOWN_ID = b"\x00\x7f\xff\xff\xff"


@pytest.fixture
def between(settings: Settings) -> Iterator[RegistryProxy]:
    """The proxy before the registry of ``settings``."""
    with proxy(settings.schema_registry_url) as made:
        yield made


@pytest.fixture
def through(settings: Settings, between: RegistryProxy) -> Settings:
    """Return settings of a service that reaches the registry through the proxy, with an empty cache."""
    return evolve(settings, schema_registry_url=between.url, home=settings.home / "service")


def started(settings: Settings) -> Contracts:
    """Open the contracts like a starting process."""
    return open_contracts(settings)


def send(settings: Settings, contracts: Contracts, number: int = 1) -> None:
    with EventProducer(settings, contracts) as producer:
        producer.send(MESSAGES, said(number))
        producer.flush(20)


@pytest.mark.parametrize("mode", MODES)
def test_a_service_that_started_before_starts_and_produces_with_the_registry_gone(
    through: Settings, between: RegistryProxy, mode: str
) -> None:
    """R22: the registry refuses, is silent, answers 503 or is slow; the id comes from the cache."""
    send(through, started(through), 1)
    between.fail(mode)
    contracts = started(through)
    send(through, contracts, 2)
    contracts.registry.close()


@pytest.mark.parametrize("mode", MODES)
def test_without_a_cache_the_registry_that_is_gone_is_named_at_once(
    through: Settings, between: RegistryProxy, mode: str
) -> None:
    """The first look-up waits for its timeout; the next ones do not ask."""
    between.fail(mode)
    contracts = started(through)
    for _ in range(50):
        with pytest.raises(Unavailable, match="schema registry"):
            contracts.encode(MESSAGES, said(1))
    assert len(between.requests) <= 1
    contracts.registry.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_registry_that_is_gone_pauses_the_partition_of_a_schema_not_seen_before(
    settings: Settings, through: Settings, between: RegistryProxy, mode: str
) -> None:
    """R23: there is no dead letter, one request for each pause, and it continues by itself."""
    contracts = open_contracts(settings)
    send(settings, contracts, 1)
    between.fail(mode)
    health, noting = Health(), Noting()
    with running(through, started(through), noting, health=health):
        eventually(lambda: health.readiness() == {GROUP: "waiting for schema registry"})
        asked = len(between.requests)
        between.fail("up")
        eventually(lambda: committed(settings) == 1)
    assert asked <= 5
    assert noting.ids == ["1"]
    assert dead_letters(settings, contracts) == []


def test_ten_thousand_records_of_one_unknown_id_ask_the_registry_once(
    settings: Settings, through: Settings, between: RegistryProxy
) -> None:
    """R24: each is a dead letter; the missing id is cached for half a minute."""
    produce_raws(settings, MESSAGES, [UNKNOWN_ID + bytes([number % 256]) for number in range(10_000)])
    contracts = started(through)
    began_s = time.monotonic()
    with running(without_limits(through), contracts, Noting()):
        eventually(lambda: committed(settings) == 10_000, timeout_s=120)
    asked = [line for line in between.requests if "/schemas/ids/" in line]
    assert 1 <= len(asked) <= 1 + (time.monotonic() - began_s) // UNKNOWN_ID_TTL_S
    assert len(dead_letters(settings, contracts)) == 10_000


def without_limits(settings: Settings) -> Settings:
    """Return the same settings without limits on dead letters."""
    limits: dict[str, Any] = {"dlq_max_consecutive": 10**9, "dlq_max_share": 1.0}
    return evolve(settings, **{name: value for name, value in limits.items() if hasattr(settings, name)})


def test_an_id_that_became_known_is_found_after_the_pause(settings: Settings) -> None:
    """Records of a producer that registers late are not lost."""
    now_s = [0.0]
    registry = SchemaRegistry(settings.schema_registry_url, clock=lambda: now_s[0])
    for _ in range(3):
        with pytest.raises(UnknownSchema):
            registry.schema(2**31 - 1)
    registry.close()  # requests from here on fail as Unavailable
    with pytest.raises(UnknownSchema):
        registry.schema(2**31 - 1)
    now_s[0] += 31
    with pytest.raises(Unavailable):
        registry.schema(2**31 - 1)


def rebuilt(settings: Settings, between: RegistryProxy) -> None:
    """Make the id of the messages' schema stand for another schema."""
    registry = open_registry(settings)
    known = catalogue.load()
    ids = {name: registry.id_for(name, known.topic(name).schema or {}) for name in (MESSAGES, "bot-queries")}
    between.rebuilt[ids[MESSAGES]] = ids["bot-queries"]
    registry.close()


def test_a_rebuilt_registry_stops_a_service_that_starts(
    settings: Settings, through: Settings, between: RegistryProxy
) -> None:
    """Its ids have other meanings, so nothing is written or read with them."""
    send(through, started(through))
    rebuilt(settings, between)
    contracts = started(through)
    with EventProducer(through, contracts) as producer, pytest.raises(ConfigError, match="has another schema"):
        producer.send(MESSAGES, said(2))
    with pytest.raises(ConfigError, match="has another schema"), running(through, contracts, Noting()) as thread:
        thread.join(40)


def test_a_registry_that_comes_back_rebuilt_stops_a_service_that_runs(
    settings: Settings, through: Settings, between: RegistryProxy
) -> None:
    """The service started from its cache during the outage; its cached ids are no longer trusted."""
    contracts = started(through)
    value = contracts.encode(MESSAGES, said(1))
    between.fail("503")
    contracts = started(through)
    assert contracts.encode(MESSAGES, said(1)) == value
    assert contracts.decode(MESSAGES, value) == said(1)
    rebuilt(settings, between)
    between.fail("up")

    def is_refused() -> bool:
        try:
            contracts.encode(MESSAGES, said(1))
        except ConfigError as exc:
            return "has another schema" in str(exc)
        return False

    eventually(is_refused)
    with pytest.raises(ConfigError, match="has another schema"):
        contracts.decode(MESSAGES, value)


def test_registering_again_lets_a_service_start_on_a_rebuilt_registry(
    settings: Settings, through: Settings, between: RegistryProxy
) -> None:
    """The hint says so; the old registry's cache is dropped."""
    send(through, started(through))
    rebuilt(settings, between)
    with pytest.raises(ConfigError):
        started(through).encode(MESSAGES, said(1))
    between.rebuilt.clear()  # the ids now have the meaning of this registration
    registry = open_registry(through)
    registration.apply(catalogue.load(), registry, registration.plan(catalogue.load(), registry))
    assert started(through).decode(MESSAGES, started(through).encode(MESSAGES, said(1))) == said(1)


def test_services_that_share_a_home_keep_each_others_ids(through: Settings, between: RegistryProxy) -> None:
    """Both opened their cache before the other wrote to it."""
    bot, processor = started(through), started(through)
    bot.encode(MESSAGES, said(1))
    processor.registry.id_for("bot-queries", processor.codec("bot-queries").schema)
    between.fail("refused")
    again = started(through)
    again.encode(MESSAGES, said(1))
    again.registry.id_for("bot-queries", again.codec("bot-queries").schema)


# Registering


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project's schemas."""
    directory = tmp_path / "schemas"
    shutil.copytree(catalogue.load().directory, directory)
    return directory


@pytest.fixture
def empty(bare_settings: Settings) -> Iterator[RegistryProxy]:
    """A proxy before a registry without schemas under the test's prefix."""
    with proxy(bare_settings.schema_registry_url) as made:
        yield made


def state(settings: Settings, known: Catalogue) -> dict[str, Any]:
    """Return the registry's versions and level of each subject."""
    registry = open_registry(settings)
    held = {
        topic.name: (list(registry.versions(topic.name)), registry.compatibility(topic.name))
        for topic in known.topics_with_schema()
    }
    registry.close()
    return held


def nothing_is_held(settings: Settings) -> bool:
    """Return whether there is no version and no level of ours; a registry may report its default."""
    held = state(settings, catalogue.load()).values()
    return all(versions == [] and level != "FULL_TRANSITIVE" for versions, level in held)


def test_register_plans_then_registers_and_changes_nothing_the_second_time(
    bare_settings: Settings, cli: Callable[..., Any]
) -> None:
    """Afterwards versions and levels exist, and the ids are cached."""
    planned = json.loads(cli(bare_settings, "schemas", "register", "--dry-run", "--json").stdout)
    assert planned["changes"] == 3
    assert nothing_is_held(bare_settings)
    assert json.loads(cli(bare_settings, "schemas", "register", "--json").stdout)["changes"] == 3
    assert all(held == ([1], "FULL_TRANSITIVE") for held in state(bare_settings, catalogue.load()).values())
    again = cli(bare_settings, "schemas", "register")
    assert again.stdout.rstrip().endswith("0 changes")
    registry = open_registry(bare_settings)
    registry.close()  # no request gets through any more
    assert registry.id_for(MESSAGES, catalogue.load().topic(MESSAGES).schema or {}) > 0


@pytest.mark.parametrize("lost", [False, True])
def test_what_was_registered_is_taken_back_when_the_registry_goes_away_half_way(
    bare_settings: Settings, empty: RegistryProxy, lost: bool
) -> None:
    """R28: this holds even if only the answer is lost and the registry did register."""
    known = catalogue.load()
    registry = open_registry(evolve(bare_settings, schema_registry_url=empty.url))
    planned = registration.plan(known, registry)
    last = f"{registry.subject('bot-responses')}/versions "
    if lost:
        empty.lose = last
    else:
        empty.refuse = last
    with pytest.raises(Unavailable, match="nothing was registered"):
        registration.apply(known, registry, planned)
    assert nothing_is_held(bare_settings)


def edited(path: Path, edit: Callable[[Any], None]) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    edit(schema)
    path.write_text(json.dumps(schema), encoding="utf-8")


def test_one_bad_schema_keeps_all_from_being_registered(
    bare_settings: Settings, copy: Path, cli: Callable[..., Any]
) -> None:
    """R28: the exit code is 2, and the registry is unchanged."""
    edited(
        copy / "bot-response.avsc",
        lambda schema: schema["fields"][3].pop("doc"),
    )
    done = cli(bare_settings, "schemas", "register", check=False, RTFM_SCHEMAS_DIR=str(copy))
    assert done.returncode == 2
    assert "nothing was registered" in done.stderr
    assert nothing_is_held(bare_settings)


def test_a_registry_that_holds_an_incompatible_version_is_left_as_it_is(
    bare_settings: Settings, copy: Path, cli: Callable[..., Any]
) -> None:
    """That version may have readers; the exit code is 2, and the error names subject and version."""
    registry = open_registry(bare_settings)
    foreign = json.loads((copy / "bot-query.avsc").read_text(encoding="utf-8"))
    foreign["fields"][0]["type"] = "long"
    registry.register("bot-queries", foreign)
    before = state(bare_settings, catalogue.load())
    done = cli(bare_settings, "schemas", "register", check=False)
    assert done.returncode == 2
    assert "incompatible with version 1" in done.stderr
    assert state(bare_settings, catalogue.load()) == before


def test_check_asks_a_registry_and_reports_where_it_disagrees(
    settings: Settings, copy: Path, cli: Callable[..., Any]
) -> None:
    """A registry with level NONE accepts what this check refuses."""
    url = settings.schema_registry_url
    assert cli(settings, "schemas", "check", "--registry", url).stdout.endswith("0 findings\n")
    registry = open_registry(settings)
    registry.set_compatibility("bot-queries", "NONE")
    edited(copy / "bot-query.avsc", lambda schema: schema["fields"][4].update(type="long"))
    done = cli(
        settings,
        *("schemas", "check", "--format", "json", "--registry", url),
        check=False,
        RTFM_SCHEMAS_DIR=str(copy),
    )
    assert done.returncode == 1
    rules = {finding["rule"] for finding in json.loads(done.stdout)["findings"]}
    assert {"type", "registry-disagrees"} <= rules
