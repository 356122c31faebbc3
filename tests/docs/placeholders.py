"""What readers put in the place of a page's words: an address, a key, an id."""

from __future__ import annotations

from collections.abc import Mapping

#: The words of the pages, and by which name a test gives its own.
WORDS = {
    "http://127.0.0.1:8000": "base",
    "the-key-that-polyreel-up-showed": "key",
    "the-key": "key",
    "SzdpWYtR": "key_id",
    "whsec_…": "webhook_secret",
}


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a block with the placeholders replaced.

    Args:
        values: by the names of `WORDS`; what is not there stays.
    """
    for word, name in WORDS.items():
        text = text.replace(word, values.get(name, word))
    return text
