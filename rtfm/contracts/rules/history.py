"""The project's own rules for changes between versions. Pure.

Avro allows the changes that these rules forbid. After such a change, a reader could misinterpret a value without an
error: for example, it could read a time in another unit, or a symbol with another meaning.
"""

from __future__ import annotations

from collections.abc import Iterator

from rtfm.contracts.rules.findings import Breach
from rtfm.contracts.tree import Node, field_path, items_path


def find_breaches(
    old: Node, new: Node, path: str = "", seen: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Breach]:
    """Yield every change from ``old`` to ``new`` that breaks one of the project's own rules."""
    if (id(old), id(new)) in seen or old.kind != new.kind:
        return  # a recursive type that is being compared already, or a change of type, which Avro's rules cover
    seen |= {(id(old), id(new))}
    at = f"`{path}`" if path else "the record"
    if old.logical != new.logical:
        change = f"changes its logicalType from {old.logical or 'none'} to {new.logical or 'none'}"
        yield Breach(path, "logical-type", f"{at} {change}", "keep the logicalType; a new one needs a new field")
    if old.name and old.short_name == new.short_name and old.name != new.name:
        yield Breach(
            path, "namespace", f"{at} changes only its namespace, from {old.name} to {new.name}", "keep the full name"
        )
    if old.kind == "enum":
        yield from _find_enum_breaches(old, new, path, at)
    if old.items is not None and new.items is not None:
        yield from find_breaches(old.items, new.items, items_path(path, old), seen)
    if old.kind == "union":
        yield from _find_union_breaches(old, new, path, at, seen)
    of_new = {name: entry for entry in new.fields for name in (*entry.aliases, entry.name)}
    for entry in old.fields:
        if entry.name in of_new:
            yield from find_breaches(entry.node, of_new[entry.name].node, field_path(path, entry.name), seen)


def _find_enum_breaches(old: Node, new: Node, path: str, at: str) -> Iterator[Breach]:
    for symbol in old.symbols:
        if symbol not in new.symbols:
            yield Breach(
                path,
                "enum-symbol-removed",
                f"{at} loses the symbol {symbol}",
                "keep the symbol, but stop writing it",
            )
    if old.default != new.default:
        what = f"{at} changes its enum default from {old.default or 'none'} to {new.default or 'none'}"
        yield Breach(
            path, "enum-default", what, "keep the default, which old readers use for symbols that they do not know"
        )
    kept = [symbol for symbol in new.symbols if symbol in old.symbols]
    if kept != [symbol for symbol in old.symbols if symbol in new.symbols] or list(new.symbols[: len(kept)]) != kept:
        what = f"{at} has its symbols in another order"
        yield Breach(
            path,
            "enum-order",
            what,
            "keep the order and add symbols at the end, because code that is generated from the schema numbers them",
        )


def _find_union_breaches(
    old: Node, new: Node, path: str, at: str, seen: frozenset[tuple[int, int]]
) -> Iterator[Breach]:
    def key(node: Node) -> str:
        return node.name or node.kind

    of_new = {key(branch): branch for branch in new.branches}
    common = [key(branch) for branch in old.branches if key(branch) in of_new]
    if common != [key(branch) for branch in new.branches if key(branch) in common]:
        yield Breach(
            path,
            "union-order",
            f"{at} has its branches in another order",
            "keep the order, because a default belongs to the first branch",
        )
    for branch in old.branches:
        if key(branch) in of_new:
            yield from find_breaches(branch, of_new[key(branch)], path, seen)
