"""Findings, and the few kinds of rules that they come from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

#: Longest value that is shown, characters.
_SHOWN = 100


class Absent:
    """What an answer has where a key is missing; equal to nothing."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule found.

    Args:
        rule: a sentence that is true of a server that conforms.
        expected, got: short texts.
        source: where the rule comes from.
        conforms: whether it holds.
    """

    rule: str
    expected: str
    got: str
    source: str
    conforms: bool


def holds(rule: str, is_so: bool, expected: str, got: object, source: str) -> Finding:
    """Return the finding of a rule that was judged already."""
    return Finding(rule, expected, _shown(got), source, is_so)


def equal(rule: str, got: object, expected: object, source: str) -> Finding:
    """A value is exactly the expected one; true is not 1, and 1 is not 1.0."""
    is_so = got == expected and type(got) is type(expected)
    return holds(rule, is_so, _shown(expected), got, source)


def among(rule: str, got: object, expected: Iterable[object], source: str) -> Finding:
    """A value is one of several."""
    allowed = list(expected)
    is_so = any(got == one and type(got) is type(one) for one in allowed)
    return holds(rule, is_so, " or ".join(_shown(one) for one in allowed), got, source)


def kind(rule: str, got: object, expected: str, source: str) -> Finding:
    """A value is of a kind, a key of `KINDS`."""
    return holds(rule, KINDS[expected](got), f"{_article(expected)} {expected}", got, source)


def every(rule: str, exceptions: Iterable[str], source: str) -> Finding:
    """A rule holds of several answers; `exceptions` names those of which it does not."""
    wrong = ", ".join(exceptions)
    return holds(rule, not wrong, "in all cases", f"not in: {wrong}" if wrong else "in all cases", source)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_link(value: object) -> bool:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
    except ValueError:
        return False
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)


KINDS = {
    "string": lambda value: isinstance(value, str),
    "text": lambda value: isinstance(value, str) and value != "",
    "string of digits": lambda value: isinstance(value, str) and re.fullmatch(r"\d+", value) is not None,
    "decimal": lambda value: isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value) is not None,
    "integer": _is_integer,
    "positive integer": lambda value: _is_integer(value) and value > 0,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "absolute link": _is_link,
}


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _shown(value: object) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
