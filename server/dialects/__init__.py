"""Dialects: each module of this package speaks one hosted API, from its wire models to its error envelope.

A dialect publishes `DIALECT`. It translates with two pure functions (`from_wire`: the vendor's body to a
`VideoRequest`; `to_wire`: a record to the vendor's answer), maps every error of `polyreel.errors` in one table, and
knows no other dialect. Vendor words live here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from polyreel.catalogue import Catalogue
from polyreel.discovery import discover
from polyreel.errors import PolyreelError
from polyreel.records import StoredJob


class NoSettings(BaseModel):
    """For a dialect without settings of its own; anything in its section is a mistake."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Example:
    """A request that shows the dialect at work, printed at start and run by `make demo`.

    Args:
        title: what it makes, a few words.
        method, path: of the submit.
        headers: `{key}` stands for the API key.
        body: JSON object; `{key}` stands for the API key in its texts.
        saves_to: file name for the answer where it is the video itself, else "".
    """

    title: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]  # Any: JSON in the vendor's words
    method: str = "POST"
    saves_to: str = ""


#: Returns an absolute link to the file of a public key, good until a time (seconds since the epoch).
Link = Callable[[str, float], str]


@dataclass(frozen=True)
class Dialect:
    """One hosted API.

    Args:
        name: under which the catalogue lists the dialect's public model names.
        prefixes: path prefixes whose errors this dialect renders; the longest match wins.
        router: its routes.
        render_error: an error to the vendor's envelope; the second argument is the dialect's own settings.
        settings: model of its own section under `dialects:`.
        example: see `Example`; None for a dialect that takes no jobs.
        check: asked at start whether the dialect's settings fit the catalogue; raises `ConfigurationError`.
        webhook: an ended job to the body that its webhook is told; the third argument is how long records are kept,
            seconds, the last one the dialect's own settings. None for a dialect that takes no webhooks.
    """

    name: str
    prefixes: tuple[str, ...]
    router: APIRouter
    render_error: Callable[[PolyreelError, Any], Response]  # Any: this dialect's own settings model
    example: Example | None = None
    settings: type[BaseModel] = NoSettings
    check: Callable[[Catalogue, Any], None] = lambda _catalogue, _settings: None
    webhook: Callable[[StoredJob, Link, float, Any], dict[str, Any]] | None = None  # Any: JSON; its own settings


@cache
def dialects() -> dict[str, Dialect]:
    """Return every dialect by name."""
    return discover("server.dialects", "DIALECT")
