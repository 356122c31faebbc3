"""Several prompts in one Wan video: each governs its own span of frames.

Text reaches Wan's transformer in one place only, the cross-attention of each block. There the tokens of a latent frame
are given the text of their own prompt and of no other. Everything else is as it always is: self-attention still sees
all frames, which is what carries a scene from one prompt into the next. The negative prompt is the same for all frames.

It is exact, and needs no mask: tokens lie frame after frame, so a span is a slice of them, and each slice attends to
the 512 tokens of its text. Neighbouring spans of one text are one span. No checkpoint was trained for this.

Source: DiTCtrl, arXiv 2412.18597, whose masks bind the spans of a video to prompts likewise, without training. It makes
overlapping clips and blends their latents where they meet; here all frames are denoised as one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import Any

from models import Pipeline
from models.placement import denoisers
from polyreel.errors import InvalidRequest
from polyreel.request import VideoRequest

#: Tokens of every text, its padding included: what Wan's pipelines and transformers take.
TEXT_TOKENS = 512

Tensor = Any  # torch is imported lazily


class PromptSpans:
    """The prompts of one request and the frames that each governs.

    Args:
        request: its `prompts` count; one of them is left to diffusers alone.
        num_frames, temporal, stretched: see `span_of_latents`.

    Attributes:
        facts: for the receipt, plain JSON: of how many latent frames each prompt is, where there are several.

    Raises:
        InvalidRequest: there are more prompts than latent frames.
    """

    def __init__(self, request: VideoRequest, num_frames: int, temporal: int, *, stretched: bool = False) -> None:
        prompts = request.prompts
        spans = span_of_latents([span.num_frames for span in prompts], num_frames, temporal, stretched=stretched)
        runs = [(text, len(list(run))) for text, run in groupby(prompts[span].prompt for span in spans)]
        self._texts = [text for text, _ in runs]
        self._latents = [latents for _, latents in runs]
        self.facts: dict[str, Any] = {}  # Any: JSON
        if len(prompts) > 1:
            self.facts["latent_frames_of_prompts"] = [spans.count(span) for span in range(len(prompts))]

    @contextmanager
    def on(self, pipeline: Pipeline) -> Iterator[None]:
        """Let a pipeline follow these prompts, whichever one it is called with; afterwards it is as it was.

        Args:
            pipeline: a WanPipeline or WanImageToVideoPipeline, which must be called for one video at a time.
        """
        if len(self._texts) == 1:
            yield
            return
        attentions = [block.attn2 for transformer in denoisers(pipeline) for block in transformer.blocks]
        plain = [attention.processor for attention in attentions]
        pipeline.encode_prompt = self._encoding(pipeline)
        try:
            for attention, processor in zip(attentions, plain, strict=True):
                attention.set_processor(SpanAttention(self._latents, processor._attention_backend))
            yield
        finally:
            for attention, processor in zip(attentions, plain, strict=True):
                attention.set_processor(processor)
            del pipeline.encode_prompt

    def _encoding(self, pipeline: Pipeline) -> Any:
        """Return what takes the place of a pipeline's `encode_prompt`: all texts side by side, as if they were one.

        Both pipelines call it by keywords, and only there are embeddings made on the device and in the dtype that
        offloading and half precision ask for.
        """
        original = pipeline.encode_prompt

        def encode_prompt(
            prompt: list[str], do_classifier_free_guidance: bool = True, **arguments: Any
        ) -> tuple[Tensor, Tensor | None]:
            import torch

            # One after the other: a batch of texts may round otherwise than each alone.
            embeds = {
                text: original([text], do_classifier_free_guidance=False, **arguments)[0]
                for text in dict.fromkeys(self._texts)
            }  # (1, 512, text_dim) each
            joined = torch.cat([embeds[text] for text in self._texts], dim=1)  # (1, spans * 512, text_dim)
            arguments["prompt_embeds"] = joined
            _, negative = original(None, do_classifier_free_guidance=do_classifier_free_guidance, **arguments)
            # As long as the prompts, so that every call of the transformer is cut in the same way. What attention
            # costs does not grow by it, only the keys and values of the text.
            return joined, None if negative is None else negative.repeat(1, len(self._texts), 1)

        return encode_prompt


class SpanAttention:
    """Cross-attention of each span of latent frames to its own text; diffusers' `WanAttnProcessor` but for that.

    Every layer runs once in a call, as there. Calling the original per span would be shorter, but group offloading
    would move the layers as often, and learns in which order they come.

    Args:
        latents: of each span, 1 or more, in order.
        backend: an attention backend of diffusers, None for its default.
    """

    def __init__(self, latents: Sequence[int], backend: Any = None) -> None:
        self._latents = latents
        self._backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """Attend.

        Args:
            attn: a WanAttention of a block's cross-attention.
            hidden_states: (B, N, dim), N tokens of all latent frames, frame after frame.
            encoder_hidden_states: (B, P + spans * 512, dim): the tokens of pictures (Wan 2.1 I2V, else P = 0), which
                all frames attend to, then those of the texts.
            attention_mask, rotary_emb: None, as always in cross-attention.

        Returns:
            (B, N, dim).
        """
        import torch

        tokens = len(self._latents) * TEXT_TOKENS
        pictures, text = encoder_hidden_states.split([encoder_hidden_states.shape[1] - tokens, tokens], dim=1)
        query = attn.norm_q(attn.to_q(hidden_states))  # (B, N, dim)
        key, value = attn.norm_k(attn.to_k(text)), attn.to_v(text)  # (B, spans * 512, dim)
        frame = hidden_states.shape[1] // sum(self._latents)  # tokens of one latent frame
        spans = zip(
            query.split([latents * frame for latents in self._latents], dim=1),
            key.split(TEXT_TOKENS, dim=1),
            value.split(TEXT_TOKENS, dim=1),
            strict=True,
        )
        attended = torch.cat([self._attend(attn, *span) for span in spans], dim=1)  # (B, N, dim)
        if attn.add_k_proj is not None:
            attended = attended + self._attend(
                attn, query, attn.norm_added_k(attn.add_k_proj(pictures)), attn.add_v_proj(pictures)
            )
        for layer in attn.to_out:
            attended = layer(attended)
        return attended

    def _attend(self, attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        heads = (tensor.unflatten(2, (attn.heads, -1)) for tensor in (query, key, value))  # (B, tokens, heads, width)
        return dispatch_attention_fn(*heads, backend=self._backend).flatten(2, 3).type_as(query)


def span_of_latents(
    lengths: Sequence[int], num_frames_made: int, temporal: int, *, stretched: bool = False
) -> tuple[int, ...]:
    """Return the number of the span, from 0, that each latent frame belongs to: the one of its last frame.

    A span that would have none, because it is shorter than a latent frame, gets one of its neighbours'.

    Args:
        lengths: asked frames of each span, 1 or more.
        num_frames_made: frames that the model makes.
        temporal: frames in a latent frame. The first one is frame 0 alone: latent frame k ends with frame k * temporal.
        stretched: the made frames stand for all asked ones, the first for the first and the last for the last. Else
            frame n is frame n; what is made beyond the asked frames belongs to the last span.

    Raises:
        InvalidRequest: there are more spans than latent frames.
    """
    asked, latents = sum(lengths), (num_frames_made - 1) // temporal + 1
    if len(lengths) > latents:
        more = "" if stretched else ", or ask for more frames"
        raise InvalidRequest(
            f"prompts has {len(lengths)} entries, and this model makes {num_frames_made} frames as {latents} latent "
            f"frames, each of one prompt; send at most {latents} prompts{more}.",
            field="prompts",
        )
    last_frames = [latent * temporal for latent in range(latents)]
    if stretched and num_frames_made > 1:
        made = num_frames_made - 1
        last_frames = [(2 * frame * (asked - 1) + made) // (2 * made) for frame in last_frames]  # rounded, exactly
    firsts: list[int] = []  # latent frame of each span
    for span, start in enumerate(accumulate(lengths[:-1], initial=0)):
        after_the_others = firsts[-1] + 1 if firsts else 0
        before_the_others = latents - (len(lengths) - span)
        firsts.append(min(max(bisect_left(last_frames, start), after_the_others), before_the_others))
    return tuple(bisect_right(firsts, latent) - 1 for latent in range(latents))
