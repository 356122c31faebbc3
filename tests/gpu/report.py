"""The figures that the tests see, as tables for a document."""

from __future__ import annotations

from collections import defaultdict


class Report:
    """Markdown tables by title; rows come in any order and keep it."""

    def __init__(self) -> None:
        self._tables: dict[str, list[dict[str, str]]] = defaultdict(list)

    def __bool__(self) -> bool:
        return bool(self._tables)

    def add(self, table: str, **row: str) -> None:
        """Add a row; its keywords are the columns, with spaces for underscores."""
        self._tables[table].append({column.replace("_", " "): value for column, value in row.items()})

    def markdown(self, heading: str) -> str:
        """Return all tables, "" when there are none.

        Args:
            heading: what was measured, and where.
        """
        lines = []
        for title, rows in self._tables.items():
            lines += [f"{title} ({heading})", "", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
            lines += ["| " + " | ".join(row.values()) + " |" for row in rows] + [""]
        return "\n".join(lines)


def gigabytes(size: int | None) -> str:
    """Return bytes as GB (1e9), "–" where there are none to tell."""
    return "–" if size is None else f"{size / 1e9:.1f} GB"
