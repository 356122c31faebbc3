"""GIF: 256 colours, for places that take nothing else.

One palette serves the whole clip, and dither is ordered: a pixel that does not change keeps its colour, so pictures
do not shimmer and the encoder can leave unchanged borders out. Steps:

1. sort every pixel of the clip into bins of 6 bits per channel (5 when a grainy clip fills too many),
2. build 256 colours from the bins: variance-based splitting (Wan, Wong and Prusinkiewicz, ACM TOMS 14(2), 1988),
   then Lloyd's k-means,
3. give each bin two palette colours and a share of the second, and write that down as a table
   (threshold level, bin) -> colour,
4. look up every pixel with the threshold of its place in a 4x4 Bayer matrix.

ffmpeg only packs the result. Grainy moving scene, 25 frames of 512x512 on two cores, PSNR in dB, "blurred" over
means of 4x4 pixels, where dither pays (benchmarks/bench_formats.py):

    this module                              15 ms a frame   28.3   blurred 36.3
    ffmpeg palettegen and paletteuse        482 ms           25.3           31.6
    Pillow, median cut for each frame       163 ms           29.2           31.8

Arithmetic that decides anything stays on whole numbers below 2**24 (float32) or 2**53 (float64), which floats hold
exactly: the bytes do not depend on the order in which a BLAS adds. numpy is imported where it is needed, because
the API process lists the formats without it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from polyreel.errors import EncodingFailed
from polyreel.formats import Audio, Format, Kind
from polyreel.formats._ffmpeg import REPRODUCIBLE, check_frames, encode_raw, frame_rate, time_limit_s, whole_file
from polyreel.request import OutputSpec

if TYPE_CHECKING:
    import numpy as np

_COLOURS = 256
_LEVELS = 16  # thresholds of the Bayer matrix
_ITERATIONS = 4  # of k-means; later ones move no colour by a visible amount
_CHUNK = 4096  # bins at a time: the mixing table's working set stays near 40 MB

#: Above this many occupied bins the clip is so grainy that nobody sees 5-bit steps, and 6 bits cost 0.3 s more.
_MAX_BINS = 1 << 15

#: What grain costs, 0..1: 0 mixes any two colours that average right, 1 never mixes. At 0.3 flat areas stay calm
#: and gradients stay smooth; see `_mixing_table`.
_GRAIN_COST = 0.3

#: A GIF frame lasts whole centiseconds, at least one, at most what 16 bits hold.
_MAX_FPS = 100
_MAX_DELAY = 65535


class Gif:
    """GIF that loops for ever, with one palette and ordered dither."""

    name = "gif"
    media_type = "image/gif"
    extension = "gif"
    kind: Kind = "video"

    def encode(
        self,
        frames: np.ndarray,
        spec: OutputSpec,
        path: Path,
        *,
        audio: Audio | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write `frames` to `path`; see `Format.encode`.

        Frame n ends at round(100 * (n + 1) / fps) centiseconds, so the clip as a whole has its exact length and
        delays are equal where 100 / fps is whole. Above 100 fps every delay is one centisecond and the clip is
        longer than asked. Browsers show delays of one centisecond (above 66.7 fps) as ten.

        Args:
            frames: uint8, shape (num_frames, height, width, 3), RGB.
            spec: any fps above 1/655; quality has no meaning here.
            path: where to write; removed again on failure.
            audio: left out, a GIF is silent.
            metadata: its "comment" becomes a comment extension in UTF-8; ffmpeg writes none.

        Raises:
            EncodingFailed: wrong frames or options, or ffmpeg failed.
        """
        check_frames(frames)
        num_frames, height, width, _ = frames.shape
        rate = min(frame_rate(spec.fps), Fraction(_MAX_FPS))
        if 100 / rate > _MAX_DELAY:
            raise EncodingFailed(f"A GIF frame lasts at most {_MAX_DELAY / 100} s, got fps {spec.fps}.")
        last_delay = _centiseconds(num_frames, rate) - _centiseconds(num_frames - 1, rate)
        options = (
            *("-c:v", "gif", "-gifflags", "+offsetting-transdiff", *REPRODUCIBLE),
            *("-f", "gif", "-loop", "0", "-final_delay", str(last_delay)),
        )
        limit_s = time_limit_s(frames)
        encode_raw(_paletted(frames), options, path, pix_fmt="pal8", size=(width, height), rate=rate, timeout_s=limit_s)
        if metadata and metadata.get("comment"):
            with whole_file(path):
                path.write_bytes(_with_comment(path.read_bytes(), metadata["comment"]))


def _with_comment(content: bytes, comment: str) -> bytes:
    """Return a GIF with a comment extension in front of its first block, where readers look for it.

    Source: GIF89a specification, sections 18 (logical screen descriptor) and 24 (comment extension).
    """
    packed = content[10]
    colours = 3 << ((packed & 0b111) + 1) if packed & 0x80 else 0  # bytes of the global colour table
    start = 13 + colours
    text = comment.encode("utf-8", "replace")
    blocks = b"".join(bytes([len(part)]) + part for part in _parts(text, 255))
    return content[:start] + b"\x21\xfe" + blocks + b"\x00" + content[start:]


def _parts(text: bytes, length: int) -> Iterator[bytes]:
    for start in range(0, len(text), length):
        yield text[start : start + length]


def _centiseconds(num_frames: int, rate: Fraction) -> int:
    """Return the length of `num_frames`, halves rounded up, as ffmpeg rounds the frames in between."""
    return int(100 * num_frames / rate + Fraction(1, 2))


def _paletted(frames: np.ndarray) -> Iterator[bytes]:
    """Yield each frame as ffmpeg's pal8: one palette index per pixel, then 256 colours as B, G, R, A bytes."""
    import numpy as np

    bits, bins, counts, colours = _occupied_bins(frames)
    palette = _palette(colours, counts)
    table = np.zeros((_LEVELS, 1 << 3 * bits), np.uint8)
    table[:, bins] = _mixing_table(colours, palette)
    bgra = np.full((_COLOURS, 4), 255, np.uint8)
    bgra[: len(palette), :3] = palette[:, ::-1]
    thresholds = _bayer_levels(*frames.shape[1:3]) << 3 * bits  # (height, width): the row of `table`, as an offset
    for frame in frames:
        indices = table.ravel()[_bin_numbers(frame, bits) + thresholds]  # (height, width) uint8
        yield indices.tobytes() + bgra.tobytes()


def _bayer_levels(height: int, width: int) -> np.ndarray:
    """Return the 4x4 Bayer matrix, 0..15, tiled over (height, width)."""
    import numpy as np

    matrix = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.int32)
    return np.tile(matrix, (height // 4 + 1, width // 4 + 1))[:height, :width]


def _bin_numbers(frame: np.ndarray, bits: int) -> np.ndarray:
    """Return the bin of each pixel, (height, width) int32: the first `bits` of red, green and blue."""
    reduced = frame >> (8 - bits)
    numbers: np.ndarray = reduced[..., 0].astype("int32")
    for channel in (1, 2):
        numbers <<= bits
        numbers |= reduced[..., channel]
    return numbers


def _occupied_bins(frames: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Return (bits, numbers of the bins that have pixels, pixels in each, mean colour of each as whole numbers)."""
    for bits in (6, 5):
        counts, sums = _histogram(frames, bits)
        bins = counts.nonzero()[0]
        if len(bins) <= _MAX_BINS:
            break
    return bits, bins, counts[bins], (sums[bins] / counts[bins, None]).round()


def _histogram(frames: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels in each bin, and their colours added up, as float64: (bins,) and (bins, 3)."""
    import numpy as np

    size = 1 << 3 * bits
    counts, sums = np.zeros(size), np.zeros((size, 3))
    for frame in frames:
        numbers = _bin_numbers(frame, bits).ravel()
        counts += np.bincount(numbers, minlength=size)
        for channel in range(3):
            sums[:, channel] += np.bincount(numbers, frame[..., channel].ravel(), size)
    return counts, sums


def _palette(colours: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return up to 256 colours for weighted `colours`, float32 whole numbers, (colours, 3)."""
    import numpy as np

    palette = _split(colours, counts)
    for _ in range(_ITERATIONS):
        nearest = _distances(colours, palette).argmin(1)
        weights = np.bincount(nearest, counts, len(palette))
        sums = [np.bincount(nearest, counts * colours[:, channel], len(palette)) for channel in range(3)]
        means = (np.stack(sums, 1) / np.maximum(weights, 1)[:, None]).round()
        palette = np.where(weights[:, None] > 0, means, palette).astype(np.float32)
    return palette


def _split(colours: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Cut the box with the largest squared error at its mean, across its widest channel, until there are 256."""
    import numpy as np

    def box(members: np.ndarray) -> tuple[float, int, int, np.ndarray, np.ndarray]:
        inside, weights = colours[members], counts[members]
        mean = weights @ inside / weights.sum()
        error = weights @ inside**2 - mean * (weights @ inside)  # whole sums: the same on every machine
        error = np.where(inside.max(0) > inside.min(0), error, 0)
        channel = int(error.argmax())
        return -float(error[channel]), int(members[0]), channel, members, mean  # members differ, so arrays never tie

    boxes = [box(np.arange(len(colours)))]
    while len(boxes) < _COLOURS and boxes[0][0] < 0:
        _, _, channel, members, mean = heapq.heappop(boxes)
        is_low = colours[members, channel] <= mean[channel]
        heapq.heappush(boxes, box(members[is_low]))
        heapq.heappush(boxes, box(members[~is_low]))
    return np.stack([mean for *_, mean in boxes]).round().astype(np.float32)


def _distances(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return squared distances less the square of the colour itself, (colours, palette) float32."""
    distances: np.ndarray = (palette**2).sum(1) - 2 * (colours.astype(palette.dtype) @ palette.T)
    return distances


def _mixing_table(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return the palette index for each threshold level and colour, (16, colours) uint8.

    A colour x gets its nearest palette colour a, and with the share t the colour b that make least of

        |x - a - t (b - a)|^2  +  cost * t (1 - t) |b - a|^2

    the error of the average, and the variance of the pixels around it, which the eye sees as grain. For each b the
    best t is ((x - a)(b - a) / |b - a|^2 - cost / 2) / (1 - cost), between 0 and 1/2 because a is nearer.
    """
    import numpy as np

    products = palette @ palette.T
    squares = np.diag(products)
    gaps = squares[:, None] + squares - 2 * products  # |b - a|^2
    luma = palette @ np.array([299, 587, 114], np.float32)
    levels = (np.arange(_LEVELS)[:, None] + 0.5) / _LEVELS
    table = np.empty((_LEVELS, len(colours)), np.uint8)
    for start in range(0, len(colours), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        rows = np.arange(len(colours[chunk]))
        halves = (squares - _distances(colours[chunk], palette)) / 2  # x b
        a = (squares - 2 * halves).argmin(1)
        along = halves - halves[rows, a][:, None] - products[a] + squares[a][:, None]  # (x - a)(b - a)
        gap = gaps[a]
        share = ((along / np.maximum(gap, 1) - _GRAIN_COST / 2) / (1 - _GRAIN_COST)).clip(0, 0.5)
        error = share * (share * gap - 2 * along + _GRAIN_COST * (1 - share) * gap)
        b = error.argmin(1)
        share = share[rows, b]
        # The brighter colour takes the high thresholds, so that neighbouring bins dither in step.
        is_b = np.where(luma[b] > luma[a], levels > 1 - share, levels < share)
        table[:, chunk] = np.where(is_b, b, a)
    return table


FORMAT: Format = Gif()
