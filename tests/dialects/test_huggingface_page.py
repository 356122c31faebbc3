"""The pages of Hugging Face's two dialects say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from polyreel.errors import PolyreelError
from server.dialects import dialects
from server.dialects.huggingface import errors as huggingface_errors
from server.dialects.huggingface.about import HubModel, ModelInfo, ModelStatus
from server.dialects.huggingface.request import SCALE_UP_TIMEOUT, Body, Options, Parameters, Size
from server.dialects.huggingface.settings import HuggingFaceSettings
from server.dialects.universal import errors as universal_errors
from server.dialects.universal.answer import Answer, Diagnostics
from server.dialects.universal.request import _DEFAULTS, Gif, Inputs, Webm
from server.dialects.universal.settings import UniversalSettings

FOLDER = Path(__file__).parents[2] / "docs" / "compatibility"
PAGES = {name: (FOLDER / f"{name}.md").read_text("utf-8") for name in ("huggingface", "universal")}
every_page = pytest.mark.parametrize("page", PAGES)


def tables(page: str, section: str) -> list[list[list[str]]]:
    """Return the tables under a heading, each as rows of cells without its head."""
    text = PAGES[page].partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert found, f"no table in {section!r}"
    return [[[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()[2:]] for table in found]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def names(model: type[BaseModel], before: str = "") -> set[str]:
    return {before + name for name in model.model_fields}


def test_every_field_of_hugging_face_is_a_row_and_every_row_a_field() -> None:
    fields, _ = tables("huggingface", "Request")
    told = {name for row in fields for name in named(row[0])}
    assert told == names(Body) | names(Parameters, "parameters.") | names(Options, "options.")
    [size] = [row for row in fields if row[0] == "`parameters.target_size`"]
    assert all(name in size[2] for name in names(Size))


def test_every_header_of_hugging_face_is_a_row() -> None:
    _, headers = tables("huggingface", "Request")
    told = {name.lower() for row in headers for name in named(row[0])}
    ours = {"idempotency-key", "x-polyreel-priority", "x-polyreel-exact"}
    assert told >= {"x-use-cache", "x-wait-for-model", SCALE_UP_TIMEOUT} | ours


def test_every_field_of_the_universal_handler_is_a_row_with_its_default() -> None:
    [fields] = tables("universal", "Request")
    told = {name: row[1] for row in fields for name in named(row[0])}
    assert set(told) == names(Inputs)
    assert {name: told[name] for name in _DEFAULTS} == {name: f"{value:g}" for name, value in _DEFAULTS.items()}
    for name, model in (("gif", Gif), ("webm", Webm)):
        [row] = [row for row in fields if row[0] == f"`{name}`"]
        assert named(row[3])[0] == "{" + ", ".join(model.model_fields) + "}"


@every_page
def test_every_row_is_of_one_of_three_kinds_and_names_its_source(page: str) -> None:
    for table in tables(page, "Request"):
        for row in table:
            assert row[-3] in ("supported", "accepted and ignored", "different"), row
            assert row[-1] or row[0] == "any other key", row


def test_every_key_of_an_answer_is_explained() -> None:
    words = {name: set(re.findall(r"\w+", " ".join(named(page)))) for name, page in PAGES.items()}
    for model in (ModelInfo, ModelStatus, HubModel, huggingface_errors.ErrorBody):
        assert names(model) - words["huggingface"] == set()
    for model in (Answer, Diagnostics, universal_errors.ErrorBody):
        assert names(model) - words["universal"] == set()


@pytest.mark.parametrize(
    ("page", "errors"), [("huggingface", huggingface_errors._ERRORS), ("universal", universal_errors._ERRORS)]
)
def test_every_status_of_an_error_stands_there(
    page: str, errors: tuple[tuple[type[PolyreelError], int, str | None], ...]
) -> None:
    [rows] = tables(page, "Errors")
    assert [int(row[0]) for row in rows] == sorted({status for _, status, _ in errors})


@pytest.mark.parametrize(
    ("page", "settings"), [("huggingface", HuggingFaceSettings()), ("universal", UniversalSettings())]
)
def test_every_setting_stands_there_with_its_default(page: str, settings: BaseModel) -> None:
    [rows] = tables(page, "Settings")
    said = {named(name)[0]: "".join(named(default)) for name, default, _ in rows}
    values = {True: "true", False: "false", None: ""}
    assert said == {
        name: f"{value:g}" if isinstance(value, float) else values.get(value, value)
        for name, value in settings.model_dump().items()
    }


@every_page
def test_every_route_stands_there(page: str) -> None:
    listed = PAGES[page].partition("| route |")[2].partition("\n\n")[0]
    app = FastAPI()
    app.include_router(dialects()[page].router)
    routes = [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert len(routes) >= 3
    for method, path in routes:
        told = re.sub(r"\{(rest|name)\}", "{model}", path).removeprefix("/hf-inference")
        assert f"`{method} {told}`" in listed, (method, path)
