"""The API process: starts unconfigured, stays small, says how it is, and answers errors in their dialect."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

import server.app
from polyreel.broker import start_embedded
from polyreel.errors import ConfigurationError
from polyreel.keys import ApiKeys
from polyreel.records import Records
from polyreel.settings import Settings
from polyreel.storage.memory import MemoryStorage
from polyreel.webhooks import Hands
from server.app import create_app, dialect_of
from server.dialects import dialects
from server.gate import BUDGET_S
from tests.conftest import KEY, Api, free_port
from tests.core.jobs import queued, redis_time

pytestmark = pytest.mark.anyio
SUBMIT = "/api/v6/video/text2video"
NOBODY = SecretStr("unix:///nowhere/redis.sock")


def test_importing_the_app_needs_no_configuration_and_no_model_library(tmp_path: Path) -> None:
    program = (
        "import sys, server.app\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'imageio_ffmpeg', 'models', 'workers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Serving:
    """An API process as `polyreel serve` starts it."""

    base_url: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture
def serving(redis_url: str, tmp_path: Path) -> Iterator[Serving]:
    port, log = free_port(), tmp_path / "serve.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "server", "--port", str(port), "--state-dir", str(tmp_path / "state")],
            env={**os.environ, "REDIS_URL": redis_url, "POLYREEL_API_KEYS": f"alice:{KEY}"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    base_url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{base_url}/health", timeout=5).text == "Ok":
                break
        except httpx2.TransportError:
            time.sleep(0.1)
    yield Serving(base_url, process, log)
    process.kill()
    process.wait()


def test_a_serving_process_is_small_knows_no_torch_and_keeps_its_secrets(serving: Serving) -> None:
    body = {"key": KEY, "prompt": "A sunset over the ocean", "instant_response": True}
    for _ in range(5):
        assert httpx2.post(f"{serving.base_url}{SUBMIT}", json=body, timeout=10).json()["status"] == "processing"
        assert httpx2.get(f"{serving.base_url}/ready", timeout=10).status_code == 503
    proc = Path(f"/proc/{serving.process.pid}")
    resident = re.search(r"VmRSS:\s+(\d+) kB", (proc / "status").read_text())
    assert resident is not None
    assert int(resident[1]) * 1024 < 150e6
    mapped = (proc / "maps").read_text()
    assert "hiredis" in mapped, "the maps are those of the process that serves"
    assert "torch" not in mapped
    assert "numpy" not in mapped
    assert KEY not in serving.log.read_text()
    assert "sunset" not in serving.log.read_text()


def test_a_serving_process_stops_in_good_order(serving: Serving) -> None:
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(10) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("path", "body"), [("/models/Lightricks/LTX-Video", {"inputs": "a cat"}), ("/", {"inputs": {"prompt": "a cat"}})]
)
def test_a_client_that_waits_for_its_video_is_told_of_a_stop_and_its_job_goes_on(
    serving: Serving, records: Records, path: str, body: dict[str, object]
) -> None:
    answers: list[httpx2.Response] = []

    def wait() -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        answers.append(httpx2.post(f"{serving.base_url}{path}", json=body, headers=headers, timeout=60))

    client = threading.Thread(target=wait)
    client.start()
    deadline = time.monotonic() + 30
    while not records.open_ids() and time.monotonic() < deadline:
        time.sleep(0.02)
    [job_id] = records.open_ids()
    serving.process.send_signal(signal.SIGTERM)
    # Ten seconds are the grace for answers under way; a client that waits for minutes is not waited for.
    assert serving.process.wait(10) in (0, -signal.SIGTERM)
    client.join(30)
    [answer] = answers
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["job_id"] == job_id
    assert records.open_ids() == [job_id]
    assert "Traceback" not in serving.log.read_text()


def test_who_follows_a_job_is_told_of_a_stop_and_who_hung_up_leaves_no_trace(serving: Serving) -> None:
    """RELIABILITY.md, R5."""
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "ltx", "prompt": "a cat", "num_frames": 9}
    location = httpx2.post(f"{serving.base_url}/polyreel/v1/jobs", json=body, headers=headers).headers["location"]
    told: list[str] = []
    follows = threading.Barrier(4)

    def follow(*, hangs_up: bool) -> None:
        with httpx2.stream("GET", f"{location}/events", headers=headers, timeout=20) as stream:
            text = ""
            for part in stream.iter_text():
                if not text and follows.wait(10) >= 0 and hangs_up:
                    return
                text += part
            told.append(text)

    clients = [threading.Thread(target=follow, kwargs={"hangs_up": n == 0}) for n in range(3)]
    for client in clients:
        client.start()
    follows.wait(10)
    clients[0].join(5)
    serving.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert serving.process.wait(11) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 9, "a stream is not waited for until the grace of 10 s is over"
    for client in clients:
        client.join(5)
    assert [text.count("event: server-restarting\n") for text in told] == [1, 1]
    assert [text.count("event: end\n") for text in told] == [0, 0]
    assert "Traceback" not in serving.log.read_text()


async def test_health_is_ok_whatever_becomes_of_redis(make_api: Callable[..., Api]) -> None:
    answer = await make_api(redis_url=NOBODY).http.get("/health")
    assert (answer.status_code, answer.text) == (200, "Ok")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_ready_says_that_redis_is_away(make_api: Callable[..., Api]) -> None:
    began = time.monotonic()
    answer = await make_api(redis_url=NOBODY).http.get("/ready")
    assert time.monotonic() - began < 2 * BUDGET_S  # as above
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json() == {
        "ready": False,
        "reasons": ["The queue does not answer right now. Try again in a few seconds."],
    }


async def test_ready_says_that_redis_hangs_within_three_seconds(make_api: Callable[..., Api], tmp_path: Path) -> None:
    broker = start_embedded(tmp_path / "hangs")
    os.kill(broker.process.pid, signal.SIGSTOP)
    try:
        http = make_api(redis_url=SecretStr(broker.url)).http  # it starts all the same
        began = time.monotonic()
        answer = await http.get("/ready")
        assert time.monotonic() - began < 2 * BUDGET_S  # it asks Redis more than once, and waits once
        assert answer.status_code == 503
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)
        broker.stop()


async def test_ready_says_that_no_worker_runs(api: Api) -> None:
    answer = await api.http.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "reasons": ["No worker is running (it may still be starting): polyreel worker, or polyreel up."],
    }


async def test_ready_says_why_no_model_can_run(api: Api) -> None:
    api.leases.beat("one", {"models": [], "unavailable": {"ltx-tiny": "/srv/weights/ltx is not a folder"}})
    answer = await api.http.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == [
        "Model ltx-tiny cannot run; `polyreel models` and the worker's log say why."  # no path: no key was asked for
    ]


async def test_ready_with_workers_names_their_models(api: Api) -> None:
    api.leases.beat("one", {"models": ["ltx-tiny"], "unavailable": {"atelier": "broken"}})
    api.leases.beat("two", {"models": ["animatediff-tiny", "ltx-tiny"]})
    answer = await api.http.get("/ready")
    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "workers": 2,
        "models": ["animatediff-tiny", "ltx-tiny"],
        "unavailable": ["atelier"],
    }


async def test_the_reason_of_ready_goes_when_a_worker_comes_and_is_back_when_it_leaves(api: Api) -> None:
    assert (await api.http.get("/ready")).status_code == 503
    api.leases.beat("one", {"models": ["ltx-tiny"]})
    assert (await api.http.get("/ready")).json()["ready"] is True
    api.leases.beat("one", {"models": []})
    assert (await api.http.get("/ready")).json()["reasons"] == ["Every worker is stopping."]
    api.leases.leave("one")
    assert "No worker is running" in (await api.http.get("/ready")).json()["reasons"][0]


async def test_ready_warns_of_webhooks_that_nobody_delivers(api: Api) -> None:
    api.leases.beat("one", {"models": ["ltx-tiny"]})
    job_id = api.records.create(queued(webhook="https://hooks.example/"), max_open=9).job.id
    api.records.cancel(job_id)
    assert "warnings" not in (await api.http.get("/ready")).json(), "a courier may be starting"
    api.records.client.zadd("polyreel:webhooks", {"hooks.example": redis_time(api.records.client) - 60})
    answer = await api.http.get("/ready")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    [warning] = answer.json()["warnings"]
    assert re.fullmatch(
        r"Webhooks have been due for 6\d s and no courier delivers them: polyreel courier, or polyreel up\.", warning
    )
    api.app.state.services.queue.webhooks.take("courier", Hands(0, 0))
    assert "warnings" not in (await api.http.get("/ready")).json()


@pytest.fixture
def _only_modelslab(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no dialect had taken the paths that are nobody else's."""
    found = {"modelslab": dialects()["modelslab"]}
    monkeypatch.setattr(server.app, "dialects", lambda: found)


@pytest.mark.usefixtures("_only_modelslab")
@pytest.mark.parametrize(("path", "allowed"), [("/health", "GET, HEAD"), ("/ready", "GET")])
async def test_a_wrong_method_outside_the_dialects_is_refused(
    make_api: Callable[..., Api], path: str, allowed: str
) -> None:
    answer = await make_api(dialects={}).http.post(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json() == {"error": f"POST is not allowed for {path}; use {allowed}."}


async def test_monitors_may_ask_for_health_with_head(api: Api) -> None:
    assert (await api.http.head("/health")).status_code == 200


@pytest.mark.usefixtures("_only_modelslab")
async def test_a_path_of_no_dialect_is_not_found(make_api: Callable[..., Api]) -> None:
    answer = await make_api(dialects={}).http.get("/nothing/here")
    assert answer.status_code == 404
    assert answer.json() == {"error": "There is nothing at GET /nothing/here."}


async def test_a_path_of_a_dialect_is_not_found_in_its_words(api: Api) -> None:
    answer = await api.http.post("/api/v6/video/text2vidoe", json={})
    assert answer.status_code == 404
    assert answer.json() == {"status": "error", "message": "There is nothing at POST /api/v6/video/text2vidoe."}


async def test_a_wrong_method_is_refused_in_the_dialects_words(api: Api) -> None:
    answer = await api.http.get(SUBMIT)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json() == {"status": "error", "message": f"GET is not allowed for {SUBMIT}; use POST."}


@pytest.fixture
async def crashing(settings: Settings, keys: ApiKeys) -> AsyncIterator[httpx2.AsyncClient]:
    """An API in which two routes have a bug."""
    app = create_app(settings.model_copy(update={"dialects": {}}), keys)

    async def crash() -> None:
        raise RuntimeError("password=hunter2 in /srv/secret.py")

    app.add_api_route("/api/crash", crash)
    app.add_api_route("/crash", crash)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client:
        yield client
    await app.state.services.reader.aclose()


@pytest.mark.usefixtures("_only_modelslab")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/crash", {"status": "error", "message": "Internal server error. Please try again."}),
        ("/crash", {"error": "The server made a mistake with this request; its operator has a log of it."}),
    ],
    ids=["in a dialect", "outside"],
)
async def test_a_bug_is_a_500_that_tells_nothing_of_itself(
    crashing: httpx2.AsyncClient, path: str, body: dict[str, str]
) -> None:
    answer = await crashing.get(path)
    assert answer.status_code == 500
    assert answer.json() == body
    for secret in ("hunter2", "RuntimeError", "Traceback", "secret.py"):
        assert secret not in answer.text


@pytest.mark.usefixtures("_only_modelslab")
def test_a_path_belongs_to_the_dialect_of_its_prefix_or_to_none() -> None:
    found = {path: getattr(dialect_of(path), "name", None) for path in (SUBMIT, "/health", "/files/a/b", "/")}
    assert found == {SUBMIT: "modelslab", "/health": None, "/files/a/b": None, "/": None}


def test_the_longest_prefix_decides_the_dialect_of_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    any_path = replace(dialects()["modelslab"], name="any", prefixes=("/",))
    some_paths = replace(any_path, name="some", prefixes=("/v3/", "/v3/async/"))
    for order in ([any_path, some_paths], [some_paths, any_path]):
        monkeypatch.setattr(server.app, "dialects", lambda order=order: {dialect.name: dialect for dialect in order})
        found = {path: getattr(dialect_of(path), "name", None) for path in ("/v3/async/x", "/v3/x", "/v4/x")}
        assert found == {"/v3/async/x": "some", "/v3/x": "some", "/v4/x": "any"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"modelslb": {}}, "dialects.modelslb: no such dialect. Did you mean modelslab? Known: "),
        (
            {"modelslab": {"hold": 1}},
            "dialects.modelslab.hold: there is no such setting. Did you mean hold_s?",
        ),
        (
            {"modelslab": {"out_of_range": "ignore"}},
            "dialects.modelslab.out_of_range: use 'error' or 'clamp', got 'ignore'",
        ),
    ],
)
def test_a_wrong_dialect_section_stops_the_start_and_names_the_setting(
    settings: Settings, keys: ApiKeys, sections: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        create_app(settings.model_copy(update={"dialects": sections}), keys)
    assert str(refused.value).startswith(message)


def test_an_api_without_redis_configured_says_what_to_set(settings: Settings, keys: ApiKeys) -> None:
    with pytest.raises(ConfigurationError, match=r"^redis_url: the API needs REDIS_URL"):
        create_app(settings.model_copy(update={"redis_url": None}), keys)


def test_an_app_can_be_made_while_redis_is_away(settings: Settings, keys: ApiKeys) -> None:
    assert isinstance(create_app(settings.model_copy(update={"redis_url": NOBODY}), keys), FastAPI)


async def test_a_submit_while_redis_is_away_is_refused_in_the_dialects_words(make_api: Callable[..., Api]) -> None:
    api = make_api(redis_url=NOBODY)
    answer = await api.http.post(SUBMIT, json={"key": api.key, "prompt": "A sunset"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["status"] == "error"


async def test_links_of_two_processes_on_one_state_folder_agree(
    settings: Settings, keys: ApiKeys, records: Records
) -> None:
    one, two = (create_app(settings, keys, storage=MemoryStorage()) for _ in "12")
    assert one.state.services.signer == two.state.services.signer
    with_secret = settings.model_copy(update={"link_secret": SecretStr("of the operator's own")})
    assert create_app(with_secret, keys, storage=MemoryStorage()).state.services.signer.secret == (
        b"of the operator's own"
    )
