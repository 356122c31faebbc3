"""`polyreel pull`, as an operator types it, against a hub on loopback; and what runs from it afterwards, offline."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.tiny import build
from tests.conftest import free_port
from tests.live.decode import decode
from tests.live.hub import Hub, Repository, running_hub

#: Each case is processes of its own.
pytestmark = pytest.mark.slow

FIRST, SECOND = "a" * 40, "b" * 40
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"

#: What lies beside a checkpoint in real repositories, and nobody needs.
CLUTTER = {
    "README.md": b"# A video model",
    ".gitattributes": b"*.safetensors filter=lfs",
    "modeling_video.py": b"raise SystemExit('code from the hub was run')",
    "video-2b-single-file.safetensors": b"the same weights again",
    "transformer/diffusion_pytorch_model.bin": b"a pickle",
    "transformer/diffusion_pytorch_model.fp16.safetensors": b"the same weights, halved",
    "vae/diffusion_pytorch_model.ckpt": b"another pickle",
    "safety_checker/config.json": b"{}",
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny LTX checkpoint by path: a real one, that runs."""
    folder = build("ltx", tmp_path_factory.mktemp("tiny"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(checkpoint: dict[str, bytes]) -> Iterator[Hub]:
    """A hub with one repository, somebody/video."""
    with running_hub() as hub:
        hub.repositories["somebody/video"] = Repository({**checkpoint, **CLUTTER})
        yield hub


@dataclass
class Machine:
    """A machine with a catalogue, an empty cache and an empty state folder."""

    hub: Hub
    folder: Path

    @property
    def snapshot(self) -> Path:
        return self.folder / "hf" / "hub" / "models--somebody--video" / "snapshots" / FIRST

    @property
    def blobs(self) -> list[Path]:
        return sorted((self.folder / "hf" / "hub").rglob("blobs/*"))

    @property
    def pins(self) -> Any:
        path = self.folder / "state" / "checkpoints" / "pins.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def serves(self, **sections: dict[str, Any]) -> None:
        """Write the profile."""
        video = {
            "family": "ltx",
            "checkpoint": "somebody/video",
            "licence": "apache-2.0",
            "names": {"huggingface": ["Somebody/Video-Public"]},
        }
        profile = {"models": {"video": video}, **sections}
        (self.folder / "profile.yaml").write_text(yaml.safe_dump(profile))

    def start(self, *words: str, **environment: str) -> dict[str, Any]:
        inherited = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
        inherited.pop("HF_TOKEN", None)
        own = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "1",  # as in the image of the worker
            "POLYREEL_STATE_DIR": str(self.folder / "state"),
            "POLYREEL_CONFIG": str(self.folder / "profile.yaml"),
            "OMP_NUM_THREADS": "1",
        }
        return {"args": [sys.executable, "-P", "-m", "polyreel", *words], "env": {**inherited, **own, **environment}}

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            **self.start(*words, **environment), capture_output=True, text=True, timeout=120, check=False
        )

    def models(self) -> dict[str, Any]:
        """Return what `polyreel models --json` says of the only model."""
        return next(row for row in json.loads(self.run("models", "--json").stdout) if row["name"] == "video")


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    machine = Machine(hub, tmp_path)
    machine.serves()
    return machine


@contextmanager
def started(machine: Machine, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command that does not end by itself; it does not outlive the block."""

    def hear_ctrl_c() -> None:  # which a shell without job control switches off for what it runs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        **machine.start(*words), stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.05)


def test_what_was_pulled_generates_a_video_without_the_network(machine: Machine, checkpoint: dict[str, bytes]) -> None:
    pulled = machine.run("pull", "video")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == f"video is ready: {machine.snapshot} at aaaaaaaaaaaa\n"
    assert "somebody/video at aaaaaaaaaaaa, licence: apache-2.0" in pulled.stderr
    assert machine.pins == {"somebody/video": FIRST}

    asked = len(machine.hub.asked)
    # fmt: off
    done = machine.run(
        "generate", "a cat", "-o", str(machine.folder / "cat.mp4"), "--num-frames", "7", "--height", "64",
        "--width", "96", "--fps", "5", "--num-inference-steps", "2", "--seed", "11",
    )
    # fmt: on
    assert done.returncode == 0, done.stderr
    assert decode((machine.folder / "cat.mp4").read_bytes()).shape == (7, 96, 64)
    assert len(machine.hub.asked) == asked, "generating asks nobody"


def test_only_the_files_of_the_pipeline_are_fetched_and_no_pickle_or_code(
    machine: Machine, checkpoint: dict[str, bytes]
) -> None:
    assert machine.run("pull", "video").returncode == 0
    here = {str(path.relative_to(machine.snapshot)) for path in machine.snapshot.rglob("*") if path.is_file()}
    assert here == set(checkpoint)
    assert {path.name for path in machine.blobs if path.suffix} == set(), "no leftovers"
    fetched = {path.rpartition("/resolve/")[2].partition("/")[2] or path for path in machine.hub.downloads()}
    assert not fetched & set(CLUTTER)


def test_a_second_pull_asks_nobody(machine: Machine) -> None:
    machine.run("pull", "video")
    asked = len(machine.hub.asked)
    again = machine.run("pull", "Somebody/Video-Public")
    assert again.returncode == 0
    assert again.stdout.startswith("video is ready: ")
    assert len(machine.hub.asked) == asked


def test_the_pinned_commit_stays_when_the_branch_moves_until_update(machine: Machine) -> None:
    machine.run("pull", "video")
    video = machine.hub.repositories["somebody/video"]
    video.commits = {"main": SECOND, "old": FIRST}
    video.changed = {
        SECOND: {"scheduler/scheduler_config.json": video.files["scheduler/scheduler_config.json"] + b"\n"}
    }

    assert "at aaaaaaaaaaaa" in machine.run("pull", "--verify", "video").stdout
    served = machine.hub.served[WEIGHTS]
    updated = machine.run("pull", "--update", "video")
    assert "at bbbbbbbbbbbb" in updated.stdout, updated.stderr
    assert machine.pins == {"somebody/video": SECOND}
    assert machine.hub.served[WEIGHTS] == served, "what did not change is not fetched again"
    assert machine.models()["revision"] == SECOND


def test_a_killed_pull_goes_on_where_it_was(machine: Machine, checkpoint: dict[str, bytes]) -> None:
    video = machine.hub.repositories["somebody/video"]
    video.held = {WEIGHTS: 200_000}
    digest = hashlib.sha256(checkpoint[WEIGHTS]).hexdigest()
    partial = machine.snapshot.parents[1] / "blobs" / f"{digest}.polyreel.incomplete"
    with started(machine, "pull", "video") as process:
        until(lambda: partial.exists() and partial.stat().st_size == 200_000)
        process.kill()
    assert machine.pins == {}
    assert machine.models()["state"] == "downloadable"

    video.held = {}
    assert machine.run("pull", "video").returncode == 0
    assert [asked.range for asked in machine.hub.asked if asked.path == WEIGHTS] == ["", "bytes=200000-"]
    assert machine.hub.served[WEIGHTS] == len(checkpoint[WEIGHTS])
    assert (machine.snapshot / WEIGHTS).read_bytes() == checkpoint[WEIGHTS]


def test_ctrl_c_ends_a_pull_at_once_and_says_how_to_go_on(machine: Machine) -> None:
    machine.hub.repositories["somebody/video"].held = {WEIGHTS: 4096}
    with started(machine, "pull", "video") as process:
        until(lambda: WEIGHTS in machine.hub.served)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "polyreel pull: stopped; run it again to go on from here."


def test_a_connection_that_breaks_is_taken_up_again(machine: Machine, checkpoint: dict[str, bytes]) -> None:
    machine.hub.repositories["somebody/video"].cut = {WEIGHTS: 100_000, "model_index.json": 3}
    pulled = machine.run("pull", "video")
    assert pulled.returncode == 0, pulled.stderr
    assert [asked.range for asked in machine.hub.asked if asked.path == WEIGHTS] == ["", "bytes=100000-"]
    assert machine.hub.served[WEIGHTS] == len(checkpoint[WEIGHTS])


def test_a_host_that_knows_no_ranges_sends_the_file_from_its_start(
    machine: Machine, checkpoint: dict[str, bytes]
) -> None:
    video = machine.hub.repositories["somebody/video"]
    video.cut, video.ignores_ranges = {WEIGHTS: 100_000}, True
    pulled = machine.run("pull", "video")
    assert pulled.returncode == 0, pulled.stderr
    assert machine.hub.served[WEIGHTS] == 100_000 + len(checkpoint[WEIGHTS])
    assert (machine.snapshot / WEIGHTS).read_bytes() == checkpoint[WEIGHTS]


@pytest.mark.parametrize("path", [WEIGHTS, "vae/config.json"])
def test_other_bytes_than_the_hub_announced_are_thrown_away(machine: Machine, path: str) -> None:
    video = machine.hub.repositories["somebody/video"]
    video.damaged = {path}
    pulled = machine.run("pull", "video")
    assert pulled.returncode == 1
    assert f"somebody/video: {path} arrived with other bytes than the hub announces" in pulled.stderr
    assert not (machine.snapshot / path).exists()
    assert (machine.pins, machine.models()["state"]) == ({}, "downloadable")

    video.damaged = set()
    assert machine.run("pull", "video").returncode == 0


def test_verify_finds_a_file_that_rotted_on_the_disk_and_mends_it(
    machine: Machine, checkpoint: dict[str, bytes]
) -> None:
    machine.run("pull", "video")
    weights = (machine.snapshot / WEIGHTS).resolve()
    weights.write_bytes(checkpoint[WEIGHTS][:-1] + b"!")
    served = machine.hub.served[WEIGHTS]
    assert machine.run("pull", "video").returncode == 0
    assert machine.hub.served[WEIGHTS] == served
    mended = machine.run("pull", "--verify", "video")
    assert mended.returncode == 0, mended.stderr
    assert machine.hub.served[WEIGHTS] == served + len(checkpoint[WEIGHTS])
    assert (machine.snapshot / WEIGHTS).read_bytes() == checkpoint[WEIGHTS]


def test_a_file_that_was_cut_short_on_the_disk_is_broken_until_the_next_pull(machine: Machine) -> None:
    machine.run("pull", "video")
    weights = (machine.snapshot / WEIGHTS).resolve()
    with weights.open("ab") as file:
        file.truncate(1000)
    row = machine.models()
    assert (row["state"], row["fix"]) == ("broken", "polyreel pull video")
    assert "is incomplete or damaged" in row["detail"]
    assert machine.run("pull", "video").returncode == 0
    assert machine.models()["state"] == "ready"


def test_gated_weights_name_the_licence_page_and_come_with_a_token_that_nobody_else_sees(machine: Machine) -> None:
    machine.hub.repositories["somebody/video"].gated = True
    refused = machine.run("pull", "video")
    assert refused.returncode == 1
    assert refused.stderr == (
        "polyreel pull: video: somebody/video is gated: accept its licence at https://huggingface.co/somebody/video, "
        "set HF_TOKEN to a token with read access (https://huggingface.co/settings/tokens), and run this again.\n"
    )
    wrong = machine.run("pull", "video", HF_TOKEN="hf_the-wrong-token")
    assert wrong.returncode == 1
    assert (
        "refuses your token for somebody/video (Invalid credentials in Authorization header); "
        "set HF_TOKEN to a token with read access" in wrong.stderr
    )
    assert "the-wrong-token" not in wrong.stdout + wrong.stderr

    pulled = machine.run("pull", "video", HF_TOKEN=machine.hub.token)
    assert pulled.returncode == 0, pulled.stderr
    assert machine.hub.token not in pulled.stdout + pulled.stderr
    assert {asked.has_token for asked in machine.hub.asked if asked.host == "storage"} == {False}


def test_the_licence_page_of_the_catalogue_is_named_before_the_repositorys(machine: Machine) -> None:
    url = "https://example.com/licence"
    machine.serves(models={"video": {"family": "ltx", "checkpoint": "somebody/video", "licence_url": url}})
    machine.hub.repositories["somebody/video"].gated = True
    assert f"accept its licence at {url}, set HF_TOKEN" in machine.run("pull", "video").stderr


@pytest.mark.parametrize(
    ("checkpoint_name", "revision", "complaint"),
    [
        ("somebody/nothing", None, "somebody/nothing does not exist on http://127.0.0.1"),
        ("somebody/private", None, "or it is private; for a private one set HF_TOKEN to a token"),
        (
            "somebody/video",
            "v9",
            "somebody/video has no revision v9; see https://huggingface.co/somebody/video/commits",
        ),
        ("somebody/video/none.safetensors", None, "somebody/video has no none.safetensors. Its safetensors files: "),
        ("somebody/video/README.md", None, "README.md is not a .safetensors file"),
        (
            "somebody/loras",
            None,
            "it has neither model_index.json nor config.json. Its safetensors files: a.safetensors",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_one_line_and_exit_code_1(
    machine: Machine, checkpoint_name: str, revision: str | None, complaint: str
) -> None:
    machine.hub.repositories["somebody/private"] = Repository({}, private=True)
    machine.hub.repositories["somebody/loras"] = Repository({"a.safetensors": b""})
    machine.serves(models={"video": {"family": "ltx", "checkpoint": checkpoint_name, "revision": revision}})
    pulled = machine.run("pull", "video")
    assert pulled.returncode == 1
    assert complaint in pulled.stderr
    assert len(pulled.stderr.splitlines()) == 1
    assert pulled.stderr.startswith("polyreel pull: video: ")


def test_a_hub_that_cannot_be_reached_is_one_line_and_exit_code_1(machine: Machine) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    down = machine.run("pull", "video", HF_ENDPOINT=closed)
    assert down.returncode == 1
    assert f"Cannot reach {closed} (" in down.stderr
    assert "check the network, HTTPS_PROXY" in down.stderr

    proxy = machine.run("pull", "video", HTTP_PROXY=closed)
    assert proxy.returncode == 1
    assert "HTTPS_PROXY" in proxy.stderr

    machine.hub.down = True
    busy = machine.run("pull", "video")
    assert busy.returncode == 1
    assert f"{machine.hub.url} answered somebody/video with HTTP 503; run this again later." in busy.stderr
    assert [len(done.stderr.splitlines()) for done in (down, proxy, busy)] == [1, 1, 1]


def test_more_than_fits_on_the_disk_is_refused_before_a_weight_is_fetched(machine: Machine) -> None:
    machine.hub.repositories["somebody/video"].announced = {WEIGHTS: 10**18}
    pulled = machine.run("pull", "video")
    assert pulled.returncode == 1
    cache = machine.folder / "hf" / "hub"
    assert re.search(
        rf"1000000000\.0 GB are needed in {cache} and [\d.]+ GB are free: make room, or set HF_HOME", pulled.stderr
    )
    assert WEIGHTS not in machine.hub.served


def test_a_cache_that_cannot_be_written_names_the_folder_and_hf_home(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    pulled = machine.run("pull", "video", HF_HOME=str(tmp_path / "file"))
    assert pulled.returncode == 1
    assert f"cannot be written to {tmp_path / 'file' / 'hub'}" in pulled.stderr
    assert "set HF_HOME to another folder" in pulled.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["vidoe"], "vidoe is not in the catalogue. Did you mean video?"),
        (["Somebody/Video-Pub"], "Did you mean Somebody/Video-Public?"),
        ([], "name what to pull, or give --all"),
    ],
)
def test_wrong_names_are_exit_code_2(machine: Machine, words: list[str], complaint: str) -> None:
    pulled = machine.run("pull", *words)
    assert pulled.returncode == 2
    assert complaint in pulled.stderr
    assert machine.hub.asked == []


@pytest.mark.parametrize("word", ["Somebody/Video-Public", "somebody/video"])
def test_an_entry_is_meant_by_any_of_its_names(machine: Machine, word: str) -> None:
    assert machine.run("pull", word).stdout.startswith("video is ready: ")


def test_tiny_and_local_checkpoints_need_no_download(machine: Machine, tmp_path: Path) -> None:
    machine.serves(models={"tiny": {"family": "ltx", "checkpoint": "tiny:ltx"}})
    pulled = machine.run("pull", "tiny")
    assert (pulled.returncode, machine.hub.asked) == (0, [])
    assert pulled.stdout.startswith("tiny is ready, nothing to download (tiny:ltx)")

    machine.serves(models={"local": {"family": "ltx", "checkpoint": str(tmp_path / "nowhere")}})
    missing = machine.run("pull", "local")
    assert missing.returncode == 1
    assert f"local is missing: checkpoint: There is no folder or file {tmp_path / 'nowhere'}" in missing.stderr


def test_a_failing_entry_does_not_keep_the_others_from_being_pulled(machine: Machine) -> None:
    machine.serves(
        models={
            "lost": {"family": "ltx", "checkpoint": "somebody/nothing"},
            "video": {"family": "ltx", "checkpoint": "somebody/video"},
        }
    )
    pulled = machine.run("pull", "--all")
    assert pulled.returncode == 1
    assert pulled.stdout.startswith("video is ready: ")
    assert "lost: somebody/nothing does not exist" in pulled.stderr


def test_loras_embeddings_and_parts_come_as_the_one_file_that_is_named(machine: Machine) -> None:
    lora = (build("lora-ltx", machine.folder / "made")).read_bytes()
    machine.hub.repositories["somebody/adapters"] = Repository(
        {
            "rain.safetensors": lora,
            "low/noise.safetensors": lora,
            "snow.safetensors": lora + b"",
            "rain.bin": b"pickle",
        },
        commits={"main": FIRST, "v2": SECOND},
    )
    rain = {
        "checkpoint": "somebody/adapters/rain.safetensors",
        "second": "somebody/adapters/low/noise.safetensors",
        "revision": "v2",
        "models": ["video"],
    }
    word = {"checkpoint": "somebody/adapters/snow.safetensors", "token": "<snow>", "models": ["video"]}
    video = {
        "family": "ltx",
        "checkpoint": "somebody/video",
        "parts": {"extra": {"checkpoint": "somebody/adapters", "file": "rain.safetensors"}},
    }
    machine.serves(models={"video": video}, loras={"rain": rain}, embeddings={"snow": word})
    pulled = machine.run("pull", "rain", "snow")
    assert pulled.returncode == 0, pulled.stderr
    snapshots = machine.folder / "hf" / "hub" / "models--somebody--adapters" / "snapshots"
    assert pulled.stdout.splitlines() == [
        f"rain is ready: {snapshots / SECOND / 'rain.safetensors'} at bbbbbbbbbbbb",
        f"snow is ready: {snapshots / FIRST / 'snow.safetensors'} at aaaaaaaaaaaa",
    ]
    assert {str(path.relative_to(snapshots / SECOND)) for path in (snapshots / SECOND).rglob("*.*")} == {
        "rain.safetensors",
        "low/noise.safetensors",
    }
    assert machine.pins == {"somebody/adapters": FIRST, "somebody/adapters@v2": SECOND}
    assert machine.models()["state"] == "downloadable"
    assert machine.run("pull", "video").returncode == 0
    assert machine.models()["parts"] == {"extra": str(snapshots / FIRST / "rain.safetensors")}

    (snapshots / FIRST / "rain.safetensors").unlink()
    row = machine.models()
    assert (row["state"], row["fix"]) == ("missing", "polyreel pull video")
    assert row["detail"].startswith("extra: somebody/adapters/rain.safetensors is not on this machine")


def test_files_that_another_tool_put_into_the_cache_are_verified_and_not_fetched_again(
    machine: Machine, checkpoint: dict[str, bytes]
) -> None:
    machine.run("pull", "video")
    pins = machine.folder / "state" / "checkpoints" / "pins.json"
    pins.unlink()
    (machine.snapshot / "vae" / "diffusion_pytorch_model.safetensors").resolve().write_bytes(
        checkpoint["vae/diffusion_pytorch_model.safetensors"][:-1] + b"!"
    )
    before = dict(machine.hub.served)
    assert machine.run("pull", "video").returncode == 0
    fetched = {path for path in machine.hub.served if machine.hub.served[path] != before[path]}
    assert fetched == {"vae/diffusion_pytorch_model.safetensors"}


def test_progress_is_plain_lines_in_a_pipe_and_a_bar_on_a_terminal(machine: Machine) -> None:
    piped = machine.run("pull", "video").stderr
    assert "video: 100 %\n" in piped
    assert "\x1b" not in piped
    assert piped.count("%") <= 10

    ours, theirs = pty.openpty()
    done = subprocess.run(
        **machine.start("pull", "video", HF_HOME=str(machine.folder / "other"), TERM="xterm", COLUMNS="150"),
        stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=False,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "━" in shown
    assert "MB/s" in shown
