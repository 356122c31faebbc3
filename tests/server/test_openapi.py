"""Our OpenAPI document is true: schemathesis makes requests of it, and every answer is one that it describes."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck
from pydantic import BaseModel
from schemathesis.core.failures import FailureGroup
from schemathesis.openapi.checks import IgnoredAuth, JsonSchemaError
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from polyreel.broker import EmbeddedBroker
from polyreel.keys import load_keys
from polyreel.profiles import load_settings
from polyreel.records import RESIDENTS, WORKER_PREFIX, Records, connect
from polyreel.storage.local import LocalStorage
from server.app import create_app
from server.openapi import add_schemes, documents
from tests.conftest import KEY, Api, free_port

#: The document says of what shape a body is. Ranges and what goes together, with sentences that name the fix, are
#: beyond it; and clients that send numbers as text are understood, which a schema would refuse.
_NOT_PROMISED = [positive_data_acceptance, negative_data_rejection]


def _described() -> Any:
    """Return what schemathesis knows of us. The document needs neither Redis nor a port."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"redis_url": "redis://nobody:1/0", "state_dir": Path(folder), "api_keys": f"alice:{KEY}"}
        settings = load_settings(**given).settings
        return schemathesis.openapi.from_dict(create_app(settings, load_keys(settings)[0]).openapi())


OPERATIONS = [found.ok() for found in _described().get_all_operations()]


@pytest.fixture(scope="module")
def served(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API on a port, on an event loop of its own, with somebody who plays a worker beside it."""
    folder = tmp_path_factory.mktemp("openapi")
    client = connect(broker.url, patient=False)
    client.flushall()
    settings = load_settings(
        redis_url=broker.url, state_dir=folder, api_keys=f"alice:{KEY}", admins="alice", max_queued=1_000_000
    ).settings.model_copy(update={"dialects": {"universal": {"endpoint_model": "ltx"}, "modelslab": {"hold_s": 1}}})
    storage = LocalStorage(folder / "results")
    app = create_app(settings, load_keys(settings)[0], storage=storage)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False, lifespan="on"))
    worker = Api(httpx2.AsyncClient(), Records(client, settings.retention_s), storage, folder, app)
    is_over = threading.Event()
    threads = [
        threading.Thread(target=server.run, daemon=True),
        threading.Thread(target=_work, args=(worker, is_over), daemon=True),
    ]
    for thread in threads:
        thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    is_over.set()
    server.should_exit = True
    for thread in threads:
        thread.join(10)
    client.close()


def _work(worker: Api, is_over: threading.Event) -> None:
    """Beat as a worker does, and finish what is submitted; what was cancelled meanwhile is let go."""
    client = worker.records.client
    client.hset(RESIDENTS, "test-worker", json.dumps({"models": [], "until": time.time() + 3600}))
    client.set(f"{WORKER_PREFIX}test-worker", json.dumps({"models": ["ltx-tiny"], "device": "cpu", "loaded": []}))
    while not is_over.wait(0.005):
        for job_id in worker.records.open_ids():
            with suppress(ValueError, AssertionError):
                worker.finish(job_id)


def check(operation: Any, base_url: str, examples: int) -> None:
    """Send requests of an operation with a valid key, and hold each answer against the document."""

    @hypothesis.settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy())
    def every_answer(case: schemathesis.Case) -> None:
        case.call_and_validate(
            base_url=base_url, headers={"Authorization": f"Bearer {KEY}"}, excluded_checks=_NOT_PROMISED
        )

    every_answer()


over_operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)


@over_operations
def test_every_answer_is_one_that_the_document_describes(operation: Any, served: str) -> None:
    check(operation, served, examples=3)


@pytest.mark.slow
@over_operations
def test_every_answer_of_many_is_one_that_the_document_describes(operation: Any, served: str) -> None:
    check(operation, served, examples=50)


class Right(BaseModel):
    """What a route says that it answers."""

    right: int


@pytest.mark.parametrize(
    ("is_locked", "answer", "failure"),
    [
        (False, {"right": 1}, IgnoredAuth),
        (True, {"wrong": 1}, JsonSchemaError),
    ],
    ids=["asks for no key", "answers something else"],
)
def test_a_route_that_is_not_as_described_is_found_out(
    is_locked: bool, answer: dict[str, int], failure: type[Exception]
) -> None:
    app = FastAPI()

    @app.get("/", **documents(answer=Right))
    async def route(request: Request) -> JSONResponse:
        is_known = request.headers.get("authorization") == f"Bearer {KEY}"
        return JSONResponse(answer, 200 if is_known or not is_locked else 401)

    add_schemes(app)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    [operation] = [found.ok() for found in schemathesis.openapi.from_dict(app.openapi()).get_all_operations()]
    try:
        with pytest.raises(FailureGroup) as found:
            check(operation, f"http://127.0.0.1:{port}", examples=1)
    finally:
        server.should_exit = True
        thread.join(10)
    assert any(isinstance(one, failure) for one in found.value.exceptions)
