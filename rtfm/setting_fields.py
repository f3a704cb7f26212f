"""The parsers for the values of settings, and ``setting``, which builds a field of Settings. Pure.

A parser takes the text of a value and returns the value. If the text is not valid, it raises ValueError; the message is
a phrase that describes a valid text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from attrs import field

from rtfm.addresses import redact_address

Number = TypeVar("Number", int, float)


def text(value: str) -> str:
    """Return the text as it is. This is the parser of settings whose value may be any text."""
    return value


def _number(
    read: Callable[[str], Number], is_allowed: Callable[[Number], bool], expected: str
) -> Callable[[str], Number]:
    """Build a parser of numbers. ``expected`` describes the numbers that are allowed."""

    def parse(value: str) -> Number:
        number = read(value)
        if not is_allowed(number):
            raise ValueError(expected)
        return number

    return parse


seconds = _number(float, lambda number: 0 < number < 1e9, "a positive number of seconds")
count = _number(int, lambda number: number >= 1, "a whole number of at least 1")
limit = _number(int, lambda number: number >= 0, "a whole number of at least 0")
"""A parser of upper limits. For most settings 0 means that there is no limit."""

share = _number(float, lambda number: 0 <= number <= 1, "a share between 0 and 1")
positive_share = _number(float, lambda number: 0 < number <= 1, "a share above 0, up to 1")
port = _number(int, lambda number: 0 <= number <= 65535, "a port between 0 and 65535")
"""A parser of TCP ports. 0 means any free port."""


def boolean(value: str) -> bool:
    """Parse 1, true, yes, on, 0, false, no or off, in any case."""
    match value.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("true or false")


def url(*schemes: str) -> Callable[[str], str]:
    """Build a parser of addresses that have one of ``schemes``. The parser removes trailing slashes."""

    def parse(value: str) -> str:
        expected = f"an address such as {schemes[0]}://host:port"
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:  # urlsplit's message would repeat a part of the address, which may be a password
            raise ValueError(expected) from None
        if parts.scheme not in schemes or not (parts.hostname or parts.scheme.startswith("postgresql")):
            raise ValueError(expected)
        if "@" in parts.path + parts.query + parts.fragment:  # urlsplit took a part of the password for the host
            raise ValueError(f"{expected}; in a password write / as %2F, ? as %3F, # as %23 and @ as %40")
        return value.rstrip("/")

    return parse


def one_of(*values: str) -> Callable[[str], str]:
    """Build a parser that accepts only ``values``."""

    def parse(value: str) -> str:
        if value not in values:
            raise ValueError("one of " + ", ".join(values))
        return value

    return parse


def bootstrap_servers(value: str) -> str:
    """Check a list of brokers in Kafka's own form: host:port, several separated by commas."""
    for server in value.split(","):
        host, separator, port = server.strip().rpartition(":")
        if "@" in host or not (host and separator and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError("host:port, several separated by commas, without user and password")
    return value


def topic_prefix(value: str) -> str:
    """Check a prefix of topic names. It may have up to 100 characters; Kafka allows 249 for a topic's whole name."""
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
    """Build a field of Settings.

    ``env`` is the setting's environment variable, ``doc`` is its meaning, and ``group`` is its heading in
    docs/configuration.md. ``repr`` omits a value that is ``secret``.
    """
    return field(
        default=default,
        repr=False if secret else _safe_repr,
        metadata={"env": env, "doc": doc, "parse": parse, "secret": secret, "group": group},
    )


def _safe_repr(value: object) -> str:
    return repr(redact_address(value) if isinstance(value, str) and "://" in value else value)
