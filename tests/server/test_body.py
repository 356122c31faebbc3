"""What a body may cost before its sender is known."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import server.body
from polyreel.errors import InvalidRequest, RequestTooLarge
from polyreel.profiles import load_settings
from server.body import parse_object, read_body, validate
from server.dialects.novita.txt2video import TextToVideo
from server.dialects.universal.request import UniversalBody

pytestmark = pytest.mark.anyio


def cpu_s(work: Callable[[], object]) -> float:
    """Return what work costs of a processor, in seconds: unlike waiting, other programs do not lengthen that."""
    began = time.process_time()
    work()
    return time.process_time() - began


def lists(count: int) -> bytes:
    """Return an object that holds `count` lists besides itself."""
    return b'{"x": [' + b",".join([b"[]"] * (count - 1)) + b"]}"


async def test_ten_thousand_objects_and_lists_are_read_and_one_more_refused() -> None:
    assert await parse_object(lists(9_999)) == {"x": [[]] * 9_998}
    with pytest.raises(InvalidRequest) as refused:
        await parse_object(lists(10_000))
    assert refused.value.message == "The request body has more than 10000 objects and lists."


async def test_twenty_mebibytes_of_lists_cost_neither_time_nor_memory() -> None:
    body = lists(7_000_000)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        await parse_object(body)
    took_s, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    a_fifth = lists(1_400_000)
    assert took_s < cpu_s(lambda: json.loads(a_fifth))
    assert peak < 1_000_000


async def test_a_hundred_thousand_commas_are_read_and_one_more_refused() -> None:
    numbers = b'{"x": [' + b"1," * 99_999 + b'1], "y": 1}'
    assert len((await parse_object(numbers))["x"]) == 100_000
    with pytest.raises(InvalidRequest) as refused:
        await parse_object(numbers.replace(b"[", b"[1,"))
    assert refused.value.message == "The request body has more than 100000 commas."


async def test_a_hundred_digits_are_a_number_and_one_more_is_refused() -> None:
    assert await parse_object(b'{"x": %s}' % (b"9" * 100)) == {"x": 10**100 - 1}
    with pytest.raises(InvalidRequest) as refused:
        await parse_object(b'{"x": %s}' % (b"9" * 101))
    assert refused.value.message == "The request body holds the number 99999999999999999999…, which is too large."


@pytest.mark.parametrize("thing", [b'"%07x": 1', b"9999999"], ids=["names", "numbers"])
async def test_no_body_of_twenty_mebibytes_holds_the_event_loop_for_long(thing: bytes) -> None:
    things = [thing % number for number in range(1_500_000)] if b"%" in thing else [thing * 600] * 4_900
    body = b'{"x": %s}' % (b"{%s}" if b"%" in thing else b"[%s]") % b",".join(things)
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        await parse_object(body)
    took_s = time.process_time() - began
    assert took_s < cpu_s(lambda: json.loads(body)) / 2  # some 0.05 s; all of it takes 2 s and 0.6 s


@pytest.mark.parametrize(("length", "beside_the_loop"), [(65_536, False), (65_537, True)])
async def test_a_long_body_is_parsed_beside_the_event_loop(
    length: int, beside_the_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def finite(text: str) -> float:
        threads.append(threading.current_thread())
        return float(text)

    monkeypatch.setattr(server.body, "_finite", finite)
    body = b'{"x": 0.5, "y": "' + b"a" * (length - 19) + b'"}'
    assert len(body) == length
    assert (await parse_object(body))["x"] == 0.5
    assert (threads[0] is not threading.main_thread()) is beside_the_loop


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (
            UniversalBody,
            {"inputs": {"prompt": "x", "outputs": [1] * 500_000}},
            "inputs.outputs.0 must be a string, got 1",
        ),
        (
            TextToVideo,
            {"model_name": "x", "height": 256, "width": 256, "steps": 8, "prompts": [1] * 500_000},
            "prompts.0 must be an object, got 1",
        ),
    ],
    ids=["universal", "novita"],
)
async def test_half_a_million_wrong_items_cost_as_much_as_one(
    model: type[BaseModel], body: dict[str, Any], message: str
) -> None:
    def refuse_each_of_fifty_thousand() -> None:
        with pytest.raises(ValidationError):
            TypeAdapter(list[str]).validate_python([1] * 50_000)

    began = time.process_time()
    with pytest.raises(InvalidRequest) as refused:
        validate(model, body)
    assert time.process_time() - began < cpu_s(refuse_each_of_fifty_thousand)
    assert refused.value.message == message


async def test_a_body_over_a_mebibyte_is_refused_unless_the_operator_says_otherwise() -> None:
    class Sent:
        """A request whose length is not announced."""

        headers: dict[str, str] = {}  # noqa: RUF012

        def __init__(self, size: int) -> None:
            self.size = size

        async def stream(self) -> Any:
            for _ in range(self.size // 1024):
                yield b"a" * 1024

    most = load_settings().settings.max_body_bytes
    assert len(await read_body(Sent(1_048_576), most)) == 1_048_576  # type: ignore[arg-type]
    with pytest.raises(RequestTooLarge, match=r"^The request body is larger than 1048576 bytes\.$"):
        await read_body(Sent(1_049_600), most)  # type: ignore[arg-type]
