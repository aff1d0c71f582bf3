"""Items one by one: levels, what was lost and gained, the ordered matrix, several samples."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from l2s_hpc import Run, open_run
from l2s_hpc.analysis.transfer import TRANSFER_KEYS
from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.evaluation.manifests import sources
from l2s_hpc.measures.intervals import rate_interval
from l2s_hpc.measures.transfer import shares
from l2s_hpc.store.files import write_json

from .test_analysis_builder import ANSWERS, IDS, ITEMS, Rows, complete
from .test_comparison import l2s

LEVELS = {item: ("hard" if item in ("a4", "a5", "b0") else "easy") for _, item in ITEMS}
PROMISED = (
    "candidate", "benchmark", "n", "accuracy", "ntr", "ntr_low", "ntr_high", "ptr", "ptr_low",
    "ptr_high",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run whose items have levels, but for b3."""
    small = complete(tmp_path_factory.mktemp("items") / "run")
    for name in ("search", "report"):
        items = [
            {"benchmark": benchmark, "item": item, "level": LEVELS[item] if item != "b3" else None}
            for benchmark, item in ITEMS
        ]
        write_json(small.paths.evaluation(name), {"name": name, "items": items})
    return small.paths.folder


@pytest.fixture
def run(folder: Path) -> Run:
    return open_run(folder)


def test_the_promised_columns_come_first(folder: Path) -> None:
    code, out, _ = l2s("ntr", folder, "--json")
    assert code == 0
    assert {tuple(row) for row in json.loads(out)} == {TRANSFER_KEYS}
    assert TRANSFER_KEYS[: len(PROMISED)] == PROMISED
    (row,) = (
        row
        for row in json.loads(out)
        if (row["candidate"], row["benchmark"]) == (IDS["slow"], "all")
    )
    assert (row["n"], row["solved"], row["u"]) == (12, 11, pytest.approx(11 / 12))


def test_commas_divide_what_is_left_out(folder: Path) -> None:
    code, _, err = l2s("ntr", folder, "--without", "alpha, gamma")
    assert code == 2 and "'gamma'" in err and "'alpha" not in err
    for verb in (["ntr"], ["front"], ["compare", "--against", "slow"]):
        code, out, _ = l2s(verb[0], folder, *verb[1:], "--without", "alpha,", "--json")
        assert code == 0 and {row["n"] for row in json.loads(out)} == {4}


def test_transfer_by_level_keeps_the_identity(run: Run) -> None:
    rows = [row for row in run.ntr(by="level") if row["candidate"] == IDS["short"]]
    found = {(row["benchmark"], row["level"]): row for row in rows}
    assert [(*key, row["n"]) for key, row in found.items()] == [
        ("alpha", "easy", 6), ("alpha", "hard", 2), ("beta", "easy", 2), ("beta", "hard", 1),
    ]  # fmt: skip
    # Short solves 1111 0000 of alpha, where a4 and a5 are hard, and slow solves all.
    assert found["alpha", "hard"]["ntr"] == 1
    assert found["alpha", "easy"]["ntr"] == pytest.approx(2 / 6)
    for row in rows:
        kept = row["u"] * (1 - (row["ntr"] or 0)) + (1 - row["u"]) * (row["ptr"] or 0)
        assert row["accuracy"] == pytest.approx(kept)


def test_other_parents_by_name_or_candidate(run: Run) -> None:
    rows = {row["candidate"]: row for row in run.ntr(parents=["fast"]) if row["benchmark"] == "all"}
    # Fast solves 11110000 0010, and good 11111111 1010.
    assert rows[IDS["good"]]["ntr"] == 0
    assert rows[IDS["good"]]["ptr"] == pytest.approx(5 / 7)
    again = run.ntr(parents=[IDS["fast"]], by="benchmark")
    assert again == run.ntr(parents=["parent.fast"])
    assert run.ntr(parents=["slow", "fast"]) == run.ntr()


def test_what_items_do_not_have_is_the_users_error(run: Run) -> None:
    with pytest.raises(UserError, match="no item of evaluation 'report' has a subject"):
        run.ntr(by="subject")
    with pytest.raises(UserError, match="cannot be told by 'levle'"):
        run.ntr(by="levle")
    with pytest.raises(UserError, match=f"parent {IDS['beaten']} has no table in 'report'"):
        run.ntr(parents=[IDS["beaten"]])
    with pytest.raises(DamageError, match="description is missing"):
        run.ntr("selection", by="level")


def test_a_level_that_an_evaluation_does_not_tell_stands_in_the_manifest(tmp_path: Path) -> None:
    known = sources()["college_math"].items
    ids = [*known][:4]
    renamed = {f"b{n}": item for n, item in enumerate(ids)}

    def change(rows: Rows) -> Rows:
        return [
            row | {"benchmark": "college_math", "item": renamed[row["item"]]}
            if row["benchmark"] == "beta"
            else row
            for row in rows
        ]

    small = complete(tmp_path / "run", change)
    items = [{"benchmark": "college_math", "item": item, "level": None} for item in ids]
    items += [{"benchmark": "alpha", "item": f"a{n}", "level": "1"} for n in range(8)]
    write_json(small.paths.evaluation("report"), {"items": items})
    rows = open_run(tmp_path / "run").ntr(by="subject")
    assert {row["benchmark"] for row in rows} == {"college_math"}
    assert {row["subject"] for row in rows} == {known[item].level for item in ids}


def test_lost_and_gained_items_as_counted_by_hand(run: Run) -> None:
    frame = run.transferred("knee")
    assert frame.columns == ["benchmark", "item", "level", "subject", "change", "solved_by"]
    rows = {row["item"]: row for row in frame.to_dicts()}
    # Slow 11111111 1100, fast 11110000 0010, short 11110000 0011.
    assert rows.keys() == {"a4", "a5", "a6", "a7", "b0", "b1", "b3"}
    assert (rows["a4"]["change"], rows["a4"]["solved_by"], rows["a4"]["level"]) == (
        "lost", ["slow"], "hard",
    )  # fmt: skip
    assert (rows["b3"]["change"], rows["b3"]["solved_by"], rows["b3"]["level"]) == (
        "gained", [], None,
    )  # fmt: skip
    pooled = next(
        row for row in run.table() if row["candidate"] == IDS["short"] and row["benchmark"] == "all"
    )
    lost = sum(row["change"] == "lost" for row in rows.values())
    assert lost == pytest.approx(pooled["ntr"] * pooled["solved"])
    with pytest.raises(UserError, match="has no table in evaluation 'report'"):
        run.transferred(IDS["beaten"])


def test_the_matrix_has_every_verdict_in_blocks_of_the_parents(run: Run) -> None:
    matrix = run.matrix()
    names = {candidate: name for name, candidate in IDS.items()}
    for column, candidate in enumerate(matrix.candidates):
        verdicts = ANSWERS[names[candidate]][0].replace(" ", "")
        expected = {item: int(v) for item, v in zip(ITEMS, verdicts, strict=True)}
        assert [expected[item] for item in matrix.items] == matrix.values[:, column].tolist()
    blocks = [names for names, _ in itertools.groupby(matrix.solved_by)]
    assert blocks == [("slow", "fast"), ("slow",), ("fast",), ()]
    for block in blocks:
        chosen = [names == block for names in matrix.solved_by]
        assert (np.diff(matrix.values[chosen].sum(axis=1).astype(int)) <= 0).all(), "easiest first"
    order = [names[candidate] for candidate in matrix.candidates]
    assert order.index("slow") < order.index("fast")
    assert matrix.labels[order.index("slow")] == "parent.slow"
    assert abs(order.index("short") - order.index("fast")) == 1, "who solve alike stand together"
    alpha = run.matrix("alpha")
    assert {benchmark for benchmark, _ in alpha.items} == {"alpha"}
    assert alpha.values.shape == (8, len(alpha.candidates))


@st.composite
def sampled(draw: st.DrawFn) -> tuple[Any, Any]:
    """Parents and merges over some samples of some items, all 0/1."""
    s, n = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    bits = st.integers(0, 1)
    parents = draw(arrays(np.uint8, (s, 2, n), elements=bits))
    return parents, draw(arrays(np.uint8, (s, 3, n), elements=bits))


@given(sampled())
def test_shares_keep_the_identity(table: Any) -> None:
    parents, merged = table
    found = shares(parents, merged)
    right = found.solved - found.lost + found.gained
    np.testing.assert_allclose(right, merged.mean(axis=0), atol=1e-12)
    assert (found.lost >= 0).all() and (found.lost <= found.solved).all()
    assert (found.gained >= 0).all() and (found.gained <= found.unsolved).all()


@given(sampled())
def test_shares_are_the_average_over_all_disjoint_halves(table: Any) -> None:
    parents, merged = table
    samples = len(parents) - len(parents) % 2
    if not samples:
        return
    parents, merged = parents[:samples], merged[:samples]
    solved = parents.any(axis=1)
    lost = []
    for half in itertools.combinations(range(samples), samples // 2):
        rest = [s for s in range(samples) if s not in half]
        lost.append(solved[list(half)].mean(axis=0) * (1 - merged[rest].mean(axis=0)))
    np.testing.assert_allclose(shares(parents, merged).lost, np.mean(lost, axis=0), atol=1e-12)


def test_a_parent_that_guesses_loses_in_other_samples() -> None:
    """One sample for both would say that a parent alone loses nothing."""
    guesses = np.random.default_rng(0).integers(0, 2, (4, 1, 2000))
    found = shares(guesses, guesses)
    assert found.lost.sum() / found.solved.sum() == pytest.approx(0.5, abs=0.02)
    one = shares(guesses[:1], guesses[:1])
    assert one.lost.sum() == 0


def test_a_run_with_two_samples_uses_both(tmp_path: Path) -> None:
    def twice(rows: Rows) -> Rows:
        again = [row | {"sample": 1, "correct": row["correct"] ^ (row["item"] == "a0")}
                 for row in rows]  # fmt: skip
        return [*rows, *again]

    complete(tmp_path / "run", twice)
    run = open_run(tmp_path / "run")
    rows = {r["candidate"]: r for r in run.table() if r["benchmark"] == "all"}
    slow = rows[IDS["slow"]]
    # Slow solves ten items, but a0 in one of two samples only; fast has b2 besides.
    assert (slow["n"], slow["solved"]) == (12, 10.5)
    assert slow["accuracy"] == pytest.approx(9.5 / 12)
    # Of b2 it loses all, and of a0 the sample of which the parents solve the other: 1/2.
    assert slow["ntr"] == pytest.approx(1.5 / 10.5)
    assert slow["ptr"] == pytest.approx(0.5 / 1.5)
    assert slow["accuracy"] == pytest.approx(
        slow["u"] * (1 - slow["ntr"]) + (1 - slow["u"]) * slow["ptr"]
    )
    assert slow["ntr_low"] <= slow["ntr"] <= slow["ntr_high"]
    # What a search and its front go by is the same.
    measured = run.measures(run.best_evaluation())[IDS["slow"]]
    assert [measured[name] for name in ("accuracy", "ntr", "ptr")] == pytest.approx(
        [slow[name] for name in ("accuracy", "ntr", "ptr")]
    )
    # Answers are no items: on them the figures rest.
    assert (measured["n"], measured["n_gradable"], measured["n.alpha"]) == (12, 12, 8)
    assert {row["n"] for row in [*run.front(), *run.attainment()]} == {12}
    assert "the 12 items of" in l2s("front", tmp_path / "run")[1]


def test_an_item_with_fewer_samples_is_an_error(tmp_path: Path) -> None:
    def once(rows: Rows) -> Rows:
        return [*rows, *(row | {"sample": 1} for row in rows if row["item"] != "a3")]

    complete(tmp_path / "run", once)
    with pytest.raises(DamageError, match="fewer samples than others"):
        open_run(tmp_path / "run").table()


@pytest.mark.parametrize(
    ("parents", "merged", "message"),
    [
        (np.ones((1, 2, 3)), np.ones((2, 2, 3)), "are needed"),
        (np.ones((2, 3)), np.ones((2, 3)), "are needed"),
        (np.ones((1, 0, 3)), np.ones((1, 2, 3)), "at least one parent"),
        (np.full((1, 1, 3), 0.5), np.ones((1, 2, 3)), "0 or 1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(parents: Any, merged: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        shares(parents, merged)


def test_rates_of_shares_need_shares() -> None:
    with pytest.raises(UserError, match="item of the denominator"):
        rate_interval(np.array([0.6]), np.array([0.5]), np.zeros(1))
    with pytest.raises(UserError, match="item of the denominator"):
        rate_interval(np.array([-0.1]), np.array([0.5]), np.zeros(1))
