"""Textual inversions: words that stand for learned vectors, read from files and used by one job.

Neither the tokenizer nor the text encoder learns such a word: `models._clip_text` puts the vectors where the prompt
has it. So there is nothing to unload, a job that does not ask for an embedding cannot meet it, and offloaded or
quantised text encoders need no care. (diffusers adds a token to both, and takes it away again afterwards.)

Sources: Textual Inversion, arXiv 2208.01618;
https://huggingface.co/docs/diffusers/using-diffusers/textual_inversion_inference
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models import AdapterFile, Pipeline
from polyreel.errors import AdapterUnavailable

#: How AUTOMATIC1111's files call the vectors; diffusers' files have one tensor under the name of their token.
A1111_KEY = "emb_params"

Tensor = Any  # torch is imported lazily


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word of a prompt and what it stands for.

    Args:
        name: catalogue name, for messages and the receipt.
        token: the word, in any case.
        vectors: in place of the word's own token embeddings, float32 of (vectors, width).
        aliases: further words for it, likewise.
    """

    name: str
    token: str
    vectors: Tensor
    aliases: tuple[str, ...] = ()

    def split(self, text: str, word: str) -> Iterator[str | Embedding]:
        """Cut a text at each place where it has `word` on its own, with the embedding between the pieces."""
        # Not \b: a word may begin or end with other signs than letters, such as "<cat-toy>".
        before = r"(?<!\w)" if re.match(r"\w", word) else ""
        after = r"(?!\w)" if re.match(r"\w", word[-1]) else ""
        pieces = re.split(before + re.escape(word) + after, text, flags=re.IGNORECASE)
        for number, piece in enumerate(pieces):
            if number:
                yield self
            yield piece


def split(text: str, embeddings: Sequence[Embedding]) -> list[str | Embedding]:
    """Cut a text at the words of all embeddings, the longest words first; pieces may be empty."""
    pieces: list[str | Embedding] = [text]
    words = [(word, embedding) for embedding in embeddings for word in (embedding.token, *embedding.aliases)]
    for word, embedding in sorted(words, key=lambda pair: -len(pair[0])):
        pieces = [
            part
            for piece in pieces
            for part in (embedding.split(piece, word) if isinstance(piece, str) else (piece,))
        ]  # fmt: skip
    return pieces


def read_embeddings(files: Sequence[AdapterFile], pipeline: Pipeline) -> list[Embedding]:
    """Read the textual inversions of a job.

    An alias that the model knows already, or that is a word of another of these embeddings, is left out: catalogues
    and files are full of names such as "learned_embeds". A token is what the operator chose, so it is refused then.

    Args:
        files: safetensors files of AUTOMATIC1111 or diffusers, with the words that prompts use.
        pipeline: has the text encoder and the tokenizer that they are to fit.

    Raises:
        AdapterUnavailable: names the embedding and what is wrong with it.
    """
    embeddings: list[Embedding] = []
    for file in files:
        token = file.token.strip()
        _check_token(file, token, pipeline.tokenizer)
        for other in embeddings:
            if other.token.lower() == token.lower():
                raise AdapterUnavailable(
                    f"Embeddings {other.name} and {file.name} both use the word {token!r}; ask for one of them."
                )
        aliases = _aliases(file, files, pipeline.tokenizer)
        embeddings.append(Embedding(file.name, token, _read_vectors(file, pipeline), aliases))
    return embeddings


def _aliases(file: AdapterFile, files: Sequence[AdapterFile], tokenizer: Any) -> tuple[str, ...]:
    """Return the words beside its token that mean this file and nothing else, each once whatever its case."""
    own = {alias.strip().lower(): alias.strip() for alias in file.aliases}
    taken = {"", file.token.strip().lower()}
    for other in files:
        if other is not file:
            taken |= {word.strip().lower() for word in (other.token, *other.aliases)}
    return tuple(word for key, word in own.items() if key not in taken and not _is_known(word, tokenizer))


def _is_known(word: str, tokenizer: Any) -> bool:
    """Return whether a word is one token of the model's own."""
    vocabulary = tokenizer.get_vocab()
    return word in vocabulary or word.lower() in vocabulary or f"{word.lower()}</w>" in vocabulary


def _check_token(file: AdapterFile, token: str, tokenizer: Any) -> None:
    if not token:
        raise AdapterUnavailable(f"Embedding {file.name} has no token; name the word by which prompts call it.")
    if _is_known(token, tokenizer):
        raise AdapterUnavailable(
            f"Embedding {file.name} uses the word {token!r}, which the model knows already; "
            "give it another token in the catalogue."
        )


def _read_vectors(file: AdapterFile, pipeline: Pipeline) -> Tensor:
    """Return a file's vectors, float32 of (vectors, width)."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.path.suffix != ".safetensors":
        raise AdapterUnavailable(
            f"Embedding {file.name} is no .safetensors file, and nothing else is read: a pickle may run code."
        )
    try:
        tensors = load_file(file.path)
    except (SafetensorError, OSError) as err:
        raise AdapterUnavailable(f"Embedding {file.name} is missing, damaged or no safetensors file.") from err

    if A1111_KEY in tensors:
        vectors = tensors[A1111_KEY]
    elif len(tensors) == 1:
        [vectors] = tensors.values()
    else:
        raise AdapterUnavailable(
            f"Embedding {file.name} holds {', '.join(sorted(tensors)[:5]) or 'nothing'}; expected {A1111_KEY}, "
            "or one tensor alone. Embeddings for SDXL hold clip_l and clip_g and fit no SD 1.5 model."
        )

    vectors = vectors.float()
    if vectors.dim() == 1:
        vectors = vectors[None]
    width = pipeline.text_encoder.config.hidden_size
    most = pipeline.tokenizer.model_max_length - 2
    if vectors.dim() != 2 or vectors.shape[1] != width or not 1 <= vectors.shape[0] <= most:
        raise AdapterUnavailable(
            f"Embedding {file.name} has the shape {tuple(vectors.shape)}; this model takes 1 to {most} vectors "
            f"of {width}."
        )
    if not torch.isfinite(vectors).all():
        raise AdapterUnavailable(f"Embedding {file.name} holds NaN or infinite values.")
    return vectors
