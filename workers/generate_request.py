"""The arguments of `polyreel generate`, and the request that they mean, checked as a server would.

Knows nothing of models: what a flag names is looked up in the catalogue.
"""

from __future__ import annotations

import argparse
import io
import os
import re
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE, Adapter
from polyreel.errors import InvalidRequest, did_you_mean
from polyreel.formats import formats
from polyreel.request import (
    MAX_SEED,
    AdapterUse,
    ImageCondition,
    OutputSpec,
    PromptSpan,
    Upscale,
    VideoRequest,
    draw_seed,
    picture_key,
)
from polyreel.storage.memory import MemoryStorage
from workers.prepare import FORMATS, TooManyPixels, read_picture

#: Largest side of an upscaled video, pixels.
_LARGEST_SIDE = 4096


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="polyreel generate")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    for name in ("model", "negative-prompt", "config", "device"):
        parser.add_argument(f"--{name}")
    for name in ("num-frames", "height", "width", "num-inference-steps", "seed", "clip-skip", "improved-sampling-seed"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("fps", "guidance-scale", "upscale-strength"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("image", "last-image", "upscale"):
        parser.add_argument(f"--{name}")
    for name in ("keyframe", "lora", "embedding"):
        parser.add_argument(f"--{name}", action="append", default=[])
    for name in ("closed-loop", "json"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--state-dir", type=Path)
    return parser


def read_request(options: argparse.Namespace, catalogue: Catalogue, storage: MemoryStorage) -> VideoRequest:
    """Return what is to be made, checked as a server would, before torch is imported.

    Args:
        storage: gets the pictures.

    Raises:
        InvalidRequest: names the flag, what came and what is allowed.
    """
    format = _format(options.output)
    model = _find(catalogue, options.model)
    limits, defaults = catalogue[model].limits, catalogue[model].defaults
    ranges = {
        "num_frames": (1, limits.num_frames),
        "height": (MIN_SIDE, limits.side),
        "width": (MIN_SIDE, limits.side),
        "fps": (1, 120),
        "num_inference_steps": (1, limits.num_inference_steps),
        "guidance_scale": (0, 100),
    }
    values = {}
    for name, (low, high) in ranges.items():
        given = getattr(options, name)
        values[name] = getattr(defaults, name) if given is None else given
        _check_range(name, values[name], low, high)
    limits.check_pixels(values["num_frames"], values["height"], values["width"])
    _check_range("clip_skip", options.clip_skip or 0, 0, 12)
    seed = draw_seed() if options.seed is None else options.seed
    for name, value in (("seed", seed), ("improved_sampling_seed", options.improved_sampling_seed or 0)):
        _check_range(name, value, 0, MAX_SEED)
    num_frames = values.pop("num_frames")
    return VideoRequest(
        model=model,
        prompts=_spans(options.prompts, num_frames),
        seed=seed,
        outputs=(OutputSpec(format, values["fps"]),),
        negative_prompt=options.negative_prompt or "",
        clip_skip=options.clip_skip,
        images=_images(options, num_frames, storage),
        loras=tuple(_lora(text, catalogue, model) for text in options.lora),
        embeddings=tuple(_made_for(model, "--embedding", name, catalogue.embeddings) for name in options.embedding),
        closed_loop=options.closed_loop,
        upscale=_upscale(options, values),
        improved_sampling_seed=options.improved_sampling_seed,
        **values,
    )


def _spans(prompts: list[str], num_frames: int) -> tuple[PromptSpan, ...]:
    """Share the frames out evenly, the earlier prompts getting what is left over."""
    if len(prompts) > num_frames:
        raise InvalidRequest(f"--num-frames must be at least one for each of {len(prompts)} prompts, got {num_frames}")
    each, over = divmod(num_frames, len(prompts))
    return tuple(PromptSpan(prompt, each + (number < over)) for number, prompt in enumerate(prompts))


def _images(options: argparse.Namespace, num_frames: int, storage: MemoryStorage) -> tuple[ImageCondition, ...]:
    """Read the pictures into `storage`, in the order of their frames."""
    wanted: dict[int, tuple[str, str]] = {}
    if options.image:
        wanted[0] = ("--image", options.image)
    for text in options.keyframe:
        number, _, file = text.partition("=")
        if not (number.isascii() and number.isdigit() and file):
            raise InvalidRequest(f"--keyframe must be N=FILE, such as 8=cat.png, got {text}")
        _check_range("keyframe", int(number), 0, num_frames - 1)
        wanted[int(number)] = ("--keyframe", file)
    if options.last_image:
        wanted[num_frames - 1] = ("--last-image", options.last_image)
    return tuple(
        ImageCondition(_keep(flag, Path(file), storage), -1 if index == num_frames - 1 and index else index)
        for index, (flag, file) in sorted(wanted.items())
    )


def _keep(flag: str, file: Path, storage: MemoryStorage) -> str:
    try:
        content = file.read_bytes()
    except OSError as err:
        raise InvalidRequest(f"{flag}: {file} cannot be read: {err.strerror}") from err
    try:
        read_picture(io.BytesIO(content))
    except UnidentifiedImageError as err:
        raise InvalidRequest(f"{flag}: {file} is not a picture ({', '.join(FORMATS)})") from err
    except TooManyPixels as err:
        raise InvalidRequest(f"{flag}: {file} has {err}") from err
    except Exception as err:  # what Pillow raises for damaged files of one format or another
        raise InvalidRequest(f"{flag}: {file} is a damaged picture") from err
    key = picture_key(content)
    storage.put(file, key)
    return key


def _lora(text: str, catalogue: Catalogue, model: str) -> AdapterUse:
    name, equals, strength = text.partition("=")
    try:
        value = float(strength) if equals else 1.0
    except ValueError:
        raise InvalidRequest(f"--lora must be NAME or NAME=STRENGTH, such as ink=0.8, got {text}") from None
    _check_range("lora", value, 0, 2)
    return AdapterUse(_made_for(model, "--lora", name, catalogue.loras), value)


def _made_for(model: str, flag: str, name: str, adapters: dict[str, Adapter]) -> str:
    """Return the catalogue name of an adapter that fits `model`."""
    known = _known(flag, name, adapters)
    models = adapters[known].models
    if model not in models:
        raise InvalidRequest(f"{flag} {name} was made for {', '.join(models)}, not for {model}; see --model.")
    return known


def _known(flag: str, name: str, adapters: dict[str, Adapter]) -> str:
    """Return the catalogue name for a catalogue or public name."""
    for known, adapter in adapters.items():
        if name == known or any(name in public for public in adapter.names.values()):
            return known
    raise InvalidRequest(
        f"{flag} {name} is not served.{did_you_mean(name, adapters)} Served: {', '.join(adapters) or 'none'}."
    )


def _upscale(options: argparse.Namespace, values: dict[str, Any]) -> Upscale | None:
    """Return the second pass, with the guidance and steps of the first. Any: ints and floats by field."""
    if options.upscale is None:
        return None
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", options.upscale)
    if not size:
        raise InvalidRequest(f"--upscale must be WIDTHxHEIGHT, such as 1024x1024, got {options.upscale}")
    strength = 0.6 if options.upscale_strength is None else options.upscale_strength
    _check_range("upscale_strength", strength, 0, 1)
    width, height = int(size[1]), int(size[2])
    for side in (width, height):
        _check_range("upscale", side, MIN_SIDE, _LARGEST_SIDE)
    return Upscale(height, width, strength, values["guidance_scale"], values["num_inference_steps"])


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also NaN
        raise InvalidRequest(f"--{name.replace('_', '-')} must be between {low} and {high}, got {value}")


def _format(output: Path) -> str:
    """Return the name of the format that the file's ending means, when the file can be written."""
    by_extension = {f".{format.extension}": format.name for format in formats().values() if format.kind != "picture"}
    name = by_extension.get(output.suffix.lower())
    if name is None:
        raise InvalidRequest(f"--output must end in one of {', '.join(by_extension)}, got {output.name}")
    if not output.parent.is_dir():
        raise InvalidRequest(f"--output: there is no folder {output.parent}")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise InvalidRequest(f"--output: {output} cannot be written")
    return name


def _find(catalogue: Catalogue, name: str | None) -> str:
    """Return the catalogue name for a catalogue or public name; the first entry for None."""
    if name is None:
        return next(iter(catalogue.models))
    if name in catalogue.models:
        return name
    dialects = {dialect for entry in catalogue.models.values() for dialect in entry.names}
    for dialect in sorted(dialects):
        found = catalogue.find(dialect, name)
        if found:
            return found
    known = [*catalogue.models, *(public for dialect in dialects for public in catalogue.public_names(dialect))]
    raise InvalidRequest(f"--model {name} is not served.{did_you_mean(name, known)} `polyreel models` lists them.")
