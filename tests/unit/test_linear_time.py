"""The time that a text from outside takes grows no faster than the length of the text.

The tests find the patterns of the packages, and the functions whose first parameter is such a text, so that new
patterns and functions are tested without being listed. They compare CPU times for texts of different lengths. If the
first comparison is over the limit, the best of five tries counts.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import attrs
import pytest
import rtfm_cli

import rtfm
from rtfm.answering import extractive, prompt, sources
from rtfm.answering.attachments import find_error_lines, select_text_files
from rtfm.bot.triggers import IncomingMessage, find_question
from rtfm.events import Attachment, Audience, BotQuery, TimestampMillis
from rtfm.knowledge import imports
from rtfm.knowledge.conversations import ConversationLine, build_passages
from rtfm.knowledge.linking import link
from tests.hostile import superlinear
from tests.knowledge import CHANNEL, stored
from tests.passages import GUILD, passage, said

ROOT = Path(__file__).parents[2]

TRUSTED_PATTERNS = {
    "rtfm.contracts.catalogue._TOPIC_NAME": "names in our own contracts.toml",
    "rtfm.local.services._STACK_TRACE": "logs of services that we start",
    "rtfm.local.services._ERROR_LINE": "logs of services that we start",
}
"""Patterns that read no text from outside, and what they read."""

ARGUMENTS: dict[str, Any] = {
    "numbers": {1: 1},
    "known_links": {"https://print.example/unlock"},
    "names": ["ada", "bob"],
    "max_tokens": 220,
}
"""Arguments for required parameters after the first one, by parameter name."""

TEXT_PARAMETERS = frozenset({"answer", "content", "name", "question", "text", "word"})
"""Names of parameters that take text from outside."""

SKIPPED_MODULES = {
    "rtfm.bot.commands": "asks Discord",
    "rtfm.knowledge.archive": "asks the database",
    "rtfm.answering.extractive": "takes passages, too, and is in OTHERS",
    "rtfm.answering.follow_up": "takes a conversation, too, whose parts are in OTHERS",
    "rtfm.answering.prompt": "takes passages, too, and is in OTHERS",
    "rtfm.local": "names of our own",
    "rtfm.telemetry": "names of our own",
}
"""Modules whose functions are not tested by parameter name, and why."""


def _modules() -> Iterator[ModuleType]:
    for package in (rtfm, rtfm_cli):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" not in found.name:
                yield importlib.import_module(found.name)


MODULES = list(_modules())


def _patterns() -> dict[str, re.Pattern[str]]:
    found: dict[int, tuple[str, re.Pattern[str]]] = {}
    for module in MODULES:
        for name, value in vars(module).items():
            for number, pattern in enumerate(_patterns_in(value, depth=3)):
                # an imported pattern is the same object and is tested once
                found.setdefault(
                    id(pattern), (f"{module.__name__}.{name}" + (f"[{number}]" if number else ""), pattern)
                )
    return dict(sorted(found.values()))


def _patterns_in(value: object, *, depth: int) -> Iterator[re.Pattern[str]]:
    """Yield the patterns in ``value``, including those in collections and in instances of this project's classes."""
    if isinstance(value, re.Pattern):
        if isinstance(value.pattern, str):
            yield value
        return
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        inner = value
    elif attrs.has(type(value)):
        inner = [
            getattr(value, name, None) for name in attrs.fields_dict(cast("type[attrs.AttrsInstance]", type(value)))
        ]
    if depth:
        for one in inner:
            yield from _patterns_in(one, depth=depth - 1)


PATTERNS = {name: pattern for name, pattern in _patterns().items() if name not in TRUSTED_PATTERNS}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_takes_time_by_the_length_of_the_text(name: str) -> None:
    """No pattern takes time that grows faster than the length of the text.

    The time for a run of line feeds or dashes in one message once stopped a processor.
    """
    pattern = PATTERNS[name]

    def read(text: str) -> None:
        for _ in pattern.finditer(text):
            pass
        pattern.match(text)
        pattern.fullmatch(text)

    assert superlinear(read, pattern.pattern) == []


def _functions() -> dict[str, Callable[[str], object]]:
    found: dict[str, Callable[[str], object]] = {}
    for module in MODULES:
        if module.__name__.startswith("rtfm_cli.") or any(module.__name__.startswith(name) for name in SKIPPED_MODULES):
            continue
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_") or inspect.iscoroutinefunction(function):
                continue
            parameters = list(inspect.signature(function).parameters.values())
            if not parameters:
                continue
            first, *others = parameters
            if first.name not in TEXT_PARAMETERS or first.annotation not in ("str", str):
                continue
            needed = [one.name for one in others if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
            if all(one in ARGUMENTS for one in needed):
                found[f"{module.__name__}.{name}"] = lambda text, f=function, n=needed: f(  # type: ignore[misc]
                    text, **{one: ARGUMENTS[one] for one in n}
                )
            else:
                found[f"{module.__name__}.{name}"] = _unknown(name, needed)
    return found


def _unknown(name: str, needed: list[str]) -> Callable[[str], object]:
    def read(text: str) -> object:
        raise AssertionError(f"{name} takes {needed}: add them to ARGUMENTS, or its module to SKIPPED_MODULES")

    return read


def _query(text: str) -> BotQuery:
    return BotQuery(
        query_id="m1",
        guild_id=GUILD,
        channel_id="600",
        asker_id="1",
        question=text,
        asked_at=TimestampMillis(0),
        expires_at=TimestampMillis(0),
        audience=Audience.PUBLIC,
        visible_channel_ids=["600"],
    )


def _quoted(text: str) -> object:
    return extractive.compose(extractive.quotes("how do I unlock it?", [passage([said("ada", text)])]))


def _by_its_answer(text: str) -> object:
    return extractive.best_message("how?", text[: prompt.MAX_QUESTION_CHARACTERS], passage([said("ada", text)]))


def _linked(text: str) -> object:
    return link([stored(i, text, author_id=str(i % 3)) for i in range(3)])


def _passages(text: str) -> object:
    return build_passages(
        "1", [ConversationLine(message_id="1", text=text, created_at=TimestampMillis(0), files=(text,))], CHANNEL
    )


def _mentioned(text: str) -> object:
    people = [(str(i), [text[: i + 1], f"n{i}"]) for i in range(120)]
    return imports._restore_mentions(text, people)


def _file(text: str) -> object:
    return find_error_lines(select_text_files([Attachment(filename=text, url="", size_bytes=1, text=text)]))


OTHERS: dict[str, Callable[[str], object]] = {
    "extractive.quotes": _quoted,
    "extractive.quotes, of the question": lambda text: extractive.quotes(text, [passage([said("ada", "unlock it")])]),
    "extractive.best_message": _by_its_answer,
    "extractive.compose, of a name": lambda text: extractive.compose(
        extractive.quotes("unlock?", [passage([said(text or "x", "unlock it")])])
    ),
    "linking.link": _linked,
    "conversations.build_passages": _passages,
    "triggers.find_question": lambda text: find_question(
        IncomingMessage(content=text, bot_id="1", replies_to_bot=True)
    ),
    "imports, mentions": _mentioned,
    "sources.select_usable": lambda text: sources.select_usable([passage([said("ada", text)])], _query(text)),
    "attachments": _file,
}
"""Functions that are not found by parameter name; each is wrapped so that it takes only a text."""

FUNCTIONS = {**_functions(), **OTHERS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_time_by_the_length_of_the_text(name: str) -> None:
    """No function takes time that grows faster than the length of the message, question, name or answer."""
    assert superlinear(FUNCTIONS[name]) == []


def test_patterns_are_module_constants() -> None:
    """All patterns are module constants, because a pattern inside a function would not be tested."""
    inside: list[str] = []
    for path in sorted([*(ROOT / "rtfm").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {
            call
            for node in tree.body
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
            for call in ast.walk(node)
        }
        inside += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in ("re", "re2")
            and node.func.attr != "escape"
            and not (
                path.name == "secret_forms.py" and node.func.attr == "compile"
            )  # the patterns that this file compiles are in its constant FORMS
            and node not in top
        ]
    assert inside == []


def test_exceptions_name_existing_patterns() -> None:
    """The exceptions name only patterns that exist."""
    assert set(TRUSTED_PATTERNS) <= set(_patterns())


def test_the_measure_detects_slow_patterns() -> None:
    """The measure finds the patterns that once stopped a processor, and accepts a linear pattern."""
    for pattern in (
        re.compile(r"^\W*#{2,}\s*x:", re.MULTILINE),
        re.compile(r"[\w.-]*[\w+~]"),
        re.compile(r"[ \t]*\[1\]"),
    ):
        assert superlinear(lambda text, p=pattern: p.findall(text), pattern.pattern) != []  # type: ignore[misc]
    assert superlinear(re.compile(r"\w+").findall) == []
