"""Field rules that the dialects share."""

from __future__ import annotations

import pytest

from polyreel.errors import InvalidRequest
from server.wire import check_length, check_prompt, check_range, choose_seed


def test_a_prompt_of_ten_thousand_characters_is_read_and_a_longer_one_refused() -> None:
    assert check_prompt("prompt", "x" * 10_000) == "x" * 10_000
    with pytest.raises(InvalidRequest) as refused:
        check_prompt("prompt", "x" * 10_001)
    assert refused.value.message == "prompt must be at most 10000 characters, got 10001"
    assert refused.value.field == "prompt"


def test_no_negative_prompt_is_an_empty_one() -> None:
    assert check_length("negative_prompt", None) == ""


@pytest.mark.parametrize(
    ("value", "low", "high", "message"),
    [
        (26, 1, 25, "fps must be between 1 and 25, got 26"),
        (26.0, 1, 25.0, "fps must be between 1 and 25, got 26"),
        (0.5, 1, 25, "fps must be between 1 and 25, got 0.5"),
        (10**40, 0, 2**63 - 1, "fps must be between 0 and 9223372036854775807, got a number of 41 digits"),
    ],
)
def test_a_range_is_told_in_plain_numbers(value: float, low: float, high: float, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_range("fps", value, low, high)
    assert refused.value.message == message


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_that_is_not_given_is_drawn_from_32_bits(seed: int | None) -> None:
    drawn = {choose_seed("seed", seed) for _ in range(50)}
    assert len(drawn) > 45
    assert all(0 <= one < 2**32 for one in drawn)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_given_seed_is_taken(seed: int) -> None:
    assert choose_seed("seed", seed) == seed


@pytest.mark.parametrize("seed", [-2, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InvalidRequest, match=r"^seed must be between -1 and 9223372036854775807, got"):
        choose_seed("seed", seed)
