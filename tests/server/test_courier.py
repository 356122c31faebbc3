"""The courier: what it sends, what each kind of receiver gets it to do, and that none holds up another."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from email.utils import formatdate
from itertools import pairwise
from typing import Any, NoReturn

import httpcore2
import pytest
import redis
from standardwebhooks import Webhook, WebhookVerificationError

from polyreel.errors import OutboundFailed
from polyreel.job import JobStatus, Output
from polyreel.outbound import Outbound
from polyreel.queue import Queue
from polyreel.settings import Settings
from polyreel.signing import load_signer, message_id
from polyreel.webhooks import ATTEMPT_S, SCHEDULE_S, Deliveries, Schedule, Taken, Webhooks
from server.courier import courier as module
from server.courier.courier import Courier, Sender
from server.courier.messages import Messages
from server.courier.verdicts import retry_after_s
from tests.core.jobs import claim, open_queue, queued, redis_time
from tests.server.receivers import Receiver, answering, bomb, dripping, endless, hanging, resetting

DAY_S = 86400.0


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url, retention_s=600)
    yield queue
    queue.records.client.close()


@pytest.fixture
def make_courier(queue: Queue, settings: Settings) -> Iterator[Callable[..., Courier]]:
    """Return a factory of couriers that may go to loopback; keyword arguments are the courier's, or settings."""
    made: list[Courier] = []

    def make(*, webhooks: Webhooks | None = None, total_s: float = 5.0, **changes: object) -> Courier:
        own = {name: changes.pop(name) for name in ("schedule", "hands", "hands_unproven") if name in changes}
        changed = settings.model_copy(update={"webhook_allow": ("127.0.0.0/8",), **changes})
        sender = Sender(Messages(changed).make, Outbound(allow=changed.webhook_allow).post)
        made.append(Courier("test", webhooks or queue.webhooks, lambda: sender, total_s=total_s, **own))
        return made[-1]

    yield make
    for courier in made:
        courier.stop()
        until(lambda courier=courier: courier.count_under_way() == 0)


def until(condition: Callable[[], object], timeout_s: float = 20) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s"
        time.sleep(0.005)
    return time.monotonic() - began


def ended(queue: Queue, webhook: str, owner: str = "alice") -> str:
    """Return the id of a cancelled job of the native dialect."""
    job = replace(queued(webhook=webhook, base_url="http://api.test"), dialect="native", owner=owner)
    job_id = queue.records.create(job, max_open=1000).job.id
    assert queue.cancel(job_id) == "cancelled"
    return job_id


def deliver(courier: Courier) -> int:
    """Deliver what is due now, to its end; return how many."""
    begun = courier.step()
    until(lambda: courier.count_under_way() == 0)
    return begun


def make_due(client: redis.Redis) -> None:
    """Let the time until all next tries pass."""
    now = redis_time(client)
    for receiver in client.zrange("polyreel:webhooks", 0, -1):
        line = f"polyreel:webhooks:line:{receiver}"
        client.zadd(line, dict.fromkeys(client.zrange(line, 0, -1), now - 1))
        client.zadd("polyreel:webhooks", {receiver: now - 1})


def pauses(found: Deliveries) -> list[float]:
    """Return the seconds from each failed attempt to when the next one was due."""
    return [entry.next_at - entry.at for entry in found.log if entry.next_at is not None]


def test_the_body_is_the_dialects_own_and_proves_where_it_comes_from(
    queue: Queue, settings: Settings, make_courier: Callable[..., Courier]
) -> None:
    with Receiver(answering(200)) as receiver:
        job = replace(queued(webhook=receiver.url, base_url="http://api.test"), dialect="native")
        job_id = queue.records.create(job, max_open=9).job.id
        [claimed] = claim(queue)
        output = Output("out/k", "gif", "image/gif", 5, 64, 96, 9, 8.0, "0" * 64)
        queue.records.advance(
            job_id,
            claimed.fence,
            JobStatus.SUCCEEDED,
            outputs=[{name: getattr(output, name) for name in output.__slots__}],
        )
        assert deliver(make_courier()) == 1
    [got] = receiver.received
    said = json.loads(got.body)
    assert (said["type"], said["data"]["id"], said["data"]["status"]) == ("job.succeeded", job_id, "succeeded")
    assert said["timestamp"].endswith("Z")
    assert said["data"]["outputs"][0]["url"].startswith(f"http://api.test/files/out/{job_id}/")
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == f"msg_{job_id.replace('-', '')}"
    assert got.headers["user-agent"].startswith("Polyreel/")
    [secret] = load_signer(settings).secrets_of("alice")
    assert Webhook(secret).verify(got.body, got.headers) == said
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(secret).verify(got.body.replace(b"succeeded", b"failed", 1), got.headers)
    [foreign] = load_signer(settings).secrets_of("bob")
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(foreign).verify(got.body, got.headers)


def test_an_old_message_is_refused_by_who_verifies(settings: Settings) -> None:
    signer = load_signer(settings)
    [secret] = signer.secrets_of("alice")
    headers = signer.headers("alice", message_id("a-b"), time.time() - 600, "{}")
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(secret).verify("{}", headers)


def test_while_secrets_are_changed_each_message_is_signed_by_both(
    queue: Queue, settings: Settings, make_courier: Callable[..., Courier]
) -> None:
    new, old = ("whsec_" + letter * 43 + "=" for letter in "AQ")
    given = settings.model_validate(settings.model_dump() | {"webhook_secrets": f"{new},{old}"})
    with Receiver(answering(204)) as receiver:
        ended(queue, receiver.url)
        deliver(make_courier(webhook_secrets=given.webhook_secrets))
    [got] = receiver.received
    assert got.headers["webhook-signature"].count("v1,") == 2
    newest, older = load_signer(given).secrets_of("alice")
    assert newest != older
    for secret in (newest, older):
        assert Webhook(secret).verify(got.body, got.headers)["type"] == "job.cancelled"


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_success_is_a_delivery(queue: Queue, make_courier: Callable[..., Courier], status: int) -> None:
    with Receiver(answering(status)) as receiver:
        job_id = ended(queue, receiver.url)
        courier = make_courier()
        assert (deliver(courier), deliver(courier)) == (1, 0)
    found = queue.webhooks.deliveries(job_id)
    assert (found.state, found.log[0].status, found.log[0].error) == ("delivered", status, "")


@pytest.mark.parametrize(
    ("answers", "status", "error"),
    [
        (answering(500), 500, "answered 500"),
        (answering(404), 404, "answered 404"),
        (answering(302, Location="/elsewhere"), 302, "answered 302: redirects are not followed"),
        (resetting, None, "webhook could not be reached, or hung up"),
        (hanging, None, "webhook did not answer within 0.3 s"),
        (dripping, None, "webhook did not answer within 0.3 s"),
    ],
    ids=["500", "404", "redirect", "reset", "hangs", "drips"],
)
def test_what_is_no_success_is_tried_again_after_five_seconds(
    queue: Queue,
    make_courier: Callable[..., Courier],
    answers: Callable[..., None],
    status: int | None,
    error: str,
) -> None:
    with Receiver(answers) as receiver:
        job_id = ended(queue, receiver.url)
        deliver(make_courier(total_s=0.3))
        assert [got.path for got in receiver.received] == ["/hook"]
    found = queue.webhooks.deliveries(job_id)
    assert (found.state, found.log[0].status, found.log[0].error) == ("pending", status, error)
    assert found.log[0].ms < 2000
    assert 3.75 <= pauses(found)[0] <= 6.25


def test_a_receiver_that_is_not_there_is_tried_again(queue: Queue, make_courier: Callable[..., Courier]) -> None:
    with Receiver(answering(200)) as receiver:
        url = receiver.url
    job_id = ended(queue, url)
    deliver(make_courier())
    assert queue.webhooks.deliveries(job_id).log[0].error == "webhook could not be reached, or hung up"


def test_a_receiver_that_cannot_be_reached_is_given_five_of_the_fifteen_seconds() -> None:
    given_s: list[float | None] = []

    class Silent(httpcore2.NetworkBackend):
        def connect_tcp(self, host: str, port: int, timeout: float | None = None, **_more: object) -> NoReturn:
            given_s.append(timeout)
            raise httpcore2.ConnectTimeout

    outbound = Outbound(backend=Silent(), resolver=lambda _host, _port: ["93.184.215.14"])
    with pytest.raises(OutboundFailed, match=r"^webhook could not be reached within 5 s$"):
        outbound.post("https://silent.example/", b"{}", {}, ATTEMPT_S, 1, field="webhook")
    assert (ATTEMPT_S, given_s) == (15.0, [5.0])


def test_an_address_that_is_not_allowed_is_never_called(queue: Queue, make_courier: Callable[..., Courier]) -> None:
    """Asked again at each delivery, for names and lists change."""
    with Receiver(answering(200)) as receiver:
        job_id = ended(queue, receiver.url)
        deliver(make_courier(webhook_allow=()))
        assert receiver.received == []
    found = queue.webhooks.deliveries(job_id)
    assert (found.state, found.log[0].status) == ("pending", None)
    assert "webhook_allow" in found.log[0].error


def test_ten_tries_on_the_schedule_and_then_no_more(queue: Queue, make_courier: Callable[..., Courier]) -> None:
    with Receiver(answering(500)) as receiver:
        job_id = ended(queue, receiver.url)
        courier = make_courier()
        for _ in range(12):
            deliver(courier)
            make_due(queue.records.client)
        found = queue.webhooks.deliveries(job_id)
        assert found.state == "failed"
        assert found.log[-1].error == "answered 500; that was the last of 10 tries"
        assert len(receiver.received) == 10
        assert {got.headers["webhook-id"] for got in receiver.received} == {message_id(job_id)}
        assert {got.body for got in receiver.received} == {receiver.received[0].body}
    ratios = [pause / planned for pause, planned in zip(pauses(found), SCHEDULE_S[1:], strict=True)]
    assert all(0.75 <= ratio <= 1.25 for ratio in ratios), ratios
    assert len({round(ratio, 3) for ratio in ratios}) > 1, "what failed together does not come together"


def test_left_alone_it_goes_through_the_whole_schedule(
    queue: Queue, make_courier: Callable[..., Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.005)
    scale = 3e-6  # 75.6 hours in 0.8 s
    with Receiver(answering(500)) as receiver:
        job_id = ended(queue, receiver.url)
        courier = make_courier(schedule=Schedule(scale=scale))
        thread = threading.Thread(target=courier.run)
        thread.start()
        until(lambda: queue.webhooks.deliveries(job_id).state == "failed")
        courier.stop()
        thread.join(10)
        times = [got.at for got in receiver.received]
    assert len(times) == 10
    waited = [later - earlier for earlier, later in pairwise(times)]
    assert all(0.79 * scale * planned <= wait for wait, planned in zip(waited, SCHEDULE_S[1:], strict=True)), waited


def test_who_wants_no_more_gets_no_more(queue: Queue, make_courier: Callable[..., Courier]) -> None:
    with Receiver(answering(410)) as receiver:
        job_id = ended(queue, receiver.url)
        courier = make_courier()
        deliver(courier)
        make_due(queue.records.client)
        assert deliver(courier) == 0
        assert len(receiver.received) == 1
    found = queue.webhooks.deliveries(job_id)
    assert (found.state, found.log[0].error) == ("failed", "answered 410: this receiver wants no more")


@pytest.mark.parametrize(
    ("status", "asked", "least_s", "most_s"),
    [
        (429, "100", 100, 101),
        (503, "100", 100, 101),
        (503, "999999", DAY_S, DAY_S + 1),
        (429, "0", 3.75, 6.25),
        (429, "soon", 3.75, 6.25),
        (500, "100", 3.75, 6.25),
    ],
)
def test_a_pause_that_is_asked_for_is_kept(
    queue: Queue, make_courier: Callable[..., Courier], status: int, asked: str, least_s: float, most_s: float
) -> None:
    with Receiver(answering(status, Retry_After=asked)) as receiver:
        job_id = ended(queue, receiver.url)
        deliver(make_courier())
    assert least_s <= pauses(queue.webhooks.deliveries(job_id))[0] <= most_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        (formatdate(1_000_060, usegmt=True), 60.0),
        ("Mon, 12 Jan 1970 13:47:40 -0000", 60.0),
        (formatdate(999_000, usegmt=True), 0.0),
        (formatdate(2_000_000, usegmt=True), DAY_S),
        ("-5", 0.0),
        ("١", 0.0),
        ("Mon, 99 Jan 1970 99:99:99 GMT", 0.0),
        ("Mon, 12 Jan 1970 13:47:40 +99999999999999999999", 0.0),
        ("Mon, 12 Jan 99999999999999999999 13:47:40 GMT", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float) -> None:
    assert retry_after_s(text, now=1_000_000.0) == pytest.approx(seconds)


@pytest.mark.parametrize("answers", [endless, bomb], ids=["1 GB", "a gzip bomb"])
def test_no_more_of_a_reply_is_read_than_64_kb(
    queue: Queue, make_courier: Callable[..., Courier], answers: Callable[..., None]
) -> None:
    with Receiver(answers) as receiver:
        job_id = ended(queue, receiver.url)
        deliver(make_courier())
        assert receiver.written < 16 * 2**20, "what the sockets of both sides hold"
    [entry] = queue.webhooks.deliveries(job_id).log
    assert (entry.status, entry.error) == (200, "")
    assert entry.ms < 2000


def test_a_hundred_messages_to_a_receiver_that_hangs_hold_up_no_other(
    queue: Queue, make_courier: Callable[..., Courier]
) -> None:
    with Receiver(hanging) as stuck, Receiver(answering(200)) as fine:
        for _ in range(100):
            ended(queue, stuck.url)
        jobs = [ended(queue, fine.url) for _ in range(10)]
        courier = make_courier()
        thread = threading.Thread(target=courier.run)
        thread.start()
        took_s = until(lambda: all(queue.webhooks.deliveries(job).state == "delivered" for job in jobs))
        assert took_s < 4
        assert (stuck.most_at_once, stuck.count()) == (2, 2)
        assert fine.most_at_once <= 2
        courier.stop()
        stuck.let_go.set()
        thread.join(10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2 and so on by itself")
def test_new_receivers_that_hang_leave_hands_free_for_those_that_are_known(
    queue: Queue, make_courier: Callable[..., Courier]
) -> None:
    with ExitStack() as stack, Receiver(answering(200)) as known:
        courier = make_courier(hands=6, hands_unproven=4)
        ended(queue, known.url)
        deliver(courier)
        stuck = [stack.enter_context(Receiver(hanging, f"127.0.0.{n}")) for n in range(2, 10)]
        for receiver in stuck:
            ended(queue, receiver.url)
        job = ended(queue, known.url)
        assert courier.step() == 5
        until(lambda: queue.webhooks.deliveries(job).state == "delivered")
        until(lambda: sum(receiver.count() for receiver in stuck) == 4)
        assert courier.step() == 0
        for receiver in stuck:
            receiver.let_go.set()


def test_what_was_sent_while_redis_was_away_is_noted_and_not_sent_again(
    queue: Queue, make_courier: Callable[..., Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AWAY_S", 0.05)
    is_away = threading.Event()
    is_away.set()

    class Unreachable(Webhooks):
        def note(self, *args: object, **more: object) -> str:
            if is_away.is_set():
                raise redis.ConnectionError("away")
            return super().note(*args, **more)

    with Receiver(answering(200)) as receiver:
        job_id, other = ended(queue, receiver.url), ended(queue, "http://127.0.0.1:9/closed")
        courier = make_courier(webhooks=Unreachable(queue.records.client, lease_s=0.1))
        courier.step()
        until(lambda: receiver.count() == 1)
        time.sleep(0.3)  # both leases have run out by now
        assert courier.step() == 0, "it would take both again"
        is_away.clear()
        until(lambda: courier.count_under_way() == 0)
        assert deliver(courier) == 0
        assert len(receiver.received) == 1
    assert queue.webhooks.deliveries(job_id).state == "delivered"
    assert queue.webhooks.deliveries(other).attempts == 1


def test_a_message_that_cannot_be_made_is_tried_again_and_said_to_be_our_fault(
    queue: Queue, make_courier: Callable[..., Courier]
) -> None:
    job = replace(queued(webhook="http://127.0.0.1:9/"), dialect="huggingface")  # takes no webhooks
    no_word = queue.records.create(job, max_open=9).job.id
    queue.cancel(no_word)
    newer = ended(queue, "http://127.0.0.1:9/")
    queue.records.client.hset(f"polyreel:job:{newer}", "status", "archived")  # by a newer version
    assert deliver(make_courier()) == 2
    for job_id in (no_word, newer):
        found = queue.webhooks.deliveries(job_id)
        assert found.state == "pending"
        assert found.log[0].error == "this server could not make the message; its log says why"


def test_a_job_that_goes_while_its_message_is_to_be_made_is_given_up(
    queue: Queue, make_courier: Callable[..., Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    taking = queue.webhooks.take

    def take_and_delete(*args: Any) -> list[Taken]:
        taken = taking(*args)
        for one in taken:
            queue.records.client.delete(f"polyreel:job:{one.job_id}")
        return taken

    monkeypatch.setattr(queue.webhooks, "take", take_and_delete)
    ended(queue, "http://127.0.0.1:9/")
    assert deliver(make_courier()) == 1
    assert queue.records.client.keys("polyreel:webhook:*") == []
    assert queue.records.client.hget("polyreel:counts", "webhooks_failed") == "1"


def test_a_stop_does_not_wait_for_a_receiver_that_hangs_and_its_message_comes_again(
    queue: Queue, make_courier: Callable[..., Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GRACE_S", 0.2)
    with Receiver(hanging) as receiver:
        job_id = ended(queue, receiver.url)
        courier = make_courier(webhooks=Webhooks(queue.records.client, lease_s=1.0))
        thread = threading.Thread(target=courier.run)
        thread.start()
        until(lambda: receiver.count() == 1)
        courier.stop()
        thread.join(3)
        assert not thread.is_alive()
        time.sleep(1.0)
        assert [taken.job_id for taken in queue.webhooks.take("next", module.Hands(1, 1))] == [job_id]
        receiver.let_go.set()
