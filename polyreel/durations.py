"""How long a job takes by itself, from what such jobs took before; loading its model is left out.

That is what jobs of its shape took lately on its model, else its work at the model's measured rates
(`polyreel.admission`), else unknown: nothing is made up. All machines count as one: their mean is what a client meets.
"""

from __future__ import annotations

from collections.abc import Mapping

from polyreel.admission import Rates, work
from polyreel.entries import ServedModel
from polyreel.request import VideoRequest

#: How far a mean moves towards the newest measurement, 0..1.
NEWEST = 0.3


def shape_of(request: VideoRequest) -> str:
    """Return what of a request decides its seconds on one model, e.g. "81x480x832x30+cfg".

    Frames, height, width and steps, then a mark for each thing that adds passes or changes them. Texts, seeds and
    strengths are left out, and so are the file formats: a shape that is too fine is never measured twice.
    """
    marks = []
    if request.guidance_scale > 1:
        marks.append("cfg")
    if request.improved_sampling_seed is not None:
        marks.append("freeinit")
    if len(request.prompts) > 1:
        marks.append(f"{len(request.prompts)}prompts")
    if request.closed_loop:
        marks.append("loop")
    if request.images:
        marks.append(f"{len(request.images)}images")
    if request.upscale:
        up = request.upscale
        steps = max(1, int(up.strength * up.num_inference_steps)) if up.strength else 0
        marks.append(f"up{up.height}x{up.width}x{steps}{'cfg' if up.guidance_scale > 1 else ''}")
    size = f"{request.num_frames}x{request.height}x{request.width}x{request.num_inference_steps}"
    return "+".join([size, *marks])


def seconds_key(request: VideoRequest) -> str:
    """Return the name under which the seconds of a request's model and shape are kept."""
    return f"{request.model}/{shape_of(request)}"


def towards(mean_s: float | None, newest_s: float) -> float:
    """Return a moving mean with one more measurement in it; the first one is the mean."""
    return newest_s if mean_s is None else mean_s + NEWEST * (newest_s - mean_s)


def own_seconds(
    entry: ServedModel | None, request: VideoRequest, measured_s: Mapping[str, float], rates: Rates | None
) -> float | None:
    """Return how long a job takes by itself, loading left out; None before anything of its model was measured.

    Args:
        entry: the catalogue's, None when the model is not served any more.
        measured_s: moving means by `seconds_key`.
        rates: the model's, None before its first job.
    """
    known = measured_s.get(seconds_key(request))
    if known is not None:
        return known
    return work(entry, request).seconds(rates) if entry and rates else None


def remaining_s(seconds: float | None, progress: float, loading_s: float = 0.0) -> float | None:
    """Return what is left of a running job.

    Args:
        seconds: of the whole job, None for unknown.
        progress: percent, 0..100.
        loading_s: what is left of loading its model.
    """
    return None if seconds is None else max(0.0, loading_s) + seconds * (1 - min(100.0, progress) / 100)
