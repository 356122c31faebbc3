"""LoRAs beside a loaded model: loaded when first asked for, switched per job, never left on for the next one.

A LoRA is loaded into the modules of the pipeline, not the model anew, and stays there switched off until it is the
least recently used one over the budget. Switched off it changes nothing, bit for bit: peft calls the original layer
alone.

Files are checked before and after loading, because diffusers is lenient: it skips what finds no place, and leaves
half of a LoRA in the model when the other half does not fit.

Source: LoRA, arXiv 2106.09685; https://huggingface.co/docs/diffusers/tutorials/using_peft_for_inference
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import structlog

from models import AdapterFile, Pipeline
from models._lora_files import Identity, check_file, complaint, identify, size_of
from polyreel.errors import AdapterUnavailable, OutOfMemory

log = structlog.get_logger()

#: Bytes of LoRA files that stay loaded beside one model when nobody says otherwise.
BUDGET_BYTES = 2e9

#: A LoRA must find a place for this share of its weights. Files for a neighbouring model (image to video on text to
#: video) have a few layers more and are worth running; below one half it is another model's.
MIN_SHARE = 0.5

Module = Any  # a torch.nn.Module; torch is imported lazily


@dataclass
class _Resident:
    """A loaded LoRA: what the catalogue and what peft call it, and the length of its files in bytes."""

    name: str
    adapter: str
    size: int


class Adapters:
    """The LoRAs of one pipeline. Used by one thread at a time.

    Args:
        pipeline: a diffusers pipeline; others over the same modules have the same LoRAs on.

    Attributes:
        budget_bytes: of files that stay loaded between jobs; those of the present job are never unloaded.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.budget_bytes: float = BUDGET_BYTES
        self._pipeline = pipeline
        self._loaded: OrderedDict[Identity, _Resident] = OrderedDict()  # the most recently used last
        self._numbers = count(1)
        for module in self._modules():
            # peft does this when the first LoRA comes. Torch multiplies in another order then, even where nothing is
            # differentiated: frames would differ by a grey level before and after.
            module.requires_grad_(False)

    @property
    def resident(self) -> list[str]:
        """Catalogue names of the LoRAs that are loaded, the most recently used last."""
        return [lora.name for lora in self._loaded.values()]

    @contextmanager
    def using(self, loras: Sequence[AdapterFile]) -> Iterator[None]:
        """Run with `loras` on; afterwards the pipeline makes what it makes without them, bit for bit.

        One file asked for twice counts once, with both strengths together. Strength 0 is off, but the file must be
        fit for use all the same.

        Raises:
            AdapterUnavailable: names the LoRA, what is wrong with it and what to do.
            OutOfMemory: the device has no room for it.
        """
        try:
            strengths: dict[Identity, float] = {}
            for identity, lora in self._bring(loras):
                strengths[identity] = strengths.get(identity, 0.0) + lora.strength
            self._switch({self._loaded[i].adapter: strength for i, strength in strengths.items() if strength})
            yield
        finally:
            self._switch({})
            self._make_room(0, frozenset())

    def unload_all(self) -> None:
        """Take every LoRA out; the modules are again what they were when the model was loaded."""
        self._remove(list(self._loaded))

    def _bring(self, loras: Sequence[AdapterFile]) -> list[tuple[Identity, AdapterFile]]:
        """Load those of the present job that are not there yet, after what has to go for them."""
        wanted = [(identify(lora), lora) for lora in loras]
        present = frozenset(identity for identity, _ in wanted)
        # What was loaded from files that have been replaced since will never be asked for again.
        now = {stamp.path: stamp for identity in present for stamp in identity}
        self._remove([old for old in self._loaded if any(now.get(stamp.path, stamp) != stamp for stamp in old)])
        for identity, lora in wanted:
            if identity not in self._loaded:
                size = size_of(identity)
                self._make_room(size, present)
                self._loaded[identity] = _Resident(lora.name, self._load(lora), size)
            self._loaded[identity].name = lora.name
            self._loaded.move_to_end(identity)
        return wanted

    def _load(self, lora: AdapterFile) -> str:
        """Load a LoRA into the modules; return what peft calls it. After an error nothing of it is left."""
        import torch

        if not hasattr(self._pipeline, "load_lora_weights"):
            raise AdapterUnavailable(f"The LoRA {lora.name} cannot be used: this model takes none; choose another.")
        started = monotonic()
        # No dots, which separate names in a state dict, and no "lora", by which peft tells its layers from others.
        adapter = f"file{next(self._numbers):06}"
        paths = self._paths(lora)
        weights = sum(check_file(lora.name, path) for path in paths)
        try:
            with _ready_for_loading(self._pipeline, self._modules()):
                for number, path in enumerate(paths):
                    self._pipeline.load_lora_weights(
                        str(path.parent),
                        weight_name=path.name,
                        adapter_name=adapter,
                        local_files_only=True,
                        use_safetensors=True,  # or diffusers would try a broken file as a pickle
                        **({"load_into_transformer_2": True} if number else {}),
                    )
            self._check_placed(lora, adapter, weights)
        except torch.OutOfMemoryError as err:
            self._take_out(adapter)
            raise OutOfMemory(f"The device has no room for the LoRA {lora.name}; ask for fewer.", "load") from err
        except AdapterUnavailable:
            self._take_out(adapter)
            raise
        except Exception as err:  # diffusers, peft and transformers raise a dozen kinds
            self._take_out(adapter)
            raise AdapterUnavailable(f"The LoRA {lora.name} {complaint(err)}") from err
        except BaseException:  # a worker that is told to stop
            self._take_out(adapter)
            raise
        for module in self._modules():
            module.eval()  # the new layers come in training mode, in which the dropout of some files is random
        log.info("lora loaded", lora=lora.name, seconds=round(monotonic() - started, 3))
        return adapter

    def _paths(self, lora: AdapterFile) -> list[Path]:
        """Return the file for each transformer: one, or two for Wan 2.2 A14B."""
        if getattr(self._pipeline, "transformer_2", None) is None:
            return [lora.path]
        return [lora.path, lora.second or lora.path]

    def _check_placed(self, lora: AdapterFile, adapter: str, weights: int) -> None:
        """Raise `AdapterUnavailable` unless the weights of a file have found their places in the model."""
        layers = [layer for layer in self._layers() if adapter in layer.lora_A]
        placed = [getattr(layer, side)[adapter].weight for layer in layers for side in ("lora_A", "lora_B")]
        if any(weight.is_meta for weight in placed):
            raise AdapterUnavailable(f"The LoRA {lora.name} lacks weights: its file is incomplete; fetch it again.")
        if len(placed) < weights * MIN_SHARE:
            raise AdapterUnavailable(
                f"The LoRA {lora.name} was made for another model: {len(placed)} of its {weights} weights fit this "
                "one; choose another LoRA or model."
            )
        if len(placed) < weights:
            log.warning("lora fits in part", lora=lora.name, weights=weights, placed=len(placed))

    def _switch(self, strengths: dict[str, float]) -> None:
        """Turn the adapters of these names on, each with its strength, and all others off."""
        if strengths:
            self._pipeline.set_adapters(list(strengths), list(strengths.values()))
            return
        for layer in self._layers() if self._loaded else ():
            # Not diffusers' disable_lora: when an active adapter is taken out, peft makes another one active by itself.
            layer.set_adapter([])

    def _make_room(self, size: int, kept: frozenset[Identity]) -> None:
        """Take out the least recently used until `size` more bytes fit the budget, but none of `kept`."""
        excess = sum(lora.size for lora in self._loaded.values()) + size - self.budget_bytes
        going = []
        for identity, lora in self._loaded.items():
            if excess > 0 and identity not in kept:
                going.append(identity)
                excess -= lora.size
        self._remove(going)

    def _remove(self, identities: Sequence[Identity]) -> None:
        for identity in identities:
            lora = self._loaded.pop(identity)
            self._take_out(lora.adapter)
            log.info("lora unloaded", lora=lora.name)

    def _take_out(self, adapter: str) -> None:
        """Take an adapter out of the modules, also one that was loaded by half."""
        if self._loaded:
            self._switch({})
            self._pipeline.delete_adapters([adapter])
        else:  # it was the only one: the modules get their original layers back
            self._pipeline.unload_lora_weights()

    def _modules(self) -> list[Module]:
        """Return the components that LoRAs change: one transformer or two, or a UNet and its text encoder."""
        found = [getattr(self._pipeline, name, None) for name in getattr(self._pipeline, "_lora_loadable_modules", ())]
        return [module for module in found if module is not None]

    def _layers(self) -> list[Module]:
        """Return peft's layers in all components."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [layer for module in self._modules() for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


@contextmanager
def _ready_for_loading(pipeline: Pipeline, modules: Sequence[Module]) -> Iterator[None]:
    """Make modules that have been offloaded, mended or stored as float8 what diffusers expects to load a LoRA into."""
    offloaded_to = getattr(pipeline, "_offload_device", None) if getattr(pipeline, "_all_hooks", None) else None
    # A text encoder that says it has a text_model is taken for one of older transformers, whose layers had that prefix.
    text_encoder: dict[str, Any] = getattr(getattr(pipeline, "text_encoder", None), "__dict__", {})  # Any: attributes
    text_model = text_encoder.get("text_model")
    float8 = [layer for module in modules for layer in module.modules() if _casting(layer)]
    try:
        if offloaded_to is not None:
            # diffusers does this too, but forgets it when loading fails, and asks for a GPU afterwards.
            pipeline.remove_all_hooks()
        if text_model is not None:
            del text_encoder["text_model"]
        for layer in float8:
            layer.compute_dtype = _casting(layer).compute_dtype  # or peft would round the LoRA to float8 too
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="peft")  # several adapters at once are meant
            yield
    finally:
        for layer in float8:
            del layer.compute_dtype
        if text_model is not None:
            text_encoder["text_model"] = text_model
        if offloaded_to is not None:
            pipeline.enable_model_cpu_offload(device=offloaded_to)


def _casting(layer: Module) -> Any:  # diffusers' hook, which is not typed
    """Return the hook that stores a layer's weights as float8, if it has one."""
    registry = getattr(layer, "_diffusers_hook", None)
    return registry.get_hook("layerwise_casting") if registry else None
