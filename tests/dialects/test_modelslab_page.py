"""The page of ModelsLab's dialect says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from server.dialects.modelslab import DIALECT, ModelsLabSettings
from server.dialects.modelslab.fields import Fields
from server.dialects.modelslab.image_to_video import ImageToVideo
from server.dialects.modelslab.refusals import _ERRORS
from server.dialects.modelslab.text_to_video import TextToVideo

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility" / "modelslab.md").read_text("utf-8")


def rows(section: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    text = PAGE.partition(f"\n## {section}")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_field_of_text2video_is_a_row_and_every_row_a_field() -> None:
    assert sorted(name for row in rows("text2video") for name in named(row[0])) == sorted(TextToVideo.model_fields)


def test_every_field_of_img2video_is_a_row_or_said_to_be_as_above() -> None:
    above = named(PAGE.partition("\n## img2video")[2].partition(" are as above")[0])
    assert set(above) < set(Fields.model_fields)
    ignored = {"enhance_prompt", "latent_interpolation_method"}  # unknown keys, which the pages know
    listed = {name for row in rows("img2video") for name in named(row[0])}
    assert listed | set(above) == set(ImageToVideo.model_fields) | ignored
    assert not listed & set(above)


@pytest.mark.parametrize("section", ["text2video", "img2video"])
def test_every_row_is_of_one_of_three_kinds_and_names_its_source(section: str) -> None:
    for field, kind, _, source in rows(section):
        assert kind in ("supported", "accepted and ignored", "different"), field
        assert source.strip() or field == "any other key"


def test_every_setting_stands_there_with_its_default() -> None:
    settings = ModelsLabSettings()
    said = {named(name)[0]: named(default)[0] for name, default, _ in rows("Settings")}
    assert said == {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in settings.model_dump().items()
    }


def test_every_status_of_an_error_stands_there() -> None:
    said = {int(status) for row in rows("Errors") for status in row[0].split(", ")}
    assert said == {status for _, status, _ in _ERRORS}


def test_every_route_stands_there_and_every_route_there_is_one() -> None:
    listed = PAGE.partition("| route |")[2].partition("\n\n")[0]
    said = {
        path.replace("{id}", "{job_id}")
        for text in named(listed)
        if "/api/" in text
        for path in expanded(text.rpartition(" ")[2])
    }
    assert said == {route.path for route in DIALECT.router.routes if isinstance(route, APIRoute)}


def expanded(path: str) -> list[str]:
    """Return /a/x and /a/y for /a/{x,y}."""
    braces = re.fullmatch(r"(.*?)\{(.*,.*)\}", path)
    return [braces[1] + name for name in braces[2].split(",")] if braces else [path]
