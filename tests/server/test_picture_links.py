"""A picture may be a link: fetched through the guard, then looked at as strictly as one that was sent."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import server.fetching
from polyreel.errors import InvalidRequest, NotFetched, UnsafeAddress, UnusablePicture
from polyreel.outbound import Outbound
from server.services import Services
from tests.conftest import Api
from tests.core.recorder import PUBLIC, Recorder, outbound
from tests.server.pictures import noise_png, png

pytestmark = pytest.mark.anyio

PICTURE = png(8, 6)

#: path: the answer's head and body
FILES = {
    "/cat.png": (b"200 OK\r\nContent-Type: image/png", PICTURE),
    "/cat.bin": (b"200 OK\r\nContent-Type: application/octet-stream", PICTURE),
    "/page.png": (b"200 OK\r\nContent-Type: image/png", b"<html>not a picture</html>"),
    "/cut.png": (b"200 OK\r\nContent-Type: image/png", noise_png(32)[:2000]),
    "/nothing.png": (b"200 OK\r\nContent-Type: image/png\r\nContent-Length: 0", b""),
    "/gone.png": (b"404 Not Found\r\nContent-Length: 0", b""),
    "/moved.png": (b"302 Found\r\nLocation: http://127.0.0.1/cat.png\r\nContent-Length: 0", b""),
    "/packed.png": (b"200 OK\r\nContent-Encoding: gzip", b"\x1f\x8b"),
    "/long.png": (b"200 OK\r\nContent-Type: image/png", bytes(15_000_001)),
}


@pytest.fixture
def files() -> Iterator[str]:
    """The address of a server that has FILES; /slow.png never comes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                path = connection.recv(65536).split()[1].decode()
                try:
                    if path == "/slow.png":
                        connection.recv(1)
                    else:
                        head, body = FILES[path]
                        connection.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n" + body)
                except OSError:
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def shared(make_api: Callable[..., Api]) -> Services:
    """The services of an API that may reach loopback."""
    services: Services = make_api(webhook_allow=("127.0.0.0/8",)).app.state.services
    return services


#: What is said of a link of which nothing comes, and of one that leads to something else.
NOT_FETCHED = {
    "/gone.png": "init_image was answered with status 404",
    "/moved.png": "init_image was answered with status 302, and redirects are not followed",
    "/packed.png": "init_image was answered compressed, though that was not asked for",
    "/long.png": "init_image leads to more than 15000000 bytes",
}
NO_PICTURE = {
    "/page.png": "init_image must be a picture (PNG, JPEG, WEBP, GIF, BMP), got something else",
    "/cut.png": "init_image is a damaged picture; send it again whole",
    "/nothing.png": "init_image must be a picture (PNG, JPEG, WEBP, GIF, BMP), got something else",
}


async def test_a_link_leads_to_the_same_picture_as_its_base64(shared: Services, files: str) -> None:
    sent = await shared.fetch_picture("init_image", base64.b64encode(PICTURE).decode())
    assert (sent.content, sent.width, sent.height) == (PICTURE, 8, 6)
    for path in ("/cat.png", "/cat.bin"):
        assert await shared.fetch_picture("init_image", files + path) == sent


async def test_a_link_of_which_no_picture_comes_is_named(shared: Services, files: str) -> None:
    for messages, kind in ((NOT_FETCHED, NotFetched), (NO_PICTURE, UnusablePicture)):
        for path, message in messages.items():
            with pytest.raises(InvalidRequest) as refused:
                await shared.fetch_picture("init_image", files + path)
            assert (type(refused.value), refused.value.message) == (kind, message)
            assert refused.value.field == "init_image"


async def test_a_slow_link_is_left_after_its_time(
    shared: Services, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.fetching.FETCH_S == 20.0
    monkeypatch.setattr(server.fetching, "FETCH_S", 0.3)
    began = time.monotonic()
    with pytest.raises(NotFetched, match=r"^image did not answer within 0\.3 s$"):
        await shared.fetch_picture("image", f"{files}/slow.png")
    assert time.monotonic() - began < 2


async def test_all_links_of_a_request_share_its_time_and_its_bytes(
    shared: Services, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = [(f"keyframes.{i}.image", f"{files}/cat.png") for i in range(3)]
    assert [picture.content for picture in await shared.fetch_pictures(links)] == [PICTURE] * 3
    monkeypatch.setattr(server.fetching, "MAX_FETCHED", 2 * len(PICTURE))
    with pytest.raises(NotFetched) as refused:
        await shared.fetch_pictures(links)
    assert refused.value.field == "keyframes.2.image"
    monkeypatch.setattr(server.fetching, "FETCH_S", 0.3)
    with pytest.raises(NotFetched) as refused:
        await shared.fetch_pictures([("image", f"{files}/slow.png"), *links])
    assert refused.value.field == "image"


async def test_links_and_base64_may_stand_side_by_side_in_any_order(shared: Services, files: str) -> None:
    other = png(5, 4)
    texts = [f"{files}/cat.png", base64.b64encode(other).decode(), f"{files}/cat.bin"]
    pictures = await shared.fetch_pictures([(str(i), text) for i, text in enumerate(texts)])
    assert [picture.content for picture in pictures] == [PICTURE, other, PICTURE]


async def test_a_link_that_leads_inside_is_refused_and_nothing_is_connected_to(api: Api) -> None:
    recorder = Recorder()
    shared = _guarded_by(api, outbound(recorder, {"inside.example": ["10.0.0.5"]}))
    for url in (
        "http://127.0.0.1:6379/",
        "https://169.254.169.254/latest/meta-data/",
        "https://inside.example/cat.png",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "ftp://files.example/cat.png",
    ):
        with pytest.raises(UnsafeAddress) as refused:
            await shared.fetch_picture("inputs.image", url)
        assert (recorder.connects, refused.value.field) == ([], "inputs.image")


async def test_a_public_link_is_fetched(api: Api) -> None:
    recorder = Recorder(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(PICTURE), PICTURE))
    shared = _guarded_by(api, outbound(recorder))
    assert (await shared.fetch_picture("image", "https://pictures.example/cat.png")).content == PICTURE
    assert recorder.connects == [(PUBLIC, 443)]


def _guarded_by(api: Api, calls: Outbound) -> Services:
    shared: Services = replace(api.app.state.services, outbound=calls)
    return shared
