"""Measures of a candidate, against hand counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from l2s_hpc import Run, open_run
from l2s_hpc.analysis.candidates import telling
from l2s_hpc.analysis.fitness import RATES

from .test_analysis_builder import IDS, Rows, complete, doubtful


@pytest.fixture(scope="module")
def doubted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with ungradable items and undecided verdicts."""
    return open_run(complete(tmp_path_factory.mktemp("doubt") / "run", doubtful).paths.folder)


def test_the_length_of_right_answers_is_apart(tmp_path: Path) -> None:
    """Lengths are one less than the mean where an item's number is even, else one more."""
    run = open_run(complete(tmp_path / "run").paths.folder)
    measured = run.measures("search")
    good = measured[IDS["good"]]  # right: a0 to a7, b0 and b2
    assert good["tokens"] == 70
    assert good["tokens_right"] == pytest.approx(70 + (4 - 6) / 10)
    assert (good["tokens_right.alpha"], good["tokens_right.beta"]) == (70, 69)
    assert good["tokens_right.macro"] == 69.5
    rubbish = measured[IDS["rubbish"]]  # right: a0 and a1
    assert rubbish["tokens_right"] == 5
    assert rubbish["tokens_right.beta"] is None and rubbish["tokens_right.macro"] is None
    assert [row["tokens_right"] for row in run.front("search")] == pytest.approx([25, 69.8])


def test_accuracy_stands_with_and_without_ungradable_items(doubted: Run) -> None:
    short = doubted.measures("search")[IDS["short"]]  # right: a0 to a3, b2 and b3
    assert (short["n"], short["n_gradable"], short["n_gradable.beta"]) == (12, 10, 2)
    assert (short["accuracy"], short["accuracy_gradable"]) == (6 / 12, 4 / 10)
    assert (short["accuracy_gradable.alpha"], short["accuracy_gradable.beta"]) == (4 / 8, 0)
    assert short["accuracy_gradable.macro"] == 1 / 4
    (row,) = (row for row in doubted.front("search") if row["candidate"] == IDS["short"])
    assert (row["n_gradable"], row["accuracy_gradable"]) == (10, 4 / 10)


def test_what_has_no_answer_is_decided(doubted: Run) -> None:
    measured = doubted.measures("search")
    assert measured[IDS["good"]]["undecided"] == 0  # a7 is right
    short = measured[IDS["short"]]  # a6 has no answer, and a7 no decision
    assert (short["undecided"], short["undecided.alpha"]) == (1 / 12, 1 / 8)
    assert (short["undecided.beta"], short["undecided.macro"]) == (0, 1 / 16)


def test_without_a_gradable_item_there_is_no_accuracy_of_such(tmp_path: Path) -> None:
    def prose(rows: Rows) -> Rows:
        return [row | {"gradable": row["benchmark"] != "beta"} for row in rows]

    run = open_run(complete(tmp_path / "run", prose).paths.folder)
    good = run.measures("report")[IDS["good"]]
    rows = {row["benchmark"]: row for row in run.ntr() if row["candidate"] == IDS["good"]}
    sampled = {row["benchmark"]: row for row in run.samples() if row["candidate"] == IDS["good"]}
    for name in ("beta", "macro"):
        assert good[f"accuracy_gradable.{name}"] is None
        assert rows[name]["accuracy_gradable"] is sampled[name]["mean_gradable"] is None
        assert good[f"accuracy.{name}"] == rows[name]["accuracy"] is not None
    assert (good["n_gradable.beta"], rows["beta"]["n_gradable"]) == (0, 0)
    assert good["accuracy_gradable"] == sampled["all"]["mean_gradable"] == 1


def test_tables_and_measures_are_the_same_numbers(doubted: Run) -> None:
    measured = doubted.measures("search")
    table = doubted.table("search")
    assert {row["candidate"] for row in table} == set(measured)
    for row in table:
        found, suffix = measured[row["candidate"]], f".{row['benchmark']}"
        for name in RATES:
            assert row[name] == pytest.approx(found[name + suffix.replace(".all", "")]), name
        if row["benchmark"] != "macro":
            assert row["n_gradable"] == found["n_gradable" + suffix.replace(".all", "")]
    whole = {row["benchmark"]: row["n_gradable"] for row in table[:4]}
    assert whole == {"all": 10, "macro": 10, "alpha": 8, "beta": 2}
    assert all(type(row["n_gradable"]) is int for row in table)


def test_samples_have_the_same_means_over_all_their_answers(tmp_path: Path) -> None:
    def twice(rows: Rows) -> Rows:
        """Add a second sample that is long, wrong and undecided."""
        other = {"sample": 1, "correct": False, "grade_status": "error", "n_charged_tokens": 1000}
        return [both for row in doubtful(rows) for both in (row, row | other)]

    run = open_run(complete(tmp_path / "run", twice).paths.folder)
    measured = run.measures("search")
    pairs = {
        "mean": "accuracy", "mean_gradable": "accuracy_gradable", "undecided": "undecided",
        "tokens": "tokens", "tokens_right": "tokens_right", "truncation": "truncation",
    }  # fmt: skip
    rows = run.samples("search")
    assert len(rows) == 7 * 4
    for row in rows:
        suffix = "" if row["benchmark"] == "all" else f".{row['benchmark']}"
        for ours, theirs in pairs.items():
            expected = measured[row["candidate"]][theirs + suffix]
            assert row[ours] == pytest.approx(expected), (row["candidate"], suffix, ours)
    (short,) = (r for r in rows if (r["candidate"], r["benchmark"]) == (IDS["short"], "all"))
    assert short["mean_gradable"] == 4 / 20
    assert short["undecided"] == pytest.approx(13 / 24)
    assert short["tokens_right"] == pytest.approx(25)


def test_a_narrow_table_tells_of_grading_only_where_there_is_something_to_tell(
    doubted: Run, tmp_path: Path
) -> None:
    rows = doubted.ntr("search")
    assert telling(rows) == rows
    alpha = telling([row for row in rows if row["benchmark"] == "alpha"])
    assert "undecided" in alpha[0] and "n" in alpha[0]
    assert not {"n_gradable", "accuracy_gradable"} & alpha[0].keys()
    beta = telling([row for row in rows if row["benchmark"] == "beta"])
    assert "undecided" not in beta[0] and "accuracy_gradable" in beta[0]
    clean = open_run(complete(tmp_path / "run").paths.folder).ntr("search")
    dull = {"n_gradable", "accuracy_gradable", "undecided"}
    assert telling(clean) == [{k: v for k, v in r.items() if k not in dull} for r in clean]
