"""What every dialect owes its clients and its operator, whichever API it speaks.

The tests run over whatever `server.dialects.dialects()` finds, so a new dialect is held to them unasked. They know
of it only what it publishes: its example, its prefixes and its error envelope.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from polyreel.request import VideoRequest
from polyreel.settings import Settings
from server.dialects import Dialect
from tests.conftest import Api
from tests.dialects.calling import (
    SECTIONS,
    WRONG_KEY,
    assert_is_error,
    call,
    call_of,
    content_of,
    every_dialect,
    every_submit,
    headers_of,
    with_raw,
)

pytestmark = pytest.mark.anyio


@every_submit
async def test_its_example_makes_one_job_that_can_be_read_back(api: Api, dialect: Dialect) -> None:
    [response], jobs = await call(api, dialect, content_of(dialect, api.key), headers_of(dialect, api.key))
    assert response.status_code in (200, 202), response.text[:500]
    assert len(jobs) == 1
    job = jobs[0].job
    assert (job.dialect, job.owner, job.status) == (dialect.name, "alice", "queued")
    assert VideoRequest.from_dict(json.loads(json.dumps(job.request.to_dict()))) == job.request
    assert len(job.output_keys) == len(job.request.outputs) > 0
    assert api.key not in json.dumps(job.to_record())


@every_dialect
async def test_no_key_is_refused(api: Api, dialect: Dialect) -> None:
    body = {name: value for name, value in json.loads(content_of(dialect, "{key}")).items() if value != "{key}"}
    headers = {name: value for name, value in headers_of(dialect, "{key}").items() if "{key}" not in value}
    [response], jobs = await call(api, dialect, json.dumps(body).encode(), headers)
    assert_is_error(dialect, response, 401)
    assert jobs == []


@every_dialect
async def test_a_wrong_key_is_refused(api: Api, dialect: Dialect) -> None:
    [response], jobs = await call(api, dialect, content_of(dialect, WRONG_KEY), headers_of(dialect, WRONG_KEY))
    assert_is_error(dialect, response, 401, 403)
    assert jobs == []


HOSTILE: dict[str, Callable[[Dialect, str], bytes]] = {
    "NaN": lambda dialect, key: with_raw(dialect, key, b"NaN"),
    "Infinity": lambda dialect, key: with_raw(dialect, key, b"-Infinity"),
    "1e999": lambda dialect, key: with_raw(dialect, key, b"1e999"),
    "an integer of 5000 digits": lambda dialect, key: with_raw(dialect, key, b"9" * 5000),
    "bad UTF-8": lambda dialect, key: with_raw(dialect, key, b'"\xff\xfe"'),
    "UTF-16": lambda dialect, key: content_of(dialect, key).decode().encode("utf-16"),
    "half a surrogate pair": lambda dialect, key: with_raw(dialect, key, rb'"\ud800"'),
    "half a surrogate pair as a name": lambda dialect, key: with_raw(dialect, key, rb'{"\uD800": 1}'),
    "100,000 brackets": lambda dialect, key: with_raw(dialect, key, b"[" * 100_000 + b"]" * 100_000),
    "100,000 open braces": lambda dialect, key: with_raw(dialect, key, b'{"a":' * 100_000),
    "20,000 empty lists": lambda dialect, key: with_raw(dialect, key, b"[" + b"[]," * 19_999 + b"[]]"),
    "20,000 empty objects": lambda dialect, key: with_raw(dialect, key, b"[" + b"{}," * 19_999 + b"{}]"),
    "cut off": lambda dialect, key: content_of(dialect, key)[:-2],
    "nothing": lambda dialect, key: b"",
    "blanks": lambda dialect, key: b" \r\n ",
    "null": lambda dialect, key: b"null",
    "a list": lambda dialect, key: b"[" + content_of(dialect, key) + b"]",
    "a text": lambda dialect, key: json.dumps(key).encode(),
    "a number": lambda dialect, key: b"7",
    "an empty object": lambda dialect, key: b"{}",
}


@every_submit
@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_hostile_body_is_refused_and_makes_no_job(api: Api, dialect: Dialect, hostile: str) -> None:
    content = HOSTILE[hostile](dialect, api.key)
    [response], jobs = await call(api, dialect, content, headers_of(dialect, api.key))
    assert_is_error(dialect, response, 400, 401, 422)
    assert jobs == []


@every_submit
async def test_a_video_of_more_pixels_than_its_model_allows_is_refused(
    make_api: Callable[..., Api], settings: Settings, dialect: Dialect
) -> None:
    models = {
        name: entry.model_copy(update={"limits": entry.limits.model_copy(update={"pixels": 100})})
        for name, entry in settings.models.items()
    }
    api = make_api(models=models, dialects=SECTIONS)
    [response], jobs = await call(api, dialect, content_of(dialect, api.key), headers_of(dialect, api.key))
    assert_is_error(dialect, response, 400)
    assert "frames x width x height must be at most 100 pixels in all, got " in response.text
    assert jobs == []


@every_submit
async def test_a_body_over_the_limit_is_a_413(api: Api, dialect: Dialect) -> None:
    content = with_raw(dialect, api.key, b'"' + b"a" * 21_000_000 + b'"')
    [response], jobs = await call(api, dialect, content, headers_of(dialect, api.key))
    assert_is_error(dialect, response, 413)
    assert jobs == []


@every_submit
@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain", "nonsense"])
async def test_valid_json_is_taken_whatever_its_content_type_says(
    api: Api, dialect: Dialect, content_type: str | None
) -> None:
    headers = {k: v for k, v in headers_of(dialect, api.key).items() if k.lower() != "content-type"}
    if content_type is not None:
        headers["Content-Type"] = content_type
    [response], jobs = await call(api, dialect, content_of(dialect, api.key), headers)
    assert response.status_code in (200, 202), response.text[:500]
    assert len(jobs) == 1


@every_dialect
async def test_an_unknown_path_is_a_404_in_its_own_shape(api: Api, dialect: Dialect) -> None:
    for prefix in dialect.prefixes:
        path = prefix.rstrip("/") + "/no/such/path"
        answers = [
            await api.http.request(method, path, content=content, headers=headers_of(dialect, api.key))
            for method, content in (("POST", content_of(dialect, api.key)), ("GET", b""))
        ]
        for answer in answers:
            assert_is_error(dialect, answer, 404, 405)  # where a prefix is only read, or only written to
        assert 404 in [answer.status_code for answer in answers]


@every_dialect
async def test_a_wrong_method_is_a_405_that_names_the_right_one(api: Api, dialect: Dialect) -> None:
    method, path = call_of(dialect)
    response = await api.http.delete(path, headers=headers_of(dialect, api.key))
    assert_is_error(dialect, response, 405)
    assert method in response.headers["Allow"]


@contextmanager
def refusing(folder: Path) -> Iterator[str]:
    yield f"unix://{folder}/nobody.sock"


@contextmanager
def hanging(folder: Path) -> Iterator[str]:
    """A Redis that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


@every_dialect
@pytest.mark.parametrize("away", [refusing, hanging])
async def test_without_redis_it_answers_within_three_seconds(
    make_api: Callable[..., Api], dialect: Dialect, away: Any, tmp_path: Path
) -> None:
    with away(tmp_path) as url:
        api = make_api(redis_url=SecretStr(url), dialects=SECTIONS)
        method, path = call_of(dialect)
        started = time.monotonic()
        response = await api.http.request(
            method, path, content=content_of(dialect, api.key), headers=headers_of(dialect, api.key)
        )
        took_s = time.monotonic() - started
    assert_is_error(dialect, response, 500, 502, 503, 504)
    assert int(response.headers["Retry-After"]) > 0
    assert took_s < 3
