"""docs/compatibility/native.md says all that the native API takes, answers and refuses with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from server.dialects.native import DIALECT
from server.dialects.native.answer import JobAnswer, OutputAnswer
from server.dialects.native.audit import AuditAnswer, EntryAnswer
from server.dialects.native.fields import Keyframe, Lora, NewJob, Output, Prompt, Upscale
from server.dialects.native.jobs import JobsAnswer, RemovalAnswer
from server.dialects.native.models import AdapterAnswer, CommandAnswer, ModelAnswer
from server.dialects.native.problems import _ERRORS, Problem
from server.dialects.native.snippets import SnippetAnswer, SnippetsAnswer
from server.dialects.native.status import LimitsAnswer, QueueAnswer, StatusAnswer, UsageAnswer, WorkerAnswer

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility" / "native.md").read_text("utf-8")

#: Every word in code style, also those inside of `{a, b}`.
WORDS = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))


@pytest.mark.parametrize(
    "model",
    [
        NewJob, Prompt, Keyframe, Lora, Upscale, Output, JobAnswer, OutputAnswer, JobsAnswer, RemovalAnswer, Problem,
        ModelAnswer, AdapterAnswer, CommandAnswer, StatusAnswer, QueueAnswer, WorkerAnswer, UsageAnswer, SnippetsAnswer,
        SnippetAnswer, AuditAnswer, EntryAnswer, LimitsAnswer,
    ],
)  # fmt: skip
def test_every_field_is_explained(model: type[BaseModel]) -> None:
    assert set(model.model_fields) - WORDS == set()


def test_every_field_of_a_submit_has_a_row() -> None:
    section = PAGE.partition("## Making a video")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(NewJob.model_fields)


def test_every_route_is_listed() -> None:
    app = FastAPI()
    app.include_router(DIALECT.router)
    routes = {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
    assert len(routes) > 10
    told = re.sub(r"\{\w+\}", "{}", PAGE)
    for route in routes:
        path = re.sub(r"\{[\w:]+\}", "{}", route).replace("{}/{}", "{}/load")
        assert f"`{path}`" in told, route


def test_every_error_has_a_row() -> None:
    codes = {kind.code for kind, status, _ in _ERRORS if status != 500}
    assert codes - WORDS == set()
    statuses = {str(status) for _, status, _ in _ERRORS if status != 500}
    assert statuses - set(re.findall(r"^\| (\d{3}) \|", PAGE, re.MULTILINE)) == set()
