"""The Dockerfile and the locks that it installs. `make image-check` builds it and runs what it makes."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest

from tests.deploy.tools import ROOT, program, run

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCKS = ("server", "worker", "torch", "dev", "build")


def locked(name: str) -> dict[str, str]:
    """Return the versions of a lock by package; of two for different Pythons, the one for a Python before 3.12."""
    text = (ROOT / f"requirements/{name}.txt").read_text()
    found = re.findall(r"^([a-z0-9._-]+)==(\S+)(?: ; (.*?))? \\$", text, re.MULTILINE)
    return {package: version for package, version, marker in reversed(found)}


def wanted(*extras: str) -> dict[str, str]:
    """Return pyproject's exact pins by package, as the index spells it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^ ;]+)(?: *;.*)?", line) for line in lines]
    return {re.sub(r"[-_.]+", "-", pin[1]).lower(): pin[2] for pin in pins if pin}


@pytest.mark.parametrize(
    ("lock", "extras"), [("server", ("tracing",)), ("worker", ("worker", "tracing")), ("dev", ("worker", "dev"))]
)
def test_a_lock_holds_every_pin_of_the_project(lock: str, extras: tuple[str, ...]) -> None:
    pins = wanted(*extras)
    assert pins["fastapi"] == "0.165.0"
    assert {package: locked(lock).get(package) for package in pins} == pins, "make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_a_hash_for_every_package_and_no_address(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    packages = [block for block in re.split(r"\n(?=[a-z])", text) if "==" in block]
    assert packages
    assert all("--hash=sha256:" in block for block in packages)
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)  # nor an option such as an index


def test_the_locks_agree_about_each_version() -> None:
    for larger in ("worker", "dev"):
        theirs = locked(larger)
        assert {name: theirs.get(name) for name in locked("server")} == locked("server")


def test_torch_is_locked_apart_and_is_the_one_that_is_tested() -> None:
    (tested,) = re.findall(r"^TORCH \?= torch==(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert locked("torch")["torch"] == tested
    assert "nvidia-cudnn-cu13" in locked("torch")
    for name in ("server", "worker", "dev"):
        assert not [package for package in locked(name) if package in ("torch", "triton")]
        assert {package for package in locked(name) if package.startswith(("nvidia-", "cuda-"))} <= {"nvidia-ml-py"}


def test_the_server_installs_no_model_library() -> None:
    assert not set(locked("server")) & {"torch", "diffusers", "transformers", "numpy", "imageio-ffmpeg", "safetensors"}


def test_the_packages_of_the_server_take_less_than_200_mb() -> None:
    size = 0
    for name in locked("server"):
        try:
            files = distribution(name).files or ()
        except PackageNotFoundError:  # for other platforms or Pythons, as its marker says
            continue
        size += sum(file.size or 0 for file in files)
    assert 30e6 < size < 200e6


def test_the_dockerfile_is_well_written() -> None:
    run(program("hadolint"), "Dockerfile")


def test_every_stage_starts_from_an_argument_or_another_stage() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(stages) == len(re.findall(r"^FROM ", DOCKERFILE, re.MULTILINE))
    known = {"${BASE}"} | {name for _, name in stages}
    assert {start for start, _ in stages} <= known
    assert {"server", "worker"} <= known


def test_packages_are_installed_by_hash_and_none_that_the_lock_does_not_name() -> None:
    installs = [
        line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if "pip install" in line or " install " in line
    ]
    pip = [part for line in installs for part in re.split(r"&&|RUN", line) if "/opt/build/bin/pip" in part]
    assert len(pip) == 7
    assert all("--no-deps" in part for part in pip)
    assert all("--require-hashes" in part or "--no-index" in part for part in pip)


@pytest.mark.parametrize(("target", "process"), [("server", "serve"), ("worker", "worker")])
def test_an_image_asks_for_its_process_in_python(target: str, process: str) -> None:
    stage = DOCKERFILE.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]
    assert f'CMD ["python3", "-m", "polyreel.health_check", "{process}"]' in stage
    assert f'\nCMD ["{process}"]' in stage


def test_images_run_as_a_user_by_number() -> None:
    runtime = DOCKERFILE.partition(" AS runtime\n")[2].partition("\nFROM ")[0]
    assert "\nUSER 10001:10001\n" in runtime
    assert "USER" not in DOCKERFILE.partition(" AS server\n")[2]


@pytest.mark.parametrize(
    "script",
    [
        "deploy/redis/start.sh",
        "deploy/seaweedfs/start.sh",
        "deploy/seaweedfs/make-bucket.sh",
        "deploy/image-check.sh",
        ".ci/run",
    ],
)
def test_a_shell_script_is_well_written(script: str) -> None:
    run(program("shellcheck"), script)


def test_every_module_and_every_file_that_one_reads_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = listed["package-data"]
    left_out = []
    roots = {package.partition(".")[0] for package in listed["packages"]}
    for file in (
        path.relative_to(ROOT) for root in sorted(roots) for path in (ROOT / root).rglob("*") if path.is_file()
    ):
        if "__pycache__" in file.parts:
            continue
        package = next(
            name for name in (".".join(folder.parts) for folder in file.parents) if name in listed["packages"]
        )
        inside = file.relative_to(package.replace(".", "/"))
        is_module = inside.suffix == ".py" and len(inside.parts) == 1
        if not (is_module or any(inside.match(pattern) for pattern in data.get(package, ()))):
            left_out.append(str(file))
    assert left_out == []
