"""From an empty virtual environment to the first videos, and to lines that can be pasted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyreel.profiles import load_settings
from server.greeting import greeting
from tests.conftest import LiveServer
from tests.live.decode import decode, decode_zip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]

#: What `make demo` saves: frames, width, height.
DEMO = {
    "huggingface.mp4": (17, 256, 256),
    "universal.gif": (17, 512, 512),
    "universal.webm": (17, 512, 512),
    "modelslab.mp4": (17, 512, 512),
    "novita.mp4": (17, 256, 256),
    "openai.mp4": (16, 256, 256),
    "native.webm": (17, 384, 256),
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which the wheel was installed with all that it needs itself.

    The extra `worker` (torch, diffusers, …: two gigabytes and minutes) is lent from this environment, behind what was
    installed; `make install` and CI install it whole.
    """
    folder = tmp_path_factory.mktemp("nothing")
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)],
        check=True, timeout=200,
    )  # fmt: skip
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=200)
    python = folder / "venv" / "bin" / "python"
    try:
        subprocess.run([python, *pip, "install", *folder.glob("*.whl")], check=True, timeout=500)
    except subprocess.SubprocessError as err:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the wheel cannot be installed: {err}")
    [site] = (folder / "venv" / "lib").glob("*/site-packages")
    (site / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


@pytest.fixture
def demo(empty: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The demo of a copied `examples/`, far from the checkout: its process, and all that it printed until it waits."""
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "demo.py", tmp_path / "examples")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}

    def hear_ctrl_c() -> None:  # which a shell without job control switches off for what it runs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [empty, "-P", "examples/demo.py", "--stay"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if "until Ctrl-C" in line:
            break
    yield process, "".join(printed)
    process.terminate()
    process.wait(150)
    process.stdout.close()


def test_an_empty_environment_makes_a_clip_of_each_dialect_and_prints_lines_that_can_be_pasted(
    empty: Path, demo: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, printed = demo
    where = subprocess.run(
        [empty, "-P", "-c", "import polyreel, server, workers; print(polyreel.__file__, server.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(ROOT) not in where

    made = {name: decode((tmp_path / "demo" / name).read_bytes()).shape for name in DEMO}
    assert made == DEMO, printed
    assert len(decode_zip((tmp_path / "demo" / "universal.zip").read_bytes())) == 17

    [export] = re.findall(r"^export BASE=http://127\.0\.0\.1:\d+ KEY=\S{16,}$", printed, re.MULTILINE)
    lines = re.findall(r"^curl .*$", printed, re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        pasted = f"{export}\n{line.replace('curl -sS', 'curl -sS --fail-with-body', 1)}"
        done = subprocess.run(["bash", "-c", pasted], cwd=tmp_path, capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout!r}\n{done.stderr!r}"
    assert decode((tmp_path / "circle.mp4").read_bytes()).shape == (17, 256, 256)

    process.send_signal(signal.SIGINT)
    assert process.wait(150) == 0


def test_every_line_that_a_server_prints_at_its_start_works_as_it_stands(live: LiveServer, tmp_path: Path) -> None:
    """The first lines of `polyreel up` with a new key, made as it makes them; the key is the live server's."""
    settings = load_settings(public_url=live.base_url).settings
    lines = [line for line in greeting(settings, 8000, live.key).splitlines() if line.startswith("curl ")]
    assert len(lines) == 6
    for line in lines:
        pasted = line.replace("curl -sS", "curl -sS --fail-with-body", 1)
        done = subprocess.run(["bash", "-c", pasted], cwd=tmp_path, capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout!r}\n{done.stderr!r}"
    [saved] = tmp_path.glob("*.mp4")
    assert len(decode(saved.read_bytes()).frames) > 1
