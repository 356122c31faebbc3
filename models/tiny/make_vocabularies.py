"""Writes the two vocabularies of the tiny checkpoints: `unigram.json` (T5, UMT5) and `bpe.json` (CLIP).

    python -m models.tiny.make_vocabularies

They are made by rule from a word list, because the trainers of `tokenizers` give another vocabulary on every run,
and committed, because a tiny checkpoint has to be the same bytes on every machine. Any Unicode text is accepted:
the BPE works on bytes; the unigram reads what is not in its alphabets (emoji, Han) as <unk>.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

_VOCABULARY = """
    a about above across after air alone an and animal anime apple around art artist astronaut at autumn baby
    background ball balloon barefoot beach bear beautiful bee bicycle big bird black blossom blue blur blurry boat
    book boy bright brown building burger butterfly by camera candle car cartoon castle cat cherry child cinematic
    city clear climbs close cloud clouds coffee cold color colour dance dances dancing dark dawn day deep desert
    detailed dog dolphin door dragon drinks drone dusk eagle earth eating elephant evening eyes face falling fast
    field film fire fish flower flowers flying focus fog forest fox from garden girl glass gold golden good grass
    green hair hand hands happy high hill holds holding hope horse house ice in into island its jumping jungle
    kitchen lake landscape large light lighting lightning lights lion little long looking low man market mars
    matches meadow misty monkey monochrome moon morning motion mountain mountains moving mushroom music near neon
    night of ocean office old on orange over owl painting panda paper paris park path pavement penguin person
    photo photograph pink planet plays playing portrait purple quality quiet rabbit rain rainbow realistic red
    river road robot rocket room running sad sailing sand sea seeks sheep ship shot sings sitting sky sleeping
    slow small smile smiling smoke smooth snow soft solace space squirrel standing star stars static still stone
    storm story street style summer sun sunlight sunny sunrise sunset surfing swimming sword table tail talking
    text the through tiger time to tokyo tower town train tree trees turtle ugly umbrella under unfolds valley
    view village violin volcano volumetric walking walks wall warm warmth watching water waterfall watermark wave
    waves whale white wide wind window winter with wolf woman wood woods worst yellow young zoom
"""
WORDS = sorted(set(_VOCABULARY.split()))

#: First and last letter of each alphabet that a prompt's characters are told apart in, beside printable ASCII.
ALPHABETS = (("¡", "ſ"), ("Ͱ", "ϻ"), ("Ѐ", "ѿ"), ("א", "ת"), ("ء", "ي"), ("अ", "ह"), ("ぁ", "ヺ"))

#: Log probabilities. A whole word has to beat the same word spelled out, and nothing else matters.
WORD_SCORE, CHARACTER_SCORE = -5.0, -12.0


def unigram() -> list[tuple[str, float]]:
    """Return (piece, log probability) in the order of their ids; 0, 1, 2 are pad, end and unknown as in T5."""
    characters = [c for c in string.printable if c.isprintable() and c != " "]
    for first, last in ALPHABETS:
        characters += [c for c in map(chr, range(ord(first), ord(last) + 1)) if c.isprintable()]
    return [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", CHARACTER_SCORE),
        *((f"▁{word}", WORD_SCORE) for word in WORDS),
        *((character, CHARACTER_SCORE) for character in characters),
    ]


def bpe() -> dict[str, list[Any]]:
    """Return the pieces in the order of their ids, and the merges in the order of their rank.

    Every byte is a piece, in the middle and at the end of a word, so that no text is unknown. The end marker has
    the highest id, as in the real CLIP.
    """
    from tokenizers import pre_tokenizers

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())  # the 256 printable stand-ins of the bytes
    pieces = dict.fromkeys([*characters, *(f"{c}</w>" for c in characters)])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for right in rest:
            merges[left, right] = None
            left += right
            pieces[left] = None
    return {"pieces": [*pieces, "<|startoftext|>", "<|endoftext|>"], "merges": [list(pair) for pair in merges]}


def to_json(value: Any) -> str:
    """Return the text of a vocabulary file: one line per file keeps it small, Unicode as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def main() -> None:
    """Write both files."""
    (FOLDER / "unigram.json").write_text(to_json(unigram()), encoding="utf-8")
    (FOLDER / "bpe.json").write_text(to_json(bpe()), encoding="utf-8")


if __name__ == "__main__":
    main()
