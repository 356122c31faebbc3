"""The index of the documentation: every page of `docs/` by its title and its first sentence."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

#: The order of the index; a page that stands nowhere here is listed at the end, under "More".
GROUPS: dict[str, tuple[str, ...]] = {
    "Start": ("quick-start", "page", "deploy", "models"),
    "Your client": (
        "clients", "compatibility/huggingface", "compatibility/universal", "compatibility/modelslab",
        "compatibility/novita", "compatibility/openai", "compatibility/native", "errors", "webhooks", "conformance",
    ),
    "Operate": ("operations", "security", "metrics", "observability", "cli", "settings", "upgrade"),
    "How it decides": ("scheduling", "batching", "scale", "policy"),
}  # fmt: skip


def index() -> str:
    """Return the list of all pages but the index itself, with the decisions in a section of their own."""
    pages = {file.relative_to(DOCS).with_suffix("").as_posix(): file for file in sorted(DOCS.rglob("*.md"))}
    pages.pop("README")
    placed = {name for names in GROUPS.values() for name in names}
    decisions = tuple(name for name in pages if name.startswith("decisions/"))
    more = tuple(name for name in pages if name not in placed and name not in decisions)
    parts = []
    for title, names in {**GROUPS, "More": more}.items():
        if lines := [entry(pages[name]) for name in names if name in pages]:
            parts.append("\n".join([f"## {title}", "", *lines]))
    parts.append("\n".join(["## Decisions", "", *(f"- {_link(pages[name])}" for name in decisions)]))
    return "\n\n".join(parts)


def entry(page: Path) -> str:
    """Return a page's line: a link under its title, and what its first sentence says.

    Raises:
        AssertionError: the page does not begin with a title and a sentence.
    """
    body = page.read_text("utf-8").partition("\n")[2]
    first = body.strip().split("\n\n")[0].replace("\n", " ")
    is_prose = first and not first.startswith(("#", "|", "<", "```", "- "))
    assert is_prose, f"{page}: begin with a sentence that says what the page is for"
    sentence = re.split(r"(?<=[.])\s+(?=[A-Z`\[*])", first)[0].rstrip(".:")
    return f"- {_link(page)}: {_relinked(sentence, page)}."


def _link(page: Path) -> str:
    title = page.read_text("utf-8").partition("\n")[0]
    assert title.startswith("# "), f"{page}: begin with '# ' and the title"
    return f"[{title[2:]}]({page.relative_to(DOCS).as_posix()})"


def _relinked(sentence: str, page: Path) -> str:
    """Return a sentence whose links lead from `docs/` where they led from the page's own folder."""
    folder = page.parent.relative_to(DOCS).as_posix()
    return sentence if folder == "." else re.sub(r"\]\((?!https?:|#)", f"]({folder}/", sentence)
