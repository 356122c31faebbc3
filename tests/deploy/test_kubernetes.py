"""deploy/k8s: what each overlay renders to is valid, restricted, and drains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from polyreel import __version__
from polyreel.profiles import load_settings
from tests.deploy.tools import kustomize

OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/keda", "overlays/s3")
FOLDERS = (*OVERLAYS, "pull")


def pods(folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the pod's specification of all that runs. Any: they are read from YAML."""
    for each in kustomize(folder):
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def one(folder: str, kind: str, name: str) -> dict[str, Any]:
    """Return an object. Any: it is read from YAML."""
    (found,) = [each for each in kustomize(folder) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def settings_of(folder: str) -> dict[str, str]:
    """Return the data of the map of settings, which has a hash in its name."""
    (found,) = [
        each["data"]
        for each in kustomize(folder)
        if each["kind"] == "ConfigMap" and each["metadata"]["name"].startswith("polyreel-")
    ]
    return dict(found)


@pytest.mark.slow
def test_kubernetes_takes_every_object() -> None:
    import kubernetes_validate

    distinct = {json.dumps(each, sort_keys=True): each for folder in FOLDERS for each in kustomize(folder)}
    ours = [each for each in distinct.values() if not each["apiVersion"].startswith("keda.sh/")]
    assert len(ours) > 16
    for each in ours:
        kubernetes_validate.validate(each, "1.37", strict=True)  # raises where it is not valid


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_is_as_restricted_as_its_namespace_demands(folder: str) -> None:
    seen = dict(pods(folder))
    assert seen
    for spec in seen.values():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_namespace_demands_it() -> None:
    labels = one("overlays/gpu", "Namespace", "polyreel")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("folder", OVERLAYS)
def test_no_password_stands_in_a_manifest(folder: str) -> None:
    assert not [each for each in kustomize(folder) if each["kind"] == "Secret"]
    for name, spec in pods(folder):
        (container,) = spec["containers"]
        password = [entry for entry in container["env"] if entry["name"] == "REDIS_PASSWORD"]
        assert password == [
            {"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "polyreel", "key": "redis-password"}}}
        ], name


@pytest.mark.parametrize("folder", OVERLAYS)
def test_a_pod_that_goes_has_the_time_to_drain(folder: str) -> None:
    spec = dict(pods(folder))["worker"]
    assert spec["terminationGracePeriodSeconds"] >= float(settings_of(folder)["POLYREEL_DRAIN_S"]) + 15


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_server_takes_every_setting_of_the_map(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings_of(folder).items():
        monkeypatch.setenv(name, value)
    settings = load_settings().settings
    assert settings.drain_s == (30 if folder == "overlays/cpu" else 300)
    assert settings.storage == ("s3://polyreel" if folder == "overlays/s3" else "file:///results")


def test_a_gpu_worker_gets_one_gpu_and_a_cpu_worker_none() -> None:
    limits = {folder: dict(pods(folder))["worker"]["containers"][0]["resources"]["limits"] for folder in OVERLAYS}
    assert {folder: limit.get("nvidia.com/gpu") for folder, limit in limits.items()} == {
        "overlays/cpu": None,
        "overlays/gpu": 1,
        "overlays/keda": 1,
        "overlays/s3": 1,
    }


def test_a_bucket_takes_the_place_of_the_shared_volume() -> None:
    claims = {each["metadata"]["name"] for each in kustomize("overlays/s3") if each["kind"] == "PersistentVolumeClaim"}
    assert claims == {"weights"}
    for name in ("server", "courier", "worker"):
        (container,) = dict(pods("overlays/s3"))[name]["containers"]
        assert "results" not in {volume["name"] for volume in dict(pods("overlays/s3"))[name]["volumes"]}
        assert "/results" not in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "POLYREEL_S3__SECRET_ACCESS_KEY" in {entry["name"] for entry in container["env"]}


def test_workers_are_scaled_by_the_unfinished_jobs() -> None:
    from polyreel.records import OPEN

    scaled = one("overlays/keda", "ScaledObject", "worker")["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "redis"
    assert trigger["metadata"]["listName"] == "polyreel:open" == OPEN
    assert trigger["metadata"]["address"] == "redis.polyreel.svc:6379"
    assert scaled["scaleTargetRef"] == {"name": "worker"}
    assert "replicas" not in one("overlays/keda", "Deployment", "worker")["spec"]  # else each apply would undo it
    assert scaled["cooldownPeriod"] == 300


def test_api_pods_stay_in_service_while_no_worker_lives() -> None:
    (container,) = dict(pods("overlays/gpu"))["server"]["containers"]
    probes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/health"}


def test_redis_lets_in_who_speaks_to_it_and_nobody_else() -> None:
    policy = one("overlays/gpu", "NetworkPolicy", "redis")["spec"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["from"][0] == {"podSelector": {"matchLabels": {"queue": "client"}}}
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"].get("queue")
        for each in kustomize("overlays/gpu")
        if each["kind"] == "Deployment"
    }
    assert labels == {"server": "client", "courier": "client", "worker": "client"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_images_are_of_this_version(folder: str) -> None:
    ours = {c["image"] for _, spec in pods(folder) for c in spec["containers"] if c["image"].startswith("polyreel-")}
    assert ours <= {f"polyreel-server:{__version__}", f"polyreel-worker:{__version__}"}
    assert f"polyreel-worker:{__version__}" in ours
