"""Outages, lost responses and a rebuild of the registry, with a real registry behind a proxy that can fail."""

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
from tests.streams import (
    GROUP,
    MESSAGES,
    RecordingHandler,
    build_message,
    committed,
    dead_letters,
    eventually,
    produce_raws,
    running,
)

UNKNOWN_ID = b"\x00\x7f\xff\xff\xff"


@pytest.fixture
def registry_proxy(settings: Settings) -> Iterator[RegistryProxy]:
    """The proxy between the services and the registry of ``settings``."""
    with proxy(settings.schema_registry_url) as made:
        yield made


@pytest.fixture
def proxied_settings(settings: Settings, registry_proxy: RegistryProxy) -> Settings:
    """Settings of a service that reaches the registry through the proxy, with an empty cache."""
    return evolve(settings, schema_registry_url=registry_proxy.url, home=settings.home / "service")


def open_at_start(settings: Settings) -> Contracts:
    """Open the contracts like a starting process."""
    return open_contracts(settings)


def send(settings: Settings, contracts: Contracts, number: int = 1) -> None:
    with EventProducer(settings, contracts) as producer:
        producer.send(MESSAGES, build_message(number))
        producer.flush(20)


@pytest.mark.parametrize("mode", MODES)
def test_a_service_that_started_before_starts_and_produces_with_the_registry_gone(
    proxied_settings: Settings, registry_proxy: RegistryProxy, mode: str
) -> None:
    """R22: A service that has started before can start and produce while the registry is gone.

    The registry refuses connections, is silent, responds with 503, or is slow. The schema id comes from the cache.
    """
    send(proxied_settings, open_at_start(proxied_settings), 1)
    registry_proxy.fail(mode)
    contracts = open_at_start(proxied_settings)
    send(proxied_settings, contracts, 2)
    contracts.registry.close()


@pytest.mark.parametrize("mode", MODES)
def test_without_a_cache_the_registry_that_is_gone_is_named_at_once(
    proxied_settings: Settings, registry_proxy: RegistryProxy, mode: str
) -> None:
    """Without a cache, each look-up raises an error that names the registry; at most one look-up sends a request."""
    registry_proxy.fail(mode)
    contracts = open_at_start(proxied_settings)
    for _ in range(50):
        with pytest.raises(Unavailable, match="schema registry"):
            contracts.encode(MESSAGES, build_message(1))
    assert len(registry_proxy.requests) <= 1
    contracts.registry.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_registry_that_is_gone_pauses_the_partition_of_a_schema_not_seen_before(
    settings: Settings, proxied_settings: Settings, registry_proxy: RegistryProxy, mode: str
) -> None:
    """R23: While the registry is gone, the pipeline waits at a record whose schema it has not seen.

    The record becomes no dead letter, and the registry gets few requests. Once the registry is back, the pipeline
    continues.
    """
    contracts = open_contracts(settings)
    send(settings, contracts, 1)
    registry_proxy.fail(mode)
    health, recorder = Health(), RecordingHandler()
    with running(proxied_settings, open_at_start(proxied_settings), recorder, health=health):
        eventually(lambda: health.readiness() == {GROUP: "waiting for schema registry"})
        asked = len(registry_proxy.requests)
        registry_proxy.fail("up")
        eventually(lambda: committed(settings) == 1)
    assert asked <= 5
    assert recorder.ids == ["1"]
    assert dead_letters(settings, contracts) == []


def test_ten_thousand_records_of_one_unknown_id_ask_the_registry_once(
    settings: Settings, proxied_settings: Settings, registry_proxy: RegistryProxy
) -> None:
    """R24: For 10,000 records of one unknown schema id, the registry gets at most one request each half minute.

    The cache keeps for half a minute that the id is unknown. All the records become dead letters.
    """
    produce_raws(settings, MESSAGES, [UNKNOWN_ID + bytes([number % 256]) for number in range(10_000)])
    contracts = open_at_start(proxied_settings)
    began_s = time.monotonic()
    with running(without_limits(proxied_settings), contracts, RecordingHandler()):
        eventually(lambda: committed(settings) == 10_000, timeout_s=120)
    asked = [line for line in registry_proxy.requests if "/schemas/ids/" in line]
    assert 1 <= len(asked) <= 1 + (time.monotonic() - began_s) // UNKNOWN_ID_TTL_S
    assert len(dead_letters(settings, contracts)) == 10_000


def without_limits(settings: Settings) -> Settings:
    """Return ``settings`` without limits on dead letters."""
    limits: dict[str, Any] = {"dlq_max_consecutive": 10**9, "dlq_max_share": 1.0}
    return evolve(settings, **{name: value for name, value in limits.items() if hasattr(settings, name)})


def test_an_id_that_became_known_is_found_after_the_pause(settings: Settings) -> None:
    """An unknown schema id is requested again after the pause, so that a schema that is registered late is found."""
    now_s = [0.0]
    registry = SchemaRegistry(settings.schema_registry_url, clock=lambda: now_s[0])
    for _ in range(3):
        with pytest.raises(UnknownSchema):
            registry.schema(2**31 - 1)
    registry.close()  # every later request fails as Unavailable
    with pytest.raises(UnknownSchema):
        registry.schema(2**31 - 1)
    now_s[0] += 31
    with pytest.raises(Unavailable):
        registry.schema(2**31 - 1)


def rebuild_registry(settings: Settings, registry_proxy: RegistryProxy) -> None:
    """Let the proxy return the schema of bot-queries for the schema id of discord-messages, as after a rebuild."""
    registry = open_registry(settings)
    known = catalogue.load()
    ids = {name: registry.id_for(name, known.topic(name).schema or {}) for name in (MESSAGES, "bot-queries")}
    registry_proxy.rebuilt[ids[MESSAGES]] = ids["bot-queries"]
    registry.close()


def test_a_rebuilt_registry_stops_a_service_that_starts(
    settings: Settings, proxied_settings: Settings, registry_proxy: RegistryProxy
) -> None:
    """If the ids of a rebuilt registry have other meanings, a starting service ends before it produces or reads."""
    send(proxied_settings, open_at_start(proxied_settings))
    rebuild_registry(settings, registry_proxy)
    contracts = open_at_start(proxied_settings)
    with EventProducer(proxied_settings, contracts) as producer, pytest.raises(ConfigError, match="has another schema"):
        producer.send(MESSAGES, build_message(2))
    with (
        pytest.raises(ConfigError, match="has another schema"),
        running(proxied_settings, contracts, RecordingHandler()) as thread,
    ):
        thread.join(40)


def test_a_registry_that_comes_back_rebuilt_stops_a_service_that_runs(
    settings: Settings, proxied_settings: Settings, registry_proxy: RegistryProxy
) -> None:
    """If a service started from its cache and the registry returns rebuilt, the service neither encodes nor decodes."""
    contracts = open_at_start(proxied_settings)
    value = contracts.encode(MESSAGES, build_message(1))
    registry_proxy.fail("503")
    contracts = open_at_start(proxied_settings)
    assert contracts.encode(MESSAGES, build_message(1)) == value
    assert contracts.decode(MESSAGES, value) == build_message(1)
    rebuild_registry(settings, registry_proxy)
    registry_proxy.fail("up")

    def is_refused() -> bool:
        try:
            contracts.encode(MESSAGES, build_message(1))
        except ConfigError as exc:
            return "has another schema" in str(exc)
        return False

    eventually(is_refused)
    with pytest.raises(ConfigError, match="has another schema"):
        contracts.decode(MESSAGES, value)


def test_registering_again_lets_a_service_start_on_a_rebuilt_registry(
    settings: Settings, proxied_settings: Settings, registry_proxy: RegistryProxy
) -> None:
    """If the schemas are registered again on a rebuilt registry, as the hint says, a service starts."""
    send(proxied_settings, open_at_start(proxied_settings))
    rebuild_registry(settings, registry_proxy)
    with pytest.raises(ConfigError):
        open_at_start(proxied_settings).encode(MESSAGES, build_message(1))
    registry_proxy.rebuilt.clear()  # the ids now have the meanings of the next registration
    registry = open_registry(proxied_settings)
    registration.apply(catalogue.load(), registry, registration.plan(catalogue.load(), registry))
    assert open_at_start(proxied_settings).decode(
        MESSAGES, open_at_start(proxied_settings).encode(MESSAGES, build_message(1))
    ) == build_message(1)


def test_services_that_share_a_home_keep_each_others_ids(
    proxied_settings: Settings, registry_proxy: RegistryProxy
) -> None:
    """If two services share a home, neither removes the other's cached ids, even if both opened an empty cache."""
    bot, processor = open_at_start(proxied_settings), open_at_start(proxied_settings)
    bot.encode(MESSAGES, build_message(1))
    processor.registry.id_for("bot-queries", processor.codec("bot-queries").schema)
    registry_proxy.fail("refused")
    again = open_at_start(proxied_settings)
    again.encode(MESSAGES, build_message(1))
    again.registry.id_for("bot-queries", again.codec("bot-queries").schema)


# Registration


@pytest.fixture
def schemas_copy(tmp_path: Path) -> Path:
    """A copy of the project's schemas."""
    directory = tmp_path / "schemas"
    shutil.copytree(catalogue.load().directory, directory)
    return directory


@pytest.fixture
def empty_registry_proxy(bare_settings: Settings) -> Iterator[RegistryProxy]:
    """A proxy in front of a registry without schemas under the test's prefix."""
    with proxy(bare_settings.schema_registry_url) as made:
        yield made


def state(settings: Settings, known: Catalogue) -> dict[str, Any]:
    """Return the versions and the compatibility level of each subject in the registry."""
    registry = open_registry(settings)
    held = {
        topic.name: (list(registry.versions(topic.name)), registry.compatibility(topic.name))
        for topic in known.topics_with_schema()
    }
    registry.close()
    return held


def is_registry_empty(settings: Settings) -> bool:
    """Return whether the registry has no version and no own level for any subject."""
    held = state(settings, catalogue.load()).values()
    return all(versions == [] and level != "FULL_TRANSITIVE" for versions, level in held)


def test_register_plans_then_registers_and_changes_nothing_the_second_time(
    bare_settings: Settings, cli: Callable[..., Any]
) -> None:
    """A dry run of `schemas register` changes nothing, the first run registers all, and a second run changes nothing.

    The first run registers versions and levels, and caches the ids.
    """
    planned = json.loads(cli(bare_settings, "schemas", "register", "--dry-run", "--json").stdout)
    assert planned["changes"] == 3
    assert is_registry_empty(bare_settings)
    assert json.loads(cli(bare_settings, "schemas", "register", "--json").stdout)["changes"] == 3
    assert all(held == ([1], "FULL_TRANSITIVE") for held in state(bare_settings, catalogue.load()).values())
    again = cli(bare_settings, "schemas", "register")
    assert again.stdout.rstrip().endswith("0 changes")
    registry = open_registry(bare_settings)
    registry.close()  # no more requests reach the registry
    assert registry.id_for(MESSAGES, catalogue.load().topic(MESSAGES).schema or {}) > 0


@pytest.mark.parametrize("lost", [False, True])
def test_a_registration_that_fails_halfway_is_undone(
    bare_settings: Settings, empty_registry_proxy: RegistryProxy, lost: bool
) -> None:
    """R28: If the registry goes away in the middle of a registration, the versions that it registered are removed.

    This holds even if the registry registered a version and only its response was lost.
    """
    known = catalogue.load()
    registry = open_registry(evolve(bare_settings, schema_registry_url=empty_registry_proxy.url))
    planned = registration.plan(known, registry)
    last = f"{registry.subject('bot-responses')}/versions "
    if lost:
        empty_registry_proxy.lose = last
    else:
        empty_registry_proxy.refuse = last
    with pytest.raises(Unavailable, match="nothing was registered"):
        registration.apply(known, registry, planned)
    assert is_registry_empty(bare_settings)


def edit_schema(path: Path, edit: Callable[[Any], None]) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    edit(schema)
    path.write_text(json.dumps(schema), encoding="utf-8")


def test_one_bad_schema_keeps_all_from_being_registered(
    bare_settings: Settings, schemas_copy: Path, cli: Callable[..., Any]
) -> None:
    """R28: If one schema is invalid, the exit code is 2, and nothing is registered."""
    edit_schema(
        schemas_copy / "bot-response.avsc",
        lambda schema: schema["fields"][3].pop("doc"),
    )
    done = cli(bare_settings, "schemas", "register", check=False, RTFM_SCHEMAS_DIR=str(schemas_copy))
    assert done.returncode == 2
    assert "nothing was registered" in done.stderr
    assert is_registry_empty(bare_settings)


def test_a_registry_that_holds_an_incompatible_version_is_left_as_it_is(
    bare_settings: Settings, schemas_copy: Path, cli: Callable[..., Any]
) -> None:
    """A registry with an incompatible version is not changed, because that version may have readers.

    The exit code is 2, and the error names subject and version.
    """
    registry = open_registry(bare_settings)
    foreign = json.loads((schemas_copy / "bot-query.avsc").read_text(encoding="utf-8"))
    foreign["fields"][0]["type"] = "long"
    registry.register("bot-queries", foreign)
    before = state(bare_settings, catalogue.load())
    done = cli(bare_settings, "schemas", "register", check=False)
    assert done.returncode == 2
    assert "incompatible with version 1" in done.stderr
    assert state(bare_settings, catalogue.load()) == before


def test_check_asks_a_registry_and_reports_where_it_disagrees(
    settings: Settings, schemas_copy: Path, cli: Callable[..., Any]
) -> None:
    """`schemas check` refuses an incompatible version, and reports that the registry would accept it at level NONE."""
    url = settings.schema_registry_url
    assert cli(settings, "schemas", "check", "--registry", url).stdout.endswith("0 findings\n")
    registry = open_registry(settings)
    registry.set_compatibility("bot-queries", "NONE")
    edit_schema(schemas_copy / "bot-query.avsc", lambda schema: schema["fields"][4].update(type="long"))
    done = cli(
        settings,
        *("schemas", "check", "--format", "json", "--registry", url),
        check=False,
        RTFM_SCHEMAS_DIR=str(schemas_copy),
    )
    assert done.returncode == 1
    rules = {finding["rule"] for finding in json.loads(done.stdout)["findings"]}
    assert {"type", "registry-disagrees"} <= rules
