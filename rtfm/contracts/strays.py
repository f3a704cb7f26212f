"""Versions that a registry holds and nobody released: what other programs registered under our subjects.

Says of each whether it breaks a rule, and which one may be removed. A version is removed from its subject and its id
goes on standing for the schema, so that records that were written with it stay readable.
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
    """One version that is not a released one; ``breaks`` are the rules that it breaks, in words."""

    topic: str
    subject: str
    version: int
    schema_id: int
    breaks: tuple[str, ...]

    @property
    def message(self) -> str:
        """What it is, who may have registered it and what is wrong with it, in one line."""
        verdict = f"it breaks rules of ours ({'; '.join(self.breaks)})" if self.breaks else "it breaks no rule of ours"
        return (
            f"{self.subject} version {self.version} (id {self.schema_id}) is not a released one; {verdict}; it was"
            f" {REGISTERED_BY}"
        )

    def command(self, registry_url: str | None = None) -> str:
        """The command that removes it, at ``registry_url`` where that is not the one of the settings."""
        where = f" --registry {registry_url}" if registry_url else ""
        return f"rtfm-cli schemas remove {self.subject} {self.version}{where} --yes"


def find(catalogue: Catalogue, registry: SchemaRegistry) -> list[Stray]:
    """Every version under our subjects that is neither released nor the schema as it stands.

    Raises Unavailable when the registry does not answer.
    """
    found = []
    for topic in catalogue.topics_with_schema():
        held = registry.versions(topic.name)
        known = [*catalogue.released_schemas(topic.name).values(), topic.schema or {}]
        # A registry may keep another notation of a schema than it was given, and finds it all the same.
        own = {registered[1] for schema in known if held and (registered := registry.lookup(topic.name, schema))}
        for version, (schema_id, schema) in held.items():
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
    """The topic of ``subject``, which may be written with its prefix or without. Raises ConfigError for another one."""
    for topic in catalogue.topics_with_schema():
        if subject in (registry.subject(topic.name), topic.subject, topic.name):
            return topic
    raise ConfigError(
        f"{subject} is not a subject of ours",
        hint="Subjects are "
        + ", ".join(registry.subject(topic.name) for topic in catalogue.topics_with_schema())
        + ".",
    )


def find_removable(catalogue: Catalogue, registry: SchemaRegistry, topic: Topic, version: int) -> Stray:
    """The stray ``version`` of ``topic``. Raises ConfigError for one that is not there, or is a released one."""
    for stray in find(catalogue, registry):
        if (stray.topic, stray.version) == (topic.name, version):
            return stray
    subject = registry.subject(topic.name)
    if version in registry.versions(topic.name):
        raise ConfigError(f"{subject} version {version} is a released one and stays", hint="Readers need it.")
    raise ConfigError(f"{subject} has no version {version}", hint="`rtfm-cli schemas register --dry-run` lists strays.")


def _find_broken_rules(catalogue: Catalogue, topic: Topic, schema: Schema) -> tuple[str, ...]:
    """The rules that ``schema`` would break as the next version."""
    released = catalogue.released_schemas(topic.name) or {1: topic.schema or {}}
    try:
        found = release.topic_findings(evolve(topic, schema=schema), released)
        return tuple(dict.fromkeys(f"{finding.rule}, {finding.what}" for finding in found))
    except Exception as exc:  # whatever the schema of a stranger makes the checks stumble over
        return (f"it cannot be read as a contract ({type(exc).__name__})",)
