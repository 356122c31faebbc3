"""A request that no worker's device can hold is refused before it is queued; and the estimate of when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from polyreel.admission import Rates, work
from polyreel.catalogue import Catalogue
from polyreel.entries import Cost, Geometry
from polyreel.errors import InvalidRequest
from polyreel.job import JobStatus
from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.request import VideoRequest
from polyreel.terms import Terms
from server.services import Services
from tests.conftest import KEY, Api
from tests.core.jobs import REQUEST, queued

pytestmark = pytest.mark.anyio

#: 9 frames of 96x64 are 2 x 2 x 3 tokens of a gigabyte each.
COSTLY = {"geometry": Geometry(frames=8, pixels=32), "cost": Cost(mb_per_1k_tokens=1_000_000)}


@pytest.fixture
def api(make_api: Callable[..., Api], catalogue: Catalogue) -> Api:
    """An API whose model ltx-tiny says that it needs much memory."""
    models = {**catalogue.models, "ltx-tiny": catalogue["ltx-tiny"].model_copy(update=COSTLY)}
    return make_api(models=models, dialects={"modelslab": {"hold_s": 0}, "universal": {"endpoint_model": "ltx"}})


def services(api: Api) -> Services:
    found: Services = api.app.state.services
    return found


async def submit(api: Api) -> None:
    await services(api).submit(REQUEST, dialect="novita", caller=Caller("alice"))


def beat(api: Api, name: str, memory_bytes: int | None, models: tuple[str, ...] = ("ltx-tiny",)) -> None:
    api.leases.beat(
        name, {"device": "cuda", "models": list(models), "loaded": list(models), "memory_bytes": memory_bytes}
    )


async def test_what_cannot_fit_the_largest_live_worker_is_refused_and_not_queued(api: Api) -> None:
    beat(api, "small", 8_000_000_000)
    beat(api, "large", 11_000_000_000)
    beat(api, "serves-others", 80_000_000_000, models=("atelier",))
    with pytest.raises(InvalidRequest) as refused:
        await submit(api)
    assert str(refused.value) == (
        "9 frames of 96x64 would need about 12.8 GB of memory on this model, and the largest GPU that serves it here "
        "has 11.0 GB. What fits: 1 frame of 96x64."
    )
    assert api.records.open_ids() == []


async def test_what_fits_the_largest_live_worker_is_queued(api: Api) -> None:
    beat(api, "small", 8_000_000_000)
    beat(api, "large", 12_800_000_000)
    await submit(api)
    assert len(api.records.open_ids()) == 1


async def test_a_worker_without_a_limit_takes_everything(api: Api) -> None:
    beat(api, "gpu", 8_000_000_000)
    beat(api, "cpu", None)
    await submit(api)


async def test_nothing_is_refused_while_no_worker_serves_the_model(api: Api) -> None:
    beat(api, "serves-others", 1_000_000_000, models=("atelier",))
    beat(api, "is-stopping", 1_000_000_000, models=())
    await submit(api)


async def test_a_model_of_which_nothing_is_known_is_not_looked_at(api: Api) -> None:
    beat(api, "tiny", 1, models=("atelier", "ltx-tiny"))
    await services(api).submit(replace(REQUEST, model="atelier"), dialect="novita", caller=Caller("alice"))


async def test_a_refusal_has_the_dialects_own_shape(api: Api) -> None:
    beat(api, "small", 3_000_000_000)
    body = {"key": KEY, "model_id": "ltx", "prompt": "p", "height": 512, "width": 512, "num_frames": 25}
    answer = await api.http.post("/api/v6/video/text2video", json=body)
    assert answer.json()["status"] == "error"
    assert "25 frames of 512x512 would need about" in answer.json()["message"]
    assert "GB of memory on this model, and the largest GPU" in answer.json()["message"]
    assert api.records.open_ids() == []


async def eta_s(api: Api, request: VideoRequest) -> int:
    """Return what a client is told of a job of its own that waits alone, for a model that is loaded."""
    stored = api.records.create(queued(request), max_open=10)
    try:
        return await services(api).eta_s(stored)
    finally:
        api.records.cancel(stored.job.id)


async def test_the_estimate_follows_a_jobs_own_steps(api: Api) -> None:
    long, short = replace(REQUEST, num_inference_steps=50), replace(REQUEST, num_inference_steps=8)
    entry = services(api).catalogue["ltx-tiny"]
    rates: Rates = work(entry, long).rates(denoising_s=100.0, rest_s=2.0)
    api.records.learn_seconds("ltx-tiny", 102.0, rates)
    beat(api, "only", None)
    assert await eta_s(api, long) == 102
    assert await eta_s(api, short) == 18
    running = StoredJob(queued(short, status=JobStatus.RUNNING, progress=50), 1, 1, False)
    assert await services(api).eta_s(running) == 9


@pytest.mark.parametrize("older", ["", "7.5", "[1]", '{"seconds": 3}'])
async def test_without_rates_that_can_be_read_the_estimate_is_the_mean(api: Api, older: str) -> None:
    beat(api, "only", None)
    assert await eta_s(api, REQUEST) == 10
    api.records.client.hset("polyreel:seconds", "ltx-tiny", "42.0")  # as older versions wrote it
    api.records.client.hset("polyreel:rates", "ltx-tiny", older)
    api.app.state.services.waiting._view = None  # what was read a moment ago is a second old now
    assert await eta_s(api, REQUEST) == 42


async def test_a_job_whose_model_is_not_served_any_more_has_an_estimate(api: Api) -> None:
    api.records.learn_seconds("gone", 30.0, Rates(1.0, 1.0))
    beat(api, "only", None, models=("gone",))
    assert await eta_s(api, replace(REQUEST, model="gone")) == 30


async def test_what_was_acknowledged_stays_so_when_the_worker_that_it_fits_has_gone(api: Api) -> None:
    terms = Terms(idempotency_key="mine", digest="of the request")
    beat(api, "large", 80_000_000_000)
    made = await services(api).submit(REQUEST, dialect="novita", caller=Caller("alice"), terms=terms)
    beat(api, "large", 8_000_000_000)
    services(api).live_workers.read_at = 0.0
    with pytest.raises(InvalidRequest):
        await submit(api)
    again = await services(api).submit(REQUEST, dialect="novita", caller=Caller("alice"), terms=terms)
    assert (again.job.id, again.number) == (made.job.id, made.number)
