"""Listing an owner's jobs in pages, and getting rid of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from polyreel.errors import InvalidRequest, NotCancellable, UnknownJob
from polyreel.job import JobStatus
from polyreel.keys import Caller
from polyreel.terms import Terms
from server.listing import Page, jobs_of
from server.removal import remove
from server.services import Services
from tests.conftest import Api
from tests.core.jobs import REQUEST, assert_all_adds_up

pytestmark = pytest.mark.anyio


@pytest.fixture
def shared(api: Api) -> Services:
    return api.app.state.services


@pytest.fixture
def submit(shared: Services) -> Callable[..., Any]:
    async def submit(owner: str = "alice", model: str = "ltx-tiny", **more: Any) -> str:
        request = replace(REQUEST, model=model)
        return (await shared.submit(request, dialect="modelslab", caller=Caller(owner), **more)).job.id

    return submit


def ids(page: Page) -> list[str]:
    return [stored.job.id for stored in page.jobs]


async def test_an_owners_jobs_come_newest_first_and_nobody_elses(shared: Services, submit: Any) -> None:
    first, _, last = await submit(), await submit("bob"), await submit()
    assert await jobs_of(shared, "carol", 10) == Page([])
    page = await jobs_of(shared, "alice", 10)
    assert (ids(page), page.has_more) == ([last, first], False)
    assert ids(await jobs_of(shared, "alice", 10, ascending=True)) == [first, last]


async def test_pages_follow_each_other_however_many_jobs_come_meanwhile(shared: Services, submit: Any) -> None:
    made = [await submit() for _ in range(5)]
    one = await jobs_of(shared, "alice", 2)
    await submit()
    two = await jobs_of(shared, "alice", 2, after=one.jobs[-1].job.id)
    await submit()
    three = await jobs_of(shared, "alice", 2, after=str(two.jobs[-1].number))
    assert ids(one) + ids(two) + ids(three) == made[::-1]
    assert [page.has_more for page in (one, two, three)] == [True, True, False]


async def test_oldest_first_pages_follow_each_other_too(shared: Services, submit: Any) -> None:
    made = [await submit() for _ in range(3)]
    one = await jobs_of(shared, "alice", 2, ascending=True)
    two = await jobs_of(shared, "alice", 2, after=one.jobs[-1].job.id, ascending=True)
    assert (ids(one), ids(two)) == (made[:2], made[2:])


async def test_a_page_begins_after_nobody_elses_job(shared: Services, submit: Any) -> None:
    of_bob = await submit("bob")
    for after in (of_bob, "7b1e0000-0000-4000-8000-000000000000", "nonsense", "9" * 30):
        with pytest.raises(InvalidRequest, match=r"^after must be the id or the number of a job of yours"):
            await jobs_of(shared, "alice", 10, after=after)


async def test_filters_look_past_a_whole_chunk(
    api: Api, shared: Services, submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.listing._CHUNK", 2)
    wan = await submit(model="atelier")
    made = [await submit() for _ in range(5)]
    api.fail(made[0])
    assert ids(await jobs_of(shared, "alice", 10, model="atelier")) == [wan]
    failed = await jobs_of(shared, "alice", 1, statuses=frozenset({"failed"}))
    assert (ids(failed), failed.has_more) == ([made[0]], False)
    assert ids(await jobs_of(shared, "alice", 10, statuses=frozenset({"failed"}), model="atelier")) == []


async def test_a_filter_that_leaves_out_thousands_gives_a_short_page_that_leads_on(
    shared: Services, api: Api, submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.listing._CHUNK", 2)
    monkeypatch.setattr("server.listing._MOST_LEFT_OUT", 4)
    made = [await submit() for _ in range(7)]
    api.fail(made[0])
    api.fail(made[6])
    failed = frozenset({"failed"})
    one = await jobs_of(shared, "alice", 5, statuses=failed)
    assert (ids(one), one.has_more) == ([made[6]], True)
    two = await jobs_of(shared, "alice", 5, after=str(one.next), statuses=failed)
    assert (ids(two), two.has_more) == ([made[0]], False)
    assert len(ids(await jobs_of(shared, "alice", 7))) == 7, "nothing is left out where nothing is filtered"


async def test_a_job_whose_record_has_expired_is_taken_out_of_the_index(
    api: Api, shared: Services, submit: Any
) -> None:
    gone, stays = await submit(), await submit()
    api.records.client.delete(f"polyreel:job:{gone}")
    assert ids(await jobs_of(shared, "alice", 10)) == [stays]
    assert api.records.client.zrange("polyreel:jobs:alice", 0, -1) == [stays]


async def test_an_index_that_names_somebody_elses_job_shows_it_to_nobody(
    api: Api, shared: Services, submit: Any
) -> None:
    of_bob = await submit("bob")
    api.records.client.zadd("polyreel:jobs:alice", {of_bob: 1})
    assert ids(await jobs_of(shared, "alice", 10)) == []


async def test_ends_tidy_the_index_of_an_owner_who_never_lists(api: Api, submit: Any) -> None:
    gone, ends, stays = await submit(), await submit(), await submit()
    api.records.cancel(gone)
    api.records.client.delete(f"polyreel:job:{gone}")
    api.records.cancel(ends)
    assert api.records.client.zrange("polyreel:jobs:alice", 0, -1) == [ends, stays]


async def test_removing_an_unfinished_job_cancels_it(api: Api, shared: Services, submit: Any) -> None:
    job_id = await submit()
    removal = await remove(shared, job_id, "alice")
    assert (removal.is_deleted, removal.stored.job.status) == (False, "cancelled")
    assert ids(await jobs_of(shared, "alice", 10)) == [job_id]


async def test_removing_an_ended_job_leaves_nothing_of_it(api: Api, shared: Services, submit: Any) -> None:
    job_id = await submit()
    number = (await shared.get(job_id, "alice")).number
    api.finish(job_id)
    assert (api.storage.folder / "out" / job_id).is_dir()
    removal = await remove(shared, str(number), "alice")
    assert (removal.is_deleted, removal.stored.job.id) == (True, job_id)
    for name in (job_id, str(number)):
        with pytest.raises(UnknownJob):
            await shared.get(name, "alice")
    assert ids(await jobs_of(shared, "alice", 10)) == []
    assert not (api.storage.folder / "out" / job_id).exists()
    assert [key for key in api.records.client.scan_iter("*") if job_id in key or str(number) in key] == []
    with pytest.raises(UnknownJob):
        await remove(shared, job_id, "alice")
    api.records.client.hincrby("polyreel:counts", "submitted", -1)  # the counters go on counting what was
    api.records.client.hincrby("polyreel:counts", "succeeded", -1)
    assert_all_adds_up(api.records.client)


async def test_nobody_elses_job_can_be_removed(api: Api, shared: Services, submit: Any) -> None:
    job_id = await submit("bob")
    api.finish(job_id)
    with pytest.raises(UnknownJob):
        await remove(shared, job_id, "alice")
    assert (await shared.get(job_id, "bob")).job.status == "succeeded"


async def test_a_job_whose_file_is_being_made_is_not_removed(api: Api, shared: Services, submit: Any) -> None:
    job_id = await submit()
    api.records.advance(job_id, api.claim(job_id), JobStatus.ENCODING)
    with pytest.raises(NotCancellable):
        await remove(shared, job_id, "alice")


async def test_a_job_that_ends_while_it_is_removed_is_deleted(
    api: Api, shared: Services, submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit()
    really = shared.queue.cancel

    def ends_before(asked: str) -> str:
        api.finish(asked)
        return really(asked)

    monkeypatch.setattr(shared.queue, "cancel", ends_before)
    assert (await remove(shared, job_id, "alice")).is_deleted


async def test_an_unfinished_job_cannot_be_deleted_by_whoever_comes_late(api: Api, submit: Any) -> None:
    job_id = await submit()
    assert not api.records.delete(job_id)
    assert api.records.get(job_id) is not None
    assert api.records.delete("7b1e0000-0000-4000-8000-000000000000")


async def test_after_its_job_was_deleted_an_idempotency_key_submits_anew(api: Api, submit: Any, shared: Any) -> None:
    terms = Terms(idempotency_key="retry", digest="d")
    first = await submit(terms=terms)
    api.finish(first)
    assert await submit(terms=terms) == first
    await remove(shared, first, "alice")
    second = await submit(terms=terms)
    assert second != first
    assert await submit(terms=terms) == second


async def test_the_links_of_a_deleted_job_are_gone_in_every_process(
    api: Api, make_api: Callable[..., Api], submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the storage did not let the files go, and another process has served them a moment ago."""
    other = make_api()
    job_id = await submit()
    api.finish(job_id)
    shared: Services = api.app.state.services
    path = shared.signer.path(f"out/{job_id}/{job_id}.gif", 4_000_000_000)
    assert ((await api.http.get(path)).status_code, (await other.http.get(path)).status_code) == (200, 200)
    monkeypatch.setattr("polyreel.storage.local.LocalStorage.delete_folder", lambda _self, _folder: 0)
    other.app.state.services.published._clock = lambda: 1e12  # a second later
    await remove(shared, job_id, "alice")
    assert ((await api.http.get(path)).status_code, (await other.http.get(path)).status_code) == (404, 404)
    assert (api.storage.folder / "out" / job_id).exists()


async def test_a_job_kept_briefly_expires_so_much_sooner(api: Api, submit: Any) -> None:
    brief, full, too_long = await submit(keep_s=90.5), await submit(), await submit(keep_s=1e9)
    for job_id in (brief, full, too_long):
        api.finish(job_id)
    seconds = [api.records.client.ttl(f"polyreel:job:{job_id}") for job_id in (brief, full, too_long)]
    assert 80 <= seconds[0] <= 91
    assert seconds[1] > 6 * 86400
    assert seconds[2] > 6 * 86400
    assert api.records.client.ttl("polyreel:jobs:alice") > 6 * 86400
    stored = api.records.get(brief)
    assert stored is not None
    assert stored.job.kept_until(86400) == stored.job.ended_at + 90.5
