"""Prompts with weights, of more than 75 tokens, in several spans: how they reach AnimateDiff's UNet."""

from __future__ import annotations

import numpy as np
import pytest

from models._clip_text import MAX_CHUNKS, Prompts, encoded
from models._prompt_chunks import chunked, is_long
from polyreel.errors import Cancelled
from polyreel.request import PromptSpan, Upscale
from tests.models.conftest import load_tiny

#: Fourteen of these are more than 75 tokens.
PHRASE = "a cat in rain, "


@pytest.fixture(scope="module")
def tiny(load):
    return load("animatediff")


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny.pipeline


def encode(pipeline, prompt, negative_prompt=None, *, texts=None, clip_skip=None, lora_scale=None, guided=True):
    """Return the embeddings of prompt and negative prompt as the pipeline itself gets them."""
    import torch

    used = [text for part in (prompt, negative_prompt) for text in ([part] if isinstance(part, str) else part or [])]
    with torch.no_grad(), Prompts(pipeline.tokenizer, texts or used).on(pipeline):
        return pipeline.encode_prompt(
            prompt, "cpu", 1, guided, negative_prompt, clip_skip=clip_skip, lora_scale=lora_scale
        )


def words(count: int) -> str:
    """Return a prompt of exactly so many tokens."""
    return " ".join(["a"] * count)


def lengths(pipeline, text: str) -> list[int]:
    return [len(chunk) for chunk in chunked(pipeline.tokenizer, text, ())]


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("", [0]),
        (words(75), [75]),
        (words(76), [75, 1]),
        (words(151), [75, 75, 1]),
        (words(60) + ", " + words(20), [61, 20]),
        (words(55) + ", " + words(19) + " a", [56, 20]),
        (words(54) + ", " + words(20) + " a", [75, 1]),
        (words(75) + ", a", [75, 2]),
        (words(74) + ", a", [75, 1]),
        (words(3) + " BREAK " + words(2), [3, 2]),
        ("BREAK a BREAK BREAK a BREAK", [1, 1]),
    ],
)
def test_a_long_prompt_is_cut_after_a_near_comma_or_else_after_75_tokens(pipeline, text, chunks):
    assert lengths(pipeline, text) == chunks


def test_weights_go_with_their_tokens(pipeline):
    [chunk] = chunked(pipeline.tokenizer, "a (a, a:1.5) [a]", ())

    assert [round(token.weight, 3) for token in chunk] == [1, 1.5, 1.5, 1.5, 0.909]


def test_a_prompt_of_75_tokens_is_not_long_and_one_of_76_is(pipeline):
    assert not is_long(pipeline.tokenizer, ["", words(75)])
    assert is_long(pipeline.tokenizer, ["", words(76)])


@pytest.mark.parametrize("clip_skip", [None, 0, 2, 12])
@pytest.mark.parametrize("prompt", ["a cat in the rain", "", " a  cat, ", words(75), "кошка 🦊", "<|endoftext|>"])
def test_a_plain_prompt_is_encoded_bit_for_bit_as_diffusers_does(pipeline, prompt, clip_skip):
    import torch

    with torch.no_grad():
        theirs, theirs_negative = pipeline.encode_prompt(prompt, "cpu", 1, True, "red street", clip_skip=clip_skip)
        ours = encoded(pipeline, [chunked(pipeline.tokenizer, prompt, ())], "cpu", clip_skip)
    through, through_negative = encode(pipeline, prompt, "red street", clip_skip=clip_skip)

    assert torch.equal(ours, theirs)
    assert torch.equal(through, theirs)
    assert torch.equal(through_negative, theirs_negative)


def test_a_plain_prompt_keeps_the_pipelines_own_encoder(pipeline):
    with Prompts(pipeline.tokenizer, ["a cat", ""]).on(pipeline):
        assert "encode_prompt" not in pipeline.__dict__


def test_a_plain_prompt_beside_a_weighted_one_is_as_it_is_alone(pipeline):
    import torch

    alone, _ = encode(pipeline, "a cat", guided=False)
    beside, _ = encode(pipeline, ["a cat", "a (dog:1.5)"], ["", ""], guided=False)

    assert torch.equal(beside[:1], alone)


def test_brackets_are_not_words(pipeline):
    import torch

    plain, _ = encode(pipeline, "a cat", guided=False)
    neutral, _ = encode(pipeline, "a (cat:1.0)", guided=False)

    assert torch.equal(neutral, plain)


def test_a_weight_multiplies_the_embeddings_of_its_tokens_alone(pipeline):
    import torch

    plain, _ = encode(pipeline, "a cat", guided=False)
    weighted, _ = encode(pipeline, "(a:1.5) cat", guided=False)

    # The tiny CLIP's embeddings have a mean of 0 (its last layer is a plain LayerNorm), so nothing is scaled back.
    assert torch.allclose(weighted[0, 1], 1.5 * plain[0, 1])
    assert torch.equal(weighted[0, 2:], plain[0, 2:])
    assert torch.equal(weighted[0, 0], plain[0, 0])


def test_a_weighted_chunk_keeps_its_mean(load):
    import torch

    pipeline = load("animatediff").pipeline
    with torch.no_grad():
        pipeline.text_encoder.final_layer_norm.bias.fill_(0.2)  # real CLIPs have a mean
    plain, _ = encode(pipeline, "a cat in the rain", guided=False)
    weighted, _ = encode(pipeline, "a (cat:3) in the rain", guided=False)

    assert plain.mean().item() == pytest.approx(0.2, rel=1e-4)
    assert weighted.mean().item() == pytest.approx(0.2, rel=1e-4)
    assert not torch.allclose(weighted, plain, atol=0.1)


def test_a_weight_of_zero_and_a_negative_one_give_finite_embeddings(pipeline):
    import torch

    for weight in ("0", "-1", "-10", "10", "1e9", "99999999999999"):
        embeds, _ = encode(pipeline, f"(a cat in the rain:{weight})", guided=False)
        assert torch.isfinite(embeds).all()


def test_chunks_are_encoded_each_on_its_own_and_put_behind_each_other(pipeline):
    import torch

    together, _ = encode(pipeline, "a cat BREAK a dog", guided=False)
    first, _ = encode(pipeline, "a cat", guided=False)
    second, _ = encode(pipeline, "a dog", guided=False)

    assert together.shape == (1, 154, 16)
    assert torch.allclose(together[:, :77], first, atol=1e-6)
    assert torch.allclose(together[:, 77:], second, atol=1e-6)


def test_the_shorter_of_prompt_and_negative_prompt_is_filled_with_empty_chunks(pipeline):
    import torch

    empty, _ = encode(pipeline, "", guided=False)
    prompt, negative = encode(pipeline, words(160), "red street")
    assert prompt.shape == negative.shape == (1, 231, 16)
    assert torch.allclose(negative[:, 77:154], empty, atol=1e-6)

    prompt, negative = encode(pipeline, "a cat", words(160))
    assert prompt.shape == negative.shape == (1, 231, 16)
    assert torch.allclose(prompt[:, 154:], empty, atol=1e-6)


def test_what_is_longer_than_the_longest_prompt_is_cut_off_and_the_receipt_says_so(pipeline):
    text = words(MAX_CHUNKS * 75 + 80)
    embeds, _ = encode(pipeline, text, guided=False)

    assert embeds.shape == (1, MAX_CHUNKS * 77, 16)
    assert Prompts(pipeline.tokenizer, [text]).facts == {"prompt_chunks": 16, "prompt_tokens_cut_off": 80}
    assert Prompts(pipeline.tokenizer, ["a (cat:1.3)"]).facts == {}


def test_clip_skip_holds_for_weighted_prompts_and_not_for_negative_ones(pipeline):
    import torch

    plain, plain_negative = encode(pipeline, "a cat", "red street", clip_skip=2)
    ours, ours_negative = encode(pipeline, "(a cat:1.0)", "(red street:1.0)", clip_skip=2)
    unskipped, _ = encode(pipeline, "(a cat:1.0)", "(red street:1.0)")

    assert torch.equal(ours, plain)
    assert torch.equal(ours_negative, plain_negative)
    assert not torch.allclose(ours, unskipped, atol=1e-2)


def test_without_guidance_nothing_negative_is_encoded(pipeline):
    assert encode(pipeline, "a (cat:1.3)", "red street", guided=False)[1] is None


def test_a_lora_on_the_text_encoder_counts_as_much_as_its_scale(load):
    import torch
    from peft import LoraConfig

    pipeline = load("animatediff").pipeline
    plain, _ = encode(pipeline, "a (cat:1.0)", guided=False)
    pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    full, _ = encode(pipeline, "a (cat:1.0)", guided=False)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt("a cat", "cpu", 1, False, lora_scale=0.1)

    assert not torch.allclose(full, plain, atol=0.1)
    assert torch.equal(encode(pipeline, "a (cat:1.0)", guided=False, lora_scale=0.1)[0], theirs)
    assert not torch.allclose(theirs, full, atol=0.01)
    assert torch.equal(encode(pipeline, "a (cat:1.0)", guided=False, lora_scale=0.0)[0], plain)
    assert torch.equal(encode(pipeline, "a (cat:1.0)", guided=False)[0], full)


def test_weights_change_the_video_and_leave_no_trace_in_the_next(tiny, ask):
    before = tiny.generate(ask("a cat in the rain"))
    weighted = tiny.generate(ask("a (cat:2) in the [rain]"))
    after = tiny.generate(ask("a cat in the rain"))

    assert not np.array_equal(weighted, before)
    assert np.array_equal(after, before)
    assert "encode_prompt" not in tiny.pipeline.__dict__


def test_neutral_weights_change_nothing(tiny, ask):
    assert np.array_equal(tiny.generate(ask("a (cat:1.0) in the rain")), tiny.generate(ask("a cat in the rain")))


def test_a_weight_in_the_negative_prompt_counts(tiny, ask):
    plain = tiny.generate(ask(negative_prompt="worst quality"))

    assert not np.array_equal(tiny.generate(ask(negative_prompt="(worst quality:2)")), plain)


def test_what_comes_after_75_tokens_counts(tiny, ask):
    long = tiny.generate(ask(PHRASE * 14 + "a red dragon"))
    other = tiny.generate(ask(PHRASE * 14 + "snow over paris"))

    assert len(chunked(tiny.pipeline.tokenizer, PHRASE * 14, ())) > 1
    assert not np.array_equal(long, other)


def test_a_batch_of_weighted_prompts_equals_the_single_runs_within_one_grey_level(tiny, ask):
    requests = [ask("a (cat:1.5)"), ask("a red dragon", seed=2), ask("a [dog]", seed=3, negative_prompt="(rain:2)")]
    seen = []
    together = tiny.videos(requests, seen.append)

    assert {progress.total_steps for progress in seen} == {2}
    for video, request in zip(together, requests, strict=True):
        alone = tiny.generate(request)
        assert np.abs(video.frames.astype(int) - alone).max() <= 1


def test_a_long_prompt_does_not_change_the_video_beside_it(tiny, ask):
    requests = [ask("a cat"), ask(words(90), seed=2), ask("a dog")]
    together = tiny.videos(requests)

    assert np.array_equal(together[0].frames, tiny.generate(requests[0]))
    assert np.array_equal(together[2].frames, tiny.generate(requests[2]))
    assert [video.made.get("prompt_chunks") for video in together] == [None, 2, None]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_spans_may_have_prompts_of_any_length(tiny, ask, guidance_scale):
    spans = (PromptSpan("a cat", 8), PromptSpan(words(160) + " dog", 8), PromptSpan("(rain:1.4)", 4))
    request = ask(prompts=spans, negative_prompt="((monochrome)), " + PHRASE * 14, guidance_scale=guidance_scale)
    [video] = tiny.videos([request])

    assert video.frames.shape == (20, 64, 64, 3)
    assert video.made["prompt_chunks"] == 3


def test_weights_count_in_the_span_that_has_them(tiny, ask):
    plain = tiny.generate(ask(prompts=(PromptSpan("a cat", 16), PromptSpan("a dog", 16))))
    weighted = tiny.generate(ask(prompts=(PromptSpan("a cat", 16), PromptSpan("a (dog:3)", 16))))

    difference = np.abs(plain.astype(int) - weighted.astype(int)).mean(axis=(1, 2, 3))  # (32,)
    assert difference[28] > 3 * difference[4]


def test_weights_count_in_the_second_pass_too(tiny, ask):
    """Strength 1 forgets the first pass but for its frames, and the same first pass gives the same frames."""
    upscale = Upscale(72, 72, 1.0, 4.0, 2)
    [plain] = tiny.videos([ask("a cat", upscale=upscale)])
    [weighted] = tiny.videos([ask("a (cat:2)", upscale=upscale)])

    assert not np.array_equal(plain.frames, weighted.frames)
    assert "encode_prompt" not in tiny.model.variant("AnimateDiffVideoToVideoPipeline").__dict__


def test_video_to_video_reads_weights(tiny):
    import torch

    pipeline = tiny.model.variant("AnimateDiffVideoToVideoPipeline")
    plain, _ = encode(pipeline, "a cat", guided=False)
    weighted, _ = encode(pipeline, "a (cat:2)", guided=False)

    assert torch.allclose(weighted[0, 2], 2 * plain[0, 2])


def test_novitas_own_example_runs(tiny, ask):
    spans = tuple(
        PromptSpan(prompt, 8)
        for prompt in (
            "In the wintry dusk, a little girl holds matches tightly.",
            "A little girl, barefoot on the frosty pavement, seeks solace.",
            "A little girl with each match experiences a fleeting dance of warmth and hope.",
            "In the quiet night, a little girl's silent story unfolds.",
        )
    )
    negative = (
        "nsfw, ng_deepnegative_v1_75t, badhandv4, (worst quality:2), (low quality:2), (normal quality:2), lowres, "
        "((monochrome)), ((grayscale)), watermark"
    )
    weighted = tiny.generate(ask(prompts=spans, negative_prompt=negative))
    literal = tiny.generate(ask(prompts=spans, negative_prompt=negative.replace(":2", ":1")))

    assert weighted.shape == (32, 64, 64, 3)
    assert not np.array_equal(weighted, literal)


@pytest.mark.parametrize("stage", ["denoising", "decoding"])
def test_a_cancelled_video_with_weights_leaves_no_trace(tiny, ask, stage):
    before = tiny.generate(ask())

    def cancel(progress):
        if progress.stage == stage:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        tiny.generate(ask("a (cat:2), " + PHRASE * 14), cancel)
    assert "encode_prompt" not in tiny.pipeline.__dict__
    assert np.array_equal(tiny.generate(ask()), before)


def test_half_precision_reads_weights(tiny, ask):
    half = load_tiny("animatediff", tiny.folder, dtype="bfloat16")

    assert half.generate(ask("a (cat:1.5) BREAK rain", num_frames=1)).shape == (1, 64, 64, 3)
