"""`polyreel doctor`: every check finds what is well and what is not, and names what mends it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from polyreel import doctor
from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.cli import app
from polyreel.doctor import Finding, Patient, checks, device, examine, machine, patient_of, redis_server, services
from polyreel.errors import StorageAway
from polyreel.profiles import load_settings
from polyreel.records import RESIDENTS
from polyreel.settings import Settings
from polyreel.webhooks import COURIERS

TORCH: dict[str, Any] = {
    "version": "2.13.0+cu130",
    "cuda": "13.0",
    "trouble": "",
    "devices": [{"name": "NVIDIA H200", "memory_bytes": 150_000_000_000, "arch": "sm_90"}],
    "archs": ["sm_80", "sm_90", "compute_90"],
}
GPU = "GPU 0: NVIDIA H200 (UUID: GPU-aaaa0000-1111-2222-3333-444455556666)\n"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A Valkey whose settings the tests may change."""
    broker = start_embedded(tmp_path_factory.mktemp("own"))
    yield broker
    broker.stop()


@pytest.fixture
def client(own: EmbeddedBroker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own.url, decode_responses=True) as client:
        client.flushall()
        yield client
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "always")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "0")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program on PATH, as it is where one GPU is; empty for a machine without."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    (folder / "listing").write_text(GPU)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n/bin/cat {folder}/listing\n")
    (folder / "nvidia-smi").chmod(0o755)
    return folder / "nvidia-smi"


def with_settings(tmp_path: Path, **values: object) -> Settings:
    return load_settings(**({"state_dir": tmp_path / "state"} | values)).settings


def seen(tmp_path: Path, device: str = "auto", config: str | None = None, **parts: object) -> Patient:
    """Return a patient of whom the worker's process has seen these parts."""
    settings = load_settings(config, state_dir=tmp_path / "state", device=device).settings
    return Patient(settings, seen={"libraries": {"torch": "2.13.0"}, "torch": TORCH} | parts)


def assert_finding(found: Finding, status: str, says: str, fix: str = "") -> None:
    assert (found.status, bool(found.fix)) == (status, status != "ok"), found
    assert says in found.says
    assert fix in found.fix


# Python and its packages


def test_python_that_is_too_old_is_told_with_the_version_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient(with_settings(tmp_path))
    assert_finding(machine.python(patient), "ok", sys.executable)
    monkeypatch.setattr(machine, "_PYTHON", (4, 0))
    assert_finding(machine.python(patient), "fail", "This is Python 3.", "Install Python 3.11")


def test_packages_that_are_missing_or_of_another_version_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["redis[hiredis]==8.1.0", "rq>=2.12,<2.13", 'torch>=2.11; extra == "worker"', 'pytest==1; extra == "dev"']
    found = {"redis": "8.1.0", "rq": "2.12.0", "torch": "2.13.0"}

    def version(name: str) -> str:
        if name not in found:
            raise machine.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(machine, "requires", lambda _: wanted)
    monkeypatch.setattr(machine, "version", version)
    worker, api = seen(tmp_path), Patient(with_settings(tmp_path))
    assert_finding(machine.packages(worker), "ok", "all packages")
    del found["torch"]
    assert_finding(machine.packages(worker), "fail", "Not installed: torch.", "pip install 'polyreel[worker]'")
    assert_finding(machine.packages(api), "ok", "all packages")
    found["redis"] = "7.0"
    assert_finding(machine.packages(api), "warn", "redis 7.0 (8.1.0 is tested)", "pip install 'polyreel'")


# Devices


@pytest.mark.usefixtures("nvidia_smi")
def test_torch_that_can_use_the_gpu_is_well(tmp_path: Path) -> None:
    assert_finding(device.cuda(seen(tmp_path)), "ok", "torch 2.13.0+cu130, CUDA 13.0: NVIDIA H200")


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize(
    ("facts", "says", "fix"),
    [
        (
            {"cuda": None, "devices": []},
            "was built without CUDA",
            'make -B install TORCH="torch==2.13.0+cu130 --index-url ADDRESS", with the address',
        ),
        (
            {"devices": [], "trouble": "The NVIDIA driver on your system is too old (found version 12020)"},
            "too old (found version 12020)",
            "Update NVIDIA's driver to one for CUDA 13.0",
        ),
        ({"archs": ["sm_70", "sm_75"]}, "has no code for NVIDIA H200 (sm_90)", "Install a torch that was built for it"),
    ],
)
def test_a_torch_that_cannot_use_the_gpu_is_told_with_what_to_install(
    tmp_path: Path, facts: dict[str, Any], says: str, fix: str
) -> None:
    assert_finding(device.cuda(seen(tmp_path, torch=TORCH | facts)), "fail", says, fix)


def test_code_for_an_older_gpu_runs_where_it_is_of_the_same_major_version_or_ptx(tmp_path: Path) -> None:
    assert device._runs_on("sm_89", ["sm_80"])
    assert device._runs_on("sm_120", ["sm_80", "compute_90"])
    assert not device._runs_on("sm_86", ["sm_89"])
    assert not device._runs_on("sm_90", ["sm_80"])


def test_a_gpu_that_is_not_used_and_one_that_is_not_there_are_told(tmp_path: Path, nvidia_smi: Path) -> None:
    assert_finding(device.cuda(seen(tmp_path, "cpu")), "warn", "1 GPUs are here", "--config gpu")
    (nvidia_smi.parent / "listing").write_text("Failed to initialize NVML: Driver/library version mismatch")
    assert_finding(device.cuda(seen(tmp_path)), "fail", "version mismatch", "Install NVIDIA's driver again")
    nvidia_smi.unlink()
    none = TORCH | {"devices": [], "cuda": None}
    assert_finding(device.cuda(seen(tmp_path, torch=none)), "ok", "no GPU is here")
    assert_finding(device.cuda(seen(tmp_path, "cuda", torch=none)), "fail", "device: cuda was asked", "device: cpu")


def test_where_no_worker_is_installed_that_is_a_remark_and_one_that_does_not_run_a_failure(tmp_path: Path) -> None:
    settings = with_settings(tmp_path)
    for check in (device.cuda, device.ffmpeg):
        assert_finding(check(Patient(settings, seen={"libraries": {}})), "warn", "No worker is installed", "[worker]")
        assert_finding(check(Patient(settings, no_look="it crashed")), "fail", "it crashed", "pip install")
    broken = seen(tmp_path, torch={"error": "OSError: libcudnn.so.9: cannot open"})
    assert_finding(device.cuda(broken), "fail", "libcudnn.so.9", "pip install")


def test_the_memory_of_the_gpu_is_compared_with_every_model_of_the_catalogue(tmp_path: Path) -> None:
    def of(gb: float) -> dict[str, Finding]:
        gpu = {"name": "GPU", "memory_bytes": int(gb * 1e9), "arch": "sm_90"}
        found = device.memory(seen(tmp_path, config="gpu", torch=TORCH | {"devices": [gpu]}))
        return {finding.of: finding for finding in found}

    large, small, tiny = of(150), of(24), of(2)
    assert set(large) == set(load_settings("gpu").settings.models)
    assert {finding.status for finding in large.values()} == {"ok"}
    assert_finding(small["wan2.1-14b"], "warn", "24.0 GB only with weights kept in the CPU's memory", "A larger GPU")
    assert_finding(small["wan2.1-1.3b"], "ok", "of 24.0 GB")
    assert_finding(tiny["wan2.1-14b"], "fail", "the largest GPU has 2.0 GB", "Lower models.wan2.1-14b.defaults")
    [on_cpu] = device.memory(seen(tmp_path, "cpu"))
    assert_finding(on_cpu, "ok", "not counted")


def test_weights_are_told_as_polyreel_models_tells_them(tmp_path: Path) -> None:
    rows = [
        {"name": "a", "kind": "model", "state": "ready", "detail": "", "fix": ""},
        {"name": "b", "kind": "model", "state": "downloadable", "detail": "3 GB", "fix": "polyreel pull b"},
        {"name": "c", "kind": "lora", "state": "broken", "detail": "not safetensors", "fix": ""},
    ]
    found = {finding.of: finding for finding in device.weights(seen(tmp_path, weights=rows))}
    assert_finding(found[""], "ok", "ready: a")
    assert_finding(found["b"], "warn", "downloadable: 3 GB", "polyreel pull b")
    assert_finding(found["c"], "fail", "broken: not safetensors", "polyreel models")


def test_an_ffmpeg_without_an_encoder_is_told_with_what_it_cannot_make(tmp_path: Path) -> None:
    has = {"program": "/usr/bin/ffmpeg", "encoders": ["aac", "gif", "libopus", "libvpx-vp9", "libx264"]}
    assert_finding(device.ffmpeg(seen(tmp_path, ffmpeg=has)), "ok", "/usr/bin/ffmpeg")
    lacks = {"program": "/usr/bin/ffmpeg", "encoders": ["aac", "gif", "libopus"]}
    says = "/usr/bin/ffmpeg lacks libx264 (mp4), libvpx-vp9 (webm)."
    assert_finding(device.ffmpeg(seen(tmp_path, ffmpeg=lacks)), "fail", says, "IMAGEIO_FFMPEG_EXE")
    none = {"error": "FileNotFoundError: /nowhere/ffmpeg"}
    assert_finding(device.ffmpeg(seen(tmp_path, ffmpeg=none)), "fail", "/nowhere/ffmpeg", "IMAGEIO_FFMPEG_EXE")


# The machine


def test_a_state_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    assert_finding(machine.state_folder(Patient(with_settings(tmp_path))), "ok", str(tmp_path / "state"))
    (tmp_path / "file").touch()
    found = machine.state_folder(Patient(with_settings(tmp_path, state_dir=tmp_path / "file")))
    assert_finding(found, "fail", f"state_dir: cannot write to {tmp_path / 'file'}", "--state-dir DIR")


def test_secrets_that_others_can_read_are_told_with_the_command_that_hides_them(tmp_path: Path) -> None:
    patient = Patient(with_settings(tmp_path))
    assert_finding(machine.secret_files(patient), "ok", "none are made yet")
    (tmp_path / "state").mkdir()
    secret = tmp_path / "state" / "link-secret"
    secret.touch(mode=0o600)
    assert_finding(machine.secret_files(patient), "ok", "1 in ")
    secret.chmod(0o640)
    assert_finding(machine.secret_files(patient), "fail", f"can read {secret}", f"chmod 600 {secret}")


@pytest.mark.parametrize(
    ("free_mb", "status", "fix"), [(5000, "ok", ""), (900, "warn", "Free some"), (100, "fail", "min_free_mb (200 MB)")]
)
def test_a_disk_is_judged_by_the_space_that_jobs_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mb: int, status: str, fix: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub" / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_mb * 10**6))
    state, hub = machine.disk(Patient(with_settings(tmp_path)))
    assert_finding(state, status, f"at {tmp_path / 'state'}", fix)
    assert (hub.of, hub.status) == ("HF_HOME", status)


# Redis


def test_a_redis_that_is_well_is_found_well(tmp_path: Path, client: redis.Redis) -> None:
    patient = Patient(with_settings(tmp_path), client)
    assert_finding(redis_server.answers(patient), "ok", "the embedded one answers")
    assert_finding(redis_server.version(patient), "ok", "Valkey 9")
    assert_finding(redis_server.persistence(patient), "ok", "appendonly: yes, appendfsync: always")
    assert_finding(redis_server.policy(patient), "ok", "noeviction")
    assert_finding(redis_server.memory(patient), "ok", "no maxmemory")
    assert_finding(redis_server.clock(patient), "ok", "this machine's")


def test_a_redis_that_forgets_or_throws_away_is_told_with_the_command_that_mends_it(
    tmp_path: Path, client: redis.Redis
) -> None:
    patient = Patient(with_settings(tmp_path), client)
    client.config_set("appendfsync", "everysec")
    assert_finding(redis_server.persistence(patient), "warn", "everysec", "redis-cli CONFIG SET appendfsync always")
    client.config_set("appendonly", "no")
    assert_finding(redis_server.persistence(patient), "fail", "appendonly: no", "redis-cli CONFIG SET appendonly yes")
    client.config_set("maxmemory-policy", "allkeys-lru")
    found = redis_server.policy(patient)
    assert_finding(found, "fail", "allkeys-lru", "redis-cli CONFIG SET maxmemory-policy noeviction")
    client.config_set("maxmemory", str(client.info()["used_memory"] + 10_000))
    assert_finding(redis_server.memory(patient), "warn", "(maxmemory) are used", "redis-cli CONFIG SET maxmemory ")


class Odd:
    """A Redis of which some answers are given by the test."""

    def __init__(self, client: redis.Redis, **answers: object) -> None:
        self._client = client
        self._answers = answers

    def __getattr__(self, name: str) -> object:
        if name not in self._answers:
            return getattr(self._client, name)
        answer = self._answers[name]

        def said(*_: object) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return said


def test_a_redis_that_is_old_late_or_silent_about_itself_is_told(tmp_path: Path, client: redis.Redis) -> None:
    def odd(**answers: object) -> Patient:
        return Patient(with_settings(tmp_path), Odd(client, **answers))  # type: ignore[arg-type]

    assert_finding(
        redis_server.version(odd(info={"redis_version": "6.2.7"})), "fail", "Redis 6.2.7", "Redis 7 or newer"
    )
    silent = odd(config_get=redis.ResponseError("unknown command 'CONFIG'"))
    assert_finding(redis_server.persistence(silent), "warn", "does not say", "--appendonly yes")
    assert_finding(redis_server.policy(silent), "warn", "does not say", "noeviction")
    full = odd(info={**client.info(), "aof_last_write_status": "err"})
    assert_finding(redis_server.persistence(full), "fail", "could not write", "Free space")
    now = client.time()[0]
    assert_finding(redis_server.clock(odd(time=(now + 300, 0))), "fail", "ahead of this machine's", "timedatectl")
    assert_finding(redis_server.clock(odd(time=(now - 20, 0))), "warn", "behind this machine's", "timedatectl")


def test_a_redis_that_is_away_fails_its_checks_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_look", lambda _: ({}, "not asked"))
    with patient_of(with_settings(tmp_path, redis_url="redis://:correct-horse@127.0.0.1:1/0"), []) as patient:
        assert_finding(redis_server.answers(patient), "fail", "the Redis at 127.0.0.1:1 cannot be used", "REDIS_URL=")
        for check in (redis_server.version, redis_server.persistence, redis_server.policy, redis_server.memory):
            assert_finding(check(patient), "fail", "could not be asked", "See above: redis.")
        for check in (redis_server.clock, services.webhooks):
            assert_finding(check(patient), "fail", "could not be asked", "See above: redis.")
        assert "correct-horse" not in str(examine(patient))


# What stands around


def test_a_storage_is_tried_and_its_trouble_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = with_settings(tmp_path)
    assert_finding(services.storage(Patient(settings)), "ok", "written, read back and removed")
    poor = SimpleNamespace(check=lambda: None, free_bytes=lambda: 10**8)
    monkeypatch.setattr(services, "connect_storage", lambda *_: poor)
    assert_finding(services.storage(Patient(settings)), "fail", "has 100 MB left", "min_free_mb (200 MB)")

    def refuse() -> None:
        raise StorageAway("The storage does not answer.")

    monkeypatch.setattr(services, "connect_storage", lambda *_: SimpleNamespace(check=refuse))
    assert_finding(services.storage(Patient(settings)), "fail", "The storage does not answer.", "POLYREEL_STORAGE")


class Page(BaseHTTPRequestHandler):
    """Answers as a server of another kind, or as ours."""

    name = "Polyreel"

    def do_GET(self) -> None:
        body = json.dumps({"name": self.name}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_port_is_free_or_ours_or_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        patient = Patient(with_settings(tmp_path, port=server.server_port))
        assert_finding(services.port(patient), "ok", "a Polyreel listens")
        monkeypatch.setattr(Page, "name", "something else")
        assert_finding(services.port(patient), "fail", "Address already in use", "--port PORT")
        server.shutdown()
    assert_finding(services.port(patient), "ok", "is free")
    nowhere = Patient(with_settings(tmp_path, host="nowhere.invalid"))
    assert_finding(services.port(nowhere), "fail", "nowhere.invalid is no address here", "--host 127.0.0.1")


@pytest.mark.parametrize(
    ("host", "url", "status", "says", "fix"),
    [
        ("127.0.0.1", None, "ok", "not set", ""),
        ("0.0.0.0", None, "warn", "public_url is not set", "POLYREEL_PUBLIC_URL=https://"),
        ("0.0.0.0", "http://localhost:8000", "warn", "its own machine", "https://video.example.com"),
        ("0.0.0.0", "https://video.invalid", "warn", "video.invalid has no address", "in your DNS"),
        ("0.0.0.0", "http://192.0.2.1", "warn", "in the clear", "https://"),
        ("0.0.0.0", "https://192.0.2.1", "ok", "https://192.0.2.1", ""),
    ],
)
def test_a_public_address_leads_others_to_this_server(
    tmp_path: Path, host: str, url: str | None, status: str, says: str, fix: str
) -> None:
    assert_finding(services.public_url(Patient(with_settings(tmp_path, host=host, public_url=url))), status, says, fix)


def test_somebody_delivers_webhooks_where_somebody_makes_videos(tmp_path: Path, client: redis.Redis) -> None:
    patient = Patient(with_settings(tmp_path), client)
    assert_finding(services.webhooks(patient), "ok", "nothing runs now")
    client.hset(RESIDENTS, "one", "{}")
    assert_finding(services.webhooks(patient), "warn", "Nobody delivers webhooks", "polyreel courier")
    client.zadd(COURIERS, {"c": client.time()[0] - 3600})
    assert_finding(services.webhooks(patient), "warn", "Nobody delivers webhooks", "polyreel courier")
    client.zadd(COURIERS, {"c": client.time()[0]})
    assert_finding(services.webhooks(patient), "ok", "a courier comes")


# The whole


def test_a_check_that_cannot_be_done_is_a_finding_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(_: Patient) -> Finding:
        raise RuntimeError("no luck")

    monkeypatch.setattr(doctor, "checks", lambda: {"first": raising, "second": machine.python})
    found = examine(Patient(with_settings(tmp_path)))
    assert [(name, finding.status) for name, finding in found] == [("first", "fail"), ("second", "ok")]
    assert "RuntimeError: no luck" in found[0][1].says


def test_the_command_shows_a_mark_and_a_fix_for_each_and_ends_with_1_when_something_fails(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    looked = {"libraries": {}, "torch": {"error": "x"}, "ffmpeg": {"error": "x"}, "weights": []}
    monkeypatch.setattr(doctor, "_look", lambda _: (looked, ""))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        monkeypatch.setenv("POLYREEL_PORT", str(port))
        monkeypatch.setattr(services, "_ASK_S", 0.2)  # it listens and never answers
        taken = CliRunner().invoke(app, ["doctor", "--state-dir", str(tmp_path)])
    assert taken.exit_code == 1
    assert f"✗  port                    host, port: cannot listen on 127.0.0.1:{port}" in taken.stdout
    assert "→ Stop who has it (ss -ltnp shows who), or choose another: --port PORT or POLYREEL_PORT." in taken.stdout
    assert "✓  redis policy" in taken.stdout
    assert "!  ffmpeg" in taken.stdout
    well = CliRunner().invoke(app, ["doctor", "--state-dir", str(tmp_path), "--json"])
    assert well.exit_code == 0
    found = json.loads(well.stdout)
    assert {finding["check"] for finding in found} == set(checks())
    assert {"check": "port", "status": "ok", "says": f"127.0.0.1:{port} is free", "fix": "", "of": ""} in found


@pytest.mark.slow
def test_the_workers_process_sees_its_libraries_weights_and_ffmpeg(tmp_path: Path) -> None:
    """Starts torch in a process of its own, with an ffmpeg that is none."""
    words = [sys.executable, "-P", "-m", "workers.look", "--state-dir", str(tmp_path)]
    looked = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(looked.stdout)
    assert found["libraries"]["torch"] == found["torch"]["version"]
    assert set(found["ffmpeg"]["encoders"]) >= {"libx264", "aac", "libvpx-vp9", "libopus", "gif"}
    assert {row["name"]: row["state"] for row in found["weights"]}["atelier"] == "ready"
    environment = os.environ | {"IMAGEIO_FFMPEG_EXE": "/nowhere/ffmpeg"}
    asked = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert "/nowhere/ffmpeg" in json.loads(asked.stdout)["ffmpeg"]["error"]
