"""What `polyreel doctor` wants to know from inside the worker's environment: one line of JSON on the standard output.

It needs torch for the devices and the catalogue's weights, and says of each part that it cannot find out why. It judges
nothing: that is `polyreel.doctor`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polyreel.errors import ConfigurationError

#: What a worker imports; the same names as pip's, where these differ.
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "numpy")

#: How long ffmpeg may take to list its encoders, seconds.
_FFMPEG_S = 30.0


def look(config: str | None, state_dir: Path | None) -> dict[str, Any]:  # Any: JSON
    """Return all parts; one that raised is {"error": why}."""
    parts: dict[str, Callable[[], object]] = {
        "libraries": libraries,
        "torch": torch_facts,
        "ffmpeg": ffmpeg,
        "weights": lambda: weights(config, state_dir),
    }
    return {name: _tried(part) for name, part in parts.items()}


def _tried(part: Callable[[], object]) -> object:
    try:
        return part()
    except Exception as err:  # whatever it is, the doctor shows it, and the other parts are of use without this one
        return {"error": " ".join(f"{type(err).__name__}: {err}".split())[:500]}


def libraries() -> dict[str, str]:
    """Return the version of each library that is installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def torch_facts() -> dict[str, Any]:  # Any: JSON
    """Return what torch was built for and which devices it can use; why it can use none stands in `trouble`."""
    import torch

    trouble = ""
    with warnings.catch_warnings(record=True) as caught:  # torch says by a warning that the driver is too old
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if torch.version.cuda and not is_available:
        trouble = " ".join(str(caught[0].message).split()) if caught else "torch finds no driver"
    devices = []
    for number in range(torch.cuda.device_count() if is_available else 0):
        about = torch.cuda.get_device_properties(number)
        arch = f"sm_{about.major}{about.minor}"
        devices.append({"name": about.name, "memory_bytes": about.total_memory, "arch": arch})
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "trouble": trouble,
        "devices": devices,
        "archs": torch.cuda.get_arch_list() if is_available else [],
    }


def ffmpeg() -> dict[str, Any]:  # Any: JSON
    """Return which ffmpeg the formats use, and its encoders."""
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    asked = subprocess.run(
        [program, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=_FFMPEG_S, check=True
    )
    listed = [line.split() for line in asked.stdout.partition("------")[2].splitlines()]
    return {"program": program, "encoders": sorted(words[1] for words in listed if len(words) > 1)}


def weights(config: str | None, state_dir: Path | None) -> list[dict[str, str]]:
    """Return what `polyreel models` says of each entry."""
    from polyreel.profiles import load_settings
    from workers.show_models import entries, inspect

    settings = load_settings(config, state_dir=state_dir).settings
    rows = []
    for entry in entries(settings):
        found = inspect(entry, settings, config)
        row = {"name": entry.name, "kind": entry.kind, "state": found.state}
        rows.append(row | {"detail": found.detail, "fix": found.fix})
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print what was found; the exit code is 2 when the settings are wrong."""
    parser = argparse.ArgumentParser(prog="polyreel doctor")
    parser.add_argument("--config")
    parser.add_argument("--state-dir", type=Path)
    options = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        print(json.dumps(look(options.config, options.state_dir)))  # noqa: T201
    except ConfigurationError as err:
        print(err, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
