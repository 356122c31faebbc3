"""Cuts prompts into chunks of as many tokens as CLIP takes; see `models._clip_text` for what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from models._embeddings import Embedding, split
from models._prompt_weights import Fragment, parse

#: A chunk ends with a comma that is among so many last tokens.
COMMA_REACH = 20

Tensor = Any  # torch is imported lazily


class Token(NamedTuple):
    """What one place of a chunk holds: a token, or a vector in its place, and how important it is."""

    id: int
    weight: float
    vector: Tensor | None = None


#: At most 75 tokens, without start, end and padding.
Chunk = list[Token]


def is_long(tokenizer: Any, texts: Sequence[str]) -> bool:
    """Return whether one of these texts takes several chunks, textual inversions aside."""
    return any(len(chunked(tokenizer, text, ())) > 1 for text in texts)


def chunked(tokenizer: Any, text: str, embeddings: Sequence[Embedding]) -> list[Chunk]:
    """Cut a prompt into chunks of as many tokens as the text encoder takes between start and end; at least one."""
    length = tokenizer.model_max_length - 2
    comma = tokenizer.get_vocab().get(",</w>")
    chunks: list[Chunk] = []
    for section in parse(text):
        chunk: Chunk = []
        after_comma = 0  # where the text after the chunk's last comma begins; 0 for none
        for unit in _units(tokenizer, section, embeddings):
            while len(chunk) + len(unit) > length:
                near = after_comma and len(chunk) - after_comma < COMMA_REACH and unit[0].id != comma
                end = after_comma if near else len(chunk)
                chunks.append(chunk[:end])
                chunk, after_comma = chunk[end:], 0
            chunk = chunk + unit
            if unit[0].id == comma:
                after_comma = len(chunk)
        if chunk:
            chunks.append(chunk)
    return chunks or [[]]


def _units(tokenizer: Any, section: Sequence[Fragment], embeddings: Sequence[Embedding]) -> Iterator[Chunk]:
    """Yield what must not be cut in two: single tokens, and all vectors of a textual inversion."""
    for text, weight in section:
        for piece in split(text, embeddings):
            if isinstance(piece, Embedding):
                # The token is only a place: its embedding is replaced.
                yield [Token(tokenizer.eos_token_id, weight, vector) for vector in piece.vectors]
            else:
                for token in tokenizer(piece, add_special_tokens=False).input_ids:
                    yield [Token(token, weight)]
