"""Training the demonstration model: words that reach attention, the optimizer, going on where it was interrupted."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.atelier import captions, figures, learning, progress, states, training
from models.atelier import denoiser as denoisers
from models.atelier import narrow as narrows
from models.atelier import vae as vaes
from models.atelier.captions import vocabulary
from models.atelier.denoiser import MAX_SEQUENCE_LENGTH, WORDS, encode, new_denoiser
from models.atelier.optimizers import Optimizers, orthogonal
from models.atelier.pool import KINDS, Kind, Sample, fill, sample_of
from models.atelier.words import make_tokenizer
from models.atelier.world import MOTIONS, SHAPES, random_scene

CAPTIONS = ("a red circle", "a large blue star moving left on a white background")


@pytest.fixture(scope="module")
def denoiser():
    """Untrained, but with a last layer that lets something through."""
    made = new_denoiser(0)
    with torch.no_grad():
        torch.manual_seed(1)
        torch.nn.init.normal_(made.transformer.proj_out.weight, std=0.1)
    return made.eval()


def tokens(text: str) -> list[str]:
    tokenizer = make_tokenizer()
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a red circle", ["a", "red", "circle", "</s>"]),
        ("A Red, CIRCLE!", ["a", "red", "circle", "</s>"]),
        ("  a\nred\tcircle ", ["a", "red", "circle", "</s>"]),
        ("a crimson circle", ["a", "<unk>", "circle", "</s>"]),
        ("an astronaut riding a horse", ["an", "<unk>", "<unk>", "a", "<unk>", "</s>"]),
        ("ein röter Kreis 圆", ["<unk>", "<unk>", "<unk>", "<unk>", "</s>"]),
        ("", ["</s>"]),
        ("<pad></s>", ["<pad>", "</s>", "</s>"]),
    ],
)
def test_prompts_are_read_word_by_word_whatever_their_case_and_punctuation(text: str, read: list[str]) -> None:
    assert tokens(text) == read


def test_every_word_of_the_world_is_one_token() -> None:
    assert [tokens(word) for word in vocabulary()] == [[word, "</s>"] for word in vocabulary()]


def test_the_longest_caption_fits() -> None:
    def most(*phrases: str) -> int:
        return max(len(phrase.split()) for phrase in phrases)

    tables = (captions.SIZE_WORDS, captions.SHAPE_WORDS, captions.MOTION_WORDS, captions.SPEED_WORDS)
    thing = 2 + sum(most(*(said for words in table.values() for said in words)) for table in tables)  # "a", the colour
    scene = most(*captions._OPENINGS) + thing + 1 + thing + most(*captions.BACKGROUND_WORDS)  # 1: "and"
    rng = np.random.default_rng(0)
    seen = max(len(captions.caption(random_scene(rng, pairs=0.3), rng).split()) for _ in range(5000))

    assert seen <= scene + 8, "eight unknown words at most"
    assert scene + 8 + 1 == WORDS, "the end is a token too"


def test_one_filling_that_counts_many_times_is_what_the_pipeline_computes(denoiser) -> None:
    """diffusers fills every prompt with zeros up to 512 tokens, which attention sees; see `denoiser.encode`."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    latents = torch.randn(2, 14, 5, 12, 12, generator=torch.Generator().manual_seed(2))
    timestep = torch.tensor([700.0, 20.0])
    with torch.no_grad():
        words = encode(denoiser.tokenizer, denoiser.text_encoder, [[said] for said in CAPTIONS], None)
        ours = denoiser(latents, timestep, words)
        filled = denoiser.tokenizer(
            list(CAPTIONS), padding="max_length", max_length=512, return_tensors="pt", return_attention_mask=True
        )
        mask = filled.attention_mask
        embeds = denoiser.text_encoder(filled.input_ids, mask).last_hidden_state * mask[..., None]
        denoiser.transformer.set_attn_processor(WanAttnProcessor())
        theirs = denoiser.transformer(latents, timestep, embeds, return_dict=False)[0]

    assert embeds.shape[1] == MAX_SEQUENCE_LENGTH
    assert words.embeds.shape[1] == WORDS + 1
    assert theirs.abs().max() > 1
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_tokens_of_a_span_attend_to_its_caption_alone(denoiser) -> None:
    latents = torch.randn(1, 14, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    span_of = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]])  # the last frame's four

    def flow(*spans: str) -> torch.Tensor:
        with torch.no_grad():
            words = encode(denoiser.tokenizer, denoiser.text_encoder, [list(spans)], span_of)
            return denoiser(latents, torch.tensor([500.0]), words)

    same = flow("a red circle", "a red circle")
    with torch.no_grad():
        one = encode(denoiser.tokenizer, denoiser.text_encoder, [["a red circle"]], None)
        torch.testing.assert_close(same, denoiser(latents, torch.tensor([500.0]), one), atol=1e-5, rtol=1e-5)
    changed = (flow("a red circle", "a blue star") - same).abs().amax(dim=(0, 1, 3, 4))
    assert changed[2] > 3 * changed[:2].max()


def test_muons_steps_are_orthogonal_and_adams_rest_is_not_touched_by_it() -> None:
    torch.manual_seed(0)
    wide, tall = torch.randn(1, 16, 64), torch.randn(1, 64, 16)

    for matrix in (wide, tall):
        values = torch.linalg.svdvals(orthogonal(matrix)[0])
        assert 0.5 < values.min() <= values.max() < 1.3

    layer = torch.nn.Linear(8, 8)
    before = layer.bias.detach().clone()
    optimizers = Optimizers(layer.named_parameters(), steps=10, muon=0.1, adam=0.0, warm_up=1)
    layer(torch.randn(4, 8)).pow(2).sum().backward()
    optimizers.step(0)
    assert (layer.bias == before).all()


def test_rates_rise_stay_and_fall_to_nothing() -> None:
    layer = torch.nn.Linear(4, 4)
    optimizers = Optimizers(layer.named_parameters(), steps=100, muon=1.0, adam=1.0, warm_up=10, falling=0.4)

    def rate(step: int) -> float:
        layer(torch.ones(4)).sum().backward()
        optimizers.step(step)
        return optimizers._optimizers[0][0].param_groups[0]["lr"]

    assert [round(rate(step), 3) for step in (0, 4, 9, 50, 60, 80, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.025]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("output", "shown", "bar"),
    [
        (Terminal, True, ["denoiser:  50%", "2/4"]),
        (Terminal, False, []),
        (io.StringIO, True, []),
    ],
)
def test_a_terminal_shows_a_bar_and_a_file_gets_the_lines_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: type[io.StringIO], shown: bool, bar: list[str]
) -> None:
    errors, lines = output(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "stdout", lines)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that outlives this test

    steps = []
    for step in progress.counted("denoiser", 4, 2, shown=shown):
        steps.append(step)
        training._say(tmp_path / "training.log", f"after {step}")

    assert steps == [2, 3]
    assert [line[9:] for line in lines.getvalue().splitlines()] == ["after 2", "after 3"]
    assert (tmp_path / "training.log").read_text() == lines.getvalue()
    assert [part for part in bar if part not in errors.getvalue()] == []
    assert bool(errors.getvalue()) == bool(bar)


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def interrupted(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a loss that is interrupted in the third step."""
    calls = 0

    def interrupting(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted
        return loss(*arguments)

    return interrupting


def test_an_interrupted_training_ends_at_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaes, "_CROPS", ((1.0, 1, 5, 16),))
    monkeypatch.setattr(vaes, "SAVE_S", 0.0)
    small = vaes.fresh_clips(0, 1, num_frames=5, height=16, width=16)
    monkeypatch.setattr(vaes, "fresh_clips", lambda seed, count: small)
    real = vaes._loss
    whole = vaes.train(tmp_path / "whole", steps=4).state_dict()
    monkeypatch.setattr(vaes, "_loss", interrupted(real))
    with pytest.raises(Interrupted):
        vaes.train(tmp_path / "parts", steps=4)
    monkeypatch.setattr(vaes, "_loss", real)
    resumed = vaes.train(tmp_path / "parts", steps=4).state_dict()

    assert all((resumed[name] == value).all() for name, value in whole.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch, of its own speed under autocast
def test_an_interrupted_denoiser_ends_at_the_same_weights(
    tmp_path: Path, wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Kind(1, 32, 32, 1.0)
    monkeypatch.setattr(learning, "KINDS", (kind,))
    monkeypatch.setattr(learning, "_TOKENS", 8)  # two of them
    monkeypatch.setattr(learning, "SAVE_S", 0.0)
    monkeypatch.setattr(learning, "statistics", lambda folder: (torch.zeros(14), torch.ones(14)))
    real = learning.loss_of
    for name in ("whole", "parts"):
        fill(tmp_path / name / "pool", narrows.narrow(wide, clips=4), kind, 0, clips=2)
    whole = learning.train(tmp_path / "whole", steps=4).state_dict()
    monkeypatch.setattr(learning, "loss_of", interrupted(real))
    with pytest.raises(Interrupted):
        learning.train(tmp_path / "parts", steps=4)
    monkeypatch.setattr(learning, "loss_of", real)
    said: list[str] = []
    resumed = learning.train(tmp_path / "parts", steps=4, say=said.append).state_dict()

    assert said == ["denoiser: going on after step 2"]
    fresh = new_denoiser(0).state_dict()
    assert any((whole[name] != value).any() for name, value in fresh.items())
    assert [name for name, value in whole.items() if (resumed[name] != value).any()] == []
    averages = [states.load(tmp_path / name / "denoiser.pt")["average"] for name in ("whole", "parts")]
    assert [name for name, value in averages[0].items() if (averages[1][name] != value).any()] == []


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(0)
    return vaes.make().eval()


def few_clips() -> torch.Tensor:
    return vaes.to_tensor(vaes.fresh_clips(0, 2, num_frames=5, height=32, width=48))


@torch.no_grad()
def test_a_vae_that_is_turned_and_not_narrowed_codes_as_it_did(wide) -> None:
    turned = narrows.narrow(wide, channels=24, clips=4)
    clips = few_clips()

    latents = turned.encode(clips).latent_dist.mode()

    before = wide.encode(clips).latent_dist.mode()
    assert latents.shape == (2, 24, 2, 4, 6)
    torch.testing.assert_close(latents.norm(dim=1), before.norm(dim=1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(turned.decode(latents).sample, wide.decode(before).sample, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_narrowing_keeps_the_channels_of_most_variance_uncorrelated(wide) -> None:
    made = narrows.narrow(wide, channels=6, clips=4)
    drawn = vaes.to_tensor(
        [vaes.fresh_clips(10**6 + n, 1)[0] for n in range(4)]
    )  # those that the components are found from

    latents = made.encode(drawn).latent_dist.mode()

    variances = torch.cov(latents.transpose(0, 1).flatten(1))
    assert latents.shape[1] == made.config.z_dim == len(made.config.latents_mean) == 6
    assert variances.diag().tolist() == sorted(variances.diag().tolist(), reverse=True)
    off = variances - variances.diag().diag()
    assert off.abs().max() < 0.05 * variances.diag().max()
    whole = wide.encode(drawn).latent_dist.mode().transpose(0, 1).flatten(1)
    assert float(variances.trace()) == pytest.approx(
        float(torch.linalg.eigvalsh(torch.cov(whole))[-6:].sum()), rel=0.05
    )


def scene_of(kind: Kind, *, things: int, shape: str = "") -> Sample:
    """Return the first clip of a kind that has so many things, of a shape."""
    samples = (sample_of(kind, seed) for seed in range(1000))
    return next(
        sample
        for sample in samples
        if len(sample.clip.spans[0][0].things) == things and shape in ("", sample.clip.spans[0][0].things[0].shape)
    )


def test_places_are_where_things_are_drawn() -> None:
    kind = KINDS[1]
    sample = scene_of(kind, things=1, shape="star")

    first, second = sample.places

    assert first.shape == (5, 5)  # latent frames; x, y, radius, cosine, sine
    assert np.isnan(second).all()
    assert (kind.num_frames, kind.height, kind.width) == (17, 80, 144)
    frames = sample.clip.draw()
    for latent_frame, (x, y, radius, cosine, sine) in enumerate(first):
        away = np.abs(frames[4 * latent_frame] - frames[0, 0, 0]).sum(-1) > 0.3
        rows, columns = np.nonzero(away)
        assert (columns.mean() + 0.5) / 16 == pytest.approx(x, abs=0.1)
        assert (rows.mean() + 0.5) / 16 == pytest.approx(y, abs=0.1)
        assert np.sqrt(away.sum() / np.pi) / 16 == pytest.approx(radius, rel=0.2)
        assert cosine**2 + sine**2 == pytest.approx(1)


def test_only_one_thing_that_stays_what_it_is_has_labels() -> None:
    alone, pair = scene_of(KINDS[0], things=1), scene_of(KINDS[0], things=2)
    picture = scene_of(KINDS[-3], things=1)
    thing = alone.clip.spans[0][0].things[0]

    assert (SHAPES[alone.labels[0]], MOTIONS[alone.labels[1]]) == (thing.shape, thing.motion)
    assert pair.labels == (-1, -1)
    assert (picture.labels[0] >= 0, picture.labels[1]) == (True, -1)


def test_tokens_that_know_where_they_are_have_no_loss_and_others_have(denoiser) -> None:
    """The answers are the first numbers of what is remembered, whose truth is written there."""
    samples = [scene_of(KINDS[0], things=1), scene_of(KINDS[0], things=2)]
    thing = torch.ones(2, 5, 12, 12, dtype=torch.bool)
    places = torch.from_numpy(np.stack([sample.places for sample in samples]))
    batch = learning.Batch(torch.zeros(0), thing, [], None, torch.zeros(0), places)
    row, column = np.mgrid[:6, :6] + np.float32(0.5)
    truth = torch.zeros(2, 5, 6, 6, 5)
    for clip, sample in enumerate(samples):
        for frame in range(5):
            for y in range(6):
                for x in range(6):
                    seen = [place[frame] for place in sample.places if not np.isnan(place[frame]).any()]
                    away = [np.hypot(p[0] - column[y, x], p[1] - row[y, x]) - p[2] for p in seen]
                    nearest = seen[int(np.argmin(away))] - np.array([column[y, x], row[y, x], 0, 0, 0])
                    truth[clip, frame, y, x] = torch.from_numpy(nearest)
    kept, denoiser.halfway = denoiser.halfway, torch.nn.functional.pad(truth.flatten(1, 3), (0, 187))
    answers, denoiser.places = denoiser.places, torch.nn.Linear(192, 5, bias=False)
    try:
        with torch.no_grad():
            denoiser.places.weight.copy_(torch.eye(5, 192))
        assert learning.placing_loss(denoiser, batch).item() == pytest.approx(0, abs=1e-9)
        denoiser.halfway = denoiser.halfway + 1
        assert learning.placing_loss(denoiser, batch).item() == pytest.approx(1, abs=1e-4)
    finally:
        denoiser.halfway, denoiser.places = kept, answers


def test_tokens_of_things_are_asked_for_names_where_there_is_one_answer(denoiser) -> None:
    """Shape and motion of a clip; a pair has neither, and a picture no motion."""
    thing = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    thing[:, :, :2, :2] = True  # the first of four tokens
    labels = torch.tensor([[2, 5], [-1, -1], [1, -1]])
    batch = learning.Batch(torch.zeros(0), thing, [], None, labels, torch.zeros(0))
    kept, denoiser.halfway = denoiser.halfway, torch.zeros(3, 4, 192)
    answers, denoiser.names = denoiser.names, torch.nn.Linear(192, 13, bias=False)  # 4 shapes, 9 motions
    try:
        with torch.no_grad():
            denoiser.names.weight.copy_(torch.eye(13, 192))
        assert learning.naming_loss(denoiser, batch).item() == pytest.approx(np.log(4) + np.log(9))
        for token, name in ((0, 2), (0, 4 + 5), (8, 1)):
            denoiser.halfway.view(12, 192)[token, name] = 100
        assert learning.naming_loss(denoiser, batch).item() == pytest.approx(0, abs=1e-6)
        denoiser.halfway[1] = denoiser.halfway[:, 1:] = 7  # a pair's, and those of the background
        assert learning.naming_loss(denoiser, batch).item() == pytest.approx(0, abs=1e-6)
        denoiser.halfway[2, 0, 3] = 100  # the picture's says two shapes now
        assert learning.naming_loss(denoiser, batch).item() == pytest.approx(np.log(2) / 2, abs=1e-4)
    finally:
        denoiser.halfway, denoiser.names = kept, answers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch, of its own speed under autocast
def test_processes_agree_on_the_mean_of_their_gradients(tmp_path: Path, wide) -> None:
    coder = narrows.narrow(wide, clips=4)
    for kind in KINDS:
        fill(tmp_path / "pool", coder, kind, 0, clips=2)
    pool = learning.Pool(tmp_path / "pool", *learning.statistics(tmp_path / "pool"))
    kind = KINDS[np.random.default_rng([0, 5, 0]).choice(len(KINDS), p=SHARES)]
    alone = new_denoiser(0)
    for rank in (0, 1):
        (learning.loss_of(alone, pool, np.random.default_rng([0, 6, 0, rank]), kind) / 2).backward()
    Optimizers(alone.named_parameters(), steps=1, muon=0.01, adam=1.5e-3, warm_up=100).step(0)

    learning.train(tmp_path, steps=1, processes=2)

    state = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    assert state["done"] == 1
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(state["denoiser"][name], value, atol=2e-4, rtol=1e-3, msg=name)


SHARES = np.array([kind.share for kind in KINDS]) / sum(kind.share for kind in KINDS)


@pytest.mark.slow
def test_the_command_trains_a_checkpoint_from_nothing_and_goes_on_when_it_is_called_again(tmp_path: Path) -> None:
    def train(denoiser_steps: int, *more: str) -> str:
        command = [
            sys.executable,
            "-m",
            "models.atelier",
            "train",
            "--work",
            tmp_path / "work",
            "--to",
            tmp_path / "to",
        ]
        command += ["--vae-steps", "2", "--lora-steps", "1", "--clips", "60", "--threads", "1", *more]
        done = subprocess.run(
            [*map(str, command), "--denoiser-steps", str(denoiser_steps)],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    first = train(1)
    made = json.loads((tmp_path / "to" / "model_index.json").read_text())
    assert (made["_class_name"], made["expand_timesteps"]) == ("WanPipeline", True)
    pipeline = figures.load(tmp_path / "to")
    assert not [name for name in pipeline.transformer.state_dict() if "base_layer" in name]
    weights = load_file(tmp_path / "to" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert set(weights) == set(pipeline.transformer.state_dict())
    assert {path.name for path in (tmp_path / "to" / "loras").iterdir()} == {"outline.safetensors", "neon.safetensors"}
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "to").rglob("*.safetensors")} == {"0o644"}
    assert "clips 17x96x96: 25" in first
    assert (tmp_path / "work" / "denoiser-trained.png").read_bytes().startswith(b"\x89PNG")
    again = train(1, "--start", str(tmp_path / "to"))
    assert f"not starting from {tmp_path / 'to'}: {tmp_path / 'work'} has a training under way" in again
    assert ("outline: trained before" in again, "neon: trained before" in again) == (True, True)
    more = train(2, "--processes", "2")
    assert "denoiser: going on after step 1" in more
    assert "trained before" not in more, "they were trained over other weights"
    (tmp_path / "work" / "denoiser.pt").unlink()
    started = train(1, "--start", str(tmp_path / "to"))
    assert f" starting from {tmp_path / 'to'}" in started
    assert "clips 17x96x96: 25" in started
    assert "trained before" not in started, "they were trained over other weights"


def test_the_parts_fit_into_15_megabytes() -> None:
    made = new_denoiser(0)
    count = sum(parameter.numel() for parameter in made.parameters()) + sum(p.numel() for p in vaes.make().parameters())

    assert count * 2 < 15e6  # bytes in half precision
    assert denoisers.CONFIG["in_channels"] == narrows.CHANNELS == 14
