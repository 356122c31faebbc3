"""The page that lists the demonstration model's words has all of them."""

from __future__ import annotations

import re

import pytest

from models.atelier.captions import MOTION_WORDS, SHAPE_WORDS, SIZE_WORDS, SPEED_WORDS
from models.atelier.world import BACKGROUNDS, COLOURS
from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs/models.md").read_text()
ROWS = dict(
    re.findall(r"^\| (\w+) \| (.+) \|$", PAGE.partition("## The demonstration model")[2].partition("\n## ")[0], re.M)
)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("shapes", [word for words in SHAPE_WORDS.values() for word in words]),
        ("colours", list(COLOURS)),
        ("backgrounds", list(BACKGROUNDS)),
        ("motions", [words[0] for words in MOTION_WORDS.values()]),
        ("sizes", [*SIZE_WORDS["small"], *SIZE_WORDS["large"]]),
        ("speeds", [*SPEED_WORDS["slow"], *SPEED_WORDS["quick"]]),
    ],
)
def test_every_word_that_the_model_knows_is_on_its_page(row: str, words: list[str]) -> None:
    assert [word for word in words if not re.search(rf"\b{word}\b", ROWS[row])] == []


def test_every_word_of_a_motion_is_on_its_page() -> None:
    said = {word for words in MOTION_WORDS.values() for motion in words for word in motion.split()}
    assert sorted(word for word in said if not re.search(rf"\b{word}\b", ROWS["motions"])) == []
