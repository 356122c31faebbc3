"""`GET /files/{key}`: the file for whoever has the link, as a player expects it, and for nobody else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest

from polyreel.keys import ApiKeys
from polyreel.settings import Settings
from polyreel.storage import Storage
from polyreel.storage.local import LocalStorage
from polyreel.storage.memory import MemoryStorage
from server.app import create_app

pytestmark = pytest.mark.anyio

ID = "7b1e0000-0000-4000-8000-000000000000"
KEY = f"out/{ID}/{ID}.mp4"
CONTENT = bytes(range(256)) * 2000


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
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
def store(storage: Storage, tmp_path: Path):
    def store(key: str = KEY, content: bytes = CONTENT) -> None:
        (tmp_path / "source").write_bytes(content)
        storage.put(tmp_path / "source", key)

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
