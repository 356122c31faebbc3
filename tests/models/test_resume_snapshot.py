"""Snapshots as bytes: what goes in comes out, bit by bit, and nothing but plain values goes in."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from models._snapshot import NotPlain, Unreadable, copied, is_whole, pack, unpack


def through(value: object) -> object:
    """Return a value as it comes back from a snapshot."""
    return unpack(pack("mine", copied(value)), "cpu")[1]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1 + 0.2,
        -0.0,
        math.inf,
        "DDIM",
        [],
        [1, None, "a"],
        (1, (2,)),
        {"tensor": 1, "tuple": (1,)},
        {},
        {"a": [{"b": ()}]},
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_were(value):
    back = through(value)

    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "int64", "uint8", "bool"])
def test_tensors_come_back_bit_by_bit(dtype):
    value = (torch.arange(24).reshape(2, 3, 4) % 7).to(getattr(torch, dtype)).transpose(0, 2)
    back = through([value, None])[0]  # type: ignore[index]

    assert back.dtype == value.dtype
    assert torch.equal(back, value)


def test_a_nan_and_a_tensor_of_one_number_come_back():
    back = through({"nan": math.nan, "number": torch.tensor(7), "empty": torch.zeros(0, 3)})

    assert isinstance(back, dict)
    assert math.isnan(back["nan"])
    assert back["number"].shape == ()
    assert back["empty"].shape == (0, 3)


def test_numpy_arrays_and_numbers_stay_numpys():
    back = through({"timesteps": np.array([999, 500, 0])[::-1], "sigma": np.float64(0.1), "one": np.int64(3)})

    assert isinstance(back, dict)
    assert back["timesteps"].tolist() == [0, 500, 999]
    assert (type(back["sigma"]), back["sigma"]) == (np.float64, 0.1)
    assert (type(back["one"]), back["one"]) == (np.int64, 3)


def test_a_copy_does_not_change_with_what_it_was_made_of():
    latents, outputs = torch.zeros(3), [torch.zeros(3), None]
    copy = copied({"latents": latents, "outputs": outputs})
    latents.add_(1)
    outputs[0].add_(1)  # type: ignore[union-attr]
    outputs[1] = torch.ones(3)
    _, back = unpack(pack("mine", copy), "cpu")

    assert back["latents"].tolist() == [0, 0, 0]
    assert back["outputs"][0].tolist() == [0, 0, 0]
    assert back["outputs"][1] is None


def test_one_tensor_in_two_places_is_two_tensors():
    latents = torch.ones(3)
    back = through([latents, latents, latents[:2]])

    assert [one.tolist() for one in back] == [[1, 1, 1], [1, 1, 1], [1, 1]]  # type: ignore[attr-defined]


class Sampler:
    """Keeps a state that has no bytes."""


@pytest.mark.parametrize(
    "value", [Sampler(), len, {1: 2}, {1, 2}, b"bytes", 1j], ids=lambda value: type(value).__name__
)
def test_anything_else_is_refused(value):
    with pytest.raises(NotPlain, match=f"^{type(value).__name__} is no plain value$"):
        copied([value])


def test_a_snapshot_knows_whose_it_is():
    assert unpack(pack("mine", copied(3)), "cpu") == ("mine", 3)


def test_a_single_changed_bit_is_noticed_wherever_it_is():
    content = pack("mine", copied({"latents": torch.arange(5.0), "step": 3}))
    assert is_whole(content)
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        assert not is_whole(bytes(damaged)), at
    for length in range(len(content)):
        assert not is_whole(content[:length]), length


def test_a_snapshot_with_a_good_checksum_and_a_bad_content_is_unreadable():
    for rest in (b"", b"\0" * 8, (2**60).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"{}"):
        content = b"polyreel snapshot 1\n" + hashlib.sha256(rest).digest() + rest
        with pytest.raises(Unreadable):
            unpack(content, "cpu")
