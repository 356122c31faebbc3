"""Clients that hold their request open until the video is there: when they hang up, share a job, or outlast a stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from polyreel.job import JobStatus
from server import waiters
from tests.conftest import Api

pytestmark = pytest.mark.anyio

LTX = "/models/Lightricks/LTX-Video"

#: Dialects that hold a request: name, path, body for a prompt.
HOLDING: list[tuple[str, str, Callable[[str], dict[str, Any]]]] = [
    ("huggingface", LTX, lambda prompt: {"inputs": prompt}),
    ("universal", "/", lambda prompt: {"inputs": {"prompt": prompt}}),
]
every_holder = pytest.mark.parametrize(("name", "path", "body"), HOLDING, ids=[row[0] for row in HOLDING])


class Client:
    """A client of the app itself, which can hang up."""

    def __init__(self, api: Api, path: str, body: dict[str, Any], **headers: str) -> None:
        self.api, self.path, self.body = api, path, json.dumps(body).encode()
        self.headers = {"Authorization": f"Bearer {api.key}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        self.has_left = anyio.Event()
        self.status = 0
        self.answer = b""
        self.retry_after = ""
        self._is_sent = False

    async def run(self) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": self.path,
            "query_string": b"",
            "scheme": "http",
            "headers": [(name.lower().encode(), value.encode()) for name, value in self.headers.items()],
        }
        await self.api.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._is_sent:
            self._is_sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        if not self.has_left.is_set():  # not a mere wait: whoever looks whether a client is there takes no time for it
            await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.retry_after = dict(message["headers"]).get(b"retry-after", b"").decode()
        else:
            self.answer += message.get("body", b"")


async def jobs(api: Api, count: int) -> list[str]:
    """Return the unfinished jobs as soon as there are so many."""
    with anyio.fail_after(30):
        while len(api.records.open_ids()) != count:  # noqa: ASYNC110 Redis sets no event
            await anyio.sleep(0.01)
    return api.records.open_ids()


async def counted(api: Api, job_id: str, count: int) -> None:
    """Wait until so many clients are counted as waiting for a job."""
    with anyio.fail_after(30):
        while api.records.client.zcard(f"polyreel:waiting:{job_id}") != count:  # noqa: ASYNC110 likewise
            await anyio.sleep(0.01)


def status_of(api: Api, job_id: str) -> str:
    stored = api.records.get(job_id)
    assert stored is not None
    return stored.job.status.value


def api_with(make_api: Callable[..., Api], **settings: Any) -> Api:
    return make_api(dialects={"huggingface": settings, "universal": {"endpoint_model": "ltx"} | settings})


@every_holder
@pytest.mark.parametrize(("setting", "end"), [(True, "cancelled"), (False, "queued")])
async def test_a_client_that_hangs_up_ends_its_job_or_not_as_the_setting_says(
    make_api: Callable[..., Api], name: str, path: str, body: Any, setting: bool, end: str
) -> None:
    api = api_with(make_api, cancel_when_client_leaves=setting)
    client = Client(api, path, body("a cat"))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            [job_id] = await jobs(api, 1)
            client.has_left.set()
    assert status_of(api, job_id) == end
    assert client.status == 499, "for the log; nobody receives it"


@every_holder
async def test_a_running_job_ends_too_when_its_client_hangs_up(
    make_api: Callable[..., Api], name: str, path: str, body: Any
) -> None:
    api = api_with(make_api)
    client = Client(api, path, body("a cat"))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            [job_id] = await jobs(api, 1)
            fence = api.claim(job_id)
            api.records.advance(job_id, fence, JobStatus.RUNNING)
            client.has_left.set()
    assert status_of(api, job_id) == "cancelled"
    assert not api.records.advance(job_id, fence, JobStatus.ENCODING), "its worker learns it"


@pytest.mark.parametrize(("setting", "cancelled"), [(True, 25), (False, 0)])
async def test_of_fifty_clients_half_hang_up_and_no_task_is_left(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch, setting: bool, cancelled: int
) -> None:
    monkeypatch.setattr("server.gate.BUDGET_S", 30.0)  # all of them and this test share one processor
    api = api_with(make_api, cancel_when_client_leaves=setting)
    clients = [Client(api, LTX, {"inputs": f"cat {n}"}) for n in range(50)]
    before = asyncio.all_tasks()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for client in clients:
                group.start_soon(client.run)
            ids = await jobs(api, 50)
            for client in clients[:25]:
                client.has_left.set()
            while not all(client.status for client in clients[:25]):  # noqa: ASYNC110 the app notices it when it looks
                await anyio.sleep(0.01)
            for job_id in [job_id for job_id in ids if status_of(api, job_id) == "queued"]:
                api.finish(job_id)
    assert asyncio.all_tasks() == before
    ends = [status_of(api, job_id) for job_id in ids]
    assert (ends.count("cancelled"), ends.count("succeeded")) == (cancelled, 50 - cancelled)
    assert [client.status for client in clients] == [499] * 25 + [200] * 25


async def test_a_job_that_another_client_waits_for_goes_on_also_in_another_process(
    make_api: Callable[..., Api],
) -> None:
    one, other = api_with(make_api), api_with(make_api)
    leaving, staying = Client(one, LTX, {"inputs": "a cat"}), Client(other, LTX, {"inputs": "a cat"})
    with anyio.fail_after(30):
        async with anyio.create_task_group() as both:
            async with anyio.create_task_group() as first:
                first.start_soon(leaving.run)
                [job_id] = await jobs(one, 1)
                both.start_soon(staying.run)
                await counted(one, job_id, 2)
                leaving.has_left.set()
            assert status_of(one, job_id) == "queued"
            one.finish(job_id, b"for who stayed")
    assert (staying.status, staying.answer) == (200, b"for who stayed")


async def test_the_last_client_of_a_shared_job_ends_it(make_api: Callable[..., Api]) -> None:
    api = api_with(make_api)
    clients = [Client(api, LTX, {"inputs": "a cat"}) for _ in range(3)]
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for client in clients:
                group.start_soon(client.run)
            [job_id] = await jobs(api, 1)
            await counted(api, job_id, 3)
            for client in clients:
                client.has_left.set()
    assert status_of(api, job_id) == "cancelled"


def leave_before_a_client_is_counted(monkeypatch: pytest.MonkeyPatch, leaving: Client, number: int) -> None:
    """Let a client hang up, and its job end, when the client of this number has found the job and is not yet counted.

    Args:
        monkeypatch: of the test.
        leaving: who hangs up.
        number: counted from 1, over all who wait.
    """
    really, seen = waiters.Waiter.stay, set[str]()

    async def stay(waiter: waiters.Waiter) -> bool:
        if waiter._name not in seen:
            seen.add(waiter._name)
            if len(seen) == number:
                leaving.has_left.set()
                while leaving.status == 0:  # noqa: ASYNC110 set by the app's own call
                    await anyio.sleep(0.01)
        return await really(waiter)

    monkeypatch.setattr(waiters.Waiter, "stay", stay)


async def test_who_finds_a_job_that_its_client_is_just_leaving_gets_a_job_of_its_own(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is found in the cache while it waits, and is cancelled before the second client is counted."""
    api = api_with(make_api)
    first, second = Client(api, LTX, {"inputs": "a cat"}), Client(api, LTX, {"inputs": "a cat"})
    leave_before_a_client_is_counted(monkeypatch, first, 2)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(first.run)
            [job_id] = await jobs(api, 1)
            await counted(api, job_id, 1)
            group.start_soon(second.run)
            while status_of(api, job_id) != "cancelled":  # noqa: ASYNC110 Redis sets no event
                await anyio.sleep(0.01)
            [again] = await jobs(api, 1)
            assert again != job_id
            api.finish(again, b"made for the second")
    assert first.status == 499
    assert (second.status, second.answer) == (200, b"made for the second")


@every_holder
async def test_a_job_that_its_owner_cancels_before_its_client_is_counted_stays_cancelled(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch, name: str, path: str, body: Any
) -> None:
    """The client is told so; the request is not tried again behind the back of whoever cancelled it."""
    api = api_with(make_api)
    really = waiters.Waiter.stay

    async def stay(waiter: waiters.Waiter) -> bool:
        await anyio.to_thread.run_sync(api.records.cancel, waiter.job_id)
        return await really(waiter)

    monkeypatch.setattr(waiters.Waiter, "stay", stay)
    client = Client(api, path, body("a cat"))
    with anyio.fail_after(10):
        await client.run()
    assert (client.status, json.loads(client.answer)["error"]) == (500, "The job was cancelled.")
    assert api.records.open_ids() == []


async def unpromised(_waiters: waiters.Waiters, _job_id: str) -> None:
    """Stand for a promise that Redis did not take."""


async def test_a_promised_job_that_was_left_all_the_same_is_made_anew_for_who_comes_back(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make_api(dialects={"huggingface": {"wait_for_model": False}})
    waits = ("false", "true", "true")
    told, leaving, back = (Client(api, LTX, {"inputs": "a cat"}, X_Wait_For_Model=wait) for wait in waits)
    leave_before_a_client_is_counted(monkeypatch, leaving, 3)
    monkeypatch.setattr(waiters.Waiters, "promise", unpromised)
    with anyio.fail_after(30):
        await told.run()
        [job_id] = api.records.open_ids()
        api.records.client.delete(f"polyreel:waiting:{job_id}")  # as when its time is over
        async with anyio.create_task_group() as group:
            group.start_soon(leaving.run)
            await counted(api, job_id, 1)
            group.start_soon(back.run)
            while status_of(api, job_id) != "cancelled":  # noqa: ASYNC110 Redis sets no event
                await anyio.sleep(0.01)
            [again] = await jobs(api, 1)
            api.finish(again, b"made for who came back")
    assert (told.status, leaving.status) == (503, 499)
    assert (back.status, back.answer) == (200, b"made for who came back")


@every_holder
async def test_a_job_with_an_idempotency_key_goes_on_also_when_it_could_not_be_promised(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch, name: str, path: str, body: Any
) -> None:
    """The key would name a cancelled job for a day."""
    api = api_with(make_api)
    monkeypatch.setattr(waiters.Waiters, "promise", unpromised)
    gone = Client(api, path, body("a cat"), Idempotency_Key="mine")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(gone.run)
            [job_id] = await jobs(api, 1)
            await counted(api, job_id, 1)
            gone.has_left.set()
    assert status_of(api, job_id) == "queued"


@every_holder
async def test_a_client_with_an_idempotency_key_may_come_back_for_its_job(
    make_api: Callable[..., Api], name: str, path: str, body: Any
) -> None:
    api = api_with(make_api)
    gone = Client(api, path, body("a cat"), Idempotency_Key="mine")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(gone.run)
            [job_id] = await jobs(api, 1)
            await counted(api, job_id, 2)  # the client, and the promise
            gone.has_left.set()
        assert status_of(api, job_id) == "queued"
        back = Client(api, path, body("a cat"), Idempotency_Key="mine")
        async with anyio.create_task_group() as group:
            group.start_soon(back.run)
            api.finish(job_id, b"kept")
    assert back.status == 200
    assert back.answer == b"kept" or json.loads(back.answer)["ok"] is True
    assert api.records.open_ids() == []


async def test_a_job_that_was_promised_in_a_503_goes_on_when_another_client_of_it_leaves(
    make_api: Callable[..., Api],
) -> None:
    api = make_api(dialects={"huggingface": {"wait_for_model": False}})
    told = Client(api, LTX, {"inputs": "a cat"})
    with anyio.fail_after(30):
        await told.run()
        assert told.status == 503
        [job_id] = api.records.open_ids()
        leaving = Client(api, LTX, {"inputs": "a cat"}, X_Wait_For_Model="true")
        async with anyio.create_task_group() as group:
            group.start_soon(leaving.run)
            await counted(api, job_id, 3)  # the promise, the one who was told so and counts a little longer, and this
            leaving.has_left.set()
    assert status_of(api, job_id) == "queued"


@every_holder
async def test_a_job_whose_client_was_told_that_it_goes_on_does(
    make_api: Callable[..., Api], name: str, path: str, body: Any
) -> None:
    api = api_with(make_api, wait_s=0.1)
    late = Client(api, path, body("a cat"))
    with anyio.fail_after(30):
        await late.run()
    [job_id] = api.records.open_ids()
    assert (late.status, json.loads(late.answer)["job_id"]) == (504, job_id)
    assert api.records.client.zscore(f"polyreel:waiting:{job_id}", "promise")
    assert 0 < api.records.client.ttl(f"polyreel:waiting:{job_id}") <= 7 * 86400


@every_holder
async def test_when_the_process_is_told_to_stop_a_waiting_client_is_told_to_come_back(
    make_api: Callable[..., Api], name: str, path: str, body: Any
) -> None:
    api = api_with(make_api)
    client = Client(api, path, body("a cat"))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            [job_id] = await jobs(api, 1)
            api.app.state.services.stopping.set()
    assert (client.status, client.retry_after) == (503, "5")
    answer = json.loads(client.answer)
    assert answer["error"] == (
        "The server is being restarted; send the request again in a few seconds. Its job goes on."
    )
    assert answer["job_id"] == job_id
    assert status_of(api, job_id) == "queued"


async def test_when_the_process_is_told_to_stop_a_held_submit_answers_with_its_job(
    make_api: Callable[..., Api],
) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 60}})
    client = Client(api, "/api/v6/video/text2video", {"key": api.key, "prompt": "a cat"})
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await jobs(api, 1)
            api.app.state.services.stopping.set()
    assert client.status == 200
    assert json.loads(client.answer)["status"] == "processing"


async def test_a_waiter_whose_process_was_killed_counts_no_longer_than_it_said(api: Api) -> None:
    services = api.app.state.services
    await Client(api, "/v3/async/txt2video", NOVITA).run()
    [job_id] = api.records.open_ids()
    counts: waiters.Waiters = services.waiters
    assert await counts.stay(job_id, "killed", 0.05) == "queued"
    assert await counts.stay(job_id, "lives", 30) == "queued"
    await anyio.sleep(0.1)
    assert await counts.leave(job_id, "lives") == "cancelled"


NOVITA = {
    "model_name": "darkSushiMixMix_225D_64380.safetensors",
    "height": 512,
    "width": 512,
    "steps": 20,
    "prompts": [{"frames": 16, "prompt": "a cat"}],
}


@pytest.mark.parametrize(
    ("end", "word"), [("succeeded", "succeeded"), ("failed", "failed"), ("cancelled", "was cancelled")]
)
async def test_leaving_a_job_that_has_ended_changes_nothing(api: Api, end: str, word: str) -> None:
    counts: waiters.Waiters = api.app.state.services.waiters
    await Client(api, "/v3/async/txt2video", NOVITA).run()
    [job_id] = api.records.open_ids()
    {"succeeded": api.finish, "failed": api.fail, "cancelled": api.records.cancel}[end](job_id)
    assert await counts.stay(job_id, "one", 30) == end
    assert await counts.leave(job_id, "one") == word == api.records.cancel(job_id)
    assert status_of(api, job_id) == end


async def test_leaving_a_job_whose_file_is_being_made_changes_nothing(api: Api) -> None:
    counts: waiters.Waiters = api.app.state.services.waiters
    await Client(api, "/v3/async/txt2video", NOVITA).run()
    [job_id] = api.records.open_ids()
    api.records.advance(job_id, api.claim(job_id), JobStatus.ENCODING)
    assert await counts.leave(job_id, "one") == "finishing" == api.records.cancel(job_id)
    assert await counts.leave("7b1e0000-0000-4000-8000-000000000000", "one") == ""
