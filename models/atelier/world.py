"""The world that the demonstration model knows: clips of simple things, drawn from nothing but numpy.

A scene is one or two things (a shape of a colour, in a size, with a motion at a speed) before a background. `plan`
decides where they go and `Clip.draw` makes the frames; `captions` says the scene in words. Everything random is drawn
from a numpy generator, so the same seed gives the same clip on every machine. The model is trained on this world, and
tests hold what it makes against it (see `judge`).

Lengths are in units of the frame's shorter side, times run from 0 (first frame) to 1 (last frame): a clip of more
frames shows the same motion, more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

#: Colour of a thing -> its sRGB, 0..255.
COLOURS = {
    "red": (225, 40, 45),
    "orange": (245, 145, 30),
    "yellow": (250, 225, 60),
    "green": (45, 170, 75),
    "cyan": (60, 210, 225),
    "blue": (45, 95, 230),
    "purple": (150, 60, 200),
}

#: Colour of the background -> its sRGB, 0..255. None is the colour of a thing.
BACKGROUNDS = {
    "black": (10, 10, 14),
    "white": (242, 242, 242),
    "gray": (128, 128, 128),
    "navy": (18, 28, 84),
    "pink": (250, 200, 215),
}

SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking", "spinning", "bouncing", "still")

#: Size -> radius of the circle of the same area, as a range.
SIZES = {"small": (0.10, 0.125), "medium": (0.155, 0.19), "large": (0.20, 0.235)}

#: Speed -> (part of the room that is crossed, growth of the radius, degrees turned, bounces).
SPEEDS = {
    "slow": (0.40, 1.6, 60.0, 1.0),
    "normal": (0.65, 2.2, 120.0, 2.0),
    "quick": (0.95, 3.0, 200.0, 3.0),
}

#: Never drawn for what learns from captions (the VAE sees them), so that what composes can be told from what remembers.
HELD_OUT_LOOKS = frozenset({("orange", "star"), ("blue", "triangle"), ("green", "circle"), ("purple", "square")})
HELD_OUT_MOTIONS = frozenset({("triangle", "bouncing"), ("star", "left"), ("square", "up"), ("circle", "growing")})

STYLES = ("plain", "outline", "neon")


@dataclass(frozen=True)
class Thing:
    """Something that moves: keys of the tables above."""

    colour: str
    shape: str
    motion: str
    size: str = "medium"
    speed: str = "normal"

    @property
    def held_out(self) -> bool:
        return (self.colour, self.shape) in HELD_OUT_LOOKS or (self.shape, self.motion) in HELD_OUT_MOTIONS


@dataclass(frozen=True)
class Scene:
    """One or two things before a background."""

    things: tuple[Thing, ...]
    background: str

    @property
    def held_out(self) -> bool:
        return any(thing.held_out for thing in self.things)


def random_thing(rng: np.random.Generator) -> Thing:
    """Draw a thing; a circle never spins, since nobody would see it."""
    shape = str(rng.choice(SHAPES))
    motions = [motion for motion in MOTIONS if (shape, motion) != ("circle", "spinning")]
    return Thing(
        colour=str(rng.choice(list(COLOURS))),
        shape=shape,
        motion=str(rng.choice(motions)),
        size=str(rng.choice(list(SIZES), p=(0.25, 0.5, 0.25))),
        speed=str(rng.choice(list(SPEEDS), p=(0.2, 0.6, 0.2))),
    )


def random_scene(rng: np.random.Generator, *, held_out: bool = False, pairs: float = 0.0) -> Scene:
    """Draw a scene.

    Args:
        held_out: whether it is one of the combinations that training never sees.
        pairs: how likely it has two things, 0..1. They differ in colour and in shape.
    """
    while True:
        things = [random_thing(rng)]
        if rng.random() < pairs:
            other = random_thing(rng)
            if other.colour == things[0].colour or other.shape == things[0].shape:
                continue
            things = [replace(thing, size="small") for thing in (things[0], other)]
        scene = Scene(tuple(things), str(rng.choice(list(BACKGROUNDS))))
        if scene.held_out == held_out:
            return scene


#: Shape -> (corners, their distance from the centre for the area of a circle of radius 1, that of a star's notches).
_POLYGONS = {
    "square": (4, float(np.sqrt(np.pi / 2)), 0.0),
    "triangle": (3, float(np.sqrt(4 * np.pi / np.sqrt(27))), 0.0),
    "star": (5, 1.45, 0.72),
}

#: How often a shape looks the same in one turn; a circle always does.
CORNERS = {"circle": 0, **{shape: corners for shape, (corners, _outer, _inner) in _POLYGONS.items()}}


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return the signed distance to a shape's border, below 0 inside.

    Args:
        x, y: from the shape's centre, y downwards; they, `radius` and `angle` broadcast against each other.
        radius: of the circle of the same area.
        angle: turned clockwise, radians; 0 stands upright.
    """
    length: np.ndarray = np.hypot(x, y)
    if shape == "circle":
        round_: np.ndarray = length - radius
        return round_
    corners, outer, inner = _POLYGONS[shape]
    half = np.pi / corners
    # The angle from the nearest corner; a square stands on a side, the others point up.
    upright = np.pi / 4 if shape == "square" else np.pi / 2
    turned = np.arctan2(y, x) - angle + upright
    folded = np.abs((turned + half) % (2 * half) - half)
    along, across = length * np.cos(folded), length * np.sin(folded)
    notch = inner or outer * np.cos(half)  # of the line from a corner to the next notch, or middle of a side
    edge = np.array([notch * np.cos(half) - outer, notch * np.sin(half)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    straight: np.ndarray = (along - outer * radius) * normal[0] + across * normal[1]
    return straight


def paint(frame: np.ndarray, colour: np.ndarray, away: np.ndarray, radius: np.ndarray, style: str) -> np.ndarray:
    """Lay a thing over frames.

    Args:
        frame: (F, H, W, 3), sRGB 0..1.
        colour: (3,) or (F, 1, 1, 3), sRGB 0..1.
        away: (F, H, W), signed distance to its border in pixels.
        radius: (F, 1, 1), in pixels.
        style: one of `STYLES`.
    """
    cover = np.clip(0.5 - away, 0, 1)
    if style == "outline":
        width = np.maximum(1.6, 0.2 * radius)
        cover = np.clip(0.5 - np.abs(away + width / 2) + width / 2, 0, 1)
    elif style == "neon":
        cover = np.maximum(cover, 0.85 * np.exp(-np.maximum(away, 0) / (0.45 * radius)))
    painted: np.ndarray = frame + cover[..., None] * (colour - frame)
    return painted


@dataclass(frozen=True)
class Path:
    """Where a thing is: one value per frame, in units of the shorter side; the angle in radians."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


def path(thing: Thing, rng: np.random.Generator, num_frames: int, box: tuple[float, float, float, float]) -> Path:
    """Draw a thing's way through `box` (left, top, right, bottom), which it does not leave where it fits."""
    time = np.linspace(0, 1, num_frames) if num_frames > 1 else np.zeros(1)
    crossed, growth, degrees, bounces = SPEEDS[thing.speed]
    left, top, right, bottom = box
    radius = np.full(num_frames, rng.uniform(*SIZES[thing.size]))
    if thing.motion in ("growing", "shrinking"):
        radius = radius * growth ** (time - 0.5 if thing.motion == "growing" else 0.5 - time)
    corner = _POLYGONS[thing.shape][1] if thing.shape in _POLYGONS else 1.0
    radius = radius * min(1.0, 0.49 * min(right - left, bottom - top) / (radius.max() * corner))
    reach = radius.max() * corner

    def room(low: float, high: float) -> tuple[float, float]:
        """Where a centre may be between two borders."""
        low, high = low + reach, high - reach
        return (low, high) if low < high else ((low + high) / 2, (low + high) / 2)

    (x_low, x_high), (y_low, y_high) = room(left, right), room(top, bottom)
    x = np.full(num_frames, rng.uniform(x_low, x_high))
    y = np.full(num_frames, rng.uniform(y_low, y_high))
    angle = np.zeros(num_frames)
    if thing.motion in ("left", "right"):
        way = crossed * (x_high - x_low)
        start = rng.uniform(x_low, x_high - way)
        x = start + way * (time if thing.motion == "right" else 1 - time)
    elif thing.motion in ("up", "down"):
        way = crossed * (y_high - y_low)
        start = rng.uniform(y_low, y_high - way)
        y = start + way * (time if thing.motion == "down" else 1 - time)
    elif thing.motion == "bouncing":
        phase = (bounces * time + 0.5) % 1.0  # 0.5 is the top, 0 and 1 the floor
        height = rng.uniform(0.75, 1.0) * (y_high - y_low)
        y = y_high - height * (1 - (2 * phase - 1) ** 2)
    elif thing.motion == "spinning":
        angle = np.radians(degrees) * rng.choice([-1.0, 1.0]) * time + rng.uniform(0, 2 * np.pi)
    return Path(x, y, radius, angle)


def boxes(
    scene: Scene, rng: np.random.Generator, width: float, height: float
) -> list[tuple[float, float, float, float]]:
    """Return where each thing may go: all of the frame, or two halves that leave room for the motions."""
    if len(scene.things) == 1:
        return [(0.02, 0.02, width - 0.02, height - 0.02)]
    across = any(thing.motion in ("left", "right") for thing in scene.things)
    along = any(thing.motion in ("up", "down", "bouncing") for thing in scene.things)
    stacked = rng.random() < 0.5 if across == along else across
    halves = [(0.0, 0.0, width, height / 2), (0.0, height / 2, width, height)]
    if not stacked:
        halves = [(0.0, 0.0, width / 2, height), (width / 2, 0.0, width, height)]
    return [halves[index] for index in rng.permutation(2)]


@dataclass(frozen=True)
class Clip:
    """A scene whose ways are decided, so that any part of it can be drawn.

    `spans` are (scene, num_frames): things keep their ways and change looks from span to span.
    """

    spans: tuple[tuple[Scene, int], ...]
    ways: tuple[Path, ...]
    height: int
    width: int

    def draw(
        self,
        style: str = "plain",
        *,
        frames: slice = slice(None),
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> np.ndarray:
        """Draw the clip, or a part of it, as (F, H, W, 3), float32, sRGB 0..1."""
        side = min(self.height, self.width)
        row = (np.arange(self.height) + 0.5)[rows][None, :, None]
        column = (np.arange(self.width) + 0.5)[columns][None, None, :]
        span_of = np.repeat(np.arange(len(self.spans)), [length for _scene, length in self.spans])[frames]
        drawn = []
        for span in np.unique(span_of):
            scene = self.spans[span][0]
            here = np.arange(sum(length for _scene, length in self.spans))[frames][span_of == span]
            picture = np.broadcast_to(srgb(BACKGROUNDS[scene.background]), (len(here), row.size, column.size, 3))
            for thing, way in zip(scene.things, self.ways, strict=True):
                x, y, radius, angle = (
                    values[here, None, None] * scale
                    for values, scale in ((way.x, side), (way.y, side), (way.radius, side), (way.angle, 1.0))
                )
                away = distance(thing.shape, column - x, row - y, radius, angle)
                picture = paint(picture, srgb(COLOURS[thing.colour]), away, radius, style)
            drawn.append(picture)
        return np.concatenate(drawn).astype(np.float32)


def plan(
    scene: Scene | Sequence[tuple[Scene, int]],
    rng: np.random.Generator,
    *,
    num_frames: int = 17,
    height: int = 96,
    width: int = 96,
) -> Clip:
    """Decide where the things of a scene go.

    Args:
        scene: a scene, or spans of (scene, num_frames) that add up to `num_frames`; the first scene's motions hold.
        height, width: pixels.
    """
    spans = ((scene, num_frames),) if isinstance(scene, Scene) else tuple(scene)
    first = spans[0][0]
    side = min(height, width)
    ways = [
        path(thing, rng, num_frames, box)
        for thing, box in zip(first.things, boxes(first, rng, width / side, height / side), strict=True)
    ]
    return Clip(spans, tuple(ways), height, width)


def srgb(colour: tuple[int, int, int]) -> np.ndarray:
    return np.array(colour) / 255
