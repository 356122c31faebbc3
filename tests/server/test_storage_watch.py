"""`/ready` says whether results can be stored and what to do, is never held up by that, and needs no restart."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

import server.storage_watch
from polyreel.errors import StorageAway, StorageFull
from polyreel.keys import ApiKeys
from polyreel.records import RESIDENTS, WORKER_PREFIX, Records
from polyreel.settings import Settings
from polyreel.storage import Storage, connect_storage
from polyreel.storage.memory import MemoryStorage
from server.app import create_app
from tests.seaweed import BUCKET, Seaweed
from tests.server.pictures import png

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def api(settings: Settings, keys: ApiKeys, storage: Storage) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app(settings, keys, storage=storage)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api.test") as http:
        yield http
    await app.state.services.reader.aclose()


@pytest.fixture(autouse=True)
def _a_worker(records: Records) -> None:
    records.client.hset(RESIDENTS, "one", json.dumps({"until": time.time() + 600, "models": []}))
    records.client.set(f"{WORKER_PREFIX}one", json.dumps({"models": ["ltx-tiny"], "unavailable": {}}))


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.storage_watch, "BELIEVED_S", 0.0)
    for name in ("PATIENCE_S", "_SPACE_PATIENCE_S"):  # a busy machine's own slowness is no trouble of the storage
        monkeypatch.setattr(server.storage_watch, name, 60.0)


async def ready(http: httpx2.AsyncClient) -> tuple[int, list[str]]:
    answer = await http.get("/ready")
    return answer.status_code, answer.json().get("reasons", [])


async def test_ready_tries_the_storage(settings: Settings, keys: ApiKeys, tmp_path: Path) -> None:
    storage = connect_storage(f"file://{tmp_path}/results")
    async with api(settings, keys, storage) as http:
        assert await ready(http) == (200, [])
        (tmp_path / "results").rmdir()
        (tmp_path / "results").write_text("a file where the folder must be")
        status, reasons = await ready(http)
        assert (status, str(tmp_path) in str(reasons)) == (503, False)
        assert reasons == ["storage: the folder of the results cannot be written: File exists."]
        (tmp_path / "results").unlink()
        assert await ready(http) == (200, [])


async def test_ready_says_that_there_is_no_space(settings: Settings, keys: ApiKeys, monkeypatch) -> None:
    free = [50_000_000]
    monkeypatch.setattr(MemoryStorage, "free_bytes", lambda self: free[0])
    async with api(settings.model_copy(update={"min_free_mb": 60.0}), keys, MemoryStorage()) as http:
        assert await ready(http) == (503, ["Only 50 MB are free, and min_free_mb is 60: no new jobs."])
        free[0] = 60_000_000
        assert await ready(http) == (200, [])


async def test_ready_names_the_settings_of_a_key_that_s3_refuses(
    settings: Settings, keys: ApiKeys, s3_server: Seaweed
) -> None:
    async with api(settings, keys, s3_server.storage(secret_access_key="not-the-secret")) as http:
        assert await ready(http) == (
            503,
            [
                "storage: the S3 service refuses the credentials (SignatureDoesNotMatch); check s3.access_key_id and "
                "s3.secret_access_key (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
            ],
        )
    async with api(settings, keys, s3_server.storage()) as http:
        assert await ready(http) == (200, [])
    async with api(settings, keys, connect_storage(f"s3://no-{BUCKET}", s3_server.s3())) as http:
        assert await ready(http) == (
            503,
            ["storage: the S3 service has no such bucket; make it, or name another one in `storage`."],
        )


class Hanging(MemoryStorage):
    """Says nothing before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.looks = 0

    def check(self) -> None:
        self.looks += 1
        assert self.go.wait(60)


async def test_ready_is_not_held_up_by_a_storage_that_hangs(
    settings: Settings, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.storage_watch, "PATIENCE_S", 0.05)
    storage = Hanging()
    async with api(settings, keys, storage) as http:
        assert [await ready(http) for _ in range(3)] == [(503, ["The storage of the results does not answer."])] * 3
        assert storage.looks == 1, "one look at a time"
        storage.go.set()
        deadline = time.monotonic() + 60
        while (await ready(http))[0] != 200:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("trouble", "status", "code", "detail"),
    [
        (StorageFull("No space left on device."), 507, "storage_full", server.storage_watch.NO_SPACE),
        (StorageAway("storage: the S3 service refuses the credentials (X); check s3.access_key_id."), 503,
         "storage_away", "The storage of the results does not answer right now. Try again in a few seconds."),
    ],
)  # fmt: skip
async def test_a_picture_that_cannot_be_stored_refuses_the_submit_in_words_for_clients(
    make_api: Callable, monkeypatch: pytest.MonkeyPatch, trouble: Exception, status: int, code: str, detail: str
) -> None:
    def put(self, source: Path, key: str) -> None:
        raise trouble

    made = make_api()
    monkeypatch.setattr("polyreel.storage.local.LocalStorage.put", put)
    body = {"model": "ltx-tiny", "prompt": "a cat", "image": base64.b64encode(png(64, 64)).decode()}
    answer = await made.http.post("/polyreel/v1/jobs", json=body, headers={"Authorization": f"Bearer {made.key}"})
    assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (status, code, detail)
    assert made.records.open_ids() == []
