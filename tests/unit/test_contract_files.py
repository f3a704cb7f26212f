"""The files of the catalogue: malformed files, released schemas, and the commands that maintain the files."""

from __future__ import annotations

import ast
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest
from avro.errors import IgnoredLogicalType
from rtfm_cli.main import run

from rtfm import names
from rtfm.contracts import EVENT_OF_TOPIC, EventCodec, catalogue, reference, release
from rtfm.errors import ConfigError

CHECKOUT = Path(__file__).parents[2]
QUERY = "bot-query.avsc"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's schemas; the commands use this copy."""
    directory = tmp_path / "schemas"
    shutil.copytree(catalogue.load().directory, directory)
    monkeypatch.setenv("RTFM_SCHEMAS_DIR", str(directory))
    monkeypatch.setenv("RTFM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return directory


def change(path: Path, edit: Callable[[Any], None]) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    edit(schema)
    path.write_text(json.dumps(schema), encoding="utf-8")


def add_field(path: Path, **more: Any) -> None:
    entry = {"name": "locale", "type": "string", "doc": "Language of the asker."} | more
    change(path, lambda schema: schema["fields"].append(entry))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("namespace = ", "contracts.toml"),
        ("topics = {}", "namespace is missing"),
        ('namespace = "a"\n[topics.t]\ndoc = "d"\nkey = "k"\npartitions = 0', "partitions: 0"),
        ('namespace = "a"\n[topics.t]\nretention = 1', "unknown key retention"),
        (
            'namespace = "a"\n[topics.t]\nschema = "bot-query.avsc"\ncompatibility = "ALL"',
            "'ALL' is not a compatibility level",
        ),
        ('namespace = "a"\n[topics.t]\nschema = "gone.avsc"', "gone.avsc cannot be read"),
    ],
)
def test_a_malformed_catalogue_is_named_with_its_place(copy: Path, text: str, said: str) -> None:
    """The error for a malformed catalogue is one line with file and key."""
    (copy / "contracts.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        catalogue.load(copy)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"type": "record", "name": "A"}',
        '{"type": "record", "name": "A", "fields": [{"name": "x", "type": "text"}]}',
    ],
)
def test_a_schema_that_does_not_parse_is_named(copy: Path, text: str) -> None:
    """If a schema is not JSON, not a record or not Avro, the error names its file."""
    (copy / QUERY).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{QUERY}.*{'the type text is not defined' if 'text' in text else ''}"):
        catalogue.load(copy)


def test_check_names_field_rule_and_consumers(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If a new field has no default, `schemas check` exits with 1, and names field, rule and consumers."""
    add_field(copy / QUERY)
    assert run(["schemas", "check"]) == 1
    said = capsys.readouterr().out
    assert "the new field `locale` has no default, so readers of v2 cannot read v1; add a default" in said
    assert "processor: answer" in said
    assert "rule: default" in said


@pytest.mark.parametrize("damage", ["removed", "changed", "added"])
def test_a_changed_released_file_fails_the_check(copy: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If a released file is changed, removed or added, `schemas check` fails, because the lock lists the digests."""
    released = copy / "released" / "bot-queries-value" / "1.avsc"
    match damage:
        case "removed":
            released.unlink()
        case "changed":
            released.write_text(released.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        case _:
            shutil.copy(released, released.with_name("2.avsc"))
    assert run(["schemas", "check"]) == 1
    assert "released/bot-queries-value/" in capsys.readouterr().out


def test_check_prints_json_and_github_annotations(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`schemas check` prints JSON for scripts, and annotations for pull requests on GitHub."""
    add_field(copy / QUERY)
    assert run(["schemas", "check", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [(entry["subject"], entry["path"], entry["rule"]) for entry in found] == [
        ("bot-queries-value", "locale", "default")
    ]
    assert run(["schemas", "check", "--format", "github"]) == 1
    assert capsys.readouterr().out.startswith(f"::error file=schemas/{QUERY},title=Contracts: default::")


def test_release_refuses_what_is_incompatible_or_unchanged(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`schemas release` of an incompatible or unchanged schema exits with 1, and writes nothing."""
    assert run(["schemas", "release"]) == 1
    assert "Nothing to release" in capsys.readouterr().err
    add_field(copy / QUERY)
    assert run(["schemas", "release"]) == 1
    assert not (copy / "released" / "bot-queries-value" / "2.avsc").exists()


def test_release_freezes_the_next_version_and_lists_permanent_fields(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`schemas release` writes the next version and its digest, and lists the fields that can never be removed.

    Afterwards `schemas check` passes.
    """
    add_field(copy / QUERY, default="")
    assert run(["schemas", "release"]) == 0
    said = capsys.readouterr().out
    assert "bot-queries-value v2 released" in said
    assert "query_id" in said.partition("never be removed")[2]
    assert list(catalogue.load(copy).released_schemas("bot-queries")) == [1, 2]
    assert run(["schemas", "check"]) == 0


def test_diff_describes_what_changed(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`schemas diff` describes the changes since the newest release."""
    add_field(copy / QUERY, default="")
    assert run(["schemas", "diff", "bot-queries"]) == 0
    assert "field locale is added: string, default ''" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["diff", "--from", "7"], "discord-messages-value has no released version 7"),
        (["diff", "--from", "0"], "--from"),
        (["show", "bot-queries", "--version", "7"], "bot-queries-value has no released version 7"),
        (["show", "bot-queries", "--version", "0"], "--version"),
        (["show", "dead-letters"], "dead-letters has no schema"),
    ],
)
def test_a_missing_version_or_schema_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """The error names the missing version or schema, and the exit code is 2; version 0 does not mean the newest."""
    assert run(["schemas", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_logical_type_on_the_wrong_base_is_a_finding_and_no_warning_of_a_library(
    copy: Path, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    """A logical type on a wrong base type is a finding of the check, and no warning of a library is printed."""

    def narrow(schema: dict[str, Any]) -> None:
        (asked,) = (entry for entry in schema["fields"] if entry["name"] == "asked_at")
        asked["type"] = {"type": "int", "logicalType": "timestamp-millis"}

    change(copy / QUERY, narrow)
    assert run(["schemas", "check"]) == 1
    assert (
        "`asked_at` has the logicalType timestamp-millis on the type int; use it with long" in capsys.readouterr().out
    )
    # Only this category counts: unrelated warnings, for instance for a socket of an earlier test, may appear, too.
    assert not [warning for warning in recwarn.list if warning.category is IgnoredLogicalType]


def test_show_prints_the_source_of_a_codec(capsys: pytest.CaptureFixture[str]) -> None:
    """`schemas show --codec` prints the generated code."""
    assert run(["schemas", "show", "bot-queries", "--codec"]) == 0
    said = capsys.readouterr().out
    assert "def encode(event, frame):" in said
    assert "def decode(data):" in said


@pytest.mark.parametrize("topic_name", EVENT_OF_TOPIC)
def test_every_released_example_is_read_by_every_later_schema(topic_name: str) -> None:
    """The examples of each released version can be decoded with each later version and the event class."""
    known = catalogue.load()
    topic = known.topic(topic_name)
    codec: EventCodec[Any] = EventCodec(EVENT_OF_TOPIC[topic_name], topic.schema or {})
    released = known.released_schemas(topic_name)
    assert released
    for version, schema in released.items():
        examples = json.loads(release.examples_path(known, topic, version).read_text(encoding="utf-8"))
        assert examples
        for example in examples:
            data = bytes.fromhex(example["avro"])
            event = codec.decode(b"\x00\x00\x00\x00\x07" + data, schema)
            later = [released[number] for number in released if number >= version] + [codec.schema]
            for reader in later:
                value = fastavro.schemaless_reader(
                    io.BytesIO(data), reference.parse_for_fastavro(schema), reference.parse_for_fastavro(reader)
                )
                assert isinstance(value, dict)
                for name in example["value"].keys() & value.keys():
                    assert value[name] == example["value"][name]
            plain = reference.to_plain(event)
            for name in example["value"].keys() & plain.keys():
                assert plain[name] == example["value"][name]


def test_names_of_topics_and_groups_are_defined_once() -> None:
    """Names of topics, except dead-letters, are in rtfm/names.py only, and no Python file has names of groups."""
    known = catalogue.load()
    topics = {value for name, value in vars(names).items() if name.isupper()}
    assert topics == set(known.topics)
    groups = {topic.group for topic in known.topics.values() if topic.group}
    assert len(groups) == 3
    spelled = {
        (str(path.relative_to(CHECKOUT)), node.value)
        for folder in ("rtfm", "cli")
        for path in (CHECKOUT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in topics - {names.DEAD_LETTERS} | groups
    }
    assert {path for path, _ in spelled} == {"rtfm/names.py"}


def test_a_topic_without_a_group_is_an_error_that_names_the_file(copy: Path) -> None:
    """If a topic that a service must read has no group, the error names the topic and the missing key."""
    text = (copy / "contracts.toml").read_text(encoding="utf-8")
    (copy / "contracts.toml").write_text(text.replace('group = "rtfm-bot-responses"\n', ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\[topics.bot-responses\]: the key group is missing"):
        catalogue.load(copy).group(names.RESPONSES)
