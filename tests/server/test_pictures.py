"""Pictures from clients are decoded strictly, and refused before any job is acknowledged."""

from __future__ import annotations

import base64
import time

import numpy as np
import pytest
from PIL import Image

from polyreel.errors import InvalidRequest
from server.pictures import decode, look_at
from tests.server.pictures import encoded, png

PICTURE = png(8, 6)
TEXT = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.rstrip("="),
        f"  {TEXT[:20]}\r\n{TEXT[20:]}\n",
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/svg+xml;charset=utf-8;base64,{TEXT}",
        base64.urlsafe_b64encode(PICTURE).decode(),
    ],
    ids=["plain", "without padding", "in lines", "data url", "data url with parameters", "url-safe"],
)
def test_base64_is_read_as_clients_write_it(text):
    assert decode("image", text) == PICTURE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "image must be a picture in base64 or an https:// link to one, got nothing"),
        ("data:image/png;base64,", "image must be a picture in base64 or an https:// link to one, got nothing"),
        ("not base64!", "image must be a picture in base64 or an https:// link to one, got text that is neither"),
        ("ü", "image must be a picture in base64 or an https:// link to one, got text that is neither"),
        ("A", "image must be a picture in base64 or an https:// link to one, got text that is neither"),
    ],
)
def test_other_text_is_refused(text, message):
    with pytest.raises(InvalidRequest) as refusal:
        decode("image", text)
    assert (refusal.value.message, refusal.value.field) == (message, "image")


def test_more_than_15_megabytes_are_refused():
    with pytest.raises(InvalidRequest, match="image must be a picture of at most 15000000 bytes, got 15000001"):
        decode("image", base64.b64encode(b"x" * 15_000_001).decode())


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("JPEG", "L"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
    ],
)
def test_each_usual_format_is_known_by_its_content(format, mode):
    look_at("image", encoded(Image.new(mode, (8, 6)), format))


@pytest.mark.parametrize(
    "content",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(Image.new("RGB", (8, 6)), "TIFF"),
        encoded(Image.new("RGB", (32, 32)), "ICO"),
        b"%PDF-1.4",
        b"GIF",
        b"\x00" * 1000,
    ],
    ids=["svg", "tiff", "ico", "pdf", "three bytes", "zeros"],
)
def test_anything_else_is_no_picture(content):
    with pytest.raises(InvalidRequest, match=r"image must be a picture \(PNG, JPEG, WEBP, GIF, BMP\), got something"):
        look_at("image", content)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_that_is_cut_off_is_damaged(format):
    gradient = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3))
    content = encoded(gradient.convert("P") if format == "GIF" else gradient, format)

    with pytest.raises(InvalidRequest, match="image is a damaged picture; send it again whole"):
        look_at("image", content[: len(content) * 2 // 3])


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0II+\0\x08\0\0\0"])
def test_a_picture_whose_exif_ends_too_soon_is_damaged(format, exif):
    with pytest.raises(InvalidRequest, match="image is a damaged picture; send it again whole"):
        look_at("image", encoded(Image.new("RGB", (8, 6)), format, exif=exif))


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (9000, 9000, "9000x9000 = 81000000"),
        (30000, 1000, "30000x1000 = 30000000"),
        (14000, 14000, "many times more"),
    ],
)
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(width, height, said):
    bomb = encoded(Image.new("1", (width, height)))
    started = time.process_time()

    with pytest.raises(InvalidRequest, match=f"image must have at most 25000000 pixels, got {said}"):
        look_at("image", bomb)
    assert time.process_time() - started < 1  # decoding 196 million pixels takes several seconds


def test_two_thousand_damaged_files_are_refused_or_read_and_never_crash():
    random = np.random.default_rng(5)
    gradient = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3))
    whole = [
        encoded(gradient.convert("P") if f == "GIF" else gradient, f) for f in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    ]
    outcomes = {"read": 0, "refused": 0}
    for number in range(2000):
        content = bytearray(whole[number % len(whole)])
        for place in random.integers(0, len(content), 1 + number % 7):
            content[place] = random.integers(0, 256)
        try:
            look_at("image", bytes(content))
            outcomes["read"] += 1
        except InvalidRequest:
            outcomes["refused"] += 1

    assert sum(outcomes.values()) == 2000
    assert min(outcomes.values()) > 100


def gradient(width: int, height: int) -> Image.Image:
    """Return a picture of which no two neighbours are alike."""
    return Image.fromarray(np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3))


def moving(format: str) -> bytes:
    """Return a picture of three frames."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def turned(format: str) -> bytes:
    """Return a picture of 8x6 that its EXIF says to turn by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(gradient(8, 6), format, exif=exif)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (moving("GIF"), (8, 6)),
        (moving("PNG"), (8, 6)),
        (moving("WEBP"), (8, 6)),
        (turned("JPEG"), (6, 8)),
        (turned("PNG"), (6, 8)),
        (turned("WEBP"), (6, 8)),
        (png(30000, 1), (30000, 1)),
        (png(1, 1), (1, 1)),
        (encoded(gradient(8, 6), "JPEG", progressive=True), (8, 6)),
        (PICTURE + b"<?php system($_GET['x']); ?>", (8, 6)),
        (PICTURE + b"PK\x03\x04" + b"x" * 100, (8, 6)),
    ],
    ids=[
        "gif",
        "apng",
        "animated webp",
        "turned jpeg",
        "turned png",
        "turned webp",
        "a line",
        "a pixel",
        "progressive",
        "and php",
        "and zip",
    ],
)
def test_an_odd_picture_is_taken_for_what_it_shows(content, size):
    assert look_at("image", content) == size


@pytest.mark.parametrize(
    "content",
    [
        b"GIF89a<script>alert(1)</script>",
        b"<html><img src=x onerror=alert(1)></html>",
        b"8BPS\x00\x01" + bytes(100),
        b"\x00\x00\x00\x1cftypavif" + bytes(100),
        b"\x00\x00\x00\x18ftypheic" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
        b"P6 1000000 1000000 255\n",
        b"/* XPM */",
        b"MZ" + bytes(1000),
        PICTURE[:7],
    ],
    ids=["gif and script", "html", "psd", "avif", "heic", "eps", "ppm", "xpm", "program", "png's first bytes"],
)
def test_a_file_of_another_kind_is_refused_at_once(content):
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        look_at("image", content)
    assert time.process_time() - began < 0.2


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_they_are_decoded():
    whole = encoded(Image.new("L", (5000, 5000), 128), "JPEG", progressive=True, quality=10)
    last_scan = whole[whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda")) : -2]
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match=r"^image is a JPEG of more than 50 scans; save it anew$"):
        look_at("image", whole[:-2] + last_scan * 2000 + whole[-2:])
    assert time.monotonic() - began < 10  # 20 ms a scan: 40 s


@pytest.mark.parametrize(
    "head",
    ["data:image/png,", "data:;base64,", "data:text/html;base64,", "data:image/png;base64;", "data:", "blob:null/"],
)
def test_a_data_url_that_is_none_of_a_picture_in_base64_is_refused(head):
    with pytest.raises(
        InvalidRequest,
        match=r"^image must be a picture in base64 or an https:// link to one, got text that is neither$",
    ):
        decode("image", head + TEXT)
