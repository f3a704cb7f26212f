"""``python -m tests.judge DIR``: judge the kept run in the folder DIR.

The verdict is printed and written to DIR/verdict.json. The exit code is 0 if the run is right, 1 if it is wrong, and 2
if it cannot be judged.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.judge.verdict import judge

VERDICT = "verdict.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge a run and return the exit code. ``arguments`` are by default those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.judge", description="Judge the kept run in a folder.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that `make chaos` kept")
    parser.add_argument("--json", action="store_true", help="print the content of verdict.json")
    options = parser.parse_args(arguments)
    verdict = judge(options.folder)
    text = json.dumps(verdict.as_json(), indent=2, ensure_ascii=False)
    print(text if options.json else verdict.as_text())  # noqa: T201 - the result
    try:
        (options.folder / VERDICT).write_text(text + "\n", encoding="utf-8")
    except OSError as exc:
        print(f"cannot write {VERDICT}: {exc}", file=sys.stderr)  # noqa: T201 - for people
    return verdict.exit_code


if __name__ == "__main__":
    # The garbage collector is off. It takes a quarter of the time and frees little, because loaded objects are needed
    # until the end.
    gc.disable()
    sys.exit(main())
