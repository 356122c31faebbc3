"""Clients that follow jobs by their events, while the API and Redis are killed under them."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field

import httpx2
import pytest

from tests.conftest import KEY
from tests.faults.parts import until
from tests.faults.stand import Stand

HEADERS = {"Authorization": f"Bearer {KEY}"}


@dataclass
class Follower:
    """A client that connects again, to whatever process answers, until it has heard of the end.

    Attributes:
        heard: names of the events, with those that came after a reconnection.
        connections: how often it connected.
        end: status in the last event.
    """

    stand: Stand
    job_id: str
    first: int
    heard: list[str] = field(default_factory=list)
    connections: int = 0
    end: str = ""
    last: str = ""

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while not self.end and time.monotonic() < deadline:
            base = self.stand.bases[(self.first + self.connections) % len(self.stand.bases)]
            self.connections += 1
            try:
                self._listen(f"{base}/polyreel/v1/jobs/{self.job_id}/events")
            except httpx2.TransportError:
                time.sleep(0.1)

    def _listen(self, url: str) -> None:
        headers = HEADERS | ({"Last-Event-ID": self.last} if self.last else {})
        with httpx2.stream("GET", url, headers=headers, timeout=20, verify=False) as stream:
            if stream.status_code != 200:
                return time.sleep(0.1)
            name = ""
            for line in stream.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                    self.heard.append(name)
                elif field == "id":
                    self.last = value
                elif field == "data" and name == "end":
                    self.end = json.loads(value)["status"]
        return None


@pytest.mark.slow
def test_no_follower_misses_the_end_when_every_api_and_redis_are_killed(whole: Stand) -> None:
    """RELIABILITY.md, R3 and L3."""
    jobs = []
    for n in range(5):
        body = {"model": "first", "prompt": f"clip followed-{n} step_s=0.4", "num_frames": 9, "num_inference_steps": 8}
        headers = HEADERS | {"X-Polyreel-Exact": "true"}
        answer = httpx2.post(f"{whole.bases[0]}/polyreel/v1/jobs", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        jobs.append(answer.json()["id"])
    followers = [Follower(whole, jobs[n % 5], n) for n in range(50)]
    threads = [threading.Thread(target=follower.run) for follower in followers]
    for thread in threads:
        thread.start()
    until(lambda: all(follower.heard for follower in followers), "all follow")
    for api in whole.apis:
        api.kill()
    whole.kill_valkey()
    whole.start_valkey()
    for api in whole.apis:
        api.start()
    for thread in threads:
        thread.join(60)
    assert {follower.end for follower in followers} == {"succeeded"}
    assert {follower.heard.count("end") for follower in followers} == {1}
    assert {follower.heard[-1] for follower in followers} == {"end"}
    # A job that was over before all of them followed has let its own go.
    assert sum(follower.connections > 1 for follower in followers) >= 10
    assert {whole.record(job_id).job.attempts for job_id in jobs} == {1}
