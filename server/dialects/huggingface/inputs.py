"""What a body is: a prompt, or a picture in one of the ways in which clients send one.

huggingface_hub sends a picture with parameters as JSON in bare base64, and one without any as the body itself, a file
with its Content-Type and bytes with none. @huggingface/inference sends a blob as the body.
"""

from __future__ import annotations

import base64
import binascii
import re

#: How files of the formats begin that a picture may have; BMP's two letters alone could begin a prompt.
_MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM....\x00\x00\x00\x00", re.DOTALL)

_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*\{")  # a byte order mark is tolerated, as everywhere
_DATA_URL = re.compile(r"data:image/", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\r\n-]+")

#: Characters of a text that are looked at; more than any magic takes in base64, also in lines.
_HEAD = 64


def is_json(body: bytes) -> bool:
    """Return whether a body is meant as the JSON object that this contract takes."""
    return bool(_JSON.match(body))


def is_picture_file(body: bytes, content_type: str) -> bool:
    """Return whether a body that is no JSON is a picture, by its first bytes or by what its client says."""
    return bool(_MAGIC.match(body)) or content_type.strip().lower().startswith("image/")


def is_picture_text(text: str) -> bool:
    """Return whether `inputs` are a picture: a data URL, or base64 of a file that begins as pictures do.

    No prompt is one by accident: the first blank ends it.
    """
    if _DATA_URL.match(text):
        return True
    if not _BASE64.fullmatch(text[:_HEAD]):
        return False
    head = "".join(text[:_HEAD].split()).rstrip("=").translate(_URL_SAFE)
    try:
        return bool(_MAGIC.match(base64.b64decode(head[: len(head) // 4 * 4], validate=True)))
    except binascii.Error:
        return False


_URL_SAFE = str.maketrans("-_", "+/")
