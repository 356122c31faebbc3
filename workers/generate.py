"""`polyreel generate`: one video here and now, without a server, through the same family and encoder code."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from polyreel.catalogue import Catalogue
from polyreel.errors import ConfigurationError, InvalidRequest, PolyreelError, did_you_mean
from polyreel.processes import start_as


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

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from polyreel.formats import formats
    from polyreel.request import OutputSpec, PromptSpan, VideoRequest, draw_seed
    from workers.residency import Residency

    by_extension = {f".{format.extension}": format for format in formats().values()}
    format = by_extension.get(options.output.suffix.lower())
    if format is None:
        raise InvalidRequest(f"--output must end in one of {', '.join(by_extension)}, got {options.output.name}")
    catalogue = Catalogue(settings.models)
    model = _find(catalogue, options.model)
    entry = catalogue[model]

    def given(name: str) -> float:
        value = getattr(options, name)
        return float(getattr(entry.defaults, name) if value is None else value)

    if min(given("num_frames"), given("height"), given("width"), given("num_inference_steps"), given("fps")) <= 0:
        raise InvalidRequest("frames, sizes, steps and fps must be more than 0")
    request = VideoRequest(
        model=model,
        prompts=(PromptSpan(options.prompt, int(given("num_frames"))),),
        height=int(given("height")),
        width=int(given("width")),
        fps=given("fps"),
        num_inference_steps=int(given("num_inference_steps")),
        guidance_scale=given("guidance_scale"),
        seed=draw_seed() if options.seed is None else options.seed,
        outputs=(OutputSpec(format.name, given("fps")),),
        negative_prompt=options.negative_prompt or "",
    )
    console = Console(stderr=True)
    residency = Residency(catalogue, settings.state_dir / "checkpoints", settings.device, capacity=1)
    with console.status(f"loading {model}"):
        pipeline = residency.get(model)
        import torch

        torch.set_num_threads(settings.threads)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("denoising", total=request.num_inference_steps)
        frames = residency.family(model).generate(
            pipeline, [request], lambda step, total: bar.update(task, completed=step, total=total)
        )[0]
    part = options.output.with_name(f".{options.output.name}.part{options.output.suffix}")
    with console.status(f"encoding {format.name}"):
        format.encode(frames, request.outputs[0], part)
        part.replace(options.output)
    console.print(
        f"{options.output}: {request.num_frames} frames of {request.width}x{request.height} at {request.fps:g} fps, "
        f"seed {request.seed}"
    )
    return 0


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
