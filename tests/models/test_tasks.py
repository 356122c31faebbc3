"""The laws of every task, on every tiny checkpoint that can do it: exactness, seed, progress, cancel, no trace.

`TASKS_OF` says which checkpoint does what; a family that offers a task is under these laws without being named here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import AdapterFile, Checkpoint, PreparedRequest, Progress, Video, families
from models._pictures import enlarge, frames_of
from models.tiny import TINY, build
from polyreel.errors import Cancelled
from polyreel.request import AdapterUse, PromptSpan, Upscale, VideoRequest
from tests.models.conftest import FAMILY_OF, FIRST, TASKS_OF, Loaded, on_all, picture, small_request, with_pictures

Ask = Callable[..., VideoRequest]
Make = Callable[[Ask, Path], PreparedRequest]

#: The word that calls the tiny textual inversion.
TOKEN = "polyreelstyle"


def _embedding(ask: Ask, root: Path) -> PreparedRequest:
    file = AdapterFile("style", build("embedding-animatediff", root), token=TOKEN)
    request = ask(f"a cat, {TOKEN}", embeddings=("style",))
    return PreparedRequest(request, embeddings=(file,))


#: task: a small request for it
REQUESTS: dict[str, Make] = {
    "t2v": lambda ask, root: PreparedRequest(ask()),
    "i2v": lambda ask, root: with_pictures(ask(), 0),
    "first_last": lambda ask, root: with_pictures(ask(), 0, -1),
    "keyframes": lambda ask, root: with_pictures(ask(num_frames=17), 0, 8, 16),
    "prompt_travel": lambda ask, root: PreparedRequest(
        ask(prompts=(PromptSpan("a cat", 8), PromptSpan("a red dragon over paris", 9)))
    ),
    "closed_loop": lambda ask, root: PreparedRequest(ask(num_frames=16, closed_loop=True)),
    "upscale": lambda ask, root: PreparedRequest(ask(upscale=Upscale(96, 112, 0.5, 3.0, 4))),
    "embeddings": _embedding,
    "improved_sampling": lambda ask, root: PreparedRequest(ask(improved_sampling_seed=42)),
}

#: task: denoising steps of its small request, over all passes
STEPS = {"upscale": 2 + 2, "improved_sampling": 3 * 2}

#: checkpoint: the tiny LoRA that fits it
LORAS = {
    **dict.fromkeys(("wan-ti2v", "wan21", "wan22-t2v", "wan21-i2v", "wan22-i2v"), "lora-wan"),
    **dict.fromkeys(("ltx", "ltx-091", "ltx-condition"), "lora-ltx"),
    **dict.fromkeys(("ltx2", "ltx23"), "lora-ltx2"),
    "animatediff": "lora-animatediff",
}


@dataclass
class Case:
    """One task on one loaded checkpoint, which all its laws share: what one leaves behind, the next one sees."""

    task: str
    loaded: Loaded
    make: Callable[[], PreparedRequest]
    plain_request: VideoRequest

    @property
    def total_steps(self) -> int:
        """Denoising steps of the small request, over all passes."""
        return STEPS.get(self.task, 2)

    @cached_property
    def first(self) -> Video:
        """The small request's video, made once."""
        [video] = self.loaded.videos([self.make()])
        return video

    @property
    def plain(self) -> np.ndarray:
        """What the checkpoint makes of the plain request when nothing has run before; made once per checkpoint."""
        if self.loaded.name not in _PLAIN:
            _PLAIN[self.loaded.name] = self.loaded.generate(self.plain_request)
        return _PLAIN[self.loaded.name]

    def assert_no_trace(self) -> None:
        """Assert that the plain request still gives the same bytes."""
        assert np.array_equal(self.loaded.generate(self.plain_request), self.plain)

    def ask(self, **fields: Any) -> PreparedRequest:
        """Return the task's small request, but for the given fields."""
        return but(self.make(), **fields)

    def latents(self, prepared: PreparedRequest) -> np.ndarray:
        """Return what a request gives the VAE to decode, (latent frames, C, h, w): tiny models move pixels little."""
        seen: list[np.ndarray] = []

        def see(_module: Any, inputs: tuple[Any, ...]) -> None:
            sample = inputs[0].float().numpy()
            # Videos are (1, C, F, h, w), and come in one piece or by latent frame; single images are (F, C, h, w).
            seen.append((np.moveaxis(sample[0], 1, 0) if sample.ndim == 5 else sample).copy())

        handle = self.loaded.pipeline.vae.decoder.register_forward_pre_hook(see)
        try:
            self.loaded.generate(prepared)
        finally:
            handle.remove()
        return np.concatenate(seen)


_LOADED: dict[str, Loaded] = {}
_PLAIN: dict[str, np.ndarray] = {}


@pytest.fixture(
    scope="module",
    params=on_all(((name, task) for name in TINY for task in sorted(TASKS_OF.get(name, ()))), lambda case: case[0]),
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def case(request: pytest.FixtureRequest, load: Callable[[str], Loaded], tiny_root: Path) -> Case:
    """Each task on each checkpoint; a checkpoint is loaded once."""
    name, task = request.param
    if name not in _LOADED:
        _LOADED[name] = load(name)
    loaded = _LOADED[name]

    def make() -> PreparedRequest:
        prepared = REQUESTS[task](small_request, tiny_root)
        # A checkpoint that starts from a picture does every task with one.
        return loaded.prepared(prepared.request) if task in ("upscale", "prompt_travel") else prepared

    made = Case(task, loaded, make, small_request())
    assert made.plain is not None  # before anything else has run on this checkpoint
    return made


def test_every_tiny_checkpoint_is_under_these_laws():
    assert set(TASKS_OF) == set(TINY)


def test_every_change_is_tried_on_each_task_and_each_pipeline_of_every_family(tiny_root):
    def covered(names):
        tasks = {(FAMILY_OF[name], task) for name in names for task in TASKS_OF[name]}
        return tasks | {
            json.loads((build(name, tiny_root) / "model_index.json").read_text())["_class_name"] for name in names
        }

    assert covered(FIRST) == covered(TINY)


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_checkpoint_says_what_it_can_do(name, tiny_root):
    tasks = families()[FAMILY_OF[name]].check(Checkpoint(build(name, tiny_root), name=f"tiny:{name}"))

    assert tasks == TASKS_OF[name]


def test_frames_are_exactly_as_many_and_as_large_as_asked(case):
    if case.task == "upscale":
        asked = case.ask(upscale=Upscale(100, 90, 0.5, 3.0, 4))
        assert case.loaded.generate(asked).shape == (5, 100, 90, 3)
    else:
        asked = case.ask(height=70, width=90)
        assert case.loaded.generate(asked).shape == (asked.request.num_frames, 70, 90, 3)


def test_the_same_seed_gives_the_same_video_told_step_by_step_and_another_seed_another(case):
    seen = []
    [again] = case.loaded.videos([case.make()], seen.append)
    other = case.loaded.generate(case.ask(seed=2))

    assert np.array_equal(again.frames, case.first.frames)
    assert again.made == case.first.made
    assert json.loads(json.dumps(again.made)) == again.made
    assert np.abs(again.frames.astype(int) - other).mean() > 0.3
    # Every step of every pass is counted once, and nothing goes back.
    steps = [progress.step for progress in seen if progress.step]
    assert list(dict.fromkeys(steps)) == list(range(1, case.total_steps + 1))
    assert {progress.total_steps for progress in seen} == {case.total_steps}
    shares = [progress.share for progress in seen]
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert 0.9 <= shares[-1] <= 1
    stages = [progress.stage for progress in seen]
    assert stages[-1] == "decoding"
    if case.task not in STEPS:  # one pass
        assert sorted(stages, key=["text_encoding", "denoising", "decoding"].index) == stages


def but(prepared: PreparedRequest, **fields: Any) -> PreparedRequest:
    """Return a request but for the given fields."""
    return replace(prepared, request=replace(prepared.request, **fields))


def assert_each_picture_counts(case: Case) -> None:
    """Another picture for a frame gives other latents where that frame is; none at all gives another video."""
    asked = case.make()
    frames, latents = frames_of(asked.request), case.latents(asked)
    for number, frame in enumerate(frames):
        pictures = [*asked.images]
        pictures[number] = picture(seed=99)
        changed = case.latents(replace(asked, images=tuple(pictures)))
        here = round(frame / (asked.request.num_frames - 1) * (len(latents) - 1))
        assert not np.array_equal(changed[here], latents[here]), f"the picture for frame {frame} is not looked at"
    if "t2v" in TASKS_OF[case.loaded.name]:
        assert not np.array_equal(case.first.frames, case.loaded.generate(but(replace(asked, images=()), images=())))


def assert_it_is_denoised_again_and_not_only_enlarged(case: Case) -> None:
    enlarged = enlarge(case.plain, 96, 112)
    upscale = case.make().request.upscale
    assert upscale is not None
    kept = case.loaded.generate(case.ask(upscale=replace(upscale, strength=0.0)))

    assert np.abs(kept.astype(int) - enlarged).max() <= 1
    assert np.abs(case.first.frames.astype(int) - enlarged).mean() > 1


def differs_from(*others: Callable[[PreparedRequest], PreparedRequest]) -> Callable[[Case], None]:
    """Return an assertion that each of these requests gives another video than the task's, frame for frame."""

    def assert_all_differ(case: Case) -> None:
        for other in others:
            frames = case.loaded.generate(other(case.make()))
            assert frames.shape == case.first.frames.shape
            assert not np.array_equal(frames, case.first.frames)

    return assert_all_differ


def travel_to(*prompts: str) -> Callable[[PreparedRequest], PreparedRequest]:
    """Return the change of a request with two spans of frames to these prompts."""

    def change(prepared: PreparedRequest) -> PreparedRequest:
        spans = prepared.request.prompts
        return but(
            prepared, prompts=tuple(replace(span, prompt=prompt) for span, prompt in zip(spans, prompts, strict=True))
        )

    return change


#: task: what shows that it was done
EFFECTS: dict[str, Callable[[Case], None]] = {
    "t2v": differs_from(travel_to("a red dragon over paris")),
    "i2v": assert_each_picture_counts,
    "first_last": assert_each_picture_counts,
    "keyframes": assert_each_picture_counts,
    "prompt_travel": differs_from(travel_to("a cat", "a cat"), travel_to("a cat", "rain on the street")),
    "closed_loop": differs_from(lambda prepared: but(prepared, closed_loop=False)),
    "upscale": assert_it_is_denoised_again_and_not_only_enlarged,
    "embeddings": differs_from(lambda prepared: but(replace(prepared, embeddings=()), embeddings=())),
    "improved_sampling": differs_from(
        lambda prepared: but(prepared, improved_sampling_seed=None),
        lambda prepared: but(prepared, improved_sampling_seed=43),
    ),
}


def test_the_task_has_an_effect_and_leaves_no_trace(case):
    assert case.first.frames.dtype == np.uint8
    EFFECTS[case.task](case)
    case.assert_no_trace()


def test_a_cancelled_run_ends_within_one_step_and_leaves_no_trace(case):
    last = case.total_steps
    moments: dict[str, tuple[int, Callable[[Progress], bool]]] = {
        "in the first step": (1, lambda progress: progress.step == 1),
        "in the last step": (last, lambda progress: progress.step == last),
        "while decoding": (last, lambda progress: progress.step == last and progress.stage == "decoding"),
    }
    for moment, (step, has_come) in moments.items():
        seen = []

        def cancel(progress, seen=seen, has_come=has_come):
            seen.append(progress)
            if has_come(progress):
                raise Cancelled("stop")

        with pytest.raises(Cancelled):
            case.loaded.generate(case.make(), cancel)
        assert seen[-1].step == step, moment
    case.assert_no_trace()


def test_a_lora_changes_the_video_and_then_is_gone(case, tiny_root):
    file = AdapterFile("style", build(LORAS[case.loaded.name], tiny_root))

    styled = case.loaded.generate(replace(case.ask(loras=(AdapterUse("style", 1.0),)), loras=(file,)))

    assert not np.array_equal(styled, case.first.frames)
    assert np.array_equal(case.loaded.generate(case.make()), case.first.frames)


def test_without_guidance_the_denoiser_runs_once_a_step(case):
    calls = []
    modules = [getattr(case.loaded.pipeline, name, None) for name in ("transformer", "transformer_2", "unet")]
    handles = [module.register_forward_pre_hook(lambda *_: calls.append(1)) for module in modules if module is not None]
    asked = case.ask(guidance_scale=1.0)
    if asked.request.upscale:
        asked = case.ask(guidance_scale=1.0, upscale=replace(asked.request.upscale, guidance_scale=1.0))
    try:
        case.loaded.generate(asked)
    finally:
        for handle in handles:
            handle.remove()

    assert len(calls) == case.total_steps
