"""Takes webhooks that are due and delivers them, many at the same time, until it is told to stop.

A thread for each delivery: they wait for other people's servers and cost nothing else. Redis may go away at any time:
what was sent meanwhile is noted when it is back, before anything else is taken.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import redis
import structlog

from polyreel.errors import PolyreelError, QueueUnavailable
from polyreel.outbound import Reply
from polyreel.records import StoredJob, job_key, parse
from polyreel.tracing import PARENT, Stretch, log_fields, tell
from polyreel.webhooks import ATTEMPT_S, Attempt, Hands, Schedule, Taken, Webhooks
from server.courier.verdicts import Verdict, judge

T = TypeVar("T")

log = structlog.get_logger()

#: Seconds between two looks for due deliveries while none comes to its end.
_LOOK_S = 0.25

#: Seconds between two tries to reach Redis while it is away.
_AWAY_S = 0.5

#: How long what is under way may take after a stop, seconds; what takes longer is delivered again after its lease.
_GRACE_S = 5.0

#: Longest reply that is read, bytes; nothing of it is kept.
_MAX_REPLY_BYTES = 64 * 1024


class Post(Protocol):
    """As `polyreel.outbound.Outbound.post`."""

    def __call__(
        self, url: str, body: bytes, headers: Mapping[str, str], total_s: float, max_reply_bytes: int, field: str
    ) -> Reply: ...


@dataclass(frozen=True, slots=True)
class Message:
    """One attempt's request.

    Args:
        url: as the client named it.
        headers: Content-Type and the signature.
    """

    url: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Sender:
    """How messages are made and sent.

    Args:
        make: an ended job and the time to its message; raises for one that cannot be made.
        post: sends it; raises `PolyreelError` when no reply comes.
    """

    make: Callable[[StoredJob, float], Message]
    post: Post


class Courier:
    """Delivers webhooks.

    Args:
        name: unique; says that this one lives.
        webhooks: what waits. Its client answers or fails within seconds, or a stop would take as long.
        sender: returns how to send, or raises `QueueUnavailable`; asked at the first delivery, since the dialects take
            a second to import and most servers have no webhooks.
        schedule: when failed deliveries are tried again.
        hands: deliveries at the same time.
        hands_unproven: of those, to receivers that failed last time or are new: while they hang, others are served.
        total_s: longest time of an attempt, seconds; less than a lease of `webhooks`.
    """

    def __init__(
        self,
        name: str,
        webhooks: Webhooks,
        sender: Callable[[], Sender],
        *,
        schedule: Schedule | None = None,
        hands: int = 32,
        hands_unproven: int = 24,
        total_s: float = ATTEMPT_S,
    ) -> None:
        self.name = name
        self._webhooks = webhooks
        self._make_sender = sender
        self._sender: Sender | None = None
        self._schedule = schedule or Schedule()
        self._hands, self._hands_unproven = hands, hands_unproven
        self._total_s = total_s
        self._lock = threading.Lock()
        self._under_way: set[Taken] = set()
        self._waiting_for_redis = 0
        self._has_ended_one = threading.Event()
        self._is_away = False
        self._stopping = False

    def stop(self) -> None:
        """End `run` soon. Safe in a signal handler: takes no lock."""
        self._stopping = True

    def run(self) -> None:
        """Deliver until `stop`.

        Raises:
            ConfigurationError: messages cannot be made with these settings.
        """
        while not self._stopping:
            self.step()
            self._has_ended_one.wait(_AWAY_S if self._is_away else _LOOK_S)
            self._has_ended_one.clear()
        deadline = time.monotonic() + _GRACE_S
        while self.count_under_way() and time.monotonic() < deadline:
            time.sleep(0.05)
        if left := self.count_under_way():
            log.warning("stopped with deliveries under way, which are delivered again", count=left)

    def step(self) -> int:
        """Begin all deliveries that are due and can be; return how many."""
        with self._lock:
            if self._waiting_for_redis:  # what has been sent is noted first, or it would be sent again
                return 0
            unproven = sum(not taken.is_proven for taken in self._under_way)
            hands = Hands(self._hands - len(self._under_way), self._hands_unproven - unproven)
        try:
            begun = self._webhooks.take(self.name, hands)
        except redis.RedisError as err:
            self._went_away(err)
            return 0
        self._is_back()
        if begun and self._sender is None:
            try:
                self._sender = self._make_sender()
            except QueueUnavailable as err:  # gone this moment, with the secret that signs; the leases run out
                self._went_away(err)
                return 0
        for taken in begun:
            with self._lock:
                self._under_way.add(taken)
            threading.Thread(target=self._deliver, args=(taken,), name=f"to {taken.receiver}", daemon=True).start()
        return len(begun)

    def count_under_way(self) -> int:
        """Return how many deliveries have begun and not ended."""
        with self._lock:
            return len(self._under_way)

    def _deliver(self, taken: Taken) -> None:
        try:
            began = time.monotonic()
            status, verdict = self._attempt(taken)
            self._note(taken, status, verdict, round(1000 * (time.monotonic() - began)))
        except redis.RedisError as err:  # we stop while Redis is away, or it refuses: the lease runs out
            log.warning("an attempt could not be noted", job_id=taken.job_id, reason=repr(err))
        except Exception:  # a mistake of ours must not look like one of theirs; the lease runs out
            log.exception("delivery crashed", job_id=taken.job_id)
        finally:
            with self._lock:
                self._under_way.discard(taken)
            self._has_ended_one.set()

    def _attempt(self, taken: Taken) -> tuple[int | None, Verdict]:
        """Send a message once; return the reply's status and what it means."""
        record = self._patiently(lambda: self._webhooks.client.hgetall(job_key(taken.job_id)))
        trace = _trace(record)
        structlog.contextvars.bind_contextvars(**log_fields(trace))  # for this delivery's thread
        began = time.time()
        status, verdict = self._send(taken, record)
        # Not the URL: its path may be a secret.
        about: dict[str, str | int | float] = {"job_id": taken.job_id, "attempt": taken.attempt}
        about |= {"outcome": verdict.outcome, "status": status or 0}
        tell(Stretch("webhook", began, time.time()), [], about, parent=trace.get(PARENT, ""))
        return status, verdict

    def _send(self, taken: Taken, record: Mapping[Any, Any]) -> tuple[int | None, Verdict]:  # Any: as `parse`
        sender = self._sender
        assert sender is not None  # noqa: S101 `step` has seen to it
        if not record:
            return None, Verdict("failed", "the job was deleted or has expired")
        try:
            message = sender.make(_read(record), time.time())
        except Exception:  # tried again: an upgrade mends it
            log.exception("webhook cannot be made", job_id=taken.job_id, dialect=record.get("dialect"))
            return None, Verdict("retry", "this server could not make the message; its log says why")
        try:
            reply = sender.post(
                message.url, message.body, message.headers, self._total_s, _MAX_REPLY_BYTES, field="webhook"
            )
        except PolyreelError as err:
            return None, Verdict("retry", err.message)
        return reply.status, judge(reply.status, reply.headers, time.time())

    def _note(self, taken: Taken, status: int | None, verdict: Verdict, ms: int) -> None:
        outcome, error = verdict.outcome, verdict.error
        pause_s = self._schedule.after_s(taken.attempt_of_round, random.random())  # noqa: S311 no secret
        if outcome == "retry" and pause_s is None:
            outcome, error = "failed", f"{error}; that was the last of {taken.attempt_of_round} tries"
        after_s = max(pause_s or 0.0, verdict.not_before_s)
        attempt = Attempt(taken.attempt, status, error, ms)
        state = self._patiently(lambda: self._webhooks.note(taken, attempt, outcome, after_s))
        about = {"job_id": taken.job_id, "receiver": taken.receiver, "attempt": taken.attempt, "ms": ms}
        if outcome == "delivered":
            log.info("webhook delivered", **about)
        elif state == "failed":
            log.warning("webhook given up", error=error, **about)
        else:
            log.info("webhook not delivered", error=error, next_in_s=round(after_s, 1), **about)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, as soon as Redis answers.

        Raises:
            RedisError: we are stopping, or Redis answers that it will not.
        """
        is_waiting = False
        try:
            while True:
                try:
                    return call()
                except (redis.ConnectionError, redis.TimeoutError) as err:
                    if self._stopping:
                        raise
                    self._went_away(err)
                    if not is_waiting:
                        is_waiting = True
                        with self._lock:
                            self._waiting_for_redis += 1
                    time.sleep(_AWAY_S)
        finally:
            if is_waiting:
                with self._lock:
                    self._waiting_for_redis -= 1

    def _went_away(self, err: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("redis does not answer; webhooks wait", reason=repr(err))

    def _is_back(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("redis answers again")


def _trace(record: Mapping[Any, Any]) -> dict[str, str]:  # Any: as `parse`
    """Return where a job's submit belongs, nothing where its record does not say or cannot be read."""
    try:
        found = json.loads(record.get("trace", "{}"))
    except ValueError:
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def _read(record: Mapping[Any, Any]) -> StoredJob:  # Any: as `parse`
    """Read a record that is there.

    Raises:
        ValueError: a newer version wrote it.
    """
    stored = parse(record)
    if stored is None:
        raise ValueError("the record has no request")
    return stored
