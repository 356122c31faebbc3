"""`GET /files/{key}`: the file for whoever has the link, as a player expects it, and for nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from pydantic import SecretStr

from polyreel.broker import start_embedded
from polyreel.errors import QueueUnavailable, StorageAway, StorageFailed
from polyreel.job import JobStatus, Output, attempt_key
from polyreel.keys import ApiKeys
from polyreel.leases import Leases, Wishes
from polyreel.records import Records, StoredJob, connect
from polyreel.settings import Settings
from polyreel.storage import Storage
from polyreel.storage.local import LocalStorage
from polyreel.storage.memory import MemoryStorage
from server.app import create_app
from server.published import Published
from tests.core.jobs import queued
from tests.seaweed import Seaweed

pytestmark = pytest.mark.anyio

ID = "7b1e0000-0000-4000-8000-000000000000"
KEY = f"out/{ID}/{ID}.mp4"
CONTENT = bytes(range(256)) * 2000


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "bucket":
        bucket: Storage = request.getfixturevalue("bucket")
        return bucket
    return LocalStorage(tmp_path / "results") if request.param == "local" else MemoryStorage()


@pytest.fixture
def app(settings: Settings, keys: ApiKeys, storage: Storage):
    return create_app(settings, keys, storage=storage)


@pytest.fixture
async def http(app) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client:
        yield client
    await app.state.services.reader.aclose()


@pytest.fixture
def link(app):
    """Return a maker of links that are good for `seconds`."""
    return lambda key=KEY, seconds=60.0: app.state.services.signer.path(key, time.time() + seconds)


@pytest.fixture
def store(storage: Storage, records: Records, tmp_path: Path):
    """Return a function that runs a job as a worker does, and ends it with a published file."""

    def put(key: str, content: bytes) -> None:
        (tmp_path / "source").write_bytes(content)
        storage.put(tmp_path / "source", key)

    def store(key: str = KEY, content: bytes = CONTENT) -> None:
        records.create(queued(id=ID, output_keys=(key,)), max_open=10)
        leases = Leases(records.client, retention_s=60)
        [dead] = leases.claim("dead", Wishes(models=["ltx-tiny"]))
        put(attempt_key(key, dead.fence), b"of an attempt that never ended")
        leases.expire_worker("dead")
        [claim] = leases.claim("one", Wishes(models=["ltx-tiny"]))
        stored_at = attempt_key(key, claim.fence)
        put(stored_at, content)
        output = Output(stored_at, "mp4", "video/mp4", len(content), 64, 96, 9, 8.0, "0" * 64)
        assert records.advance(ID, claim.fence, JobStatus.SUCCEEDED, "one", outputs=[asdict(output)])

    return store


async def test_a_link_gives_the_file_without_a_key(http: httpx2.AsyncClient, link, store) -> None:
    store()
    answer = await http.get(link())
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-length"] == "512000"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "inline"
    assert answer.headers["cache-control"].startswith("private")


@pytest.mark.parametrize(
    ("extension", "media_type"),
    [
        ("mp4", "video/mp4"),
        ("webm", "video/webm"),
        ("gif", "image/gif"),
        ("zip", "application/zip"),
        ("html", "application/octet-stream"),
    ],
)
async def test_the_content_type_is_that_of_the_format(
    http: httpx2.AsyncClient, link, store, extension: str, media_type: str
) -> None:
    key = f"out/{ID}/{ID}.{extension}"
    store(key)
    assert (await http.get(link(key))).headers["content-type"] == media_type


async def test_head_gives_the_headers_alone(http: httpx2.AsyncClient, link, store) -> None:
    store()
    answer = await http.head(link())
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["content-length"], answer.headers["content-type"]) == ("512000", "video/mp4")


async def test_a_file_that_is_not_there_yet_is_not_found_until_it_is(http: httpx2.AsyncClient, link, store) -> None:
    good = link()
    early = await http.get(good)
    assert (early.status_code, early.json()) == (404, {"error": "The file is not there yet, or not any more."})
    store()
    assert (await http.get(good)).status_code == 200


async def test_an_expired_link_is_refused(http: httpx2.AsyncClient, link, store) -> None:
    store()
    answer = await http.get(link(seconds=-1))
    assert (answer.status_code, answer.json()) == (403, {"error": "This link is not valid, or has expired."})


async def test_an_altered_link_is_refused_whether_the_file_is_there_or_not(
    http: httpx2.AsyncClient, link, store
) -> None:
    store()
    path, _, query = link().partition("?")
    exp, sig = query.split("&")
    other = path.replace(".mp4", ".gif")
    altered = [
        path,
        f"{path}?{exp}",
        f"{path}?{sig}",
        f"{path}?{exp}0&{sig}",
        f"{path}?{exp}&{sig}0",
        f"{path}?{exp}&sig={quote('é')}",
        f"{path}?exp={quote('٣')}&{sig}",
        f"{path}?exp=1&{exp}&{sig}&sig=",
        f"{other}?{query}",
        f"/files/%2e%2e/pepper?{query}",
        f"/files/out/{ID}/%00.mp4?{query}",
        f"/files/?{query}",
    ]
    assert {url: (await http.get(url)).status_code for url in altered} == dict.fromkeys(altered, 403)


@pytest.mark.parametrize("key", ["out/../pepper", "out/%2e%2e/pepper", "/etc/passwd", f"out/{ID}"])
async def test_even_a_signed_link_leads_to_nothing_but_our_files(
    http: httpx2.AsyncClient, app, store, key: str
) -> None:
    store()
    good = app.state.services.signer.path(key, time.time() + 60)
    answer = await http.get(good)
    assert answer.status_code in (403, 404)  # 403 where the client itself resolves the dots


async def test_a_post_is_refused(http: httpx2.AsyncClient, link) -> None:
    answer = await http.post(link())
    assert answer.status_code == 405
    assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD"]


async def test_a_second_value_of_a_parameter_does_not_help(http: httpx2.AsyncClient, link, store) -> None:
    store()
    assert (await http.get(f"{link(seconds=-1)}&exp={int(time.time()) + 60}")).status_code == 403


@pytest.mark.parametrize(
    ("wanted", "status", "content", "content_range"),
    [
        ("bytes=0-9", 206, CONTENT[:10], "bytes 0-9/512000"),
        ("bytes=511990-", 206, CONTENT[-10:], "bytes 511990-511999/512000"),
        ("bytes=-5", 206, CONTENT[-5:], "bytes 511995-511999/512000"),
        ("bytes=100-100", 206, CONTENT[100:101], "bytes 100-100/512000"),
    ],
)
async def test_a_range_gives_those_bytes(
    http: httpx2.AsyncClient,
    link,
    store,
    storage: Storage,
    wanted: str,
    status: int,
    content: bytes,
    content_range: str,
) -> None:
    store()
    answer = await http.get(link(), headers={"Range": wanted})
    if isinstance(storage, MemoryStorage):  # may ignore Range (RFC 9110, 14.2): it serves tests alone
        assert (answer.status_code, answer.content) == (200, CONTENT)
        return
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers["content-range"] == content_range


async def test_a_range_beyond_the_file_is_refused(http: httpx2.AsyncClient, link, store, storage: Storage) -> None:
    store()
    answer = await http.get(link(), headers={"Range": "bytes=600000-"})
    assert answer.status_code == (200 if isinstance(storage, MemoryStorage) else 416)


async def test_a_file_that_the_client_has_is_not_sent_again(
    http: httpx2.AsyncClient, link, store, storage: Storage
) -> None:
    store()
    etag = (await http.get(link())).headers.get("etag", "")
    if isinstance(storage, MemoryStorage):
        assert etag == ""
        return
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = await http.get(link(), headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert "content-length" not in answer.headers
    assert (await http.head(link(), headers={"If-None-Match": etag})).status_code == 304
    for other in ('"other"', etag.strip('"'), ""):
        assert (await http.get(link(), headers={"If-None-Match": other})).content == CONTENT


async def test_a_download_goes_on_where_it_stopped_if_the_file_is_the_same(
    http: httpx2.AsyncClient, link, store, storage: Storage
) -> None:
    store()
    whole = await http.get(link())
    if isinstance(storage, MemoryStorage):
        assert "etag" not in whole.headers
        return
    for same in (whole.headers["etag"], whole.headers["last-modified"]):
        rest = await http.get(link(), headers={"Range": "bytes=511990-", "If-Range": same})
        assert (rest.status_code, rest.content) == (206, CONTENT[-10:])
    for other in ('"other"', f"W/{whole.headers['etag']}", "Thu, 01 Jan 1970 00:00:00 GMT"):
        again = await http.get(link(), headers={"Range": "bytes=511990-", "If-Range": other})
        assert (again.status_code, again.content) == (200, CONTENT)


@pytest.mark.parametrize("wanted", ["bytes=0-9", "bytes=600000-"])
async def test_head_tells_what_a_range_would_be(
    http: httpx2.AsyncClient, link, store, storage: Storage, wanted: str
) -> None:
    store()
    answer = await http.head(link(), headers={"Range": wanted})
    if isinstance(storage, MemoryStorage):
        assert (answer.status_code, answer.headers["content-length"]) == (200, "512000")
        return
    told = {"bytes=0-9": (206, "bytes 0-9/512000"), "bytes=600000-": (416, "bytes */512000")}
    assert (answer.status_code, answer.headers["content-range"]) == told[wanted]
    assert answer.content == b""


@pytest.mark.parametrize("wanted", ["bytes=", "bytes=a-b", "bytes=9-1", "lines=1-2", "bytes=" + "0-0," * 200 + "0-0"])
async def test_a_range_that_makes_no_sense_costs_nothing(http: httpx2.AsyncClient, link, store, wanted: str) -> None:
    store()
    answer = await http.get(link(), headers={"Range": wanted})
    assert answer.status_code in (200, 206, 400, 416)
    assert len(answer.content) <= len(CONTENT)


async def test_the_file_is_that_of_the_attempt_that_was_published(
    http: httpx2.AsyncClient, link, store, storage, tmp_path
) -> None:
    store(content=b"published")
    (tmp_path / "source").write_bytes(b"of a worker that was taken for dead and goes on")
    storage.put(tmp_path / "source", attempt_key(KEY, 1))
    storage.put(tmp_path / "source", KEY)
    assert (await http.get(link())).content == b"published"


async def test_a_job_of_an_older_version_has_its_file_under_the_public_key(
    http: httpx2.AsyncClient, link, store, storage, records: Records, tmp_path: Path
) -> None:
    store()
    (tmp_path / "source").write_bytes(b"of version 1")
    storage.put(tmp_path / "source", KEY)
    output = Output(KEY, "mp4", "video/mp4", 12, 64, 96, 9, 8.0, "0" * 64)
    records.client.hset(f"polyreel:job:{ID}", mapping={"schema": 1, "outputs": json.dumps([asdict(output)])})
    assert (await http.get(link())).content == b"of version 1"


@pytest.mark.parametrize("end", [JobStatus.FAILED, JobStatus.CANCELLED])
async def test_a_job_without_a_video_has_no_file(
    http: httpx2.AsyncClient, link, storage, records: Records, tmp_path: Path, end: JobStatus
) -> None:
    records.create(queued(id=ID, output_keys=(KEY,)), max_open=10)
    records.advance(ID, None, end)
    (tmp_path / "source").write_bytes(b"of an attempt")
    storage.put(tmp_path / "source", attempt_key(KEY, 1))
    assert (await http.get(link())).status_code == 404


async def test_a_file_that_was_swept_is_not_there_any_more(http: httpx2.AsyncClient, link, store, storage) -> None:
    store()
    assert (await http.get(link())).status_code == 200
    storage.delete(attempt_key(KEY, 2))
    assert (await http.get(link())).status_code == 404


async def test_a_file_that_was_served_once_is_served_while_redis_is_away(
    settings: Settings, keys: ApiKeys, storage: Storage, tmp_path: Path
) -> None:
    broker = start_embedded(tmp_path / "dies")
    app = create_app(settings.model_copy(update={"redis_url": SecretStr(broker.url)}), keys, storage=storage)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    other = KEY.replace("7b1e", "8c2f")
    links = [app.state.services.signer.path(key, time.time() + 60) for key in (KEY, other)]
    client = connect(broker.url, patient=False)
    records = Records(client, retention_s=60)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api.test") as http:
        for key, job_id in ((KEY, ID), (other, ID.replace("7b1e", "8c2f"))):
            records.create(queued(id=job_id, output_keys=(key,)), max_open=10)
            (tmp_path / "source").write_bytes(b"a video")
            storage.put(tmp_path / "source", attempt_key(key, 1))
            output = Output(attempt_key(key, 1), "mp4", "video/mp4", 7, 64, 96, 9, 8.0, "0" * 64)
            assert records.advance(job_id, None, JobStatus.SUCCEEDED, outputs=[asdict(output)])
        assert (await http.get(links[0])).content == b"a video"
        broker.stop()
        again, unknown = await http.get(links[0]), await http.get(links[1])
    client.close()
    await app.state.services.reader.aclose()
    assert (again.status_code, again.content) == (200, b"a video")
    assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "5")
    assert unknown.json() == {"error": "The queue does not answer right now. Try again in a few seconds."}


class Bucket(MemoryStorage):
    """A storage with web addresses of its own."""

    def url(self, key: str, expires_at: float) -> str | None:
        return f"https://bucket.example.com/{key}?until={expires_at:.0f}"


@pytest.mark.parametrize("storage", [Bucket()], ids=["bucket"])
async def test_where_the_storage_has_addresses_of_its_own_a_link_leads_there(
    http: httpx2.AsyncClient, app, storage, store
) -> None:
    store(content=b"in a bucket")
    good = app.state.services.signer.path(KEY, 4_000_000_000)
    answer = await http.get(good)
    assert answer.status_code == 307
    assert answer.headers["location"] == f"https://bucket.example.com/out/{ID}/2/{ID}.mp4?until=4000000000"
    assert answer.headers["cache-control"] == "no-store"
    head = await http.head(good)  # a link that is signed for GET refuses HEAD
    assert (head.status_code, head.headers["content-length"]) == (200, "11")


@pytest.fixture
def bucket(s3_server: Seaweed) -> Storage:
    return s3_server.storage("files", public_endpoint=f"http://localhost:{s3_server.port}")


@pytest.mark.parametrize("storage", ["bucket"], indirect=True)
async def test_a_link_leads_into_a_bucket_for_players_and_pages_and_nobody_without_it(
    http: httpx2.AsyncClient, link, store, storage
) -> None:
    store()
    page = {"Origin": "https://page.example.com"}
    answer = await http.get(link(), headers={"Range": "bytes=5-9", **page})
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
    assert answer.headers["access-control-allow-origin"] == "*"
    lies_at = answer.headers["location"]
    assert lies_at.startswith("http://localhost:"), "the public endpoint"
    async with httpx2.AsyncClient() as client:
        part = await client.get(lies_at, headers={"Range": "bytes=5-9", **page})
        assert (part.status_code, part.content) == (206, CONTENT[5:10])
        assert part.headers["access-control-allow-origin"] in ("*", page["Origin"])
        assert (await client.get(lies_at)).content == CONTENT
        assert (await client.get(lies_at.replace(f"/2/{ID}", f"/1/{ID}"))).status_code == 403
    head = await http.head(link())
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))
    assert (head.headers["content-type"], head.content) == ("video/mp4", b"")
    assert (await http.get(link() + "0")).status_code == 403
    assert (await http.get(link(seconds=-1))).status_code == 403
    storage.delete_folder(f"out/{ID}")
    assert (await http.head(link())).status_code == 404


class Gone(MemoryStorage):
    """A storage that does not answer."""

    def size(self, key: str) -> int | None:
        raise StorageAway("storage: the S3 service does not answer; check s3.endpoint.")


@pytest.mark.parametrize("storage", [Gone()], ids=["away"])
async def test_a_storage_that_is_away_is_a_503_and_no_404(http: httpx2.AsyncClient, link, store, storage) -> None:
    store()
    answer = await http.get(link())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json() == {
        "error": "The storage of the results does not answer right now. Try again in a few seconds."
    }


async def test_what_was_asked_for_longest_ago_is_forgotten_first() -> None:
    asked: list[str] = []
    ids = [ID.replace("7b1e", name) for name in ("aaaa", "bbbb", "cccc")]

    async def read(job_id: str) -> StoredJob:
        asked.append(job_id)
        key = f"out/{job_id}/{job_id}.mp4"
        output = Output(attempt_key(key, 3), "mp4", "video/mp4", 7, 64, 96, 9, 8.0, "0" * 64)
        job = queued(id=job_id, output_keys=(key,), outputs=(output,), status=JobStatus.SUCCEEDED)
        return StoredJob(job, 1, 3, False)

    published = Published(retention_s=60, most=2)
    for name in (0, 1, 0, 2, 0, 1):
        key = f"out/{ids[name]}/{ids[name]}.mp4"
        assert await published.storage_key(key, read) == f"out/{ids[name]}/3/{ids[name]}.mp4"
    assert asked == [ids[0], ids[1], ids[2], ids[1]]


async def test_a_record_is_looked_for_once_a_second_and_less_often_while_redis_is_away() -> None:
    asked: list[float] = []
    now, state = [100.0], ["there"]
    key = f"out/{ID}/{ID}.mp4"
    output = Output(attempt_key(key, 3), "mp4", "video/mp4", 7, 64, 96, 9, 8.0, "0" * 64)
    job = queued(id=ID, output_keys=(key,), outputs=(output,), status=JobStatus.SUCCEEDED, ended_at=time.time())

    async def read(_job_id: str) -> StoredJob | None:
        asked.append(now[0])
        if state[0] == "away":
            raise QueueUnavailable("The queue does not answer right now.")
        return StoredJob(job, 1, 3, False) if state[0] == "there" else None

    published = Published(retention_s=60, clock=lambda: now[0])
    for at, then in ((100.0, "there"), (101.0, "there"), (101.1, "away"), (106.0, "away"), (106.2, "there")):
        now[0], state[0] = at, then
        assert await published.storage_key(key, read) == f"out/{ID}/3/{ID}.mp4"
    assert asked == [100.0, 101.1, 106.2]
    now[0], state[0] = 107.3, "gone"
    with pytest.raises(StorageFailed):
        await published.storage_key(key, read)


async def test_a_file_whose_time_is_over_is_not_served_though_redis_is_away() -> None:
    key = f"out/{ID}/{ID}.mp4"
    output = Output(attempt_key(key, 3), "mp4", "video/mp4", 7, 64, 96, 9, 8.0, "0" * 64)
    over = queued(
        id=ID, output_keys=(key,), outputs=(output,), status=JobStatus.SUCCEEDED, ended_at=time.time() - 61, keep_s=60.0
    )
    now, is_away = [100.0], [False]

    async def read(_job_id: str) -> StoredJob:
        if is_away[0]:
            raise QueueUnavailable("The queue does not answer right now.")
        return StoredJob(over, 1, 3, False)

    published = Published(retention_s=3600, clock=lambda: now[0])
    await published.storage_key(key, read)  # its record is still there
    now[0], is_away[0] = 102.0, True
    with pytest.raises(QueueUnavailable):
        await published.storage_key(key, read)
