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

torch.set_num_threads(1)

IDS = ["base", "slow", "fast"]


def kept(bits: torch.Tensor, count: int, rows: int) -> torch.Tensor:
    """What the cut of magnitudes with these bits keeps, part by part."""
    tensor = bits.view(torch.float32)
    zeros = torch.zeros_like(tensor)
    cut = blocks.find_cut(tensor, zeros, count, rows)
    starts = range(0, len(bits), rows)
    parts = zip(tensor.split(rows), zeros.split(rows), starts, strict=True)
    return torch.cat([cut.mask(*part) for part in parts])


def first_of_a_stable_order(bits: torch.Tensor, count: int) -> torch.Tensor:
    mask = torch.zeros(len(bits), dtype=torch.bool)
    mask[torch.argsort(bits, descending=True, stable=True)[:count]] = True
    return mask


INFINITY = 0x7F800000


@given(
    st.lists(st.integers(0, 3) | st.integers(0, INFINITY), min_size=1),
    st.integers(1, 30),
    st.integers(0, 20),
    st.integers(1, 9),
    st.data(),
)
def test_the_largest_are_kept(
    values: list[int], rows: int, band: int, sample: int, data: st.DataObject
) -> None:
    """However poor the sample, how little may be sorted, and how many are equal."""
    count = data.draw(st.integers(0, len(values)))
    bits = torch.tensor(values, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BAND", band)
        patch.setattr(blocks, "_SAMPLE", sample)
        found = kept(bits, count, rows)
    assert torch.equal(found, first_of_a_stable_order(bits, count))


@pytest.mark.parametrize("count", [1, 10_000, 19_999, 30_000, 39_999])
@pytest.mark.parametrize("levels", [1, 2, 60, 10**6])
def test_a_sample_spares_the_halving(
    levels: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One passage narrows enough, even between two values that half of the numbers have each."""
    passages: list[int] = []
    above = blocks._above
    monkeypatch.setattr(blocks, "_BAND", 8_000)
    monkeypatch.setattr(blocks, "_SAMPLE", 2**12)
    monkeypatch.setattr(blocks, "_above", lambda *args: passages.append(1) or above(*args))
    draw = torch.Generator().manual_seed(1)
    bits = torch.randint(0, levels, (40_000,), generator=draw, dtype=torch.int32)
    found = kept(bits, count, 5_000)
    assert torch.equal(found, first_of_a_stable_order(bits, count))
    assert len(passages) == 1


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
