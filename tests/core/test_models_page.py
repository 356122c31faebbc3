"""The documentation of the models says what the GPU profile says."""

from __future__ import annotations

from pathlib import Path

from tests.core.models_table import table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_table_of_the_page_is_the_profiles():
    text = PAGE.read_text("utf-8")
    shown = text.split("models_table -->\n")[1].split("\n<!-- end of table -->")[0]

    assert shown == table(), "print the new table with: python -m tests.core.models_table"


def test_every_field_of_an_entry_that_is_more_than_a_name_is_explained():
    text = PAGE.read_text("utf-8")

    for field in ("parts", "tasks", "i2v", "scheduler", "placement", "attention", "step_cache", "pinned"):
        assert f"| `{field}` |" in text
