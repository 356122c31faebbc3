"""Runs foreign clients in interpreters of their own: they print, warn and patch, and their pins are not ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Where npm's packages are kept between runs: beside ours, and out of the repository.
_CACHE = Path(sys.prefix) / "npm"


def run_script(script: str, *arguments: str, python: Path = Path(sys.executable)) -> Any:
    """Run Python; return the JSON of its last line.

    Args:
        python: another interpreter, from `python_with`.
    """
    return _run([str(python), "-P", "-c", script, *arguments])


def python_with(requirements: Path) -> Path:
    """Return the Python of a virtual environment that holds these packages and no other.

    It is made once and kept beside ours, under the name of the file; a laptop that cannot make it (another platform, no
    index) skips the test, CI fails.

    Args:
        requirements: a file that names every package with its version.
    """
    folder = Path(sys.prefix) / f"clients-{requirements.stem}"
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = requirements.read_text()
    if done.exists() and done.read_text() == wanted:
        return python
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=250)
        subprocess.run([*install, "-r", str(requirements)], check=True, timeout=250)
    except subprocess.SubprocessError as err:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{folder} cannot be made: {err}")
    done.write_text(wanted)
    return python


def run_node(script: str, packages: list[str], *arguments: str) -> Any:
    """Run an ES module in Node; return the JSON of its last line.

    Args:
        packages: what it imports, as npm names them with their version: "novita-sdk@3.1.3".
        arguments: begin at `process.argv[2]`.
    """
    folder = npm_folder(packages)
    module = folder / f"script-{os.getpid()}.mjs"
    module.write_text(script)
    try:
        return _run(["node", str(module), *arguments])
    finally:
        module.unlink()


def php() -> list[str]:
    """Return the beginning of a command that runs a PHP file: the system's PHP, or the one that npm has for Node."""
    if shutil.which("php"):
        return ["php"]
    return [str(npm_folder(["@php-wasm/cli@3.1.56"]) / "node_modules" / ".bin" / "php-wasm-cli")]


def npm_folder(packages: list[str]) -> Path:
    """Return a folder in which Node finds the packages; a laptop without npm skips the test, CI fails."""
    if not (shutil.which("node") and shutil.which("npm")):
        if os.environ.get("CI"):
            pytest.fail("node and npm are needed for the JavaScript clients")
        pytest.skip("node and npm are not installed")
    folder = _CACHE / "+".join(packages).replace("/", "_")
    done = folder / "installed"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *packages]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=250)
        done.touch()
    return folder


def _run(command: list[str]) -> Any:
    # Offline mode, which the model tests set for this process, refuses even a loopback address.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
