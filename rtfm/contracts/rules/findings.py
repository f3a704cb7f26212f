"""The results of checking the rules for schemas. Pure."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class Breach:
    """A place at which a schema breaks a rule.

    ``path`` is the place, ``what`` says what is wrong, and ``fix`` says what to do.
    """

    path: str
    rule: str
    what: str
    fix: str


@frozen(kw_only=True)
class Finding:
    """One error in the contracts.

    ``kind`` is lock, lint, compatibility or registry. ``version`` is the version that the schema was compared with.
    ``message`` is a complete line. ``what`` is the part of the message that says what is wrong, and ``fix`` says what
    to do.

    ``direction`` is "backward" if the new schema cannot read records of the old one, "forward" if the old schema cannot
    read records of the new one, and "history" if the change breaks one of the project's own rules.
    """

    kind: str
    subject: str
    rule: str
    path: str
    message: str
    version: int | None = None
    direction: str | None = None
    fix: str | None = None
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    file: str | None = None
    what: str = field(default="", repr=False)
