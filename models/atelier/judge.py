"""Says what a clip shows, in the world's own words: the ground truth that a model's clips are held against.

Knows nothing of prompts and models: colours by the nearest entry of the palette, the shape by its best match among
drawn templates, the motion by the paths of centre, area and orientation. On clips that the world itself drew it is
right in more than 99 of 100 (a test says so); it expects one thing before an even background.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from models.atelier.world import BACKGROUNDS, COLOURS, CORNERS, SHAPES, distance, srgb

#: Width and height of a template, and the radius in it of a circle of the same area.
_TEMPLATE, _RADIUS = 32, 8.0

#: How far a centre goes at least in a clip that moves, in units of the shorter side.
_MOVES = 0.05

#: By how much the radius changes at least in a clip that grows or shrinks.
_GROWS = 1.25

#: How many degrees a clip turns at least that spins.
_SPINS = 25.0


@dataclass(frozen=True)
class Seen:
    """What a clip shows: keys of the world's tables. `share` is how much of the frames the thing takes, 0..1."""

    colour: str
    background: str
    shape: str
    motion: str
    share: float


def judge(frames: np.ndarray) -> Seen:
    """Look at a clip.

    Args:
        frames: (F, H, W, 3), uint8 or floats 0..1; at least 5 frames.
    """
    frames = as_floats(frames)
    background = background_of(frames)
    cover, colour = cover_of(frames, background)
    shape = _shape(cover)
    return Seen(
        colour=nearest(colour, COLOURS),
        background=nearest(background, BACKGROUNDS),
        shape=shape,
        motion=_motion(cover, shape),
        share=float(cover.mean()),
    )


def as_floats(frames: np.ndarray) -> np.ndarray:
    """Return frames as floats 0..1, from those or from uint8."""
    floats: np.ndarray = np.asarray(frames, np.float64)
    return floats / 255.0 if frames.dtype == np.uint8 else floats


def nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Return the palette's entry that is nearest to an sRGB colour, 0..1."""
    return min(palette, key=lambda name: float(np.abs(colour - srgb(palette[name])).sum()))


def background_of(frames: np.ndarray) -> np.ndarray:
    """Return the colour of most of the frames' borders: (3,)."""
    border = [frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]]
    middle: np.ndarray = np.median(np.concatenate([side.reshape(-1, 3) for side in border]), axis=0)
    return middle


def cover_of(frames: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of each pixel the thing covers, (F, H, W) in 0..1, and its colour, (3,)."""
    away = np.abs(frames - background).sum(-1)
    strong = away >= 0.7 * np.quantile(away, 0.999)
    colour = np.median(frames[strong], axis=0)
    axis = colour - background
    cover = (frames - background) @ axis / max(1e-9, float(axis @ axis))
    cover = np.clip(cover, 0, 1)
    return np.where(cover < 0.2, 0, cover), colour


def _moments(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centre x, centre y and area of each frame, in pixels: three of (F,)."""
    area = cover.sum((1, 2)) + 1e-9
    x = (cover.sum(1) @ np.arange(cover.shape[2])) / area
    y = (cover.sum(2) @ np.arange(cover.shape[1])) / area
    return x, y, area


@cache
def _templates() -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the shapes in all orientations, each of norm 1: (n, pixels), and the shape of each."""
    row, column = np.mgrid[:_TEMPLATE, :_TEMPLATE] - (_TEMPLATE - 1) / 2
    drawn, names = [], []
    for shape in SHAPES:
        corners = CORNERS[shape] or 1
        for angle in np.arange(0, 360 / corners, 8) if corners > 1 else (0.0,):
            away = distance(shape, column, row, np.array(_RADIUS), np.radians(angle))
            drawn.append(np.clip(0.5 - away, 0, 1).ravel())
            names.append(shape)
    templates = np.array(drawn)
    return templates / np.linalg.norm(templates, axis=1, keepdims=True), tuple(names)


def _shape(cover: np.ndarray) -> str:
    """Return the shape that matches best over five frames, each scaled to the templates' area."""
    templates, names = _templates()
    scores = np.zeros(len(SHAPES))
    x, y, area = _moments(cover)
    for frame in np.linspace(0, len(cover) - 1, 5).astype(int):
        scale = np.sqrt(area[frame] / np.pi) / _RADIUS
        place = (np.arange(_TEMPLATE) - (_TEMPLATE - 1) / 2) * scale
        patch = sample(cover[frame], place[:, None] + y[frame], place[None, :] + x[frame]).ravel()
        match = templates @ (patch / (np.linalg.norm(patch) + 1e-9))
        scores += [max(match[[name == shape for name in names]]) for shape in SHAPES]
    return SHAPES[int(scores.argmax())]


def sample(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return a picture's values between its pixels, 0 outside: bilinear; y and x broadcast."""
    y, x = np.broadcast_arrays(y, x)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    low, near = y - top, x - left
    padded = np.pad(picture, 1)
    height, width = picture.shape

    def at(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        values: np.ndarray = padded[np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)]
        return values

    upper = at(top, left) * (1 - near) + at(top, left + 1) * near
    lower = at(top + 1, left) * (1 - near) + at(top + 1, left + 1) * near
    between: np.ndarray = upper * (1 - low) + lower * low
    return between


def _motion(cover: np.ndarray, shape: str) -> str:
    x, y, area = _moments(cover)
    side = min(cover.shape[1:])
    radius = np.sqrt(area)
    ends = max(1, len(cover) // 8)

    def change(values: np.ndarray) -> float:
        return float(values[-ends:].mean() - values[:ends].mean())

    growth = change(np.log(radius + 1e-9))
    across, along = change(x) / side, change(y) / side
    range_x, range_y = np.ptp(x) / side, np.ptp(y) / side
    if abs(growth) > np.log(_GROWS):
        return "growing" if growth > 0 else "shrinking"
    if range_y > 2 * _MOVES and range_y > 2 * range_x and abs(along) < 0.45 * range_y:
        return "bouncing"
    if max(abs(across), abs(along)) > _MOVES:
        if abs(across) > abs(along):
            return "right" if across > 0 else "left"
        return "down" if along > 0 else "up"
    return "spinning" if abs(turned(cover, shape)) > _SPINS else "still"


def turned(cover: np.ndarray, shape: str) -> float:
    """Return by how many degrees a thing turned over the clip; 0 for a circle."""
    corners = CORNERS[shape]
    if not corners:
        return 0.0
    x, y, _area = _moments(cover)
    row, column = np.mgrid[: cover.shape[1], : cover.shape[2]]
    phases = []
    for frame, centre_x, centre_y in zip(cover, x, y, strict=True):
        offset = (column - centre_x) + 1j * (row - centre_y)
        phases.append(np.angle((frame * (offset / 10) ** corners).sum()))
    return float(np.degrees(np.unwrap(phases)[-1] - phases[0]) / corners)
