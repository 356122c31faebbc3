"""What the OpenAPI document says of a route whose body is read by the dialect itself.

Routes take the raw request, because a drop-in server reads JSON whatever its Content-Type says; so FastAPI cannot see
what they read. `documents` tells it, from the same wire models that check the body.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

#: How keys are sent; routes name one or several of these.
SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "authorization": {"type": "apiKey", "in": "header", "name": "Authorization"},
    "key": {"type": "apiKey", "in": "header", "name": "key"},
}

#: A schema, or the wire model that makes one; None for what has no schema, such as a file's bytes.
Schema = type[BaseModel] | Mapping[str, Any] | None


def documents(
    *,
    body: Schema = None,
    is_body_required: bool = True,
    body_media: tuple[str, ...] = ("application/json",),
    other_bodies: Mapping[str, Schema] | None = None,
    answer: Schema = None,
    answer_media: str = "application/json",
    other_answers: Mapping[str, Schema] | None = None,
    errors: Schema = None,
    error_media: str = "application/json",
    status: int = 200,
    keys: tuple[str, ...] = ("bearer",),
    parameters: tuple[Mapping[str, Any], ...] = (),
    also: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Return keyword arguments for a route's decorator. Any: FastAPI's own.

    Args:
        body: what the route reads; None for a route without a body.
        is_body_required: False for a body that may be left out.
        body_media: content types that clients send it as.
        other_bodies: what it reads too, by content type.
        answer: what it answers with `status`.
        other_answers: what it answers then too, by content type.
        errors: the dialect's error body, for every status of 400 and more.
        keys: names in `SCHEMES` of the ways to send a key, any one of them; () for a route that asks for none.
        parameters: of the query and headers, that the route's signature does not show; OpenAPI parameter objects.
        also: further statuses of good answers, with what they mean.
    """
    extra: dict[str, Any] = {"security": [{name: []} for name in keys]}
    if body is not None:
        extra["requestBody"] = {
            "required": is_body_required,
            "content": _content(dict.fromkeys(body_media, body) | dict(other_bodies or {}), "validation"),
        }
    if parameters:
        extra["parameters"] = [dict(parameter) for parameter in parameters]
    wrong = {"description": "Refused", "content": {error_media: {"schema": schema_of(errors, "serialization")}}}
    return {
        "openapi_extra": extra,
        "responses": {
            status: {
                "description": "Answer",
                "content": _content({answer_media: answer} | dict(other_answers or {}), "serialization"),
            },
            **{other: {"description": meaning} for other, meaning in (also or {}).items()},
            "4XX": wrong,
            "5XX": wrong,
        },
        "status_code": status,
        "response_model": None,
        # FastAPI would say that the route answers in JSON too.
        "response_class": JSONResponse if answer_media == "application/json" else Response,
    }


def _content(by_media: Mapping[str, Schema], mode: Any) -> dict[str, Any]:
    """Return OpenAPI's `content`. Any: pydantic's mode; JSON."""
    return {media: {"schema": schema_of(schema, mode)} for media, schema in by_media.items()}


def schema_of(schema: Schema, mode: Any) -> dict[str, Any]:
    """Return a JSON schema without references. Any: pydantic's mode; JSON."""
    if schema is None:
        return {}
    if not isinstance(schema, type):
        return dict(schema)
    _, document = models_json_schema([(schema, mode)], ref_template="{model}")
    found: dict[str, Any] = document["$defs"]
    inlined: dict[str, Any] = _inlined(found[schema.__name__], found)
    return inlined


def add_schemes(app: FastAPI) -> None:
    """Put the ways to send a key into the app's OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        with warnings.catch_warnings():
            # FastAPI gives the GET and the HEAD of one route one name, and warns of it; they get their own below.
            warnings.filterwarnings("ignore", "Duplicate Operation ID")
            document = plain()
        for operations in document["paths"].values():
            for method, operation in operations.items():
                operation["operationId"] = f"{operation['operationId'].rpartition('_')[0]}_{method}"
        document.setdefault("components", {})["securitySchemes"] = SCHEMES
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # how FastAPI's manual extends the document


def _inlined(node: Any, found: Mapping[str, Any]) -> Any:
    """Put every definition where it is referred to: two dialects may call different models by one name."""
    if isinstance(node, list):
        return [_inlined(item, found) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined({**found[node["$ref"]], **{key: node[key] for key in node if key != "$ref"}}, found)
    return {key: _inlined(value, found) for key, value in node.items()}
