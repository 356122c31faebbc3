"""A client's wishes about the queue."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from polyreel.terms import IDEMPOTENCY_S, LANES, WEIGHTS, Terms


def test_a_job_is_interactive_and_may_share_a_call_unless_somebody_says_otherwise() -> None:
    assert Terms() == Terms(lane="interactive", exact=False, idempotency_key="", digest="")


def test_each_lane_has_a_weight_that_divides_a_turn() -> None:
    """A turn is sixty parts in `lua/common.lua`, so that all places are whole numbers."""
    assert WEIGHTS == {"interactive": 4.0, "bulk": 1.0}
    assert set(LANES) == set(WEIGHTS)
    assert [60 / weight % 1 for weight in WEIGHTS.values()] == [0.0, 0.0]


def test_a_key_is_remembered_for_a_day() -> None:
    assert IDEMPOTENCY_S == 86400


def test_without_a_key_nothing_is_remembered() -> None:
    assert Terms().redis_key("alice") == ""


def test_a_key_belongs_to_its_owner_and_shows_neither() -> None:
    mine = Terms(idempotency_key="order-7").redis_key("alice")
    assert mine == Terms(idempotency_key="order-7", digest="another request").redis_key("alice")
    assert mine.startswith("polyreel:idempotency:")
    assert len(mine) == len("polyreel:idempotency:") + 64
    assert "order" not in mine
    assert "alice" not in mine
    others = [Terms(idempotency_key="order-7").redis_key("bob"), Terms(idempotency_key="order-8").redis_key("alice")]
    assert len({mine, *others}) == 3


@pytest.mark.parametrize("key", ["\ud800", "é", " ", "a" * 10_000])
def test_any_text_is_a_key(key: str) -> None:
    assert len(Terms(idempotency_key=key).redis_key("alice")) == len("polyreel:idempotency:") + 64


def test_no_name_of_an_owner_and_key_of_another_make_the_same_key() -> None:
    """Owners' names have no line breaks in them."""
    assert Terms(idempotency_key="b").redis_key("a") != Terms(idempotency_key="").redis_key("ab")
    assert Terms(idempotency_key="bc").redis_key("a") != Terms(idempotency_key="c").redis_key("ab")


def test_terms_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Terms().lane = "bulk"  # type: ignore[misc]
