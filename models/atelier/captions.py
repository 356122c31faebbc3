"""Says a scene in words, and knows all the words that the demonstration model knows.

A caption may leave things out ("a circle on a black background"), say them in another order or with other words, and
stand among words that mean nothing here; so a prompt may do that too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from models.atelier.world import BACKGROUNDS, COLOURS, Scene, Thing

#: What stands in captions for every word that the model does not know; the tokenizer makes its unknown token of it.
UNKNOWN = "unknown"

SHAPE_WORDS = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}

SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("",), "large": ("large", "big", "huge")}

#: Motion -> how it is said; the first is how the documentation says it.
MOTION_WORDS = {
    "left": ("moving left", "moves left", "moving to the left", "going left", "sliding to the left"),
    "right": ("moving right", "moves right", "moving to the right", "going right", "sliding to the right"),
    "up": ("moving up", "moves up", "rising", "going up"),
    "down": ("moving down", "moves down", "falling", "going down", "sinking"),
    "growing": ("growing", "grows", "getting bigger"),
    "shrinking": ("shrinking", "shrinks", "getting smaller"),
    "spinning": ("spinning", "spins", "rotating", "turning"),
    "bouncing": ("bouncing", "bounces", "jumping up and down"),
    "still": ("standing still", "stands still", "not moving", "resting"),
}

SPEED_WORDS = {"slow": ("slowly",), "normal": ("",), "quick": ("quickly", "fast")}

BACKGROUND_WORDS = ("on a {} background", "on {}", "in front of a {} background", "{} background", "over a {} backdrop")

_OPENINGS = ("", "", "", "a video of", "a clip of", "an animation of")


def phrase(thing: Thing) -> str:
    """Say a thing in the documentation's words: "a large red circle moving right slowly"."""
    words = ["a", SIZE_WORDS[thing.size][0], thing.colour, thing.shape, MOTION_WORDS[thing.motion][0]]
    return " ".join(word for word in (*words, SPEED_WORDS[thing.speed][0]) if word)


def sentence(scene: Scene) -> str:
    """Say a scene in the documentation's words: "a red circle moving right on a black background"."""
    return f"{' and '.join(phrase(thing) for thing in scene.things)} on a {scene.background} background"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Say a scene in some words, as it is learnt: with gaps, synonyms and words that mean nothing."""
    if rng.random() < 0.06:  # as negative prompts are: a word or two
        thing = scene.things[0]
        word = (thing.colour, thing.shape, f"{thing.colour} {thing.shape}", f"{scene.background} background")
        if len(scene.things) == 1:
            return _pick(rng, word)
    things = [_thing(thing, rng) for thing in scene.things]
    said = " and ".join(things)
    if rng.random() < 0.92:
        background = _pick(rng, BACKGROUND_WORDS).format(scene.background)
        said = f"{background} {said}" if rng.random() < 0.15 else f"{said} {background}"
    words = f"{_pick(rng, _OPENINGS)} {said}".split()
    if rng.random() < 0.25:
        for _ in range(rng.integers(1, 9)):
            words.insert(rng.integers(0, len(words) + 1), UNKNOWN)
    return " ".join(words)


def _thing(thing: Thing, rng: np.random.Generator) -> str:
    size = _pick(rng, SIZE_WORDS[thing.size])
    colour = thing.colour if rng.random() < 0.93 else ""
    shape = _pick(rng, SHAPE_WORDS[thing.shape]) if rng.random() < 0.93 else _pick(rng, ("thing", "shape"))
    motion = _pick(rng, MOTION_WORDS[thing.motion]) if rng.random() < 0.92 else ""
    speed = _pick(rng, SPEED_WORDS[thing.speed]) if motion else ""
    moving = (speed, motion) if rng.random() < 0.4 else (motion, speed)
    article = _pick(rng, ("a", "a", "a", "the", ""))
    return " ".join(word for word in (article, size, colour, shape, *moving) if word)


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def vocabulary() -> list[str]:
    """Return every word that a caption may hold, sorted."""
    phrases: list[str] = [*COLOURS, *BACKGROUNDS, *_OPENINGS, *BACKGROUND_WORDS, "a the and thing shape"]
    tables: Iterable[dict[str, tuple[str, ...]]] = (SHAPE_WORDS, SIZE_WORDS, MOTION_WORDS, SPEED_WORDS)
    for table in tables:
        phrases += [said for words in table.values() for said in words]
    return sorted({word for said in phrases for word in said.replace("{}", "").split()})
