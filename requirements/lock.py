"""`make lock`: writes the locks beside this file, every version pinned and every file's hash named.

    server.txt   what the API and the courier import, with the extra `tracing`
    worker.txt   that and what a model process imports, but torch
    torch.txt    torch and the CUDA libraries that it brings, as PyPI has them
    dev.txt      all of it but torch, and the tools of the extra `dev`
    build.txt    what makes our own wheel

torch stands apart because it is what differs between machines: the CUDA build of PyPI, one for the CPU, one for another
CUDA. Everything else is the same file everywhere. See docs/decisions/0009-running-it.md.

Versions that are locked stay; `make lock ARGS=--upgrade` takes the newest that pyproject.toml allows.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
PYPROJECT = FOLDER.parent / "pyproject.toml"

#: The version that the tests run with. The Makefile installs the same one.
TORCH = "torch==2.13.0"

#: What comes with torch's build. Not nvidia-ml-py, which reads a driver's figures and is the same for all.
_OF_TORCH = re.compile(r"torch|triton|cuda-[a-z-]+|nvidia-(?!ml-py$)[a-z0-9-]+")

_HEADER = "# Written by `make lock`.\n"


def compile_lock(sources: list[str], known: str, constraints: list[Path], arguments: list[str]) -> str:
    """Return the lock of some requirements.

    Args:
        sources: of uv: files, and flags that say which part of them.
        known: a lock whose versions are kept where they still fit.
        constraints: locks whose versions hold.
        arguments: of uv, such as `--upgrade`.
    """
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "lock.txt"
        lock.write_text(known)
        flags = [f"--constraint={path}" for path in constraints]
        # Universal, from 3.11 on: the images have 3.12, Debian 12 has 3.11, and both take the same file.
        subprocess.run(
            [
                *(str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--universal"),
                *("--python-version=3.11", "--generate-hashes", "--no-header", "--no-annotate"),
                *(f"--output-file={lock}", *flags, *arguments, *sources),
            ],
            check=True,
        )
        return lock.read_text()


def split(lock: str) -> tuple[str, str]:
    """Return a lock without what is torch's, and what is torch's."""
    blocks = re.split(r"\n(?=[a-z])", lock.strip())
    its = [block for block in blocks if _OF_TORCH.fullmatch(block.partition("==")[0])]
    return "\n".join(block for block in blocks if block not in its) + "\n", "\n".join(its) + "\n"


def read(name: str) -> str:
    """Return the lock of that name as it is, empty where there is none yet."""
    path = FOLDER / f"{name}.txt"
    return path.read_text() if path.exists() else ""


def write(name: str, lock: str) -> Path:
    """Write a lock and return its path."""
    path = FOLDER / f"{name}.txt"
    path.write_text(_HEADER + lock.removeprefix(_HEADER))
    return path


def main(arguments: list[str]) -> None:
    """Write all locks; the worker's is the largest that runs, so the others follow its versions."""
    with tempfile.TemporaryDirectory() as folder:
        torch_pin = Path(folder) / "torch.in"
        torch_pin.write_text(TORCH)
        project = str(PYPROJECT)
        everything = compile_lock(
            [project, "--extra=worker", "--extra=tracing"], read("worker") + read("torch"), [torch_pin], arguments
        )
        rest, torch = split(everything)
        worker = write("worker", rest)
        write("torch", torch)
        write("server", compile_lock([project, "--extra=tracing"], read("server"), [worker], arguments))
        dev = compile_lock([project, "--extra=worker", "--extra=dev"], read("dev"), [worker, torch_pin], arguments)
        write("dev", split(dev)[0])
        builder = Path(folder) / "build.in"
        builder.write_text("setuptools>=80\n")  # as [build-system] says
        write("build", compile_lock([str(builder)], read("build"), [worker], arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
