"""Writes the pages that follow from the code, or says that they are stale.

Owns docs/configuration.md and .env.example, both made from the settings, and a page in docs/contracts/ for each
contract. Run it as ``python docs/generate.py``; with ``--check`` it changes nothing and exits with 1 when a page is
not what it would write.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path

from rtfm import settings
from rtfm.contracts import catalogue, pages

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


CONTRACTS = catalogue.load(ROOT / "schemas")

PAGES: dict[str, Callable[[], str]] = {
    "docs/configuration.md": configuration,
    ".env.example": env_example,
    **{f"docs/contracts/{topic.name}.md": partial(pages.page, CONTRACTS, topic) for topic in CONTRACTS.with_schema()},
}


def stale(root: Path = ROOT) -> list[str]:
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
    wrong = stale()
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
