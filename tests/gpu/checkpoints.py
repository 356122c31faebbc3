"""Published checkpoints at full size with random weights, made on the device: nothing is downloaded or read.

Geometry, classes and schedulers are those of `tests/models/published`; the dtypes are what the families load with.
Text encoders have all their layers, because the largest component decides what offloading takes, and for Wan 1.3B and
LTX 2B that is the text encoder. Tokenizers are those of the tiny checkpoints, whose words are the first of the real
vocabularies' numbers. A model takes the same weights each time it is made on the same device.

The constructors' own random weights are as good as others for memory and speed. Those of transformers are skipped by
`skeleton.build`, which would leave the memory's former content, so they are drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models import Checkpoint, Family, OnProgress, PreparedRequest, Video, _motion
from models._load import place
from models.loaded import LoadedModel
from models.tiny._parts import clip_tokenizer, t5_tokenizer
from polyreel.entries import Placement, Task
from polyreel.errors import OutOfMemory
from tests.models import skeleton

Module = Any  # torch is imported lazily

#: What the pipelines of diffusers call a prompt's longest, by pipeline class.
_TOKENIZERS = {
    "WanPipeline": lambda: t5_tokenizer(max_length=512),
    "LTXPipeline": lambda: t5_tokenizer(max_length=128),
    "AnimateDiffPipeline": clip_tokenizer,
}


class Built:
    """A family whose checkpoints are made in memory: the folder's name says which of the published ones.

    Args:
        family: the real one, which generates.
        tasks: what its checkpoints are said to do.
    """

    def __init__(self, family: Family, tasks: frozenset[Task]) -> None:
        self.name = family.name
        self._family = family
        self._tasks = tasks

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        return self._tasks

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        import torch

        try:
            pipeline = build_pipeline(checkpoint.path.name, device, dtype)
            if placement.mode in ("cpu_offload", "group_offload"):
                pipeline.to("cpu")  # where a family has its weights when it places them
        except torch.OutOfMemoryError as err:
            raise OutOfMemory(f"{checkpoint.path.name} does not fit on {device}.", "load") from err
        model = place(pipeline, checkpoint, device=device, dtype=dtype, placement=placement)
        model.keep["tasks"] = self._tasks
        return model

    def generate(self, model: LoadedModel, requests: Sequence[PreparedRequest], on_progress: OnProgress) -> list[Video]:
        return self._family.generate(model, requests, on_progress)


def build_pipeline(name: str, device: str, dtype: str) -> Any:
    """Return the pipeline of a published checkpoint on a device.

    Args:
        name: a key of `skeleton.PUBLISHED`.
        dtype: "float32", "bfloat16" or "float16"; parts that a family keeps in float32 are.
    """
    import diffusers
    import torch

    facts = skeleton.published(name)
    wide = skeleton.FLOAT32.get(facts.pipeline, set())
    made: dict[str, Module] = {}
    torch.manual_seed(0)
    for role, config in {**facts.components, **facts.parts}.items():
        is_module = role != "scheduler"
        with torch.device(device if is_module else "cpu"):
            made[role] = skeleton.build(config)
        if is_module:
            if config["_class"].startswith("transformers."):
                _draw(made[role])
            # One after the other: a text encoder in float32 takes 23 GB.
            _convert(made[role], torch.float32 if role in wide else getattr(torch, dtype))
    with torch.device(device):
        pipeline = skeleton.pipeline(name, made)
    pipeline.register_modules(tokenizer=_TOKENIZERS[facts.pipeline]())
    if facts.pipeline == "AnimateDiffPipeline":  # what the family does to one that comes in parts
        _convert(pipeline.unet, getattr(torch, dtype))
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, **_motion.SCHEDULER)
        _motion._empty_motion_adapter(pipeline)
        _motion.mend_clip_skip(pipeline)
    return pipeline


def _draw(module: Module) -> None:
    """Fill a text encoder: matrices so that what goes through keeps its size, norms with 1, biases with 0."""
    import torch

    module.tie_weights()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.0 if "bias" in name else 1.0)


def _convert(module: Module, dtype: Any) -> None:
    """Bring a component to a dtype as `from_pretrained` does: what diffusers keeps in float32 stays."""
    is_diffusers = type(module).__module__.startswith("diffusers.")
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ()) if is_diffusers else set()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
