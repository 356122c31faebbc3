"""What clients want, and what they remember of the answers."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass, field

from tests.conftest import KEY, OTHER_KEY

DIALECTS = ("huggingface", "universal", "modelslab", "novita")


@dataclass(frozen=True)
class Ask:
    """What one client wants.

    Args:
        name: unique in a test; its Idempotency-Key, and part of its prompt.
        dialect: one of `DIALECTS`.
        orders: of `tests.faults.paced`, e.g. "step_s=0.1".
        model: catalogue name; the universal dialect has only the first.
        steps: denoising steps.
        owner: "alice" or "bob".
        headers: further ones of the submit.
        webhook: URL that is told of the end, "" for none; ModelsLab and Novita have a word for it.
        is_keyed: send the name as Idempotency-Key; without it, a job whose waiting client goes away may be cancelled.
    """

    name: str
    dialect: str
    orders: str = ""
    model: str = "first"
    steps: int = 2
    owner: str = "alice"
    headers: dict[str, str] = field(default_factory=dict)
    is_keyed: bool = True
    webhook: str = ""

    @property
    def prompt(self) -> str:
        """The text that the model is given."""
        return f"clip {self.name} {self.orders}".strip()

    @property
    def key(self) -> str:
        """The API key."""
        return {"alice": KEY, "bob": OTHER_KEY}[self.owner]


@dataclass
class Kept:
    """What a client remembers.

    Attributes:
        job_id: "" until it was told.
        acknowledged_at: moment of the first answer that promised the job, 0.0 before.
        seen: (0 waiting, 1 at work, 2 ended; percent) at each change.
        end: "succeeded", "failed", "" before.
        reason: of a failure.
        link: to the file.
        content: of the file.
        submits: requests until the acknowledgement.
        submit_s, poll_s: seconds that answers took.
        wrong: what nobody should be told.
    """

    ask: Ask
    job_id: str = ""
    number: int = 0
    acknowledged_at: float = 0.0
    seen: list[tuple[int, int]] = field(default_factory=list)
    end: str = ""
    reason: str = ""
    link: str = ""
    content: bytes = b""
    submits: int = 0
    submit_s: list[float] = field(default_factory=list)
    poll_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Of the file's content."""
        return hashlib.sha256(self.content).hexdigest()

    def acknowledged(self, job_id: str) -> None:
        """Note that somebody promised the job; the same one every time."""
        if self.job_id and job_id != self.job_id:
            self.wrong.append(f"was told of job {self.job_id}, then of {job_id}")
        self.job_id = job_id
        self.acknowledged_at = self.acknowledged_at or time.monotonic()

    def see(self, rank: int, progress: int) -> None:
        """Note a state."""
        if not self.seen or self.seen[-1] != (rank, progress):
            self.seen.append((rank, progress))


def mixed(count: int, name: str, rng: random.Random, slowest_step_s: float = 0.0, receiver: str = "") -> list[Ask]:
    """Return requests over all dialects, models and owners, of different lengths.

    Args:
        receiver: URL of who is told of their ends, where the dialect has a word for it; each has a path of its own.
    """
    return [
        Ask(
            f"{name}-{n}",
            DIALECTS[n % 4],
            f"step_s={rng.uniform(0, slowest_step_s):.3f}",
            model="first" if n % 4 == 1 else rng.choice(["first", "first", "second"]),
            steps=rng.randint(2, 8),
            owner=rng.choice(["alice", "bob"]),
            webhook=f"{receiver}/{name}-{n}" if receiver and n % 4 >= 2 else "",
        )
        for n in range(count)
    ]
