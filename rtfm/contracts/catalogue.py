"""The catalogue of contracts: the topics with their schema, key, retention and readers.

This module reads ``contracts.toml``, the schemas that it names, and their released versions. Its errors name the file
and the place in the file. It does not use Kafka or a registry, and it writes nothing.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, cast

import fastavro
from attrs import field, frozen

from rtfm.errors import ConfigError

Schema = dict[str, Any]
"""An Avro schema as parsed JSON."""

CATALOGUE_FILE = "contracts.toml"
RELEASED_DIRECTORY = "released"

# https://docs.confluent.io/platform/current/schema-registry/fundamentals/schema-evolution.html
COMPATIBILITY_LEVELS = (
    "NONE",
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
)

PARTITIONER = "murmur2_random"
"""librdkafka's name for the partitioner that every producer must use.

Two producers with different partitioners would write records of the same key to different partitions.
"""

_PACKAGE = Path(__file__).resolve().parent.parent
_VERSION = re.compile("[1-9][0-9]*")
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_TOPIC_KEYS = ("doc", "schema", "key", "partitions", "retention_h", "compatibility", "producers", "consumers", "group")


@frozen(kw_only=True)
class Topic:
    """One topic of the catalogue.

    ``schema``, ``schema_file`` and ``compatibility`` are None if the topic's values have no schema. ``group`` is the
    consumer group of the service that reads the topic, without a prefix; it is None if no service reads the topic.
    """

    name: str
    doc: str
    key: str
    partitions: int
    retention_h: int
    schema: Schema | None = field(repr=False)
    schema_file: str | None
    compatibility: str | None
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    group: str | None = None

    @property
    def subject(self) -> str:
        """The subject of this topic's values, without a prefix (TopicNameStrategy)."""
        return f"{self.name}-value"


@frozen
class Catalogue:
    """The content of ``contracts.toml``. ``topics`` maps names without a prefix to topics, in the order of the file."""

    directory: Path
    namespace: str
    topics: dict[str, Topic]

    def topic(self, name: str) -> Topic:
        """Return the topic ``name``. Raises ConfigError if the catalogue does not have it."""
        try:
            return self.topics[name]
        except KeyError:
            raise ConfigError(
                f"{name} is not a topic of {self.directory / CATALOGUE_FILE}",
                hint="Topics are " + ", ".join(self.topics) + ".",
            ) from None

    def group(self, topic_name: str) -> str:
        """Return the consumer group of the service that reads the topic. Raises ConfigError if the topic has none."""
        group = self.topic(topic_name).group
        if group is None:
            raise ConfigError(f"{self.directory / CATALOGUE_FILE}: [topics.{topic_name}]: the key group is missing")
        return group

    def topics_with_schema(self) -> list[Topic]:
        """Return the topics whose values have a schema."""
        return [topic for topic in self.topics.values() if topic.schema is not None]

    def released_schemas(self, topic_name: str) -> dict[int, Schema]:
        """Read the topic's released schemas, as a dict from version to schema in ascending order.

        Raises ConfigError if a file is not a schema, or if its name is not a version.
        """
        directory = self.released_directory(topic_name)
        found = {}
        for path in sorted(directory.glob("*.avsc")) if directory.is_dir() else ():
            if not _VERSION.fullmatch(path.stem):
                raise ConfigError(f"{path}: the name of a released schema must be <version>.avsc, such as 1.avsc")
            found[int(path.stem)] = read_schema(path)
        return dict(sorted(found.items()))

    def released_directory(self, topic_name: str) -> Path:
        """Return the folder that contains the released versions of the topic's schema."""
        return self.directory / RELEASED_DIRECTORY / self.topic(topic_name).subject


def load(schemas_dir: Path | None = None) -> Catalogue:
    """Read the catalogue in ``schemas_dir``; the default is the project's own catalogue.

    Raises ConfigError if something is missing or malformed; the message names the file and the place.
    """
    directory = schemas_dir or _find_packaged_directory()
    path = directory / CATALOGUE_FILE
    try:
        document = tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    namespace = _read_value(document, "namespace", str, str(path))
    if document.get("partitioner", PARTITIONER) != PARTITIONER:
        raise ConfigError(f"{path}: partitioner must be {PARTITIONER}, which clients of every language support")
    topics = _read_value(document, "topics", dict, str(path))
    return Catalogue(directory, namespace, {name: _build_topic(directory, path, name, topics[name]) for name in topics})


def read_schema(path: Path) -> Schema:
    """Read the Avro record schema in ``path``.

    Raises ConfigError if the file is not valid; the message names the file and the place.
    """
    try:
        schema = json.loads(_read_text(path))
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{path}:{exc.lineno}:{exc.colno}: not JSON: {exc.msg}") from exc
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ConfigError(f"{path}: the schema is not an Avro record")
    if not isinstance(schema.get("fields"), list):
        raise ConfigError(f"{path}: the record has no list of fields")
    try:
        fastavro.parse_schema(json.loads(json.dumps(schema)))
    except Exception as exc:  # fastavro raises its own errors, KeyError and TypeError for malformed schemas
        what = f"the key {exc} is missing" if isinstance(exc, KeyError) else str(exc)
        if isinstance(exc, fastavro.schema.UnknownType):
            what = f"the type {exc.name} is not defined"
        raise ConfigError(f"{path}: not a valid Avro schema: {what}") from exc
    return cast("Schema", schema)


def _find_packaged_directory() -> Path:
    in_checkout = _PACKAGE.parent / "schemas"
    if (_PACKAGE.parent / "pyproject.toml").is_file() and in_checkout.is_dir():
        return in_checkout  # in a checkout, the package may contain an outdated copy of the schemas
    return _PACKAGE / "schemas"


def _build_topic(directory: Path, path: Path, name: str, table: object) -> Topic:
    where = f"{path}: [topics.{name}]"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is not a table")
    if not _TOPIC_NAME.fullmatch(name):
        raise ConfigError(f"{where}: a topic's name must have 1 to 200 letters, digits, dots, dashes and underscores")
    if unknown := sorted(set(table) - set(_TOPIC_KEYS)):
        raise ConfigError(f"{where}: unknown key {unknown[0]}", hint="Keys are " + ", ".join(_TOPIC_KEYS) + ".")
    schema_file = _read_value(table, "schema", str, where) if "schema" in table else None
    schema = read_schema(directory / schema_file) if schema_file else None
    level = _read_value(table, "compatibility", str, where) if schema else None
    if level is not None and level not in COMPATIBILITY_LEVELS:
        raise ConfigError(
            f"{where} compatibility: {level!r} is not a compatibility level",
            hint="The levels are " + ", ".join(COMPATIBILITY_LEVELS) + ".",
        )
    key = _read_value(table, "key", str, where)
    if schema and key not in {entry["name"] for entry in schema["fields"] if entry["type"] == "string"}:
        raise ConfigError(f"{where} key: {key!r} is not a field of type string in {schema_file}")
    return Topic(
        name=name,
        doc=_read_value(table, "doc", str, where),
        key=key,
        partitions=_read_positive(table, "partitions", where),
        retention_h=_read_positive(table, "retention_h", where),
        schema=schema,
        schema_file=schema_file,
        compatibility=level,
        producers=_read_texts(table, "producers", where),
        consumers=_read_texts(table, "consumers", where),
        group=_read_value(table, "group", str, where) if "group" in table else None,
    )


def _read_value(table: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in table:
        raise ConfigError(f"{where}: the key {key} is missing")
    if type(table[key]) is not kind:
        expected = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}[kind]
        raise ConfigError(f"{where} {key}: {table[key]!r} is not {expected}")
    return table[key]


def _read_positive(table: dict[str, Any], key: str, where: str) -> int:
    number: int = _read_value(table, key, int, where)
    if number < 1:
        raise ConfigError(f"{where} {key}: {number} is less than 1")
    return number


def _read_texts(table: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    names = _read_value(table, key, list, where)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where} {key}: must be a list of texts")
    return tuple(names)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{path} cannot be read: {exc.strerror if isinstance(exc, OSError) else exc}",
            hint="RTFM_SCHEMAS_DIR, if set, must contain contracts.toml, the schemas and released/.",
        ) from exc
