"""What is swept, and when."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from polyreel.job import new_job
from polyreel.profiles import load_settings
from polyreel.records import Records
from polyreel.request import ImageCondition
from polyreel.storage.local import LocalStorage
from polyreel.storage_marker import claim, known_of, mark_of
from tests.core.jobs import REQUEST, queued, redis_time
from tests.seaweed import Seaweed
from workers.sweeper import Sweeper

HOUR, DAY = 3600.0, 24 * 3600.0


def stored(folder: Path, name: str, age_s: float, now: float) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (now - age_s, now - age_s))
    return path


def know(records: Records, since: float = 0.0) -> None:
    """Let Redis know the storage, and every job that stores there since then."""
    known = {"id": "0" * 32, "place": "here", "since": since, "is_marked": False}
    records.client.set("polyreel:storage", json.dumps(known))


def test_a_result_goes_an_hour_after_its_retention_and_not_before(tmp_path: Path, records: Records) -> None:
    now = 2_000_000_000.0
    storage = LocalStorage(tmp_path / "results")
    kept = stored(storage.folder, "out/a/a.mp4", 7 * DAY + 0.9 * HOUR, now)
    records.client.hset("polyreel:job:a", "status", "succeeded")
    gone = stored(storage.folder, "out/b/b.mp4", 7 * DAY + 1.1 * HOUR, now)
    assert Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client).sweep(now) == 1
    assert kept.exists()
    assert not gone.exists()


def test_what_killed_workers_left_in_scratch_goes_after_a_day(tmp_path: Path, records: Records) -> None:
    now = 2_000_000_000.0
    old, young = tmp_path / "scratch" / "old", tmp_path / "scratch" / "young"
    for folder, age_s in ((old, 25 * HOUR), (young, 23 * HOUR)):
        stored(folder, "half.mp4", age_s, now)
        os.utime(folder, (now - age_s, now - age_s))
    Sweeper(LocalStorage(tmp_path / "results"), DAY, tmp_path / "scratch", records.client).sweep(now)
    assert not old.exists()
    assert young.exists()


def test_a_worker_sweeps_as_soon_as_it_starts(tmp_path: Path, records: Records) -> None:
    storage = LocalStorage(tmp_path / "results")
    gone = stored(storage.folder, "out/a/a.mp4", 0, 1_000_000_000.0)
    sweeper = Sweeper(storage, DAY, tmp_path / "scratch", records.client)
    sweeper.start()
    for _ in range(200):
        if not gone.exists():
            break
        sweeper._thread.join(0.01)
    sweeper.stop()
    assert not gone.exists()


def test_what_another_worker_removes_meanwhile_stops_no_sweep(tmp_path: Path, records: Records) -> None:
    now = 2_000_000_000.0
    storage = LocalStorage(tmp_path / "results")
    gone = stored(storage.folder, "out/b/b.mp4", 8 * DAY, now)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "dangling").symlink_to(tmp_path / "nowhere")  # listed, and not there
    assert Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client).sweep(now) == 1
    assert not gone.exists()


@pytest.mark.parametrize("key", ["out/{id}/{id}.gif", "out/{id}/3/{id}.gif", "run/{id}/3"])
def test_files_whose_record_is_gone_go_after_an_hour(tmp_path: Path, records: Records, key: str) -> None:
    know(records)
    now = 2_000_000_000.0
    storage = LocalStorage(tmp_path / "results")
    job = new_job(REQUEST, dialect="modelslab", owner="alice", extensions=("gif",))
    records.create(job, max_open=10)
    ids = {
        "known": job.id,
        "young": "7b1e0000-0000-4000-8000-000000000001",
        "old": "7b1e0000-0000-4000-8000-000000000002",
    }
    files = {
        name: stored(storage.folder, key.format(id=job_id), 0.9 * HOUR if name == "young" else 1.1 * HOUR, now)
        for name, job_id in ids.items()
    }
    for folder in storage.folder.rglob("*"):
        if folder.is_dir():
            os.utime(folder, (now - 1.1 * HOUR, now - 1.1 * HOUR))
    assert Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client).sweep(now) == 1
    assert {name: file.exists() for name, file in files.items()} == {"known": True, "young": True, "old": False}
    assert not (storage.folder / key.split("/")[0] / ids["old"]).exists()


def test_pictures_of_jobs_of_version_0_1_stay_until_their_age_is_over(tmp_path: Path, records: Records) -> None:
    now = 2_000_000_000.0
    storage = LocalStorage(tmp_path / "results")
    picture = stored(storage.folder, f"in/{'a' * 64}", 2 * HOUR, now)
    assert Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client).sweep(now) == 0
    assert picture.exists()


def test_a_picture_that_no_job_uses_any_more_goes_with_the_next_sweep(tmp_path: Path, records: Records) -> None:
    now = 2_000_000_000.0
    storage = LocalStorage(tmp_path / "results")
    used, unused = (stored(storage.folder, f"in/{letter * 64}", 60, now) for letter in "ab")
    jobs = [
        records.create(queued(replace(REQUEST, images=(ImageCondition(f"in/{name}"),))), max_open=10).job
        for name in ("a" * 64, "b" * 64)
    ]
    records.client.delete(f"polyreel:job:{jobs[1].id}")  # its retention is over
    assert Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client).sweep(now) == 1
    assert (used.exists(), unused.exists()) == (True, False)


def test_a_picture_that_comes_into_use_while_others_are_removed_stays(tmp_path: Path, records: Records) -> None:
    def submitted(picture: str) -> str:
        return records.create(queued(replace(REQUEST, images=(ImageCondition(picture),))), max_open=10).job.id

    class Busy(LocalStorage):
        def delete(self, key: str) -> None:
            submitted(pictures[1 - pictures.index(key)])  # a client sends the other one once more
            super().delete(key)

    now = 2_000_000_000.0
    storage = Busy(tmp_path / "results")
    pictures = [f"in/{letter * 64}" for letter in "ab"]
    for picture in pictures:
        stored(storage.folder, picture, 60, now)
        records.client.delete(f"polyreel:job:{submitted(picture)}")
    assert Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client).sweep(now) == 1
    assert sorted((storage.folder / picture).exists() for picture in pictures) == [False, True]


def test_in_a_place_with_another_servers_mark_nothing_is_removed(tmp_path: Path, records: Records) -> None:
    now = 2_000_000_000.0
    settings = load_settings(state_dir=tmp_path, storage=(tmp_path / "results").as_uri()).settings
    storage = LocalStorage(tmp_path / "results")
    claim(records.client, storage, settings)
    records.client.delete("polyreel:storage")
    claim(records.client, LocalStorage(tmp_path / "other"), settings)  # of another server, in this Redis
    theirs = stored(storage.folder, "out/b/b.mp4", 80 * DAY, now)
    sweeper = Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client)
    with capture_logs() as logs:
        assert sweeper.sweep(now) == 0
    assert theirs.exists()
    assert [log["event"] for log in logs] == ["the storage carries another server's mark; nothing in it is removed"]


def test_what_was_stored_before_this_redis_knew_the_place_goes_by_its_age_alone(
    tmp_path: Path, records: Records
) -> None:
    """An emptied Redis has no record of any job, and its users still have links."""
    now = redis_time(records.client)
    storage = LocalStorage(tmp_path / "results")
    before = stored(storage.folder, "out/7b1e0000-0000-4000-8000-000000000001/1", 2 * HOUR, now)
    for path in (before.parent, before.parent.parent):
        os.utime(path, (now - 2 * HOUR, now - 2 * HOUR))
    claim(records.client, storage, load_settings(state_dir=tmp_path).settings)
    sweeper = Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client)
    assert sweeper.sweep(now) == 0
    assert before.exists()
    sweeper.sweep(now + 8 * DAY)
    assert not before.exists()


@pytest.mark.parametrize("is_back", [True, False], ids=["storage back", "storage away"])
def test_a_redis_that_is_emptied_under_its_workers_takes_no_result_with_it(
    tmp_path: Path, records: Records, is_back: bool
) -> None:
    """Its place is claimed anew, from now on."""
    now = redis_time(records.client)
    settings = load_settings(state_dir=tmp_path).settings
    storage = LocalStorage(tmp_path / "results")
    claim(records.client, storage, settings)
    before = stored(storage.folder, "out/7b1e0000-0000-4000-8000-000000000001/1", 2 * HOUR, now)
    os.utime(before.parent, (now - 2 * HOUR, now - 2 * HOUR))
    records.client.flushdb()

    def claim_again() -> None:
        if is_back:
            claim(records.client, storage, settings)

    sweeper = Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client, claim=claim_again)
    assert sweeper.sweep(now) == 0
    assert before.exists()
    known = known_of(records.client)
    assert (known is not None and known.id == mark_of(storage)) is is_back
    sweeper.sweep(now + 8 * DAY)
    assert not before.exists()


def test_a_bucket_is_swept_by_the_same_rules(tmp_path: Path, records: Records, s3_server: Seaweed) -> None:
    know(records)
    storage = s3_server.storage("swept")
    kept, forgotten = (
        new_job(REQUEST, dialect="modelslab", owner="alice", extensions=("gif",)) for _ in ("kept", "forgotten")
    )
    records.create(kept, max_open=10)
    (tmp_path / "source").write_bytes(b"x")
    keys = [f"out/{kept.id}/1/{kept.id}.gif", f"out/{forgotten.id}/1/{forgotten.id}.gif", f"run/{forgotten.id}/1"]
    for key in keys:
        storage.put(tmp_path / "source", key)
    sweeper = Sweeper(storage, 7 * DAY, tmp_path / "scratch", records.client)
    now = time.time()
    assert sweeper.sweep(now + 0.9 * HOUR) == 0
    assert sweeper.sweep(now + 1.1 * HOUR) == 2
    assert [storage.size(key) for key in keys] == [1, None, None]
    assert sweeper.sweep(now + 7 * DAY + 1.1 * HOUR) == 1
    assert storage.size(keys[0]) is None
