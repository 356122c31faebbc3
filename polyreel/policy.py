"""What may be asked for and shown here, in the operator's own words: a content policy, found by name. None by default.

A policy is a Python object that an installed package publishes in the entry point group `polyreel.content_policies`;
the setting `content_policy` names it. It sees every request when it is submitted, and again before it is generated
(the API may be of an older version, or have another policy), and frames of every video before a file of it is made.
`docs/policy.md` says how to write one.

It fails closed: where a policy raises, hangs or answers nonsense, nothing is taken in and nothing is shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from polyreel.errors import ConfigurationError, ContentRefused, PolicyUnavailable, did_you_mean
from polyreel.request import VideoRequest

if TYPE_CHECKING:
    import numpy as np

    from polyreel.job import VideoJob

log = structlog.get_logger()

#: Where packages publish their policies.
GROUP = "polyreel.content_policies"

#: How long a check may take where the policy does not say otherwise with `timeout_s`, seconds.
TIMEOUT_S = 10.0

#: How many frames of a video are shown to a policy that does not say otherwise with `num_frames`.
NUM_FRAMES = 16

#: Checks at a time in one process; one that hangs holds its place until it returns.
_AT_ONCE = 8

#: Longest reason that a client reads, characters.
_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says.

    Args:
        is_allowed: False refuses.
        reason: why it is refused, one sentence that the client reads; "" says only that it is.
    """

    is_allowed: bool
    reason: str = ""


ALLOWED = Verdict(True)


def refuse(reason: str = "") -> Verdict:
    """Return a refusal; see `Verdict`."""
    return Verdict(False, reason)


class ContentPolicy(Protocol):
    """What an entry point names: an object with these methods, or a class that is called without arguments for one.

    Both methods are called in threads, several at a time, in every API process and every worker.

    Attributes (all optional):
        timeout_s: how long one check may take, seconds; default `TIMEOUT_S`.
        num_frames: how many frames of a video are shown, spread evenly, the first and the last among them; default
            `NUM_FRAMES`.
        shows_previews: True lets workers show pictures of what is being denoised, which no policy sees; default False.
    """

    def check_request(self, request: VideoRequest, owner: str) -> Verdict:
        """Look at a request: `request.prompts`, `request.negative_prompt`, `request.model`, …

        Args:
            owner: whose API key sent it.
        """

    def check_frames(self, frames: np.ndarray, request: VideoRequest, owner: str) -> Verdict:
        """Look at frames of a video.

        Args:
            frames: uint8 of shape (n, height, width, 3), RGB, in order; a copy.
        """


class Judge:
    """Asks one policy, within its time.

    Args:
        name: of its entry point.
        policy: the object.

    Attributes:
        shows_previews: as the policy's own.
    """

    def __init__(self, name: str, policy: ContentPolicy) -> None:
        self.name = name
        self.shows_previews = bool(getattr(policy, "shows_previews", False))
        self._policy = policy
        self._timeout_s = float(getattr(policy, "timeout_s", TIMEOUT_S))
        self._num_frames = int(getattr(policy, "num_frames", NUM_FRAMES))
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def check_request(self, request: VideoRequest, owner: str) -> None:
        """Return if the policy allows a request; blocks.

        Raises:
            ContentRefused: it does not.
            PolicyUnavailable: it raised, took too long, or answered no `Verdict`.
        """
        self._ask("request", request, owner, lambda: self._policy.check_request(request, owner))

    def check_frames(self, frames: np.ndarray, request: VideoRequest, owner: str) -> None:
        """Return if the policy allows a video; as `check_request`.

        Args:
            frames: all of them, uint8 of shape (num_frames, height, width, 3).
        """
        shown = frames[sampled(len(frames), self._num_frames)]  # a copy: what a policy does to it changes no video
        self._ask("video", request, owner, lambda: self._policy.check_frames(shown, request, owner))

    def _ask(self, what: str, request: VideoRequest, owner: str, check: Callable[[], Verdict]) -> None:
        about = {"policy": self.name, "what": what, "owner": owner, "model": request.model}
        verdict = self._answer(check, about)
        if verdict.is_allowed:
            return
        log.warning("content refused", **about, reason=verdict.reason)
        because = f": {verdict.reason[:_LONGEST_REASON]}" if verdict.reason else "."
        raise ContentRefused(f"The {what} was refused by this server's content policy{because}")

    def _answer(self, check: Callable[[], Verdict], about: dict[str, str]) -> Verdict:
        """Return what a check says within its time. Not `concurrent.futures`: they wait at exit for what hangs."""
        said: list[Verdict | BaseException] = []

        def run() -> None:
            try:
                said.append(check())
            except BaseException as err:  # whatever a policy raises refuses; its SystemExit too
                said.append(err)
            finally:
                self._places.release()

        if not self._places.acquire(timeout=self._timeout_s):
            raise _unavailable(about, f"{_AT_ONCE} checks have not answered")
        thread = threading.Thread(target=run, name=f"policy {self.name}", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        answer = said[0] if said else None
        if isinstance(answer, Verdict):
            return answer
        if isinstance(answer, BaseException):
            raise _unavailable(about, f"it raised {type(answer).__name__}", answer) from answer
        slow = f"it did not answer within {self._timeout_s:g} s"
        raise _unavailable(about, f"it answered {type(answer).__name__}, no Verdict" if said else slow)


def sampled(length: int, most: int) -> list[int]:
    """Return the indices of at most `most` frames of `length`, spread evenly, the first and the last among them."""
    if length <= most:
        return list(range(length))
    if most <= 1:
        return [length // 2] * most
    return [round(n * (length - 1) / (most - 1)) for n in range(most)]


def pass_request(judge: Judge | None, job: VideoJob) -> None:
    """Return if a worker with this judge may generate a job; blocks.

    Raises:
        ContentRefused: the policy refuses the request.
        PolicyUnavailable: it does not answer, or the API had the job checked by one that this worker does not have.
    """
    name = judge.name if judge else ""
    if job.content_policy not in ("", name):
        log.error("content policy missing", policy=job.content_policy, own=name)
        raise PolicyUnavailable(
            f"The worker has not the content policy {job.content_policy!r} that this job was taken in with "
            "(content_policy); nothing was generated."
        )
    if judge:
        judge.check_request(job.request, job.owner)


def load_judge(name: str | None) -> Judge | None:
    """Return who asks the policy of this name; None for None.

    Raises:
        ConfigurationError: no installed package publishes it (names those that are), two do, or it cannot be used.
    """
    if name is None:
        return None
    known = sorted({point.name for point in entry_points(group=GROUP)})
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise ConfigurationError(
            f"content_policy: no installed package publishes {name!r} in the entry point group {GROUP}."
            f"{did_you_mean(name, known)} Installed: {', '.join(known) or 'none'}. Install the package that has it "
            "into the same Python as polyreel, or unset content_policy."
        )
    if len({point.value for point in found}) > 1:
        raise ConfigurationError(
            f"content_policy: {name!r} is published by several packages ({', '.join(p.value for p in found)}); "
            "uninstall all but one."
        )
    return Judge(name, _load(found[0]))


def _load(point: EntryPoint) -> Any:
    """Return the policy. Any: it comes from outside, and is asked for what it must have."""
    try:
        published = point.load()
        policy = published() if isinstance(published, type) else published
    except Exception as err:
        raise ConfigurationError(
            f"content_policy: {point.name!r} ({point.value}) does not load: {type(err).__name__}: {err}"
        ) from err
    for method in ("check_request", "check_frames"):
        if not callable(getattr(policy, method, None)):
            raise ConfigurationError(f"content_policy: {point.name!r} ({point.value}) has no method {method}.")
    return policy


def _unavailable(about: dict[str, str], reason: str, err: BaseException | None = None) -> PolicyUnavailable:
    log.error("content policy failed", **about, reason=reason, exc_info=err)
    return PolicyUnavailable("The content policy of this server does not answer; nothing was accepted or shown.")
