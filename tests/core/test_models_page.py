"""The documentation of the models says what the GPU profile says."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_every_field_of_an_entry_that_is_more_than_a_name_is_explained():
    text = PAGE.read_text("utf-8")

    for field in ("parts", "tasks", "i2v", "scheduler", "placement", "attention", "step_cache", "pinned", "native"):
        assert f"| `{field}` |" in text
