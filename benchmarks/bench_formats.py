"""Time and quality of the output formats: 25 frames of 512x512, one row per format and quality.

What it isolates: `Format.encode` alone, frames in memory, file on disk. Controls, interleaved with the formats in
every round: the same frames piped into ffmpeg that throws them away (the cost of the pipe and of starting a
process), ffmpeg's palettegen and paletteuse, and Pillow's own GIF writer. "ratio" is against the format's control.
PSNR is against the frames that went in; "blurred" compares means of 4x4 pixels, which is nearer to what an eye sees
of a dithered picture: dither costs PSNR and buys smooth gradients.

Run: python benchmarks/bench_formats.py [rounds]
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import av
import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from polyreel.formats import Format, formats
from polyreel.request import OutputSpec

FPS = 24
ROW = "{:26} {:>9} {:>7} {:>20} {:>7} {:>7} {:>8}"


def scene(num_frames: int = 25, size: int = 512, grain: float = 4) -> np.ndarray:
    """Return moving colour waves, a disc and light grain, uint8 (num_frames, size, size, 3)."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for number in range(num_frames):
        t = number / 25
        red = 127 + 110 * np.sin(x / 97 + 3 * t)
        green = 127 + 100 * np.sin(y / 83 - 2 * t + x / 300)
        blue = 120 + 100 * np.cos((x + y) / 131 + t)
        frame = np.stack([red, green, blue], -1)
        is_disc = np.hypot(x - size * (0.5 + 0.3 * np.sin(4 * t)), y - size * (0.5 + 0.3 * np.cos(4 * t))) < size / 8
        frame[is_disc] = frame[is_disc] * 0.4 + np.array([150, 40, 20])
        frames[number] = (frame + random.normal(0, grain, frame.shape)).clip(0, 255).round()
    return frames


def ffmpeg(frames: np.ndarray, path: Path, *options: str) -> None:
    """Pipe the frames into a plain ffmpeg: the control of everything that is not an encoder."""
    _, height, width, _ = frames.shape
    source = ("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(FPS))
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-y", *source, "-i", "pipe:0", *options, str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)


def pillow_gif(frames: np.ndarray, path: Path) -> None:
    """Write the GIF as diffusers' export_to_gif does: a median-cut palette for each frame, no dither."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=1000 // FPS, loop=0)


def encode(form: Format, quality: str, frames: np.ndarray, path: Path) -> None:
    form.encode(frames, OutputSpec(form.name, FPS, quality), path)


def decode(path: Path) -> np.ndarray:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return np.stack([np.array(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()])
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr(ours: np.ndarray, theirs: np.ndarray) -> str:
    error = np.mean((ours.astype(np.float32) - theirs) ** 2)
    return f"{10 * np.log10(255**2 / error):.1f}" if error else "exact"


def blurred(frames: np.ndarray) -> np.ndarray:
    """Return means of 4x4 pixels, float32."""
    num_frames, height, width, _ = frames.shape
    blocks = frames.reshape(num_frames, height // 4, 4, width // 4, 4, 3)
    return blocks.mean((2, 4), dtype=np.float32)


def cases() -> dict[str, tuple[Callable[[np.ndarray, Path], None], str, str]]:
    """Return name -> (encoder, extension, name of its control)."""
    palette = ("-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse", "-f", "gif")
    rows: dict[str, tuple[Callable[[np.ndarray, Path], None], str, str]] = {
        "control: pipe to null": (lambda frames, path: ffmpeg(frames, path, "-f", "null"), "null", ""),
        "control: ffmpeg palette": (lambda frames, path: ffmpeg(frames, path, *palette), "gif", ""),
        "control: Pillow GIF": (pillow_gif, "gif", ""),
    }
    for form in formats().values():
        if form.kind == "picture":  # shows a few frames; there is nothing to compare
            continue
        is_gif = form.name == "gif"
        for quality in ("fast", "good", "best") if form.name in ("mp4", "webm") else ("good",):
            control = "control: ffmpeg palette" if is_gif else "control: pipe to null"
            rows[f"{form.name} {quality}"] = (partial(encode, form, quality), form.extension, control)
    return rows


def main(rounds: int = 3) -> None:
    frames = scene()
    times: dict[str, list[float]] = {name: [] for name in cases()}
    files: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for number, (name, (write, extension, _)) in enumerate(cases().items()):
                files[name] = Path(folder) / f"{number}.{extension}"
                start = time.perf_counter()
                write(frames, files[name])
                times[name].append((time.perf_counter() - start) * 1000 / len(frames))
        print(ROW.format("25 x 512x512", "ms/frame", "ratio", "rounds", "kB", "PSNR", "blurred"))
        for name, (_, extension, control) in cases().items():
            report(name, times, files[name] if extension != "null" else None, control, frames)


def report(name: str, times: dict[str, list[float]], file: Path | None, control: str, frames: np.ndarray) -> None:
    middle = median(times[name])
    ratio = f"{middle / median(times[control]):.2f}" if control else "-"
    rounds = " ".join(f"{value:.1f}" for value in times[name])
    looks = ["-", "-", "-"]
    if file:
        decoded = decode(file)
        looks = [str(file.stat().st_size // 1024), psnr(frames, decoded), psnr(blurred(frames), blurred(decoded))]
    print(ROW.format(name, f"{middle:.1f}", ratio, rounds, *looks))


if __name__ == "__main__":
    main(*[int(word) for word in sys.argv[1:]])
