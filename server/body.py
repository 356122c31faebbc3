"""Reads a request's JSON body strictly, whatever its Content-Type says.

`curl -d`, PHP and `requests.post(data=…)` send JSON with a form's Content-Type, so the header is not asked. What
JSON does not have (NaN, Infinity) or what would blow up later (numbers beyond a float's range, lone surrogates,
100,000 brackets) is refused here, in one place, for every dialect.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from polyreel.errors import InvalidRequest, RequestTooLarge, RequestTooSlow

Wire = TypeVar("Wire", bound=BaseModel)

#: Most objects and lists in one body. A list of two bytes becomes 56 in memory: 20 MiB of them took 470 MiB and held
#: the event loop for 2.75 s, before any key was asked.
_MOST_CONTAINERS = 10_000

#: Most commas in one body, and most digits of a whole number. The parser lets go of the interpreter at nothing but
#: fractions, so its thread holds the event loop too: two million names took 3.1 s, five thousand long numbers 0.6 s;
#: what stands here takes 0.1 s.
_MOST_COMMAS = 100_000
_MOST_DIGITS = 100

#: How long a body may take: this many seconds, and a second more for each so many bytes that came (a phone's uplink).
BODY_S = 20.0
_BYTES_A_SECOND = 64 * 1024

#: Longest body that is parsed on the event loop, bytes: under a millisecond.
_BRIEF = 64 * 1024


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the raw body.

    Raises:
        RequestTooLarge: more than `max_bytes`, announced or sent; the rest is not read.
        RequestTooSlow: it does not come to an end; one byte a second is cut after 20 s.
    """
    too_large = RequestTooLarge(f"The request body is larger than {max_bytes} bytes.")
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(BODY_S) as limit:
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
                limit.reschedule(began + BODY_S + len(body) / _BYTES_A_SECOND)
    except TimeoutError:
        raise RequestTooSlow(f"The request body did not come in time; {len(body)} bytes came.") from None
    return bytes(body)


async def parse_object(body: bytes, *, strict: bool = True) -> dict[str, Any]:
    """Return the JSON object in `body`. Any: the dialect's wire model checks the values.

    Args:
        strict: False takes texts with line ends in them, which JSON does not have and shells write.

    Raises:
        InvalidRequest: not UTF-8, not JSON, not an object, or a value that cannot be processed faithfully.
    """
    # Brackets in texts count too: no prompt holds so many, and telling them apart would be parsing.
    if body.count(b"[") + body.count(b"{") > _MOST_CONTAINERS:
        raise InvalidRequest(f"The request body has more than {_MOST_CONTAINERS} objects and lists.")
    if body.count(b",") > _MOST_COMMAS:
        raise InvalidRequest(f"The request body has more than {_MOST_COMMAS} commas.")
    return _parse(body, strict) if len(body) <= _BRIEF else await run_in_threadpool(_parse, body, strict)


def _parse(body: bytes, strict: bool) -> dict[str, Any]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InvalidRequest(f"The request body is not UTF-8 text (byte {err.start}).") from None
    try:
        value = json.loads(text, strict=strict, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except json.JSONDecodeError as err:
        raise InvalidRequest(f"The request body is not valid JSON: {err.msg} (line {err.lineno}).") from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    _refuse_surrogates(text, value)
    return value


def _refuse_constant(name: str) -> float:
    raise InvalidRequest(f"The request body holds {name}, which is not a number in JSON.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidRequest(f"The request body holds the number {text[:20]}, which is too large.")
    return value


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise InvalidRequest(f"The request body holds the number {text[:20]}…, which is too large.")
    return int(text)


def _refuse_surrogates(text: str, value: object) -> None:
    """Refuse escapes such as \\ud800 alone: they are no characters, and fail wherever the text is written."""
    if "\\ud" not in text.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        raise InvalidRequest("The request body holds half of a surrogate pair, which is not a character.") from None


def validate(model: type[Wire], body: dict[str, Any]) -> Wire:
    """Return `body` as a wire model.

    Raises:
        InvalidRequest: names the first field that is wrong, what came, and what is allowed.
    """
    try:
        return model.model_validate(body)
    except ValidationError as err:
        problem = err.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise InvalidRequest(_sentence(field, problem), field) from None


def _sentence(field: str, problem: Any) -> str:
    """Return one sentence about a pydantic problem. Any: pydantic's own TypedDict of error details."""
    if problem["type"] == "missing":
        return f"{field} is required"
    context = problem.get("ctx", {})
    rule = _RULES.get(problem["type"])
    if rule is not None:
        return f"{field} must be {rule.format(**context)}, got {_shown(problem['input'])}"
    said, got = problem["msg"].removeprefix("Value error, "), _shown(problem["input"])
    return f"{field} {said}, got {got}" if said.startswith("must ") else f"{field}: {said} (got {got})"


_RULES = {
    "string_type": "a string",
    "string_too_short": "a string of at least {min_length} characters",
    "string_too_long": "a string of at most {max_length} characters",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "number_expected": "a number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "too_long": "a list of at most {max_length} items",
    "too_short": "a list of at least {min_length} items",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "greater_than": "more than {gt}",
    "less_than": "less than {lt}",
    "literal_error": "one of {expected}",
}


def _shown(value: object) -> str:
    """Return a short, printable form of what came; long texts are cut, containers only named."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
