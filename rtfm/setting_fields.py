"""What a setting is: a field of Settings that knows its variable, its meaning and how its text is read.

Owns the forms that values have. A parser takes the text and returns the value; it raises ValueError whose message
says what the text should have been. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from attrs import field

from rtfm.addresses import redact_address

Number = TypeVar("Number", int, float)


def text(value: str) -> str:
    """Any text."""
    return value


def _number(
    read: Callable[[str], Number], is_allowed: Callable[[Number], bool], wanted: str
) -> Callable[[str], Number]:
    """A parser of numbers; ``wanted`` says which ones are allowed."""

    def parse(value: str) -> Number:
        number = read(value)
        if not is_allowed(number):
            raise ValueError(wanted)
        return number

    return parse


seconds = _number(float, lambda number: 0 < number < 1e9, "a positive number of seconds")
count = _number(int, lambda number: number >= 1, "a whole number of at least 1")
limit = _number(int, lambda number: number >= 0, "a whole number of at least 0")
"""How many at most; 0 usually means no limit."""

share = _number(float, lambda number: 0 <= number <= 1, "a share between 0 and 1")
positive_share = _number(float, lambda number: 0 < number <= 1, "a share above 0, up to 1")
port = _number(int, lambda number: 0 <= number <= 65535, "a port between 0 and 65535")
"""A TCP port; 0 takes a free one."""


def boolean(value: str) -> bool:
    """In the words that people use for it."""
    match value.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("true or false")


def url(*schemes: str) -> Callable[[str], str]:
    """An address of one of ``schemes``, without a slash at its end."""

    def parse(value: str) -> str:
        wanted = f"an address such as {schemes[0]}://host:port"
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:  # its message repeats what stands where the port should be
            raise ValueError(wanted) from None
        if parts.scheme not in schemes or not (parts.hostname or parts.scheme.startswith("postgresql")):
            raise ValueError(wanted)
        if "@" in parts.path + parts.query + parts.fragment:  # the host would be a part of the password
            raise ValueError(f"{wanted}; in a password write / as %2F, ? as %3F, # as %23 and @ as %40")
        return value.rstrip("/")

    return parse


def one_of(*values: str) -> Callable[[str], str]:
    """One of ``values``, letter by letter."""

    def parse(value: str) -> str:
        if value not in values:
            raise ValueError("one of " + ", ".join(values))
        return value

    return parse


def bootstrap_servers(value: str) -> str:
    """Kafka's own form: host:port, several separated by commas."""
    for server in value.split(","):
        host, separator, port = server.strip().rpartition(":")
        if "@" in host or not (host and separator and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError("host:port, several separated by commas, without user and password")
    return value


def topic_prefix(value: str) -> str:
    """What may stand in the name of a topic, and short enough that the rest has room in its 249 letters."""
    if not all(c.isascii() and (c.isalnum() or c in "._-") for c in value) or len(value) > 100:
        raise ValueError("at most 100 letters, digits, dots, dashes and underscores")
    return value


def setting(
    env: str,
    default: Any,
    doc: str,
    parse: Callable[[str], Any] = text,
    *,
    secret: bool = False,
    group: str,
) -> Any:
    """A field of Settings: variable ``env``, meaning ``doc``, heading ``group`` in the docs; a secret is not shown."""
    return field(
        default=default,
        repr=False if secret else _safe_repr,
        metadata={"env": env, "doc": doc, "parse": parse, "secret": secret, "group": group},
    )


def _safe_repr(value: object) -> str:
    return repr(redact_address(value) if isinstance(value, str) and "://" in value else value)
