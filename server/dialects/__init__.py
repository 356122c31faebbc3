"""Dialects: each module of this package speaks one hosted API, from its wire models to its error envelope.

A dialect publishes `DIALECT`. It translates with two pure functions (`from_wire`: the vendor's body to a
`VideoRequest`; `to_wire`: a record to the vendor's answer), maps every error of `polyreel.errors` in one table, and
knows no other dialect. Vendor words live here and nowhere else: `Services.submit` is told what clients call the fields
that the catalogue may refuse (`words`).

A route that takes a picture by its link asks `Services.earlier` before it fetches it, and fetches it when nothing else
is wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, ValidationError

from polyreel.catalogue import Catalogue
from polyreel.discovery import discover
from polyreel.errors import ConfigurationError, PolyreelError, did_you_mean
from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.settings import Settings
from polyreel.wrong_settings import explain
from server.snippets import Say


class NoSettings(BaseModel):
    """For a dialect without settings of its own; anything in its section is a mistake."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Example:
    """A request that shows the dialect at work, printed at start.

    Both shipped profiles serve it, and the demonstration model can follow its prompt.

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

#: Answers a submit: who sends it, its body as it came and as JSON, and the catalogue name of its model. Any: JSON.
Answer = Callable[[Request, Caller, bytes, dict[str, Any], str], Awaitable[Response]]


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
        answer: a submit of this dialect that came to another one's path; see `answer_as`.
        snippet: says a request in the vendor's words, see `server.snippets`; None for a dialect that takes no jobs.
        title: the API's name for people; the API reference groups its routes under it.
        about: a sentence about it, for the same place.
    """

    name: str
    prefixes: tuple[str, ...]
    router: APIRouter
    render_error: Callable[[PolyreelError, Any], Response]  # Any: this dialect's own settings model
    example: Example | None = None
    settings: type[BaseModel] = NoSettings
    check: Callable[[Catalogue, Any], None] = lambda _catalogue, _settings: None
    webhook: Callable[[StoredJob, Link, float, Any], dict[str, Any]] | None = None  # Any: JSON; its own settings
    answer: Answer | None = None
    snippet: Say | None = None
    title: str = ""
    about: str = ""


@cache
def dialects() -> dict[str, Dialect]:
    """Return every dialect by name."""
    return discover("server.dialects", "DIALECT")


def dialect_settings(settings: Settings, catalogue: Catalogue) -> dict[str, BaseModel]:
    """Return each dialect's own section under `dialects:`, checked by itself and against the catalogue.

    Raises:
        ConfigurationError: names the setting and what is wrong.
    """
    unknown = set(settings.dialects) - set(dialects())
    if unknown:
        name = sorted(unknown)[0]
        raise ConfigurationError(
            f"dialects.{name}: no such dialect.{did_you_mean(name, dialects())} Known: {', '.join(dialects())}."
        )
    checked = {}
    for name, dialect in dialects().items():
        try:
            checked[name] = dialect.settings.model_validate(settings.dialects.get(name, {}))
        except ValidationError as err:
            raise ConfigurationError(explain(err, {}, f"dialects.{name}", dialect.settings)) from None
        dialect.check(catalogue, checked[name])
    return checked


async def answer_as(
    name: str, request: Request, caller: Caller, body: bytes, value: dict[str, Any], model: str
) -> Response:
    """Answer a body that came to one dialect's path and is another's; from here on its errors are that one's too.

    So a vendor with two contracts on one path needs no dialect that knows the other. Any: JSON.

    Args:
        name: of the dialect whose body it is; it has an `answer`.
        model: catalogue name of the model that the path means.
    """
    answer = dialects()[name].answer
    assert answer is not None  # noqa: S101 who hands over knows that it is taken
    request.state.dialect = name
    return await answer(request, caller, body, value, model)
