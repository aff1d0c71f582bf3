"""Transfer rates: the identity, the bounds, hand-made tables and the recorded figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from l2s_hpc.errors import UserError
from l2s_hpc.measures.transfer import shares

Scores = NDArray[np.uint8]
RECORDED = Path(__file__).parents[2].parent / "shared" / "upstream" / "scores"
TASKS = ["aime24", "college_math", "gsm8k", "math", "minerva_math", "olympiadbench"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Scores, Scores]:
    """Parents `[p, n]` and merges `[c, n]` with any share of ones, all and none included."""
    n, p, c = draw(st.integers(1, 40)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    bits = st.integers(0, 1)
    return draw(arrays(np.uint8, (p, n), elements=bits)), draw(
        arrays(np.uint8, (c, n), elements=bits)
    )


def rates(parents: NDArray[Any], merged: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """NTR and PTR of each merge by one sample; NaN without a denominator."""
    found = shares(parents[None], merged[None])
    with np.errstate(invalid="ignore"):
        return {name: hit.sum(axis=1) / base.sum() for name, (hit, base) in found.rates.items()}


@given(tables())
def test_rates_are_those_of_the_definition_and_null_where_they_have_no_items(
    table: tuple[Scores, Scores],
) -> None:
    parents, merged = table
    found, solved = rates(parents, merged), parents.max(axis=0) == 1
    for name, among, hit in (("ntr", solved, merged == 0), ("ptr", ~solved, merged == 1)):
        if among.any():
            np.testing.assert_allclose(found[name], hit[:, among].mean(axis=1), rtol=1e-12)
        else:
            assert np.isnan(found[name]).all()
    u = solved.mean()
    kept = np.where(np.isnan(found["ntr"]), 0, u * (1 - found["ntr"]))
    new = np.where(np.isnan(found["ptr"]), 0, (1 - u) * found["ptr"])
    np.testing.assert_allclose(merged.mean(axis=1), kept + new, atol=1e-12, rtol=0)


@given(tables(), st.randoms())
def test_the_order_of_items_and_parents_does_not_matter(
    table: tuple[Scores, Scores], random: Any
) -> None:
    parents, merged = table
    items = random.sample(range(parents.shape[1]), parents.shape[1])
    a, b = rates(parents, merged), rates(parents[::-1, items], merged[:, items])
    np.testing.assert_array_equal(a["ntr"], b["ntr"])
    np.testing.assert_array_equal(a["ptr"], b["ptr"])


@given(tables())
def test_many_candidates_at_once_are_the_same_as_one_by_one(table: tuple[Scores, Scores]) -> None:
    parents, merged = table
    together = rates(parents, merged)
    for i in range(len(merged)):
        alone = rates(parents.astype(bool), merged[i : i + 1])
        for name, rate in alone.items():
            np.testing.assert_array_equal(rate, together[name][i : i + 1])


def test_a_table_worked_by_hand() -> None:
    parents = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]])
    found = shares(parents[None], np.array([[[1, 0, 0, 1, 0]]]))
    assert found.solved.tolist() == [1, 1, 1, 0, 0]
    assert found.unsolved.tolist() == [0, 0, 0, 1, 1]
    assert found.lost.tolist() == [[0, 1, 1, 0, 0]]
    assert found.gained.tolist() == [[0, 0, 0, 1, 0]]


def test_a_parent_itself_gains_nothing_and_loses_what_only_the_other_solves() -> None:
    parents = np.array([[[1, 1, 0, 0], [0, 1, 1, 0]]])
    found = shares(parents, parents)
    assert not found.gained.any() and found.lost.sum(axis=1).tolist() == [1, 1]


def test_a_table_of_two_samples_worked_by_hand() -> None:
    """What is solved in one sample is compared with the other one."""
    parents = np.array([[[1, 1, 0]], [[1, 0, 0]]])
    merged = np.array([[[0, 0, 1]], [[1, 0, 1]]])
    found = shares(parents, merged)
    assert found.solved.tolist() == [1, 0.5, 0]
    assert found.lost.tolist() == [[0.5, 0.5, 0]]
    assert found.gained.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("samples", [*range(2, 12), 13, 16, 64, 181, 182, 257])
def test_counts_of_any_number_of_samples_are_exact(samples: int) -> None:
    """Neither overflow nor rounding puts a share above what it is a share of."""
    rng = np.random.default_rng(samples)
    solves = np.arange(samples)[:, None] < np.arange(samples + 1)
    parents = np.stack([rng.permuted(solves, axis=0), np.zeros_like(solves)], axis=1)
    merged = np.stack([rng.permuted(solves, axis=0), np.ones_like(solves), ~solves], axis=1)
    found = shares(parents, merged)
    o, y = parents.any(axis=1).astype(object), merged.astype(object)
    for row in range(3):
        lost = sum(o[a] * (1 - y[b, row]) for a in range(samples) for b in range(samples) if a != b)
        exact = (lost / (samples * (samples - 1))).astype(float)
        np.testing.assert_array_equal(found.lost[row], exact)
    assert (found.lost <= found.solved).all() and (found.gained <= found.unsolved).all()
    assert (found.lost >= 0).all() and (found.gained >= 0).all()
    np.testing.assert_allclose(
        found.solved - found.lost + found.gained, merged.mean(axis=0), atol=1e-12
    )


@pytest.mark.parametrize(
    ("parents", "merged", "says"),
    [
        (np.ones((1, 2, 5)), np.ones((1, 1, 4)), r"shape \[1, 2, 5\] and merges \[1, 1, 4\]"),
        (np.ones((1, 2, 5)), np.ones((2, 1, 5)), r"\[samples, parents, items\] and \[samples"),
        (np.ones((2, 5)), np.ones((1, 5)), "none is dropped silently"),
        (np.ones((1, 2, 0)), np.ones((1, 1, 0)), "at least one parent and one item"),
        (np.ones((1, 0, 5)), np.ones((1, 1, 5)), "at least one parent and one item"),
        (np.ones((1, 2, 2)), np.array([[[1, np.nan]]]), "scores must be 0 or 1"),
        (np.full((1, 2, 2), 100), np.ones((1, 1, 2)), "scores must be 0 or 1"),
    ],
)
def test_what_does_not_fit_is_the_users_error(parents: Scores, merged: Scores, says: str) -> None:
    with pytest.raises(UserError, match=says):
        shares(parents, merged)


def recorded(model: str) -> Scores:
    """The pooled 0/1 scores of a recorded model, tasks in one fixed order."""
    torch = pytest.importorskip("torch")
    folder = RECORDED / model / "scores"
    parts = [torch.load(folder / f"{task}_scores.pt", weights_only=True) for task in TASKS]
    return np.concatenate([part.numpy() for part in parts])


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded scores are not here")
def test_the_recorded_figures_of_three_published_merges() -> None:
    parents = np.stack([recorded("DEEPSEEK-R1/1.5B"), recorded("QWEN25-MATH/1.5B")])
    names = ("01", "02", "12")
    merges = np.stack([recorded(f"Mergenetic-TA-Multiobj/1.5B/{name}") for name in names])
    merged = rates(parents, merges)
    assert (parents.shape[1], round(parents.max(axis=0).mean(), 4)) == (5614, 0.5616)
    assert merged["ntr"].round(4).tolist() == [0.2258, 0.1066, 0.0993]
    assert merged["ptr"].round(4).tolist() == [0.1187, 0.1597, 0.1556]
    assert merges.mean(axis=1).round(4).tolist() == [0.4868, 0.5718, 0.5741]
    assert rates(parents, parents)["ntr"].round(4).tolist() == [0.0771, 0.4256]
