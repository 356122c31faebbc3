"""`polyreel jobs`, `queue` and `gpus` against a server on a port; the tests play its worker."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from rich.console import Console
from typer.testing import CliRunner, Result

from polyreel.broker import EmbeddedBroker
from polyreel.cli import app as command_line
from polyreel.cli_watch import Bars, watch_all, words
from polyreel.client import Client, Event, ServerRefused
from polyreel.errors import ConfigurationError
from polyreel.job import JobStatus
from polyreel.keys import load_keys
from polyreel.profiles import load_settings
from polyreel.records import RESIDENTS, WORKER_PREFIX, Records, connect
from polyreel.storage.local import LocalStorage
from server.app import create_app
from tests.conftest import KEY, OTHER_KEY, Api, free_port

#: How long anything may take on a busy machine, seconds.
_LONG_S = 60


class Served:
    """An API on a port that can be stopped and started again on it, as a restart does.

    Attributes:
        worker: plays the worker's part in the records.
    """

    def __init__(self, broker: EmbeddedBroker, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = load_settings(
            redis_url=broker.url, state_dir=folder, api_keys=f"alice:{KEY},bob:{OTHER_KEY}", admins="alice"
        ).settings
        self._storage = LocalStorage(folder / "results")
        self.worker = Api(
            httpx2.AsyncClient(),
            Records(connect(broker.url, patient=False), self._settings.retention_s),
            self._storage,
            folder,
            FastAPI(),
        )

    def _app(self) -> Any:
        return create_app(self._settings, load_keys(self._settings)[0], storage=self._storage)

    def start(self) -> None:
        app = self._app()
        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_config=None, access_log=False))
        stopping = app.state.services.stopping

        async def shutdown(sockets: object = None, shutdown: Any = self._server.shutdown) -> None:
            stopping.set()  # as `polyreel serve` does
            await shutdown(sockets)

        self._server.shutdown = shutdown
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(_LONG_S)

    def submit(self, prompt: str = "a cat", model: str = "ltx-tiny", key: str = KEY) -> str:
        answer = httpx2.post(
            f"{self.url}/polyreel/v1/jobs",
            json={"model": model, "prompt": prompt},
            headers={"Authorization": f"Bearer {key}"},
            timeout=_LONG_S,
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def status(self, job_id: str) -> JobStatus:
        stored = self.worker.records.get(job_id)
        assert stored is not None
        return stored.job.status

    def say(self, **about: Any) -> None:
        """Beat as a worker does."""
        client = self.worker.records.client
        client.hset(RESIDENTS, "one", json.dumps({"models": about.get("loaded", []), "until": time.time() + 3600}))
        client.set(f"{WORKER_PREFIX}one", json.dumps({"device": "cuda:0", "models": ["ltx-tiny"], **about}))


@pytest.fixture(scope="module")
def running(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # else it writes where the command does
    served = Served(broker, tmp_path_factory.mktemp("cli"))
    served.start()
    yield served
    served.stop()
    served.worker.records.client.close()
    structlog.configure(**before)


@pytest.fixture
def served(running: Served, redis_url: str) -> Served:
    """The server with an empty queue."""
    return running


@pytest.fixture
def run(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call `polyreel` with alice's key."""
    monkeypatch.setenv("POLYREEL_URL", served.url)
    monkeypatch.setenv("POLYREEL_KEY", KEY)
    return lambda *words, stdin=None: CliRunner().invoke(command_line, [*words], input=stdin)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def good(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_jobs_are_listed_newest_first_with_what_becomes_of_them(served: Served, run: Callable[..., Result]) -> None:
    failed, waiting = served.submit(), served.submit()
    served.worker.fail(failed, "The GPU has too little memory.")
    others = served.submit(model="atelier", key=OTHER_KEY)
    lines = good(run("jobs", "list")).splitlines()
    assert lines[0].split() == ["id", "model", "status", "progress", "made"]
    assert lines[1].split()[:4] == [waiting, "ltx-tiny", "queued", "next"]
    assert lines[2].split()[:3] == [failed, "ltx-tiny", "failed"]
    assert lines[2].rstrip().endswith("The GPU has too little memory.")
    assert others not in "".join(lines)
    assert json.loads(good(run("jobs", "list", "--json", "--status=failed")))["jobs"][0]["id"] == failed
    page = run("jobs", "list", "--limit=1")
    assert failed not in page.stdout
    assert page.stderr.startswith("There are more: --after ")
    after = page.stderr.split()[-1]
    assert failed in good(run("jobs", "list", "--limit=1", "--after", after))


def test_a_job_is_shown_with_what_was_asked_and_its_files(served: Served, run: Callable[..., Result]) -> None:
    job_id = served.submit("a cat\n[bold]in the rain")
    served.worker.finish(job_id)
    said = good(run("jobs", "show", job_id))
    assert "[bold]in the rain" in said
    assert "25 frames of 256x256 at 24 fps, 20 steps, seed " in said
    assert f"{served.url}/files/" in said
    assert json.loads(good(run("jobs", "show", job_id, "--json")))["status"] == "succeeded"


def test_what_can_be_cancelled_is_and_the_rest_is_told_with_exit_code_1(
    served: Served, run: Callable[..., Result]
) -> None:
    ended, waiting = served.submit(), served.submit()
    served.worker.finish(ended)
    result = run("jobs", "cancel", ended, waiting)
    assert result.exit_code == 1
    assert result.stdout == f"{waiting}: cancelled\n"
    assert result.stderr == f"{ended}: The job has succeeded already.\n"
    assert served.status(waiting) is JobStatus.CANCELLED
    assert [job["status"] for job in json.loads(good(run("jobs", "cancel", waiting, "--json")))] == ["cancelled"]


def test_a_job_that_has_ended_is_deleted_and_one_that_has_not_is_cancelled(
    served: Served, run: Callable[..., Result]
) -> None:
    ended, waiting = served.submit(), served.submit()
    served.worker.finish(ended)
    assert good(run("jobs", "delete", ended, waiting)) == f"{ended}: deleted\n{waiting}: cancelled\n"
    assert served.worker.records.get(ended) is None
    result = run("jobs", "delete", ended, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == [{"id": ended, "error": "No job has this id."}]


def test_a_refusal_of_one_job_is_the_servers_own_sentence_and_exit_code_1(run: Callable[..., Result]) -> None:
    result = run("jobs", "show", "nobodys")
    assert isinstance(result.exception, ServerRefused)
    assert str(result.exception) == "No job has this id."


@pytest.mark.parametrize("key", ["wrong-key-0123456789", "prk_wrong"])
def test_a_wrong_key_is_told_where_keys_come_from_and_not_repeated(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("POLYREEL_KEY", key)
    result = run("jobs", "list")
    assert isinstance(result.exception, ConfigurationError)
    said = str(result.exception)
    assert said.startswith("POLYREEL_KEY: ")
    assert "polyreel keys create" in said
    assert key not in said


def test_a_key_comes_from_a_file_or_the_standard_input_and_the_address_may_have_the_apis_path(
    served: Served, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("POLYREEL_KEY")
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert "0 waiting" in good(run("queue", "--key-file", str(tmp_path / "key")))
    assert "0 waiting" in good(run("queue", "--key-file", "-", "--url", f"{served.url}/polyreel/v1/", stdin=KEY))


def test_without_an_address_the_server_of_the_settings_is_asked(
    served: Served, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYREEL_URL")
    monkeypatch.setenv("POLYREEL_HOST", "0.0.0.0")
    monkeypatch.setenv("POLYREEL_PORT", str(served.port))
    assert "0 waiting" in good(run("queue"))


def test_the_queue_is_shown_by_model_with_who_serves_it(served: Served, run: Callable[..., Result]) -> None:
    assert "No worker is running" in run("queue").stderr
    served.worker.claim(served.submit())
    served.submit()
    served.say(loaded=["ltx-tiny"])
    lines = good(run("queue")).splitlines()
    assert lines[0] == "1 waiting, 1 running; room for 998 more"
    assert lines[2].split() == ["ltx-tiny", "1", "1", "worker", "1", "worker"]
    assert json.loads(good(run("queue", "--json")))["models"] == [{"model": "ltx-tiny", "waiting": 1}]


def test_gpus_are_shown_with_memory_load_heat_and_power(served: Served, run: Callable[..., Result]) -> None:
    assert "No worker is running" in run("gpus").stderr
    gpu = {
        "name": "NVIDIA H200",
        "memory_total_bytes": 150_754_820_096,
        "memory_used_bytes": 12_000_000_000,
        "utilization_percent": 97,
        "temperature_c": 64,
        "power_w": None,
    }
    served.say(gpu=gpu, jobs_per_minute=1.5, loaded=["ltx-tiny"], loading="ltx-tiny")
    line = " ".join(good(run("gpus")).splitlines()[1].split())
    assert line == "one NVIDIA H200 12.0 GB of 150.8 GB 97% 64 °C - 1.5 runs ltx-tiny"
    served.say(memory_bytes=80_000_000_000)  # as a worker without the driver's library
    line = " ".join(good(run("gpus")).splitlines()[1].split())
    assert line == "one cuda:0 80.0 GB - - - 0 idle"
    assert json.loads(good(run("gpus", "--json")))[0]["gpu"] is None


def test_watching_ends_with_0_when_all_have_succeeded(served: Served, run: Callable[..., Result]) -> None:
    assert run("jobs", "watch").stderr == "Nothing to watch: this key has no unfinished jobs.\n"
    first, second = served.submit(), served.submit()
    served.worker.finish(first)
    served.worker.finish(second)
    said = good(run("jobs", "watch", first, second))
    assert sorted(line.split(" http")[0] for line in said.splitlines()) == sorted(
        [f"{first}: succeeded", f"{second}: succeeded"]
    )
    events = [json.loads(line) for line in good(run("jobs", "watch", first, "--json")).splitlines()]
    assert [(event["event"], event["id"], event["status"]) for event in events] == [("end", first, "succeeded")]


def test_watching_ends_with_1_when_one_has_not_and_follows_the_others_to_their_end(
    served: Served, run: Callable[..., Result]
) -> None:
    failed, well = served.submit(), served.submit()
    served.worker.fail(failed, "The GPU has too little memory.")
    served.worker.finish(well)
    result = run("jobs", "watch", failed, well, "nobodys")
    assert result.exit_code == 1
    assert f"{failed}: failed: The GPU has too little memory.\n" in result.stdout
    assert f"{well}: succeeded " in result.stdout
    assert "nobodys: No job has this id.\n" in result.stdout


class Heard:
    """A display that remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __enter__(self) -> Heard:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tell(self, job_id: str, event: Event) -> None:
        self.said.append(words(event))


def test_watching_goes_on_when_the_server_has_restarted(served: Served) -> None:
    job_id, display = served.submit(), Heard()
    codes: list[int] = []

    def watch() -> None:
        with Client(served.url, KEY) as client:
            codes.append(watch_all(client, [job_id], display))

    watching = threading.Thread(target=watch)
    watching.start()
    until(lambda: display.said == ["queued, next"])
    served.stop()
    until(lambda: "the server is away; waiting for it" in display.said)
    with socket.create_server(("127.0.0.1", served.port)) as away:
        away.settimeout(_LONG_S)
        away.accept()[0].close()  # it has tried again, and been hung up on
    served.start()
    served.worker.finish(job_id)
    watching.join(_LONG_S)
    assert codes == [0]
    assert display.said[-1].startswith("succeeded http")


def test_ctrl_c_ends_the_watching_and_leaves_the_jobs_alone(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(Heard):
        def tell(self, job_id: str, event: Event) -> None:
            raise KeyboardInterrupt

    job_id = served.submit()
    with Client(served.url, KEY) as client:
        assert watch_all(client, [job_id], Interrupted()) == 130
    assert "the jobs go on" in capsys.readouterr().err
    assert served.status(job_id) is JobStatus.QUEUED


def test_bars_show_the_step_the_place_and_the_estimate() -> None:
    out = io.StringIO()
    base = {"status": "running", "stage": "denoising", "position": None, "eta_s": 65.0, "preview": None}
    with Bars(Console(file=out, force_terminal=True, width=120)) as bars:
        none = {"status": "queued", "stage": "queued", "step": 0, "total_steps": 0, "progress": 0}
        waits = base | none | {"position": 2}
        bars.tell("a", Event("progress", waits))
        bars.tell("b", Event("progress", base | {"step": 10, "total_steps": 20, "progress": 45}))
        bars.tell("c", Event("end", {"status": "succeeded", "error": None, "outputs": [{"url": "http://x/c.mp4"}]}))
    shown = out.getvalue()
    assert "queued, 2 before it, about 1:05 min left" in shown
    assert "denoising, 45% (10/20), about 1:05 min left" in shown
    assert "succeeded http://x/c.mp4" in shown


def test_something_else_at_the_address_is_told_as_such(run: Callable[..., Result], served: Served) -> None:
    result = run("queue", "--url", f"{served.url}/files/x")
    assert isinstance(result.exception, ConfigurationError | ServerRefused)
