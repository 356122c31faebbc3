"""A job that is deleted is gone, with its prompt and its files: nothing of it is found in Redis or on the disk."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from polyreel.keys import Caller
from polyreel.limits import KeyLimits
from polyreel.previews import Preview, preview_key, preview_text
from polyreel.webhooks import Attempt, Hands, Webhooks
from server.dialects import Dialect
from tests.conftest import KEY, OTHER_KEY, Api
from tests.core.jobs import REQUEST
from tests.dialects.calling import SECTIONS, call, every_submit
from tests.server.pictures import png

pytestmark = pytest.mark.anyio

AUTH = {"Authorization": f"Bearer {KEY}"}
PROMPT = "nobody-is-to-find-this-prompt-again"

#: What stays of any job: totals, what its key has used, how long a model takes; the newest number; the lines' state.
COUNTED = ("polyreel:counts", "polyreel:series", "polyreel:used:", "polyreel:number", "polyreel:fair:", "polyreel:rate")

#: What names the job for a while, and nothing of it: which request made it, by its digest; what a worker or courier
#: took last, for when the reply was lost. The ids lead nowhere.
BRIEFLY = ("polyreel:idempotency:", "polyreel:cache:", "polyreel:claim:", "polyreel:webhooks:taken:")


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """A client that gets bytes: what RQ keeps of a job is compressed."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


def everything(raw: redis.Redis) -> dict[str, str]:
    """Return all that Redis holds, as text by key; what is compressed is not any more."""
    read: dict[bytes, Callable[[bytes], object]] = {
        b"string": raw.get,
        b"hash": raw.hgetall,
        b"list": lambda key: raw.lrange(key, 0, -1),
        b"set": raw.smembers,
        b"zset": lambda key: raw.zrange(key, 0, -1),
        b"stream": raw.xrange,
    }
    return {key.decode(): as_text(read[raw.type(key)](key)) for key in raw.scan_iter("*", count=1000)}


def as_text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(as_text(part) for pair in value.items() for part in pair)
    if isinstance(value, list | set | tuple):
        return " ".join(as_text(part) for part in value)
    if isinstance(value, bytes):
        with suppress(zlib.error):
            value = zlib.decompress(value)
        return str(value)
    return str(value)


def holding(raw: redis.Redis, *texts: str) -> list[str]:
    """Return the keys in whose name or content one of the texts stands."""
    return [key for key, value in everything(raw).items() if any(text in key + value for text in texts)]


def files_holding(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def with_prompt(value: Any) -> Any:
    """Return a body with another prompt: the only text in it that has spaces."""
    if isinstance(value, dict):
        return {name: with_prompt(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_prompt(inner) for inner in value]
    return PROMPT if isinstance(value, str) and " " in value else value


@every_submit
async def test_of_a_deleted_job_of_any_dialect_nothing_is_left(
    dialect: Dialect, make_api: Callable[..., Api], tmp_path: Path, raw: redis.Redis
) -> None:
    api = make_api(dialects=SECTIONS)
    assert dialect.example is not None
    body = json.dumps(with_prompt(dialect.example.body)).replace("{key}", KEY)
    headers = {name: value.replace("{key}", KEY) for name, value in dialect.example.headers.items()}
    _, submitted = await call(api, dialect, body.encode(), {**headers, "Idempotency-Key": "once"})
    [stored] = submitted
    job_id, number = stored.job.id, str(stored.number)
    file, *_ = (api.storage.folder / "out" / job_id).rglob("*.*")
    file.write_bytes(PROMPT.encode())  # as the metadata of a file names it
    assert holding(raw, PROMPT), "while it is there, it is found: what follows says something"
    assert files_holding(tmp_path, PROMPT) == [file]

    deleted = await api.http.delete(f"/polyreel/v1/jobs/{job_id}", headers=AUTH)
    assert deleted.status_code == 200
    assert holding(raw, PROMPT) == []
    assert files_holding(tmp_path, PROMPT) == []
    left = [key for key in holding(raw, job_id, number) if not key.startswith(COUNTED)]
    assert [key for key in left if not key.startswith(BRIEFLY)] == []
    assert [raw.ttl(key) > 0 for key in left] == [True] * len(left)
    assert (await api.http.get(f"/polyreel/v1/jobs/{job_id}", headers=AUTH)).status_code == 404


async def test_with_everything_that_a_job_can_have_nothing_is_left(
    make_api: Callable[..., Api], tmp_path: Path, raw: redis.Redis
) -> None:
    """A picture, a preview, a snapshot, a failed attempt, a webhook with a log."""
    api = make_api(dialects=SECTIONS, webhook_allow=("127.0.0.1",))
    client = api.records.client
    content = png(64, 64)
    body = {
        "model": "ltx",
        "prompt": PROMPT,
        "negative_prompt": f"not {PROMPT}",
        "image": base64.b64encode(content).decode(),
        "webhook": f"http://127.0.0.1:9/hook?about={PROMPT}",
    }
    answer = await api.http.post("/polyreel/v1/jobs", headers=AUTH, json=body)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    [picture] = (api.storage.folder / "in").iterdir()
    assert picture.read_bytes() == content
    first = api.claim(job_id)
    client.set(preview_key(job_id), preview_text(Preview(b"\xff\xd8", 3)))
    api.records.release(job_id, first, counted=True)
    snapshot = api.storage.folder / "run" / job_id / "1"
    snapshot.parent.mkdir(parents=True)
    snapshot.write_bytes(PROMPT.encode())
    api.finish(job_id, PROMPT.encode())
    (api.scratch / "result").unlink()  # of the stand-in for a worker
    webhooks = Webhooks(client)
    [taken] = webhooks.take("courier", Hands(1, 1))
    webhooks.note(taken, Attempt(taken.attempt, 500, f"the receiver said {PROMPT}", 12), "retry", 60.0)
    assert len(holding(raw, PROMPT)) >= 2
    assert len(files_holding(tmp_path, PROMPT)) == 2

    assert (await api.http.delete(f"/polyreel/v1/jobs/{job_id}", headers=AUTH)).status_code == 200
    assert holding(raw, PROMPT) == []
    assert files_holding(tmp_path, PROMPT) == []
    assert not picture.exists()
    left = [key for key in holding(raw, job_id, picture.name) if not key.startswith(COUNTED)]
    assert [key for key in left if not key.startswith(BRIEFLY)] == []
    assert [client.ttl(key) > 0 for key in left] == [True] * len(left)


async def send_picture(api: Api, key: str, content: bytes) -> str:
    body = {"model": "ltx", "prompt": "a cat", "image": base64.b64encode(content).decode()}
    answer = await api.http.post("/polyreel/v1/jobs", headers={"Authorization": f"Bearer {key}"}, json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def test_a_picture_stays_while_another_job_uses_it(api: Api) -> None:
    """Whoever's it is: pictures that are the same are one file."""
    content = png(64, 64)
    mine, theirs = await send_picture(api, KEY, content), await send_picture(api, OTHER_KEY, content)
    [picture] = (api.storage.folder / "in").iterdir()
    api.finish(mine)
    await api.http.delete(f"/polyreel/v1/jobs/{mine}", headers=AUTH)
    assert picture.exists()
    api.finish(theirs)
    await api.http.delete(f"/polyreel/v1/jobs/{theirs}", headers={"Authorization": f"Bearer {OTHER_KEY}"})
    assert not picture.exists()


async def test_a_picture_that_is_deleted_while_it_is_sent_again_is_there_for_its_job(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = png(64, 64)
    first = await send_picture(api, KEY, content)
    api.finish(first)
    [picture] = (api.storage.folder / "in").iterdir()
    queue = api.app.state.services.queue
    really = queue.submit

    def meanwhile(*args: Any) -> Any:
        for key in queue.forget(first) or []:
            api.storage.delete(key)
        assert not picture.exists()
        return really(*args)

    monkeypatch.setattr(queue, "submit", meanwhile)
    await send_picture(api, KEY, content)
    assert picture.read_bytes() == content


async def test_pictures_of_expired_jobs_are_found_for_the_sweeper(api: Api) -> None:
    job_id = await send_picture(api, KEY, png(64, 64))
    used = await send_picture(api, KEY, png(32, 32))
    api.finish(job_id)
    assert api.records.unused_pictures() == []
    api.records.client.delete(f"polyreel:job:{job_id}")  # as its retention does
    [unused] = api.records.unused_pictures()
    assert (api.storage.folder / unused).read_bytes() == png(64, 64)
    assert api.records.unused_pictures() == [], "told once"
    assert api.records.get(used) is not None


async def test_a_job_of_a_key_with_a_retention_is_kept_as_long_as_the_shortest_says(api: Api) -> None:
    shared = api.app.state.services
    caller = Caller("carol", limits=KeyLimits(retention_s=3600.0))
    found = {}
    for asked_s in (0.0, 60.0, 7200.0):
        stored = await shared.submit(
            replace(REQUEST, model="ltx-tiny"), dialect="native", caller=caller, keep_s=asked_s
        )
        api.records.cancel(stored.job.id)
        found[asked_s] = (stored.job.keep_s, api.records.client.ttl(f"polyreel:job:{stored.job.id}"))
    assert found == {0.0: (3600.0, 3600), 60.0: (60.0, 60), 7200.0: (3600.0, 3600)}
