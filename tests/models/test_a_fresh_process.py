"""What cancelled jobs leave behind in a model is nothing: the next video is the one that a fresh process makes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models import AdapterFile, PreparedRequest, Progress
from models.tiny import build
from polyreel.errors import Cancelled
from polyreel.request import Upscale
from tests.models.conftest import Loaded, load_tiny, small_request

#: Checkpoint of each kind and threshold of its step cache (100: every step after the first takes from it) -> a LoRA
#: that fits it.
MODELS = {
    ("wan-ti2v", 0.0): "lora-wan",
    ("wan-ti2v", 100.0): "lora-wan",
    ("ltx", 0.0): "lora-ltx",
    ("ltx", 100.0): "lora-ltx",
    ("ltx2", 0.0): "lora-ltx2",
    ("animatediff", 0.0): "lora-animatediff",
}

_PROGRAM = "import sys; from tests.models.test_a_fresh_process import main; main(sys.argv[1])"


def digest(loaded: Loaded) -> str:
    """Return the sha256 of the frames of the plain request."""
    # Steps enough for the step cache to take one from another.
    return hashlib.sha256(loaded.generate(small_request(num_inference_steps=4)).tobytes()).hexdigest()


def load(root: Path, name: str, step_cache: float) -> Loaded:
    """Load a tiny checkpoint."""
    return load_tiny(name, build(name, root), step_cache=step_cache)


def main(root: str) -> None:
    """Print the digest of each model as JSON: what the fresh process does, each model's first request."""
    import torch

    torch.set_num_threads(1)  # as in the tests: sums depend on the number of threads
    sys.stdout.write(json.dumps({str(key): digest(load(Path(root), *key)) for key in MODELS}) + "\n")


@pytest.fixture(scope="module")
def fresh(tiny_root: Path) -> dict[str, str]:
    """The digest of each model in a process that has done nothing else."""
    for name, _ in MODELS:
        build(name, tiny_root)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tiny_root)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digests: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert len(set(digests.values())) == len(MODELS), "the step cache never took anything"
    return digests


@pytest.mark.parametrize("key", MODELS, ids=lambda key: f"{key[0]}-cache-{key[1]}")
def test_after_cancelled_jobs_a_video_is_the_one_of_a_fresh_process(fresh, tiny_root, key):
    loaded = load(tiny_root, *key)
    style = AdapterFile("style", build(MODELS[key], tiny_root))
    jobs = {
        "plain": PreparedRequest(small_request(num_frames=9)),
        "with a LoRA": PreparedRequest(small_request(), loras=(style,)),
        "enlarged": PreparedRequest(small_request(upscale=Upscale(96, 112, 0.5, 3.0, 4))),
    }
    moments: dict[str, Callable[[Progress], bool]] = {
        "denoising": lambda progress: progress.step == 1,
        "decoding": lambda progress: progress.stage == "decoding",
    }
    for job in jobs.values():
        for has_come in moments.values():

            def cancel(progress: Progress, has_come: Callable[[Progress], bool] = has_come) -> None:
                if has_come(progress):
                    raise Cancelled("stop")

            with pytest.raises(Cancelled):
                loaded.generate(job, cancel)

    assert digest(loaded) == fresh[str(key)]
