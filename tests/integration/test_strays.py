"""The command line reports strays, which are schema versions that another client registered, and removes them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from confluent_kafka import SerializingProducer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer

from rtfm.contracts import catalogue, open_contracts, open_registry
from rtfm.settings import Settings
from tests.streams import QUERIES, build_query

Cli = Callable[..., subprocess.CompletedProcess[str]]


def registered_by_another(settings: Settings, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Produce a query with Confluent's default serializer and a changed schema, and return the record's value."""
    schema = json.loads(json.dumps(catalogue.load().topic(QUERIES).schema))
    change(schema)
    registry = SchemaRegistryClient({"url": settings.schema_registry_url})
    serializer = AvroSerializer(registry, json.dumps(schema))
    produced: list[bytes] = []

    def serialized(value: Any, context: Any) -> bytes:
        produced.append(serializer(value, context) or b"")
        return produced[-1]

    producer = SerializingProducer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "value.serializer": serialized}
    )
    codec = open_contracts(settings).codec(QUERIES)
    query = build_query(1)
    value = {field["name"]: getattr(query, field["name"], None) for field in schema["fields"]}
    value |= {"audience": "ASKER", "origin": "CONSOLE", "context": [], "attachments": []}
    producer.produce(f"{settings.kafka_topic_prefix}{QUERIES}", key="c1", value=value)
    producer.flush(20)
    assert codec.schema != schema
    return produced[0]


def drop_logical_type(schema: dict[str, Any]) -> None:
    field = next(field for field in schema["fields"] if field["name"] == "asked_at")
    field["type"] = "long"


def add_tenant(schema: dict[str, Any]) -> None:
    tenant = {"name": "tenant", "type": ["null", "string"], "default": None, "doc": "Whose it is."}
    schema["fields"].append(tenant)


@pytest.mark.parametrize(("change", "rule"), [(drop_logical_type, "logical-type"), (add_tenant, None)])
def test_a_stray_version_is_named_with_the_command_that_removes_it(
    settings: Settings, cli: Cli, change: Callable[[dict[str, Any]], None], rule: str | None
) -> None:
    """`schemas check`, `schemas register` and `doctor` report a stray, with the command that removes it.

    After the removal, a record that was written with the stray can still be decoded.
    """
    url = settings.schema_registry_url
    assert cli(settings, "schemas", "check", "--registry", url).stdout.endswith("0 findings\n")
    record = registered_by_another(settings, change)
    subject = f"{settings.kafka_topic_prefix}{QUERIES}-value"

    checked = cli(settings, "schemas", "check", "--format", "json", "--registry", url, check=False)
    assert checked.returncode == 1
    (finding,) = json.loads(checked.stdout)["findings"]
    assert (finding["rule"], finding["version"]) == ("unreleased", 2)
    assert "auto.register.schemas" in finding["message"]
    assert ("breaks no rule" in finding["message"]) is (rule is None)
    assert rule is None or rule in finding["message"]

    planned = json.loads(cli(settings, "schemas", "register", "--dry-run", "--json").stdout)
    assert planned["changes"] == 0
    (stray,) = planned["strays"]
    assert (stray["subject"], stray["version"]) == (subject, 2)

    report = json.loads(cli(settings, "doctor", "--json", check=False).stdout)
    found = next(finding for finding in report["findings"] if finding["check"] == "stray versions")
    assert found["state"] == ("note" if rule is None else "wrong")
    assert f"{subject} version 2" in found["detail"]
    assert found["fix"] == f"rtfm-cli schemas remove {subject} 2 --yes"
    assert found["fix"] in cli(settings, "doctor", check=False).stdout

    assert "Nothing was removed" in cli(settings, "schemas", "remove", QUERIES, "2").stdout
    assert list(open_registry(settings).versions(QUERIES)) == [1, 2]
    cli(settings, *shlex.split(finding["fix"])[1:])
    assert list(open_registry(settings).versions(QUERIES)) == [1]
    assert cli(settings, "schemas", "check", "--registry", url).stdout.endswith("0 findings\n")
    assert open_contracts(settings).decode(QUERIES, record).query_id == "c1"


def test_a_released_version_is_not_removed(settings: Settings, cli: Cli) -> None:
    """To remove a released version, or a version of a foreign subject, is refused with exit code 2."""
    done = cli(settings, "schemas", "remove", QUERIES, "1", "--yes", check=False)
    assert done.returncode == 2
    assert "released" in done.stderr
    assert list(open_registry(settings).versions(QUERIES)) == [1]
    done = cli(settings, "schemas", "remove", "payments-value", "1", "--yes", check=False)
    assert done.returncode == 2


def test_the_local_registry_checks_subjects_of_others(settings: Settings) -> None:
    """The local registry has the level FULL_TRANSITIVE for subjects without a level of their own."""
    answer = httpx.get(f"{settings.schema_registry_url}/config", timeout=20).json()
    assert answer["compatibilityLevel"] == "FULL_TRANSITIVE"
