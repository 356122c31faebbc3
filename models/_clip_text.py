r"""Prompts for CLIP as Stable Diffusion users write them: weights, more than 75 tokens, textual inversions.

How a prompt becomes embeddings, all as AUTOMATIC1111's web UI does it:

* A prompt of more than 75 tokens is cut into chunks of 75, after the last comma where that is among the last 20
  tokens. BREAK starts a new chunk. Each chunk is encoded on its own, between its start and end tokens, and the chunks
  are put behind each other: 77 embeddings per chunk, which the UNet's cross-attention takes in any number.
* Every prompt of a video, the negative one too, gets as many chunks as the longest, by empty ones.
* A weight multiplies the embeddings of its tokens; the chunk is then scaled back to the mean that it had before.
* The vectors of a textual inversion take the place of token embeddings before the encoder; they are not cut in two.

A prompt that needs none of this is left to diffusers, whose results are bit for bit the same.

One thing is as in diffusers: `clip_skip` holds for prompts and not for negative prompts. (The web UI skips in both.
A negative prompt would be another one with a weight in the prompt than without.)

Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/sd_hijack_clip.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from models import Pipeline
from models._embeddings import Embedding, split
from models._prompt_chunks import Chunk, chunked
from models._prompt_weights import Fragment, parse

#: Chunks of a prompt; what is longer is cut off. The UNet's text memory is frames x 77 x chunks: 0.5 GB for 128 frames.
MAX_CHUNKS = 16

#: A mean closer to 0 than this share of the typical embedding is rounding, and nothing can be scaled back to it.
LEAST_MEAN = 1e-3

Tensor = Any  # torch is imported lazily


class Prompts:
    """The prompts of one call, with all that users write into them.

    Args:
        tokenizer: of the pipelines that will run them.
        texts: every prompt and negative prompt; all get as many chunks as the longest of them.
        embeddings: textual inversions whose words the texts may use.

    Attributes:
        facts: for the receipt, plain JSON: the chunks where there are several, the tokens that were cut off, the
            textual inversions whose words are there.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], embeddings: Sequence[Embedding] = ()) -> None:
        self._tokenizer = tokenizer
        self._embeddings = embeddings
        self._chunks = {text: chunked(tokenizer, text, embeddings) for text in texts}
        longest = max(len(chunks) for chunks in self._chunks.values())
        self._count = min(MAX_CHUNKS, longest)
        self._are_plain = longest == 1 and all(_is_plain(text, embeddings) for text in texts)
        self.facts = dict(self._facts(texts))

    def _facts(self, texts: Sequence[str]) -> Iterator[tuple[str, Any]]:  # Any: JSON
        if self._count > 1:  # never in a batch, so that a receipt does not depend on what ran beside it
            yield "prompt_chunks", self._count
        if cut_off := max(sum(map(len, chunks[self._count :])) for chunks in self._chunks.values()):
            yield "prompt_tokens_cut_off", cut_off
        if self._embeddings:
            pieces = [piece for text in texts for piece in split(text, self._embeddings)]
            yield "embeddings_used", sorted({piece.name for piece in pieces if isinstance(piece, Embedding)})

    @contextmanager
    def on(self, pipeline: Pipeline) -> Iterator[None]:
        """Let a pipeline read these prompts; afterwards it is as it was.

        The only way in that FreeNoise leaves is the pipeline's own `encode_prompt`: it refuses embeddings, and calls
        that for the prompts of the spans. So that method is replaced for the time being, on this one pipeline.

        Args:
            pipeline: AnimateDiffPipeline or AnimateDiffVideoToVideoPipeline.
        """
        if self._are_plain:
            yield
            return
        original = pipeline.encode_prompt

        def encode_prompt(
            prompt: str | list[str] | None,
            device: Any,
            num_images_per_prompt: int,
            do_classifier_free_guidance: bool,
            negative_prompt: str | list[str] | None = None,
            prompt_embeds: Tensor | None = None,
            negative_prompt_embeds: Tensor | None = None,
            lora_scale: float | None = None,
            clip_skip: int | None = None,
        ) -> tuple[Tensor, Tensor | None]:
            with _lora_scaled(pipeline.text_encoder, lora_scale):
                if prompt_embeds is None:
                    prompt_embeds = self._encoded(pipeline, prompt or "", device, clip_skip)
                if do_classifier_free_guidance and negative_prompt_embeds is None:
                    negative = negative_prompt or [""] * len(prompt_embeds)
                    negative_prompt_embeds = self._encoded(pipeline, negative, device, None)
            # diffusers' own does the rest: dtype, and copies for several videos per prompt.
            embeds: tuple[Tensor, Tensor | None] = original(
                None,
                device,
                num_images_per_prompt,
                do_classifier_free_guidance,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
            )
            return embeds

        pipeline.encode_prompt = encode_prompt
        try:
            yield
        finally:
            del pipeline.encode_prompt

    def _encoded(self, pipeline: Pipeline, texts: str | list[str], device: Any, clip_skip: int | None) -> Tensor:
        prompts = []
        for text in [texts] if isinstance(texts, str) else texts:
            # FreeNoise asks for "" beside the negative prompts, and throws it away.
            chunks = self._chunks.get(text) or chunked(self._tokenizer, text, self._embeddings)
            prompts.append((chunks + [[]] * self._count)[: self._count])
        return encoded(pipeline, prompts, device, clip_skip)


def encoded(pipeline: Pipeline, prompts: Sequence[Sequence[Chunk]], device: Any, clip_skip: int | None) -> Tensor:
    """Encode prompts of equally many chunks.

    Args:
        clip_skip: layers of the text encoder to leave out, None for none.

    Returns:
        (prompts, chunks * 77, channels), in the text encoder's dtype.
    """
    import torch

    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    length = tokenizer.model_max_length
    rows = [chunk for prompt in prompts for chunk in prompt]
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    weights = torch.ones(len(rows), length)
    vectors: dict[tuple[int, int], Tensor] = {}
    for row, chunk in enumerate(rows):
        ids[row, 0] = tokenizer.bos_token_id
        ids[row, len(chunk) + 1] = tokenizer.eos_token_id
        for place, token in enumerate(chunk, start=1):
            ids[row, place] = token.id
            weights[row, place] = token.weight
            if token.vector is not None:
                vectors[row, place] = token.vector

    with _vectors_in_place(text_encoder, vectors):
        if clip_skip is None:
            embeds = text_encoder(ids.to(device), attention_mask=None)[0]
        else:
            output = text_encoder(ids.to(device), attention_mask=None, output_hidden_states=True)
            layer = output.hidden_states[-(clip_skip + 1)]
            embeds = getattr(text_encoder, "text_model", text_encoder).final_layer_norm(layer)
    embeds = _weighted(embeds, weights)  # (prompts * chunks, 77, channels)
    return embeds.reshape(len(prompts), -1, embeds.shape[-1])  # (prompts, chunks * 77, channels)


def _weighted(embeds: Tensor, weights: Tensor) -> Tensor:
    """Multiply by the weights, and scale each chunk back to its mean; chunks without weights stay bit for bit.

    Args:
        embeds: (chunks, 77, channels).
        weights: (chunks, 77).
    """
    import torch

    # Not the mean over the batch, as the web UI takes it: a prompt must not depend on those beside it.
    before = embeds.float()
    after = before * weights.to(embeds.device)[:, :, None]
    old, new = before.mean(dim=(1, 2), keepdim=True), after.mean(dim=(1, 2), keepdim=True)  # (chunks, 1, 1)
    least = LEAST_MEAN * before.abs().mean(dim=(1, 2), keepdim=True)
    known = (old.abs() > least) & (new.abs() > least)
    after = after * torch.where(known, old / torch.where(known, new, 1.0), 1.0)
    plain = (weights == 1).all(dim=1).to(embeds.device)[:, None, None]
    return torch.where(plain, embeds, after.to(embeds.dtype))


@contextmanager
def _vectors_in_place(text_encoder: Any, vectors: dict[tuple[int, int], Tensor]) -> Iterator[None]:
    """Replace token embeddings by vectors, at (row, place), while the text encoder runs."""

    def replace(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        for (row, place), vector in vectors.items():
            output[row, place] = vector.to(output)
        return output

    if not vectors:
        yield
        return
    hook = text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _lora_scaled(text_encoder: Any, lora_scale: float | None) -> Iterator[None]:
    """Scale the text encoder's LoRAs as diffusers does in its `encode_prompt`."""
    if lora_scale is None:
        yield
        return
    from diffusers.utils import scale_lora_layers, unscale_lora_layers

    scale_lora_layers(text_encoder, lora_scale)
    try:
        yield
    finally:
        unscale_lora_layers(text_encoder, lora_scale)


def _is_plain(text: str, embeddings: Sequence[Embedding]) -> bool:
    """Return whether diffusers reads a text of one chunk as it is meant."""
    return (not text or parse(text) == [[Fragment(text, 1.0)]]) and len(split(text, embeddings)) == 1
