"""Draws the frame sheet of the README: what some prompts become, every fourth frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.atelier.figures import load, make

#: What is shown, from top to bottom.
PROMPTS = (
    "a red circle moving right on a black background",
    "a large blue star moving up on a pink background",
    "a green square growing on a white background",
    "a yellow triangle moving down on a navy background",
    "a purple circle shrinking on a white background",
)

#: Pixels between frames, and above each row for its prompt.
_GAP, _LINE = 4, 22

#: How much larger than its native size a frame is drawn.
_SCALE = 1.5


def draw(checkpoint: Path, path: Path) -> None:
    """Make a clip of each of `PROMPTS` and write their frames as one PNG."""
    from PIL import Image, ImageDraw, ImageFont

    rows = [clip[::4] for clip in make(load(checkpoint), PROMPTS, first_seed=7)]
    size = round(rows[0].shape[1] * _SCALE)
    width = len(rows[0]) * (size + _GAP) + _GAP
    sheet = Image.new("RGB", (width, len(rows) * (size + _LINE + _GAP) + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (prompt, frames) in enumerate(zip(PROMPTS, rows, strict=True)):
        top = row * (size + _LINE + _GAP) + _GAP
        pen.text((_GAP, top), prompt, fill="black", font=font)
        for column, frame in enumerate(frames):
            picture = Image.fromarray(np.rint(frame * 255).astype(np.uint8))
            picture = picture.resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(picture, (_GAP + column * (size + _GAP), top + _LINE))
    sheet.save(path, optimize=True)
