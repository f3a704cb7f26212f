"""The source of a generated function while it is built: its lines, variables and constants."""

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
"""Names that the generated code itself uses, which no field's variable may have."""


@define
class SourceState:
    """The lines, each with the path of its field, and the names in use."""

    names: dict[str, Any]
    """Name → object, for the constants of the source."""
    lines: list[tuple[str, str]] = field(factory=list)
    _variables: set[str] = field(factory=set)
    _parts: dict[tuple[str, str], str] = field(factory=dict)

    def line(self, depth: int, text: str, path: str = "") -> None:
        """Add a line, indented ``depth`` levels, for the field at ``path``."""
        self.lines.append(("    " * depth + text, path))

    def constant(self, preferred: str, value: Any) -> str:
        """Return a name for the constant ``value``: ``preferred`` if it is free."""
        for known, other in self.names.items():
            if other is value:
                return known
        name = self._free(preferred)
        self.names[name] = value
        return name

    def variable(self, preferred: str) -> str:
        """Return a new variable: ``preferred`` if it is free."""
        name = self._free(preferred)
        self._variables.add(name)
        return name

    def part(self, variable: str, what: str) -> str:
        """Return the variable for ``what`` of ``variable``, such as its length; the same one each time."""
        if (variable, what) not in self._parts:
            self._parts[variable, what] = self.variable(f"{variable}_{what}")
        return self._parts[variable, what]

    def text(self) -> str:
        """Return the source."""
        return "\n".join(line for line, _ in self.lines) + "\n"

    def paths(self) -> dict[int, str]:
        """Return line number → path of its field."""
        return {number: path for number, (_, path) in enumerate(self.lines, 1) if path}

    def _free(self, preferred: str) -> str:
        name, number = preferred, 1
        while name in OWN_NAMES or name in self.names or name in self._variables:
            number += 1
            name = f"{preferred}_{number}"
        return name


def item_of(variable: str) -> str:
    """Return the name of one item of the list ``variable``: ``citation`` for ``citations``."""
    return variable.removesuffix("s") if variable.endswith("s") and len(variable) > 1 else f"{variable}_item"
