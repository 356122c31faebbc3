"""Records of older versions are counted, and brought up to date one by one while everything goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from polyreel import migration
from polyreel.job import JobStatus, Output
from polyreel.migration import check, migrate
from polyreel.profiles import load_settings
from polyreel.queue import Queue
from polyreel.settings import Settings
from polyreel.storage.local import LocalStorage
from tests.core.jobs import MODEL, REQUEST, assert_all_adds_up, claim, open_queue, queued, read
from tests.core.test_upgrade import REQUEST_1, version_1


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return load_settings(redis_url=redis_url, state_dir=tmp_path / "state").settings


@pytest.fixture
def stored(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "results")


def version_2(queue: Queue, **fields: object) -> str:
    """Write a job as version 2 of the records did: its request has no `flow_shift`."""
    job = queue.records.create(queued(**fields), max_open=1000).job.id
    key = f"polyreel:job:{job}"
    queue.records.client.hset(key, mapping={"schema": 2, "request": REQUEST_1})
    queue.records.client.hdel(key, "keep_s", "content_policy")
    return job


def test_where_all_is_new_there_is_nothing_to_do(queue: Queue, settings: Settings, stored: LocalStorage) -> None:
    queue.submit(queued())
    state = check(queue.records.client, settings, stored)
    assert (state.records, state.to_migrate, state.exit_code) == ({3: 1}, 0, 0)
    assert state.fits == {"redis": "ok", "rq": "ok", "keys": "ok", "storage": "ok"}
    assert state.downgrade == {1: {"unfinished": 1, "ended": 0}, 2: {"unfinished": 1, "ended": 0}}
    assert migrate(queue.records.client, settings) == 0


def test_older_records_are_counted_and_nothing_is_changed_by_looking(
    queue: Queue, settings: Settings, stored: LocalStorage
) -> None:
    client = queue.records.client
    version_1(client, 1)
    version_2(queue)
    queue.submit(queued())
    before = sorted(client.keys())
    records = {key: client.hgetall(key) for key in client.keys("polyreel:job:*")}
    state = check(client, settings, stored)
    assert (state.records, state.to_migrate, state.exit_code) == ({1: 1, 2: 1, 3: 1}, 2, 1)
    assert sorted(client.keys()) == before
    assert {key: client.hgetall(key) for key in client.keys("polyreel:job:*")} == records


def test_older_records_are_brought_up_to_date_once(queue: Queue, settings: Settings, stored: LocalStorage) -> None:
    client = queue.records.client
    first, second = version_1(client, 1), version_2(queue, dialect="native")
    assert migrate(client, settings) == 2
    assert migrate(client, settings) == 0
    state = check(client, settings, stored)
    assert (state.records, state.exit_code) == ({3: 2}, 0)
    record = client.hgetall(f"polyreel:job:{first}")
    assert (record["model"], record["pixels"], record["schema"]) == (MODEL, str(9 * 64 * 96), "3")
    assert json.loads(record["request"])["flow_shift"] is None
    assert (record["keep_s"], record["lane"], record["content_policy"]) == ("0.0", "interactive", "")
    assert [read(queue, job).job.request for job in (first, second)] == [REQUEST, REQUEST]
    assert read(queue, second).job.dialect == "native"
    assert_all_adds_up(client)
    assert sorted(one.job_id for _ in range(2) for one in claim(queue)) == sorted([first, second])


def test_an_ended_record_keeps_its_time(queue: Queue, settings: Settings) -> None:
    client = queue.records.client
    job = version_1(client, 7, status="succeeded", claimable=0, fence=1, progress=100)
    assert migrate(client, settings) == 1
    assert 0 < client.ttl(f"polyreel:job:{job}") <= 600
    assert read(queue, job).job.status is JobStatus.SUCCEEDED


def test_what_is_written_while_a_record_is_migrated_stays(
    queue: Queue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = queue.records.client
    job = version_2(queue)
    [taken] = claim(queue)
    really = migration.parse

    def worker_reports(record: dict[str, str]) -> object:
        assert queue.records.advance(job, taken.fence, JobStatus.RUNNING, "one", progress=40, keep_s=5.0)
        return really(record)

    monkeypatch.setattr(migration, "parse", worker_reports)
    assert migrate(client, settings) == 1
    stored = read(queue, job).job
    assert (stored.progress, stored.keep_s, stored.status) == (40, 5.0, JobStatus.RUNNING)


@pytest.mark.parametrize("meanwhile", ["migrated", "deleted"])
def test_what_somebody_else_was_quicker_with_is_left_to_him(
    queue: Queue, settings: Settings, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    client = queue.records.client
    key = f"polyreel:job:{version_2(queue)}"
    really = migration.parse

    def somebody(record: dict[str, str]) -> object:
        client.hset(key, "schema", "4") if meanwhile == "migrated" else client.delete(key)
        return really(record)

    monkeypatch.setattr(migration, "parse", somebody)
    assert migrate(client, settings) == 0
    assert client.hget(key, "schema") == ("4" if meanwhile == "migrated" else None)


def test_newer_and_broken_records_are_told_and_left_alone(
    queue: Queue, settings: Settings, stored: LocalStorage
) -> None:
    client = queue.records.client
    newer, broken = queue.submit(queued()).job.id, version_2(queue)
    client.hset(f"polyreel:job:{newer}", "schema", "4")
    client.hset(f"polyreel:job:{broken}", "request", "[no JSON")
    before = [client.hgetall(f"polyreel:job:{job}") for job in (newer, broken)]
    assert migrate(client, settings) == 0
    state = check(client, settings, stored)
    assert (state.newer, state.unreadable, state.exit_code) == (1, [broken], 2)
    assert [client.hgetall(f"polyreel:job:{job}") for job in (newer, broken)] == before


def test_what_does_not_fit_is_named(
    queue: Queue, settings: Settings, stored: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = queue.records.client
    job = version_2(queue)
    output = Output(f"out/{job}/1/{job}.gif", "gif", "image/gif", 10, 64, 96, 9, 8.0, "0" * 64)
    client.hset(f"polyreel:job:{job}", mapping={"status": "succeeded", "outputs": json.dumps([asdict(output)])})
    client.set("polyreel:keys:pepper", "of another machine")
    client.set("polyreel:secret:pepper", "c2VjcmV0LXNlY3JldC1zZWNyZXQ=")
    monkeypatch.setattr(migration, "version", lambda name: "2.14.0")
    fits = check(client, settings, stored).fits
    assert fits["keys"] == "stored keys were made under another pepper (key_pepper), so none of them is good."
    assert fits["storage"].startswith("1 of 1 results that were looked for are not there")
    assert fits["rq"].startswith("rq 2.14.0 is installed, and this polyreel writes what rq")
    assert fits["redis"] == "ok"
    client.delete("polyreel:secret:pepper")
    assert check(client, settings, stored).fits["keys"].startswith("the pepper that stored keys were made under")

    def away(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(migration, "version", away)
    assert check(client, settings, stored).fits["rq"] == "rq is not installed."
