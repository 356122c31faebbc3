"""The command `polyreel`, as an operator types it."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import av
import pytest
from PIL import Image

import workers.generate
import workers.residency
from polyreel import cli as polyreel_cli
from polyreel.keys import KEY_PATTERN
from tests.conftest import KEY, LiveServer, free_port
from tests.live.decode import decode
from tests.workers.test_prepare import png_header


def polyreel(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "polyreel", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


@pytest.fixture
def checkpoints(tmp_path: Path, live: LiveServer) -> Path:
    """A fresh state folder that has the tiny checkpoints already."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "checkpoints").symlink_to(live.state_dir / "checkpoints")
    return tmp_path / "state"


def test_generate_writes_exactly_the_video_that_was_asked_for(checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "cat.mp4"
    # fmt: off
    done = polyreel(
        "generate", "a cat", "-o", str(out), "--model", "Lightricks/LTX-Video", "--num-frames", "7", "--height", "64",
        "--width", "96", "--fps", "5", "--num-inference-steps", "3", "--seed", "11", "--state-dir", str(checkpoints),
    )
    # fmt: on
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "3/3 steps" in done.stderr
    assert "[info" not in done.stderr
    assert '"level"' not in done.stderr
    assert "7 frames of 96x64 at 5 fps, seed 11" in done.stderr.replace("\n", " ")
    clip = decode(out.read_bytes())
    assert (clip.shape, clip.fps) == ((7, 96, 64), 5.0)


def test_generate_takes_pictures_loras_embeddings_loops_and_a_larger_size(checkpoints: Path, tmp_path: Path) -> None:
    picture = tmp_path / "first.png"
    Image.new("RGB", (80, 60), (200, 40, 20)).save(picture)
    out = tmp_path / "cat.webm"
    # fmt: off
    done = polyreel(
        "generate", "a cat, badhandv4", "a dog", "-o", str(out), "--model", "animatediff", "--num-frames", "17",
        "--height", "64", "--width", "64", "--num-inference-steps", "2", "--seed", "11", "--image", str(picture),
        "--lora", "GoodHands-beta2_39807=0.5", "--embedding", "badhandv4-tiny", "--clip-skip", "2", "--closed-loop",
        "--upscale", "80x96", "--state-dir", str(checkpoints),
    )
    # fmt: on
    assert done.returncode == 0, done.stderr
    assert "17 frames of 80x96 at 8 fps, seed 11" in done.stderr.replace("\n", " ")
    assert decode(out.read_bytes()).shape == (17, 80, 96)
    with av.open(str(out)) as container:
        facts = json.loads({name.lower(): text for name, text in container.metadata.items()}["comment"])
    assert (facts["seed"], facts["checkpoint"], facts["clip_skip"]) == (11, "tiny:animatediff", 2)
    assert facts["prompts"] == [{"prompt": "a cat, badhandv4", "num_frames": 9}, {"prompt": "a dog", "num_frames": 8}]
    [lora] = facts["loras"]
    assert (lora["name"], lora["strength"], len(lora["sha256"])) == ("style-tiny", 0.5, 16)
    assert facts["upscale"]["width"] == 80


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["-o", "cat.mp4", "--image", "nope.png"], "--image: nope.png cannot be read: No such file or directory"),
        (["-o", "cat.mp4", "--keyframe", "nope.png"], "--keyframe must be N=FILE, such as 8=cat.png, got nope.png"),
        (["-o", "cat.mp4", "--keyframe", "17=nope.png"], "--keyframe must be between 0 and 16, got 17"),
        (["-o", "cat.mp4", "--lora", "style-tin"], "--lora style-tin is not served. Did you mean style-tiny?"),
        (
            ["-o", "cat.mp4", "--lora", "style-tiny=a lot"],
            "--lora must be NAME or NAME=STRENGTH, such as ink=0.8",
        ),
        (
            ["-o", "cat.mp4", "--lora", "style-tiny=3"],
            "--lora must be between 0 and 2, got 3.0",
        ),
        (["-o", "cat.mp4", "--upscale", "big"], "--upscale must be WIDTHxHEIGHT, such as 1024x1024, got big"),
        (["-o", "cat.mp4", "--upscale", "63x64"], "--upscale must be between 64 and 4096, got 63"),
        (
            ["-o", "cat.mp4", "--closed-loop"],
            "closed_loop: atelier cannot do this (closed_loop). Models that can: animatediff-tiny.",
        ),
        (["-o", "cat.mp4", "--clip-skip", "-3"], "--clip-skip must be between 0 and 12, got -3"),
        (["-o", "cat.mp4", "--clip-skip", "13"], "--clip-skip must be between 0 and 12, got 13"),
        (
            ["-o", "cat.mp4", "--image", "text.png"],
            "--image: text.png is not a picture (PNG, JPEG, WEBP, GIF, BMP)\n",
        ),
        (["-o", "cat.mp4", "--last-image", "half.png"], "--last-image: half.png is a damaged picture\n"),
        (
            ["-o", "cat.mp4", "--keyframe", "8=huge.png"],
            "--keyframe: huge.png has 10000 x 5001 = 50010000 pixels, and at most 50000000 are read\n",
        ),
        (
            ["-o", "cat.mp4", "--lora", "GoodHands-beta2_39807=0.5"],
            "--lora GoodHands-beta2_39807 was made for animatediff-tiny, not for atelier; see --model.\n",
        ),
        (
            ["-o", "cat.mp4", "--model", "ltx", "--embedding", "badhandv4-tiny"],
            "--embedding badhandv4-tiny was made for animatediff-tiny, not for ltx-tiny; see --model.\n",
        ),
        (["-o", "cat.avi"], "--output must end in one of .gif, .mp4, .webm, .zip, got cat.avi"),
        (["-o", "/nope/x.mp4"], "--output: there is no folder /nope"),
        (["-o", "folder.mp4"], "--output: folder.mp4 cannot be written"),
        (
            ["-o", "cat.mp4", "--seed", "99999999999999999999"],
            "--seed must be between 0 and 9223372036854775807, got 99999999999999999999",
        ),
        (["-o", "cat.mp4", "--seed", "-5"], "--seed must be between 0 and 9223372036854775807, got -5"),
        (["-o", "cat.mp4", "--guidance-scale", "nan"], "--guidance-scale must be between 0 and 100, got nan"),
        (["-o", "cat.mp4", "--guidance-scale", "-inf"], "--guidance-scale must be between 0 and 100, got -inf"),
        (["-o", "cat.mp4", "--fps", "nan"], "--fps must be between 1 and 120, got nan"),
        (["-o", "cat.mp4", "--fps", "0"], "--fps must be between 1 and 120, got 0.0"),
        (["-o", "cat.mp4", "--num-frames", "130"], "--num-frames must be between 1 and 129, got 130"),
        (["-o", "cat.mp4", "--num-frames", "0"], "--num-frames must be between 1 and 129, got 0"),
        (["-o", "cat.mp4", "--config", "gpu", "--height", "1281"], "--height must be between 64 and 1280, got 1281"),
        (["-o", "cat.mp4", "--config", "gpu", "--width", "63"], "--width must be between 64 and 1280, got 63"),
        (
            ["-o", "cat.mp4", "--num-inference-steps", "101"],
            "--num-inference-steps must be between 1 and 100, got 101",
        ),
        (
            ["-o", "cat.mp4", "--config", "gpu", "--num-frames", "250", "--height", "1280"],
            "frames x width x height must be at most 100000000 pixels in all, got 250 x 832 x 1280 = 266240000",
        ),
        (["-o", "cat.mp4", "--model", "Lightricks/LTX-Vido"], "Did you mean Lightricks/LTX-Video?"),
    ],
)
def test_generate_refuses_at_once_what_it_cannot_make_and_says_what_it_can(
    flags: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def become(process: str, arguments: list[str]) -> NoReturn:
        assert process == "generate"
        sys.exit(workers.generate.main(arguments))

    (tmp_path / "folder.mp4").mkdir()
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(picture, "PNG")
    (tmp_path / "half.png").write_bytes(picture.getvalue()[:-500])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "huge.png").write_bytes(png_header(10_000, 5_001))
    monkeypatch.chdir(tmp_path)
    # In this process, as the command starts two, and every row would cost a second or more.
    monkeypatch.setattr(polyreel_cli, "_become", become)
    monkeypatch.setattr(workers.generate, "start_as", lambda *_arguments: None)
    monkeypatch.setattr(workers.residency.Residency, "get", lambda *_arguments: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as end:
        polyreel_cli.app(["generate", "a cat", "--state-dir", str(tmp_path / "state"), *flags])
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (2, "")
    assert said.err.startswith("polyreel generate: ")
    assert complaint in said.err
    assert len(said.err.splitlines()) == 1


def test_a_refusal_of_the_command_is_a_line_and_exit_code_2() -> None:
    done = polyreel("generate", "a cat", "-o", "cat.mp4", "--guidance-scale", "-inf")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "polyreel generate: --guidance-scale must be between 0 and 100, got -inf\n"


def test_models_lists_what_is_served_under_which_names() -> None:
    done = polyreel("models")
    assert done.returncode == 0
    assert "Wan-AI/Wan2.1-T2V-1.3B" in done.stdout
    assert "darkSushiMixMix_225D_64380.safetensors" in done.stdout


def test_config_show_says_where_each_value_comes_from_and_hides_the_keys(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: tiny\nport: 9000\n")
    done = polyreel(
        "config", "show", "--config", str(profile), "--origin",
        POLYREEL_API_KEYS=f"team:{KEY}", POLYREEL_MAX_QUEUED="7",
    )  # fmt: skip
    assert done.returncode == 0
    assert re.search(r"port\s+9000\s+profile .*mine.yaml", done.stdout)
    assert re.search(r"max_queued\s+7\s+environment", done.stdout)
    assert re.search(r"host\s+127.0.0.1\s+default", done.stdout)
    assert re.search(r"api_keys\s+team:\*\*\*", done.stdout)
    assert KEY not in done.stdout


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        (
            {"POLYREEL_MAX_QUEUD": "7"},
            "POLYREEL_MAX_QUEUD: there is no such setting. Did you mean POLYREEL_MAX_QUEUED?",
        ),
        ({"POLYREEL_API_KEYS": "team:short"}, "api_keys: the key of 'team' must be 16 or more printable characters"),
        ({"POLYREEL_PORT": "eighty"}, "port: write a whole number, got 'eighty' (from environment)"),
        ({"REDIS_URL": "http://x"}, "redis_url: must start with redis://, rediss:// or unix://"),
        ({"POLYREEL_DEVICE": "gpu"}, "device: use auto, cpu, mps, cuda or cuda:N"),
        ({"POLYREEL_STATE_DIR": "/proc/nowhere"}, "state_dir: cannot write to /proc/nowhere"),
        ({"POLYREEL_HOST": "0.0.0.0"}, "api_keys: there is no API key, and host 0.0.0.0 can be reached"),
        ({"POLYREEL_STORAGE": "fil:///tmp/x"}, "Did you mean file?"),
        ({"POLYREEL_DIALECTS__MODELSLAB__HOLD": "3"}, "dialects.modelslab.hold: there is no such setting"),
        (
            {"POLYREEL_DIALECTS__MODELSLAB__DEFAULT_MODEL": "wan2"},
            "default_model: 'wan2' is not served. Did you mean wan",
        ),
        (
            {"POLYREEL_DIALECTS__UNIVERSAL__ENDPOINT_MODEL": "flux"},
            "dialects.universal.endpoint_model: 'flux' is not a model",
        ),
        ({"POLYREEL_DIALECTS__MODELSLB__HOLD_S": "3"}, "dialects.modelslb: no such dialect. Did you mean modelslab?"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_its_name_and_the_cure(
    tmp_path: Path, environment: dict[str, str], complaint: str
) -> None:
    where = {"POLYREEL_STATE_DIR": str(tmp_path / "state"), "POLYREEL_PORT": str(free_port())}
    done = polyreel("up", **{**where, **environment})
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert "short" not in done.stderr.replace("shorter", "").replace("shortened", "")


def test_a_taken_port_is_a_message_and_not_a_crash_loop(tmp_path: Path, live: LiveServer) -> None:
    port = live.base_url.rpartition(":")[2]
    done = polyreel("up", "--state-dir", str(tmp_path / "state"), "--port", port, POLYREEL_API_KEYS=f"team:{KEY}")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_a_key_that_could_not_be_shown_is_not_made(tmp_path: Path, live: LiveServer) -> None:
    port = live.base_url.rpartition(":")[2]
    assert polyreel("up", "--state-dir", str(tmp_path / "state"), "--port", port).returncode == 2
    assert not (tmp_path / "state" / "local-key.json").exists()


def test_two_servers_cannot_share_a_state_folder(live: LiveServer) -> None:
    done = polyreel("up", "--state-dir", str(live.state_dir), "--port", str(free_port()))
    assert done.returncode == 2
    assert "another polyreel up is using" in done.stderr


def test_the_first_start_leaves_a_key_in_a_file_and_shows_a_curl_line_per_dialect(tmp_path: Path) -> None:
    state = tmp_path / "state"

    def greeting() -> str:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "polyreel", "up", "--state-dir", str(state), "--port", str(free_port())],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "curl" in line and len([one for one in lines if one.startswith("curl")]) == 6:
                break
        process.terminate()
        process.stdout.close()
        assert process.wait(60) == 0
        return "".join(lines)

    first, second = greeting(), greeting()
    file = state / "local-key.txt"
    key = file.read_text().strip()
    assert re.fullmatch(KEY_PATTERN, key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"API key: in the file {file}, which only this user can read" in first
    assert f'export KEY="$(cat {file})"' in second
    assert key not in first + second, "what is not a terminal is kept by others"
    holding = [path for path in state.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert holding == [file]


def test_a_worker_an_api_and_a_courier_alone_say_that_they_need_redis() -> None:
    for process in ("worker", "serve", "courier"):
        done = polyreel(process)
        assert done.returncode == 2
        assert "REDIS_URL" in done.stderr


@pytest.mark.slow
def test_the_installed_wheel_serves_outside_the_checkout(tmp_path: Path) -> None:
    wheels, site, elsewhere = tmp_path / "wheels", tmp_path / "site", tmp_path / "elsewhere"
    (elsewhere / "models").mkdir(parents=True)  # a folder called like one of our packages must not hide it
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(root)], check=True, timeout=120
    )
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(site), *map(str, wheels.glob("*.whl"))], check=True, timeout=120
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "POLYREEL_API_KEYS": f"team:{KEY}"}
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import polyreel, server, models, workers, configs\n"
         "print(*(m.__file__ for m in (polyreel, server, models, workers, configs)))"],
        cwd=elsewhere, env=environment, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert all(path.startswith(str(site)) for path in where), where
    up = subprocess.Popen(
        [sys.executable, "-P", "-m", "polyreel", "up", "--state-dir", str(tmp_path / "s"), "--port", str(free_port())],
        cwd=elsewhere, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert up.stdout is not None
    lines = []
    for line in up.stdout:
        lines.append(line)
        if "worker ready" in line:
            break
    up.terminate()
    up.stdout.close()
    assert up.wait(60) == 0
    assert any("worker ready" in line for line in lines), "".join(lines)
