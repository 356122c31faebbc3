"""What a content policy is asked, in which time, and what becomes of everything but a clear yes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyreel.errors import ConfigurationError, ContentRefused, InvalidRequest, PolicyUnavailable
from polyreel.policy import ALLOWED, Judge, Verdict, load_judge, pass_request, refuse, sampled
from polyreel.request import PromptSpan
from tests.core.jobs import REQUEST, queued

EXAMPLE = Path(__file__).parents[2] / "examples" / "content_policy"


class Says:
    """Answers what it is told to, and remembers the frames that it saw."""

    def __init__(self, answer: Callable[[], object], **attributes: object) -> None:
        self.answer = answer
        self.frames = np.zeros((0,))
        vars(self).update(attributes)

    def check_request(self, request: object, owner: str) -> Verdict:
        return self.answer()  # type: ignore[return-value]

    def check_frames(self, frames: np.ndarray, request: object, owner: str) -> Verdict:
        self.frames = frames.copy()
        frames[:] = 0
        return self.answer()  # type: ignore[return-value]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what installs a package of entry points: its metadata, and the example's module beside it."""

    def install(distribution: str = "polyreel-wordlist", **points: str) -> None:
        folder = tmp_path / "site" / f"{distribution.replace('-', '_')}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[polyreel.content_policies]", *lines, ""]))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.syspath_prepend(str(EXAMPLE))
        monkeypatch.delitem(sys.modules, "polyreel_wordlist", raising=False)

    return install


def test_no_policy_is_nobody_to_ask() -> None:
    assert load_judge(None) is None
    pass_request(None, queued())


def test_what_is_allowed_passes_and_what_is_refused_says_why() -> None:
    Judge("p", Says(lambda: ALLOWED)).check_request(REQUEST, "alice")
    with pytest.raises(ContentRefused) as refused:
        Judge("p", Says(lambda: refuse("No oceans here."))).check_request(REQUEST, "alice")
    assert refused.value.message == "The request was refused by this server's content policy: No oceans here."
    assert (refused.value.code, isinstance(refused.value, InvalidRequest)) == ("content_refused", True)
    with pytest.raises(ContentRefused, match=r"^The video was refused by this server's content policy\.$"):
        Judge("p", Says(refuse)).check_frames(np.zeros((2, 4, 4, 3), np.uint8), REQUEST, "alice")


@pytest.mark.parametrize("answer", [None, True, "allowed", 0], ids=str)
def test_what_is_no_verdict_lets_nothing_through(answer: object) -> None:
    with pytest.raises(PolicyUnavailable):
        Judge("p", Says(lambda: answer)).check_request(REQUEST, "alice")


@pytest.mark.parametrize("error", [ValueError("secret prompt"), SystemExit(0), KeyboardInterrupt()], ids=repr)
def test_a_policy_that_raises_lets_nothing_through(error: BaseException) -> None:
    def fail() -> Verdict:
        raise error

    with pytest.raises(PolicyUnavailable) as failed:
        Judge("p", Says(fail)).check_request(REQUEST, "alice")
    assert failed.value.code == "content_policy_failed"
    assert "secret" not in failed.value.message


def test_a_policy_that_hangs_lets_nothing_through_and_no_ninth_thread_is_begun() -> None:
    go, begun = threading.Event(), []

    def hang() -> Verdict:
        begun.append(1)
        go.wait(60)
        return ALLOWED

    judge = Judge("p", Says(hang, timeout_s=0.02))
    for _ in range(10):
        with pytest.raises(PolicyUnavailable):
            judge.check_request(REQUEST, "alice")
    assert len(begun) == 8
    go.set()
    free = Judge("p", Says(hang))
    free.check_request(REQUEST, "alice")


def test_frames_are_shown_spread_evenly_and_as_a_copy() -> None:
    frames = np.arange(33, dtype=np.uint8)[:, None, None, None] * np.ones((33, 2, 2, 3), np.uint8)
    policy = Says(lambda: ALLOWED, num_frames=5)
    Judge("p", policy).check_frames(frames, REQUEST, "alice")
    assert policy.frames[:, 0, 0, 0].tolist() == [0, 8, 16, 24, 32]
    assert int(frames[32, 0, 0, 0]) == 32, "what a policy does to its copy changes no video"


@pytest.mark.parametrize(
    ("length", "most", "shown"),
    [(3, 16, [0, 1, 2]), (16, 16, list(range(16))), (81, 2, [0, 80]), (81, 1, [40]), (10, 4, [0, 3, 6, 9])],
)
def test_the_first_and_the_last_frame_are_among_those_shown(length: int, most: int, shown: list[int]) -> None:
    assert sampled(length, most) == shown


def test_a_policy_is_found_by_the_name_of_its_entry_point(
    installed: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(wordlist="polyreel_wordlist:WordList")
    (tmp_path / "words").write_text("Sunset\n\n")
    monkeypatch.setenv("WORDLIST", str(tmp_path / "words"))
    judge = load_judge("wordlist")
    assert judge is not None
    assert (judge.name, judge.shows_previews) == ("wordlist", False)
    with pytest.raises(ContentRefused, match="a word that is not allowed here"):
        judge.check_request(REQUEST, "alice")
    judge.check_request(replace(REQUEST, prompts=(PromptSpan("A storm", 9),), negative_prompt="sunset"), "alice")
    with pytest.raises(ContentRefused, match="The video shows nothing"):
        judge.check_frames(np.full((9, 8, 8, 3), 7, np.uint8), REQUEST, "alice")


WRONG = {
    "wordlists": ({"wordlist": "polyreel_wordlist:WordList"}, "no installed package publishes 'wordlists'"),
    "gone": ({"gone": "no_such_module:X"}, "does not load: ModuleNotFoundError"),
    "half": ({"half": "polyreel_wordlist:os"}, "has no method check_request"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_policy_that_cannot_be_used_stops_the_start(installed: Callable[..., None], name: str) -> None:
    points, message = WRONG[name]
    installed(**points)
    with pytest.raises(ConfigurationError, match=r"^content_policy: ") as wrong:
        load_judge(name)
    assert message in str(wrong.value)
    if name == "wordlists":
        assert "Did you mean wordlist? Installed: wordlist." in str(wrong.value)


def test_a_name_that_two_packages_publish_means_neither(installed: Callable[..., None]) -> None:
    installed(wordlist="polyreel_wordlist:WordList")
    installed("another", wordlist="polyreel_wordlist:os")
    with pytest.raises(ConfigurationError, match="published by several packages"):
        load_judge("wordlist")


@pytest.fixture
def strict() -> Judge:
    return Judge("strict", Says(lambda: ALLOWED))


def test_a_worker_runs_no_job_that_was_taken_in_with_a_policy_that_it_lacks(strict: Judge) -> None:
    job = queued(content_policy="strict")
    pass_request(strict, job)
    pass_request(strict, queued())
    for judge in (None, Judge("lax", Says(lambda: ALLOWED))):
        with pytest.raises(PolicyUnavailable, match="has not the content policy 'strict'"):
            pass_request(judge, job)
