"""What every output format promises, over all that `formats()` finds: a new one is tested without being named."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import av
import numpy as np
import pytest
from PIL import Image
from scenes import decode, duration_s, frame_times, moving_gradient, psnr, still

from polyreel.errors import EncodingFailed
from polyreel.formats import Audio, Format, _ffmpeg, formats
from polyreel.request import OutputSpec

ALL = list(formats().values())
VIDEOS = [form for form in ALL if form.kind == "video"]
WHOLE = [form for form in ALL if form.kind != "picture"]  # those from which every frame comes back

# dB on `moving_gradient`, a little below what each format reaches; a new format is held to 30.
FAITHFUL = {"mp4": 33.0, "webm": 31.5, "gif": 33.0, "zip": float("inf")}


def each(of: list[Format]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("form", of, ids=lambda form: form.name)


def encode(form: Format, frames: np.ndarray, path: Path, fps: float = 8, quality: str = "good") -> Path:
    file = path / f"video.{form.extension}"
    form.encode(frames, OutputSpec(form.name, fps, quality), file)
    return file


def use_encoder(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put a shell script in ffmpeg's place."""
    program = folder / "encoder"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


def test_the_documented_formats_are_found():
    known = {name: (form.media_type, form.extension, form.kind) for name, form in formats().items()}

    assert known == {
        "mp4": ("video/mp4", "mp4", "video"),
        "webm": ("video/webm", "webm", "video"),
        "gif": ("image/gif", "gif", "video"),
        "zip": ("application/zip", "zip", "frames"),
        "thumbnail": ("image/webp", "webp", "picture"),
        "spritesheet": ("image/jpeg", "jpg", "picture"),
    }


def test_no_two_formats_share_the_ending_of_their_files():
    endings = [form.extension for form in ALL]

    assert len(set(endings)) == len(endings)


def test_listing_formats_loads_no_array_or_picture_library():
    program = (
        "import sys; from polyreel.formats import formats; formats();"
        "print(sorted({'numpy', 'PIL', 'imageio_ffmpeg'} & set(sys.modules)))"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"


@each(WHOLE)
def test_frames_come_back_in_number_size_and_look(form, tmp_path):
    frames = moving_gradient(num_frames=9, height=48, width=64)

    decoded = decode(encode(form, frames, tmp_path))

    assert decoded.shape == (9, 48, 64, 3)
    assert psnr(frames, decoded) >= FAITHFUL.get(form.name, 30.0)


@each(WHOLE)
def test_frames_keep_their_order(form, tmp_path):
    levels = np.arange(20, 220, 20, dtype=np.uint8)  # ten frames, each lighter than the one before
    frames = np.ones((10, 32, 32, 3), np.uint8) * levels[:, None, None, None]

    decoded = decode(encode(form, frames, tmp_path))

    assert decoded.mean((1, 2, 3)) == pytest.approx([20, 40, 60, 80, 100, 120, 140, 160, 180, 200], abs=3)


@each(WHOLE)
@pytest.mark.parametrize("quality", ["fast", "good", "best"])
def test_every_quality_gives_every_frame(form, quality, tmp_path):
    assert decode(encode(form, moving_gradient(5), tmp_path, quality=quality)).shape == (5, 64, 64, 3)


@each(WHOLE)
def test_odd_sizes_are_delivered_exactly(form, tmp_path):
    frames = moving_gradient(num_frames=5, height=63, width=65)

    decoded = decode(encode(form, frames, tmp_path))

    assert decoded.shape == (5, 63, 65, 3)
    assert psnr(frames, decoded) >= 30.0


@each(WHOLE)
def test_a_single_frame_is_a_video(form, tmp_path):
    assert decode(encode(form, moving_gradient(1), tmp_path)).shape == (1, 64, 64, 3)


@each(WHOLE)
def test_identical_neighbours_stay_separate_frames(form, tmp_path):
    frames = np.concatenate([still(6), moving_gradient(3), still(6)])

    assert decode(encode(form, frames, tmp_path)).shape == (15, 64, 64, 3)


@each(WHOLE)
def test_a_still_video_keeps_every_frame(form, tmp_path):
    assert decode(encode(form, still(12), tmp_path)).shape == (12, 64, 64, 3)


@each(ALL)
def test_the_same_frames_give_the_same_bytes(form, tmp_path):
    digests = set()
    for folder in ("first", "second", "third"):
        (tmp_path / folder).mkdir()
        file = encode(form, moving_gradient(), tmp_path / folder)
        digests.add(hashlib.sha256(file.read_bytes()).hexdigest())
        time.sleep(1.1 if folder == "first" else 0)  # a date in the file would differ

    assert len(digests) == 1


@each(WHOLE)
def test_frames_need_not_be_contiguous_in_memory(form, tmp_path):
    wide = moving_gradient(num_frames=5, width=128)

    decoded = decode(encode(form, wide[:, :, ::2], tmp_path))

    assert psnr(wide[:, :, ::2], decoded) >= 30.0


@each(VIDEOS)
def test_eight_frames_at_eight_fps_last_a_second(form, tmp_path):
    file = encode(form, moving_gradient(8), tmp_path, fps=8)

    assert duration_s(file) == 1.0
    assert frame_times(file) == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875], abs=0.0051)


@each(VIDEOS)
@pytest.mark.parametrize(
    ("fps", "last_start_s"), [(7.0, 1.143), (23.976, 0.334), (0.5, 16.0), (24000 / 1001, 0.334), (16.0, 0.5)]
)
def test_any_rate_is_kept(form, fps, last_start_s, tmp_path):
    file = encode(form, moving_gradient(9), tmp_path, fps=fps)

    assert frame_times(file)[8] == pytest.approx(last_start_s, abs=0.0051)  # GIF counts centiseconds


@each(ALL)
@pytest.mark.parametrize(
    ("frames", "got"),
    [
        (np.zeros((3, 64, 64, 3), np.float32), "float32 of shape (3, 64, 64, 3)"),
        (np.zeros((3, 64, 64, 4), np.uint8), "uint8 of shape (3, 64, 64, 4)"),
        (np.zeros((64, 64, 3), np.uint8), "uint8 of shape (64, 64, 3)"),
        (np.zeros((0, 64, 64, 3), np.uint8), "uint8 of shape (0, 64, 64, 3)"),
    ],
    ids=["floats", "alpha", "one picture", "no frame"],
)
def test_anything_but_rgb_frames_is_refused(form, frames, got, tmp_path):
    with pytest.raises(EncodingFailed) as refusal:
        encode(form, frames, tmp_path)

    assert refusal.value.message == (
        f"Frames must be a uint8 array of shape (num_frames, height, width, 3) with at least one frame, got {got}."
    )
    assert list(tmp_path.iterdir()) == []


@each(VIDEOS)
@pytest.mark.parametrize("fps", [0.0, -8.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(form, fps, tmp_path):
    with pytest.raises(EncodingFailed, match=r"fps must be a finite number above 0, got "):
        encode(form, moving_gradient(2), tmp_path, fps=fps)


@pytest.mark.parametrize("name", ["mp4", "webm"])
def test_an_unknown_quality_is_refused_with_the_known_ones(name, tmp_path):
    with pytest.raises(EncodingFailed, match=f"quality of {name} must be one of fast, good, best, got superb"):
        encode(formats()[name], moving_gradient(2), tmp_path, quality="superb")


@each(ALL)
def test_a_folder_that_is_not_there_fails_with_a_reason(form, tmp_path):
    with pytest.raises(EncodingFailed, match="No such file or directory"):
        encode(form, moving_gradient(2), tmp_path / "absent")


@each(VIDEOS)
def test_a_failing_encoder_names_the_reason_and_leaves_no_file(form, monkeypatch, tmp_path):
    use_encoder(
        monkeypatch,
        tmp_path,
        'for out; do :; done; echo half > "${out#file:}"; echo first >&2; echo "disk is full" >&2; exit 3',
    )
    (tmp_path / "out").mkdir()

    with pytest.raises(EncodingFailed) as failure:
        encode(form, moving_gradient(), tmp_path / "out")

    assert failure.value.message == "ffmpeg ended with code 3. first | disk is full"
    assert list((tmp_path / "out").iterdir()) == []


@each(VIDEOS)
def test_a_full_stderr_does_not_block_the_encoder(form, monkeypatch, tmp_path):
    use_encoder(monkeypatch, tmp_path, "yes complaint | head -c 1000000 >&2; cat > /dev/null; echo last >&2; exit 1")

    with pytest.raises(EncodingFailed, match=r"complaint \| complaint \| complaint \| complaint \| last$"):
        encode(form, moving_gradient(), tmp_path)


@each(VIDEOS)
def test_a_missing_encoder_is_named(form, monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")

    with pytest.raises(EncodingFailed, match=r"ffmpeg could not be started: .*'/nowhere/ffmpeg'"):
        encode(form, moving_gradient(2), tmp_path)


@each(VIDEOS)
def test_an_encoder_that_writes_nothing_did_not_succeed(form, monkeypatch, tmp_path):
    use_encoder(monkeypatch, tmp_path, "cat > /dev/null")

    with pytest.raises(EncodingFailed, match=r"ffmpeg wrote no video\.\w+, although it reported no error"):
        encode(form, moving_gradient(2), tmp_path)


@each(VIDEOS)
def test_an_encoder_that_stops_reading_did_not_succeed(form, monkeypatch, tmp_path):
    use_encoder(monkeypatch, tmp_path, 'for out; do :; done; echo short > "${out#file:}"')

    with pytest.raises(EncodingFailed, match="ffmpeg ended with code 0 before the last frame"):
        encode(form, moving_gradient(40), tmp_path)  # more than a pipe holds

    assert not list(tmp_path.glob("video.*"))


@pytest.mark.parametrize("reads", [True, False], ids=["after the last frame", "before the first"])
def test_an_encoder_that_hangs_is_killed_in_time(reads, monkeypatch, tmp_path):
    pid = tmp_path / "pid"
    use_encoder(monkeypatch, tmp_path, f"echo $$ > {pid}; {'cat > /dev/null;' if reads else ''} exec sleep 600")

    with pytest.raises(EncodingFailed, match=r"ffmpeg was stopped after 0\.5 s"):
        _encode_raw(moving_gradient(40), tmp_path / "video.mp4", timeout_s=0.5)

    assert not is_running(int(pid.read_text()))
    assert not (tmp_path / "video.mp4").exists()


def test_a_hanging_encoder_has_a_minute_and_six_seconds_for_every_million_pixels():
    assert _ffmpeg.time_limit_s(np.zeros((1, 10, 10, 3), np.uint8)) == pytest.approx(60, abs=0.01)
    assert _ffmpeg.time_limit_s(np.broadcast_to(np.uint8(0), (81, 480, 832, 3))) == pytest.approx(254.1, abs=0.1)


@pytest.mark.parametrize("name", ["mp4", "webm", "gif"])
def test_every_format_kills_an_encoder_that_hangs(name, monkeypatch, tmp_path):
    use_encoder(monkeypatch, tmp_path, "exec sleep 600")
    monkeypatch.setattr(_ffmpeg, "TIMEOUT_S", 0.3)

    with pytest.raises(EncodingFailed, match="ffmpeg was stopped after"):
        encode(formats()[name], still(2), tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "the end of a service"])
def test_an_encoder_does_not_hear_what_stops_its_worker(tmp_path, signum):
    program = """if True:
        import signal, sys, time
        from fractions import Fraction
        from pathlib import Path
        from polyreel.formats import _ffmpeg

        signal.signal(int(sys.argv[2]), lambda *_: print("heard", flush=True))

        def frames():
            yield bytes(64 * 64 * 3)
            print("began", flush=True)
            sys.stdin.readline()
            yield bytes(64 * 64 * 3)

        options = ("-f", "mp4")
        _ffmpeg.encode_raw(frames(), options, Path(sys.argv[1]), pix_fmt="rgb24", size=(64, 64), rate=Fraction(8))
    """
    video = tmp_path / "video.mp4"
    worker = subprocess.Popen(
        [sys.executable, "-c", program, str(video), str(int(signum))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert worker.stdout.readline() == "began\n"
    os.killpg(worker.pid, signum)
    assert worker.stdout.readline() == "heard\n"
    worker.communicate("go on\n", timeout=60)

    assert worker.returncode == 0
    assert video.stat().st_size > 0


def test_an_encoder_ends_when_the_frames_fail(monkeypatch, tmp_path):
    pid = tmp_path / "pid"
    use_encoder(monkeypatch, tmp_path, f"echo $$ > {pid}; exec sleep 600")

    def frames():
        yield b"one"
        wait_until(lambda: pid.exists() and pid.read_text())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _ffmpeg.encode_raw(frames(), (), tmp_path / "video.mp4", pix_fmt="rgb24", size=(64, 64), rate=8)

    assert not is_running(int(pid.read_text()))
    assert not (tmp_path / "video.mp4").exists()


def test_an_encoder_ends_when_its_parent_is_killed(tmp_path):
    program = """if True:
        import sys, time
        from fractions import Fraction
        from pathlib import Path
        from polyreel.formats import _ffmpeg

        def frames():
            yield bytes(64 * 64 * 3)
            time.sleep(600)

        options = ("-f", "mp4")
        _ffmpeg.encode_raw(frames(), options, Path(sys.argv[1]), pix_fmt="rgb24", size=(64, 64), rate=Fraction(8))
    """
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "video.mp4")])
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    wait_until(lambda: children.read_text())
    child = int(children.read_text().split()[0])

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    wait_until(lambda: not is_running(child))


def test_a_colon_in_the_file_name_is_no_protocol(tmp_path):
    formats()["mp4"].encode(still(2), OutputSpec("mp4", 8), tmp_path / "concat:job:1.mp4")

    assert [file.name for file in tmp_path.iterdir()] == ["concat:job:1.mp4"]


def test_the_file_name_does_not_decide_the_format(tmp_path):
    formats()["mp4"].encode(still(2), OutputSpec("mp4", 8), tmp_path / "video.part")

    assert (tmp_path / "video.part").read_bytes()[4:8] == b"ftyp"


def _encode_raw(frames: np.ndarray, path: Path, timeout_s: float) -> None:
    pictures = [frame.tobytes() for frame in frames]
    _ffmpeg.encode_raw(pictures, (), path, pix_fmt="rgb24", size=(64, 64), rate=8, timeout_s=timeout_s)


def is_running(pid: int) -> bool:
    """Tell whether a process exists; one that has ended and waits for its parent does not count."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_until(is_so) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "did not happen within 20 s"
        time.sleep(0.02)


#: What a hostile prompt may look like inside metadata, and a receipt as it really is.
ABOUT = {
    "title": 'a "cat"; in=rain #1 \\ 雨\n[second line] 🦊',
    "comment": json.dumps({"seed": 2**63 - 1, "prompts": [{"prompt": "雨; #=\\ \n🦊", "num_frames": 9}]}),
}


def comment_of(file: Path) -> str:
    """Read the comment back with a reader that did not write it."""
    if file.suffix == ".gif":
        with Image.open(file) as picture:
            return picture.info["comment"].decode()
    if file.suffix == ".zip":
        return ZipFile(file).comment.decode()
    with av.open(str(file)) as container:
        found = {name.lower(): text for name, text in container.metadata.items()}
    assert found["title"] == ABOUT["title"]
    return found["comment"]


@each(WHOLE)
def test_metadata_comes_back_as_it_was_written(form, tmp_path):
    file = tmp_path / f"video.{form.extension}"
    form.encode(moving_gradient(5), OutputSpec(form.name, 8), file, metadata=ABOUT)

    assert comment_of(file) == ABOUT["comment"]
    assert decode(file).shape == (5, 64, 64, 3)


@each(WHOLE)
def test_metadata_of_many_kilobytes_comes_back(form, tmp_path):
    about = {**ABOUT, "comment": "0123456789" * 3000}
    file = tmp_path / f"video.{form.extension}"
    form.encode(moving_gradient(5), OutputSpec(form.name, 8), file, metadata=about)

    assert comment_of(file) == about["comment"]


@each(ALL)
def test_the_same_frames_and_metadata_give_the_same_bytes(form, tmp_path):
    digests = set()
    for run in ("one", "two"):
        file = tmp_path / f"{run}.{form.extension}"
        form.encode(moving_gradient(5), OutputSpec(form.name, 8), file, metadata=ABOUT, audio=tone())
        digests.add(hashlib.sha256(file.read_bytes()).hexdigest())

    assert len(digests) == 1


@each(ALL)
def test_metadata_never_appears_on_a_command_line(form, tmp_path, monkeypatch):
    commands = []
    started = subprocess.Popen

    def spy(command, **options):
        commands.append(command)
        return started(command, **options)

    monkeypatch.setattr(_ffmpeg.subprocess, "Popen", spy)
    form.encode(
        moving_gradient(5), OutputSpec(form.name, 8), tmp_path / f"v.{form.extension}", metadata={"title": "secret"}
    )

    assert not any("secret" in word for command in commands for word in command)


def tone(seconds: float = 0.625, channels: int = 2, sample_rate: int = 24000) -> Audio:
    """A sine of 440 Hz, at half volume."""
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    wave = 0.5 * np.sin(2 * np.pi * 440 * times)
    return Audio(np.repeat(wave[:, None], channels, axis=1).astype(np.float32), sample_rate)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["mp4", "webm"])
def test_sound_is_as_long_as_the_picture_and_sounds_like_it(name, channels, tmp_path):
    file = tmp_path / f"video.{name}"
    formats()[name].encode(moving_gradient(5), OutputSpec(name, 8), file, audio=tone(channels=channels))

    with av.open(str(file)) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray().mean(0) for frame in container.decode(stream)])
        rate = stream.rate
    assert decode(file).shape == (5, 64, 64, 3)
    assert duration_s(file) == pytest.approx(0.625, abs=0.05)
    assert len(samples) / rate == pytest.approx(0.625, abs=0.06)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.fft.rfftfreq(len(samples), 1 / rate)[spectrum.argmax()] == pytest.approx(440, abs=10)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("name", ["gif", "zip"])
def test_a_silent_format_leaves_sound_out(name, tmp_path):
    with_sound, without = tmp_path / f"a.{name}", tmp_path / f"b.{name}"
    formats()[name].encode(moving_gradient(5), OutputSpec(name, 8), with_sound, audio=tone())
    formats()[name].encode(moving_gradient(5), OutputSpec(name, 8), without)

    assert with_sound.read_bytes() == without.read_bytes()


@pytest.mark.parametrize("name", ["mp4", "webm"])
def test_sound_of_the_wrong_shape_is_refused(name, tmp_path):
    wrong = Audio(np.zeros(100, np.float32), 24000)

    with pytest.raises(EncodingFailed, match=r"Audio must be a float32 array .* got float32 of shape \(100,\)"):
        formats()[name].encode(moving_gradient(5), OutputSpec(name, 8), tmp_path / f"v.{name}", audio=wrong)
    assert list(tmp_path.iterdir()) == []
