"""One trace from a client's request through the queue to each stage of its job, with nothing of what was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import inf

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from polyreel import tracing
from polyreel.errors import GenerationFailed
from polyreel.job import VideoJob
from polyreel.queue import Queue
from polyreel.tracing import is_asked_for
from tests.conftest import KEY, Api
from tests.families.quick import Quick
from tests.families.raising import Raising
from tests.workers.claims import run
from workers.runner import JobRunner

pytestmark = pytest.mark.anyio

#: As a client sends it that traces its own calls.
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "a very private prompt"


@pytest.fixture
def spans() -> Iterator[Callable[[], dict[str, ReadableSpan]]]:
    """Trace into memory; returns a reader of the spans so far, by name."""
    exporter = InMemorySpanExporter()
    tracing.use(tracing.new_provider("serve", SimpleSpanProcessor(exporter)))
    yield lambda: {span.name: span for span in exporter.get_finished_spans()}
    tracing.use(None)


async def submit(api: Api, path: str = "/api/v6/video/text2video", **headers: str) -> VideoJob:
    body = {"key": KEY, "prompt": PROMPT, "model_id": "ltx", "width": 64, "height": 64, "num_frames": 9}
    assert (await api.http.post(path, json=body, headers=headers)).status_code == 200
    return api.newest().job


def began(span: ReadableSpan) -> float:
    assert span.start_time is not None
    return span.start_time / 1e9


async def test_a_request_the_queue_and_each_stage_are_one_trace(
    spans: Callable[[], dict[str, ReadableSpan]], make_api: Callable[..., Api], make_runner: Callable[..., JobRunner]
) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 0}}, resume_after_s=inf)
    job = await submit(api, traceparent=f"00-{TRACE}-{CALLER}-01")
    run(make_runner(Quick()))
    found = spans()
    assert list(found) == [
        "POST /api/v6/video/text2video", "queued", "load", "text_encoding", "denoising", "encode", "store", "job",
    ]  # fmt: skip
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}
    http, whole = found["POST /api/v6/video/text2video"], found["job"]
    assert f"{http.parent.span_id:016x}" == CALLER
    assert {found[name].parent.span_id for name in ("queued", "job")} == {http.context.span_id}
    stages = [found[name] for name in ("load", "text_encoding", "denoising", "encode", "store")]
    assert {span.parent.span_id for span in stages} == {whole.context.span_id}
    assert [began(span) for span in stages] == sorted(began(span) for span in stages)
    assert began(found["queued"]) == pytest.approx(job.created_at, abs=1e-3)
    assert whole.attributes == {
        "polyreel.job_id": job.id,
        "polyreel.model": "ltx-tiny",
        "polyreel.dialect": "modelslab",
        "polyreel.worker": "one",
        "polyreel.attempt": 1,
    }


async def test_a_failure_is_named_by_its_code(
    spans: Callable[[], dict[str, ReadableSpan]], make_api: Callable[..., Api], make_runner: Callable[..., JobRunner]
) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 0}}, resume_after_s=inf)
    await submit(api)
    run(make_runner(Raising(GenerationFailed(f"no good came of {PROMPT}"))))
    failed = spans()["job"]
    assert failed.attributes is not None
    assert failed.attributes["polyreel.error"] == "generation_failed"
    assert failed.status.is_ok is False
    assert failed.events == ()


async def test_no_span_holds_a_prompt_a_key_a_query_or_an_errors_text(
    spans: Callable[[], dict[str, ReadableSpan]], make_api: Callable[..., Api], make_runner: Callable[..., JobRunner]
) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 0}}, resume_after_s=inf)
    await submit(api, path=f"/api/v6/video/text2video?key={KEY}&prompt=private")
    run(make_runner(Raising(RuntimeError(f"crashed at {PROMPT}"))))
    for body in ({"key": KEY, "prompt": PROMPT, "fps": 1000}, {"prompt": PROMPT}, [PROMPT]):
        answer = await api.http.post("/api/v6/video/text2video", json=body)
        assert answer.status_code >= 400
    await api.http.get("/files/out/a/a.mp4?exp=1&sig=0123456789abcdef")
    exported = "".join(span.to_json() for span in spans().values())
    assert len(spans()) >= 4
    assert '"url.query": "***"' in exported
    assert not any(secret in exported for secret in (KEY, "private", "0123456789abcdef"))


async def test_failures_are_not_told_to_whoever_collects_logs(
    spans: Callable[[], dict[str, ReadableSpan]], make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, logger_provider = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    logger_provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr("opentelemetry._logs.get_logger_provider", lambda: logger_provider)
    monkeypatch.setattr("opentelemetry._logs.get_logger", lambda name, *_, **__: logger_provider.get_logger(name))
    api = make_api(dialects={"modelslab": {"hold_s": 0}})

    def crash(*_: object) -> None:
        raise RuntimeError(f"at {PROMPT}")

    monkeypatch.setattr(api.app.state.services.queue, "submit", crash)
    answer = await api.http.post("/api/v6/video/text2video", json={"key": KEY, "prompt": PROMPT, "model_id": "ltx"})
    assert answer.status_code == 500
    assert "POST /api/v6/video/text2video" in spans()
    assert exporter.get_finished_logs() == ()


async def test_probes_are_no_traces(spans: Callable[[], dict[str, ReadableSpan]], make_api: Callable[..., Api]) -> None:
    api = make_api()
    for path in ("/health", "/ready", "/metrics", "/v3/user"):
        await api.http.get(path)
    assert list(spans()) == ["GET /v3/user"]


async def test_lines_of_the_log_name_their_trace_and_their_request(
    spans: Callable[[], dict[str, ReadableSpan]], make_api: Callable[..., Api], make_runner: Callable[..., JobRunner]
) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 0}}, resume_after_s=inf)
    job = await submit(api, **{"X-Request-Id": "mine", "traceparent": f"00-{TRACE}-{CALLER}-01"})
    assert job.trace["request_id"] == "mine"
    assert tracing.log_fields(job.trace) == {"request_id": "mine", "trace_id": TRACE}
    with capture_logs(processors=[structlog_context]) as lines:
        run(make_runner(Quick()))
    told = [line for line in lines if line["event"] in ("job started", "job succeeded")]
    assert [(line["job_id"], line["request_id"], line["trace_id"]) for line in told] == [(job.id, "mine", TRACE)] * 2


def structlog_context(logger: object, method: str, event: dict[str, object]) -> dict[str, object]:
    import structlog

    return dict(structlog.contextvars.merge_contextvars(logger, method, event))


async def test_without_a_collector_nothing_is_traced_and_the_record_holds_no_parent(
    make_api: Callable[..., Api], make_runner: Callable[..., JobRunner], queue: Queue
) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 0}}, resume_after_s=inf)
    job = await submit(api, traceparent=f"00-{TRACE}-{CALLER}-01")
    assert set(job.trace) == {"request_id"}
    run(make_runner(Quick()))
    assert tracing.provider() is None


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SERVICE_NAME": "video"}, False),
    ],
)
def test_tracing_is_on_where_opentelemetrys_own_variables_say_so(environment: dict[str, str], asked: bool) -> None:
    assert is_asked_for(environment) is asked


SILENT = """
import json, sys, warnings
warnings.simplefilter("error")
if sys.argv[1] == "absent":
    sys.modules["opentelemetry.sdk"] = None
    sys.modules["opentelemetry.exporter"] = None
from polyreel.tracing import configure_tracing, provider
configure_tracing("worker")
print(json.dumps({"traces": provider() is not None, "imported": "opentelemetry.trace" in sys.modules}))
"""


@pytest.mark.parametrize(
    ("sdk", "endpoint", "traces", "imported", "warned"),
    [
        ("there", "", False, False, False),
        ("absent", "", False, False, False),
        ("absent", "http://[::1]:9", False, False, True),
    ],
)
def test_who_traces_nothing_imports_nothing_and_an_absent_sdk_is_said_once_it_is_asked_for(
    sdk: str, endpoint: str, traces: bool, imported: bool, warned: bool
) -> None:
    environment = os.environ | ({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {})
    done = subprocess.run(
        [sys.executable, "-P", "-c", SILENT, sdk], env=environment, capture_output=True, text=True, check=True
    )
    [*lines, last] = done.stdout.splitlines()
    assert json.loads(last) == {"traces": traces, "imported": imported}
    assert ("pip install 'polyreel[tracing]'" in "".join(lines)) is warned
    assert done.stderr == ""
