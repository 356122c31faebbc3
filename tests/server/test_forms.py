"""Forms: what they hold, and what of a hostile one is refused."""

from __future__ import annotations

import pytest
from fastapi import Request

from polyreel.errors import InvalidRequest
from server.forms import Form, is_form, parse_form

pytestmark = pytest.mark.anyio


def request(content_type: str | None = "multipart/form-data; boundary=B") -> Request:
    headers = [] if content_type is None else [(b"content-type", content_type.encode())]
    return Request({"type": "http", "headers": headers})


def part(disposition: str, content: bytes, more: str = "") -> bytes:
    return f"--B\r\nContent-Disposition: form-data; {disposition}\r\n{more}\r\n".encode() + content + b"\r\n"


async def read(*parts: bytes) -> Form:
    return await parse_form(request(), b"".join(parts) + b"--B--\r\n")


async def test_texts_and_files_come_by_their_names() -> None:
    form = await read(
        part('name="prompt"', "a 猫\r\n--C".encode()),
        part('name="a b"', b""),
        part('name="picture"; filename="../x.png"', b"\x89PNG\r\n\x00\xff", "Content-Type: image/png\r\n"),
        part("name=plain; filename*=UTF-8''%c3%a9.png", b"\xff"),
    )
    assert form == Form({"prompt": "a 猫\r\n--C", "a b": ""}, {"picture": b"\x89PNG\r\n\x00\xff", "plain": b"\xff"})


async def test_brackets_make_objects_and_lists() -> None:
    form = await read(
        part('name="ref[image_url]"', b"http://a.test/"),
        part('name="ref[detail]"', b"low"),
        part('name="tags[]"', b"a"),
        part('name="tags[]"', b"b"),
    )
    assert form.fields == {"ref": {"image_url": "http://a.test/", "detail": "low"}, "tags": ["a", "b"]}


async def test_a_form_of_megabytes_is_read_whole() -> None:
    content = bytes(range(256)) * 8192
    assert (await read(part('name="f"; filename="f"', content))).files == {"f": content}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "The request body is not valid multipart/form-data: its last boundary is missing."),
        (part('name="a"', b"1"), "The request body is not valid multipart/form-data: its last boundary is missing."),
        (b"nonsense", "The request body is not valid multipart/form-data: "),
        (b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n1', "its last boundary is missing."),
        (part('name="a"', b"1") + part('name="a"', b"2") + b"--B--", "a comes twice; send it once"),
        (part('name="a[b]"', b"1") + part('name="a[b]"', b"2") + b"--B--", "b comes twice; send it once"),
        (part('name="a[]"', b"1") + part('name="a[b]"', b"2") + b"--B--", "a comes in two forms; send it once"),
        (part('name="a"', b"1") + part('name="a[b]"', b"2") + b"--B--", "a comes in two forms; send it once"),
        (part('name="a"', b"\xff") + b"--B--", "a is not UTF-8 text (byte 0)"),
        (part('filename="a"', b"1") + b"--B--", "Each part of the form needs a name of 1 to 100 characters."),
        (part(f'name="{"a" * 101}"', b"1") + b"--B--", "Each part of the form needs a name of 1 to 100 characters."),
        (b"".join(part(f'name="a{n}"', b"1") for n in range(65)) + b"--B--", "The form has more than 64 parts."),
        (part('name="a"', b"1", f"X: {'x' * 5000}\r\n") + b"--B--", "The request body is not valid multipart"),
        (part('name="a"', b"1", "X: 1\r\n" * 20) + b"--B--", "The request body is not valid multipart"),
    ],
)  # fmt: skip
async def test_a_hostile_form_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await parse_form(request(), body)
    assert said in refused.value.message


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
async def test_a_form_without_a_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="needs a boundary"):
        await parse_form(request(content_type), b"--B--")


@pytest.mark.parametrize(
    ("content_type", "is_one"),
    [("multipart/form-data; boundary=B", True), ("Multipart/Form-Data;boundary=B", True), ("application/json", False),
     ("multipart/mixed; boundary=B", False), (None, False)],
)  # fmt: skip
async def test_only_the_header_makes_a_form(content_type: str | None, is_one: bool) -> None:
    assert is_form(request(content_type)) is is_one


async def test_equal_forms_are_equal_bytes_and_others_are_not() -> None:
    forms = [Form({"a": "1", "b": "2"}, {"f": b"x"}), Form({"b": "2", "a": "1"}, {"f": b"x"})]
    others = [Form({"a": "1"}, {"f": b"x"}), Form({"a": "1", "b": "2"}, {"f": b"y"}), Form({"a": "1", "b": "2"}, {})]
    assert forms[0].canonical() == forms[1].canonical()
    assert len({form.canonical() for form in [forms[0], *others]}) == 4
