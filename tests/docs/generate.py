"""Writes the generated parts of the documentation; `make docs` runs it.

A part stands between `<!-- make docs: NAME -->` and `<!-- end of NAME -->`; everything else on a page is written
by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.docs.cli_help import cli_help
from tests.docs.errors_tables import answers_table, causes_table, envelopes, jobs_table
from tests.docs.examples_table import EXAMPLES
from tests.docs.examples_table import table as examples_table
from tests.docs.index import DOCS, ROOT, index
from tests.docs.metrics_tables import metrics_tables
from tests.docs.models_table import table as models_table
from tests.docs.settings_tables import dialects_table, entries_tables, settings_tables

#: What writes a part, by its name in the page's marks.
PARTS: dict[str, Callable[[], str]] = {
    "index": index,
    "commands": cli_help,
    "settings": settings_tables,
    "entries": entries_tables,
    "dialects": dialects_table,
    "models": models_table,
    "metrics": metrics_tables,
    "causes": causes_table,
    "answers": answers_table,
    "envelopes": envelopes,
    "jobs": jobs_table,
    "examples": examples_table,
}

_PART = re.compile(r"<!-- make docs: (\w+) -->\n(.*?)<!-- end of \1 -->", re.DOTALL)


def parts_of(page: Path) -> Iterator[str]:
    """Yield the names of a page's generated parts."""
    for part in _PART.finditer(page.read_text("utf-8")):
        yield part[1]


def rewritten(page: Path) -> str:
    """Return a page with its generated parts as they should be now."""

    def write(part: re.Match[str]) -> str:
        return f"<!-- make docs: {part[1]} -->\n{PARTS[part[1]]()}\n<!-- end of {part[1]} -->"

    return _PART.sub(write, page.read_text("utf-8"))


def main() -> int:
    """Rewrite what is stale, naming it; the index last, as it quotes the other pages."""
    for page in sorted([*DOCS.rglob("*.md"), EXAMPLES / "README.md"], key=lambda page: page == DOCS / "README.md"):
        text = rewritten(page)
        if text != page.read_text("utf-8"):
            page.write_text(text, "utf-8")
            print(f"written: {page.relative_to(ROOT)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
