"""A checkpoint in memory: its pipeline, the other pipelines that share its weights, and its adapters."""

from __future__ import annotations

from typing import Any

from models import Checkpoint, Pipeline
from models._adapters import Adapters
from models._origins import checkpoint_origin
from models.placement import weights_bytes
from polyreel.entries import Placement


class LoadedModel:
    """What `Family.load` returns and `Family.generate` runs. Used by one thread at a time.

    Args:
        pipeline: the diffusers pipeline that owns the components; carries the offload hooks.
        checkpoint: what it was loaded from.
        device, dtype, placement: as they came out, "auto" decided.

    Attributes:
        adapters: the LoRAs that are loaded beside it.
        weights_bytes: of all components as they were loaded, wherever they are.
        ran: class names of the pipelines that the batch in progress has called, in order; kept by `models._run`.
        keep: whatever else a family loads once and keeps with the model, by name.
    """

    def __init__(
        self, pipeline: Pipeline, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement
    ) -> None:
        self.pipeline = pipeline
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.placement = placement
        self.adapters = Adapters(pipeline)
        self.weights_bytes = weights_bytes(pipeline)
        self.ran: list[str] = []
        self.keep: dict[str, Any] = {}  # Any: a family's own
        self._variants: dict[str, Pipeline] = {}
        # Now, while the files on disk are the ones that were loaded.
        self._origin = checkpoint_origin(checkpoint.path, checkpoint.name)
        self._parts = {
            role: checkpoint_origin(path, checkpoint.part_names.get(role, ""))
            for role, path in checkpoint.parts.items()
        }

    def variant(self, class_name: str, **components: Any) -> Pipeline:
        """Return a pipeline of another diffusers class over the same weights, made once per class.

        Not `from_pipe`: that one converts every component to float32.

        Args:
            components: those that the class has and the pipeline has not, or other ones in their place; not looked at
                again when the variant exists.
        """
        if class_name not in self._variants:
            import diffusers

            pipeline_class = getattr(diffusers, class_name)
            expected, optional = pipeline_class._get_signature_keys(pipeline_class)
            own = {name: component for name, component in self.pipeline.components.items() if name in expected}
            settings = {name: value for name, value in self.pipeline.config.items() if name in optional}
            variant = pipeline_class(**{**settings, **own, **components})
            variant.set_progress_bar_config(disable=True)
            self._variants[class_name] = variant
        return self._variants[class_name]

    def rest(self) -> None:
        """Bring offload hooks and step caches back to where they are between calls.

        A pipeline does this itself at the end of a good call only. Without it a cancelled request leaves its caches
        to the next one, which then differs, or fails on another size.
        """
        self.pipeline.maybe_free_model_hooks()

    def facts(self) -> dict[str, Any]:
        """Return what the receipt of every video says of the model. Plain JSON, no path of this machine."""
        native = self.checkpoint.native
        return {
            **self._origin,
            "parts": self._parts,
            "dtype": self.dtype,
            "device": self.device,
            "placement": self.placement.mode,
            "fp8": bool(self.placement.fp8),
            "vae_tiling": self.placement.vae_tiling,
            "vae_slicing": self.placement.vae_slicing,
            "attention": self.checkpoint.attention or "native",
            "step_cache": self.checkpoint.step_cache,
            "scheduler_settings": self.checkpoint.scheduler,
            # It decides what is denoised, so a snapshot is of these sizes alone; said where it is set.
            **({"native": native.model_dump(mode="json")} if native else {}),
        }
