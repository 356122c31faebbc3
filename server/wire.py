"""Field types that the wire models of several dialects share.

Real clients send numbers as text ("512"), whole numbers as floats (17.0), and null for "not given". JSON booleans are
no numbers, though Python's are.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from polyreel.entries import Limits
from polyreel.errors import InvalidRequest
from polyreel.request import MAX_SEED, draw_seed


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number_expected", "must be a number")
    return value


#: Longest prompt where a contract names no limit, characters: no text encoder reads more, and records stay small.
MAX_PROMPT = 10_000

#: A whole number: 512, 512.0 or "512"; not true, not 1.5.
Integer = Annotated[int, BeforeValidator(_no_boolean)]

#: A finite number; not true, not NaN.
Number = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]


def _joined(value: object) -> object:
    if isinstance(value, list):
        if not all(isinstance(prompt, str) for prompt in value):
            raise PydanticCustomError("prompts_expected", "must be a string or a list of strings")
        return ", ".join(prompt for prompt in value if prompt.strip())
    return value


#: One prompt, or a list of them that is joined by commas.
Prompts = Annotated[str, BeforeValidator(_joined)]


def check_range(field: str, value: float, low: float, high: float, hint: str = "") -> None:
    """Raise `InvalidRequest` unless `low <= value <= high`; `hint` is appended to the message."""
    if not low <= value <= high:
        allowed = _plain(low) if low == high else f"between {_plain(low)} and {_plain(high)}"
        raise InvalidRequest(f"{field} must be {allowed}, got {_plain(value)}{hint}", field)


def _plain(value: float) -> str:
    """Return a number as people write it: 21 also where a client sent 21.0."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text if len(text) <= 30 else f"a number of {len(text)} digits"


def check_prompt(field: str, prompt: str | None) -> str:
    """Return `prompt`, or raise `InvalidRequest` when it is absent, blank or too long."""
    if prompt is None:
        raise InvalidRequest(f"{field} is required", field)
    if not prompt.strip():
        raise InvalidRequest(f"{field} must not be blank", field)
    return check_length(field, prompt)


def check_length(field: str, text: str | None, most: int = MAX_PROMPT) -> str:
    """Return `text`, "" for None, or raise `InvalidRequest` when it has more than `most` characters."""
    if len(text or "") > most:
        raise InvalidRequest(f"{field} must be at most {most} characters, got {len(text or '')}", field)
    return text or ""


def choose_seed(field: str, seed: int | None) -> int:
    """Return the seed to run with: the given one, or a drawn one for null and -1.

    Raises:
        InvalidRequest: below -1 or over 2**63 - 1.
    """
    if seed is None or seed == -1:
        return draw_seed()
    check_range(field, seed, -1, MAX_SEED)
    return seed


def check_limits(limits: Limits, least_side: int, **named: tuple[str, float]) -> None:
    """Check a request against its catalogue entry's limits.

    Args:
        least_side: smallest height and width in pixels.
        named: for "num_frames", "height", "width" and "num_inference_steps": the client's own name of the field, and
            the value.

    Raises:
        InvalidRequest: names the field in the client's words, what came and what is allowed.
    """
    ranges = {
        "num_frames": (1, limits.num_frames),
        "height": (least_side, limits.side),
        "width": (least_side, limits.side),
        "num_inference_steps": (1, limits.num_inference_steps),
    }
    for neutral, (field, value) in named.items():
        check_range(field, value, *ranges[neutral])
