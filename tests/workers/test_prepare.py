"""What a request refers to is brought onto the machine: pictures as a viewer shows them, files of the catalogue."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import workers.prepare
from models import AdapterFile
from polyreel.catalogue import Catalogue
from polyreel.entries import Adapter, ServedModel
from polyreel.errors import AdapterUnavailable, GenerationFailed
from polyreel.request import AdapterUse, ImageCondition, PromptSpan, VideoRequest
from polyreel.storage.local import LocalStorage
from workers.prepare import Preparer

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def make_preparer(stored: LocalStorage, tmp_path: Path) -> Callable[..., Preparer]:
    """Return a factory of preparers for one model and the given adapters."""

    def make(loras: dict[str, Adapter] | None = None, embeddings: dict[str, Adapter] | None = None) -> Preparer:
        models = {"sushi": ServedModel(family="animatediff", checkpoint="tiny:animatediff")}
        return Preparer(Catalogue(models, loras, embeddings), stored, tmp_path / "built")

    return make


@pytest.fixture
def read(make_preparer: Callable[..., Preparer], stored: LocalStorage, tmp_path: Path) -> Callable[..., np.ndarray]:
    """Store a picture, as a file's bytes or to be saved by Pillow, and return what the preparer makes of it."""

    def read(picture: Image.Image | bytes, **saving: Any) -> np.ndarray:
        path = tmp_path / "picture"
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            picture.save(path, **{"format": "PNG", **saving})
        stored.put(path, "in/picture.png")
        [pixels] = make_preparer().prepare(ask(images=(ImageCondition("in/picture.png"),))).images
        return pixels

    return read


def ask(**fields: Any) -> VideoRequest:
    return VideoRequest(
        model="sushi",
        prompts=(PromptSpan("a cat in the rain", 5),),
        height=64,
        width=64,
        fps=8.0,
        num_inference_steps=2,
        guidance_scale=4.0,
        seed=1,
        outputs=(),
        **fields,
    )


def test_a_request_that_refers_to_nothing_comes_back_as_it_is(make_preparer):
    prepared = make_preparer().prepare(ask())

    assert prepared.request == ask()
    assert (prepared.images, prepared.loras, prepared.embeddings) == ((), (), ())


# Pictures


def test_pictures_come_in_the_order_of_the_request(make_preparer, stored, tmp_path):
    for name, colour in (("a", RED), ("b", WHITE)):
        Image.new("RGB", (3, 2), colour).save(tmp_path / name, format="PNG")
        stored.put(tmp_path / name, f"in/{name}.png")

    first, last = (
        make_preparer().prepare(ask(images=(ImageCondition("in/b.png"), ImageCondition("in/a.png", -1)))).images
    )

    assert first.tolist() == [[[255, 255, 255]] * 3] * 2  # (height, width, 3)
    assert last.tolist() == [[[255, 0, 0]] * 3] * 2
    assert (first.dtype, first.flags.writeable, first.flags.c_contiguous) == (np.uint8, True, True)


def grey(value: float) -> tuple[int, int, int]:
    return (round(value), round(value), round(value))


def with_transparency() -> Image.Image:
    """One red pixel that is opaque, one that cannot be seen, one that can be seen through by half."""
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (255, 0, 0, 128)])
    return picture


def palette_with_transparency() -> Image.Image:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    picture.putdata([0, 1, 0])
    picture.info["transparency"] = 1
    return picture


PICTURES = {
    "RGB": (Image.new("RGB", (3, 1), RED), [RED, RED, RED]),
    "transparent on white": (with_transparency(), [RED, WHITE, (255, 127, 127)]),
    "grey and transparent": (with_transparency().convert("LA"), [grey(76), WHITE, grey(165)]),
    "palette with a transparent colour": (palette_with_transparency(), [RED, WHITE, RED]),
    "grey": (Image.fromarray(np.array([[0, 128, 255]], np.uint8)), [grey(0), grey(128), grey(255)]),
    "grey of 16 bits": (
        Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)),
        [grey(0), grey(128), grey(255)],
    ),
    "black and white": (Image.fromarray(np.array([[0, 1, 1]], bool)), [grey(0), WHITE, WHITE]),
}


@pytest.mark.parametrize(("picture", "pixels"), PICTURES.values(), ids=PICTURES)
def test_every_kind_of_picture_becomes_rgb_of_8_bits(read, picture, pixels):
    found = read(picture)

    assert found.shape == (1, 3, 3)
    assert np.abs(found[0].astype(int) - np.array(pixels)).max() <= 1


def test_a_png_of_16_bits_per_colour_keeps_its_colours(read):
    row = b"\x00" + struct.pack(">9H", 0xFFFF, 0, 0, 0x8000, 0x8000, 0x8000, 0, 0, 0xFFFF)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(row)),
            (b"IEND", b""),
        )
    )

    assert read(png)[0].tolist() == [[255, 0, 0], [128, 128, 128], [0, 0, 255]]


def test_a_jpeg_in_printers_colours_is_what_it_shows(read):
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red ink: no cyan, all magenta and yellow

    assert np.abs(read(cmyk, format="JPEG", quality=95).astype(int) - np.array(RED)).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "top_left", "shape"),
    [
        (1, (0, 0), (32, 64)),
        (2, (0, 63), (32, 64)),  # mirrored
        (3, (31, 63), (32, 64)),  # upside down
        (6, (31, 0), (64, 32)),  # a telephone held upright
        (8, (0, 63), (64, 32)),
    ],
)
def test_a_photograph_is_turned_as_the_camera_was(read, orientation, top_left, shape):
    pixels = np.zeros((32, 64, 3), np.uint8)
    corners = {(0, 0): (255, 0, 0), (0, 63): (0, 255, 0), (31, 0): (0, 0, 255), (31, 63): (255, 255, 255)}
    for (row, column), colour in corners.items():
        pixels[row // 16 * 16 : row // 16 * 16 + 16, column // 32 * 32 : column // 32 * 32 + 32] = colour
    exif = Image.Exif()
    exif[0x0112] = orientation

    found = read(Image.fromarray(pixels), format="JPEG", quality=95, exif=exif)

    assert found.shape == (*shape, 3)
    assert np.abs(found[2, 2].astype(int) - np.array(corners[top_left])).max() <= 12


def test_of_an_animation_the_first_frame_is_taken(read):
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), WHITE)]

    assert read(frames[0], format="GIF", save_all=True, append_images=frames[1:])[0, 0].tolist() == [255, 0, 0]


def test_a_picture_of_more_than_50_million_pixels_is_refused_before_it_is_decoded(read, monkeypatch):
    large = png_header(10_000, 5_001)
    monkeypatch.setattr(Image.Image, "convert", lambda *args: pytest.fail("it was decoded"))

    with pytest.raises(GenerationFailed, match="has 10000 x 5001 = 50010000 pixels, and at most 50000000 are read"):
        read(large)
    with pytest.raises(GenerationFailed, match="has more than 50000000 pixels"):
        read(png_header(100_000, 100_000))  # where Pillow itself refuses


def png_header(width: int, height: int) -> bytes:
    """Return the start of a PNG that says it has this size, before its first pixel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 100) + b"IDAT"


def test_the_largest_picture_is_read_and_one_pixel_more_is_not(read, monkeypatch):
    monkeypatch.setattr(workers.prepare, "MAX_PIXELS", 6)

    assert read(Image.new("RGB", (3, 2))).shape == (2, 3, 3)
    with pytest.raises(GenerationFailed, match="has 7 x 1 = 7 pixels"):
        read(Image.new("RGB", (7, 1)))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"P6 1 1 255\n\xff\x00\x00", png_header(8, 8)],
    ids=["empty", "text", "another format of Pillow's", "cut short"],
)
def test_what_is_no_picture_fails_the_job_with_a_sentence_for_the_client(read, content):
    with pytest.raises(
        GenerationFailed, match="A picture of this job cannot be read any more; submit it again"
    ) as failure:
        read(content)
    assert failure.value.__cause__ is not None


@pytest.mark.parametrize("key", ["in/gone.png", "../../etc/passwd", "/etc/passwd"])
def test_a_picture_that_is_gone_fails_the_job(make_preparer, key):
    with pytest.raises(GenerationFailed, match="cannot be read any more; submit it again"):
        make_preparer().prepare(ask(images=(ImageCondition(key),)))


# LoRAs and embeddings


def test_loras_and_embeddings_are_found_where_the_catalogue_says(make_preparer, tmp_path):
    high, low = tmp_path / "high.safetensors", tmp_path / "low.safetensors"
    high.touch()
    low.touch()
    preparer = make_preparer(
        loras={
            "zoom": Adapter(checkpoint=str(high), second=str(low), models=("sushi",)),
            "film": Adapter(checkpoint=str(low), models=("sushi",)),
        },
        embeddings={"bad hands": Adapter(checkpoint=str(high), models=("sushi",), token="badhandv4")},
    )

    prepared = preparer.prepare(ask(loras=(AdapterUse("film", 0.5), AdapterUse("zoom")), embeddings=("bad hands",)))

    assert prepared.loras == (
        AdapterFile("film", low, None, 0.5),
        AdapterFile("zoom", high, low, 1.0),
    )
    assert prepared.embeddings == (AdapterFile("bad hands", high, token="badhandv4", aliases=("high",)),)


def test_an_embedding_is_meant_by_its_public_names_and_its_files_name_too(make_preparer, tmp_path):
    path = tmp_path / "BadHand-v4.safetensors"
    path.touch()
    names = {"novita": ("badhandv4_16755.safetensors",), "universal": ("BADHANDV4", "bad-hand")}
    adapter = Adapter(checkpoint=str(path), models=("sushi",), token="badhandv4", names=names)

    [file] = make_preparer(embeddings={"bad": adapter}).prepare(ask(embeddings=("bad",))).embeddings

    assert file.token == "badhandv4"
    assert file.aliases == ("badhandv4_16755.safetensors", "bad-hand", "badhandv4_16755", "BadHand-v4")


def test_tiny_adapters_are_built_where_they_are_needed(make_preparer, tmp_path):
    preparer = make_preparer(
        loras={"sketch": Adapter(checkpoint="tiny:lora-animatediff", models=("sushi",))},
        embeddings={"bad": Adapter(checkpoint="tiny:embedding-animatediff", models=("sushi",), token="bad")},
    )

    prepared = preparer.prepare(ask(loras=(AdapterUse("sketch", 0.7),), embeddings=("bad",)))

    for file in (*prepared.loras, *prepared.embeddings):
        assert file.path.parent == tmp_path / "built"
        assert file.path.suffix == ".safetensors"
        assert file.path.is_file()
    assert prepared.loras[0].strength == 0.7


def test_a_file_of_the_hub_is_found_in_the_cache(make_preparer, tmp_path, monkeypatch):
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = cache / "models--owner--name" / "snapshots" / commit / "styles"
    snapshot.mkdir(parents=True)
    (snapshot / "film.safetensors").touch()
    preparer = make_preparer(
        loras={
            "film": Adapter(checkpoint="owner/name/styles/film.safetensors", revision=commit, models=("sushi",)),
            "gone": Adapter(checkpoint="owner/name/styles/gone.safetensors", revision=commit, models=("sushi",)),
        }
    )

    assert preparer.prepare(ask(loras=(AdapterUse("film"),))).loras[0].path == snapshot / "film.safetensors"
    with pytest.raises(AdapterUnavailable, match="LoRA gone is not on this machine"):
        preparer.prepare(ask(loras=(AdapterUse("gone"),)))


@pytest.mark.parametrize("name", ["old-style", "../../../etc/passwd", "/etc/passwd", "tiny:lora-animatediff", ""])
def test_a_name_that_the_catalogue_has_not_is_never_taken_for_a_path(make_preparer, tmp_path, name):
    (tmp_path / "old-style").touch()
    preparer = make_preparer()

    with pytest.raises(AdapterUnavailable, match=f"The LoRA {name} is not served any more; choose another"):
        preparer.prepare(ask(loras=(AdapterUse(name),)))
    with pytest.raises(AdapterUnavailable, match=f"The embedding {name} is not served any more; choose another"):
        preparer.prepare(ask(embeddings=(name,)))
    assert not (tmp_path / "built").exists()


def test_a_file_that_is_not_on_this_machine_is_named_without_its_path(make_preparer, tmp_path):
    path = tmp_path / "secret-folder" / "film.safetensors"
    preparer = make_preparer(
        loras={"film": Adapter(checkpoint=str(path), models=("sushi",))},
        embeddings={"bad": Adapter(checkpoint=str(path), models=("sushi",), token="bad")},
    )

    for request, name in ((ask(loras=(AdapterUse("film"),)), "LoRA film"), (ask(embeddings=("bad",)), "embedding bad")):
        with pytest.raises(AdapterUnavailable, match=f"The {name} is not on this machine") as failure:
            preparer.prepare(request)
        assert "secret-folder" not in failure.value.message
        assert "secret-folder" in str(failure.value.__cause__)  # for the operator's log
