"""What a bucket does beyond what every storage promises: links, and what it says when something is wrong with it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import structlog

import polyreel.storage.s3
from polyreel.errors import ConfigurationError, StorageAway
from polyreel.settings import S3
from polyreel.storage import connect_storage
from polyreel.storage.s3 import S3Storage
from tests.seaweed import BUCKET, READER_ID, READER_SECRET, Seaweed

KEY = "out/7b1e/2/7b1e.mp4"


@pytest.fixture
def storage(s3_server: Seaweed, tmp_path: Path) -> S3Storage:
    storage = s3_server.storage("links")
    (tmp_path / "source").write_bytes(b"0123456789")
    storage.put(tmp_path / "source", KEY)
    return storage


def link_to(storage: S3Storage, seconds: float = 60.0) -> str:
    link = storage.url(KEY, time.time() + seconds)
    assert link is not None
    return link


def test_a_link_gives_the_file_with_its_type_and_in_ranges_to_whoever_has_it(storage: S3Storage) -> None:
    answer = httpx2.get(link_to(storage), headers={"Origin": "https://page.example.com"})
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert {name: answer.headers[name] for name in ("content-type", "content-disposition", "cache-control")} == {
        "content-type": "video/mp4",
        "content-disposition": "inline",
        "cache-control": "private, max-age=3600",
    }
    part = httpx2.get(link_to(storage), headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")


def test_an_altered_link_is_refused(storage: S3Storage) -> None:
    link = link_to(storage)
    last = "0" if link[-1] != "0" else "1"
    for altered in (
        link[:-1] + last,
        link.replace("7b1e.mp4", "8c2f.mp4"),
        link.replace("X-Amz-Expires=59", "X-Amz-Expires=600"),
        link.partition("?")[0],
    ):
        assert altered != link
        assert httpx2.get(altered).status_code == 403
    assert httpx2.put(link, content=b"something else").status_code == 403


def test_a_link_that_has_expired_is_refused(storage: S3Storage) -> None:
    link = link_to(storage, 1)
    deadline = time.monotonic() + 60
    while (status := httpx2.get(link).status_code) == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status == 403


@pytest.mark.parametrize(("left_s", "expires"), [(60.5, "60"), (-5, "1"), (30 * 86400, "604800")])
def test_a_link_lives_as_long_as_ours_and_never_longer_than_s3_allows(
    storage: S3Storage, left_s: float, expires: str
) -> None:
    assert re.search(r"X-Amz-Expires=(\d+)", link_to(storage, left_s))[1] == expires  # type: ignore[index]


def test_links_lead_to_the_public_endpoint_and_everything_else_to_the_inner_one(
    s3_server: Seaweed, storage: S3Storage
) -> None:
    inner = s3_server.storage("links", public_endpoint=f"http://localhost:{s3_server.port}/")
    link = link_to(inner)
    assert urlsplit(link).netloc == f"localhost:{s3_server.port}"
    assert httpx2.get(link).content == b"0123456789"
    assert httpx2.get(link.replace("localhost", "127.0.0.1")).status_code == 403, "it is signed for that host alone"
    outer = s3_server.storage("links", public_endpoint="https://s3.example.com")
    assert urlsplit(link_to(outer)).netloc == "s3.example.com"
    assert outer.size(KEY) == 10


def test_a_bucket_is_written_into_the_host_where_the_service_wants_it_there() -> None:
    s3 = S3(endpoint="https://objects.example.com", path_style=False, access_key_id="a", secret_access_key="b")
    storage = connect_storage("s3://films/team-a", s3)
    assert link_to(storage).startswith("https://films.objects.example.com/team-a/out/7b1e/2/7b1e.mp4?")
    aws = connect_storage("s3://films", S3(region="eu-west-1", access_key_id="a", secret_access_key="b"))
    assert link_to(aws).startswith("https://s3.eu-west-1.amazonaws.com/films/out/7b1e/2/7b1e.mp4?")


def test_a_prefix_is_a_world_of_its_own(s3_server: Seaweed, storage: S3Storage) -> None:
    other = s3_server.storage("elsewhere")
    assert other.size(KEY) is None
    assert other.sweep(time.time() + 60) == 0
    assert storage.size(KEY) == 10


def test_what_is_not_ours_is_never_swept(s3_server: Seaweed, tmp_path: Path) -> None:
    storage = s3_server.storage("shared")
    import obstore

    for name in ("wedding.jpg", "photos/2020/wedding.jpg", "out/7b1e/wedding.mp4", "in/wedding.jpg"):
        obstore.put(storage.store, name, b"somebody's")
    assert storage.sweep(time.time() + 60) == 0
    assert obstore.head(storage.store, "out/7b1e/wedding.mp4")["size"] == 10


class Hung:
    """A service that takes connections and never says a word."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"


@pytest.fixture
def hung() -> Iterator[Hung]:
    server = Hung()
    yield server
    server.listener.close()


def assert_all_say(storage: S3Storage, tmp_path: Path, message: str) -> None:
    (tmp_path / "source").write_bytes(b"x")
    for call in (storage.check, lambda: storage.put(tmp_path / "source", KEY)):
        with pytest.raises(StorageAway) as refused:
            call()
        assert refused.value.message == message


CREDENTIALS = "s3.access_key_id and s3.secret_access_key (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"


def test_a_wrong_key_is_told_with_its_settings(s3_server: Seaweed, tmp_path: Path) -> None:
    for wrong, word in (("access_key_id", "InvalidAccessKeyId"), ("secret_access_key", "SignatureDoesNotMatch")):
        message = f"storage: the S3 service refuses the credentials ({word}); check {CREDENTIALS}."
        assert_all_say(s3_server.storage(**{wrong: "somebody-else"}), tmp_path, message)


def test_a_key_that_may_not_write_is_told(s3_server: Seaweed, tmp_path: Path) -> None:
    storage = s3_server.storage(access_key_id=READER_ID, secret_access_key=READER_SECRET)
    message = f"storage: the S3 service does not allow it (AccessDenied); check {CREDENTIALS} and what their owner may."
    assert_all_say(storage, tmp_path, message)


def test_a_bucket_that_is_not_there_is_told(s3_server: Seaweed, tmp_path: Path) -> None:
    storage = connect_storage("s3://no-such-bucket", s3_server.s3())
    message = "storage: the S3 service has no such bucket; make it, or name another one in `storage`."
    assert_all_say(storage, tmp_path, message)


def test_a_service_that_refuses_is_told_without_its_address(tmp_path: Path) -> None:
    s3 = S3(endpoint="http://127.0.0.1:1", access_key_id="a", secret_access_key="b")
    with structlog.testing.capture_logs() as logs:
        storage = connect_storage(f"s3://{BUCKET}", s3)
        assert_all_say(storage, tmp_path, "storage: the S3 service does not answer; check s3.endpoint.")
        with pytest.raises(StorageAway):
            storage.size(KEY)
    assert "http://127.0.0.1:1/videos/" in logs[0]["reason"], "the log has it"


def test_a_service_that_hangs_costs_a_try_and_no_more(
    hung: Hung, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert polyreel.storage.s3._REQUEST_S + polyreel.storage.s3._AGAIN_S <= 10
    monkeypatch.setattr(polyreel.storage.s3, "_REQUEST_S", 0.3)
    s3 = S3(endpoint=hung.endpoint, access_key_id="a", secret_access_key="b")
    began = time.monotonic()
    message = "storage: the S3 service does not answer; check s3.endpoint."
    assert_all_say(connect_storage(f"s3://{BUCKET}", s3), tmp_path, message)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    ("url", "s3", "message"),
    [
        ("s3:", {}, "storage: 's3:' must name a bucket, with or without a prefix: s3://my-videos/polyreel."),
        ("s3://", {}, "must name a bucket"),
        ("s3://Films", {}, "must name a bucket"),
        ("s3://films/../other", {}, "must name a bucket"),
        ("s3://films?region=x", {}, "must name a bucket"),
        ("s3://films", {"access_key_id": "a"}, "s3.secret_access_key: set both s3.access_key_id and"),
        ("s3://films", {"secret_access_key": "b"}, "s3.access_key_id: set both s3.access_key_id and"),
        ("s3://films", {"endpoint": "seaweedfs:8333"}, "s3.endpoint: 'seaweedfs:8333' must be the address of an S3"),
        ("s3://films", {"public_endpoint": "https://a/b"}, "s3.public_endpoint: 'https://a/b' must be the address"),
    ],
)
def test_settings_that_name_no_bucket_are_refused(url: str, s3: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect_storage(url, S3.model_validate(s3))
    assert message in str(refused.value)


def test_session_credentials_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "temporary")
    with structlog.testing.capture_logs() as logs:
        connect_storage("s3://films")
    assert [entry["setting"] for entry in logs] == ["AWS_SESSION_TOKEN"]
    with structlog.testing.capture_logs() as logs:
        connect_storage("s3://films", S3(access_key_id="a", secret_access_key="b"))
    assert logs == []
