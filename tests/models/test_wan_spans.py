"""Several prompts in one Wan video: which frames follow which, that it is exact, and that nothing of it stays."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from models import AdapterFile, PreparedRequest
from models._wan_spans import SpanAttention, span_of_latents
from models.tiny import build
from polyreel.entries import Placement
from polyreel.errors import Cancelled, GenerationFailed, InvalidRequest
from polyreel.request import PromptSpan, Upscale
from tests.models.conftest import Loaded, load_tiny, with_pictures

TI2V, T2V21, T2V22, I2V21, I2V22 = "wan-ti2v", "wan21", "wan22-t2v", "wan21-i2v", "wan22-i2v"
EVERY = [TI2V, T2V21, T2V22, I2V21, I2V22]

CAT, DRAGON, RAIN = "a cat", "a red dragon over paris", "rain on the street"


@pytest.fixture(scope="module")
def wan(load):
    """Load a tiny Wan, each one once: what one test leaves behind, the next one sees."""
    return cache(load)


def spans(*prompts, num_frames=(4, 5)):
    """Return the `prompts` of a request; 9 frames are 3 latent frames, the first of which is of the first prompt."""
    return tuple(PromptSpan(prompt, length) for prompt, length in zip(prompts, num_frames, strict=True))


def attentions(loaded):
    """Return the cross-attention of every block of a model."""
    transformers = (loaded.pipeline.transformer, loaded.pipeline.transformer_2)
    return [block.attn2 for transformer in transformers if transformer is not None for block in transformer.blocks]


@contextmanager
def outputs(*modules):
    """Collect what each module returns, call by call."""
    seen = [[] for _ in modules]
    handles = [
        module.register_forward_hook(lambda _module, _args, output, own=own: own.append(output.clone()))
        for module, own in zip(modules, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# Which frames


@pytest.mark.parametrize(
    ("lengths", "made", "owners"),
    [
        # Latent frame k ends with frame 4 k.
        ([17], 17, (0, 0, 0, 0, 0)),
        ([8, 9], 17, (0, 0, 1, 1, 1)),  # frames 0 | 1..4 | 5..8 of the second | …
        ([9, 8], 17, (0, 0, 0, 1, 1)),  # frame 8 is the first prompt's now
        ([5, 12], 17, (0, 0, 1, 1, 1)),
        ([40, 41], 81, (0,) * 10 + (1,) * 11),
        # The model makes more than was asked for: the last span has it.
        ([8, 8], 17, (0, 0, 1, 1, 1)),
        ([8, 6], 17, (0, 0, 1, 1, 1)),
        ([1], 1, (0,)),
        # Spans that hold no last frame of a latent frame: one of a neighbour's is theirs.
        ([2, 2, 5], 9, (0, 1, 2)),
        ([5, 2, 2], 9, (0, 1, 2)),
        ([1, 1, 1], 9, (0, 1, 2)),
        ([1, 15, 1], 17, (0, 1, 1, 1, 2)),
        ([13, 2, 2], 17, (0, 0, 0, 1, 2)),
    ],
)
def test_a_latent_frame_is_of_the_prompt_of_its_last_frame_and_every_prompt_has_one(lengths, made, owners):
    assert span_of_latents(lengths, made, 4) == owners


@pytest.mark.parametrize(
    ("lengths", "made", "owners"),
    [
        ([8, 9], 17, (0, 0, 1, 1, 1)),  # not stretched in fact
        # 33 frames for 81: the latent frames end with the asked frames 0, 10, 20, …, 80.
        ([40, 41], 33, (0, 0, 0, 0, 1, 1, 1, 1, 1)),
        ([41, 40], 33, (0, 0, 0, 0, 0, 1, 1, 1, 1)),
        ([27, 27, 27], 33, (0, 0, 0, 1, 1, 1, 2, 2, 2)),
        ([1, 79, 1], 33, (0, 1, 1, 1, 1, 1, 1, 1, 2)),
        # 17 frames for 15, of which two are left out: 0, 3.5, 7, 10.5 and 14; halves count up.
        ([4, 11], 17, (0, 1, 1, 1, 1)),
        ([5, 10], 17, (0, 0, 1, 1, 1)),
        ([11, 4], 17, (0, 0, 0, 1, 1)),
        ([12, 3], 17, (0, 0, 0, 0, 1)),
        ([1], 1, (0,)),
    ],
)
def test_the_spans_of_a_stretched_clip_are_stretched_with_it(lengths, made, owners):
    assert span_of_latents(lengths, made, 4, stretched=True) == owners


def test_more_prompts_than_latent_frames_are_refused_with_what_would_do(wan, ask):
    request = ask(prompts=spans(CAT, DRAGON, RAIN, num_frames=(2, 2, 1)))

    with pytest.raises(InvalidRequest) as refusal:
        wan(TI2V).generate(request)
    assert refusal.value.field == "prompts"
    assert refusal.value.message == (
        "prompts has 3 entries, and this model makes 5 frames as 2 latent frames, each of one prompt; "
        "send at most 2 prompts, or ask for more frames."
    )


def test_the_receipt_says_how_many_latent_frames_each_prompt_got(wan, ask):
    [travelled] = wan(TI2V).videos([ask(prompts=spans(CAT, DRAGON, RAIN, num_frames=(2, 2, 5)))])
    [plain] = wan(TI2V).videos([ask(num_frames=9)])

    assert travelled.made["latent_frames_of_prompts"] == [1, 1, 1]
    assert "latent_frames_of_prompts" not in plain.made


# The attention


def attention(**image):
    """A cross-attention of Wan with random weights."""
    import torch
    from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

    torch.manual_seed(1)
    attn = WanAttention(
        dim=32, heads=2, dim_head=16, cross_attention_dim_head=16, processor=WanAttnProcessor(), **image
    )
    for norm in (attn.norm_q, attn.norm_k):
        torch.nn.init.normal_(norm.weight)
    return attn.eval().requires_grad_(False)


def masked(attn, hidden_states, encoder_hidden_states, owners, pictures):
    """Wan's cross-attention in plain torch, with a mask of every token by every token of text."""
    import torch

    def heads(tensor):
        return tensor.unflatten(2, (2, 16)).transpose(1, 2)  # (B, heads, tokens, 16)

    def attend(query, key, value, mask=None):
        scores = heads(query) @ heads(key).transpose(2, 3) / 16**0.5  # (B, heads, N, tokens)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return (scores.softmax(3) @ heads(value)).transpose(1, 2).flatten(2)

    text = encoder_hidden_states[:, pictures:]
    frame = hidden_states.shape[1] // len(owners)
    of_token = torch.tensor(owners).repeat_interleave(frame)  # (N,)
    of_text = torch.arange(text.shape[1]) // 512  # (spans * 512,)
    query = attn.norm_q(attn.to_q(hidden_states))
    attended = attend(query, attn.norm_k(attn.to_k(text)), attn.to_v(text), of_token[:, None] == of_text[None, :])
    if pictures:
        shown = encoder_hidden_states[:, :pictures]
        attended = attended + attend(query, attn.norm_added_k(attn.add_k_proj(shown)), attn.add_v_proj(shown))
    return attn.to_out[0](attended)


@pytest.mark.parametrize(("latents", "owners"), [((1, 2), [0, 1, 1]), ((3, 1, 2), [0, 0, 0, 1, 2, 2])])
@pytest.mark.parametrize(("image", "pictures"), [({}, 0), ({"added_kv_proj_dim": 32}, 514)])
def test_each_span_attends_to_its_own_text_and_all_attend_to_the_pictures(latents, owners, image, pictures):
    import torch

    attn = attention(**image)
    hidden_states = torch.randn(1, len(owners) * 6, 32)
    encoder_hidden_states = torch.randn(1, pictures + len(latents) * 512, 32)
    attended = SpanAttention(latents)(attn, hidden_states, encoder_hidden_states)

    assert attended.shape == (1, len(owners) * 6, 32)
    expected = masked(attn, hidden_states, encoder_hidden_states, owners, pictures)
    assert (attended - expected).abs().max() < 1e-5
    assert (attended - masked(attn, hidden_states, encoder_hidden_states, owners[::-1], pictures)).abs().max() > 0.01


@pytest.mark.parametrize(("image", "pictures"), [({}, 0), ({"added_kv_proj_dim": 32}, 257)])
def test_spans_of_one_text_attend_as_diffusers_own_attention_does_without_spans(image, pictures):
    import torch

    attn = attention(**image)
    hidden_states, shown, text = torch.randn(1, 30, 32), torch.randn(1, pictures, 32), torch.randn(1, 512, 32)
    attended = SpanAttention((2, 3))(attn, hidden_states, torch.cat([shown, text, text], dim=1))

    assert (attended - attn(hidden_states, torch.cat([shown, text], dim=1))).abs().max() < 1e-6


# The video


@pytest.mark.parametrize("name", EVERY)
def test_two_spans_of_one_prompt_give_the_bytes_of_one(wan, ask, name):
    plain = wan(name).generate(ask(CAT, num_frames=9))

    def watch(_progress):  # on a GPU slices may round otherwise, so diffusers' own attention runs
        assert not any(isinstance(attention.processor, SpanAttention) for attention in attentions(wan(name)))

    assert np.array_equal(wan(name).generate(ask(prompts=spans(CAT, CAT)), watch), plain)
    assert not np.array_equal(wan(name).generate(ask(prompts=spans(CAT, DRAGON))), plain)


@pytest.mark.parametrize("name", EVERY)
def test_spans_whose_text_encoder_says_the_same_give_the_video_of_one(wan, ask, name):
    """The tokenizer cleans spaces away, so these texts differ and their embeddings do not: nothing is joined here."""
    plain = wan(name).generate(ask(CAT, num_frames=9))
    [travelled] = wan(name).videos([ask(prompts=spans(CAT, f" {CAT} "))])

    assert np.abs(travelled.frames.astype(int) - plain).max() <= 1
    assert (travelled.frames != plain).mean() < 0.001


@pytest.mark.parametrize("name", EVERY)
def test_another_prompt_for_a_span_reaches_its_tokens_alone_in_every_transformer(wan, ask, name):
    loaded = wan(name)
    # Of two transformers the first steps are the one's, and the last the other's.
    firsts = [attentions(loaded)[0], attentions(loaded)[len(attentions(loaded)) // 2]]
    with outputs(*firsts) as one:
        loaded.generate(ask(prompts=spans(CAT, DRAGON), guidance_scale=1.0, num_inference_steps=4))
    with outputs(*firsts) as other:
        loaded.generate(ask(prompts=spans(CAT, RAIN), guidance_scale=1.0, num_inference_steps=4))

    assert all(one)
    before, after = one[0][0], other[0][0]  # of the first block in the first step, where the latents are equal
    first_span = before.shape[1] // 3  # tokens of one of three latent frames
    assert (before[:, :first_span] == after[:, :first_span]).all()
    assert (before[:, first_span:] - after[:, first_span:]).abs().amax(2).min() > 0
    assert all((a[:, first_span:] - b[:, first_span:]).abs().max() > 0 for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("name", [TI2V, T2V21])
def test_frames_change_most_where_their_prompt_changed(wan, ask, name):
    """Self-attention carries a little of it into the other frames, as it should."""

    def latents(*prompts):
        seen = []
        handle = wan(name).pipeline.vae.decoder.register_forward_pre_hook(
            lambda _module, inputs: seen.append(inputs[0].numpy())
        )
        try:
            wan(name).generate(ask(prompts=spans(*prompts, num_frames=(9, 8))))
        finally:
            handle.remove()
        return np.concatenate(seen, axis=2)  # (1, C, 5, h, w)

    before = latents(CAT, DRAGON)
    last, first = (np.abs(latents(*prompts) - before).mean((0, 1, 3, 4)) for prompts in ((CAT, RAIN), (RAIN, DRAGON)))

    assert last[3:].min() > 2 * last[:3].max()
    assert first[:3].min() > 2 * first[3:].max()


def test_the_negative_prompt_is_the_same_for_every_span(wan, ask):
    loaded = wan(T2V22)
    seen = []
    handles = [
        transformer.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        for transformer in (loaded.pipeline.transformer, loaded.pipeline.transformer_2)
    ]
    try:
        loaded.generate(ask(prompts=spans(CAT, DRAGON), negative_prompt="blurry", num_inference_steps=4))
    finally:
        for handle in handles:
            handle.remove()

    assert {tuple(text.shape[:2]) for text in seen} == {(1, 1024)}
    for prompt, negative in zip(seen[::2], seen[1::2], strict=True):
        assert not (prompt[:, :512] == prompt[:, 512:]).all()
        assert (negative[:, :512] == negative[:, 512:]).all()
    other = ask(prompts=spans(CAT, DRAGON), negative_prompt="dark", num_inference_steps=4)
    assert not np.array_equal(loaded.generate(other), loaded.generate(replace(other, negative_prompt="blurry")))


@pytest.mark.parametrize("name", [TI2V, I2V21])
def test_a_picture_and_several_prompts_both_count(wan, ask, name):
    request = with_pictures(ask(prompts=spans(CAT, DRAGON)), 0)
    frames = wan(name).generate(request)
    other_prompt = replace(request, request=replace(request.request, prompts=spans(CAT, RAIN)))
    other_picture = replace(request, images=(255 - request.images[0],))

    assert not np.array_equal(wan(name).generate(other_prompt), frames)
    assert not np.array_equal(wan(name).generate(other_picture), frames)


def test_with_a_picture_for_the_last_frame_the_spans_are_of_the_frames_that_are_delivered(wan, ask):
    """15 of 17 frames: the latent frames end with frames 0, 3.5, 7, 10.5 and 14 of the file."""
    request = with_pictures(ask(prompts=spans(CAT, DRAGON, num_frames=(12, 3))), 0, -1)
    [video] = wan(I2V22).videos([request])
    [cut] = wan(I2V22).videos([with_pictures(request.request, 0)])

    assert video.made["latent_frames_of_prompts"] == [4, 1]
    assert cut.made["latent_frames_of_prompts"] == [3, 2]


@pytest.mark.parametrize("name", [TI2V, T2V22])
def test_the_second_pass_follows_the_prompts_too(wan, ask, name):
    loaded, upscale = wan(name), Upscale(96, 96, 0.5, 1.0, 4)
    request = ask(prompts=spans(CAT, DRAGON), guidance_scale=1.0, upscale=upscale)
    with outputs(*attentions(loaded)) as seen:
        [video] = loaded.videos([request])

    assert video.frames.shape == (9, 96, 96, 3)
    assert (video.made["passes"], video.made["latent_frames_of_prompts"]) == (2, [1, 2])
    tokens = {output.shape[1] for own in seen for output in own}
    assert tokens == ({3 * 2 * 2, 3 * 3 * 3} if name == TI2V else {3 * 4 * 4, 3 * 6 * 6})


def test_a_lora_changes_a_video_of_several_prompts_and_then_is_gone(wan, ask, tiny_root):
    style = AdapterFile("style", build("lora-wan", tiny_root))
    request = PreparedRequest(ask(prompts=spans(CAT, DRAGON)))
    before = wan(TI2V).generate(request)

    assert not np.array_equal(wan(TI2V).generate(replace(request, loras=(style,))), before)
    assert np.array_equal(wan(TI2V).generate(request), before)


def test_requests_of_one_prompt_beside_one_of_several_give_what_they_give_alone(wan, ask):
    requests = [ask(CAT, num_frames=9), ask(prompts=spans(CAT, DRAGON)), ask(CAT, num_frames=9, seed=2)]
    alone = [wan(TI2V).generate(request) for request in requests]
    together = wan(TI2V).videos(requests)

    assert all(np.array_equal(video.frames, frames) for video, frames in zip(together, alone, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", [TI2V, I2V21])
def test_half_precision_runs_with_several_prompts(wan, ask, name, dtype):
    half = load_tiny(name, wan(name).folder, dtype=dtype)

    assert half.generate(ask(prompts=spans(CAT, DRAGON))).shape == (9, 64, 64, 3)


@pytest.mark.parametrize("mode", ["cpu_offload", "group_offload"])
def test_offloaded_it_gives_the_same_bytes(wan, ask, mode):
    loaded = wan(TI2V)
    model = loaded.family.load(loaded.model.checkpoint, device="cpu", dtype="float32", placement=Placement(mode=mode))
    request = ask(prompts=spans(CAT, DRAGON))

    assert np.array_equal(Loaded(TI2V, loaded.folder, model).generate(request), loaded.generate(request))


def test_the_attention_backend_of_the_entry_is_used_for_every_span(wan, ask):
    loaded = load_tiny(TI2V, wan(TI2V).folder, attention="_native_math")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        from diffusers.models import attention_dispatch

        dispatch = attention_dispatch.dispatch_attention_fn
        patch.setattr(
            attention_dispatch,
            "dispatch_attention_fn",
            lambda *args, backend, **kwargs: seen.append(backend) or dispatch(*args, backend=backend, **kwargs),
        )
        loaded.generate(ask(prompts=spans(CAT, DRAGON), guidance_scale=1.0))

    # 2 steps x 2 blocks x 2 spans; self-attention has its own name for the function.
    assert seen == ["_native_math"] * 8


def test_the_step_cache_goes_on_over_spans_and_nothing_stays_in_it(wan, ask):
    # A threshold over everything: the blocks behind the first one run once per guidance branch.
    cached = load_tiny(TI2V, wan(TI2V).folder, step_cache=100.0)
    plain = cached.generate(ask(num_frames=9))
    with outputs(attentions(cached)[1]) as [seen]:
        cached.generate(ask(prompts=spans(CAT, DRAGON), num_inference_steps=4))

    assert len(seen) == 2
    assert np.array_equal(cached.generate(ask(num_frames=9)), plain)


# What stays


def test_after_a_cancelled_a_failed_and_a_finished_run_everything_is_the_pipelines_own(wan, ask, monkeypatch):
    loaded, request = wan(T2V22), ask(prompts=spans(CAT, DRAGON), num_inference_steps=4)
    own = [attention.processor for attention in attentions(loaded)]
    plain = loaded.generate(ask())

    def assert_own():
        assert all(attn.processor is processor for attn, processor in zip(attentions(loaded), own, strict=True))
        assert "encode_prompt" not in vars(loaded.pipeline)
        assert np.array_equal(loaded.generate(ask()), plain)

    def cancel(progress):
        if progress.step == 3:
            assert all(isinstance(attn.processor, SpanAttention) for attn in attentions(loaded))
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        loaded.generate(request, cancel)
    assert_own()

    def fail(*_args, **_kwargs):
        raise RuntimeError("the decoder broke")

    with monkeypatch.context() as patch:
        patch.setattr(loaded.pipeline.vae, "decode", fail)
        with pytest.raises(GenerationFailed):
            loaded.generate(request)
    assert_own()

    loaded.generate(request)
    assert_own()
