"""Strays: unreleased versions that other programs registered under this project's subjects.

``find`` returns all strays with the rules that they break, and ``find_removable`` returns the stray with a given
version. If a stray is removed, its schema can still be fetched by the schema id. Records that were written with that
schema therefore stay readable.
"""

from __future__ import annotations

from attrs import evolve, frozen

from rtfm.contracts import release
from rtfm.contracts.catalogue import Catalogue, Schema, Topic
from rtfm.contracts.registry import SchemaRegistry
from rtfm.errors import ConfigError

REGISTERED_BY = (
    "registered by another client, as Confluent's serializers do by default: turn auto.register.schemas off there first"
)


@frozen(kw_only=True)
class Stray:
    """One unreleased version. ``breaks`` contains a description of each rule that the version breaks."""

    topic: str
    subject: str
    version: int
    schema_id: int
    breaks: tuple[str, ...]

    @property
    def message(self) -> str:
        """One line that names the version, and says what is wrong with it and who may have registered it."""
        verdict = f"it breaks rules ({'; '.join(self.breaks)})" if self.breaks else "it breaks no rule"
        return (
            f"{self.subject} version {self.version} (id {self.schema_id}) was never released; {verdict}; it was"
            f" {REGISTERED_BY}"
        )

    def command(self, registry_url: str | None = None) -> str:
        """Return the command that removes this version.

        If the registry is not the one in the settings, pass its address as ``registry_url``. The command then contains
        this address as an option.
        """
        where = f" --registry {registry_url}" if registry_url else ""
        return f"rtfm-cli schemas remove {self.subject} {self.version}{where} --yes"


def find(catalogue: Catalogue, registry: SchemaRegistry) -> list[Stray]:
    """Find every version under this project's subjects that is neither released nor the current schema.

    Raises Unavailable if the registry does not respond.
    """
    found = []
    for topic in catalogue.topics_with_schema():
        versions = registry.versions(topic.name)
        known = [*catalogue.released_schemas(topic.name).values(), topic.schema or {}]
        # A registry may store a released schema in another notation. A comparison of schemas does not recognise such a
        # schema, but the registry's own look-up does.
        own = {registered[1] for schema in known if versions and (registered := registry.lookup(topic.name, schema))}
        for version, (schema_id, schema) in versions.items():
            if version not in own and schema not in known:
                found.append(
                    Stray(
                        topic=topic.name,
                        subject=registry.subject(topic.name),
                        version=version,
                        schema_id=schema_id,
                        breaks=_find_broken_rules(catalogue, topic, schema),
                    )
                )
    return found


def topic_of(catalogue: Catalogue, registry: SchemaRegistry, subject: str) -> Topic:
    """Return the topic of ``subject``. Raises ConfigError if ``subject`` is not a subject of this project.

    ``subject`` may also be written without the prefix, or without both the prefix and ``-value``.
    """
    for topic in catalogue.topics_with_schema():
        if subject in (registry.subject(topic.name), topic.subject, topic.name):
            return topic
    raise ConfigError(
        f"{subject} is not a subject of this project",
        hint="The subjects are "
        + ", ".join(registry.subject(topic.name) for topic in catalogue.topics_with_schema())
        + ".",
    )


def find_removable(catalogue: Catalogue, registry: SchemaRegistry, topic: Topic, version: int) -> Stray:
    """Return the stray of ``topic`` that has the number ``version``.

    Raises ConfigError if the registry has no such version, or if the version is a released version or the current
    schema.
    """
    for stray in find(catalogue, registry):
        if (stray.topic, stray.version) == (topic.name, version):
            return stray
    subject = registry.subject(topic.name)
    if version in registry.versions(topic.name):
        raise ConfigError(
            f"{subject} version {version} is a released version or the current schema, and cannot be removed",
            hint="Readers need it.",
        )
    raise ConfigError(
        f"{subject} has no version {version}",
        hint="`rtfm-cli schemas register --dry-run` lists the versions that can be removed.",
    )


def _find_broken_rules(catalogue: Catalogue, topic: Topic, schema: Schema) -> tuple[str, ...]:
    """Return descriptions of the rules that ``schema`` would break as the next version of ``topic``."""
    released = catalogue.released_schemas(topic.name) or {1: topic.schema or {}}
    try:
        found = release.topic_findings(evolve(topic, schema=schema), released)
        return tuple(dict.fromkeys(f"{finding.rule}, {finding.what}" for finding in found))
    except Exception as exc:  # a schema from outside may make the checks raise any exception
        return (f"it cannot be read as a contract ({type(exc).__name__})",)
