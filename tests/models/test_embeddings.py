"""Textual inversions: read from files of both layouts, put where the prompt has their words, gone afterwards."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from models import AdapterFile, PreparedRequest
from models._clip_text import Prompts
from models._embeddings import read_embeddings, split
from models._prompt_chunks import chunked
from polyreel.errors import AdapterUnavailable, Cancelled
from polyreel.request import PromptSpan, Upscale

WIDTH = 16


@pytest.fixture(scope="module")
def tiny(load):
    return load("animatediff")


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny.pipeline


def vectors(count: int, width: int = WIDTH, seed: int = 0):
    import torch

    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def save(path, tensors, *, name: str = "bad hands", token: str = "badhandv4", aliases=()) -> AdapterFile:
    from safetensors.torch import save_file

    save_file(tensors, path)
    return AdapterFile(name, path, token=token, aliases=aliases)


@pytest.fixture
def badhand(tmp_path) -> AdapterFile:
    """Three vectors in A1111's layout, called by the word that Novita's example has."""
    return save(tmp_path / "badhandv4.safetensors", {"emb_params": vectors(3)})


def asking(request, *files: AdapterFile) -> PreparedRequest:
    return PreparedRequest(replace(request, embeddings=tuple(file.name for file in files)), embeddings=files)


@pytest.mark.parametrize(
    ("key", "shape", "count"),
    [("emb_params", (3, 16), 3), ("emb_params", (1, 16), 1), ("<cat-toy>", (16,), 1), ("<cat-toy>", (4, 16), 4)],
)
def test_files_of_both_layouts_are_read(pipeline, tmp_path, key, shape, count):
    import torch

    [embedding] = read_embeddings(
        [save(tmp_path / "e.safetensors", {key: vectors(count).reshape(shape).half()})], pipeline
    )

    assert embedding.token == "badhandv4"
    assert embedding.vectors.dtype == torch.float32
    assert torch.equal(embedding.vectors, vectors(count).half().float())


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        (lambda: {"emb_params": vectors(2, width=8)}, r"shape \(2, 8\).* vectors of 16"),
        (lambda: {"emb_params": vectors(76)}, r"shape \(76, 16\).*1 to 75"),
        (lambda: {"emb_params": vectors(2)[:0]}, r"shape \(0, 16\)"),
        (lambda: {"emb_params": vectors(2)[None]}, r"shape \(1, 2, 16\)"),
        (lambda: {"clip_l": vectors(2), "clip_g": vectors(2, 20)}, "holds clip_g, clip_l; .*SDXL"),
        (dict, "holds nothing"),
        (lambda: {"emb_params": vectors(2) / 0}, "NaN or infinite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(pipeline, tmp_path, tensors, complaint):
    file = save(tmp_path / "e.safetensors", tensors())

    with pytest.raises(AdapterUnavailable, match=f"Embedding bad hands .*{complaint}"):
        read_embeddings([file], pipeline)


def test_a_missing_a_damaged_and_a_pickled_file_are_refused_by_name(pipeline, tmp_path, badhand):
    whole = badhand.path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    (tmp_path / "disguised.safetensors").write_bytes(pickle.dumps({"emb_params": [1.0]}))
    (tmp_path / "open.pt").write_bytes(pickle.dumps({"emb_params": [1.0]}))

    for name, complaint in [
        ("missing.safetensors", "missing, damaged"),
        ("cut.safetensors", "missing, damaged"),
        ("disguised.safetensors", "missing, damaged"),
        ("open.pt", "a pickle may run code"),
    ]:
        with pytest.raises(AdapterUnavailable, match=f"Embedding bad hands .*{complaint}") as refusal:
            read_embeddings([AdapterFile("bad hands", tmp_path / name, token="badhandv4")], pipeline)
        assert str(tmp_path) not in refusal.value.message


@pytest.mark.parametrize("token", ["the", "THE", "a", "<|endoftext|>"])
def test_a_word_that_the_model_knows_is_no_token(pipeline, tmp_path, token):
    file = save(tmp_path / "e.safetensors", {"emb_params": vectors(1)}, token=token)

    with pytest.raises(AdapterUnavailable, match=r"Embedding bad hands uses the word .* knows already"):
        read_embeddings([file], pipeline)


def test_an_embedding_needs_a_token_and_two_need_different_ones(pipeline, tmp_path):
    nameless = save(tmp_path / "a.safetensors", {"emb_params": vectors(1)}, token=" ")
    first = save(tmp_path / "b.safetensors", {"emb_params": vectors(1)}, name="first", token="xyzzy")
    second = save(tmp_path / "c.safetensors", {"emb_params": vectors(1)}, name="second", token="XYZZY")

    with pytest.raises(AdapterUnavailable, match="Embedding bad hands has no token"):
        read_embeddings([nameless], pipeline)
    with pytest.raises(AdapterUnavailable, match="first and second both use the word 'XYZZY'"):
        read_embeddings([first, second], pipeline)


@pytest.mark.parametrize(
    ("token", "text", "pieces"),
    [
        ("badhandv4", "a cat, badhandv4, rain", ["a cat, ", True, ", rain"]),
        ("badhandv4", "BadHandV4", ["", True, ""]),
        ("badhandv4", "badhandv4 badhandv4", ["", True, " ", True, ""]),
        ("badhandv4", "badhandv42 xbadhandv4 badhandv4_1", ["badhandv42 xbadhandv4 badhandv4_1"]),
        ("<cat-toy>", "a<cat-toy>b", ["a", True, "b"]),
        ("x.y", "xzy x.y", ["xzy ", True, ""]),
        ("my style", "in my style now", ["in ", True, " now"]),
    ],
)
def test_a_token_is_found_as_a_whole_word_in_any_case(pipeline, tmp_path, token, text, pieces):
    file = save(tmp_path / "e.safetensors", {"emb_params": vectors(1)}, token=token)
    [embedding] = read_embeddings([file], pipeline)

    assert [piece is embedding or piece for piece in split(text, [embedding])] == pieces


def test_the_longer_of_two_tokens_is_found_first(pipeline, tmp_path):
    short = save(tmp_path / "a.safetensors", {"emb_params": vectors(1)}, name="short", token="<bad>")
    long = save(tmp_path / "b.safetensors", {"emb_params": vectors(1)}, name="long", token="<bad> hand")
    embeddings = read_embeddings([short, long], pipeline)

    pieces = split("a <bad> hand, <bad>", embeddings)
    assert [piece if isinstance(piece, str) else piece.name for piece in pieces] == ["a ", "long", ", ", "short", ""]


def test_each_of_an_embeddings_words_calls_it_and_the_longest_is_found_first(pipeline, tmp_path):
    words = ("badhandv4_16755", "badhandv4-old", "BADHANDV4")
    file = save(tmp_path / "e.safetensors", {"emb_params": vectors(1)}, aliases=words)
    [embedding] = read_embeddings([file], pipeline)

    assert embedding.aliases == ("badhandv4_16755", "badhandv4-old")
    pieces = split("BadHandV4_16755 cat, badhandv4-old; badhandv4, badhandv4_1", [embedding])
    assert [piece is embedding or piece for piece in pieces] == ["", True, " cat, ", True, "; ", True, ", badhandv4_1"]


def test_an_alias_that_means_something_else_already_is_left_out(pipeline, tmp_path):
    tensors = {"emb_params": vectors(1)}
    first = save(
        tmp_path / "a.safetensors", tensors, name="first", token="xyzzy", aliases=("THE", "learned_embeds", "plugh")
    )
    second = save(tmp_path / "b.safetensors", tensors, name="second", token="Plugh", aliases=("Learned_Embeds", "q_7"))

    embeddings = read_embeddings([first, second], pipeline)

    assert [embedding.aliases for embedding in embeddings] == [(), ("q_7",)]
    pieces = split("the learned_embeds plugh q_7", embeddings)
    assert [piece if isinstance(piece, str) else piece.name for piece in pieces] == [
        "the learned_embeds ", "second", " ", "second", "",
    ]  # fmt: skip


def test_vectors_take_the_weight_of_their_word_and_stay_in_one_chunk(pipeline, badhand):
    embeddings = read_embeddings([badhand], pipeline)
    chunks = chunked(pipeline.tokenizer, "a " * 73 + "(badhandv4:1.3) a", embeddings)

    assert [len(chunk) for chunk in chunks] == [73, 4]
    assert [token.weight for token in chunks[1]] == [1.3, 1.3, 1.3, 1.0]
    assert [token.vector is not None for token in chunks[1]] == [True, True, True, False]


def test_a_prompt_is_encoded_as_diffusers_does_with_a_loaded_textual_inversion(load, pipeline, badhand):
    import torch

    theirs = load("animatediff").pipeline
    theirs.load_textual_inversion({"badhandv4": vectors(3)}, token="badhandv4")
    prompt = ["a cat, badhandv4 in the rain", "rain"]
    with torch.no_grad():
        expected = theirs.encode_prompt(prompt, "cpu", 1, True, ["", "badhandv4"], clip_skip=2)
        texts = [*prompt, "", "badhandv4"]
        with Prompts(pipeline.tokenizer, texts, read_embeddings([badhand], pipeline)).on(pipeline):
            ours = pipeline.encode_prompt(prompt, "cpu", 1, True, ["", "badhandv4"], clip_skip=2)

    for own, other in zip(ours, expected, strict=True):
        assert torch.allclose(own, other, atol=1e-5)


def test_an_embedding_changes_the_video_in_the_prompt_and_in_the_negative_prompt(tiny, ask, badhand):
    without = tiny.generate(ask("a cat, badhandv4"))
    with_it = tiny.generate(asking(ask("a cat, badhandv4"), badhand))
    negative_without = tiny.generate(ask(negative_prompt="badhandv4"))
    negative_with_it = tiny.generate(asking(ask(negative_prompt="badhandv4"), badhand))

    assert not np.array_equal(with_it, without)
    assert not np.array_equal(negative_with_it, negative_without)


def test_an_embedding_called_by_its_public_name_makes_the_same_video_as_by_its_token(tiny, ask, badhand):
    named = replace(badhand, aliases=("badhandv4_16755",))
    [by_name] = tiny.videos([asking(ask("a cat, badhandv4_16755"), named)])

    assert by_name.made["embeddings_used"] == ["bad hands"]
    assert np.array_equal(by_name.frames, tiny.generate(asking(ask("a cat, badhandv4"), badhand)))


def test_an_embedding_whose_word_is_not_there_changes_nothing_and_the_receipt_says_so(tiny, ask, badhand):
    [unused] = tiny.videos([asking(ask(), badhand)])
    [used] = tiny.videos([asking(ask(negative_prompt="BADHANDV4"), badhand)])

    assert np.array_equal(unused.frames, tiny.generate(ask()))
    assert unused.made["embeddings_used"] == []
    assert used.made["embeddings_used"] == ["bad hands"]
    assert "embeddings_used" not in tiny.videos([ask()])[0].made


def test_five_embeddings_each_count(tiny, ask, tmp_path):
    files = [
        save(tmp_path / f"{n}.safetensors", {"emb_params": vectors(2, seed=n)}, name=f"e{n}", token=f"<style{n}>")
        for n in range(5)
    ]
    prompt = ", ".join(file.token for file in files)
    [video] = tiny.videos([asking(ask(prompt), *files)])
    [four] = tiny.videos([asking(ask(prompt), *files[:4])])

    assert video.made["embeddings_used"] == ["e0", "e1", "e2", "e3", "e4"]
    assert not np.array_equal(video.frames, four.frames)


def test_an_embedding_works_in_the_spans_of_a_video(tiny, ask, badhand):
    spans = (PromptSpan("a cat", 16), PromptSpan("a dog, (badhandv4:1.5)", 16))
    without = tiny.generate(ask(prompts=spans))
    with_it = tiny.generate(asking(ask(prompts=spans), badhand))

    difference = np.abs(with_it.astype(int) - without.astype(int)).mean(axis=(1, 2, 3))  # (32,)
    assert difference[28] > 3 * difference[4]


def test_an_embedding_works_in_the_second_pass(tiny, ask, badhand):
    request = ask("badhandv4", upscale=Upscale(72, 72, 1.0, 4.0, 2))

    assert not np.array_equal(tiny.generate(asking(request, badhand)), tiny.generate(request))


def test_the_next_video_knows_nothing_of_an_embedding(load, tiny, ask, badhand):
    fresh = load("animatediff").generate(ask("a cat, badhandv4"))
    tiny.generate(asking(ask("a cat, badhandv4", clip_skip=2), badhand))

    assert np.array_equal(tiny.generate(ask("a cat, badhandv4")), fresh)


def test_neither_tokenizer_nor_text_encoder_learn_a_word(tiny, pipeline, ask, badhand):
    def state():
        table = pipeline.text_encoder.get_input_embeddings()
        return len(pipeline.tokenizer), tuple(table.weight.shape), len(table._forward_hooks)

    before = state()
    tiny.generate(asking(ask("a cat, badhandv4"), badhand))

    assert state() == before


def test_a_cancelled_video_with_an_embedding_leaves_no_trace(tiny, ask, badhand):
    before = tiny.generate(ask("badhandv4"))

    def cancel(progress):
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        tiny.generate(asking(ask("badhandv4"), badhand), cancel)
    assert np.array_equal(tiny.generate(ask("badhandv4")), before)


def test_a_broken_embedding_fails_its_own_job_alone(tiny, ask, badhand):
    before = tiny.generate(ask())
    badhand.path.write_bytes(b"broken")

    with pytest.raises(AdapterUnavailable, match="bad hands"):
        tiny.generate(asking(ask("badhandv4"), badhand))
    assert np.array_equal(tiny.generate(ask()), before)
