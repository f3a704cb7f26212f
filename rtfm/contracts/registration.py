"""Registering the contracts: what a registry lacks, and the writing of it, all or nothing.

A plan is made and checked whole before the first write. It never removes or changes a version that a registry holds.
"""

from __future__ import annotations

from attrs import frozen

from rtfm.contracts.catalogue import Catalogue, Topic
from rtfm.contracts.registry import SchemaRefused, SchemaRegistry
from rtfm.errors import ConfigError


@frozen(kw_only=True)
class Registration:
    """What one subject needs: ``change`` is "register", "set level", "register, set level" or "none"."""

    topic: str
    subject: str
    level: str
    registers: bool
    sets_level: bool
    schema_id: int | None
    version: int | None

    @property
    def changes(self) -> bool:
        """Whether anything has to be written."""
        return self.registers or self.sets_level

    @property
    def change(self) -> str:
        """The change in words."""
        parts = [text for wanted, text in ((self.registers, "register"), (self.sets_level, "set level")) if wanted]
        return ", ".join(parts) or "none"


def plan(catalogue: Catalogue, registry: SchemaRegistry) -> list[Registration]:
    """What each subject of the catalogue needs; changes nothing.

    Raises ConfigError when the registry holds a version that a schema is incompatible with, Unavailable when it does
    not answer.
    """
    return [_plan_one(topic, registry) for topic in catalogue.with_schema()]


def apply(catalogue: Catalogue, registry: SchemaRegistry, planned: list[Registration]) -> list[Registration]:
    """Write what ``planned`` says and give it back with the ids and versions that came of it."""
    done = []
    for item in planned:
        topic = catalogue.topic(item.topic)
        assert topic.schema is not None  # noqa: S101 - only topics with a schema are planned
        if item.sets_level:
            registry.set_compatibility(topic.name, item.level)
        if item.registers:
            try:
                registry.register(topic.name, topic.schema)
            except SchemaRefused as exc:
                raise ConfigError(f"{item.subject} was not registered: {exc}") from exc
        found = registry.lookup(topic.name, topic.schema)
        if found is None:
            raise ConfigError(f"{item.subject} is not found right after it was registered at {registry.url}")
        done.append(
            Registration(
                topic=item.topic,
                subject=item.subject,
                level=item.level,
                registers=item.registers,
                sets_level=item.sets_level,
                schema_id=found[0],
                version=found[1],
            )
        )
    return done


def _plan_one(topic: Topic, registry: SchemaRegistry) -> Registration:
    assert topic.schema is not None  # noqa: S101 - see Catalogue.with_schema
    assert topic.compatibility is not None  # noqa: S101 - a topic with a schema has a level
    found = registry.lookup(topic.name, topic.schema)
    if found is None:
        for version in registry.versions(topic.name):
            if not registry.is_compatible(topic.name, topic.schema, version):
                raise ConfigError(
                    f"{registry.subject(topic.name)}: the schema is incompatible with version {version} at"
                    f" {registry.url}; nothing was changed",
                    hint="`rtfm-cli schemas check` says what breaks.",
                )
    return Registration(
        topic=topic.name,
        subject=registry.subject(topic.name),
        level=topic.compatibility,
        registers=found is None,
        sets_level=registry.compatibility(topic.name) != topic.compatibility,
        schema_id=found[0] if found else None,
        version=found[1] if found else None,
    )
