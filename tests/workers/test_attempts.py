"""Several requests in one call: who fails, who is tried again, in what parts, and what the caller sees of it."""

from __future__ import annotations

import json
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from rq.timeouts import JobTimeoutException

import workers.attempts
from models import OnProgress, PreparedRequest, Progress, Video
from polyreel.batching import batch_limit
from polyreel.entries import Placement
from polyreel.errors import Cancelled, CheckpointUnavailable, GenerationFailed, OutOfMemory, QueueUnavailable
from polyreel.request import PromptSpan, VideoRequest
from tests.core.jobs import REQUEST
from tests.families.quick import Quick
from tests.families.raising import Raising
from tests.families.running_out import OutOfMemoryError, RunningOut
from tests.families.unloadable import Unloadable
from workers.attempts import Attempts, Made
from workers.batch_sizes import BatchSizes, MeasuredSize, Run
from workers.receipt import metadata
from workers.residency import Residency

pytestmark = pytest.mark.usefixtures("_quick_collections")

PIXELS = 9 * 64 * 96


class Batching(Quick):
    """Makes its requests in one call. `batches` holds how many each call was given, `snapshots` what came with it."""

    name = "batching"

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.snapshots: list[Any] = []

    def generate(
        self, model: Any, requests: Sequence[PreparedRequest], on_progress: OnProgress, **further: Any
    ) -> list[Video]:
        self.batches.append(len(requests))
        self.snapshots.append(further)
        return super().generate(model, requests, on_progress)


class Crowded(Batching):
    """A device with room for so many jobs in one call; memory runs out after the second step."""

    name = "crowded"

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.after_step = self._need_memory

    def _need_memory(self, step: int) -> None:
        if step == 2 and self.batches[-1] > self.room:
            raise OutOfMemory("The device ran out of memory.", "denoising") from OutOfMemoryError("CUDA out of memory.")


class Spoilt(Batching):
    """A model that returns NaN for some prompts, which ends the whole call, as in the families."""

    name = "spoilt"

    def generate(
        self, model: Any, requests: Sequence[PreparedRequest], on_progress: OnProgress, **_: Any
    ) -> list[Video]:
        videos = super().generate(model, requests, on_progress)
        for prepared in requests:
            if "spoilt" in prepared.request.prompts[0].prompt:
                raise GenerationFailed(f"The model returned NaN for {prepared.request.prompts[0].prompt}.")
        return videos


class Caller:
    """Whoever waits for the videos: keeps what it was told."""

    def __init__(self, on_progress: OnProgress = lambda progress: None) -> None:
        self.starts = 0
        self.seen: list[Progress] = []
        self.timings: dict[str, float] = {}
        self._on_progress = on_progress

    def started(self) -> None:
        self.starts += 1

    def told(self, progress: Progress) -> None:
        self.seen.append(progress)
        self._on_progress(progress)

    def asks(self, attempts: Attempts, *requests: VideoRequest, **further: Any) -> list[Made | Exception]:
        prepared = [PreparedRequest(request) for request in requests]
        return attempts.make_all(prepared, self.started, self.told, self.timings, **further)


def jobs(*prompts: str) -> list[VideoRequest]:
    return [replace(REQUEST, prompts=(PromptSpan(prompt, 9),), seed=seed) for seed, prompt in enumerate(prompts)]


MakeAttempts = Callable[..., Attempts]


@pytest.fixture
def attempts(make_residency: Callable[..., Residency]) -> MakeAttempts:
    """Make attempts on one family under the name "ltx-tiny"."""

    def make(family: Quick, batch_sizes: BatchSizes | None = None) -> Attempts:
        return Attempts(make_residency(**{"ltx-tiny": family}), batch_sizes)

    return make


def prompts_of(made: Sequence[Made | Exception]) -> list[str]:
    """Return the prompt of each receipt, "" for a failure."""
    return ["" if isinstance(one, Exception) else one[1]["prompts"][0]["prompt"] for one in made]


def batch_sizes_of(made: Sequence[Made | Exception]) -> list[int | None]:
    """Return what each receipt says of its batch."""
    return [None if isinstance(one, Exception) else one[1].get("batch_size") for one in made]


def test_requests_run_in_one_call_and_come_back_in_order(attempts: MakeAttempts) -> None:
    family, caller = Batching(), Caller()
    made = caller.asks(attempts(family), *jobs("a", "b", "c"))
    assert (family.batches, caller.starts) == ([3], 1)
    assert (prompts_of(made), batch_sizes_of(made)) == (["a", "b", "c"], [3, 3, 3])
    assert [(progress.step, progress.total_steps) for progress in caller.seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [progress.share for progress in caller.seen] == [0.225, 0.45, 0.675, 0.9]
    assert set(caller.timings) == {"load", "generate"}


def test_one_request_says_nothing_of_a_batch(attempts: MakeAttempts) -> None:
    [made] = Caller().asks(attempts(Batching()), *jobs("a"))
    assert not isinstance(made, Exception)
    assert "batch_size" not in made[1]


def test_the_file_says_that_it_shared_a_call_since_a_value_may_be_off_by_one(attempts: MakeAttempts) -> None:
    made = Caller().asks(attempts(Batching()), *jobs("a", "b"))
    assert not isinstance(made[1], Exception)
    about = metadata(made[1][1])
    assert (about["title"], json.loads(about["comment"])["batch_size"]) == ("b", 2)


# -- one of them is to blame


def test_of_a_batch_that_fails_only_the_spoilt_sample_fails_with_its_own_error(
    attempts: MakeAttempts, capsys: pytest.CaptureFixture[str]
) -> None:
    family, caller = Spoilt(), Caller()
    made = caller.asks(attempts(family), *jobs("a", "spoilt one", "c"))
    assert family.batches == [3, 1, 1, 1]
    assert (prompts_of(made), batch_sizes_of(made)) == (["a", "", "c"], [None, None, None])
    assert isinstance(made[1], GenerationFailed)
    assert str(made[1]) == "The model returned NaN for spoilt one."
    assert "batch failed, its jobs run alone" in capsys.readouterr().out


def test_an_error_that_is_given_back_still_prints_where_it_was_raised(attempts: MakeAttempts) -> None:
    [made] = Caller().asks(attempts(Spoilt()), *jobs("spoilt"))
    assert isinstance(made, GenerationFailed)
    assert "raise GenerationFailed" in "".join(traceback.format_exception(made))


def test_all_may_fail_each_by_itself(attempts: MakeAttempts) -> None:
    made = Caller().asks(attempts(Spoilt()), *jobs("spoilt 1", "spoilt 2"))
    assert [str(one) for one in made] == [
        "The model returned NaN for spoilt 1.",
        "The model returned NaN for spoilt 2.",
    ]


def test_what_a_failed_call_held_is_gone_before_the_next_one(attempts: MakeAttempts) -> None:
    class Tensor:
        """Stands for what a pipeline holds."""

    held: list[weakref.ref[Tensor]] = []
    alive_at_the_next: list[int] = []

    class Holding(Spoilt):
        name = "holding"

        def generate(self, model: Any, requests: Sequence[PreparedRequest], on_progress: OnProgress, **_: Any) -> Any:
            alive_at_the_next.append(sum(reference() is not None for reference in held))
            tensor = Tensor()
            held.append(weakref.ref(tensor))
            return super().generate(model, requests, on_progress)

    made = Caller().asks(attempts(Holding()), *jobs("a", "spoilt", "c"))
    assert alive_at_the_next == [0, 0, 0, 0]
    assert prompts_of(made) == ["a", "", "c"]


def test_make_raises_what_make_all_gives_back(attempts: MakeAttempts) -> None:
    caller, [request] = Caller(), jobs("spoilt")
    with pytest.raises(GenerationFailed, match="NaN for spoilt"):
        attempts(Spoilt()).make(PreparedRequest(request), caller.started, caller.told, caller.timings)
    video, facts = attempts(Batching()).make(PreparedRequest(REQUEST), caller.started, caller.told, caller.timings)
    assert (video.frames.shape, facts["seed"]) == ((9, 64, 96, 3), 42)


# -- memory


def test_a_batch_that_runs_out_of_memory_is_halved_and_the_next_one_is_no_larger(attempts: MakeAttempts) -> None:
    family, caller = Crowded(room=2), Caller()
    ours = attempts(family)
    made = caller.asks(ours, *jobs("a", "b", "c", "d"))
    assert family.batches == [4, 2, 2]
    assert (prompts_of(made), batch_sizes_of(made)) == (["a", "b", "c", "d"], [2, 2, 2, 2])
    Caller().asks(ours, *jobs("a", "b", "c", "d", "e"))
    assert family.batches == [4, 2, 2, 2, 2, 1]
    # Another size has its own limit: smaller ones are not held to it.
    Caller().asks(ours, *(replace(request, height=64, width=64) for request in jobs("a", "b", "c")))
    assert family.batches[-3:] == [3, 2, 1]


def test_the_claim_gets_the_smaller_limit(attempts: MakeAttempts) -> None:
    runs = tuple(Run(batch_size=size, seconds_per_job=1 / size) for size in (1, 2, 4))
    measured = MeasuredSize(num_frames=9, height=64, width=96, num_inference_steps=4, batch_size=4, runs=runs)
    ours = attempts(Crowded(room=2), BatchSizes({"ltx-tiny": (measured,)}))
    assert batch_limit(ours.batch_sizes.limits()["ltx-tiny"], PIXELS) == 4
    Caller().asks(ours, *jobs("a", "b", "c", "d"))
    assert batch_limit(ours.batch_sizes.limits()["ltx-tiny"], PIXELS) == 2


def test_halves_are_halved_again_down_to_one(attempts: MakeAttempts) -> None:
    family = Crowded(room=1)
    made = Caller().asks(attempts(family), *jobs("a", "b", "c", "d", "e"))
    assert family.batches == [5, 3, 2, 1, 1, 1, 1, 1]
    assert prompts_of(made) == ["a", "b", "c", "d", "e"]


def test_progress_never_goes_backwards(attempts: MakeAttempts) -> None:
    caller = Caller()
    caller.asks(attempts(Crowded(room=2)), *jobs("a", "b", "c", "d"))
    # Half of the batch of four, then two halves of the half that was left.
    assert [(progress.step, progress.total_steps) for progress in caller.seen] == [
        *((1, 4), (2, 4)),
        *((2, 4), (2, 4), (3, 4), (3, 4)),
        *((3, 4), (3, 4), (4, 4), (4, 4)),
    ]
    shares = [progress.share for progress in caller.seen]
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1
    assert caller.starts == 1


def test_one_that_does_not_fit_alone_goes_down_its_ladder(attempts: MakeAttempts) -> None:
    family = RunningOut("denoising", lambda placement, request: placement.mode == "group_offload")
    made = Caller().asks(attempts(family), *jobs("a", "b"))
    assert family.placements == ["resident", "cpu_offload", "group_offload"]
    assert prompts_of(made) == ["a", "b"]
    assert [one[1]["after_out_of_memory"] for one in made if not isinstance(one, Exception)] == [
        ["cpu_offload", "group_offload"],
        ["cpu_offload", "group_offload"],
    ]


def test_what_fits_nowhere_fails_alone(attempts: MakeAttempts) -> None:
    def fits(placement: Placement, request: VideoRequest | None) -> bool:
        return request is None or "huge" not in request.prompts[0].prompt

    made = Caller().asks(attempts(RunningOut("denoising", fits)), *jobs("huge", "b"))
    assert prompts_of(made) == ["", "b"]
    assert isinstance(made[0], OutOfMemory)
    assert "Ask for fewer frames" in str(made[0])


def test_a_model_that_does_not_fit_is_loaded_with_less_and_the_batch_stays_whole(attempts: MakeAttempts) -> None:
    family, caller = RunningOut("load", lambda placement, request: placement.mode == "cpu_offload"), Caller()
    made = caller.asks(attempts(family), *jobs("a", "b", "c"))
    assert batch_sizes_of(made) == [3, 3, 3]
    assert (family.placements, caller.starts) == (["resident", "cpu_offload"], 2)


def test_no_more_run_together_than_fit_into_what_is_free(
    attempts: MakeAttempts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tuple(Run(batch_size=size, seconds_per_job=1 / size, peak_bytes=1000 * size) for size in (1, 2, 4))
    measured = MeasuredSize(num_frames=9, height=64, width=96, num_inference_steps=4, batch_size=4, runs=runs)
    family = Batching()
    ours = attempts(family, BatchSizes({"ltx-tiny": (measured,)}))
    monkeypatch.setattr(workers.attempts, "device_memory", lambda device: (3999, 9000))
    made = Caller().asks(ours, *jobs("a", "b", "c", "d"))
    assert family.batches == [2, 2]
    assert batch_sizes_of(made) == [2, 2, 2, 2]
    assert ours.batch_sizes.limits()["ltx-tiny"] == ((PIXELS, 2),)
    assert "batch reduced to what fits" in capsys.readouterr().out


# -- what concerns all of them


class Stopped(Exception):
    """Whatever else a caller may raise."""


@pytest.mark.parametrize(
    "stop", [Cancelled("The job was cancelled."), QueueUnavailable("Redis does not answer."), Stopped(), SystemExit(0)]
)
def test_what_the_caller_raises_ends_all_at_once(attempts: MakeAttempts, stop: BaseException) -> None:
    def stop_at_two(progress: Progress) -> None:
        if progress.step == 2:
            raise stop

    family = Batching()
    with pytest.raises(type(stop)):
        Caller(stop_at_two).asks(attempts(family), *jobs("a", "b", "c"))
    assert (family.batches, family.steps_done) == ([3], 2)


def test_a_start_that_is_refused_ends_all(attempts: MakeAttempts) -> None:
    def cancelled() -> None:
        raise Cancelled("The jobs were cancelled.")

    family = Batching()
    with pytest.raises(Cancelled):
        attempts(family).make_all([PreparedRequest(REQUEST)] * 2, cancelled, lambda progress: None, {})
    assert family.batches == []


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "error",
    [JobTimeoutException("over"), RuntimeError("CUDA error: an illegal memory access was encountered")],
    ids=["time limit", "device lost"],
)
def test_the_time_limit_and_a_lost_device_are_nobodys_own(
    attempts: MakeAttempts, error: Exception, wrapped: bool
) -> None:
    caller = Caller()
    with pytest.raises(GenerationFailed if wrapped else type(error)) as raised:
        caller.asks(attempts(Raising(error, wrapped=wrapped)), *jobs("a", "b"))
    assert error in (raised.value, raised.value.__cause__)
    assert len(caller.seen) == 1  # nobody was run again


def test_a_model_that_does_not_load_fails_all_of_them_and_is_tried_once(attempts: MakeAttempts) -> None:
    loads = []

    class Counted(Unloadable):
        name = "counted"

        def load(self, checkpoint: Any, **how: Any) -> Any:
            loads.append(checkpoint.path.name)
            return super().load(checkpoint, **how)

    made = Caller().asks(attempts(Counted()), *jobs("a", "b"))
    assert [type(one) for one in made] == [CheckpointUnavailable, CheckpointUnavailable]
    assert loads == ["ltx-tiny"]


def test_snapshots_reach_the_family_only_when_there_are_any(attempts: MakeAttempts) -> None:
    family, snapshots = Batching(), object()
    ours = attempts(family)
    Caller().asks(ours, *jobs("a"))
    Caller().asks(ours, *jobs("a"), snapshots=snapshots)
    assert family.snapshots == [{}, {"snapshots": snapshots}]


@pytest.mark.parametrize(
    ("requests", "further"),
    [
        ([], {}),
        ([REQUEST, replace(REQUEST, model="atelier")], {}),
        ([REQUEST, REQUEST], {"snapshots": object()}),
    ],
    ids=["none", "two models", "snapshots of two"],
)
def test_what_can_be_no_call_is_refused(
    attempts: MakeAttempts, requests: list[VideoRequest], further: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="make_all takes requests of one model, and snapshots with one request alone"):
        Caller().asks(attempts(Batching()), *requests, **further)
