"""The results of checking rules. Pure."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class Breach:
    """A place at which a schema breaks a rule, what is wrong and the ``fix``."""

    path: str
    rule: str
    what: str
    fix: str


@frozen(kw_only=True)
class Finding:
    """One error in the contracts. ``kind`` is lock, lint, compatibility or registry.

    ``version`` is the released version that the schema was compared with. ``direction`` is "backward" (the new schema
    cannot read the old one's records), "forward" (the old one cannot read the new one's) or "history". ``what`` is the
    message without its context, ``fix`` what to do.
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
