"""docker-compose.yml: what starts where, and what each container may do."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from polyreel import __version__
from polyreel.profiles import load_settings
from tests.deploy.tools import ROOT, compose, program, run
from tests.drop_in.running import npm_folder

OURS = ("server", "courier", "worker", "worker-cpu", "pull")
FOREIGN = ("redis", "caddy", "seaweedfs", "seaweedfs-bucket", "prometheus", "grafana")


def everything() -> dict[str, Any]:
    """Return the services of all profiles. Any: they are read from YAML."""
    services: dict[str, Any] = compose("*")["services"]
    return services


@pytest.mark.parametrize(
    ("profiles", "started"),
    [
        ((), {"redis", "server", "courier", "worker"}),  # .env.example says gpu
        (("cpu",), {"redis", "server", "courier", "worker-cpu"}),
        (("gpu", "tls"), {"redis", "server", "courier", "worker", "caddy"}),
        (("gpu", "s3"), {"redis", "server", "courier", "worker", "seaweedfs", "seaweedfs-bucket"}),
        (("gpu", "monitoring"), {"redis", "server", "courier", "worker", "prometheus", "grafana"}),
    ],
    ids=["env", "cpu", "tls", "s3", "monitoring"],
)
def test_a_profile_starts_its_services_and_no_others(profiles: tuple[str, ...], started: set[str]) -> None:
    assert set(compose(*profiles)["services"]) == started


def test_the_example_environment_passes_as_it_is() -> None:
    run(program("docker-compose"), "--env-file", ".env.example", "config", "-q")


def test_the_cpu_profile_needs_no_environment_file_and_no_gpu() -> None:
    services = compose("cpu", env_file=None)["services"]
    assert set(services) == {"redis", "server", "courier", "worker-cpu"}
    assert all("deploy" not in service for service in services.values())
    assert {services[name]["environment"]["POLYREEL_CONFIG"] for name in ("server", "courier", "worker-cpu")} == {
        "tiny"
    }


@pytest.mark.slow
def test_the_file_is_what_the_specification_of_compose_says() -> None:
    run(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


@pytest.mark.parametrize("name", OURS + FOREIGN)
def test_no_container_can_write_to_its_root_or_gain_privileges(name: str) -> None:
    service = everything()[name]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert service["init"] is True
    assert "privileged" not in service


def test_no_service_is_left_out_above() -> None:
    assert set(everything()) == {*OURS, *FOREIGN}


def test_capabilities_are_given_to_two_foreign_images_alone() -> None:
    assert {name: service["cap_add"] for name, service in everything().items() if "cap_add" in service} == {
        "caddy": ["NET_BIND_SERVICE"],
        "seaweedfs": ["DAC_OVERRIDE"],
    }


@pytest.mark.parametrize("name", OURS)
def test_our_images_are_of_this_version(name: str) -> None:
    assert everything()[name]["image"].endswith(f":{__version__}")


@pytest.mark.parametrize("name", OURS)
def test_our_containers_run_as_nobody_in_particular(name: str) -> None:
    assert everything()[name]["user"] == "10001:10001"


def test_every_container_that_stays_says_whether_it_is_well() -> None:
    without = {name for name, service in everything().items() if not service.get("healthcheck", {}).get("test")}
    # The images of server and worker have checks of their own (tests/deploy/test_images.py).
    assert without == {"server", "worker", "worker-cpu", "pull", "seaweedfs-bucket"}
    assert all("curl" not in str(service.get("healthcheck")) for service in everything().values())


def test_redis_keeps_what_it_acknowledged_and_is_reached_by_nobody_outside() -> None:
    redis = everything()["redis"]
    assert "ports" not in redis
    assert set(redis["networks"]) == {"queue"}
    assert compose("*")["networks"]["queue"]["internal"] is True
    lines = (ROOT / "deploy/redis/valkey.conf").read_text().splitlines()
    assert {"appendonly yes", "appendfsync always", "maxmemory-policy noeviction", 'save ""'} <= set(lines)


def test_the_password_of_redis_stands_in_no_command() -> None:
    services = compose("*", REDIS_PASSWORD="only-in-the-environment")["services"]
    for service in services.values():
        spoken = [service.get("command"), service.get("entrypoint"), service.get("healthcheck")]
        assert "only-in-the-environment" not in str(spoken)
    assert services["redis"]["environment"] == {"REDIS_PASSWORD": "only-in-the-environment"}
    assert services["worker"]["environment"]["REDIS_URL"] == "redis://:only-in-the-environment@redis:6379/0"


def test_a_further_machine_takes_the_queue_of_the_first() -> None:
    services = compose("gpu", QUEUE_URL="redis://:secret@10.0.0.5:6379/0")["services"]
    assert services["worker"]["environment"]["REDIS_URL"] == "redis://:secret@10.0.0.5:6379/0"


def test_nothing_listens_beyond_this_machine_but_what_has_a_certificate() -> None:
    open_to_all = {
        name for name, service in everything().items() for port in service.get("ports", ()) if "host_ip" not in port
    }
    assert open_to_all == {"caddy"}
    assert everything()["server"]["ports"][0]["host_ip"] == "127.0.0.1"


def test_the_worker_reserves_every_gpu_and_starts_a_process_for_each() -> None:
    worker = everything()["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}
    assert "command" not in worker or worker["command"] is None  # the image's: polyreel worker, a process per GPU


@pytest.mark.parametrize(("name", "may_write"), [("worker", False), ("worker-cpu", False), ("pull", True)])
def test_only_who_downloads_weights_may_write_them(name: str, may_write: bool) -> None:
    (weights,) = [volume for volume in everything()[name]["volumes"] if volume["target"] == "/weights"]
    assert weights["type"] == "volume"
    assert weights["source"] == "weights"
    assert weights.get("read_only", False) is not may_write


def test_a_stop_waits_as_long_as_a_worker_drains() -> None:
    assert load_settings().settings.drain_s == 30
    assert everything()["worker"]["stop_grace_period"] == "45s"


@pytest.mark.parametrize("name", OURS)
def test_the_server_takes_every_variable_that_compose_sets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in everything()[name]["environment"].items():
        monkeypatch.setenv(variable, str(value))
    settings = load_settings().settings  # a name that is no setting stops it, and so does a value that does not fit
    assert list(settings.models) == list(load_settings("gpu").settings.models)
    assert settings.s3.endpoint is None


def test_a_bucket_named_in_the_environment_reaches_api_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    services = compose("gpu", "s3", **_uncommented_s3())["services"]
    for name in ("server", "worker"):
        for variable, value in services[name]["environment"].items():
            monkeypatch.setenv(variable, str(value))
        settings = load_settings().settings
        assert settings.storage == "s3://polyreel"
        assert settings.s3.endpoint == "http://seaweedfs:8333"
        assert settings.s3.secret_access_key is not None
        assert settings.s3.secret_access_key.get_secret_value() == "change-me-2"
    assert services["seaweedfs"]["environment"]["S3_SECRET_ACCESS_KEY"] == "change-me-2"


def _uncommented_s3() -> dict[str, str]:
    """Return the lines of .env.example that its comment says to take for the profile `s3`."""
    text = (ROOT / ".env.example").read_text()
    block = text.partition("# s3: ")[2].partition("# AWS's own")[0]
    return dict(re.findall(r"^#([A-Z0-9_]+)=(.+)$", block, re.MULTILINE))


@pytest.mark.parametrize("page", [".env.example", "docs/deploy.md"])
def test_every_line_for_the_environment_is_one_that_compose_reads(page: str) -> None:
    text = (ROOT / page).read_text()
    offered = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", text, re.MULTILINE)) - {"COMPOSE_PROFILES"}
    read = set(re.findall(r"\$\{([A-Z0-9_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert "POLYREEL_PUBLIC_URL" in offered
    assert offered <= read


def test_one_command_puts_passwords_in_place_of_the_examples(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    (command,) = re.findall(r"^#   (sed -i .*?)  +#", (ROOT / ".env.example").read_text(), re.MULTILINE)
    run("sh", "-c", f"cd {tmp_path} && {command}")
    made = dict(re.findall(r"^#?([A-Z0-9_]+)=(.+)$", (tmp_path / ".env").read_text(), re.MULTILINE))
    assert re.fullmatch(r"[0-9a-f]{48}", made["REDIS_PASSWORD"])
    assert re.fullmatch(r"[0-9a-f]{48}", made["GRAFANA_PASSWORD"])
    assert "change-me" not in (tmp_path / ".env").read_text()
    assert "change[-]me" in (tmp_path / ".env").read_text()  # the command itself still stands there


@pytest.mark.slow
def test_dclint_has_nothing_to_say_but_of_the_ports_of_https(tmp_path: Path) -> None:
    linter = npm_folder(["dclint@3.1.0"]) / "node_modules/.bin/dclint"
    rendered = tmp_path / "docker-compose.yml"
    rendered.write_text(run(program("docker-compose"), "--env-file", ".env.example", "--profile", "*", "config"))
    done = subprocess.run(
        [linter, rendered, "--quiet", "--formatter", "json"], capture_output=True, text=True, timeout=120, check=False
    )
    (report,) = json.loads(done.stdout)
    said = [(finding["rule"], re.findall(r'"(.*?)"', finding["message"])[0]) for finding in report["messages"]]
    # Images are built here or come from a registry of one's own, under one name.
    assert {rule for rule in said if rule[0] != "no-build-and-image"} == {("no-unbound-port-interfaces", "caddy")}
    assert {name for rule, name in said if rule == "no-build-and-image"} == set(OURS)
