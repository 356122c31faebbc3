"""The law of resuming: a run that is interrupted after any step and resumed in a fresh model gives the same bytes.

Interrupted jobs run on one model and resumed ones on another that was loaded anew; the uninterrupted video is made on
the first. What one test leaves behind, the next one sees: the bytes would tell.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from models import AdapterFile, PreparedRequest, Progress, Video
from models._identity import _versions
from models.tiny import TINY, build
from polyreel.errors import Cancelled, GenerationFailed
from polyreel.request import ImageCondition, PromptSpan, Upscale
from tests.models.conftest import TASKS_OF, Loaded, load_tiny, picture, small_request, unwatched, with_pictures

#: Denoising steps of the first pass, and of the second one of an upscaled request.
STEPS, SECOND_STEPS = 5, 3
UPSCALE = Upscale(96, 112, 0.75, 3.0, 4)

#: (checkpoint, scheduler class): each checkpoint with its own scheduler, AnimateDiff with all that it is known for.
SCHEDULERS = [
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
LAYOUTS = [*((name, "") for name in TINY), *(("animatediff", scheduler) for scheduler in SCHEDULERS)]


@dataclass
class Kept:
    """Snapshots in memory: what an earlier attempt left, and by step what this one saves."""

    every: int = 1
    state: bytes | None = None
    saved: dict[int, bytes] = field(default_factory=dict)

    def save(self, state: bytes, step: int) -> None:
        self.saved[step] = state

    @property
    def last(self) -> bytes:
        """The newest."""
        return self.saved[max(self.saved)]


@dataclass
class Pair:
    """A checkpoint loaded twice: jobs are interrupted on one and resumed on the other."""

    first: Loaded
    fresh: Loaded
    _whole: dict[str, Video] = field(default_factory=dict)
    _states: dict[str, bytes] = field(default_factory=dict)

    def whole(self, request: PreparedRequest) -> Video:
        """Return the video of the uninterrupted run, made once per request."""
        key = repr(request.request)
        if key not in self._whole:
            self._whole[key] = generate(self.first, request)
        return self._whole[key]

    def state(self, request: PreparedRequest, step: int) -> bytes:
        """Return what a run that was interrupted after `step` has left, made once per request and step."""
        key = f"{request.request!r} {step}"
        if key not in self._states:
            self._states[key] = interrupted(self.first, request, step)
        return self._states[key]


def generate(loaded: Loaded, request: PreparedRequest, kept: Kept | None = None, on_progress: Any = unwatched) -> Video:
    """Make one video."""
    [video] = loaded.family.generate(loaded.model, [request], on_progress, kept)
    return video


def interrupted(loaded: Loaded, request: PreparedRequest, step: int, kept: Kept | None = None) -> bytes:
    """Run a job until `step` steps are done and saved; return the snapshot."""
    kept = kept or Kept()

    def stop(progress: Progress) -> None:
        if progress.stage == "denoising" and progress.step == step:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        generate(loaded, request, kept, stop)
    assert max(kept.saved) == step
    return kept.last


def assert_same(resumed: Video, whole: Video) -> None:
    """Assert that a resumed video is the uninterrupted one, and its file too."""
    assert np.array_equal(resumed.frames, whole.frames)
    assert resumed.made == whole.made
    assert resumed.pipelines == whole.pipelines
    assert (resumed.audio is None) == (whole.audio is None)
    if resumed.audio is not None and whole.audio is not None:
        assert np.array_equal(resumed.audio.samples, whole.audio.samples)


@pytest.fixture(scope="module")
def pair(tiny_root: Path, load_once: Callable[[str], Loaded]) -> Callable[..., Pair]:
    """Return a checkpoint loaded twice, once for all tests."""

    @cache
    def load(name: str, scheduler: str = "") -> Pair:
        settings = {"class": scheduler} if scheduler else {}
        first, fresh = (load_tiny(name, build(name, tiny_root), scheduler=settings) for _ in range(2))
        return Pair(first, fresh)

    @cache
    def load_own(name: str) -> Pair:
        return Pair(load_once(name), load_tiny(name, build(name, tiny_root)))

    return lambda name, scheduler="": load(name, scheduler) if scheduler else load_own(name)


def job(name: str, kind: str) -> PreparedRequest:
    """Return a request of a kind as it can run on a checkpoint."""
    if kind == "i2v" or "t2v" not in TASKS_OF[name]:
        return with_pictures(small_request(num_inference_steps=STEPS), 0)
    return PreparedRequest(small_request(num_inference_steps=STEPS))


def upscaled(request: PreparedRequest) -> PreparedRequest:
    return replace(request, request=replace(request.request, upscale=UPSCALE))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers is not ready for NumPy 2
@pytest.mark.parametrize("step", [1, 3])  # early, and late with noise still to be drawn
@pytest.mark.parametrize(("name", "scheduler"), LAYOUTS)
def test_a_run_interrupted_after_any_step_and_resumed_gives_the_same_bytes(pair, name, scheduler, step):
    models, request = pair(name, scheduler), job(name, "t2v")
    state = interrupted(models.first, request, step)
    seen: list[Progress] = []
    resumed = generate(models.fresh, request, Kept(state=state), seen.append)

    assert_same(resumed, models.whole(request))
    assert resumed.resumed_from == step
    assert resumed.not_resumable == ""
    steps = [progress.step for progress in seen]
    assert list(dict.fromkeys(steps)) == list(range(step, STEPS + 1))
    assert steps == sorted(steps)
    shares = [progress.share for progress in seen]
    assert shares == sorted(shares)
    assert shares[0] >= 0.02 + 0.88 * step / STEPS - 1e-9


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "scheduler", "step"),
    [
        ("wan-ti2v", "", STEPS + 2),
        ("wan22-i2v", "", STEPS + 1),
        ("ltx", "", STEPS + 2),
        ("ltx-091", "", STEPS + SECOND_STEPS),
        ("ltx2", "", STEPS + 1),
        ("animatediff", "", STEPS + SECOND_STEPS),
        ("animatediff", "DPMSolverMultistepScheduler", STEPS + 2),
    ],
)
def test_a_second_pass_is_resumed_too(pair, name, scheduler, step):
    models, request = pair(name, scheduler), upscaled(job(name, "t2v"))
    resumed = generate(models.fresh, request, Kept(state=interrupted(models.first, request, step)))

    assert_same(resumed, models.whole(request))
    assert resumed.resumed_from == step


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_a_second_pass_over_enlarged_latents_is_resumed_too(tiny_root, name):
    part = build(f"{name}-upsampler", tiny_root)
    models = Pair(*(load_tiny(name, build(name, tiny_root), parts={"upsampler": part}) for _ in range(2)))
    request = job(name, "t2v")
    request = replace(request, request=replace(request.request, upscale=Upscale(128, 128, 0.5, 3.0, 6)))
    resumed = generate(models.fresh, request, Kept(state=interrupted(models.first, request, STEPS + 1)))

    assert_same(resumed, models.whole(request))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("wan-ti2v", 3),
        ("ltx", 3),
        ("ltx-091", STEPS),  # when only the decoding was left
        ("ltx-condition", 3),
        ("ltx2", STEPS),
        ("animatediff", 3),
    ],
)
def test_a_video_of_a_picture_is_resumed(pair, name, step):
    models, request = pair(name), job(name, "i2v")
    resumed = generate(models.fresh, request, Kept(state=interrupted(models.first, request, step)))

    assert_same(resumed, models.whole(request))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_frames": 33},
        {"num_frames": 16, "closed_loop": True},
        {"prompts": (PromptSpan("a cat", 8), PromptSpan("a red dragon over paris", 9))},
        {"num_frames": 33, "upscale": replace(UPSCALE, height=64, width=64)},
    ],
    ids=["long", "loop", "several prompts", "long and upscaled"],
)
def test_free_noise_is_resumed(pair, fields):
    """Its windows know no step, and the order of its noise is drawn before the first one."""
    models, request = pair("animatediff"), PreparedRequest(small_request(num_inference_steps=STEPS, **fields))
    assert models.whole(request).made["free_noise"] is True
    step = STEPS + 2 if "upscale" in fields else 3
    resumed = generate(models.fresh, request, Kept(state=interrupted(models.first, request, step)))

    assert_same(resumed, models.whole(request))
    assert resumed.resumed_from == step


@pytest.mark.parametrize(
    ("name", "step"), [("wan-ti2v", 3), ("wan22-t2v", 1), ("wan22-t2v", STEPS + 2), ("wan22-i2v", STEPS)]
)
def test_several_prompts_of_wan_are_resumed_and_never_with_others(pair, name, step):
    models, prompts = pair(name), (PromptSpan("a cat", 4), PromptSpan("a red dragon over paris", 5))
    request = job(name, "t2v")
    request = replace(request, request=replace(request.request, prompts=prompts))
    if step > STEPS:
        request = upscaled(request)
    state = interrupted(models.first, request, step)
    resumed = generate(models.fresh, request, Kept(state=state))

    assert_same(resumed, models.whole(request))
    assert resumed.resumed_from == step
    for others in ((prompts[0], PromptSpan("a dog", 5)), (PromptSpan("a cat", 5), replace(prompts[1], num_frames=4))):
        changed = replace(request, request=replace(request.request, prompts=others))
        assert generate(models.fresh, changed, Kept(state=state)).resumed_from == 0


@pytest.mark.parametrize("name", ["wan21", "ltx2", "animatediff"])
def test_a_job_that_is_interrupted_again_and_again_gives_the_same_bytes(pair, name):
    models, request = pair(name), upscaled(job(name, "t2v"))
    state = None
    for step in (2, 3, STEPS, STEPS + 1, STEPS + 2):
        state = interrupted(models.first, request, step, Kept(state=state))
    resumed = generate(models.fresh, request, Kept(state=state))

    assert_same(resumed, models.whole(request))
    assert resumed.resumed_from == STEPS + 2


def test_a_job_with_a_lora_is_resumed_with_it(pair, tiny_root):
    models = pair("wan-ti2v")
    style = AdapterFile("style", build("lora-wan", tiny_root))
    request = replace(job("wan-ti2v", "t2v"), loras=(style,))
    whole = generate(models.first, request)
    state = interrupted(models.first, request, 3)
    resumed = generate(models.fresh, request, Kept(state=state))

    assert_same(resumed, whole)
    assert not np.array_equal(resumed.frames, models.whole(job("wan-ti2v", "t2v")).frames)
    stronger = replace(request, loras=(replace(style, strength=0.5),))
    assert generate(models.fresh, stronger, Kept(state=state)).resumed_from == 0


@pytest.mark.parametrize("name", ["wan21", "ltx2", "animatediff"])
def test_a_resumed_run_leaves_no_trace_however_it_ends(pair, name):
    models, request = pair(name), job(name, "t2v")
    state = interrupted(models.first, request, 3)
    # Before and after the first step, whose result does not count; after one that does.
    for told, step in ((1, 3), (2, 3), (3, 4)):
        seen: list[Progress] = []

        def stop(progress: Progress, told: int = told, seen: list[Progress] = seen) -> None:
            seen.append(progress)
            if [one.stage for one in seen].count("denoising") == told:
                raise Cancelled("stop")

        with pytest.raises(Cancelled):
            generate(models.fresh, request, Kept(state=state), stop)
        assert seen[-1].step == step
        assert models.fresh.pipeline.interrupt is False
        assert_same(generate(models.fresh, request), models.whole(request))
    resumed = generate(models.fresh, request, Kept(state=state))
    assert_same(resumed, models.whole(request))
    assert_same(generate(models.fresh, request), models.whole(request))


def test_a_failed_run_has_saved_what_it_did(pair, monkeypatch):
    models, request, kept = pair("wan21"), job("wan21", "t2v"), Kept()

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("the decoder broke")

    with monkeypatch.context() as patch:
        patch.setattr(models.first.pipeline.vae, "decode", fail)
        with pytest.raises(GenerationFailed):
            generate(models.first, request, kept)
    assert max(kept.saved) == STEPS
    assert_same(generate(models.fresh, request, Kept(state=kept.last)), models.whole(request))


@pytest.mark.parametrize(("every", "steps"), [(1, {1, 2, 3, 4, 5}), (2, {2, 4}), (5, {5}), (6, set())])
def test_a_job_is_saved_every_so_many_steps(pair, monkeypatch, every, steps):
    models, request, kept = pair("ltx"), job("ltx", "t2v"), Kept(every)
    # Otherwise the newest state wins over one that waits, as it is meant to.
    monkeypatch.setattr("concurrent.futures.Future.cancel", lambda _future: False)

    assert_same(generate(models.first, request, kept), models.whole(request))
    assert set(kept.saved) == steps


def test_a_resumed_job_counts_from_the_step_that_was_saved(pair):
    models, request, kept = pair("ltx"), job("ltx", "t2v"), Kept(every=3)
    kept.state = interrupted(models.first, request, 1)
    generate(models.fresh, request, kept)

    assert set(kept.saved) == {4}


def test_the_newest_state_wins_when_saving_is_slower_than_the_steps(pair):
    """The first save waits for the last step, so those between cannot come at all."""
    done = threading.Event()

    @dataclass
    class Slow(Kept):
        def save(self, state: bytes, step: int) -> None:
            assert done.wait(60)
            super().save(state, step)

    def watch(progress: Progress) -> None:
        if progress.stage == "decoding":
            done.set()

    kept = Slow()
    generate(pair("ltx").first, job("ltx", "t2v"), kept, watch)

    assert max(kept.saved) == STEPS
    assert len(kept.saved) <= 2  # the one that was being saved, and the newest


def test_a_save_that_fails_costs_the_job_nothing(pair):
    models, request = pair("ltx"), job("ltx", "t2v")

    class Full(Kept):
        def save(self, state: bytes, step: int) -> None:
            raise OSError("no space left")

    with capture_logs() as logs:
        assert_same(generate(models.first, request, Full()), models.whole(request))
    assert "snapshot not saved" in [entry["event"] for entry in logs]


# What cannot be resumed.


def test_a_job_under_a_step_cache_starts_over_and_says_so(tiny_root):
    cached = load_tiny("wan-ti2v", build("wan-ti2v", tiny_root), step_cache=0.1)
    request, kept = job("wan-ti2v", "t2v"), Kept(state=b"whatever an earlier attempt saved")
    video = generate(cached, request, kept)

    assert (video.not_resumable, video.resumed_from) == ("step cache", 0)
    assert kept.saved == {}
    assert_same(video, generate(cached, request))


def test_a_job_under_free_init_starts_over_and_says_so(pair):
    models, kept = pair("animatediff"), Kept()
    request = PreparedRequest(small_request(improved_sampling_seed=42))
    video = generate(models.first, request, kept)

    assert (video.not_resumable, video.resumed_from) == ("FreeInit", 0)
    assert kept.saved == {}
    assert_same(video, models.whole(request))


def test_a_scheduler_that_keeps_more_than_plain_values_is_not_resumed_and_says_so(pair, monkeypatch):
    import diffusers

    class Sampler:
        """Such as a noise sampler: it has a state, and no bytes."""

    init = diffusers.UniPCMultistepScheduler.__init__

    @wraps(init)
    def init_with_sampler(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.noise_sampler = Sampler()

    models, request, kept = pair("wan21"), job("wan21", "t2v"), Kept()
    whole = models.whole(request)
    monkeypatch.setattr(diffusers.UniPCMultistepScheduler, "__init__", init_with_sampler)
    video = generate(models.first, request, kept)

    assert video.not_resumable == "UniPCMultistepScheduler: Sampler is no plain value"
    assert kept.saved == {}
    assert_same(video, whole)


def test_a_video_that_was_not_to_be_saved_says_nothing_of_it(pair):
    video = pair("ltx").whole(job("ltx", "t2v"))

    assert (video.not_resumable, video.resumed_from) == ("", 0)


# What is not resumed from.


def other_prompt(request: PreparedRequest) -> PreparedRequest:
    return replace(request, request=replace(request.request, prompts=(PromptSpan("a red dragon", 5),)))


OTHERS: dict[str, Callable[[PreparedRequest], PreparedRequest]] = {
    "prompt": other_prompt,
    "seed": lambda request: replace(request, request=replace(request.request, seed=2)),
    "steps": lambda request: replace(request, request=replace(request.request, num_inference_steps=STEPS + 1)),
    "size": lambda request: replace(request, request=replace(request.request, height=96)),
    "picture": lambda request: replace(request, images=(picture(seed=99),)),
    "strength": lambda request: replace(
        request, request=replace(request.request, images=(ImageCondition("in/0.png", 0, 0.5),))
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_state_of_another_request_is_ignored(pair, other):
    models, request = pair("ltx"), job("ltx", "i2v")
    state = models.state(request, 3)
    changed = OTHERS[other](request)
    with capture_logs() as logs:
        video = generate(models.fresh, changed, Kept(state=state))

    assert video.resumed_from == 0
    assert_same(video, generate(models.first, changed))
    assert [entry["reason"] for entry in logs if entry["event"] == "snapshot ignored, the job starts over"] == [
        "it is of another request, model, device or version"
    ]


def changed_byte(state: bytes, at: int) -> bytes:
    return state[:at] + bytes([state[at] ^ 1]) + state[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda state: b"",
    "cut off": lambda state: state[: len(state) // 2],
    "one byte short": lambda state: state[:-1],
    "longer": lambda state: state + b"\0",
    "a bit of a tensor": lambda state: changed_byte(state, len(state) - 100),
    "a bit of the header": lambda state: changed_byte(state, 80),
    "another format": lambda state: state.replace(b"snapshot 1", b"snapshot 2"),
    "a pickle": lambda state: b"\x80\x04\x95",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_ignored(pair, damage):
    models, request = pair("ltx"), job("ltx", "t2v")
    state = models.state(request, 3)
    with capture_logs() as logs:
        video = generate(models.fresh, request, Kept(state=DAMAGE[damage](state)))

    assert video.resumed_from == 0
    assert_same(video, models.whole(request))
    assert [entry["reason"] for entry in logs if entry["log_level"] == "warning"] == [
        "it is damaged, cut off, or of another format"
    ]


@pytest.mark.parametrize("library", ["torch", "diffusers", "transformers", "peft"])
def test_the_state_of_another_version_is_ignored(pair, monkeypatch, library):
    models, request = pair("ltx"), job("ltx", "t2v")
    state = models.state(request, 3)
    assert generate(models.fresh, request, Kept(state=state)).resumed_from == 3
    other = {**_versions(), library: "0.0"}
    monkeypatch.setattr("models._identity._versions", lambda: other)
    assert generate(models.fresh, request, Kept(state=state)).resumed_from == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_state_of_another_checkpoint_scheduler_or_dtype_is_ignored(pair, tiny_root):
    request = job("animatediff", "t2v")
    state = pair("animatediff").state(request, 3)
    euler = pair("animatediff", "EulerDiscreteScheduler").first
    half = load_tiny("animatediff", build("animatediff", tiny_root), dtype="bfloat16")

    assert generate(euler, request, Kept(state=state)).resumed_from == 0
    assert generate(half, request, Kept(state=state)).resumed_from == 0
    assert generate(pair("ltx").first, request, Kept(state=state)).resumed_from == 0


def test_the_state_of_another_number_of_threads_is_ignored(pair):
    import torch

    models, request = pair("ltx"), job("ltx", "t2v")
    state = models.state(request, 3)
    torch.set_num_threads(2)
    try:
        assert generate(models.fresh, request, Kept(state=state)).resumed_from == 0
    finally:
        torch.set_num_threads(1)


def test_only_a_single_request_is_saved(pair):
    request = job("ltx", "t2v")
    ltx = pair("ltx").first
    with pytest.raises(ValueError, match="snapshots are for a single request, got 2"):
        ltx.family.generate(ltx.model, [request, request], unwatched, Kept())


# In another process.


_PROGRAM = "import sys; from tests.models.test_resume import main; main(*sys.argv[1:])"


def main(root: str, name: str, state: str) -> None:
    """Resume a job of the test below and print what came out: what the fresh process does."""
    import torch

    torch.set_num_threads(1)  # as in the tests: sums depend on the number of threads
    loaded = load_tiny(name, build(name, Path(root)))
    video = generate(loaded, job(name, "t2v"), Kept(state=Path(state).read_bytes()))
    digest = hashlib.sha256(video.frames.tobytes()).hexdigest()
    sys.stdout.write(json.dumps({"resumed_from": video.resumed_from, "sha256": digest}) + "\n")


@pytest.mark.slow
def test_another_process_goes_on_where_one_ended(pair, tiny_root, tmp_path):
    models, request = pair("wan22-t2v"), job("wan22-t2v", "t2v")
    (tmp_path / "state").write_bytes(interrupted(models.first, request, 4))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tiny_root), "wan22-t2v", str(tmp_path / "state")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "resumed_from": 4,
        "sha256": hashlib.sha256(models.whole(request).frames.tobytes()).hexdigest(),
    }
