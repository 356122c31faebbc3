"""The table of `docs/models.md`, from the GPU profile."""

from __future__ import annotations

from polyreel.admission import RESERVED_BYTES, Size, memory_bytes
from polyreel.entries import Placement, ServedModel
from polyreel.profiles import load_settings

_HEAD = (
    "| entry | checkpoint | tasks | default request | GB: resident | cpu_offload | group_offload | licence |",
    "|---|---|---|---|---|---|---|---|",
)


def table() -> str:
    """Return the lines of the table, one for each entry of the profile."""
    models = load_settings("gpu").settings.models
    return "\n".join([*_HEAD, *(_row(name, entry) for name, entry in models.items())])


def _row(name: str, entry: ServedModel) -> str:
    d = entry.defaults
    size = Size(d.num_frames, d.height, d.width)
    cells = (
        f"`{name}`",
        entry.checkpoint,
        ", ".join(entry.tasks),
        f"{size} at {d.fps:g} fps, {d.num_inference_steps} steps",
        *(_gigabytes(entry, size, mode) for mode in ("resident", "cpu_offload", "group_offload")),
        entry.licence,
    )
    return f"| {' | '.join(cells)} |"


def _gigabytes(entry: ServedModel, size: Size, mode: str) -> str:
    placement = Placement.model_validate({**entry.placement.model_dump(), "mode": mode})
    return f"{(memory_bytes(entry, size, placement) + RESERVED_BYTES) / 1e9:.0f}"
