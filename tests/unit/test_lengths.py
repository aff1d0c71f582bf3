"""How long answers are: against hand counts, numpy and the binomial law."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc import Run, open_run
from l2s_hpc.errors import UserError
from l2s_hpc.measures.lengths import median_interval

from .test_analysis_builder import IDS, Rows, complete


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    def change(rows: Rows) -> Rows:
        """Let the budget cut two answers of `short`, both wrong."""
        cut = {"a6", "b0"} if rows[0]["candidate"] == IDS["short"] else set()
        return [
            row | {"truncated": True, "n_charged_tokens": 200} if row["item"] in cut else row
            for row in rows
        ]

    return open_run(complete(tmp_path_factory.mktemp("lengths") / "run", change).paths.folder)


def test_a_row_for_each_candidate_and_benchmark_all_first(run: Run) -> None:
    frame = run.lengths("search", [IDS["short"], "slow"])
    assert frame["benchmark"].to_list() == ["all", "alpha", "beta"] * 2
    assert frame["candidate"].to_list() == [IDS["short"]] * 3 + [IDS["slow"]] * 3
    assert frame["label"].to_list() == [None] * 3 + ["parent.slow"] * 3
    assert frame["n"].to_list() == [12, 8, 4] * 2


def test_lengths_by_hand(run: Run) -> None:
    short = run.lengths("search", [IDS["short"]]).row(0, named=True)
    lengths = [24, 26, 24, 26, 24, 26, 200, 26, 200, 26, 24, 26]
    right = [0, 1, 2, 3, 10, 11]
    assert short["mean"] == pytest.approx(np.mean(lengths))
    for name, q in {"q05": 5, "q25": 25, "median": 50, "q75": 75, "q95": 95}.items():
        assert short[name] == pytest.approx(np.percentile(lengths, q))
    assert short["cut"] == pytest.approx(2 / 12) and short["lower_bound"] is True
    assert short["mean_right"] == pytest.approx(np.mean([lengths[n] for n in right]))
    wrong = [lengths[n] for n in range(12) if n not in right]
    assert short["mean_wrong"] == pytest.approx(np.mean(wrong))


def test_tokens_saved_are_paired_with_the_slow_parents(run: Run) -> None:
    frame = run.lengths("search", [IDS["short"], "slow", "average"])
    short, slow, average = (frame.row(n, named=True) for n in (0, 3, 6))
    saved = [75] * 12
    saved[6], saved[8] = 99 - 200, 99 - 200
    assert short["saved"] == pytest.approx(np.mean(saved)) and short["saved_median"] == 75
    assert short["saved_low"] < short["saved"] < short["saved_high"] <= 75
    assert (short["saved_median_low"], short["saved_median_high"]) == (75, 75)
    assert (slow["saved"], slow["saved_low"], slow["saved_high"]) == (0, 0, 0)
    assert (average["saved"], average["lower_bound"], average["cut"]) == (40, False, 0)


def test_all_candidates_are_given_by_default(run: Run) -> None:
    assert run.lengths()["candidate"].n_unique() == 5
    assert set(run.lengths("search")["candidate"]) >= {IDS["beaten"], IDS["rubbish"]}


def test_right_and_wrong_are_null_where_there_are_none(tmp_path: Path) -> None:
    def change(rows: Rows) -> Rows:
        return [row | {"correct": row["candidate"] == IDS["slow"]} for row in rows]

    run = open_run(complete(tmp_path, change).paths.folder)
    good, slow = (run.lengths("report", [name]).row(0, named=True) for name in ("knee", "slow"))
    assert good["mean_right"] is None and good["mean_wrong"] == 26
    assert slow["mean_wrong"] is None and slow["mean_right"] == 101


def test_lengths_that_an_import_does_not_know_are_null(tmp_path: Path) -> None:
    def change(rows: Rows) -> Rows:
        known = rows[0]["candidate"] != IDS["good"]
        return [
            row if known or row["item"] != "a0" else row | {"n_charged_tokens": None}
            for row in rows
        ]

    run = open_run(complete(tmp_path, change).paths.folder)
    good = run.lengths("search", [IDS["good"]]).rows(named=True)
    assert [row["benchmark"] for row in good if row["mean"] is None] == ["all", "alpha"]
    assert good[0]["saved"] is None and good[0]["saved_median_low"] is None
    assert good[2]["saved"] == 30 and good[0]["n"] == 12


def test_who_has_no_table_is_named(run: Run) -> None:
    with pytest.raises(UserError, match=f"candidate {IDS['beaten']} has no table to compare in"):
        run.lengths("report", [IDS["beaten"]])
    with pytest.raises(UserError, match="no candidate, pick or reference 'kneee'"):
        run.lengths("report", ["kneee"])


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=60))
def test_the_median_lies_between_order_statistics_of_binomial_ranks(values: list[int]) -> None:
    n = len(values)
    ends = median_interval(np.array(values, dtype=float))
    # The narrowest symmetric pair of order statistics that covers 95 %, or all of them.
    outside = [2 * sum(comb(n, j) for j in range(k + 1)) / 2**n for k in range((n + 1) // 2)]
    skipped = max((k for k, miss in enumerate(outside) if miss <= 0.05), default=0)
    ordered = sorted(values)
    assert (ends.low, ends.high) == (ordered[skipped], ordered[n - 1 - skipped])
    assert ends.low <= np.median(values) <= ends.high


@pytest.mark.parametrize("n", [20, 200])
def test_the_interval_of_the_median_covers_at_least_95_of_100_times(n: int) -> None:
    drawn = np.random.default_rng(5).exponential(size=(4000, n))
    ends = median_interval(drawn)
    covered = np.mean((ends.low <= np.log(2)) & (np.log(2) <= ends.high))
    assert 0.945 <= covered <= 0.975


def test_no_items_and_no_numbers_are_said() -> None:
    with pytest.raises(UserError, match="at least one item"):
        median_interval(np.empty((2, 0)))
    with pytest.raises(UserError, match="finite"):
        median_interval(np.array([1.0, np.nan]))
