"""Pictures of videos while they are denoised: of the right place, of what a step promises, and for nothing unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import models._previews
from models import Progress
from models._latent_rgb import COLOURS
from models._previews import Preview, _Grid
from polyreel.request import Upscale
from tests.models.conftest import Loaded, small_request, with_pictures

#: Sides of the latents of a video of 64 x 96 px: Wan's VAE takes 8 px together, TI2V's 16, LTX's 32.
LATENTS = {
    "wan-ti2v": (4, 6),
    **dict.fromkeys(("wan21", "wan22-t2v", "wan21-i2v", "wan22-i2v", "animatediff"), (8, 12)),
    **dict.fromkeys(("ltx", "ltx-091", "ltx-condition", "ltx2", "ltx23"), (2, 3)),
}

Shown = list[dict[int, np.ndarray]]


@pytest.fixture(autouse=True)
def colours_of_tiny_ltx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The VAEs of tiny LTX checkpoints have 16 channels, of which nobody knows the colours: here they have Wan's."""
    for vae in ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video"):
        monkeypatch.setitem(COLOURS, (vae, 16), COLOURS["AutoencoderKLWan", 16])
    models._previews._colours.cache_clear()
    yield
    models._previews._colours.cache_clear()


def shown(loaded: Loaded, *requests: Any) -> Shown:
    """Generate in one call, asking for pictures at each progress; return those of the steps."""
    pictures: Shown = []

    def ask(progress: Progress) -> None:
        pictures.append(progress.pictures())

    loaded.videos(list(requests), ask)
    return [one for one in pictures if one]


def test_each_step_shows_a_picture_in_the_videos_proportions(loaded: Loaded) -> None:
    pictures = [one[0] for one in shown(loaded, small_request(width=96, num_inference_steps=3))]
    assert len(pictures) == 3
    assert {(picture.shape, picture.dtype) for picture in pictures} == {((*LATENTS[loaded.name], 3), np.dtype("uint8"))}


def test_frames_are_the_same_whether_anybody_looks_or_not(loaded: Loaded) -> None:
    request = small_request()
    unseen = loaded.generate(request)
    seen = loaded.generate(request, lambda progress: progress.pictures() and None)
    assert np.array_equal(seen, unseen)


def test_a_picture_that_nobody_asks_for_is_not_computed(
    load_once: Callable[[str], Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    end = Preview._end
    monkeypatch.setattr(Preview, "_end", lambda preview, step: computed.append(step) or end(preview, step))
    loaded, steps = load_once("wan21"), []
    loaded.generate(small_request(), lambda progress: steps.append(progress.step))
    assert (max(steps), computed) == (2, [])
    shown(loaded, small_request())
    assert len(computed) == 2


def promises(loaded: Loaded, request: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what each step promises of the end, and the latents after it."""
    seen = []

    def look(preview: Preview) -> list[np.ndarray]:
        step = preview._step
        assert step is not None
        seen.append((preview._end(step).float().numpy(), preview._middle(step.stepped[0]).float().numpy()))
        return []

    monkeypatch.setattr(Preview, "pictures", look)
    loaded.generate(request, lambda progress: progress.pictures() and None)
    return seen


def assert_what_was_promised_comes(seen: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """The last step takes all noise away, so what it promises is what it leaves; the first step leaves most of it."""
    [(first, noisy), *_, (last, clean)] = seen
    assert np.allclose(last, clean, rtol=1e-3, atol=1e-3)
    assert not np.allclose(first, noisy, rtol=0.1, atol=0.1)
    assert not np.allclose(first, last, rtol=1e-3, atol=1e-3)


def test_the_last_step_shows_what_will_be_decoded(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_what_was_promised_comes(promises(loaded, small_request(num_inference_steps=4), monkeypatch))


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("wan-ti2v", (0,)),
        ("ltx-condition", (0, 8)),
        ("ltx2", (0, 8)),
        pytest.param("ltx-091", (0,), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_tokens_of_pictures_are_not_taken_for_the_videos(
    name: str, frames: tuple[int, ...], load_once: Callable[[str], Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = with_pictures(small_request(num_frames=9, num_inference_steps=4), *frames)
    assert_what_was_promised_comes(promises(load_once(name), request, monkeypatch))


def test_every_request_of_a_batch_has_its_own_picture(load_once: Callable[[str], Loaded]) -> None:
    loaded, requests = load_once("wan21"), [small_request(seed=seed) for seed in (1, 2)]
    together = shown(loaded, *requests)[-1]
    alone = [shown(loaded, request)[-1][0] for request in requests]
    assert sorted(together) == [0, 1]
    assert not np.array_equal(together[0], together[1])
    for number, picture in enumerate(alone):
        assert np.abs(together[number].astype(int) - picture).max() <= 1


def test_requests_that_run_one_after_the_other_are_told_apart(load_once: Callable[[str], Loaded]) -> None:
    pictures = shown(load_once("wan21"), small_request(), small_request(num_inference_steps=3))
    assert [list(one) for one in pictures] == [[0], [0], [1], [1], [1]]


@pytest.mark.parametrize(("name", "sides"), [("wan21", (12, 12)), ("ltx", (3, 3)), ("animatediff", (12, 12))])
def test_a_second_pass_is_shown_too(name: str, sides: tuple[int, int], load_once: Callable[[str], Loaded]) -> None:
    upscale = Upscale(height=96, width=96, strength=0.5, num_inference_steps=4, guidance_scale=4.0)
    pictures = shown(load_once(name), small_request(upscale=upscale))
    assert [one[0].shape[:2] for one in pictures] == [LATENTS[name][:1] * 2] * 2 + [sides] * 2


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_latents_of_which_nobody_knows_the_colours_are_not_shown(
    name: str, load_once: Callable[[str], Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_once(name)
    monkeypatch.delitem(COLOURS, (type(loaded.pipeline.vae).__name__, 16))
    assert shown(loaded, small_request()) == []


class Promising:
    """A scheduler that returns what it takes for the end, as DDIM does."""

    config: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, end: Any) -> None:
        self._end = end

    def step(self, _model_output: Any, _timestep: Any, sample: Any) -> tuple[Any, Any]:
        return sample, self._end


def picture_of(end: Any, vae: str = "AutoencoderKLWan") -> np.ndarray:
    """Return the picture of latents, a tensor of (C, F, H, W)."""
    scheduler = Promising(end[None])
    preview = Preview(SimpleNamespace(vae=type(vae, (), {})()), {})
    assert preview.pictures() == []
    preview.watch(scheduler)
    scheduler.step(None, None, None)
    [picture] = preview.pictures()
    return picture


def test_colours_are_the_published_ones() -> None:
    import torch

    latents = torch.zeros(16, 1, 2, 2)
    latents[6, 0, 0, 1] = 1  # Wan 2.1: -0.3477, -0.4059, -0.2925; added to all: -0.1835, -0.0868, -0.3360
    assert picture_of(latents).tolist() == [[[104, 116, 85], [60, 65, 47]], [[104, 116, 85], [104, 116, 85]]]
    latents = torch.zeros(4, 1, 1, 1)
    latents[3] = -1  # SD 1.5: -0.2120, -0.2616, -0.7177
    assert picture_of(latents, "AutoencoderKL").tolist() == [[[155, 161, 219]]]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own schedulers
@pytest.mark.parametrize(
    ("name", "settings", "noise"),
    [
        (
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0},
            "flow",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "flow"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "flow"),
        ("FlowMatchLCMScheduler", {}, "flow"),
        ("UniPCMultistepScheduler", {}, "mixed"),
        ("DPMSolverMultistepScheduler", {}, "mixed"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "mixed"),
        ("DDIMScheduler", {"clip_sample": False}, "mixed"),
        ("EulerDiscreteScheduler", {}, "added"),
        ("EulerAncestralDiscreteScheduler", {}, "added"),
    ],
)
def test_a_denoiser_that_knows_the_end_shows_it_at_every_step(name: str, settings: dict[str, Any], noise: str) -> None:
    import diffusers
    import torch

    torch.manual_seed(1)
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(6)
    end = torch.randn(1, 4, 3, 2, 2)
    sample = torch.randn(end.shape) * scheduler.init_noise_sigma if noise == "added" else torch.randn(end.shape)
    preview = Preview(SimpleNamespace(vae=None), {})
    preview.watch(scheduler)
    for number, timestep in enumerate(scheduler.timesteps):
        if noise == "mixed":  # the end times the root of alpha, and noise
            alpha = scheduler.alphas_cumprod[int(timestep)]
            output = (sample - alpha**0.5 * end) / (1 - alpha) ** 0.5
        else:  # the velocity, or the noise that was added
            output = (sample - end) / scheduler.sigmas[number]
        if noise == "added":
            scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        assert preview._step is not None
        assert torch.allclose(preview._end(preview._step), end[:, :, 1].movedim(1, -1), rtol=1e-3, atol=2e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["PNDMScheduler", "DEISMultistepScheduler"])
def test_a_scheduler_that_does_not_say_what_it_expects_shows_its_latents(name: str) -> None:
    import diffusers
    import torch

    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(6)
    preview = Preview(SimpleNamespace(vae=None), {})
    preview.watch(scheduler)
    after = scheduler.step(torch.ones(1, 4, 3, 2, 2), scheduler.timesteps[0], torch.randn(1, 4, 3, 2, 2))[0]
    assert preview._step is not None
    assert torch.equal(preview._end(preview._step), after[:, :, 1].movedim(1, -1))


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (2, 1), (16, 8), (21, 10)])
def test_the_middle_frame_is_shown(frames: int, middle: int) -> None:
    import torch

    latents = torch.zeros(4, frames, 1, 1)
    latents[3, middle] = -1
    assert picture_of(latents, "AutoencoderKL").tolist() == [[[155, 161, 219]]]


@pytest.mark.parametrize(
    ("further_tokens", "is_last", "middle"), [(0, False, (6, 12)), (6, False, (6, 12)), (6, True, (12, 18))]
)
def test_the_middle_frame_is_found_among_tokens(further_tokens: int, is_last: bool, middle: tuple[int, int]) -> None:
    grid = _Grid(frames=3, height=2, width=3, is_last=is_last)
    assert grid.middle(18 + further_tokens) == slice(*middle)


@pytest.mark.parametrize(
    ("latents", "sides"),
    [((60, 104), (60, 104)), ((90, 160), (90, 160)), ((136, 240), (91, 160)), ((2, 400), (1, 160))],
)
def test_no_side_is_longer_than_160_px(latents: tuple[int, int], sides: tuple[int, int]) -> None:
    import torch

    assert picture_of(torch.zeros(16, 1, *latents)).shape == (*sides, 3)


def test_latents_beyond_all_colours_and_nan_are_shown_as_far_as_it_goes() -> None:
    import torch

    latents = torch.zeros(4, 1, 1, 3)
    latents[0, 0, 0] = torch.tensor([1e6, -1e6, float("nan")])
    assert picture_of(latents, "AutoencoderKL").tolist() == [[[255, 255, 255], [0, 0, 0], [128, 128, 128]]]


def test_every_published_vae_that_is_served_has_colours() -> None:
    assert sorted(COLOURS) == [
        ("AutoencoderKL", 4),
        ("AutoencoderKLLTX2Video", 16),  # the fixture's
        ("AutoencoderKLLTX2Video", 128),
        ("AutoencoderKLLTXVideo", 16),
        ("AutoencoderKLLTXVideo", 128),
        ("AutoencoderKLWan", 14),  # the demonstration model's
        ("AutoencoderKLWan", 16),
        ("AutoencoderKLWan", 48),
    ]
    for (_, channels), colours in COLOURS.items():
        assert (colours.matrix.shape, colours.bias.shape) in [((channels, 3), (3,)), ((16, 3), (3,))]
