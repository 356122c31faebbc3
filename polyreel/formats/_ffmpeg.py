"""What the formats share: frames that are checked, files that are whole or absent, and ffmpeg as a child process.

ffmpeg is the binary of imageio-ffmpeg, or the one that its variable IMAGEIO_FFMPEG_EXE names. Frames go to its
stdin one by one, its errors go to an unnamed temporary file: a pipe would have to be read while frames are written,
or both sides wait for each other. Should this process be killed, ffmpeg sees the end of its stdin and ends; one that
hangs is killed with the worker's process group.

This module does not know codecs: each format brings its own options. numpy and imageio-ffmpeg are imported where
they are needed, because the API process lists the formats and has neither.
"""

from __future__ import annotations

import atexit
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import IO, TYPE_CHECKING

from polyreel.errors import EncodingFailed
from polyreel.formats import Audio
from polyreel.request import OutputSpec

if TYPE_CHECKING:
    import numpy as np

#: Seconds that one file may take beside what its length needs.
TIMEOUT_S = 60.0

#: Seconds that a million pixels may take, over ten times what the slowest needs: "best" WebM, 0.57 s on two cores.
_TIMEOUT_S_PER_MEGAPIXEL = 6.0

#: Encoder threads are part of the options, because H.264 bytes depend on their number. Four: on two cores as fast
#: as two (11.6 and 13.0 ms a frame), and larger machines gain.
THREADS = 4

#: Encoder names vary with the build; the same frames are to give the same bytes.
REPRODUCIBLE = ("-flags:v", "+bitexact", "-flags:a", "+bitexact", "-fflags", "+bitexact")

#: RGB becomes BT.709 with limited range, and the file says so: swscale's own choice for untagged RGB is BT.601,
#: which players of HD material show with a green cast. ITU-R BT.709-6, section 3.
BT709 = (
    "-vf",
    "scale=out_color_matrix=bt709:out_range=limited:flags=bicubic+accurate_rnd+full_chroma_int,"
    # On the frames, because ffmpeg 9 lets their tags win over the options -color_primaries and -color_trc.
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=limited",
)

#: Those that run.
_children: set[subprocess.Popen[bytes]] = set()

_STDERR_LINES = 5
_STDERR_BYTES = 4096


def check_frames(frames: np.ndarray) -> None:
    """Refuse anything but uint8 frames of shape (num_frames, height, width, 3), at least one, none empty.

    Raises:
        EncodingFailed: names the dtype and shape that came.
    """
    is_rgb = frames.ndim == 4 and frames.shape[-1] == 3 and frames.size > 0
    if not is_rgb or frames.dtype != "uint8":
        raise EncodingFailed(
            "Frames must be a uint8 array of shape (num_frames, height, width, 3) with at least one frame, "
            f"got {frames.dtype} of shape {frames.shape}."
        )


def time_limit_s(frames: np.ndarray) -> float:
    """Return how long a file of `frames` may be in the making before its encoder is taken to hang."""
    num_frames, height, width, _ = frames.shape
    return TIMEOUT_S + _TIMEOUT_S_PER_MEGAPIXEL * float(num_frames * height * width) / 1e6


def frame_rate(fps: float) -> Fraction:
    """Return `fps` as the fraction that goes into a file: 23.976 is 2997/125, 24000 / 1001 is 24000/1001.

    Below one frame per second the duration of a frame is rounded instead, so that a slow rate never becomes 0.

    Raises:
        EncodingFailed: `fps` is not a finite number above 0.
    """
    if not (isfinite(fps) and fps > 0):
        raise EncodingFailed(f"fps must be a finite number above 0, got {fps}.")
    if fps < 1:
        return 1 / (1 / Fraction(fps)).limit_denominator(1001)
    return Fraction(fps).limit_denominator(1001)


def quality_options(table: Mapping[str, tuple[str, ...]], spec: OutputSpec) -> tuple[str, ...]:
    """Return the row of `table` for `spec.quality`.

    Raises:
        EncodingFailed: the table has no such quality; names those that it has.
    """
    if spec.quality not in table:
        raise EncodingFailed(f"quality of {spec.format} must be one of {', '.join(table)}, got {spec.quality[:50]}.")
    return table[spec.quality]


@contextmanager
def whole_file(path: Path) -> Iterator[None]:
    """Remove `path` when the block raises, so that a truncated file never looks finished.

    Raises:
        EncodingFailed: in place of an OSError (a full disk, a folder that is not there), which is chained.
    """
    try:
        yield
    except OSError as err:
        _remove(path)
        raise EncodingFailed(f"{path.name} could not be written: {err}") from err
    except BaseException:
        _remove(path)
        raise


def encode_raw(
    frames: Iterable[bytes | memoryview],
    options: Sequence[str],
    path: Path,
    *,
    pix_fmt: str,
    size: tuple[int, int],
    rate: Fraction,
    audio: Audio | None = None,
    metadata: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Pipe raw frames through ffmpeg into `path`.

    Args:
        frames: the bytes of each frame, as rawvideo of `pix_fmt`; drawn one by one.
        options: of the output, with `-f`, since the name of `path` says nothing.
        path: written directly; removed when anything fails.
        pix_fmt: ffmpeg's name of the layout of `frames`, e.g. "rgb24".
        size: (width, height) in pixels.
        rate: frames per second.
        audio: sound, for formats whose options name an audio codec.
        metadata: text by name, into the container; nothing else goes there.
        timeout_s: the child is killed after this many seconds.

    Raises:
        EncodingFailed: ffmpeg is missing, took too long, or ended with an error: its last lines are the message.
    """
    width, height = size
    raw = ("-f", "rawvideo", "-pixel_format", pix_fmt, "-video_size", f"{width}x{height}", "-framerate", str(rate))
    with whole_file(path), tempfile.TemporaryFile() as stderr, ExitStack() as files:
        command = [*(_executable(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y"), *raw, "-i", "pipe:0"]
        maps = ["-map", "0:v"]
        inputs = 1
        if audio is not None:
            command += [*_audio_input(audio), "-i", files.enter_context(_aside(_interleaved(audio), path.parent))]
            maps += ["-map", f"{inputs}:a"]
            inputs += 1
        maps += ["-map_chapters", "-1", "-map_metadata", str(inputs) if metadata else "-1"]
        if metadata:
            command += ["-f", "ffmetadata", "-i", files.enter_context(_aside(_ffmetadata(metadata), path.parent))]
        command += [
            *maps,
            *("-fps_mode", "passthrough"),  # never duplicates or drops a frame
            *options,
            f"file:{path}",  # with the protocol, or a colon in the name would be taken for one
        ]
        _run(command, frames, stderr, timeout_s)
        if not path.is_file() or path.stat().st_size == 0:
            raise EncodingFailed(f"ffmpeg wrote no {path.name}, although it reported no error.")


def _audio_input(audio: Audio) -> tuple[str, ...]:
    """Return how ffmpeg is to read `audio`.

    Raises:
        EncodingFailed: not float32 samples of one or two channels.
    """
    samples = audio.samples
    if samples.ndim != 2 or samples.shape[1] not in (1, 2) or samples.dtype != "float32" or not samples.size:
        raise EncodingFailed(
            "Audio must be a float32 array of shape (samples, 1 or 2 channels) with at least one sample, "
            f"got {samples.dtype} of shape {samples.shape}."
        )
    return ("-f", "f32le", "-ar", str(audio.sample_rate), "-ac", str(samples.shape[1]))


def _interleaved(audio: Audio) -> bytes:
    return audio.samples.clip(-1, 1).astype("<f4").tobytes()


def _ffmetadata(metadata: Mapping[str, str]) -> bytes:
    """Return ffmpeg's metadata text; a file, because a command line has a longest length and everybody can read it.

    Source: https://ffmpeg.org/ffmpeg-formats.html#Metadata-2
    """
    lines = [";FFMETADATA1"]
    for name, text in metadata.items():
        escaped = re.sub(r"([=;#\\\n])", r"\\\1", text.replace("\0", "").replace("\r", ""))
        lines.append(f"{name}={escaped}")
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


@contextmanager
def _aside(content: bytes, folder: Path) -> Iterator[str]:
    """Give ffmpeg a second input, in the folder of the file in the making: what a killed process leaves is swept."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(content)
        file.flush()
        yield f"file:{file.name}"


def _run(command: list[str], frames: Iterable[bytes | memoryview], stderr: IO[bytes], timeout_s: float) -> None:
    is_late = threading.Event()

    def kill_late_child() -> None:
        is_late.set()
        child.kill()

    with _start(command, stderr) as child:
        timer = threading.Timer(timeout_s, kill_late_child)
        timer.start()
        try:
            is_fed = _feed(child, frames)
            child.wait()
        finally:
            timer.cancel()
            child.kill()  # does nothing to a child that has ended
            _children.discard(child)
            _close_stdin(child)
    if is_late.is_set() and child.returncode != 0:
        raise EncodingFailed(f"ffmpeg was stopped after {timeout_s:g} s.{_last_lines(stderr)}")
    if child.returncode != 0:
        raise EncodingFailed(f"ffmpeg ended with code {child.returncode}.{_last_lines(stderr)}")
    if not is_fed:
        raise EncodingFailed(f"ffmpeg ended with code 0 before the last frame.{_last_lines(stderr)}")


def _start(command: list[str], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    # Ctrl-C, and a SIGTERM to all of a service, are for the worker, which finishes its files first. A child inherits
    # what its thread blocks; in a group of its own it would not hear them either, but outlive who kills the worker's.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr)
    except OSError as err:
        raise EncodingFailed(f"ffmpeg could not be started: {err}") from err
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _children.add(child)
    return child


@atexit.register
def _kill_children() -> None:
    """Let none stay that hangs when this process ends while a thread waits for it."""
    for child in list(_children):
        child.kill()


def _feed(child: subprocess.Popen[bytes], frames: Iterable[bytes | memoryview]) -> bool:
    """Write every frame; False when the child stopped reading before the last."""
    assert child.stdin is not None  # noqa: S101 – a pipe was asked for; this tells mypy
    try:
        for frame in frames:
            child.stdin.write(frame)
        child.stdin.close()
    except BrokenPipeError:
        return False
    return True


def _close_stdin(child: subprocess.Popen[bytes]) -> None:
    """Close what may hold a part of a frame for a child that is gone; `Popen.__exit__` would raise on it."""
    with suppress(BrokenPipeError):
        if child.stdin is not None:
            child.stdin.close()


def _last_lines(stderr: IO[bytes]) -> str:
    end = stderr.seek(0, 2)
    stderr.seek(max(0, end - _STDERR_BYTES))
    lines = stderr.read().decode("utf-8", "replace").strip().splitlines()
    return " " + " | ".join(lines[-_STDERR_LINES:]) if lines else " It said nothing."


def _executable() -> str:
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        executable: str = get_ffmpeg_exe()
    except RuntimeError as err:
        raise EncodingFailed(f"No ffmpeg: {err}") from err
    return executable


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder may be the very thing that fails
        path.unlink()
