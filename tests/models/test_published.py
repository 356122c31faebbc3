"""Every checkpoint of the GPU profile, built from its published configuration without a byte of its weights.

A wrong class, argument or figure for a model of 14 billion parameters shows here, on any machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models import Checkpoint, families
from models._geometry import legal_frames
from models._load import set_up
from models._ltx2 import LTX2
from models._ltx_video import LTXVideo
from models._wan_layouts import multiples
from models.loaded import LoadedModel
from models.placement import weigh
from polyreel.entries import Placement, ServedModel
from polyreel.profiles import load_settings
from tests.models.skeleton import (
    FLOAT32,
    PUBLISHED,
    components,
    index_class,
    pipeline,
    published,
    write_checkpoint,
)

ENTRIES = load_settings("gpu").settings.models

#: Parameters of what denoises, in 1e9, as the models are called or their files weigh (2 bytes each in bfloat16).
DENOISERS = {
    "wan2.1-1.3b": 1.42,
    "wan2.1-14b": 14.3,
    "wan2.1-i2v-14b-480p": 16.4,
    "wan2.1-i2v-14b-720p": 16.4,
    "wan2.2-t2v-a14b": 14.3,
    "wan2.2-i2v-a14b": 14.3,
    "wan2.2-5b": 5.0,
    "ltx": 1.92,
    "ltx-0.9.5": 1.92,
    "ltx-13b": 13.0,
    "ltx-13b-distilled": 13.0,
    "ltx2": 18.9,
    "ltx2.3": 19.0,
    "darksushi": 0.860,
    "sd15-animatediff": 0.860,
    "animatelcm": 0.860,
}

#: Frames per latent frame, and pixels of height and of width that a size is a multiple of.
RULES = {
    **dict.fromkeys([name for name in ENTRIES if name.startswith("wan")], (4, 16)),
    "wan2.2-5b": (4, 32),
    **dict.fromkeys([name for name in ENTRIES if name.startswith("ltx")], (8, 32)),
    **dict.fromkeys(["darksushi", "sd15-animatediff", "animatelcm"], (1, 8)),
}

#: The other pipeline classes that a family runs over the weights of one, by the class of the checkpoint.
VARIANTS: dict[str, tuple[str, ...]] = {
    "WanPipeline": ("WanImageToVideoPipeline",),
    "WanImageToVideoPipeline": (),
    "LTXPipeline": ("LTXImageToVideoPipeline",),
    "LTXConditionPipeline": ("LTXPipeline", "LTXImageToVideoPipeline", "LTXLatentUpsamplePipeline"),
    "LTX2Pipeline": ("LTX2ConditionPipeline", "LTX2ImageToVideoPipeline", "LTX2LatentUpsamplePipeline"),
    "AnimateDiffPipeline": ("AnimateDiffVideoToVideoPipeline",),
}

#: By family, what the entry's scheduler is once its settings have been applied.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan2.1-1.3b": ("UniPCMultistepScheduler", {"flow_shift": 3.0}),
    "wan2.1-14b": ("UniPCMultistepScheduler", {"flow_shift": 3.0}),
    "wan2.1-i2v-14b-480p": ("UniPCMultistepScheduler", {"flow_shift": 3.0}),
    "wan2.1-i2v-14b-720p": ("UniPCMultistepScheduler", {"flow_shift": 5.0}),
    "wan2.2-t2v-a14b": ("UniPCMultistepScheduler", {"flow_shift": 12.0}),
    "wan2.2-i2v-a14b": ("UniPCMultistepScheduler", {"flow_shift": 5.0}),
    "wan2.2-5b": ("UniPCMultistepScheduler", {"flow_shift": 5.0}),
    "animatelcm": ("LCMScheduler", {"beta_schedule": "linear"}),
}

MADE: dict[str, dict[str, Any]] = {}


def made_of(name: str) -> dict[str, Any]:
    """The components of an entry on the meta device, made once."""
    if name not in MADE:
        MADE[name] = components(name)
    return MADE[name]


def loaded(name: str) -> LoadedModel:
    made = pipeline(name, made_of(name))
    return LoadedModel(made, Checkpoint(Path(name)), device="meta", dtype="bfloat16", placement=Placement())


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def gigabytes(name: str, entry: ServedModel) -> dict[str, float]:
    """Bytes of every component in the dtype that it runs in, 1e9; a motion adapter becomes part of the U-Net."""
    wide = FLOAT32.get(published(name).pipeline, set())
    found: dict[str, float] = {}
    for role, component in made_of(name).items():
        if role != "scheduler":
            into = "unet" if role == "motion_adapter" else role
            found[into] = found.get(into, 0) + count(component) * (4 if role in wide else 2) / 1e9
    return found


def denoiser(made: dict[str, Any]) -> Any:
    return made.get("transformer") or made["unet"]


def test_every_entry_of_the_gpu_profile_has_its_configuration_and_the_other_way_round() -> None:
    assert sorted(ENTRIES) == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_and_its_configuration_are_of_one_checkpoint(name: str) -> None:
    assert ENTRIES[name].checkpoint == published(name).checkpoint
    # A LoRA that is merged has no configuration.
    assert set(ENTRIES[name].parts) - {"lcm_lora"} == set(published(name).parts)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_denoiser_has_as_many_parameters_as_the_published_one(name: str) -> None:
    assert count(denoiser(made_of(name))) / 1e9 == pytest.approx(DENOISERS[name], rel=0.01)
    assert all(parameter.device.type == "meta" for parameter in denoiser(made_of(name)).parameters())


@pytest.mark.parametrize(
    ("name", "role", "billions"),
    [
        ("wan2.1-1.3b", "text_encoder", 5.68),  # UMT5-XXL's encoder
        ("wan2.2-5b", "vae", 0.705),
        ("wan2.1-i2v-14b-480p", "image_encoder", 0.63),  # CLIP ViT-H's
        ("ltx", "text_encoder", 4.76),  # T5 1.1 XXL's encoder: 9.52 GB in bfloat16
        ("ltx2", "text_encoder", 12.2),  # Gemma 3 12B
        ("ltx2", "upsampler", 0.498),
        ("ltx2.3", "connectors", 3.17),  # 12.7 GB in float32
        ("sd15-animatediff", "motion_adapter", 0.453),  # 1.8 GB in float32
        ("darksushi", "motion_adapter", 0.417),  # the same without its middle block
        ("darksushi", "vae", 0.084),
        ("darksushi", "text_encoder", 0.123),
    ],
)
def test_the_other_large_components_have_the_published_numbers_too(name: str, role: str, billions: float) -> None:
    assert count(made_of(name)[role]) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_pipelines_of_the_family_take_the_components(name: str) -> None:
    model = loaded(name)
    assert type(model.pipeline).__name__ == published(name).pipeline
    for role in published(name).components:
        assert getattr(model.pipeline, role) is not None
    for class_name in VARIANTS[published(name).pipeline]:
        if class_name.endswith("UpsamplePipeline"):
            if "upsampler" not in published(name).parts:
                continue
            variant = model.variant(class_name, latent_upsampler=made_of(name)["upsampler"])
        else:
            variant = model.variant(class_name)
            assert denoiser(variant.components) is denoiser(model.pipeline.components)
        assert type(variant).__name__ == class_name


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_component_is_of_a_class_that_the_pipeline_was_written_for(name: str) -> None:
    made = loaded(name).pipeline
    expected = type(made)._get_signature_types()
    # Wan's signature names one scheduler, and its checkpoints are published with another.
    roles = [role for role in published(name).components if role != "scheduler"]
    assert [role for role in roles if not isinstance(getattr(made, role), expected[role])] == []


def test_two_transformers_come_with_the_step_at_which_they_change() -> None:
    text, image = loaded("wan2.2-t2v-a14b").pipeline, loaded("wan2.2-i2v-a14b").pipeline
    assert (text.config.boundary_ratio, image.config.boundary_ratio) == (0.875, 0.9)
    assert text.transformer_2 is not None
    assert image.transformer_2 is not None
    assert loaded("wan2.2-5b").pipeline.config.expand_timesteps


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_checkpoint_can_do_what_its_entry_offers_and_weighs_what_it_says(name: str, tmp_path: Path) -> None:
    entry = ENTRIES[name]
    checkpoint = write_checkpoint(name, made_of(name), tmp_path, entry)
    assert sum(file.stat().st_blocks for file in tmp_path.rglob("*")) * 512 < 20_000_000  # holes
    can = families()[entry.family].check(checkpoint)
    assert set(entry.tasks) <= can
    # Wan 2.1 I2V would take a last picture, and was not trained for it; everything else is offered.
    assert can - set(entry.tasks) == ({"first_last"} if name.startswith("wan2.1-i2v") else set())

    weights = weigh(checkpoint, entry.dtype)
    # It counts every VAE as float32, which only Wan's is.
    surplus = 0 if entry.family == "wan" else 2 * count(made_of(name)["vae"]) / 1e9
    assert sum(weights.components.values()) / 1e9 - surplus == pytest.approx(entry.cost.weights_gb, rel=0.03)
    assert max(weights.components.values()) / 1e9 == pytest.approx(entry.cost.largest_gb, rel=0.03)


def test_an_index_that_names_the_text_pipeline_makes_no_difference_to_ltx_0_9_5(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("ltx-0.9.5", made_of("ltx-0.9.5"), tmp_path, ENTRIES["ltx-0.9.5"])
    index = checkpoint.path / "model_index.json"
    index.write_text(index.read_text().replace("LTXConditionPipeline", "LTXPipeline"))
    assert families()["ltx"].check(checkpoint) == {"t2v", "i2v", "first_last", "keyframes", "upscale"}


def test_checkpoints_for_images_are_published_as_such() -> None:
    assert index_class(published("animatelcm")) == "StableDiffusionPipeline"
    assert index_class(published("wan2.2-5b")) == "WanPipeline"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_cost_of_an_entry_is_the_sum_of_its_components(name: str) -> None:
    sizes, cost = gigabytes(name, ENTRIES[name]), ENTRIES[name].cost
    assert cost.weights_gb == pytest.approx(sum(sizes.values()), rel=0.03)
    assert cost.largest_gb == pytest.approx(max(sizes.values()), rel=0.03)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_geometry_of_an_entry_is_that_of_its_components(name: str) -> None:
    made, geometry = loaded(name).pipeline, ENTRIES[name].geometry
    assert (geometry.frames, geometry.pixels) == RULES[name]
    assert _rules_of(made) == RULES[name]
    assert geometry.attention_tokens == _attention_tokens(made)


def _rules_of(made: Any) -> tuple[int, int]:
    """Return the frames per latent frame and the multiple of both sides, as the family has them from a pipeline."""
    kind = type(made).__name__
    if kind.startswith("Wan"):
        height, width = multiples(made)
        assert height == width
        return made.vae_scale_factor_temporal, height
    if kind.startswith("AnimateDiff"):
        return 1, made.vae_scale_factor
    sides = (LTX2() if kind.startswith("LTX2") else LTXVideo()).sides(made, 65, 97)
    assert sides == (96, 128)
    return made.vae_temporal_compression_ratio, made.vae_spatial_compression_ratio


def _attention_tokens(made: Any) -> int:
    """Return 3 d + ffn, from the layers of the first block."""
    transformer = getattr(made, "transformer", None)
    if transformer is None:
        return 0
    wan = hasattr(transformer, "blocks")
    block = transformer.blocks[0] if wan else transformer.transformer_blocks[0]
    layer = (block.ffn if wan else block.ff).net[0].proj
    return int(3 * layer.in_features + layer.out_features)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_default_size_of_an_entry_needs_no_trimming(name: str) -> None:
    defaults, (frames, multiple) = ENTRIES[name].defaults, RULES[name]
    assert legal_frames(defaults.num_frames, frames) == defaults.num_frames
    assert (defaults.height % multiple, defaults.width % multiple) == (0, 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_scheduler_settings_of_an_entry_can_be_applied(name: str) -> None:
    made = loaded(name).pipeline
    set_up(made, Checkpoint(Path(name), scheduler=ENTRIES[name].scheduler))
    assert set(ENTRIES) - set(SCHEDULERS) == {name for name in ENTRIES if not ENTRIES[name].scheduler}
    if name in SCHEDULERS:
        class_name, settings = SCHEDULERS[name]
        assert type(made.scheduler).__name__ == class_name
        assert {key: made.scheduler.config[key] for key in settings} == settings


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("wan")])
def test_wan_denoises_its_default_size(name: str) -> None:
    import torch

    made, defaults = made_of(name), ENTRIES[name].defaults
    vae, transformer = made["vae"].config, made["transformer"]
    side = vae.scale_factor_spatial
    grid = ((defaults.num_frames - 1) // 4 + 1, defaults.height // side, defaults.width // side)
    # Beside the latents an I2V transformer sees those of the picture and four channels of a mask.
    is_i2v = published(name).pipeline == "WanImageToVideoPipeline"
    channels = vae.z_dim * 2 + 4 if is_i2v else vae.z_dim
    clip = {"encoder_hidden_states_image": torch.empty(1, 257, 1280, device="meta")} if "image_encoder" in made else {}
    with torch.no_grad(), torch.device("meta"):
        (out,) = transformer(
            hidden_states=torch.empty(1, channels, *grid),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 512, made["text_encoder"].config.d_model),
            return_dict=False,
            **clip,
        )
    assert out.shape == (1, vae.z_dim, *grid)


@pytest.mark.parametrize("name", ["ltx", "ltx-0.9.5", "ltx-13b", "ltx-13b-distilled"])
def test_ltx_denoises_its_default_size(name: str) -> None:
    import torch

    made, defaults = made_of(name), ENTRIES[name].defaults
    frames, height, width = (defaults.num_frames - 1) // 8 + 1, defaults.height // 32, defaults.width // 32
    tokens = frames * height * width
    with torch.no_grad(), torch.device("meta"):
        (out,) = made["transformer"](
            hidden_states=torch.empty(1, tokens, made["vae"].config.latent_channels),
            encoder_hidden_states=torch.empty(1, 128, made["text_encoder"].config.d_model),
            timestep=torch.empty(1),
            encoder_attention_mask=torch.empty(1, 128),
            num_frames=frames,
            height=height,
            width=width,
            return_dict=False,
        )
    assert out.shape == (1, tokens, 128)


@pytest.mark.parametrize("name", ["darksushi", "sd15-animatediff", "animatelcm"])
def test_animatediff_denoises_its_default_size(name: str) -> None:
    import torch

    unet = loaded(name).pipeline.unet
    with torch.no_grad(), torch.device("meta"):
        # The text once per frame, as the pipeline gives it.
        (out,) = unet(torch.empty(1, 4, 16, 64, 64), torch.empty(1), torch.empty(16, 77, 768), return_dict=False)
    assert out.shape == (1, 4, 16, 64, 64)
    assert type(unet).__name__ == "UNetMotionModel"
