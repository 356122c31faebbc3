"""LoRAs change a model for one job, as much as was asked, and are gone afterwards; a bad one fails that job alone."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import AdapterFile, PreparedRequest
from models._adapters import Adapters
from models.tiny import TINY, build, layout_version
from models.tiny.adapters import ADAPTERS, kohya_lora, transformer_lora
from polyreel.errors import AdapterUnavailable, Cancelled, OutOfMemory
from polyreel.request import VideoRequest
from tests.models.conftest import FAMILY_OF, Loaded, load_tiny, with_pictures

#: One checkpoint of every kind (one transformer, two transformers, one with sound, UNet and text encoder) and two LoRAs
#: that fit it.
LORAS = {
    "wan-ti2v": ("lora-wan", "lora-wan-other"),
    "wan22-t2v": ("lora-wan", "lora-wan-other"),
    "ltx": ("lora-ltx", "lora-ltx-other"),
    "ltx2": ("lora-ltx2", "lora-ltx2-other"),
    "animatediff": ("lora-animatediff", "lora-animatediff-other"),
}


@pytest.fixture(scope="module", params=list(LORAS))
def model(request: pytest.FixtureRequest, load: Callable[[str], Loaded]) -> Loaded:
    """One model for all tests: what one leaves behind, the next would see."""
    return load(request.param)


@pytest.fixture(scope="module")
def untouched(load: Callable[[str], Loaded]) -> Callable[[str], Loaded]:
    """Return a model that has never seen a LoRA."""
    found: dict[str, Loaded] = {}
    return lambda name: found.setdefault(name, load(name))


@pytest.fixture
def job(ask: Callable[..., VideoRequest]) -> VideoRequest:
    """One frame is enough to see a LoRA."""
    return ask(num_frames=1)


@pytest.fixture
def alone(model: Loaded, untouched: Callable[[str], Loaded], job: VideoRequest) -> np.ndarray:
    """What the model makes of the job before it has ever seen a LoRA."""
    return untouched(model.name).generate(job)


@pytest.fixture
def lora(model: Loaded, tiny_root: Path) -> Callable[..., AdapterFile]:
    """Return the first (0) or second (1) LoRA that fits the model."""

    def lora(number: int = 0, strength: float = 1.0, **fields: Any) -> AdapterFile:
        name = LORAS[model.name][number]
        return AdapterFile(name, build(name, tiny_root), strength=strength, **fields)

    return lora


@pytest.fixture(autouse=True)
def _off_and_unloaded_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test starts with nothing loaded and default limits."""
    yield
    if "model" in request.fixturenames:
        adapters = request.getfixturevalue("model").model.adapters
        adapters.budget_bytes = 2e9
        adapters.unload_all()


def run(model: Loaded, request: Any, *loras: AdapterFile) -> np.ndarray:
    """Return the frames of a job with LoRAs."""
    return model.generate(PreparedRequest(request, loras=loras))


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """Mean difference of 8-bit values."""
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


def modules(model: Loaded) -> list[tuple[str, int]]:
    """Every module of the model by name and identity."""
    return [
        (f"{part}.{name}", id(module))
        for part, component in model.pipeline.components.items()
        if hasattr(component, "named_modules")
        for name, module in component.named_modules()
    ]


def save(tensors: dict[str, Any], path: Path, **metadata: str) -> Path:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt", **metadata})
    return path


# The files themselves


@pytest.mark.slow
def test_another_process_builds_the_same_files(tiny_root, tmp_path):
    code = (
        "import sys; from pathlib import Path; from models.tiny import ADAPTERS, build\n"
        "for name in ADAPTERS: build(name, Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], check=True)

    for name in ADAPTERS:
        path = build(name, tmp_path)
        assert path.name == f"{name}-{layout_version()}.safetensors"
        assert path.read_bytes() == build(name, tiny_root).read_bytes()
    assert len([path for path in tmp_path.iterdir() if not path.name.startswith(".")]) == len(ADAPTERS)


def test_a_file_that_a_killed_builder_left_by_half_is_replaced(tiny_root, tmp_path):
    (tmp_path / f".lora-ltx-{layout_version()}.safetensors.unfinished").write_bytes(b"half")

    assert build("lora-ltx", tmp_path).read_bytes() == build("lora-ltx", tiny_root).read_bytes()
    assert not list(tmp_path.glob(".*.unfinished"))


def test_the_tiny_embedding_has_three_vectors_of_the_tiny_text_encoders_width(tiny_root):
    from safetensors import safe_open

    with safe_open(build("embedding-animatediff", tiny_root), framework="numpy") as file:
        assert {key: file.get_slice(key).get_shape() for key in file.keys()} == {"emb_params": [3, 16]}  # noqa: SIM118


# What a LoRA does


def test_the_stronger_a_lora_the_further_from_the_model_alone(model, lora, ask):
    without = run(model, ask())
    distances = [distance(run(model, ask(), lora(0, strength)), without) for strength in (0.25, 0.5, 1.0)]

    assert distances[0] > 0.2
    assert distances[1] > 1.2 * distances[0]
    assert distances[2] > 1.2 * distances[1]


def test_a_lora_is_what_its_matrices_say(model, alone, load, lora, job):
    merged = load(model.name)
    for adapter in (lora(0, 0.75), lora(1, 0.5)):
        merge(merged, adapter)

    with_loras = run(model, job, lora(0, 0.75), lora(1, 0.5))

    assert distance(with_loras, run(merged, job)) < 0.1
    assert distance(with_loras, alone) > 0.3


def merge(model: Loaded, adapter: AdapterFile) -> None:
    """Add a LoRA to the weights by hand: W + strength * alpha / rank * up @ down."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(adapter.path)
    parts = {
        "transformer": ("transformer",),
        "transformer_2": ("transformer",),  # from the same file
        "unet": ("unet", "lora_unet"),
        "text_encoder": ("text_encoder", "lora_te_text_model"),
    }
    changed = 0
    for part, prefixes in parts.items():
        component = getattr(model.pipeline, part, None)
        for name, layer in component.named_modules() if component is not None else ():
            for prefix in prefixes:
                key = f"{prefix}.{name}"
                down, up, alpha = tensors.get(f"{key}.lora_A.weight"), tensors.get(f"{key}.lora_B.weight"), None
                if down is None:
                    key = f"{prefix}_{name.replace('.', '_')}"
                    down, up = tensors.get(f"{key}.lora_down.weight"), tensors.get(f"{key}.lora_up.weight")
                    alpha = tensors.get(f"{key}.alpha")
                if down is not None:
                    scale = 1.0 if alpha is None else float(alpha) / len(down)
                    with torch.no_grad():
                        layer.weight += adapter.strength * scale * (up @ down)
                    changed += 1
    assert changed >= 16


def test_strength_zero_is_none_bit_for_bit(model, alone, lora, job):
    assert np.array_equal(run(model, job, lora(0, 0.0)), alone)
    # Also beside one that is on.
    assert np.array_equal(run(model, job, lora(0, 0.0), lora(1)), run(model, job, lora(1)))


def test_the_next_job_without_a_lora_is_what_a_job_before_was(model, alone, lora, job):
    run(model, job, lora(0), lora(1))

    assert np.array_equal(run(model, job), alone)


def test_the_order_of_jobs_does_not_matter(model, load, lora, job):
    jobs = [(lora(0),), (), (lora(1, 0.5),), (lora(0, 0.3), lora(1, 0.6)), (lora(0, 0.0),)]
    forwards = [run(model, job, *loras) for loras in jobs]
    other = load(model.name)
    backwards = [run(other, job, *loras) for loras in reversed(jobs)]

    for left, right in zip(forwards, reversed(backwards), strict=True):
        assert np.array_equal(left, right)
    assert len({frames.tobytes() for frames in forwards}) == 4  # strength 0 is none


@pytest.mark.parametrize("model", ["wan22-t2v", "animatediff"], indirect=True)
def test_five_loras_run_together_each_with_its_own_strength(model, load, job, tmp_path):
    strengths = (0.2, 0.4, 0.1, 0.3, 0.5)
    loras = [
        AdapterFile(
            f"style-{n}", save(tensors_for(model, seed=30 + n), tmp_path / f"{n}.safetensors"), strength=strength
        )
        for n, strength in enumerate(strengths)
    ]
    merged = load(model.name)
    for adapter in loras:
        merge(merged, adapter)

    assert distance(run(model, job, *loras), run(merged, job)) < 0.1
    assert model.model.adapters.resident == ["style-0", "style-1", "style-2", "style-3", "style-4"]


def tensors_for(model: Loaded, seed: int) -> dict[str, Any]:
    """Return a LoRA of its own for a tiny checkpoint."""
    if FAMILY_OF[model.name] == "animatediff":
        return kohya_lora(seed, 0.3)
    return transformer_lora(partial(TINY[model.name].make), seed, 0.3)


@pytest.mark.parametrize("model", ["ltx"], indirect=True)
def test_a_file_asked_for_twice_counts_once_with_both_strengths(model, lora, job):
    from dataclasses import replace

    twice = run(model, job, lora(0, 0.25), replace(lora(0, 0.5), name="the same by another name"))

    assert np.array_equal(twice, run(model, job, lora(0, 0.75)))
    assert len(model.model.adapters.resident) == 1


@pytest.mark.parametrize("model", ["wan-ti2v", "ltx", "ltx2", "animatediff"], indirect=True)
def test_a_job_from_a_picture_has_its_lora_too(model, lora, ask):
    request = with_pictures(ask(), 0)
    without = model.generate(request)

    with_lora = model.generate(PreparedRequest(request.request, request.images, loras=(lora(),)))

    assert distance(with_lora, without) > 1
    assert np.array_equal(model.generate(request), without)


def test_loras_run_in_bfloat16(model, lora, job):
    half = load_tiny(model.name, model.folder, dtype="bfloat16")
    without = run(half, job)

    assert distance(run(half, job, lora()), without) > 0.5
    assert np.array_equal(run(half, job), without)


def test_each_transformer_of_wan22_takes_its_own_file(load, tiny_root, ask):
    model = load("wan22-t2v")
    high, low = (build(name, tiny_root) for name in LORAS["wan22-t2v"])
    # At step 0 of 4 the first transformer is at work, at the last steps the second one.
    request = ask(num_frames=1, num_inference_steps=4)
    same = run(model, request, AdapterFile("style", high))
    own = run(model, request, AdapterFile("style", high, second=low))
    swapped = run(model, request, AdapterFile("style", low, second=high))

    assert len({same.tobytes(), own.tobytes(), swapped.tobytes(), run(model, request).tobytes()}) == 4
    assert np.array_equal(run(model, request, AdapterFile("style", high, second=high)), same)


def as_wan_trainers_name_it(key: str) -> str:
    """Return the name of a weight in the original code of Wan."""
    for ours, theirs in {
        "transformer.": "diffusion_model.",
        "attn1.": "self_attn.",
        "attn2.": "cross_attn.",
        "to_q.": "q.",
        "to_k.": "k.",
        "to_v.": "v.",
        "to_out.0.": "o.",
        "ffn.net.0.proj.": "ffn.0.",
        "ffn.net.2.": "ffn.2.",
    }.items():
        key = key.replace(ours, theirs)
    return key


def as_ltx_trainers_name_it(key: str) -> str:
    """Return the name of a weight in the original code of LTX-Video."""
    return key.replace("transformer.", "diffusion_model.", 1)


@pytest.mark.parametrize(
    ("model", "rename"),
    [("wan-ti2v", as_wan_trainers_name_it), ("wan22-t2v", as_wan_trainers_name_it), ("ltx", as_ltx_trainers_name_it)],
    indirect=["model"],
)
def test_a_lora_with_the_names_of_the_original_code_does_the_same(model, lora, job, tmp_path, rename):
    from safetensors.torch import load_file

    tensors = {rename(key): value for key, value in load_file(lora().path).items()}
    assert all(key.startswith("diffusion_model.") for key in tensors)
    renamed = AdapterFile("original", save(tensors, tmp_path / "original.safetensors"))

    assert np.array_equal(run(model, job, renamed), run(model, job, lora()))


def test_a_lora_for_convolutions_works(load, job, tmp_path):
    import torch

    model = load("animatediff")
    merged = load("animatediff")
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, layer in merged.pipeline.unet.named_modules():
        if isinstance(layer, torch.nn.Conv2d) and name.endswith(("conv1", "conv2", "attentions.0.proj_in")):
            down = torch.randn(4, layer.in_channels, *layer.kernel_size, generator=generator) * 0.1
            up = torch.randn(layer.out_channels, 4, 1, 1, generator=generator) * 0.1
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
            with torch.no_grad():
                layer.weight += 0.5 * torch.einsum("orxy,rihw->oihw", up, down)
    assert len(tensors) >= 20
    without = run(model, job)

    with_lora = run(model, job, AdapterFile("locon", save(tensors, tmp_path / "locon.safetensors")))

    assert distance(with_lora, run(merged, job)) < 0.1
    assert distance(with_lora, without) > 0.5
    assert np.array_equal(run(model, job), without)


@pytest.mark.parametrize("prefix", ["lora_unet", "lora_te"])
def test_the_part_of_a_lora_for_the_unet_or_the_text_encoder_works_alone(load, ask, job, tmp_path, prefix):
    tensors = {key: value for key, value in kohya_lora(15, 0.5).items() if key.startswith(prefix)}
    adapter = AdapterFile("part", save(tensors, tmp_path / "part.safetensors"))
    model = load("animatediff")
    without, skipping = run(model, job), run(model, ask(num_frames=1, clip_skip=2))

    assert distance(run(model, job, adapter), without) > 0.5
    assert distance(run(model, ask(num_frames=1, clip_skip=2), adapter), skipping) > 0.5
    assert np.array_equal(run(model, job), without)
    assert np.array_equal(run(model, ask(num_frames=1, clip_skip=2)), skipping)


def test_a_lora_for_motion_modules_works_in_long_videos_and_leaves_them_alone_afterwards(load, tiny_root, ask):
    model = load("animatediff")
    motion = AdapterFile("zoom", build("lora-animatediff-motion", tiny_root))
    plain, long = run(model, ask()), run(model, ask(num_frames=33))

    assert distance(run(model, ask(), motion), plain) > 1
    assert distance(run(model, ask(num_frames=33), motion), long) > 1
    assert model.model.adapters.resident == ["zoom"]
    assert np.array_equal(run(model, ask(num_frames=33)), long)
    assert np.array_equal(run(model, ask()), plain)


def test_a_lora_trained_with_dropout_gives_the_same_video_twice(load, job, tmp_path):
    model = load("ltx")
    tensors = transformer_lora(TINY["ltx"].make, 11, 0.7)
    settings = {
        "r": 4,
        "lora_alpha": 4,
        "lora_dropout": 0.5,
        "target_modules": ["to_q"],
        "init_lora_weights": "gaussian",
    }
    metadata = json.dumps({f"transformer.{name}": value for name, value in settings.items()})
    dropping = AdapterFile("dropping", save(tensors, tmp_path / "dropping.safetensors", lora_adapter_metadata=metadata))

    first = run(model, job, dropping)

    assert distance(first, run(model, job)) > 1
    assert np.array_equal(run(model, job, dropping), first)
    assert np.array_equal(run(model, job, AdapterFile("plain", save(tensors, tmp_path / "plain.safetensors"))), first)


# What stays loaded


def test_a_lora_is_loaded_once_and_the_model_not_again(model, lora, job, monkeypatch):
    loads = []
    real = model.pipeline.load_lora_weights
    monkeypatch.setattr(
        model.pipeline, "load_lora_weights", lambda *args, **kwargs: (loads.append(kwargs), real(*args, **kwargs))
    )
    components = {name: id(component) for name, component in model.pipeline.components.items()}
    per_lora = 2 if model.name == "wan22-t2v" else 1

    first = run(model, job, lora())
    assert len(loads) == per_lora
    run(model, job, lora(1))
    assert len(loads) == 2 * per_lora
    again = run(model, job, lora())
    assert len(loads) == 2 * per_lora

    assert np.array_equal(again, first)
    assert {name: id(component) for name, component in model.pipeline.components.items()} == components


def test_after_unloading_the_modules_are_the_same_objects_as_before(model, alone, lora, job):
    before = modules(model)
    run(model, job, lora(0), lora(1))
    assert modules(model) != before

    model.model.adapters.unload_all()

    assert modules(model) == before
    assert model.model.adapters.resident == []
    assert np.array_equal(run(model, job), alone)


@pytest.mark.parametrize("model", ["ltx"], indirect=True)
def test_the_least_recently_used_goes_when_the_files_exceed_the_budget(model, alone, lora, job, tmp_path):
    third = AdapterFile("third", save(tensors_for(model, seed=33), tmp_path / "third.safetensors"))
    first, second = lora(0), lora(1)
    adapters = model.model.adapters
    adapters.budget_bytes = 2.5 * first.path.stat().st_size

    run(model, job, first)
    run(model, job, second)
    before = run(model, job, first)
    assert adapters.resident == [second.name, first.name]
    run(model, job, third)
    assert adapters.resident == [first.name, "third"]

    assert np.array_equal(run(model, job, first), before)
    assert np.array_equal(run(model, job), alone)


@pytest.mark.parametrize("model", ["ltx"], indirect=True)
def test_loras_of_one_job_may_exceed_the_budget_together_but_do_not_stay(model, lora, job):
    adapters = model.model.adapters
    both = run(model, job, lora(0), lora(1))
    adapters.unload_all()
    before = modules(model)

    adapters.budget_bytes = 1.5 * lora().path.stat().st_size
    assert np.array_equal(run(model, job, lora(0), lora(1)), both)
    assert adapters.resident == [lora(1).name]

    adapters.budget_bytes = 0
    assert np.array_equal(run(model, job, lora(0), lora(1)), both)
    assert adapters.resident == []
    assert modules(model) == before


@pytest.mark.parametrize("model", ["ltx"], indirect=True)
def test_a_file_that_was_replaced_is_loaded_anew(model, lora, job, tmp_path):
    path = tmp_path / "style.safetensors"
    path.write_bytes(lora(0).path.read_bytes())
    style = AdapterFile("style", path)
    old, new = run(model, job, lora(0)), run(model, job, lora(1))
    assert np.array_equal(run(model, job, style), old)

    replacement = tmp_path / "replacement"
    replacement.write_bytes(lora(1).path.read_bytes())
    os.utime(replacement, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # as a synchronised copy would
    replacement.replace(path)

    assert np.array_equal(run(model, job, style), new)
    assert model.model.adapters.resident.count("style") == 1


def test_loras_are_off_after_a_job_that_was_cancelled(model, alone, lora, job):
    def cancel(progress):
        if progress.stage == "denoising":
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        model.generate(PreparedRequest(job, loras=(lora(),)), cancel)

    assert np.array_equal(run(model, job), alone)


# What goes wrong


def cut_short(path: Path, good: Path, model: Loaded) -> None:
    path.write_bytes(good.read_bytes()[:-100])


def empty(path: Path, good: Path, model: Loaded) -> None:
    path.write_bytes(b"")


def web_page(path: Path, good: Path, model: Loaded) -> None:
    path.write_text("<html>Log in to download this file</html>")


def pickled(path: Path, good: Path, model: Loaded) -> None:
    path.write_bytes(pickle.dumps({"lora": [1.0]}))


def missing(path: Path, good: Path, model: Loaded) -> None:
    """There is no file."""


def for_other_sizes(path: Path, good: Path, model: Loaded) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(good)
    # The last layer only: all others are in place by then.
    last = [key for key in tensors if key.endswith(("lora_A.weight", "lora_down.weight"))][-1]
    save({**tensors, last: torch.cat([tensors[last]] * 2, dim=1)}, path)


def for_another_model(path: Path, good: Path, model: Loaded) -> None:
    layers = "single_transformer_blocks.{}.attn.to_q.lora_{}.weight"
    prefix = "unet" if model.name == "animatediff" else "transformer"
    save(zeros({f"{prefix}.{layers.format(n, side)}": (4, 4) for n in range(4) for side in "AB"}), path)


def for_a_model_of_other_names(path: Path, good: Path, model: Loaded) -> None:
    save(zeros({f"other_model.{n}.lora_{side}.weight": (4, 4) for n in range(4) for side in "AB"}), path)


def mostly_for_another_model(path: Path, good: Path, model: Loaded) -> None:
    from safetensors.torch import load_file

    prefix = "unet" if model.name == "animatediff" else "transformer"
    if model.name == "animatediff":
        extra = [f"lora_unet_strange_{n}_to_q.lora_{side}.weight" for n in range(300) for side in ("down", "up")]
    else:
        extra = [f"{prefix}.strange.{n}.to_q.lora_{side}.weight" for n in range(300) for side in "AB"]
    save({**load_file(good), **zeros(dict.fromkeys(extra, (4, 4)))}, path)


def without_half_of_its_matrices(path: Path, good: Path, model: Loaded) -> None:
    from safetensors.torch import load_file

    tensors = load_file(good)
    lost = [key for key in tensors if key.endswith(("lora_B.weight", "lora_up.weight"))][-1]
    save({key: value for key, value in tensors.items() if key != lost}, path)


def dora(path: Path, good: Path, model: Loaded) -> None:
    from safetensors.torch import load_file

    tensors = load_file(good)
    first = next(iter(tensors)).rsplit(".", 2)[0]
    save({**tensors, **zeros({f"{first}.dora_scale": (4, 1)})}, path)


def embedding(path: Path, good: Path, model: Loaded) -> None:
    save(zeros({"emb_params": (3, 16)}), path)


def rewriting_the_model(path: Path, good: Path, model: Loaded) -> None:
    from safetensors.torch import load_file

    settings = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.init_lora_weights": "olora"})
    save(load_file(good), path, lora_adapter_metadata=settings)


def damaged_settings(path: Path, good: Path, model: Loaded) -> None:
    from safetensors.torch import load_file

    save(load_file(good), path, lora_adapter_metadata="{")


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    import torch

    return {key: torch.zeros(shape) for key, shape in shapes.items()}


#: What is wrong with a file, whatever the model.
BAD_FILES = {
    missing: "is missing on this machine",
    cut_short: "is cut short or is not safetensors",
    empty: "is cut short or is not safetensors",
    web_page: "is cut short or is not safetensors",
    pickled: "is cut short or is not safetensors",
    damaged_settings: "is cut short or is not safetensors",
    dora: "of a kind that cannot be used here",
    embedding: "of a kind that cannot be used here",
    rewriting_the_model: r"asks to change the model itself \(init_lora_weights\)",
}

#: What is wrong between a file and a model.
FAULTS = {
    for_other_sizes: "was made for another model",
    for_another_model: "was made for another model",
    for_a_model_of_other_names: "was made for another model",
    mostly_for_another_model: "was made for another model",
    without_half_of_its_matrices: "incomplete",
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS])
def test_a_bad_lora_fails_that_job_alone_and_is_named(model, alone, lora, job, tmp_path, fault, message):
    path = tmp_path / "bad-file.safetensors"
    fault(path, lora().path, model)
    before = modules(model)

    for strength in (1.0, 0.0):
        with pytest.raises(AdapterUnavailable, match=f"LoRA sushi .*{message}") as failure:
            run(model, job, AdapterFile("sushi", path, strength=strength))
        assert "bad-file" not in failure.value.message
        assert str(tmp_path) not in failure.value.message
        assert modules(model) == before

    assert np.array_equal(run(model, job), alone)


@pytest.mark.parametrize("fault", [for_other_sizes, for_another_model])
def test_a_bad_lora_leaves_the_good_ones_beside_it_as_they_were(model, alone, lora, job, tmp_path, fault):
    path = tmp_path / "bad-file.safetensors"
    fault(path, lora().path, model)
    good = run(model, job, lora(1))

    with pytest.raises(AdapterUnavailable, match="sushi"):
        run(model, job, lora(0), AdapterFile("sushi", path))

    assert model.model.adapters.resident == [lora(1).name, lora(0).name]
    assert np.array_equal(run(model, job, lora(1)), good)
    assert np.array_equal(run(model, job), alone)


@pytest.mark.parametrize(("fault", "message"), BAD_FILES.items(), ids=[fault.__name__ for fault in BAD_FILES])
def test_a_bad_file_is_refused_before_anything_is_loaded(
    load_once, tiny_root, job, tmp_path, monkeypatch, fault, message
):
    path = tmp_path / "bad-file.safetensors"
    model = load_once("ltx")
    fault(path, build("lora-ltx", tiny_root), model)
    monkeypatch.setattr(model.pipeline, "load_lora_weights", lambda *args, **kwargs: pytest.fail("it was loaded"))

    with pytest.raises(AdapterUnavailable, match=f"LoRA sushi .*{message}") as failure:
        run(model, job, AdapterFile("sushi", path))
    assert "bad-file" not in failure.value.message


def test_a_file_of_another_family_is_refused(load_once, tiny_root, job):
    for name, other in (
        ("ltx", "lora-wan"),
        ("wan-ti2v", "lora-ltx"),
        ("animatediff", "lora-ltx"),
        ("ltx", "lora-animatediff"),
    ):
        model = load_once(name)
        without = run(model, job)

        with pytest.raises(AdapterUnavailable, match=f"LoRA {other} "):
            run(model, job, AdapterFile(other, build(other, tiny_root)))

        assert np.array_equal(run(model, job), without)


def test_a_pickle_is_refused_by_its_name_and_never_opened(load, job, tmp_path):
    path = tmp_path / "style.pt"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))

    with pytest.raises(AdapterUnavailable, match=r"LoRA style is not a \.safetensors file"):
        run(load("ltx"), job, AdapterFile("style", path))
    assert not (tmp_path / "ran").exists()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_memory_that_runs_out_while_a_lora_loads_fails_the_job_and_leaves_nothing(model, alone, lora, job, monkeypatch):
    import torch

    real = model.pipeline.load_lora_weights

    def run_out(*args, **kwargs):
        real(*args, **kwargs)
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = modules(model)
    with monkeypatch.context() as patch:
        patch.setattr(model.pipeline, "load_lora_weights", run_out)
        with pytest.raises(OutOfMemory, match=lora().name) as failure:
            run(model, job, lora())

    assert failure.value.stage == "load"
    assert modules(model) == before
    assert np.array_equal(run(model, job), alone)


def test_a_pipeline_without_loras_says_so(lora_free_pipeline, tiny_root):
    adapters = Adapters(lora_free_pipeline)
    style = AdapterFile("style", build("lora-wan", tiny_root))

    with (
        pytest.raises(AdapterUnavailable, match="LoRA style cannot be used: this model takes none"),
        adapters.using([style]),
    ):
        pytest.fail("it was used")
    with adapters.using([]):
        pass


@pytest.fixture
def lora_free_pipeline() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=2
    )
    return DDPMPipeline(unet, DDPMScheduler())


# Models whose weights live elsewhere


@pytest.fixture
def on_its_own(model: Loaded, load: Callable[[str], Loaded]) -> Loaded:
    """The model again, with a text encoder that it shares with no other."""
    loaded = load(model.name)
    loaded.pipeline.text_encoder = deepcopy(loaded.pipeline.text_encoder)
    return loaded


def test_loras_load_into_a_model_whose_layers_are_offloaded(model, on_its_own, alone, lora, job):
    with_loras = run(model, job, lora(0), lora(1))
    on_its_own.pipeline.enable_group_offload(onload_device="cpu", offload_device="cpu", offload_type="leaf_level")

    for _ in range(2):
        assert np.array_equal(run(on_its_own, job), alone)
        assert np.array_equal(run(on_its_own, job, lora(0), lora(1)), with_loras)
        assert np.array_equal(run(on_its_own, job), alone)
        on_its_own.model.adapters.unload_all()


def test_loras_load_into_a_model_whose_components_are_offloaded(model, on_its_own, alone, lora, job, tmp_path):
    with_loras = run(model, job, lora(0), lora(1))
    bad = tmp_path / "bad.safetensors"
    for_other_sizes(bad, lora().path, model)
    # Without a device it asks for an accelerator; named, the CPU will do.
    on_its_own.pipeline.enable_model_cpu_offload(device="cpu")
    hooks = len(on_its_own.pipeline._all_hooks)

    for _ in range(2):
        assert np.array_equal(run(on_its_own, job, lora(0), lora(1)), with_loras)
        assert np.array_equal(run(on_its_own, job), alone)
        with pytest.raises(AdapterUnavailable):
            run(on_its_own, job, AdapterFile("bad", bad))
        assert len(on_its_own.pipeline._all_hooks) == hooks
        assert all(hasattr(module, "_hf_hook") for module in on_its_own.model.adapters._modules())
        assert np.array_equal(run(on_its_own, job), alone)
        on_its_own.model.adapters.unload_all()


def test_a_lora_on_weights_that_are_stored_as_float8_keeps_its_own_precision(load, tiny_root, job):
    import torch

    model = load_tiny("ltx", build("ltx", tiny_root), dtype="bfloat16")
    model.pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    without = run(model, job)

    with_lora = run(model, job, AdapterFile("style", build("lora-ltx", tiny_root)))

    layers = model.model.adapters._layers()
    assert {layer.lora_A[name].weight.dtype for layer in layers for name in layer.lora_A} == {torch.bfloat16}
    assert {layer.base_layer.weight.dtype for layer in layers} == {torch.float8_e4m3fn}
    assert not any(hasattr(layer.base_layer, "compute_dtype") for layer in layers)
    assert distance(with_lora, without) > 1
    assert np.array_equal(run(model, job), without)
