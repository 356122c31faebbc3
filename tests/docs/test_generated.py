"""What is generated in `docs/` is what would be generated now, and every page can be found."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from polyreel.job import SCHEMA
from polyreel.settings import Settings
from server.dialects import dialects
from tests.docs.docstrings import arguments
from tests.docs.errors_tables import FIXES, every_error
from tests.docs.generate import PARTS, parts_of, rewritten
from tests.docs.index import DOCS, ROOT
from tests.docs.settings_tables import GROUPS

PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md")),
]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@every_page
def test_a_page_is_as_make_docs_would_write_it(page: Path) -> None:
    assert page.read_text("utf-8") == rewritten(page), "run: make docs"


def test_every_part_stands_on_one_page() -> None:
    assert sorted(name for page in PAGES for name in parts_of(page)) == sorted(PARTS)


@every_page
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        there = page if not target else (page.parent / unquote(target))
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            lost.append(link)
    assert lost == []


def anchors(page: Path) -> set[str]:
    """Return where links into a page may lead, as GitHub makes them of its headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_setting_of_the_schema_is_a_row_and_every_row_one_of_the_schema() -> None:
    text = (DOCS / "settings.md").read_text("utf-8")
    shown = {name.partition(".")[0] for name in re.findall(r"^\| `([\w.]+)` \| `(?:POLYREEL_|REDIS_URL)", text, re.M)}
    assert shown == set(Settings.model_fields)
    of_dialects = set(re.findall(r"^\| `dialects\.([\w.]+)`", text, re.M))
    assert of_dialects == {f"{name}.{field}" for name, one in dialects().items() for field in one.settings.model_fields}


def test_every_setting_has_its_place_among_the_groups() -> None:
    placed = [name for names in GROUPS.values() for name in names]
    assert sorted(placed) == sorted(Settings.model_fields)


def test_every_code_of_an_error_is_a_row() -> None:
    text = (DOCS / "errors.md").read_text("utf-8")
    missing = [code for code in every_error() if f"\n| `{code}` | " not in text]
    assert missing == []


def test_every_advice_is_about_an_error_that_there_is() -> None:
    assert sorted(FIXES) == sorted(every_error())


def test_the_upgrade_notes_know_the_form_of_records_that_is_written() -> None:
    text = (DOCS / "upgrade.md").read_text("utf-8")
    assert re.findall(r"writes is (\d+):", text) == [str(SCHEMA)]
    assert re.findall(r"^\| (\d+) \|", text, re.M) == [str(form) for form in range(1, SCHEMA + 1)]


class Documented:
    """Says two things of three arguments.

    Args:
        one, two: numbers, None for none,
            see `docs/settings.md`.
        three: a: b.

    Returns:
        four: is not an argument.
    """


def test_the_arguments_of_a_docstring_are_read_as_markdown() -> None:
    numbers = "numbers, `null` for none, see [settings](settings.md)."
    assert arguments(Documented) == {"one": numbers, "two": numbers, "three": "a: b."}
