"""The receipt of a video: what is needed to make it again, and how it was made.

It knows no times, ids, dates or names of machines. The part that decides pixels also goes into the file, so that the
same request and seed give the same bytes wherever the weights were and however often memory ran out before.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from models import AdapterFile, PreparedRequest, Video
from models._origins import adapter_origin
from models.loaded import LoadedModel
from polyreel import __version__

#: Libraries whose version can change the pixels.
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")

#: What of a receipt changes no pixel, by design: it is in the record alone. float8 and tiles do change some.
_CHANGES_NO_PIXEL = ("placement", "vae_slicing", "after_out_of_memory", "content_policy")


def receipt(prepared: PreparedRequest, video: Video, model: LoadedModel, *, batch_size: int = 1) -> dict[str, Any]:
    """Return the reproducible receipt of a video. Plain JSON.

    Args:
        batch_size: requests that were given to the family in the call that made it. More than one is said, also in
            the file: kernels choose by batch size, and a value may differ by one grey level from the run alone.
    """
    r = prepared.request
    return {
        "polyreel": __version__,
        **model.facts(),
        "pipelines": list(video.pipelines),
        "scheduler": type(model.pipeline.scheduler).__name__ if hasattr(model.pipeline, "scheduler") else "",
        "prompts": [{"prompt": span.prompt, "num_frames": span.num_frames} for span in r.prompts],
        "negative_prompt": r.negative_prompt,
        "seed": r.seed,
        "num_frames": r.num_frames,
        "height": r.height,
        "width": r.width,
        "fps": r.fps,
        "num_inference_steps": r.num_inference_steps,
        "guidance_scale": r.guidance_scale,
        "clip_skip": r.clip_skip,
        "images": [{"key": i.key, "frame_index": i.frame_index, "strength": i.strength} for i in r.images],
        "loras": [_lora(file) for file in prepared.loras],
        "embeddings": [{"name": file.name, **adapter_origin(file.path)} for file in prepared.embeddings],
        "closed_loop": r.closed_loop,
        "upscale": {name: getattr(r.upscale, name) for name in r.upscale.__slots__} if r.upscale else None,
        "improved_sampling_seed": r.improved_sampling_seed,
        **video.made,
        **({"batch_size": batch_size} if batch_size > 1 else {}),
        "versions": _versions(),
    }


def _lora(file: AdapterFile) -> dict[str, Any]:
    second = {"second": adapter_origin(file.second)} if file.second else {}
    return {"name": file.name, "strength": file.strength, **adapter_origin(file.path), **second}


def metadata(facts: dict[str, Any]) -> dict[str, str]:
    """Return what goes into a file: the prompts as its title, as its comment the receipt less what changes no pixel."""
    title = " / ".join(span["prompt"] for span in facts["prompts"])
    comment = {name: fact for name, fact in facts.items() if name not in _CHANGES_NO_PIXEL}
    # The kind of device rounds in its own way; which one of several it was does not matter.
    comment["device"] = comment["device"].partition(":")[0]
    return {"title": title, "comment": json.dumps(comment, sort_keys=True, ensure_ascii=False)}


@cache
def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
