"""Several jobs in one call of real pipelines: each sample is that of its single run, within one grey level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models import PreparedRequest, Progress
from models.tiny import build
from polyreel.batching import batch_key
from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel
from polyreel.errors import Cancelled
from polyreel.request import PromptSpan, VideoRequest
from tests.core.jobs import REQUEST
from workers.attempts import Attempts, Made
from workers.residency import Residency

#: Family to the tiny checkpoint that stands for it.
CHECKPOINTS = {"wan": "wan-ti2v", "ltx": "ltx", "animatediff": "animatediff"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def attempts_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Attempts]:
    """Make attempts on the tiny checkpoint of a family."""
    root = tmp_path_factory.mktemp("tiny")

    def make(family: str) -> Attempts:
        folder = build(CHECKPOINTS[family], root)
        catalogue = Catalogue({family: ServedModel(family=family, checkpoint=str(folder))})
        return Attempts(Residency(catalogue, root, "cpu", 1))

    return make


def jobs(family: str, count: int) -> list[VideoRequest]:
    """Return small jobs that share a key and nothing else."""
    prompts = ["a cat in the rain", "a red dragon over paris", "snow", "a long road through the desert at noon"]
    small = replace(REQUEST, model=family, height=64, width=64, num_inference_steps=2)
    found = [
        replace(small, prompts=(PromptSpan(prompts[n], 5),), seed=n, negative_prompt=["", "red street", "cat", ""][n])
        for n in range(count)
    ]
    assert len({batch_key(request) for request in found}) == 1
    return found


def run(attempts: Attempts, requests: Sequence[VideoRequest], steps: list[tuple[int, int]]) -> list[Made]:
    """Run requests together; `steps` gets the (step, total_steps) that were told."""
    prepared = [PreparedRequest(request) for request in requests]
    made = attempts.make_all(prepared, lambda: None, lambda told: steps.append((told.step, told.total_steps)), {})
    assert [one for one in made if isinstance(one, Exception)] == []
    return [one for one in made if not isinstance(one, Exception)]


def largest_difference(left: np.ndarray, right: np.ndarray) -> int:
    """Largest difference of 8-bit values."""
    return int(np.abs(left.astype(int) - right.astype(int)).max())


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_each_sample_of_a_batch_of_three_equals_its_single_run_within_one_grey_level(
    attempts_on: Callable[[str], Attempts], family: str
) -> None:
    attempts, requests = attempts_on(family), jobs(family, 3)
    steps: list[tuple[int, int]] = []
    together = run(attempts, requests, steps)
    assert set(steps) == {(0, 2), (1, 2), (2, 2)}  # one call: one after the other would be six steps
    alone = [run(attempts, [request], [])[0] for request in requests]
    assert [largest_difference(a[0].frames, b[0].frames) <= 1 for a, b in zip(together, alone, strict=True)] == [
        True
    ] * 3
    assert largest_difference(alone[0][0].frames, alone[1][0].frames) > 1  # or the line above could not fail
    assert [facts["batch_size"] for _, facts in together] == [3, 3, 3]
    assert ["batch_size" in facts for _, facts in alone] == [False] * 3
    assert [facts["seed"] for _, facts in together] == [0, 1, 2]


@contextmanager
def room_for(jobs_at_once: int) -> Iterator[list[int]]:
    """Let the transformer run out of memory with more jobs; yield the batch sizes that it was called with.

    The pipeline calls it with each job twice: guidance.
    """
    import diffusers
    import torch

    called: list[int] = []
    forward = diffusers.LTXVideoTransformer3DModel.forward

    def crowded(self: Any, hidden_states: Any, **inputs: Any) -> Any:  # (2 * jobs, tokens, channels)
        called.append(len(hidden_states) // 2)
        if called[-1] > jobs_at_once:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, hidden_states, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers.LTXVideoTransformer3DModel, "forward", crowded)
        yield called


def test_a_batch_of_four_that_does_not_fit_runs_as_two_and_two(attempts_on: Callable[[str], Attempts]) -> None:
    attempts, requests = attempts_on("ltx"), jobs("ltx", 4)
    with room_for(2) as called:
        together = run(attempts, requests, [])
    assert called == [4, 2, 2, 2, 2]  # two steps each
    assert [facts["batch_size"] for _, facts in together] == [2, 2, 2, 2]
    assert ["after_out_of_memory" in facts for _, facts in together] == [False] * 4
    alone = [run(attempts, [request], [])[0] for request in requests]
    assert [largest_difference(a[0].frames, b[0].frames) <= 1 for a, b in zip(together, alone, strict=True)] == [
        True
    ] * 4


def test_a_batch_that_is_cancelled_ends_at_its_next_step_and_leaves_the_model_fit(
    attempts_on: Callable[[str], Attempts],
) -> None:
    attempts, requests = attempts_on("ltx"), jobs("ltx", 3)
    before = run(attempts, requests[:1], [])
    steps = []

    def cancel(told: Progress) -> None:
        steps.append(told.step)
        if told.step == 1:
            raise Cancelled("The jobs were cancelled.")

    with pytest.raises(Cancelled):
        attempts.make_all([PreparedRequest(request) for request in requests], lambda: None, cancel, {})
    assert max(steps) == 1
    after = run(attempts, requests[:1], [])
    assert np.array_equal(after[0][0].frames, before[0][0].frames)
