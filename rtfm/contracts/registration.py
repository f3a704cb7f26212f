"""Registration of all contracts in a registry.

``plan`` checks the contracts before ``apply`` writes. If a write fails, ``apply`` rolls back the earlier writes, as far
as the registry responds. Neither function changes a version that is already in the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import evolve, field, frozen

from rtfm.contracts import release
from rtfm.contracts.catalogue import Catalogue, Schema, Topic
from rtfm.contracts.registry import SchemaRegistry
from rtfm.contracts.registry_client import SchemaRefused
from rtfm.contracts.rules.compatibility import is_accepted, versions_to_compare
from rtfm.errors import ConfigError, RtfmError, Unavailable


@frozen(kw_only=True)
class Registration:
    """The changes that one subject needs.

    ``missing`` are the schemas to register, oldest first. ``sets_level`` tells whether the compatibility level must be
    set to ``level``. ``schema_id`` and ``version`` are the id and version of the current schema in the registry. Both
    are None until that schema is registered.
    """

    topic: str
    subject: str
    level: str
    missing: tuple[Schema, ...] = field(repr=False)
    sets_level: bool
    schema_id: int | None = None
    version: int | None = None

    @property
    def has_changes(self) -> bool:
        """Whether the subject needs a change."""
        return bool(self.missing) or self.sets_level

    @property
    def change(self) -> str:
        """The change in words, such as "register, set level"."""
        register = "register" if len(self.missing) == 1 else f"register {len(self.missing)} versions"
        parts = [text for is_needed, text in ((self.missing, register), (self.sets_level, "set level")) if is_needed]
        return ", ".join(parts) or "none"


def plan(catalogue: Catalogue, registry: SchemaRegistry) -> list[Registration]:
    """Plan the changes for each subject, without writing.

    Raises ConfigError if the contracts break a rule or are incompatible with a version in the registry, and Unavailable
    if the registry does not respond.
    """
    if found := release.findings(catalogue):
        raise ConfigError(
            f"{found[0].message}; nothing was registered",
            hint="`rtfm-cli schemas check` shows everything that is wrong.",
        )
    return [_plan_topic(catalogue, topic, registry) for topic in catalogue.topics_with_schema()]


def apply(catalogue: Catalogue, registry: SchemaRegistry, planned: list[Registration]) -> list[Registration]:
    """Make the changes in ``planned``, and return them with the registry's ids and versions.

    Raises ConfigError if the registry refuses a write, and Unavailable if the registry stops responding. If a write or
    a look-up fails, the earlier writes are rolled back, as far as the registry responds.

    After the last write, the ids that are cached on this machine are compared with the registry. If the registry does
    not respond during this comparison, Unavailable is raised, but the schemas stay registered.
    """
    undo_steps: list[Callable[[], None]] = []
    result = []
    try:
        for item in planned:
            name, current = item.topic, catalogue.topic(item.topic).schema or {}
            if item.sets_level:
                undo_steps.append(partial(registry.set_compatibility, name, registry.compatibility(name)))
                registry.set_compatibility(name, item.level)
            for schema in item.missing:
                # The undo step is added first, because the request may succeed although its response is lost.
                undo_steps.append(partial(_unregister, registry, name, schema))
                registry.register(name, schema)
            result.append(_look_up(item, current, registry))
    except BaseException as exc:
        left = _roll_back(undo_steps)
        outcome = "nothing was registered" if left is None else f"earlier writes could not be rolled back: {left}"
        if isinstance(exc, SchemaRefused):
            raise ConfigError(f"{exc}; {outcome}") from exc
        if isinstance(exc, Unavailable):
            raise Unavailable(exc.dependency, f"{exc}; {outcome}", hint=exc.hint) from exc
        raise
    registry.check_cache()
    for item in result:
        registry.cache_id(item.topic, catalogue.topic(item.topic).schema or {}, item.schema_id or 0)
    return result


def _look_up(item: Registration, schema: Schema, registry: SchemaRegistry) -> Registration:
    """Return ``item`` with the id and version of ``schema`` in the registry."""
    if (found := registry.lookup(item.topic, schema)) is None:
        raise ConfigError(
            f"the registry at {registry.url} accepted the schema of {item.subject}, but a look-up does not find this"
            " schema"
        )
    return evolve(item, schema_id=found[0], version=found[1])


def _plan_topic(catalogue: Catalogue, topic: Topic, registry: SchemaRegistry) -> Registration:
    schema, level = topic.schema or {}, topic.compatibility or "NONE"
    released = catalogue.released_schemas(topic.name)
    history = [*released.values()] + ([] if schema in released.values() else [schema])
    found = registry.lookup(topic.name, schema)
    in_registry = {number: known for number, (_, known) in registry.versions(topic.name).items()}
    # If the current schema is registered, nothing counts as missing. If an earlier version is not in the registry,
    # somebody may have removed the version on purpose, so the version is not registered again.
    missing = () if found else tuple(version for version in history if registry.lookup(topic.name, version) is None)
    for version in missing:
        for number, known in versions_to_compare(in_registry, level).items():
            if not is_accepted(version, known, level):
                raise ConfigError(
                    f"{registry.subject(topic.name)}: the schema is incompatible with version {number} at"
                    f" {registry.url}; nothing was registered",
                    hint=f"`rtfm-cli schemas check --registry {registry.url}` compares the schema with that version.",
                )
    return Registration(
        topic=topic.name,
        subject=registry.subject(topic.name),
        level=level,
        missing=missing,
        sets_level=registry.compatibility(topic.name) != level,
        schema_id=found[0] if found else None,
        version=found[1] if found else None,
    )


def _unregister(registry: SchemaRegistry, topic_name: str, schema: Schema) -> None:
    if (found := registry.lookup(topic_name, schema)) is not None:
        registry.unregister(topic_name, found[1])


def _roll_back(undo_steps: list[Callable[[], None]]) -> RtfmError | None:
    """Run the undo steps in reverse order. Return the last error, or None if every step succeeded."""
    failed = None
    for step in reversed(undo_steps):
        try:
            step()
        except RtfmError as exc:
            failed = exc
    return failed
