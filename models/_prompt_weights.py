r"""The weights that Stable Diffusion users write into prompts, as AUTOMATIC1111's web UI reads them.

    (word)        1.1 times as important, ((word)) 1.21 times
    [word]        1 / 1.1 times
    (word:1.3)    1.3 times; nested weights multiply
    \( \) \[ \]   the bracket itself; \\ is a backslash
    BREAK         what follows starts a new chunk of 75 tokens

A bracket that nobody closes holds to the end, one that nobody opened is text. Nothing is an error. This is text to
text: tokens and embeddings are the business of `models._clip_text`.

Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

#: What one pair of brackets multiplies by.
ROUND, SQUARE = 1.1, 1 / 1.1

#: Weights stay within -LIMIT..LIMIT. Pictures fall apart long before; past it "((((…" would reach infinity.
LIMIT = 10.0

# No part can match the same text in two ways, so no prompt is slow.
_TOKEN = re.compile(
    r"""
    \\(?P<literal>[()\[\]\\]?)                                          # a lone backslash vanishes
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*(?P<weighed>\))
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+ | :)
    """,
    re.VERBOSE,
)

_BREAK = re.compile(r"\bBREAK\b")

_OPENING = {")": "(", "]": "["}


class Fragment(NamedTuple):
    """A piece of a prompt and how important it is; 1 is normal."""

    text: str
    weight: float


def parse(prompt: str) -> list[list[Fragment]]:
    """Return the sections of a prompt between its BREAKs, each as fragments in order.

    Neighbours of the same weight are one fragment, so a prompt without this syntax is one section of one fragment.
    An empty section has no fragments.
    """
    return [list(_merged(section)) for section in _sections(prompt)]


def _sections(prompt: str) -> list[list[Fragment]]:
    texts: list[str | None] = []  # None is a BREAK
    ranges: list[tuple[int, int, float]] = []  # texts[start:end] count so many times as much
    opened: dict[str, list[int]] = {"(": [], "[": []}  # two stacks: "(a [b) c]" is two ranges that overlap

    for token in _TOKEN.finditer(prompt):
        kind, bracket = token.lastgroup, token["close"] or token["weighed"]
        if kind == "open":
            opened[token["open"]].append(len(texts))
        elif bracket and opened[_OPENING[bracket]]:
            factor = float(token["weight"]) if token["weight"] else ROUND if bracket == ")" else SQUARE
            ranges.append((opened[_OPENING[bracket]].pop(), len(texts), factor))
        elif kind == "literal":
            texts.append(token["literal"])
        else:
            texts += _texts(token[0])

    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        ranges += [(start, len(texts), factor) for start in opened[bracket]]

    # An array, since brackets that open at every other letter would make this quadratic in Python.
    weights = np.ones(len(texts))
    for start, end, factor in ranges:
        weights[start:end] = np.clip(weights[start:end] * np.clip(factor, -LIMIT, LIMIT), -LIMIT, LIMIT)

    sections: list[list[Fragment]] = [[]]
    for text, weight in zip(texts, weights.tolist(), strict=True):
        if text is None:
            sections.append([])
        elif text:
            sections[-1].append(Fragment(text, weight))
    return sections


def _texts(text: str) -> list[str | None]:
    """Return the texts between BREAKs, with None for each BREAK and without the spaces around it."""
    texts: list[str | None] = []
    parts = _BREAK.split(text)
    for number, part in enumerate(parts):
        if number > 0:
            part = part.lstrip()
            texts.append(None)
        texts.append(part.rstrip() if number < len(parts) - 1 else part)
    return texts


def _merged(fragments: list[Fragment]) -> Iterator[Fragment]:
    """Join neighbours of the same weight: words that are cut in two would be other tokens."""
    position = 0
    while position < len(fragments):
        weight, texts = fragments[position].weight, []
        while position < len(fragments) and fragments[position].weight == weight:
            texts.append(fragments[position].text)
            position += 1
        yield Fragment("".join(texts), weight)
