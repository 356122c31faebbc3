"""What is made in the place of a published checkpoint: of its classes and dtypes, fit to run, the same every time.

On the CPU with fewer and thinner layers, so that this code runs somewhere; all else is as published.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models import Checkpoint, PreparedRequest, families
from polyreel.entries import Placement
from tests.gpu import device
from tests.gpu.checkpoints import Built
from tests.gpu.served import SERVED, Size, make_request
from tests.models import skeleton

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

#: Setting of a component -> its value on the CPU; the widths that two components share change in both.
_LEAN: dict[str, Any] = {
    "num_layers": 2,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 3000,
    "d_model": 64,
    "d_ff": 64,
    "num_heads": 2,
    "text_dim": 64,
    "caption_channels": 64,
    "ffn_dim": 64,
    "base_dim": 8,
    "decoder_base_dim": 8,
    "hidden_size": 64,
    "intermediate_size": 64,
    "projection_dim": 64,
}
_LEAN_U_NET: dict[str, Any] = {
    "block_out_channels": [32, 64, 64, 64],
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "motion_num_attention_heads": 2,
}
_LEAN_LTX: dict[str, Any] = {
    "cross_attention_dim": 128,  # heads x width of a head
    "block_out_channels": [32, 64, 128, 128],
    "decoder_block_out_channels": [32, 64, 128, 128],
}


def lean(name: str) -> skeleton.Published:
    """Return the facts of a published checkpoint with fewer and thinner layers."""
    facts = skeleton.published(name)
    changes = {**_LEAN, **(_LEAN_LTX if name == "ltx" else _LEAN_U_NET)}

    def shrink(components: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            role: {setting: changes.get(setting, value) for setting, value in config.items()}
            for role, config in components.items()
        }

    return replace(facts, components=shrink(facts.components), parts=shrink(facts.parts))


@pytest.mark.parametrize("name", SERVED)
def test_a_checkpoint_that_is_made_runs_like_one_that_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    import torch

    if device.ON_CPU:
        facts = lean(name)
        monkeypatch.setattr(skeleton, "published", lambda _: facts)
    served = SERVED[name]
    family = Built(families()[served.family], frozenset(served.tasks))

    def make(mode: str) -> Any:
        placement = Placement.model_validate({"mode": mode})
        return family.load(Checkpoint(tmp_path / name), device=device.DEVICE, dtype="bfloat16", placement=placement)

    videos = []
    for mode in ("resident", "resident", "cpu_offload"):
        device.forget_peak()
        model = make(mode)
        dtypes = {role: part.dtype for role, part in model.pipeline.components.items() if hasattr(part, "dtype")}
        float32 = {role for role, dtype in dtypes.items() if dtype == torch.float32}
        request = make_request(name, Size(9, 64, 64))
        [video] = family.generate(model, [PreparedRequest(request)], lambda progress: None)
        videos.append(video.frames)
        del model

    assert float32 == ({"vae"} if served.family == "wan" else set())
    assert videos[0].shape == (9, 64, 64, 3)
    assert videos[0].std() > 1
    assert [abs(video.astype(int) - videos[0]).max() <= 2 for video in videos] == [True, True, True]
