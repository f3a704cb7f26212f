"""The text of a generated function while it is written: its lines, its variables and the objects that it names."""

from __future__ import annotations

import keyword
from typing import Any

from attrs import define, field

OWN_NAMES = frozenset(
    [
        *keyword.kwlist,
        *("event", "frame", "unsure", "plain", "usual", "exc", "length", "number"),
        *("data", "text", "position", "end", "byte", "low", "middle", "high"),
        *("len", "int", "float", "list", "range", "Exception"),
    ]
)
"""What generated code says itself; no field's variable is called so."""


@define
class SourceState:
    """Lines with the path of the field that each one is for, and the names in use."""

    names: dict[str, Any]
    """Name → object, for what the text refers to."""
    lines: list[tuple[str, str]] = field(factory=list)
    _variables: set[str] = field(factory=set)
    _parts: dict[tuple[str, str], str] = field(factory=dict)

    def line(self, depth: int, text: str, path: str = "") -> None:
        """Add a line, ``depth`` levels deep, for the field at ``path``."""
        self.lines.append(("    " * depth + text, path))

    def constant(self, wanted: str, value: Any) -> str:
        """A name under which the text finds ``value``: ``wanted`` where it is free."""
        for known, other in self.names.items():
            if other is value:
                return known
        name = self._free(wanted)
        self.names[name] = value
        return name

    def variable(self, wanted: str) -> str:
        """A fresh variable: ``wanted`` where that is free."""
        name = self._free(wanted)
        self._variables.add(name)
        return name

    def part(self, variable: str, what: str) -> str:
        """The variable for ``what`` of ``variable``, such as its length; the same one each time."""
        if (variable, what) not in self._parts:
            self._parts[variable, what] = self.variable(f"{variable}_{what}")
        return self._parts[variable, what]

    def text(self) -> str:
        """The source."""
        return "\n".join(line for line, _ in self.lines) + "\n"

    def paths(self) -> dict[int, str]:
        """Line number → path of the field that it is for."""
        return {number: path for number, (_, path) in enumerate(self.lines, 1) if path}

    def _free(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in OWN_NAMES or name in self.names or name in self._variables:
            number += 1
            name = f"{wanted}_{number}"
        return name


def item_of(variable: str) -> str:
    """What one item of the list ``variable`` is called: ``citation`` of ``citations``."""
    return variable.removesuffix("s") if variable.endswith("s") and len(variable) > 1 else f"{variable}_item"
