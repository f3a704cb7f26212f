"""Counts the lines of code of each package in rtfm/ and cli/, without blank lines, comments and docstrings.

``make bench-lines`` counts the checkout. ``make bench-lines ARGS='v0.1.0'`` also counts the commit v0.1.0.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
_NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def count_code_lines(source: str) -> int:
    """Return the number of a module's lines that contain code. A statement over three lines counts as three."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout


def count_by_room(commit: str | None) -> Counter[str]:
    """Count the lines of code of each package, for example ``rtfm/streams``, in a commit; None means the checkout."""
    found: Counter[str] = Counter()
    for name in _git("ls-tree", "-r", "--name-only", commit or "HEAD", "rtfm", "cli").split():
        path = CHECKOUT / name
        if name.endswith(".py") and (commit or path.is_file()):
            source = _git("show", f"{commit}:{name}") if commit else path.read_text("utf-8")
            parts = name.split("/")
            found["cli" if parts[0] == "cli" else "/".join(parts[:2]) if len(parts) > 2 else "rtfm"] += (
                count_code_lines(source)
            )
    return found


def main(arguments: list[str]) -> None:
    """Print the table."""
    columns = [count_by_room(commit) for commit in [*arguments, None]]
    print(f"{'':20}" + "".join(f"{name[:10]:>12}" for name in [*arguments, "now"]))
    for room in sorted(set().union(*columns)):
        print(f"{room:20}" + "".join(f"{column[room]:12,}" for column in columns))
    print(f"{'all':20}" + "".join(f"{column.total():12,}" for column in columns))


if __name__ == "__main__":
    main(sys.argv[1:])
