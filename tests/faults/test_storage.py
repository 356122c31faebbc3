"""R11 and R12: a result disk that is full, and an S3 service that refuses, hangs, fails or does not know the key."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from polyreel.job import JobStatus
from tests.conftest import KEY
from tests.faults.parts import until
from tests.faults.s3_proxy import SLOW_DOWN, WRONG_KEY, S3Proxy
from tests.faults.stand import Stand
from tests.seaweed import BUCKET, KEY_ID, SECRET, Seaweed

pytestmark = pytest.mark.slow

HEADERS = {"Authorization": f"Bearer {KEY}"}


def ask(stand: Stand, prompt: str) -> httpx2.Response:
    body = {"model": "first", "prompt": prompt}
    return httpx2.post(f"{stand.bases[0]}/polyreel/v1/jobs", json=body, headers=HEADERS, timeout=60)


def submit(stand: Stand, prompt: str) -> dict[str, Any]:
    """Submit a job; return the answer. Any: JSON."""
    answer = ask(stand, prompt)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def status(stand: Stand, job: dict[str, Any]) -> JobStatus:
    return stand.record(job["id"]).job.status


def ready(stand: Stand) -> tuple[int, str]:
    answer = httpx2.get(f"{stand.bases[0]}/ready", timeout=60)
    return answer.status_code, " ".join(answer.json().get("reasons", []))


def download(stand: Stand, job: dict[str, Any]) -> bytes:
    """Follow the job's link as a client does; the file must be the one that the record describes."""
    [output] = stand.record(job["id"]).job.outputs
    answer = httpx2.get(f"{stand.bases[0]}/v1/videos/{job['id']}/content", headers=HEADERS, follow_redirects=True)
    assert (answer.status_code, hashlib.sha256(answer.content).hexdigest()) == (200, output.sha256)
    return answer.content


# R12


@pytest.fixture(scope="module")
def proxy(s3_server: Seaweed) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def in_a_bucket(s3_server: Seaweed, proxy: S3Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A server whose results go into a bucket behind the proxy; clients fetch them from the bucket itself."""
    stand = Stand(
        tmp_path_factory.mktemp("bucket"),
        apis=1,
        workers=1,
        POLYREEL_STORAGE=f"s3://{BUCKET}/faults",
        POLYREEL_S3__ENDPOINT=proxy.endpoint,
        POLYREEL_S3__PUBLIC_ENDPOINT=f"http://localhost:{s3_server.port}",
        POLYREEL_S3__ACCESS_KEY_ID=KEY_ID,
        POLYREEL_S3__SECRET_ACCESS_KEY=SECRET,
        POLYREEL_DRAIN_S="2",
    )
    stand.start()
    yield stand
    stand.close()


@pytest.fixture
def bucket(in_a_bucket: Stand, proxy: S3Proxy) -> Iterator[Stand]:
    proxy.mend()
    proxy.puts, proxy.longest_s = 0, 0.0
    in_a_bucket.start()
    yield in_a_bucket
    proxy.mend()
    until(lambda: not in_a_bucket.records.open_ids(), "nothing is unfinished")


@pytest.mark.parametrize(
    ("name", "fault", "tries", "says"),
    [
        ("refused", S3Proxy.refuse, 0, "storage: the S3 service does not answer; check s3.endpoint."),
        ("503", lambda proxy: proxy.answer(*SLOW_DOWN), 2, "storage: the S3 service answers SlowDown; check"),
        ("wrong-key", lambda proxy: proxy.answer(*WRONG_KEY), 2, "check s3.access_key_id and s3.secret_access_key"),
        ("hung", S3Proxy.hang, 2, "The storage of the results does not answer."),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_files_wait_for_s3_on_disk_and_are_never_made_again(
    bucket: Stand, proxy: S3Proxy, name: str, fault: Callable[[S3Proxy], None], tries: int, says: str
) -> None:
    before = submit(bucket, f"before-{name}")
    until(lambda: status(bucket, before) is JobStatus.SUCCEEDED, "S3 works")
    fault(proxy)
    jobs = [submit(bucket, f"{name}-{n}") for n in range(2)]
    until(lambda: {status(bucket, job) for job in jobs} == {JobStatus.UPLOADING}, "both wait for the storage")
    until(lambda: ready(bucket)[0] == 503 and says in ready(bucket)[1], "/ready says so")
    until(lambda: proxy.puts >= tries, "it is tried again")
    assert sorted(bucket.workers[0].jobs) == sorted(job["id"] for job in jobs), "they are leased"
    proxy.mend()
    until(lambda: {status(bucket, job) for job in jobs} == {JobStatus.SUCCEEDED}, "both are stored")
    assert proxy.longest_s <= 10
    assert [bucket.times_begun(f"{name}-{n}") for n in range(2)] == [1, 1]
    assert [bucket.record(job["id"]).job.attempts for job in jobs] == [1, 1]
    for job in jobs:
        assert download(bucket, job)
    if name == "wrong-key":
        until(lambda: ready(bucket)[0] == 200, "it is ready without a restart")
    assert not list((bucket.state / "spool").iterdir())


@pytest.mark.parametrize("end", ["killed", "told to end"])
def test_a_worker_that_ends_during_an_outage_leaves_its_files_to_the_next(
    bucket: Stand, proxy: S3Proxy, end: str
) -> None:
    [worker] = bucket.workers
    proxy.refuse()
    job = submit(bucket, f"outage-{end}")
    until(lambda: status(bucket, job) is JobStatus.UPLOADING, "it waits for the storage")
    if end == "killed":
        worker.kill()
    else:
        worker.signal(signal.SIGTERM)
        until(lambda: not worker.is_running, "it has ended")
    proxy.mend()
    bucket.start()
    until(lambda: status(bucket, job) is JobStatus.SUCCEEDED, "the next worker has stored it")
    assert bucket.times_begun(f"outage-{end}") == 1
    assert bucket.record(job["id"]).job.attempts == (2 if end == "killed" else 1)
    assert download(bucket, job)


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_clients_survive_the_way_into_the_bucket(bucket: Stand) -> None:
    job = submit(bucket, "downloads")
    until(lambda: status(bucket, job) is JobStatus.SUCCEEDED, "it is stored")
    content = download(bucket, job)
    answer = httpx2.get(f"{bucket.bases[0]}/polyreel/v1/jobs/{job['id']}", headers=HEADERS).json()
    link = answer["outputs"][0]["url"]
    assert link.startswith(f"{bucket.bases[0]}/files/out/")
    for url, header in ((link, ""), (f"{bucket.bases[0]}/v1/videos/{job['id']}/content", HEADERS["Authorization"])):
        curl = ["curl", "-sS", "--fail", "-L", *(["-H", f"Authorization: {header}"] if header else []), url]
        assert subprocess.run(curl, capture_output=True, check=True, timeout=60).stdout == content
    openai = pytest.importorskip("openai") if not os.environ.get("CI") else __import__("openai")
    with openai.OpenAI(base_url=f"{bucket.bases[0]}/v1", api_key=KEY) as client:
        assert client.videos.download_content(job["id"]).read() == content
    held = httpx2.post(f"{bucket.bases[0]}/models/faults/first", json={"inputs": "bytes"}, headers=HEADERS, timeout=60)
    assert (held.status_code, held.headers["content-type"]) == (200, "video/mp4"), "read through the storage"


# R11


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB for the results."""
    folder = tmp_path / "stand" / "state" / "results"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        reason = f"a tmpfs cannot be mounted: {mounted.stderr.decode().strip()}"
        if os.environ.get("CI") and os.getuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def on_a_small_disk(small_disk: Path) -> Iterator[Stand]:
    folder = small_disk.parent.parent
    stand = Stand(folder, apis=1, workers=1, POLYREEL_MIN_FREE_MB="1")
    stand.start()
    yield stand
    stand.close()


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    filler = folder / "somebody-elses"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            while True:
                try:
                    file.write(b"x" * size)
                except OSError:
                    break
    return filler


def test_a_full_disk_costs_one_job_and_no_gpu_time_after_it(on_a_small_disk: Stand, small_disk: Path) -> None:
    stand = on_a_small_disk
    stand.ask_to_stop_at("encoding")
    job = submit(stand, "full")
    stand.stopped_at("encoding")
    filler = fill(small_disk)
    stand.let_go("encoding")
    until(lambda: status(stand, job) is JobStatus.FAILED, "there is no space for its file")
    failed = stand.record(job["id"]).job
    assert failed.error_code == "storage_full"
    assert failed.error_message == "The result could not be stored: No space left on device."
    assert [path for path in (small_disk / "out").rglob("*") if path.is_file()] == [], "not a part of it"

    until(lambda: ready(stand)[0] == 503, "/ready says so")
    assert "no space" in ready(stand)[1].lower()
    refused: list[httpx2.Response] = []
    until(lambda: refused.append(ask(stand, "one too many")) or refused[-1].status_code != 202, "submits are refused")
    assert (refused[-1].status_code, refused[-1].json()["code"]) == (507, "storage_full")
    assert stand.times_begun("one too many") == 0, "also what was taken in the moment before waits"

    filler.unlink()
    until(lambda: not stand.records.open_ids(), "what waited is made")
    assert {status(stand, answer.json()) for answer in refused[:-1]} <= {JobStatus.SUCCEEDED}
    until(lambda: ready(stand)[0] == 200, "it is ready without a restart")
    after = submit(stand, "after")
    until(lambda: status(stand, after) is JobStatus.SUCCEEDED, "all is as before")
    assert download(stand, after)
