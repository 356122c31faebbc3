"""Where the weights live: what each placement takes of the device, and that it changes no picture."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import numpy as np
import pytest

from models import PreparedRequest, families
from models.loaded import LoadedModel
from polyreel.entries import Placement
from tests.gpu import device
from tests.gpu.report import Report, gigabytes
from tests.gpu.served import SERVED, make_request

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

#: Name in the table -> where the weights live.
PLACEMENTS = {
    "resident": Placement(mode="resident"),
    "cpu_offload": Placement(mode="cpu_offload"),
    "group_offload": Placement(mode="group_offload"),
    "resident, fp8": Placement(mode="resident", fp8=True),
}

#: Grey levels by which float8 may change a pixel in the mean; noise that has nothing to do with it differs by 60.
FP8_DIFFERENCE = 20


def generate(model: LoadedModel, name: str, report: Report | None = None, placement: str = "") -> np.ndarray:
    """Make a video of two steps at the published size; note what it took. Returns signed numbers."""
    served = SERVED[name]
    device.forget_peak()
    since = monotonic()
    request = make_request(name, served.size)
    [video] = families()[served.family].generate(model, [PreparedRequest(request)], lambda progress: None)
    device.synchronize()
    if report is not None:
        report.add(
            "Memory of the device while a job of two steps runs",
            model=name,
            size=str(served.size),
            placement=placement,
            peak=gigabytes(device.peak_bytes()),
            weights_in_all=gigabytes(model.weights_bytes),
            seconds=f"{monotonic() - since:.1f}",
        )
    return video.frames.astype(int)


@pytest.fixture(scope="module")
def resident_frames() -> dict[str, np.ndarray]:
    """What each model makes while it is resident, by its name: kept without the model, for the tests that compare."""
    return {}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", SERVED)
def test_every_placement_makes_the_frames_that_the_resident_model_makes(
    load: Callable[..., LoadedModel],
    resident_frames: dict[str, np.ndarray],
    report: Report,
    name: str,
    placement: str,
) -> None:
    if name not in resident_frames:
        resident_frames[name] = generate(load(name), name)
    reference = resident_frames[name]

    model = load(name, PLACEMENTS[placement])
    frames = generate(model, name, report, placement)

    assert (model.placement.mode, bool(model.placement.fp8)) == (PLACEMENTS[placement].mode, "fp8" in placement)
    difference = np.abs(frames - reference)
    if model.placement.fp8:
        assert 0 < difference.mean() < FP8_DIFFERENCE
    else:
        assert difference.max() <= 2
