"""What a video will cost, before anybody pays for it: latent tokens, memory, work, and from that time.

Pure arithmetic over a catalogue entry's `geometry` and `cost`. What no worker's device can hold even in the least
placement that the entry allows is refused at submit, with the largest setting that would fit. Figures that the
catalogue leaves at zero are not known and refuse nothing; the estimate never says no where the truth might be yes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from polyreel.entries import MIN_SIDE, Placement, ServedModel
from polyreel.errors import InvalidRequest
from polyreel.request import VideoRequest

#: Of a device's memory, what its driver, the libraries' workspaces and the allocator's gaps take, bytes.
RESERVED_BYTES = 800_000_000

#: Under group offload a few blocks of the largest component are on the device: about two of forty.
_GROUP_SHARE = 0.05

#: Float8 storage halves the denoiser and no other part; what it leaves is at least this.
_FP8_SHARE = 0.5

#: The smallest tile that a VAE of diffusers takes by itself, pixels a side; the finished frames are float32 RGB.
_TILE_SIDE, _BYTES_PER_PIXEL = 256, 12

#: FreeInit denoises the whole video this often.
_FREE_INIT_ITERATIONS = 3

#: Pixels per token where the geometry is not known; any number does, as rates are learned in the same unit.
_PIXELS_PER_UNKNOWN_TOKEN = 1024


@dataclass(frozen=True, slots=True)
class Size:
    """Frames and pixels of one pass."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames} frame{'s' if self.num_frames > 1 else ''} of {self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a model was, as a worker measured it.

    Args:
        denoising_s: seconds per unit of `Work.denoising`.
        rest_s: seconds of everything else (text, decoding, encoding, storing) per million delivered pixels.
    """

    denoising_s: float
    rest_s: float

    def towards(self, newest: Rates, share: float) -> Rates:
        """Return these rates moved towards newer ones by `share`, 0..1."""
        return Rates(
            (1 - share) * self.denoising_s + share * newest.denoising_s,
            (1 - share) * self.rest_s + share * newest.rest_s,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do for a request, in units that grow with the seconds they take on one machine.

    Args:
        denoising: thousands of tokens through the denoiser, attention's growth included, over all steps and passes.
        megapixels: million pixels of the delivered video.
    """

    denoising: float
    megapixels: float

    def seconds(self, rates: Rates) -> float:
        """Return how long it takes at these rates."""
        return self.denoising * rates.denoising_s + self.megapixels * rates.rest_s

    def rates(self, denoising_s: float, rest_s: float) -> Rates:
        """Return the rates of a run that took these seconds."""
        return Rates(denoising_s / self.denoising, rest_s / self.megapixels)


def made_as(entry: ServedModel, asked: Size) -> Size:
    """Return what a pass that is asked for is made as: of the entry's native size and length, where it has any."""
    native = entry.native
    if native is None:
        return asked
    return Size(native.num_frames_for(asked.num_frames), *native.size_for(asked.height, asked.width))


def tokens(entry: ServedModel, num_frames: int, height: int, width: int) -> int:
    """Return the latent tokens of a video, 0 when the entry's geometry is not known.

    Args:
        num_frames, height, width: of a pass, see `made_as`; the family generates at the next size that its latents
            can have.

    Example: Wan 2.1 at 81 frames of 832x480 has 21 x 30 x 52 = 32,760.
    """
    per_latent, side = entry.geometry.frames, entry.geometry.pixels
    if not per_latent:
        return 0
    return (1 + ceil((num_frames - 1) / per_latent)) * ceil(height / side) * ceil(width / side)


def work(entry: ServedModel, request: VideoRequest) -> Work:
    """Return what there is to do for a request, over all its passes."""
    first = _evaluations(request.num_inference_steps, request.guidance_scale)
    if request.improved_sampling_seed is not None:
        first *= _FREE_INIT_ITERATIONS
    denoising = first * _per_evaluation(entry, Size(request.num_frames, request.height, request.width))
    if request.upscale and request.upscale.strength:
        up = request.upscale
        steps = max(1, int(up.strength * up.num_inference_steps))
        denoising += _evaluations(steps, up.guidance_scale) * _per_evaluation(entry, passes(request)[-1])
    pixels = request.num_frames * request.delivered_height * request.delivered_width
    return Work(denoising, pixels / 1e6)


def passes(request: VideoRequest) -> list[Size]:
    """Return the size of each pass over the video: the first one, and the upscaling's."""
    sizes = [Size(request.num_frames, request.height, request.width)]
    if request.upscale:
        sizes.append(Size(request.num_frames, request.upscale.height, request.upscale.width))
    return sizes


def memory_bytes(entry: ServedModel, size: Size, placement: Placement) -> int:
    """Return the estimated peak of the device's memory for one pass, bytes; what is not known counts nothing.

    Under offload the largest component is not always the one that runs beside the latents (Wan's text encoder is four
    times its 1.3B transformer), so the two are not added: the estimate is then a lower bound.

    Args:
        size: as asked.
        placement: where the weights are; "auto" counts as "resident".
    """
    size = made_as(entry, size)
    beside = max(_denoising_bytes(entry, size), _decoding_bytes(entry, size, placement))
    weights = weights_bytes(entry, placement)
    return round(max(weights, beside) if placement.mode.endswith("offload") else weights + beside)


def weights_bytes(entry: ServedModel, placement: Placement) -> int:
    """Return how much of the device's memory the weights take at once under a placement, bytes."""
    cost = entry.cost
    at_once = {"cpu_offload": cost.largest_gb, "group_offload": cost.largest_gb * _GROUP_SHARE}
    return round(at_once.get(placement.mode, cost.weights_gb) * 1e9 * (_FP8_SHARE if placement.fp8 else 1))


def least(placement: Placement) -> Placement:
    """Return the placement with the lowest peak that an entry's own allows, by choice or after out of memory."""
    modes_are_free = placement.mode == "auto" or placement.retry_with_less
    return placement.model_copy(
        update={
            "mode": "group_offload" if modes_are_free else placement.mode,
            "fp8": placement.fp8 is not False,
            "vae_tiling": placement.vae_tiling or placement.retry_with_less,
        }
    )


def needed_bytes(entry: ServedModel, request: VideoRequest) -> int:
    """Return the least memory of a device that a request needs, bytes; 0 when nothing is known."""
    return _needed(entry, passes(request))


def check_fits(entry: ServedModel, request: VideoRequest, device_bytes: int, called: str = "") -> None:
    """Refuse what a device of this much memory cannot hold.

    Args:
        device_bytes: in all, as the worker says in its heartbeat.
        called: the model's name for the message, "" for its catalogue name.

    Raises:
        InvalidRequest: names the largest number of frames at this size, and the largest size of this shape at this
            number of frames, that would fit.
    """
    needed = needed_bytes(entry, request)
    if needed > device_bytes - RESERVED_BYTES:
        raise InvalidRequest(
            f"{_asked(request)} would need about {_gb(needed + RESERVED_BYTES)} GB of memory on "
            f"{called or request.model}, and the largest GPU that serves it here has {_gb(device_bytes)} GB. "
            f"{what_fits(entry, request, device_bytes)}"
        )


def what_fits(entry: ServedModel, request: VideoRequest, device_bytes: int) -> str:
    """Return a sentence with the largest settings near a request that would fit on a device."""
    room = device_bytes - RESERVED_BYTES
    found = []
    num_frames = largest_num_frames(entry, request, room)
    if num_frames:
        found.append(_asked(request, num_frames))
    size = largest_size(entry, request, room)
    if size:
        found.append(size)
    return f"What fits: {', or '.join(found)}." if found else "Nothing near this size fits; use a smaller model."


def largest_num_frames(entry: ServedModel, request: VideoRequest, room: int) -> int:
    """Return the most frames below the request's that fit into `room` bytes at its sizes, 0 for none."""

    def fits(num_frames: int) -> bool:
        return _needed(entry, [Size(num_frames, s.height, s.width) for s in passes(request)]) <= room

    return _largest(fits, request.num_frames - 1)


def largest_size(entry: ServedModel, request: VideoRequest, room: int) -> str:
    """Return in words the largest size of the request's shape that fits into `room` bytes, "" for none.

    The first pass alone shrinks when it is what does not fit; else the upscaling's target does, down to the first
    pass. Sides are multiples of a token.
    """
    first, *upscaled = passes(request)
    if upscaled and _needed(entry, [first]) <= room:
        target = _shrunk(entry, upscaled[0], room)
        if target is None or target.width * target.height <= first.width * first.height:
            return f"{first} without upscaling"
        return f"{first} upscaled to {target.width}x{target.height}"
    size = _shrunk(entry, first, room)
    return str(size) if size else ""


def _shrunk(entry: ServedModel, size: Size, room: int) -> Size | None:
    step = max(8, entry.geometry.pixels)
    long, short = max(size.height, size.width), min(size.height, size.width)

    def at(count: int) -> Size:
        # Exact fractions: the sides of one shape must not change order by rounding.
        other = max(1, round(Fraction(count * short, long))) * step
        height, width = (count * step, other) if size.height >= size.width else (other, count * step)
        return Size(size.num_frames, height, width)

    count = _largest(lambda count: _needed(entry, [at(count)]) <= room, long // step)
    shrunk = at(count)
    return shrunk if count and min(shrunk.height, shrunk.width) >= MIN_SIDE else None


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest of 1..`most` that fits, 0 for none; whatever fits, all smaller ones do too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _needed(entry: ServedModel, sizes: list[Size]) -> int:
    placement = least(entry.placement)
    return max(memory_bytes(entry, size, placement) for size in sizes)


def _denoising_bytes(entry: ServedModel, size: Size) -> float:
    # 1e6 bytes per 1,000 tokens is 1,000 bytes per token.
    return tokens(entry, size.num_frames, size.height, size.width) * entry.cost.mb_per_1k_tokens * 1e3


def _decoding_bytes(entry: ServedModel, size: Size, placement: Placement) -> float:
    cost, frame = entry.cost, size.height * size.width
    tile = min(frame, _TILE_SIDE**2) if placement.vae_tiling else frame
    # 1e6 bytes per million pixels is a byte per pixel.
    decoding = cost.mb_per_megapixel * size.num_frames * tile + cost.mb_per_frame_megapixel * tile
    if placement.vae_tiling and decoding:
        decoding = max(decoding, _BYTES_PER_PIXEL * size.num_frames * frame)
    return decoding


def _evaluations(steps: int, guidance_scale: float) -> int:
    """Return how often the denoiser runs: twice a step under classifier-free guidance."""
    return steps * (2 if guidance_scale > 1 else 1)


def _per_evaluation(entry: ServedModel, size: Size) -> float:
    size = made_as(entry, size)
    count: float = tokens(entry, size.num_frames, size.height, size.width)
    if not count:
        count = size.num_frames * size.height * size.width / _PIXELS_PER_UNKNOWN_TOKEN
    balance = entry.geometry.attention_tokens
    return count / 1e3 * (1 + count / balance if balance else 1)


def _asked(request: VideoRequest, num_frames: int | None = None) -> str:
    first = Size(num_frames or request.num_frames, request.height, request.width)
    upscaled = f" upscaled to {request.upscale.width}x{request.upscale.height}" if request.upscale else ""
    return f"{first}{upscaled}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
