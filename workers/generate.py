"""`polyreel generate`: one video here and now, without a server, through the same family and encoder code."""

from __future__ import annotations

import argparse
import json
import os
import sys

from polyreel.errors import ConfigurationError, InvalidRequest, PolyreelError
from polyreel.formats import formats
from polyreel.logs import configure_logs
from polyreel.processes import start_as
from polyreel.storage.memory import MemoryStorage
from workers.generate_request import make_parser, read_request


def main(argv: list[str] | None = None) -> int:
    """Make one video; return the exit code (0 made, 1 the model failed, 2 wrong arguments)."""
    options = make_parser().parse_args(argv)
    start_as("polyreel generate", None)
    try:
        return _generate(options)
    except (ConfigurationError, InvalidRequest) as err:
        print(f"polyreel generate: {err}", file=sys.stderr)  # noqa: T201
        return 2
    except PolyreelError as err:
        print(f"polyreel generate: {err}", file=sys.stderr)  # noqa: T201
        return 1


def _generate(options: argparse.Namespace) -> int:
    from polyreel.profiles import load_settings

    settings = load_settings(options.config, state_dir=options.state_dir, device=options.device).settings
    catalogue = settings.catalogue
    storage = MemoryStorage()
    request = catalogue.admit(read_request(options, catalogue, storage))

    # From here on the request is good. What follows reads the environment when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    configure_logs("warning", "generate")  # the bar says how far it is

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from workers.prepare import Preparer
    from workers.receipt import metadata, receipt
    from workers.residency import Residency

    model, format = request.model, formats()[request.outputs[0].format]
    console = Console(stderr=True)
    residency = Residency(catalogue, settings.state_dir / "checkpoints", settings.device, capacity=1)
    prepared = Preparer(catalogue, storage, residency.checkpoints).prepare(request)
    with console.status(f"loading {model}"):
        loaded = residency.get(model)
        import torch

        torch.set_num_threads(settings.threads)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("denoising", total=request.num_inference_steps)
        [video] = residency.family(model).generate(
            loaded,
            [prepared],
            lambda progress: bar.update(
                task,
                description=progress.stage.replace("_", " "),
                completed=progress.step,
                total=progress.total_steps,
            ),
        )
    about = metadata(receipt(prepared, video, loaded)) if settings.file_metadata else None
    part = options.output.with_name(f".{options.output.name}.part{options.output.suffix}")
    with console.status(f"encoding {format.name}"):
        format.encode(video.frames, request.outputs[0], part, audio=video.audio, metadata=about)
        part.replace(options.output)
    if options.json:
        made: dict[str, object] = {
            "file": str(options.output),
            "model": model,
            "format": format.name,
            "seed": request.seed,
        }
        size = {"height": request.delivered_height, "width": request.delivered_width}
        print(json.dumps(made | size | {"num_frames": request.num_frames, "fps": request.fps}))  # noqa: T201
        return 0
    console.print(
        f"{options.output}: {request.num_frames} frames of {request.delivered_width}x{request.delivered_height} "
        f"at {request.fps:g} fps, "
        f"seed {request.seed}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
