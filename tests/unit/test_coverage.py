"""How often a 95 % interval holds the rate that made the data: seeded tensors with known rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from l2s_hpc.measures.intervals import macro_interval, rate_interval

RATES = ("accuracy", "ntr", "ptr")
PER_SET = 20
"""Merges that are compared with the same parents; each has random verdicts of its own."""


def known_rates(rng: np.random.Generator, n: int) -> tuple[NDArray[Any], ...]:
    """Return the sizes of one to four benchmarks, and the share of items that some parent solves,
    the NTR and the PTR of each."""
    count = int(rng.integers(1, 5))
    sizes = np.maximum((rng.dirichlet(np.full(count, 2.0)) * n).astype(int), min(10, n // count))
    sizes[np.argmax(sizes)] += n - sizes.sum()
    return sizes, rng.uniform(0.25, 0.85, count), *rng.uniform(0.02, 0.35, (2, count))


def coverage(n: int, sets: int) -> dict[str, float]:
    """Return the share of intervals that hold the true rate, pooled and macro."""
    rng = np.random.default_rng(n)
    held: dict[str, list[NDArray[np.bool_]]] = {}
    for _ in range(sets):
        sizes, u, ntr, ptr = known_rates(rng, n)
        strata = np.repeat(np.arange(sizes.size), sizes)
        solved = rng.random(n) < u[strata]
        draws = rng.random((PER_SET, n))
        right = np.where(solved, draws >= ntr[strata], draws < ptr[strata])
        true = {
            "accuracy": (u * (1 - ntr) + (1 - u) * ptr, sizes, right, np.ones(n, dtype=bool)),
            "ntr": (ntr, sizes * u, solved & ~right, solved),
            "ptr": (ptr, sizes * (1 - u), ~solved & right, ~solved),
        }
        for name, (rate, weight, hit, base) in true.items():
            pooled = rate_interval(hit, base, strata)
            parts = [strata == part for part in range(sizes.size)]
            counts = np.stack([hit[:, part].sum(axis=1) for part in parts], axis=1)
            macro = macro_interval(counts, np.array([base[part].sum() for part in parts]))
            for key, found, value in (
                (name, pooled, (rate * weight).sum() / weight.sum()),
                (f"{name}.macro", macro, rate.mean()),
            ):
                there = ~np.isnan(found.low)  # a benchmark in which nothing counts has no rate
                held.setdefault(key, []).append(
                    ((found.low <= value) & (value <= found.high))[there]
                )
    return {key: float(np.concatenate(found).mean()) for key, found in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 500])
def test_intervals_cover_as_often_as_they_say(n: int) -> None:
    found = coverage(n, sets=100)
    assert all(0.93 <= share <= 0.97 for share in found.values()), found
    assert found.keys() == {*RATES, *(f"{name}.macro" for name in RATES)}


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 50, 100])
def test_intervals_of_few_items_cover_at_least_nearly_so(n: int) -> None:
    found = coverage(n, sets=100)
    assert all(share >= 0.93 for share in found.values()), found
