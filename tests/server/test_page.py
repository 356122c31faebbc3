"""The page, the API reference and their files: what is served, under which policy, and to whom."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

from polyreel.settings import S3, Settings
from server.page import FOLDER, bucket_origins, policy, static_files
from tests.conftest import Api

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def test_a_browser_is_given_the_page(api: Api) -> None:
    answer = await api.http.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<title>Polyreel</title>" in answer.text
    assert "Accept" in answer.headers["vary"]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/plain, */*", ""])
async def test_everybody_else_is_answered_as_an_endpoint_answers_its_probe(api: Api, accept: str) -> None:
    answer = await api.http.get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.text) == (200, "Ok")
    assert (await api.http.head("/", headers={"Accept": accept})).headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_browser_that_posts_is_a_client(api: Api) -> None:
    answer = await api.http.post("/", headers=BROWSER, json={"inputs": {"prompt": "a cat"}})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/static/swagger/swagger-ui.css"])
async def test_every_answer_carries_the_policy_and_lets_nothing_else_in(api: Api, path: str) -> None:
    headers = (await api.http.get(path, headers=BROWSER)).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("s3", "origins"),
    [
        (
            {"public_endpoint": "https://media.example.com/x", "endpoint": "http://s3:8333"},
            ["https://media.example.com"],
        ),
        ({"endpoint": "http://s3:8333"}, ["http://s3:8333"]),
        (
            {"endpoint": "https://s3.example.com", "path_style": False},
            ["https://s3.example.com", "https://*.s3.example.com"],
        ),
        ({}, ["https://*.amazonaws.com"]),
    ],
)
def test_videos_may_come_from_the_bucket_that_links_lead_to(
    settings: Settings, s3: dict[str, object], origins: list[str]
) -> None:
    with_bucket = settings.model_copy(update={"storage": "s3://bucket/prefix", "s3": S3.model_validate(s3)})
    assert bucket_origins(with_bucket) == origins
    assert f"media-src 'self' {' '.join(origins)};" in policy(with_bucket)
    assert f"img-src 'self' {' '.join(origins)} blob: data:;" in policy(with_bucket)
    assert "script-src 'self';" in policy(with_bucket)


def test_no_other_origin_is_let_in_where_this_server_sends_the_files(settings: Settings) -> None:
    assert bucket_origins(settings) == []
    assert policy(settings) == POLICY


async def test_a_file_that_the_browser_has_is_not_sent_again(api: Api) -> None:
    first = await api.http.get("/static/app.js")
    assert (first.status_code, first.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    for known in (first.headers["etag"], f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}', "*"):
        again = await api.http.get("/static/app.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    other = await api.http.get("/static/app.js", headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../page.py",
        "/static/%2e%2e/page.py",
        "/static//etc/passwd",
        "/static/..%2fpage.py",
        "/static/",
        "/static/x",
    ],
)
async def test_nothing_outside_of_the_folder_is_served(api: Api, path: str) -> None:
    answer = await api.http.get(path, headers=BROWSER)
    assert answer.status_code == 404
    assert "media_type" not in answer.text
    assert "root:" not in answer.text


async def test_the_page_can_be_turned_off(make_api: Callable[..., Api]) -> None:
    api = make_api(web_page=False)
    assert (await api.http.get("/", headers=BROWSER)).text == "Ok"
    for path in ("/docs", "/static/app.js"):
        assert (await api.http.get(path, headers=BROWSER)).status_code == 404


async def test_other_methods_are_refused(api: Api) -> None:
    answer = await api.http.post("/docs")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_the_page_asks_no_other_host_and_runs_nothing_inline() -> None:
    """What the policy would refuse is not there: in what is ours, since swagger-ui names other hosts and asks none."""
    for name, file in static_files().items():
        if name.startswith("swagger/") or not name.endswith((".html", ".js", ".css")):
            continue
        text = file.content.decode()
        assert re.findall(r"(?:src|href)=\"(?:https?:)?//", text) == [], name
        assert re.findall(r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", text) == [], name
        assert re.findall(r"\son\w+=\"|<style|\sstyle=\"|<script>", text) == [], name
        assert re.findall(r"url\((?!data:)|@import", text) == [], name


def test_every_file_of_the_page_is_in_the_wheel() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["server"]
    files = [path.relative_to(FOLDER.parent).as_posix() for path in FOLDER.rglob("*") if path.is_file()]
    assert len(files) > 15
    for file in files:
        # As setuptools reads them: a star stops at a slash.
        assert any(fnmatch(file, one) and file.count("/") == one.count("/") for one in patterns), file
    assert {"LICENSE", "swagger-ui-bundle.js", "swagger-ui.css"} <= {
        path.name for path in (FOLDER / "swagger").iterdir()
    }


async def test_the_reference_is_grouped_by_dialect(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    assert [tag["name"] for tag in document["tags"]] == [
        "Polyreel",
        "Hugging Face Inference",
        "Hugging Face universal handler",
        "ModelsLab v6",
        "Novita v3",
        "OpenAI Videos",
        "Server",
    ]
    known = {tag["name"] for tag in document["tags"]}
    assert all(tag["description"] for tag in document["tags"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert len(operation["tags"]) == 1, path
            assert set(operation["tags"]) <= known, path
    assert document["paths"]["/v3/async/txt2video"]["post"]["tags"] == ["Novita v3"]
    assert not {"/docs", "/static/{path}"} & set(document["paths"])
