"""A page for each contract, made from its schema: what a developer of another service reads."""

from __future__ import annotations

import json

from rtfm.contracts import release
from rtfm.contracts.catalogue import Catalogue, Topic
from rtfm.contracts.rules.compatibility import never_removable
from rtfm.contracts.tree import Field, Node, field_path, parse, walk


def page(catalogue: Catalogue, topic: Topic) -> str:
    """The page of one topic, as Markdown."""
    node = parse(topic.schema)
    released = catalogue.released(topic.name)
    fixed = set(never_removable(released, topic.compatibility or "NONE"))
    parts = [
        f"# {topic.name}\n",
        f"<!-- Made from schemas/{topic.schema_file} and contracts.toml; change those and run `make docs`. -->\n",
        f"{topic.doc} {node.doc}\n",
        "| | |\n|---|---|",
        f"| record | `{node.name}` |",
        f"| subject | `{topic.subject}`, {topic.compatibility} |",
        f"| key | `{topic.key}` as UTF-8; its partition by murmur2, as Java chooses |",
        f"| partitions | {topic.partitions} |",
        f"| retention | {topic.retention_h} hours |",
        f"| released versions | {', '.join(map(str, released)) or 'none'} |",
        f"| written by | {', '.join(topic.producers)} |",
        f"| read by | {', '.join(topic.consumers)} |\n",
    ]
    for path, part in walk(node):
        if part.kind == "record":
            heading = "Fields" if part is node else f"{part.short_name}, in `{path}`"
            note = "" if part is node else f"{part.doc}\n\n"
            parts.append(f"## {heading}\n\n{note}| field | type | default | meaning |\n|---|---|---|---|")
            parts += [_row(entry, field_path(path, entry.name), fixed) for entry in part.fields]
            parts.append("")
    parts.append("Fields marked * can never be removed: readers of a released version need them.\n")
    enums = {part.name: part for _, part in walk(node) if part.kind == "enum"}
    if enums:
        parts.append("## Enums\n\n| enum | symbols | unknown to a reader | meaning |\n|---|---|---|---|")
        for enum in enums.values():
            symbols = ", ".join(f"`{symbol}`" for symbol in enum.symbols)
            parts.append(f"| {enum.short_name} | {symbols} | `{enum.default}` | {_cell(enum.doc)} |")
        parts.append("")
    example = json.dumps(release.examples(topic.schema or {})[0]["value"], indent=2, ensure_ascii=False)
    parts.append(f"## Example\n\n```json\n{example}\n```")
    return "\n".join(parts) + "\n"


def _row(entry: Field, path: str, fixed: set[str]) -> str:
    default = f"`{json.dumps(entry.default)}`" if entry.has_default else ""
    return f"| `{entry.name}`{' *' if path in fixed else ''} | {_type(entry.node)} | {default} | {_cell(entry.doc)} |"


def _cell(text: str | None) -> str:
    """``text`` as the cell of a table, in which Markdown would take angle brackets for HTML."""
    return (text or "").replace("|", "\\|").replace("<", "\\<")


def _type(node: Node) -> str:
    if node.kind == "union":
        return " or ".join(_type(branch) for branch in node.branches)
    if node.items is not None:
        return f"{node.kind} of {_type(node.items)}"
    return f"{node.kind}, {node.logical}" if node.logical else node.short_name or node.kind
