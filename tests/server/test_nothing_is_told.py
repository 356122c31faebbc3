"""What clients send and what the server signs with stays out of its log, figures, traces and refusals."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator

import pytest
import structlog
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from polyreel import logs, tracing
from polyreel.logs import configure_logs
from server.dialects import Dialect
from tests.conftest import KEY, Api
from tests.dialects.calling import SECTIONS, WRONG_KEY, call, every_submit, headers_of
from tests.server.test_hostile_requests import with_prompt

pytestmark = pytest.mark.anyio

PROMPT = "marzipan zeppelin"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The log of a served process at its most talkative."""
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(logs, "_hidden", set())
    with monkeypatch.context() as only_here:
        only_here.setattr(sys, "stderr", stream)
        configure_logs("debug", "serve")
    yield stream
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.use(tracing.new_provider("serve", SimpleSpanProcessor(exporter)))
    yield exporter
    tracing.use(None)


@every_submit
async def test_nothing_of_a_submit_is_told_whether_it_is_taken_or_refused(
    make_api: Callable[..., Api], dialect: Dialect, log: io.StringIO, spans: InMemorySpanExporter
) -> None:
    api = make_api(dialects=SECTIONS)
    assert dialect.example is not None
    refusals = []
    [taken], [stored] = await call(api, dialect, with_prompt(dialect, PROMPT), headers_of(dialect, KEY))
    assert taken.is_success
    assert {span.prompt for span in stored.job.request.prompts} == {PROMPT}
    content = with_prompt(dialect, PROMPT)
    for key, body in (
        (WRONG_KEY, content.replace(KEY.encode(), WRONG_KEY.encode())),
        (KEY, content[:-1]),
        (KEY, json.dumps([PROMPT, KEY]).encode()),
        (KEY, json.dumps({"nothing": PROMPT, "key": KEY}).encode()),
    ):
        answer = await api.http.request(
            dialect.example.method,
            f"{dialect.example.path}?key={key}&prompt=marzipan",
            content=body,
            headers=headers_of(dialect, key),
        )
        if answer.status_code >= 400:
            refusals.append(answer.text + str(answer.headers))
    assert len(refusals) >= 3
    places = {
        "log": log.getvalue(),
        "metrics": (await api.http.get("/metrics")).text,
        "spans": "".join(span.to_json() for span in spans.get_finished_spans()),
        "refusals": "".join(refusals),
    }
    assert stored.job.id in places["log"]
    assert dialect.name in places["metrics"]
    assert "http.route" in places["spans"]
    told = [(place, word) for place, text in places.items() for word in (KEY, WRONG_KEY, "marzipan") if word in text]
    assert told == []
