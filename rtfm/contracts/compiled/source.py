"""The state of a generator: the lines, variables and constants of the function that it has generated so far."""

from __future__ import annotations

import keyword
from typing import Any

from attrs import define, field

OWN_NAMES = frozenset(
    [
        *keyword.kwlist,
        *("event", "frame", "must_check", "is_numeric", "all_numeric", "exc", "length", "number"),
        *("data", "text", "position", "end", "byte", "low", "middle", "high"),
        *("len", "int", "float", "list", "range", "Exception"),
    ]
)
"""Names that the generated code uses for itself. The variable of a field gets another name."""


@define
class SourceState:
    """The lines generated so far, each with the path of its field, and the names that the lines use."""

    names: dict[str, Any]
    """The constants that the source uses: a dict from name to object."""
    lines: list[tuple[str, str]] = field(factory=list)
    _variables: set[str] = field(factory=set)
    _parts: dict[tuple[str, str], str] = field(factory=dict)

    def line(self, depth: int, text: str, path: str = "") -> None:
        """Add a line, indented ``depth`` levels, for the field at ``path``."""
        self.lines.append(("    " * depth + text, path))

    def constant(self, preferred: str, value: Any) -> str:
        """Return the name of the constant ``value``.

        A new constant is added. Its name is ``preferred`` if no other constant or variable has this name.
        """
        for known, other in self.names.items():
            if other is value:
                return known
        name = self._find_free_name(preferred)
        self.names[name] = value
        return name

    def variable(self, preferred: str) -> str:
        """Return the name of a new variable. It is ``preferred`` if no constant or other variable has this name."""
        name = self._find_free_name(preferred)
        self._variables.add(name)
        return name

    def part(self, variable: str, what: str) -> str:
        """Return the name of the variable for one part of the value in ``variable``.

        ``what`` names the part, such as ``length``. Calls with the same arguments return the same name.
        """
        if (variable, what) not in self._parts:
            self._parts[variable, what] = self.variable(f"{variable}_{what}")
        return self._parts[variable, what]

    def text(self) -> str:
        """Return the source."""
        return "\n".join(line for line, _ in self.lines) + "\n"

    def paths(self) -> dict[int, str]:
        """Return a dict from line number to the path of the field that the line reads."""
        return {number: path for number, (_, path) in enumerate(self.lines, 1) if path}

    def _find_free_name(self, preferred: str) -> str:
        name, number = preferred, 1
        while name in OWN_NAMES or name in self.names or name in self._variables:
            number += 1
            name = f"{preferred}_{number}"
        return name


def item_of(variable: str) -> str:
    """Return the name for an item of the list ``variable``, such as ``citation`` for ``citations``."""
    return variable.removesuffix("s") if variable.endswith("s") and len(variable) > 1 else f"{variable}_item"
