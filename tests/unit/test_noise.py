"""Noise twins: what is measured again, and what the difference of two equal evaluations says."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc import open_run
from l2s_hpc.analysis.noise import Noise
from l2s_hpc.errors import DamageError
from l2s_hpc.evaluation.splits import another_order
from l2s_hpc.records import Item
from tests.unit.test_analysis_builder import IDS, Rows, SmallRun, complete

TWINS = ("slow", "good")


def measured(
    folder: Path, flipped: Sequence[str] = (), longer: int = 0, twins: Sequence[str] = TWINS
) -> Noise:
    """The noise of a small run whose twins answer some items otherwise, and all of them longer."""
    run = with_twins(folder, flipped, longer, twins)
    found = open_run(run.paths.folder).noise()
    assert found is not None
    return found


def with_twins(
    folder: Path, flipped: Sequence[str] = (), longer: int = 0, twins: Sequence[str] = TWINS
) -> SmallRun:
    def change(rows: Rows) -> Rows:
        if rows[0]["evaluation"] != "noise":
            return rows
        changed = [row | {"correct": row["correct"] != (row["item"] in flipped)} for row in rows]
        return changed[::-1]  # in another order

    run = complete(folder, change)
    stage = {"event": "stage", "evaluation": "noise", "candidates": [IDS[name] for name in twins]}
    run.append(stage)
    for name in twins:
        run.evaluate("noise", name, longer)
    run.append({"event": "completed"})
    return run


def test_a_run_without_twins_knows_no_noise(tmp_path: Path) -> None:
    assert open_run(complete(tmp_path / "run").paths.folder).noise() is None


def test_equal_tables_show_no_noise(tmp_path: Path) -> None:
    found = measured(tmp_path / "run")
    assert (found.evaluation, found.n) == ("selection", 12)
    assert found.candidates == (IDS["slow"], IDS["good"])
    assert found.flips == found.flips_low == 0 < found.flips_high
    assert (found.sd_accuracy, found.sd_tokens, found.sd_ntr) == (0, 0, 0)
    assert found.most(48) == pytest.approx(math.sqrt(found.flips_high / 48))


def test_planted_flips_come_out(tmp_path: Path) -> None:
    """Both twins flip a0, which they had right, and b3, which no parent solves."""
    found = measured(tmp_path / "run", ["a0", "b3"])
    assert found.flips == pytest.approx(2 / 12)
    assert found.sd_accuracy == pytest.approx(math.sqrt(2) / 12)
    assert found.sd_accuracy == pytest.approx(math.sqrt(found.flips / found.n))
    assert found.most(found.n) == pytest.approx(math.sqrt(found.flips_high / found.n))
    # Of the eleven items that a parent solves, the merge loses a0.
    assert found.sd_ntr == pytest.approx(1 / 11)
    slow, good = (row for row in found.rows if row["benchmark"] == "all")
    assert slow["candidate"] == IDS["slow"] and slow["label"] == "noise twin of parent.slow"
    assert good["label"] == "noise twin of most_accurate"
    assert good["ntr"] == pytest.approx(2 / 11) and good["delta_ntr"] == pytest.approx(1 / 11)
    assert good["accuracy"] == pytest.approx(10 / 12) and good["delta_accuracy"] == 0
    assert slow["ntr"] == pytest.approx(2 / 11), "what its own first answers solved, and it lost"
    assert good["ntr_low"] < good["ntr"] < good["ntr_high"]
    assert {row["benchmark"]: row["flips"] for row in found.rows[3:]} == pytest.approx(
        {"all": 2 / 12, "alpha": 1 / 8, "beta": 1 / 4}
    )


def test_a_row_has_the_columns_of_a_transfer_row_and_keeps_their_identity(tmp_path: Path) -> None:
    from l2s_hpc.analysis.transfer import TRANSFER_KEYS

    for row in measured(tmp_path / "run", ["a0", "a5", "b0"]).rows:
        assert set(TRANSFER_KEYS) <= row.keys()
        u = row["u"]
        parts = u * (1 - (row["ntr"] or 0)) + (1 - u) * (row["ptr"] or 0)
        assert row["accuracy"] == pytest.approx(parts)


def test_lengths_that_all_shift_are_noise_too(tmp_path: Path) -> None:
    """Each item's difference may have either sign: eight tokens on each of twelve items."""
    found = measured(tmp_path / "run", longer=8)
    assert found.sd_tokens == pytest.approx(8 / math.sqrt(12)) and found.sd_accuracy == 0
    assert all(row["delta_tokens"] == 8 for row in found.rows)


def test_a_sd_shrinks_with_the_root_of_the_number_of_items(tmp_path: Path) -> None:
    found = measured(tmp_path / "run", ["a0"], longer=3)
    assert found.sd("accuracy") == found.sd_accuracy
    assert found.sd("tokens", 48) == pytest.approx((found.sd_tokens or 0) / 2)
    assert found.sd("ntr", 3) == pytest.approx(2 * (found.sd_ntr or 0))


def test_where_the_slow_parent_alone_has_a_twin_its_ntr_stands_in(tmp_path: Path) -> None:
    found = measured(tmp_path / "run", ["a0"], twins=["slow"])
    assert found.candidates == (IDS["slow"],) and found.sd_ntr == pytest.approx(1 / 11)


def test_the_sd_of_ntr_is_that_of_merges(tmp_path: Path) -> None:
    """What a parent loses, it had itself declared to be solved."""

    def change(rows: Rows) -> Rows:
        again = rows[0]["evaluation"] == "noise" and rows[0]["candidate"] == IDS["slow"]
        return [row | {"correct": row["correct"] and not again} for row in rows]

    run = complete(tmp_path / "run", change)
    for name in TWINS:
        run.evaluate("noise", name)
    found = open_run(run.paths.folder).noise()
    assert found is not None and found.sd_ntr == 0
    assert found.sd_accuracy == pytest.approx(math.sqrt(10 / 2) / 12), "ten of two twins' answers"


def test_a_twin_counts_once_it_has_both_tables(tmp_path: Path) -> None:
    run = with_twins(tmp_path / "run", twins=["slow"])
    run.evaluate("noise", "beaten")  # which was never selected
    found = open_run(run.paths.folder).noise()
    assert found is not None and found.candidates == (IDS["slow"],)


def test_without_a_parents_table_only_transfer_is_unknown(tmp_path: Path) -> None:
    run = with_twins(tmp_path / "run", ["a0"])
    run.table("selection", "fast").unlink()
    with pytest.raises(DamageError, match="missing"):
        open_run(run.paths.folder).noise()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = open_run(run.paths.folder, strict=False).noise()
    assert found is not None and found.sd_ntr is None and found.sd_accuracy > 0
    assert {row["ntr"] for row in found.rows} == {row["delta_ntr"] for row in found.rows} == {None}


def test_tables_of_different_items_are_refused(tmp_path: Path) -> None:
    def shorter(rows: Rows) -> Rows:
        return rows[1:] if rows[0]["evaluation"] == "noise" else rows

    run = complete(tmp_path / "run", shorter)
    run.evaluate("noise", "slow")
    with pytest.raises(DamageError, match="'selection' and 'noise' do not have the same items"):
        open_run(run.paths.folder).noise()


def item(number: int, benchmark: str = "b") -> Item:
    return Item(
        benchmark=benchmark, item=f"i{number}", question=f"q{number}", gold="1",
        question_hash=f"h{number}",
    )  # fmt: skip


@given(st.integers(2, 40), st.integers(0, 9))
def test_the_same_items_in_another_order(count: int, seed: int) -> None:
    items = tuple(item(n, "ab"[n % 2]) for n in range(count))
    found = another_order(items, seed)
    assert found != items and sorted(found, key=str) == sorted(items, key=str)
    assert another_order(items, seed) == found, "the seed decides"


def test_chunks_hold_other_items_of_all_benchmarks() -> None:
    items = [item(n, f"b{n // 250}") for n in range(1000)]
    found = another_order(items, 3)
    for start in range(0, 1000, 250):
        benchmarks = [i.benchmark for i in found[start : start + 250]]
        assert all(40 <= benchmarks.count(f"b{n}") <= 85 for n in range(4))
    assert another_order(items, 4) != found
