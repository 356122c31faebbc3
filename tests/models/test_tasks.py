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
from models.tiny import TINY, build
from polyreel.errors import Cancelled
from polyreel.request import AdapterUse, PromptSpan, Upscale, VideoRequest
from tests.models.conftest import FAMILY_OF, TASKS_OF, Loaded, small_request, with_pictures

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
    "wan-ti2v": "lora-wan",
    "wan21": "lora-wan",
    "wan22-t2v": "lora-wan",
    "ltx": "lora-ltx",
    "ltx-091": "lora-ltx",
    "ltx-condition": "lora-ltx",
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
        prepared = self.make()
        return replace(prepared, request=replace(prepared.request, **fields))


_LOADED: dict[str, Loaded] = {}
_PLAIN: dict[str, np.ndarray] = {}


@pytest.fixture(
    scope="module",
    params=[(name, task) for name in TINY for task in sorted(TASKS_OF.get(name, ()))],
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
        return loaded.prepared(prepared.request) if task == "upscale" else prepared

    made = Case(task, loaded, make, small_request())
    assert made.plain is not None  # before anything else has run on this checkpoint
    return made


def test_every_tiny_checkpoint_is_under_these_laws():
    assert set(TASKS_OF) == set(TINY)


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
    assert 0.9 <= shares[-1] <= 1
    assert seen[-1].stage == "decoding"


def test_the_task_has_an_effect_and_leaves_no_trace(case):
    assert case.first.frames.dtype == np.uint8
    if case.task != "t2v" and case.first.frames.shape == case.plain.shape and "t2v" in TASKS_OF[case.loaded.name]:
        assert not np.array_equal(case.first.frames, case.plain)
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
    if case.loaded.name not in LORAS:
        pytest.skip("no tiny LoRA was made for this layout")
    file = AdapterFile("style", build(LORAS[case.loaded.name], tiny_root))

    styled = case.loaded.generate(replace(case.ask(loras=(AdapterUse("style", 1.0),)), loras=(file,)))

    assert not np.array_equal(styled, case.first.frames)
    assert np.array_equal(case.loaded.generate(case.make()), case.first.frames)
    case.assert_no_trace()


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
