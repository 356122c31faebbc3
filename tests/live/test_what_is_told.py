"""What a whole server tells its operator: logs, figures and traces that fit together, and no secret in any of them.

Every process of `polyreel up` runs with its log at its most talkative and traces sent to a collector on loopback, while
clients of every dialect submit a marked prompt with marked keys, rightly and wrongly.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import KEY, OTHER_KEY, LiveServer, start_live_server, stop_live_server
from tests.server.receivers import Receiver, answering

pytestmark = pytest.mark.slow

#: What must turn up nowhere. The prompt lies in the record, which is where workers find it.
PROMPT = "marzipan zeppelin"
WRONG_KEY = "wrong-key-of-mallory-777"
LINK_SECRET = "link-secret-for-this-test"
WEBHOOK_SECRET = "whsec_bWFyemlwYW4tc2VjcmV0LW9mLXRoaXMtdGVzdCE="

TRACE = "0af7651916cd43dd8448eb211c80319c"
AUTH = {"Authorization": f"Bearer {KEY}"}
SMALL = {"num_frames": 5, "num_inference_steps": 2, "height": 64, "width": 64}

#: A submit of each dialect.
SUBMITS: dict[str, tuple[str, dict[str, Any]]] = {
    "native": ("/polyreel/v1/jobs", {"model": "ltx-tiny", "prompt": PROMPT, **SMALL}),
    "huggingface": ("/models/Lightricks/LTX-Video", {"inputs": PROMPT, "parameters": SMALL}),
    "universal": ("/", {"inputs": {"prompt": PROMPT, "outputs": ["gif"], **SMALL}}),
    "modelslab": ("/api/v6/video/text2video", {"key": KEY, "model_id": "ltx", "prompt": PROMPT, **SMALL}),
    "novita": (
        "/v3/async/txt2video",
        {
            "model_name": "darkSushiMixMix_225D_64380.safetensors", "height": 256, "width": 256, "steps": 1,
            "prompts": [{"frames": 8, "prompt": PROMPT}],
        },
    ),
    "openai": ("/v1/videos", {"model": "sora-2", "prompt": PROMPT, "seconds": "1", "size": "256x256"}),
}  # fmt: skip


class Collector:
    """Takes what OpenTelemetry's exporters send by HTTP."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.text = ""
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def take(self, sent: ExportTraceServiceRequest) -> None:
        self.text += str(sent)
        for resource in sent.resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [
                    {"service": named["service.name"], "name": span.name, "trace": span.trace_id.hex()}
                    for span in scope.spans
                ]

    def of(self, trace: str) -> set[tuple[str, str]]:
        return {(span["service"], span["name"]) for span in self.spans if span["trace"] == trace}


@dataclass
class Told:
    """What a journey left behind."""

    live: LiveServer
    log: str
    metrics: str
    spans: str
    commands: str
    refusals: list[str] = field(default_factory=list)
    answers: str = ""
    trace: set[tuple[str, str]] = field(default_factory=set)
    job_id: str = ""
    counts_before_kill: dict[str, float] = field(default_factory=dict)
    counts_after_kill: dict[str, float] = field(default_factory=dict)


def until(what: str, is_so: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def counts(text: str) -> dict[str, float]:
    """Return the counters of jobs."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(
            ("polyreel_jobs_submitted", "polyreel_jobs_ended", "polyreel_stage", "polyreel_steps")
        )
    }


def refused(client: httpx2.Client) -> list[str]:
    """Send what is refused, in every way and dialect, and return the answers."""
    said = []
    for path, body in SUBMITS.values():
        keyless = {name: value for name, value in body.items() if name != "key"}
        for headers, content in (
            ({"Authorization": f"Bearer {WRONG_KEY}"}, json.dumps(keyless | {"key": WRONG_KEY})),
            (AUTH, json.dumps(body)[:-1]),
            (AUTH, json.dumps(body | {"height": "tall", "inputs": {"prompt": PROMPT, "height": "tall"}})),
            (AUTH, json.dumps([PROMPT, KEY])),
            (AUTH, json.dumps({"nothing": PROMPT, "key": KEY})),
            (AUTH | {"Idempotency-Key": "x" * 300}, json.dumps(body)),
            (AUTH | {"X-Polyreel-Priority": PROMPT}, json.dumps(body)),
            (AUTH | {"X-Request-Id": "<script>\tof mallory"}, json.dumps(body | {"num_frames": 10**9, "seconds": "x"})),
        ):
            answer = client.post(path, content=content, headers=headers)
            if answer.status_code >= 400:
                said.append(answer.text + str(dict(answer.headers)))
    for path in (
        f"/v3/user?key={WRONG_KEY}",
        f"/polyreel/v1/jobs/nothing?key={KEY}",
        "/files/out/a/a.mp4?exp=9999999999&sig=0123456789abcdef0123456789abcdef",
        f"/nothing?prompt={PROMPT}&token={KEY}",
    ):
        answer = client.get(path)
        said.append(answer.text + str(dict(answer.headers)))
    return said


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Run the journey once."""
    folder, collector = tmp_path_factory.mktemp("told"), Collector()
    log = folder / "up.log"
    live = start_live_server(
        folder / "state",
        log,
        POLYREEL_LOG_LEVEL="debug",
        POLYREEL_WEBHOOK_ALLOW="127.0.0.1",
        POLYREEL_WEBHOOK_SECRETS=WEBHOOK_SECRET,
        POLYREEL_LINK_SECRET=LINK_SECRET,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="200",
    )
    try:
        yield journey(live, log, collector)
    finally:
        stop_live_server(live.process)
        collector.server.shutdown()
        collector.server.server_close()


def journey(live: LiveServer, log: Path, collector: Collector) -> Told:
    broker = redis.Redis(unix_socket_path=str(live.state_dir / "queue" / "redis.sock"), decode_responses=True)
    commands: list[str] = []

    def watch() -> None:
        with suppress(redis.RedisError, ValueError), broker.monitor() as monitor:
            is_watching.set()
            for command in monitor.listen():
                commands.append(command["command"])

    is_watching = threading.Event()
    threading.Thread(target=watch, daemon=True).start()
    assert is_watching.wait(30)
    answers = []
    with (
        Receiver(answering(200)) as receiver,
        httpx2.Client(base_url=live.base_url, timeout=280) as client,
    ):
        path, body = SUBMITS["native"]
        first = client.post(
            path,
            json=body | {"webhook": receiver.url},
            headers=AUTH | {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "X-Request-Id": "the-first"},
        )
        assert first.status_code == 202, first.text
        for path, body in list(SUBMITS.values())[1:]:
            answer = client.post(path, json=body, headers=AUTH)
            assert answer.is_success, answer.text
            answers.append(answer.text if "json" in answer.headers["content-type"] else "")
        refusals = refused(client)
        until("the end of every job", lambda: broker.zcard("polyreel:open") == 0)
        until("the webhook", lambda: receiver.count() == 1)
        found = client.get(f"/polyreel/v1/jobs/{first.json()['id']}", headers=AUTH)
        answers.append(found.text)
        wanted = {("polyreel-serve", "queued"), ("polyreel-worker", "job"), ("polyreel-courier", "webhook")}
        until("the traces", lambda: {name for _, name in wanted} <= {name for _, name in collector.of(TRACE)})
        metrics = client.get("/metrics").text
        before = counts(metrics)
        children = psutil.Process(live.process.pid).children(recursive=True)
        [api] = [child for child in children if " ".join(child.cmdline()).startswith("polyreel serve")]
        os.kill(api.pid, signal.SIGKILL)
        until("another API process", lambda: answers_now(client))
        after = counts(client.get("/metrics").text)
    broker.close()
    return Told(
        live,
        log.read_text(),
        metrics,
        collector.text,
        "\n".join(commands),
        refusals,
        "\n".join(answers),
        collector.of(TRACE),
        first.json()["id"],
        before,
        after,
    )


def answers_now(client: httpx2.Client) -> bool:
    with suppress(httpx2.TransportError):
        return client.get("/ready").status_code == 200
    return False


def test_no_secret_is_told_anywhere(told: Told) -> None:
    signatures = set(re.findall(r"sig=([0-9a-f]+)", told.answers))
    assert signatures, "the answers have links"
    assert len(told.refusals) > 40
    places = {"log": told.log, "metrics": told.metrics, "spans": told.spans, "errors": "\n".join(told.refusals)}
    assert all(len(text) > 1000 for text in places.values())
    assert PROMPT in told.commands, "Redis was watched while jobs were submitted"
    secrets = (
        KEY,
        OTHER_KEY,
        WRONG_KEY,
        LINK_SECRET,
        WEBHOOK_SECRET,
        WEBHOOK_SECRET.removeprefix("whsec_"),
        *signatures,
    )
    hits = [
        (place, secret)
        for place, text in [*places.items(), ("Redis", told.commands)]
        for secret in secrets
        if secret in text
    ]
    assert hits == []
    words = PROMPT.split()
    assert [(place, word) for place, text in places.items() for word in words if word in text] == []


def test_one_trace_leads_from_the_request_to_the_webhook(told: Told) -> None:
    assert told.trace >= {
        ("polyreel-serve", "POST /polyreel/v1/jobs"),
        ("polyreel-worker", "queued"),
        ("polyreel-worker", "job"),
        ("polyreel-worker", "load"),
        ("polyreel-worker", "text_encoding"),
        ("polyreel-worker", "denoising"),
        ("polyreel-worker", "decoding"),
        ("polyreel-worker", "encode"),
        ("polyreel-worker", "store"),
        ("polyreel-courier", "webhook"),
    }


def test_every_line_is_json_and_a_jobs_lines_name_its_request(told: Told) -> None:
    lines = [json.loads(line) for line in told.log.splitlines() if line.startswith("{")]
    assert len(lines) > 30
    assert all({"event", "level", "timestamp", "process"} <= set(line) for line in lines)
    of_job = [line for line in lines if line.get("job_id") == told.job_id]
    assert {line["process"] for line in of_job} == {"serve", "worker", "courier"}
    assert {line.get("request_id") for line in of_job} == {"the-first"}
    assert {line.get("trace_id") for line in of_job} == {TRACE}
    assert {"job submitted", "job started", "job succeeded", "webhook delivered"} <= {line["event"] for line in of_job}


def test_the_figures_are_the_records_and_outlive_the_process_that_showed_them(told: Told) -> None:
    assert told.counts_after_kill == told.counts_before_kill
    submitted = {name: value for name, value in told.counts_before_kill.items() if "submitted" in name and value}
    with redis.Redis(
        unix_socket_path=str(told.live.state_dir / "queue" / "redis.sock"), decode_responses=True
    ) as broker:
        records = [broker.hgetall(key) for key in broker.scan_iter("polyreel:job:*")]
    for dialect in SUBMITS:
        ours = sum(value for name, value in submitted.items() if f"'{dialect}'" in name)
        assert ours == sum(record["dialect"] == dialect for record in records) >= 1, dialect
    ended = sum(value for name, value in told.counts_before_kill.items() if "jobs_ended" in name)
    assert ended == len(records)


def test_prometheus_own_linter_has_nothing_to_say(told: Told) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        assert not os.environ.get("CI"), "promtool is needed: apt-get install prometheus"
        pytest.skip("no promtool here")
    checked = subprocess.run([promtool, "check", "metrics"], input=told.metrics, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
