"""Writes the pages that follow from the code, or says that they are stale.

Owns docs/configuration.md and .env.example, both made from the settings, and a page in docs/contracts/ for each
contract. Run it as ``python docs/generate.py``; with ``--check`` it changes nothing and exits with 1 when a page is
not what it would write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path

from rtfm import settings
from rtfm.contracts import catalogue, release
from rtfm.contracts.catalogue import Catalogue, Topic
from rtfm.contracts.rules.compatibility import unremovable_fields
from rtfm.contracts.tree import Field, Node, field_path, parse, walk

ROOT = Path(__file__).resolve().parent.parent

CONFIGURATION = """\
# Configuration

<!-- Made by docs/generate.py from rtfm/settings.py; change it there and run `make docs`. -->

Every setting is an environment variable. A value is looked for in this order, and the first one found is taken:

1. the flag of a command, where it has one (`rtfm-cli topics init --bootstrap-servers localhost:29092`)
2. the environment
3. `.env` in the working directory
4. for addresses only: the local stack that runs in `RTFM_HOME` (`rtfm-cli local up`)
5. the default

A secret may be kept in a file: `DISCORD_TOKEN_FILE=/run/secrets/discord_token` stands for its content. A value that
does not parse stops the program with exit code 2 and a line that says which variable it is and where it stands.
"""

ENV_EXAMPLE = """\
# Copy to .env and fill in what you need; every setting has a default. Meanings: docs/configuration.md.
# Made by docs/generate.py from rtfm/settings.py; change it there and run `make docs`.
"""


def configuration() -> str:
    """The page that lists every setting with its default and meaning."""
    parts = [CONFIGURATION]
    for group, rows in groupby(settings.describe(), key=lambda row: row[0]):
        parts.append(f"\n## {group}\n\n| variable | default | meaning |\n|---|---|---|\n")
        for _, variable, default, meaning, secret in rows:
            name = f"`{variable}`" + (f" or `{variable}_FILE`" if secret else "")
            parts.append(f"| {name} | {f'`{default}`' if default else ''} | {meaning} |\n")
    return "".join(parts)


def env_example() -> str:
    """An .env file in which every setting stands commented out at its default."""
    parts = [ENV_EXAMPLE]
    for group, rows in groupby(settings.describe(), key=lambda row: row[0]):
        parts.append(f"\n# {group}\n")
        parts.extend(f"# {variable}={default}\n" for _, variable, default, _, _ in rows)
    return "".join(parts)


def contract_page(known: Catalogue, topic: Topic) -> str:
    """The page of one topic, as Markdown: what a developer of another service reads."""
    node = parse(topic.schema)
    released = known.released_schemas(topic.name)
    fixed = set(unremovable_fields(released, topic.compatibility or "NONE"))
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


CONTRACTS = catalogue.load(ROOT / "schemas")

PAGES: dict[str, Callable[[], str]] = {
    "docs/configuration.md": configuration,
    ".env.example": env_example,
    **{
        f"docs/contracts/{topic.name}.md": partial(contract_page, CONTRACTS, topic)
        for topic in CONTRACTS.topics_with_schema()
    },
}


def find_stale(root: Path = ROOT) -> list[str]:
    """Paths below ``root`` of the pages that are missing, not what would be written, or of contracts that are gone."""
    return [
        name
        for name, make in PAGES.items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != make()
    ] + [
        name
        for path in sorted((root / "docs" / "contracts").glob("*.md"))
        if (name := f"docs/contracts/{path.name}") not in PAGES
    ]


def main(arguments: list[str]) -> int:
    """Write the pages, or check them; 1 when the check finds a stale one."""
    wrong = find_stale()
    if arguments == ["--check"]:
        for name in wrong:
            sys.stderr.write(f"{name} is stale; run `make docs`.\n")
        return 1 if wrong else 0
    for name in wrong:
        if name not in PAGES:
            (ROOT / name).unlink()
            sys.stdout.write(f"{name} removed\n")
            continue
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(PAGES[name](), encoding="utf-8")
        sys.stdout.write(f"{name} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
