"""The table of `examples/README.md`: every example by dialect and language."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"

#: The languages, in the order of the table; `examples/<dialect>/<language>/`.
LANGUAGES = ("curl", "python", "javascript", "php")


def examples() -> list[Path]:
    """Return every example, relative to `examples/`."""
    return sorted(file.relative_to(EXAMPLES) for file in EXAMPLES.glob("*/*/*") if file.suffix != ".pyc")


def table() -> str:
    """Return a row for each dialect, with a link for each example."""
    names = sorted({file.parts[0] for file in examples()})
    lines = [f"| dialect | {' | '.join(LANGUAGES)} |", "|---|" + "---|" * len(LANGUAGES)]
    for name in names:
        cells = []
        for language in LANGUAGES:
            here = [file for file in examples() if file.parts[:2] == (name, language)]
            cells.append(", ".join(f"[{file.name}]({file.as_posix()})" for file in here))
        lines.append(f"| [{name}](../docs/compatibility/{name}.md) | {' | '.join(cells)} |")
    return "\n".join(lines)
