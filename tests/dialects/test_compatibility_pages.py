"""`docs/compatibility/*.md` say of every field that a dialect reads what becomes of it, and of none that it does not.

The fields come from the wire models, by way of our OpenAPI document; the pages have them in tables whose first column
is called "field", and the dialect's settings in one whose first column is called "setting".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from polyreel.keys import load_keys
from polyreel.profiles import load_settings
from server.app import create_app, dialect_of
from server.dialects import Dialect, dialects

PAGES = Path(__file__).parents[2] / "docs" / "compatibility"

#: How a row says what becomes of its fields.
STATUSES = ("supported", "accepted and ignored", "different", "ours", "refused")

every_dialect = pytest.mark.parametrize("dialect", dialects().values(), ids=lambda dialect: dialect.name)


#: Our own API has no original that it could differ from.
of_a_vendor = pytest.mark.parametrize(
    "dialect", [one for one in dialects().values() if one.name != "native"], ids=lambda dialect: dialect.name
)


@dataclass(frozen=True)
class Row:
    """One row of a table: the names in its first cell, and the other cells."""

    names: tuple[str, ...]
    cells: tuple[str, ...]

    @property
    def status(self) -> str:
        """What becomes of its fields, "" where none of the known words begins a cell."""
        return next((word for cell in self.cells for word in STATUSES if cell.startswith(word)), "")


def rows(text: str, head: str) -> list[Row]:
    """Return the rows of every table whose first column is called `head`."""
    found: list[Row] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif cells[0] == head:
            inside = True
        elif inside and not set(cells[0]) <= {"-", ":"}:
            found.append(Row(tuple(_names(cells[0])), tuple(cells[1:])))
    return found


def _names(cell: str) -> Iterator[str]:
    """Yield the quoted names of a cell; `a.b`, `.c` stand for a.b and a.c, and `a[].b` for a.b."""
    before = ""
    for name in re.findall(r"`([^`]+)`", cell):
        full = before.rpartition(".")[0] + name if name.startswith(".") else name
        before = full
        yield full.replace("[]", "")


@cache
def fields_of_bodies() -> dict[str, set[str]]:
    """Return, by dialect, the dotted path of every field of every body that its routes read; objects by their parts."""
    settings = load_settings(redis_url="redis://nobody:1/0", api_keys="alice:alice-key-0123456789").settings
    found: dict[str, set[str]] = {name: set() for name in dialects()}
    for path, operations in create_app(settings, load_keys(settings)[0]).openapi()["paths"].items():
        dialect = dialect_of(path)
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if dialect is not None:
                    found[dialect.name] |= set(_paths(content["schema"]))
    return found


def _paths(schema: dict[str, Any], before: str = "") -> Iterator[str]:
    for way in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(way, ()):
            yield from _paths(part, before)
    if "items" in schema:
        yield from _paths(schema["items"], before)
    for name, part in schema.get("properties", {}).items():
        yield from list(_paths(part, f"{before}{name}.")) or [before + name]


def is_said_by(field: str, name: str) -> bool:
    """Return whether a page's name stands for a field: for itself, below a heading's object, or for its parts too."""
    return field == name or field.endswith(f".{name}") or field.startswith(f"{name}.") or f".{name}." in field


def page(dialect: Dialect) -> str:
    return (PAGES / f"{dialect.name}.md").read_text("utf-8")


@every_dialect
def test_every_field_that_is_read_has_a_row(dialect: Dialect) -> None:
    names = [name for row in rows(page(dialect), "field") for name in row.names]
    fields = fields_of_bodies()[dialect.name]
    assert fields
    assert sorted(field for field in fields if not any(is_said_by(field, name) for name in names)) == []


@of_a_vendor
def test_every_row_says_what_becomes_of_its_fields(dialect: Dialect) -> None:
    found = rows(page(dialect), "field")
    assert found
    assert [row for row in found if not row.status] == []


@every_dialect
def test_no_row_promises_a_field_that_is_not_read(dialect: Dialect) -> None:
    read = [row for row in rows(page(dialect), "field") if row.status != "accepted and ignored"]
    promised = [name for row in read for name in row.names]
    fields = fields_of_bodies()[dialect.name]
    assert [name for name in promised if not any(is_said_by(field, name) for field in fields)] == []


@of_a_vendor
def test_the_page_names_its_sources(dialect: Dialect) -> None:
    assert re.search(r"^(Sources?\b|.*\bSources?:)", page(dialect), re.MULTILINE)


@every_dialect
def test_every_setting_of_the_dialect_has_a_row_and_every_row_is_one(dialect: Dialect) -> None:
    names = [name for row in rows(page(dialect), "setting") for name in row.names]
    assert sorted(names) == sorted(dialect.settings.model_fields)
