"""Seconds per step at the published sizes, beside the physical floor; printed, and never asserted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from time import monotonic
from typing import Any

import pytest

from models import PreparedRequest, Progress, families
from models.loaded import LoadedModel
from tests.gpu import device
from tests.gpu.report import Report, gigabytes
from tests.gpu.served import SERVED, make_request
from tests.models import skeleton

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

#: diffusers' names of attention backends, None for its default; on the CPU cuDNN's is not to be had.
BACKENDS = ("native", "_native_math" if device.ON_CPU else "_native_cudnn")

#: What is timed. The U-Net of AnimateDiff takes no other backend than the default.
TIMED = [(name, backend) for name in SERVED if name != "sd15-animatediff" for backend in BACKENDS]
TIMED += [("sd15-animatediff", None)]

STEPS = 3 if device.ON_CPU else 8


@pytest.mark.parametrize(("name", "attention"), TIMED)
def test_the_seconds_of_a_step_are_told_beside_the_floor(
    load: Callable[..., LoadedModel], report: Report, name: str, attention: str | None
) -> None:
    served = SERVED[name]
    model = load(name, attention=attention)
    done_at: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "denoising" and progress.step > len(done_at):
            device.synchronize()  # a step has only been asked for when diffusers says that it is done
            done_at.append(monotonic())

    request = make_request(name, served.size, num_inference_steps=STEPS)
    device.forget_peak()
    [video] = families()[served.family].generate(model, [PreparedRequest(request)], watch)

    assert len(done_at) == STEPS
    assert video.frames.shape == (served.size.num_frames, served.size.height, served.size.width, 3)
    # Without the first step, in which kernels are chosen and memory is taken.
    step_s = median(end - start for start, end in pairwise(done_at))
    report.add(
        "Seconds per denoising step with guidance, median",
        model=name,
        size=str(served.size),
        attention=attention or "default",
        seconds_per_step=f"{step_s:.4f}",
        floor="–" if device.ON_CPU else f"{served.floor_s:.4f}",
        share_of_the_floor="–" if device.ON_CPU else f"{100 * served.floor_s / step_s:.0f} %",
        text_s=f"{video.seconds['text_encoding']:.2f}",
        decoding_s=f"{video.seconds['decoding']:.2f}",
        peak=gigabytes(device.peak_bytes()),
    )


def wan(made: dict[str, Any], *latents: int) -> None:
    """Call a Wan transformer with 512 tokens of text."""
    import torch

    made["transformer"](torch.zeros(latents), torch.zeros(latents[0]), torch.zeros(latents[0], 512, 4096))


def ltx(made: dict[str, Any], batch: int, frames: int, height: int, width: int) -> None:
    """Call an LTX transformer with 128 tokens of text."""
    import torch

    made["transformer"](
        hidden_states=torch.zeros(batch, frames * height * width, 128),
        encoder_hidden_states=torch.zeros(batch, 128, 4096),
        timestep=torch.zeros(batch),
        encoder_attention_mask=torch.ones(batch, 128),
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(1 / 3, 32, 32),
    )


def animatediff(made: dict[str, Any], *latents: int) -> None:
    """Call AnimateDiff's U-Net with 77 tokens of text for each frame."""
    import diffusers
    import torch

    unet = diffusers.UNetMotionModel.from_unet2d(made["unet"], made["motion_adapter"], load_weights=False).eval()
    unet(torch.zeros(latents), torch.tensor(1.0), torch.zeros(latents[0] * latents[2], 77, 768))


#: Model -> what calls its denoiser, and the shape of its latents at the published size, a batch of 2 for guidance.
CALLS: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
    "wan2.1-1.3b": (wan, (2, 16, 21, 60, 104)),
    "wan2.2-5b": (wan, (2, 48, 31, 44, 80)),
    "ltx": (ltx, (2, 16, 16, 24)),
    "sd15-animatediff": (animatediff, (2, 4, 16, 64, 64)),
}


@pytest.mark.parametrize("name", SERVED)
def test_the_floor_is_what_torch_counts_for_the_published_geometry(name: str) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    facts = skeleton.published(name)
    call, latents = CALLS[name]
    denoiser = {"transformer", "unet", "motion_adapter"}
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        made = {
            role: skeleton.build(config)
            for role, config in {**facts.components, **facts.parts}.items()
            if role in denoiser
        }
        call(made, *latents)
    assert counter.get_total_flops() == pytest.approx(SERVED[name].step_flop, rel=0.01)
