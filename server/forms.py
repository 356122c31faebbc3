"""Reads multipart/form-data (RFC 7578) from a body that is in memory already.

Starlette's own reader spools large parts to disk and keeps what clients call their files. Here nothing touches the
disk, a file's name is never looked at, and the number of parts is bounded: each costs more memory than its bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from polyreel.errors import InvalidRequest

#: Most parts of one form; the longest documented one of any dialect has a dozen.
MOST_PARTS = 64

_LONGEST_NAME = 100  # characters

#: Longest form that is read on the event loop, bytes.
_BRIEF = 64 * 1024

#: `name[key]`, in which clients write an object, and `name[]`, in which they write a list.
_NESTED = re.compile(r"(?P<name>[^\[\]]+)\[(?P<key>[^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Form:
    """What a form holds.

    Args:
        fields: texts by name. `a[b]` is an object in `a`, `a[]` a list. Any: texts, objects and lists of texts.
        files: the bytes of each file by name.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def canonical(self) -> bytes:
        """Return the same bytes for the same form: clients draw a new boundary each time that they repeat one."""
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        return json.dumps([self.fields, digests], sort_keys=True).encode()


def is_form(request: Request) -> bool:
    """Return whether a request says that its body is multipart/form-data."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


async def parse_form(request: Request, body: bytes) -> Form:
    """Return the form in `body`.

    Raises:
        InvalidRequest: it is no whole form, has too many parts, or a text that is not UTF-8.
    """
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("The Content-Type multipart/form-data needs a boundary; let your client set the header.")
    return _parse(boundary, body) if len(body) <= _BRIEF else await run_in_threadpool(_parse, boundary, body)


def _parse(boundary: bytes, body: bytes) -> Form:
    reader = _Reader()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.begin,
                "on_part_data": reader.data,
                "on_header_field": reader.header_name,
                "on_header_value": reader.header_value,
                "on_header_end": reader.header_end,
                "on_part_end": reader.end,
                "on_end": reader.whole,
            },
        )
        parser.write(body)
        parser.finalize()
    except MultipartParseError as err:
        raise InvalidRequest(f"The request body is not valid multipart/form-data: {err}.") from None
    if not reader.is_whole:
        raise InvalidRequest("The request body is not valid multipart/form-data: its last boundary is missing.")
    return reader.form


class _Reader:
    """Collects parts as the parser comes across them."""

    def __init__(self) -> None:
        self.form = Form()
        self.is_whole = False
        self._parts = 0
        self._content = bytearray()
        self._name = self._value = b""
        self._disposition: dict[bytes, bytes] = {}
        self._is_file = False

    def begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidRequest(f"The form has more than {MOST_PARTS} parts.")
        self._content, self._disposition, self._is_file = bytearray(), {}, False

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, self._disposition = parse_options_header(self._value)
            # RFC 7578 forbids `filename*`, some clients send it, and the parser drops it.
            self._is_file = b"filename" in self._disposition or b"filename*=" in self._value.lower()
        self._name = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def end(self) -> None:
        name = _text("a part's name", self._disposition.get(b"name", b""))
        if not 0 < len(name) <= _LONGEST_NAME:
            raise InvalidRequest(f"Each part of the form needs a name of 1 to {_LONGEST_NAME} characters.")
        if self._is_file:
            _put(self.form.files, name, bytes(self._content))
        else:
            self._put_field(name, _text(name, bytes(self._content)))

    def whole(self) -> None:
        self.is_whole = True

    def _put_field(self, name: str, text: str) -> None:
        nested = _NESTED.fullmatch(name)
        if nested is None:
            _put(self.form.fields, name, text)
            return
        kind = dict if nested["key"] else list
        found = self.form.fields.setdefault(nested["name"], kind())
        if not isinstance(found, kind):
            raise InvalidRequest(f"{nested['name']} comes in two forms; send it once", nested["name"])
        if isinstance(found, list):
            found.append(text)
        else:
            _put(found, nested["key"], text)


def _put(into: dict[str, Any], name: str, value: object) -> None:
    if name in into:
        raise InvalidRequest(f"{name} comes twice; send it once", name)
    into[name] = value


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as err:
        raise InvalidRequest(f"{name} is not UTF-8 text (byte {err.start})", name) from None
