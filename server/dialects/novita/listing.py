"""`GET /v3/model`: what a client may name in `model_name`, filtered and in pages.

Source: novita.ai/docs "Query Model", and what Novita's own clients send and need in order to parse the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

from fastapi import Request
from pydantic import BaseModel

from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel
from polyreel.errors import InvalidRequest

#: filter value: (name, display name) of a kind of model
_KINDS = {
    "checkpoint": ("checkpoint", "Checkpoint"),
    "lora": ("lora", "LoRA"),
    "textualinversion": ("textualinversion", "Textual Inversion"),
}

#: filter: the one value that everything in the catalogue matches
_FILTERS = {
    "filter.visibility": "public",
    "filter.source": "civitai",
    "filter.is_sdxl": "false",
    "filter.is_inpainting": "false",
}


class Kind(BaseModel):
    """What sort of model it is."""

    name: str
    display_name: str


class Listed(BaseModel):
    """One public name that a client may use."""

    id: int
    name: str
    hash_sha256: str
    sd_name: str
    type: Kind
    categories: list[str]
    status: int
    download_url: str
    tags: list[str]
    cover_url: str
    source: str
    base_model: str
    base_model_type: str
    download_url_ttl: int
    sd_name_in_api: str
    is_sdxl: bool


class Pagination(BaseModel):
    """Where the next page begins, "" at the end."""

    next_cursor: str


class ModelList(BaseModel):
    """One page of the list."""

    models: list[Listed]
    pagination: Pagination


def page(request: Request, catalogue: Catalogue) -> dict[str, Any]:
    """Return one page of the list. Any: JSON.

    Raises:
        InvalidRequest: a limit or cursor that no listing gave.
    """
    query = _query(request)
    limit, offset = _limit(query), _offset(query)
    found = [model for model in _models(catalogue) if _matches(model, query)]
    end = offset + limit
    return {"models": found[offset:end], "pagination": {"next_cursor": f"c_{end}" if end < len(found) else ""}}


def _models(catalogue: Catalogue) -> Iterator[dict[str, Any]]:
    """Yield a listing entry for each public name: checkpoints first, then LoRAs and embeddings."""
    for entry in catalogue.models.values():
        for name in entry.names.get("novita", ()):
            yield _listed(name, "checkpoint", entry)
    for kind, adapters in (("lora", catalogue.loras), ("textualinversion", catalogue.embeddings)):
        for adapter in adapters.values():
            for name in adapter.names.get("novita", ()):
                yield _listed(name, kind, catalogue[adapter.models[0]])


def _listed(sd_name: str, kind: str, base: ServedModel) -> dict[str, Any]:
    type_name, display_name = _KINDS[kind]
    return {
        "id": crc32(sd_name.encode()),  # from the name, so that it stays when the catalogue changes
        "name": sd_name.removesuffix(".safetensors"),
        "hash_sha256": "",
        "sd_name": sd_name,
        "type": {"name": type_name, "display_name": display_name},
        "categories": [],
        "status": 1,
        "download_url": "",
        "tags": [],
        "cover_url": "",
        "source": "civitai",
        "base_model": "SD 1.5" if base.family == "animatediff" else base.family,
        "base_model_type": "Standard",
        "download_url_ttl": 0,
        "sd_name_in_api": sd_name,
        "is_sdxl": False,
    }


def _query(request: Request) -> dict[str, str]:
    """Return the query by its documented names; the npm client writes `filter[types]` for `filter.types`."""
    query = {
        name.replace("[]", "").replace("[", ".").removesuffix("]"): value
        for name, value in request.query_params.multi_items()
    }
    if "filter.type" in query:  # the official Python client sends the singular
        query.setdefault("filter.types", query["filter.type"])
    return query


def _matches(model: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    # The official Python client sends Python's own False, so case does not matter; "" is no filter.
    wanted = {name: query[name].lower() for name in _FILTERS if query.get(name)}
    kind = query.get("filter.types", "").lower()
    text = query.get("filter.query", "").lower()
    return (
        text in model["sd_name"].lower()
        and kind in ("", model["type"]["name"])
        and all(_FILTERS[name] == value for name, value in wanted.items())
    )


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("pagination.limit") or "20"
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 100):
        raise InvalidRequest(
            f"pagination.limit must be a whole number between 1 and 100, got {text[:20]}", "pagination.limit"
        )
    return int(text)


def _offset(query: Mapping[str, str]) -> int:
    """Read `c_20`; the official Python client puts another `c_` before a cursor that it was given."""
    cursor = query.get("pagination.cursor", "")
    offset = cursor
    while offset.startswith("c_"):
        offset = offset[2:]
    if not cursor:
        return 0
    if not (offset.isascii() and offset.isdigit() and len(offset) <= 9):
        raise InvalidRequest(
            f"pagination.cursor must be one that a listing gave, such as c_20, got {cursor[:40]}", "pagination.cursor"
        )
    return int(offset)
