"""Candidates against each other: hand counts, second opinions, noise, the forms of output."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc import Run, open_run
from l2s_hpc.cli.output import probability
from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import Interval, holm, mcnemar, wilson
from l2s_hpc.measures.paired import difference_interval, mean_of_estimates
from tests.command import l2s

from .test_analysis_builder import IDS, Rows, SmallRun, complete


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A complete run that no test changes."""
    return complete(tmp_path_factory.mktemp("comparison") / "run")


@pytest.fixture
def run(finished: SmallRun) -> Run:
    return open_run(finished.paths.folder)


def at(rows: Rows, b: str, benchmark: str = "all") -> dict[str, Any]:
    [row] = [row for row in rows if row["b"] == IDS[b] and row["benchmark"] == benchmark]
    return row


def test_differences_and_discordant_items_as_counted_by_hand(run: Run) -> None:
    rows = run.compare("slow", ["knee", IDS["good"]])
    assert [row["benchmark"] for row in rows] == ["all", "macro", "alpha", "beta"] * 2
    short = at(rows, "short")
    # Slow 11111111 1100, short 11110000 0011; 101 and 26 tokens.
    assert (short["n"], short["only_a"], short["only_b"]) == (12, 6, 2)
    assert short["difference"] == pytest.approx((6 - 10) / 12)
    assert (short["tokens_difference"], short["tokens_difference_low"]) == (-75, -75)
    assert (short["label_a"], short["a"]) == ("parent.slow", IDS["slow"])
    # Some parent solves 11 items, of which slow loses 1 and short 6.
    assert short["ntr_difference"] == pytest.approx(5 / 11)
    good = at(rows, "good")
    assert (good["only_a"], good["only_b"], good["difference"], good["p"]) == (1, 1, 0, 1)
    for row in rows:
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    macro = at(rows, "short", "macro")
    assert macro["difference"] == pytest.approx((4 / 8 - 8 / 8 + 2 / 4 - 2 / 4) / 2)
    assert (macro["p"], macro["p_holm"], macro["tests"]) == (None, None, None)
    assert {row["noise"] for row in rows} == {None}, "no twin was evaluated"


def test_tests_are_adjusted_for_all_that_were_made_at_once(run: Run) -> None:
    rows = run.compare("slow", ["knee", IDS["good"], "fast"])
    pooled = [row for row in rows if row["benchmark"] == "all"]
    assert [row["p_holm"] for row in pooled] == holm([row["p"] for row in pooled]).tolist()
    assert {row["tests"] for row in pooled} == {3}
    parts = [row for row in rows if row["benchmark"] in ("alpha", "beta")]
    assert [row["p_holm"] for row in parts] == holm([row["p"] for row in parts]).tolist()
    assert {row["tests"] for row in parts} == {6}
    alone = run.compare("slow", "knee")
    assert at(alone, "short")["p_holm"] == at(alone, "short")["p"] == mcnemar(6, 2)


def test_the_noise_of_twins_stands_beside_every_difference(tmp_path: Path) -> None:
    def flip(rows: Rows) -> Rows:
        again = rows[0]["evaluation"] == "noise"
        return [
            row | {"correct": not row["correct"], "n_charged_tokens": row["n_charged_tokens"] + 6}
            if again and row["item"] in ("a0", "b0", "b3")
            else row
            for row in rows
        ]

    small = complete(tmp_path / "run", flip)
    small.evaluate("noise", "slow")
    rows = open_run(tmp_path / "run").compare("slow", "knee")
    found = {row["benchmark"]: row for row in rows}
    # 3 flips of 12 answers: sd √3 / 12, and by items √(3 / 12) / √n.
    assert found["all"]["noise"] == pytest.approx(np.sqrt(3) / 12)
    assert found["beta"]["noise"] == pytest.approx(np.sqrt(3 / 12 / 4))
    assert found["macro"]["noise"] == pytest.approx(np.sqrt(3 / 12 * (1 / 4 + 1 / 8)) / 2)
    assert found["all"]["tokens_noise"] == pytest.approx(6 * np.sqrt(3) / 12)
    assert found["all"]["ntr_noise"] > 0

    code, out, _ = l2s("compare", tmp_path / "run", "slow", "knee")
    assert "noise twins: 25.0% [" in out and "of the verdicts of a model on 12 items" in out
    assert "sd of a difference on 12 items: accuracy 0.1443 (at most 0.2" in out
    assert ", tokens 0.87, NTR 0." in out
    code, out, _ = l2s("ntr", tmp_path / "run")
    assert code == 0
    assert "once more, on the items of 'selection'" in out and "noise twin of parent.slow" in out
    assert "noise twin" not in l2s("ntr", tmp_path / "run", "--json")[1]
    assert "noise twin" not in l2s("ntr", tmp_path / "run", "--parents", "fast")[1]


def test_no_flip_is_said_as_such(tmp_path: Path) -> None:
    small = complete(tmp_path / "run")
    small.evaluate("noise", "slow")
    out = l2s("compare", tmp_path / "run", "slow", "knee")[1]
    # None of 12 is up to 24 % (Wilson), and √(.2425 / 12) the sd.
    assert "noise twins: 0.0% [0.0%, 24.2%] of the verdicts of a model on 12 items" in out
    assert "accuracy 0.0000 (at most 0.1422 by that interval)" in out


def test_intervals_of_an_ntr_difference_stay_between_its_bounds(tmp_path: Path) -> None:
    """Two samples of which parents solve one: a share of half an item has an interval too."""

    def sampled(rows: Rows) -> Rows:
        again = [row | {"sample": 1, "correct": not row["correct"]} for row in rows]
        return [*rows, *again]

    complete(tmp_path / "run", sampled)
    rows = open_run(tmp_path / "run").compare("slow", ["fast", "knee"])
    for row in rows:
        assert -1 <= row["ntr_difference_low"] <= row["ntr_difference_high"] <= 1
        assert row["samples"] == 2
    out = l2s("compare", tmp_path / "run", "slow", "fast")[1]
    assert "only_a, only_b and p are of the first of 2 samples" in " ".join(out.split())


def test_a_small_p_is_not_0() -> None:
    assert [probability(p) for p in (None, 0.0, 9e-5, 1e-4, 1.0)] == [
        "–", "<.0001", "<.0001", "0.0001", "1.0000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "evaluation", "message"),
    [
        ("slow", "slow", None, "needs another candidate"),
        ("slow", [], None, "needs another candidate"),
        ("slow", "kne", None, "no candidate, pick or reference 'kne'"),
        ("slow", "knee", "repport", "no evaluation 'repport'"),
        ("slow", IDS["beaten"], "report", "has no table in evaluation 'report'"),
        ("slow", "broken", None, "no candidate, pick or reference 'broken'"),
    ],
)
def test_what_cannot_be_compared_is_said(
    run: Run, a: str, b: Any, evaluation: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run.compare(a, b, evaluation)


def test_candidates_are_compared_where_all_have_a_table(run: Run) -> None:
    assert at(run.compare("slow", IDS["beaten"]), "beaten")["tokens_b"] == 80.0


@given(st.integers(0, 500), st.integers(0, 500))
def test_mcnemar_equals_statsmodels(only_a: int, only_b: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    expected = tables.mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holm_equals_statsmodels(p: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    expected = multitest.multipletests(p, method="holm")[1]
    np.testing.assert_allclose(holm(p), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("n", [30, 200])
def test_the_interval_of_a_difference_covers(n: int) -> None:
    """400 seeded pairs: of an item's verdicts 6 % change one way and 12 % the other."""
    draws = np.random.default_rng(n).random((400, n))
    found = difference_interval(
        np.where(draws < 0.06, 1, np.where(draws < 0.18, -1, 0)), np.arange(n) % 3
    )
    covered = (found.low <= -0.06) & (found.high >= -0.06)
    assert 0.93 <= covered.mean() <= 0.985


def test_the_mean_of_one_estimate_is_that_estimate_and_of_many_is_narrower() -> None:
    one = wilson([3], [30])
    alone = mean_of_estimates(np.array([0.1]), one)
    assert (alone.low, alone.high) == pytest.approx((one.low[0], one.high[0]))
    four = Interval(np.full(4, 0.1), np.full(4, 0.5))
    found = mean_of_estimates(np.full(4, 0.3), four)
    assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.4))
    with pytest.raises(UserError, match="between -1 and 1"):
        difference_interval(np.array([2.0]), np.zeros(1))


def test_the_command_gives_the_same_rows_in_every_form(finished: SmallRun, tmp_path: Path) -> None:
    folder = finished.paths.folder
    code, out, _ = l2s("compare", folder, "slow", "knee", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows == open_run(folder).compare("slow", "knee")
    code, out, _ = l2s("compare", folder, "slow", "knee", "--csv", "-")
    assert code == 0
    read = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["difference"]) for row in read] == [row["difference"] for row in rows]
    files = tmp_path / "r.parquet", tmp_path / "r.csv"
    code, out, _ = l2s("compare", folder, "slow", "knee", "--parquet", files[0], "--csv", files[1])
    assert code == 0
    assert pl.read_parquet(files[0]).to_dicts() == rows
    assert pl.read_csv(files[1])["benchmark"].to_list() == [row["benchmark"] for row in rows]
    assert "b less a = parent.slow" in out and "Holm-adjusted" in out
    assert "-0.3333 [" in out


def test_the_front_is_compared_with_a_reference(finished: SmallRun) -> None:
    code, out, _ = l2s("compare", finished.paths.folder, "--against", "slow", "--json")
    assert code == 0
    pooled = [row for row in json.loads(out) if row["benchmark"] == "all"]
    assert {row["b"] for row in pooled} == {IDS["good"], IDS["short"]}
    assert {row["tests"] for row in pooled} == {2}


def test_what_the_command_cannot_do_is_the_users_error(finished: SmallRun, tmp_path: Path) -> None:
    folder = finished.paths.folder
    assert "needs two candidates" in l2s("compare", folder, "slow")[2]
    code, out, err = l2s("ntr", folder, "--json", "--csv", "-")
    assert (code, out) == (2, "")
    assert "both want standard output" in err
    code, _, err = l2s("ntr", folder, "--parquet", tmp_path / "no" / "where" / "r.parquet")
    if code != 0:  # a missing folder is made, or named
        assert "cannot be written" in err
    (tmp_path / "file").write_text("")
    code, _, err = l2s("ntr", folder, "--csv", tmp_path / "file" / "r.csv")
    assert code == 2
    assert "cannot be written" in err
