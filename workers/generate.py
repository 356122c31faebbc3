"""`polyreel generate`: one video here and now, without a server, through the same family and encoder code."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.errors import ConfigurationError, InvalidRequest, PolyreelError, did_you_mean
from polyreel.formats import formats
from polyreel.processes import start_as
from polyreel.request import MAX_SEED, OutputSpec, PromptSpan, VideoRequest, draw_seed


def main(argv: list[str] | None = None) -> int:
    """Make one video; return the exit code (0 made, 1 the model failed, 2 wrong arguments)."""
    options = _parser().parse_args(argv)
    start_as("polyreel generate", None)
    try:
        return _generate(options)
    except (ConfigurationError, InvalidRequest) as err:
        print(f"polyreel generate: {err}", file=sys.stderr)  # noqa: T201
        return 2
    except PolyreelError as err:
        print(f"polyreel generate: {err}", file=sys.stderr)  # noqa: T201
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="polyreel generate")
    parser.add_argument("prompt")
    parser.add_argument("--output", type=Path, required=True)
    for name in ("model", "negative-prompt", "config", "device"):
        parser.add_argument(f"--{name}")
    for name in ("num-frames", "height", "width", "num-inference-steps", "seed"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("fps", "guidance-scale"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--state-dir", type=Path)
    return parser


def _generate(options: argparse.Namespace) -> int:
    from polyreel.settings import load_settings

    settings = load_settings(options.config, state_dir=options.state_dir, device=options.device).settings
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    catalogue = settings.catalogue
    request = _request(options, catalogue)

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from models import PreparedRequest
    from workers.residency import Residency

    model, format = request.model, formats()[request.outputs[0].format]
    console = Console(stderr=True)
    residency = Residency(catalogue, settings.state_dir / "checkpoints", settings.device, capacity=1)
    with console.status(f"loading {model}"):
        loaded = residency.get(model)
        import torch

        torch.set_num_threads(settings.threads)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("denoising", total=request.num_inference_steps)
        [video] = residency.family(model).generate(
            loaded,
            [PreparedRequest(request)],
            lambda progress: bar.update(
                task,
                description=progress.stage.replace("_", " "),
                completed=progress.step,
                total=progress.total_steps,
            ),
        )
    part = options.output.with_name(f".{options.output.name}.part{options.output.suffix}")
    with console.status(f"encoding {format.name}"):
        format.encode(video.frames, request.outputs[0], part, audio=video.audio)
        part.replace(options.output)
    console.print(
        f"{options.output}: {request.num_frames} frames of {request.width}x{request.height} at {request.fps:g} fps, "
        f"seed {request.seed}"
    )
    return 0


def _request(options: argparse.Namespace, catalogue: Catalogue) -> VideoRequest:
    """Return what is to be made, checked as a server would, before anything heavy is imported.

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
    seed = draw_seed() if options.seed is None else options.seed
    _check_range("seed", seed, 0, MAX_SEED)
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(options.prompt, values.pop("num_frames")),),
        seed=seed,
        outputs=(OutputSpec(format, values["fps"]),),
        negative_prompt=options.negative_prompt or "",
        **values,
    )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also NaN
        raise InvalidRequest(f"--{name.replace('_', '-')} must be between {low} and {high}, got {value}")


def _format(output: Path) -> str:
    """Return the name of the format that the file's ending means, when the file can be written."""
    by_extension = {f".{format.extension}": format.name for format in formats().values()}
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


if __name__ == "__main__":
    sys.exit(main())
