"""Large tensors merged in blocks: the same bits as mergekit gives for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods.api import merge_tensors

from l2s_hpc.task import blocks

IDS = ["base", "slow", "fast"]


@given(st.lists(st.booleans(), min_size=1).filter(any), st.integers(1, 5), st.data())
def test_the_nth_is_found(values: list[bool], piece: int, data: st.DataObject) -> None:
    nth = data.draw(st.integers(1, sum(values)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_PIECE", piece)
        found = blocks._place_of(torch.tensor(values), nth)
    assert values[found] and sum(values[: found + 1]) == nth


@given(st.lists(st.integers(0, 9) | st.integers(0, 2**31 - 1), min_size=1), st.data())
def test_the_largest_are_those_of_a_stable_order(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    bits = torch.tensor(values, dtype=torch.int32)
    expected = torch.zeros(len(values), dtype=torch.bool)
    expected[torch.argsort(bits, descending=True, stable=True)[:count]] = True
    assert torch.equal(blocks.largest(bits, count), expected)


@pytest.mark.parametrize("numbers", [64 * 256, 64 * 512 + 17, 100])
def test_many_pieces(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_PIECE", 64)
    draw = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 9, (numbers,), generator=draw, dtype=torch.int32)
    for count in (1, numbers // 3, numbers - 1, numbers):
        expected = torch.zeros(numbers, dtype=torch.bool)
        expected[torch.argsort(bits, descending=True, stable=True)[:count]] = True
        assert torch.equal(blocks.largest(bits, count), expected)


def parents() -> list[torch.Tensor]:
    """Three matrices; as with real parents, many differences are equal or zero."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(400, 48, generator=draw).bfloat16()
    noise = [torch.randn(400, 48, generator=draw) for _ in range(2)]
    return [base, *((base.float() + 0.01 * n).bfloat16() for n in noise)]


def merged(method: str, parameters: dict[str, Any], tensors: Sequence[torch.Tensor]) -> Any:
    return merge_tensors(
        tensors,
        method,
        ids=IDS,
        base_index=None if method == "linear" else 0,
        parameters=parameters,
        dtype=torch.float32,
        out_dtype=torch.bfloat16,
    )


WEIGHTS = {"slow": 0.6, "fast": 0.4}
SETTINGS = [
    ("linear", {"weight": WEIGHTS | {"base": 0.5}, "normalize": True}),
    ("task_arithmetic", {"weight": WEIGHTS, "lambda": 1.1, "normalize": False}),
    ("task_arithmetic", {"weight": {"slow": 0.6, "fast": -0.6}, "normalize": True}),
    *(
        ("ties", {"weight": WEIGHTS, "density": density, "normalize": n, "rescale": False})
        for density in (
            {"slow": 0.3, "fast": 0.77},
            {"slow": 1.0, "fast": 0.5},
            {"slow": 0.0, "fast": 1e-9},
        )
        for n in (True, False)
    ),
]


@pytest.mark.parametrize(("method", "parameters"), SETTINGS)
@pytest.mark.parametrize("block", [1, 48 * 7, 10**6])
def test_blocks_give_the_same_bits(
    method: str, parameters: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit sorts; on a CPU its order of equal numbers is made stable here, as on a GPU."""
    sort = torch.argsort
    stable = {"dim": 0, "stable": True}
    monkeypatch.setattr(torch, "argsort", lambda w, **options: sort(w, **options, **stable))
    tensors = parents()
    whole = merged(method, parameters, tensors)
    found = blocks.in_blocks(
        tensors,
        None if method == "linear" else 0,
        IDS,
        parameters,
        lambda part, changed: merged(method, changed, part),
        torch.bfloat16,
        block,
    )
    assert torch.equal(found, whole) and found.dtype == torch.bfloat16


def test_what_is_merged_in_blocks() -> None:
    large = (2, blocks.LARGE // 2)
    assert blocks.fits("task_arithmetic", {}, large)
    assert blocks.fits("ties", {"rescale": False}, large)
    assert not blocks.fits("ties", {"rescale": True}, large), "the norm is of the whole"
    assert not blocks.fits("dare_ties", {"rescale": False}, large), "random numbers"
    assert not blocks.fits("slerp", {}, large), "an angle of the whole"
    assert not blocks.fits("linear", {}, (blocks.LARGE,)), "there are no rows"
    assert not blocks.fits("linear", {}, (10, 10))
