"""The tables of `docs/metrics.md`, from `polyreel.metrics`."""

from __future__ import annotations

from polyreel.metrics import SECTIONS, Metric

_HEAD = ("| metric | type | labels | is |", "|---|---|---|---|")


def metrics_tables() -> str:
    """Return a table for each part, under its title."""
    return "\n\n".join(
        "\n".join([f"## {title}", "", *_HEAD, *(_row(metric) for metric in metrics)])
        for title, metrics in SECTIONS.items()
    )


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
    buckets = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.buckets else ""
    return f"| `{metric.shown}` | {metric.kind} | {labels} | {metric.help}{buckets} |"
