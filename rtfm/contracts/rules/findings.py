"""What a rule says is wrong. Pure."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class Breach:
    """One place at which a schema breaks a rule, and what to do about it."""

    path: str
    rule: str
    what: str
    fix: str


@frozen(kw_only=True)
class Finding:
    """One thing that is wrong with the contracts. ``kind``: lock, lint, compatibility, registry.

    ``version`` is the released version that the schema was compared with; ``direction`` is "backward" (the new cannot
    read the old), "forward" (the old cannot read the new) or "history". ``what`` is the message without its context.
    """

    kind: str
    subject: str
    rule: str
    path: str
    message: str
    version: int | None = None
    direction: str | None = None
    mend: str | None = None
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    file: str | None = None
    what: str = field(default="", repr=False)
