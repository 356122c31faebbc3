"""A local storage is held to its quota: the oldest ended jobs go, whole, and no others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from polyreel.errors import ConfigurationError
from polyreel.job import JobStatus
from polyreel.profiles import load_settings
from polyreel.records import Records
from polyreel.request import ImageCondition
from polyreel.storage.local import Held, HeldJob, LocalStorage
from polyreel.storage.memory import MemoryStorage
from tests.core.jobs import REQUEST, queued, redis_time
from workers.quota import Quota, quota_of
from workers.sweeper import Sweeper

MB = 10**6


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "results")


def write(storage: LocalStorage, key: str, size: int, age_s: float, now: float) -> Path:
    path = storage.folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (now - age_s, now - age_s))
    return path


class Site:
    """Jobs with files of a megabyte, as old as they say."""

    def __init__(self, storage: LocalStorage, records: Records) -> None:
        self.storage, self.records = storage, records
        self.now = redis_time(records.client)

    def job(self, age_s: float, status: str = "succeeded", picture: str = "") -> str:
        """Make a job that ended, or was submitted, so long ago."""
        images = (ImageCondition(f"in/{picture * 64}"),) if picture else ()
        job = self.records.create(queued(replace(REQUEST, images=images)), max_open=100).job
        if picture:
            write(self.storage, f"in/{picture * 64}", 10, age_s, self.now)
        if status != "queued":
            assert self.records.advance(job.id, None, JobStatus(status))
            self.records.client.hset(f"polyreel:job:{job.id}", "ended_at", f"{self.now - age_s:.6f}")
        write(self.storage, f"out/{job.id}/1/{job.id}.gif", MB, age_s, self.now)
        return job.id

    def there(self, *job_ids: str) -> list[tuple[bool, bool]]:
        """Say of each job whether its record is there, and whether its files are."""
        return [
            (self.records.get(job_id) is not None, (self.storage.folder / "out" / job_id).exists())
            for job_id in job_ids
        ]


@pytest.fixture
def site(storage: LocalStorage, records: Records) -> Site:
    return Site(storage, records)


def test_the_oldest_ended_jobs_go_with_records_and_files_until_the_rest_fits(site: Site) -> None:
    young, old, oldest = site.job(600), site.job(7200, "failed"), site.job(9000)
    with capture_logs() as logs:
        assert Quota(site.storage, site.records, 2 * MB).look() == 1
    assert site.there(oldest, old, young) == [(False, False), (True, True), (True, True)]
    assert logs == [{"event": "the oldest jobs went for disk_quota_gb", "log_level": "info", "jobs": 1, "bytes": MB}]
    assert site.records.client.hget("polyreel:counts", "quota_removed") == "1"
    assert site.storage.held().total_bytes == 2 * MB


def test_what_fits_exactly_stays(site: Site) -> None:
    jobs = [site.job(600), site.job(7200)]
    assert Quota(site.storage, site.records, 2 * MB).look() == 0
    assert site.there(*jobs) == [(True, True)] * 2


def test_an_unfinished_job_never_goes_nor_one_that_has_just_ended(site: Site) -> None:
    """Its files are those of an attempt that is being published; the other's client is about to fetch it."""
    unfinished, just_ended, old = site.job(9000, "queued"), site.job(30), site.job(600)
    quota = Quota(site.storage, site.records, MB / 2)
    with capture_logs() as logs:
        assert quota.look() == 1
    assert site.there(unfinished, just_ended, old) == [(True, True), (True, True), (False, False)]
    assert [log["log_level"] for log in logs] == ["info", "warning"]
    assert logs[1]["event"] == "the storage holds more than disk_quota_gb, and no ended job is left that could go"
    site.records.client.delete("polyreel:quota:looked")
    with capture_logs() as logs:
        assert quota.look() == 0
    assert logs == [], "said once"


def test_snapshots_and_pictures_count_and_go_with_their_job(site: Site) -> None:
    old, young = site.job(9000, picture="a"), site.job(600, picture="b")
    snapshot = write(site.storage, f"run/{old}/1", MB, 9000, site.now)
    assert site.storage.held() == Held(
        3 * MB + 20, {old: HeldJob(2 * MB, site.now - 9000), young: HeldJob(MB, site.now - 600)}
    )
    assert Quota(site.storage, site.records, 2.5 * MB).look() == 1
    assert not snapshot.exists()
    assert [path.name for path in (site.storage.folder / "in").iterdir()] == ["b" * 64]


def test_no_more_goes_than_it_takes_where_pictures_go_too(site: Site) -> None:
    oldest, old, young = site.job(9000, picture="a"), site.job(7200), site.job(600)
    write(site.storage, f"in/{'a' * 64}", MB, 9000, site.now)
    assert Quota(site.storage, site.records, 2 * MB).look() == 1
    assert site.there(oldest, old, young) == [(False, False), (True, True), (True, True)]


def test_files_whose_record_is_gone_go_too(site: Site) -> None:
    forgotten, known = site.job(9000), site.job(600)
    site.records.client.delete(f"polyreel:job:{forgotten}")
    assert Quota(site.storage, site.records, MB).look() == 1
    assert site.there(forgotten, known) == [(False, False), (True, True)]


def test_of_several_workers_one_looks_at_a_time(site: Site) -> None:
    jobs = [site.job(9000 - n) for n in range(3)]
    one, two = (Quota(site.storage, site.records, 2 * MB) for _ in range(2))
    assert (one.look(), two.look()) == (1, 0)
    assert 0 < site.records.client.pttl("polyreel:quota:looked") <= 60_000
    assert site.there(*jobs) == [(False, False), (True, True), (True, True)]


def test_what_is_not_ours_is_neither_counted_nor_removed(site: Site) -> None:
    theirs = write(site.storage, "holiday.mp4", 5 * MB, 9000, site.now)
    write(site.storage, "out/holiday.mp4", 5 * MB, 9000, site.now)
    assert site.storage.held().total_bytes == 0
    assert Quota(site.storage, site.records, MB).look() == 0
    assert theirs.exists()


def test_the_sweeper_looks(site: Site, tmp_path: Path) -> None:
    old = site.job(9000)
    quota = Quota(site.storage, site.records, MB / 2)
    sweeper = Sweeper(site.storage, 10**6, tmp_path / "scratch", site.records.client, quota)
    sweeper.start()
    for _ in range(3000):
        if site.there(old) == [(False, False)]:
            break
        sweeper._thread.join(0.01)
    sweeper.stop()
    assert site.there(old) == [(False, False)]


def test_only_a_local_storage_can_be_held_to_a_quota(records: Records, tmp_path: Path) -> None:
    def settings(**given: object) -> object:
        return quota_of(load_settings(state_dir=tmp_path, **given).settings, MemoryStorage(), records)

    assert settings(storage="memory:") is None
    with pytest.raises(ConfigurationError, match=r"^disk_quota_gb: memory: is not a local storage\. Leave it out"):
        settings(storage="memory:", disk_quota_gb=1)
    local = load_settings(state_dir=tmp_path, disk_quota_gb=0.5).settings
    quota = quota_of(local, LocalStorage(tmp_path), records)
    assert quota is not None
    assert quota._quota_bytes == 500_000_000
