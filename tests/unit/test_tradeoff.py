"""The trade-off of a run: fronts by any measures, bounds, budgets, attainment, what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc import Run, open_run
from l2s_hpc.analysis.tradeoff import device_hours
from l2s_hpc.errors import UserError
from l2s_hpc.measures.tradeoff import attainment, needed
from l2s_hpc.store.state import AttemptState, GenerationState, RunState

from .test_analysis_builder import IDS, Rows, SmallRun, by_name, complete


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(complete(tmp_path_factory.mktemp("tradeoff") / "run").paths.folder)


class TestFront:
    def test_figures_are_optimistic_where_their_items_chose_the_front(self, run: Run) -> None:
        told = {split: run.front(split)[0]["optimistic"] for split in run.evaluations}
        assert told == {"search": True, "selection": True, "report": False}
        assert not run.front("report", on=["accuracy", "tokens"])[0]["optimistic"]
        assert run.front("search", on=["accuracy", "tokens"])[0]["optimistic"]

    def test_by_the_searchs_own_objectives_it_is_the_searchs_own(self, run: Run) -> None:
        assert run.front("search", on=("accuracy", "tokens")) == run.front("search")

    def test_other_measures_put_others_on_it(self, run: Run) -> None:
        # `beaten` solves b3 and b2 as `short` does: the most of beta; `good` loses the least.
        assert by_name(run.front("search", on=["ntr"])).keys() == {"good"}
        assert by_name(run.front("search", on=["accuracy.beta"])).keys() == {
            "good", "short", "beaten"
        }  # fmt: skip
        (best,) = run.front("search", on=["accuracy.beta", "tokens"])
        assert best["candidate"] == IDS["short"] and best["accuracy.beta"] == 0.5

    def test_more_is_better_for_ptr_and_worse_for_ntr(self, run: Run) -> None:
        assert by_name(run.front("search", on=["ptr"])).keys() == {"short", "beaten"}
        rows = by_name(run.front("search", on=["ptr", "ntr"]))
        assert rows.keys() == {"short", "good", "beaten"}

    def test_infeasible_candidates_and_references_stay_off(self, run: Run) -> None:
        assert by_name(run.front("search", on=["tokens"])).keys() == {"short"}

    def test_the_report_split_does_not_choose(self, tmp_path: Path) -> None:
        def change(rows: Rows) -> Rows:
            """Make `good` the shortest on the report items alone."""
            reported = rows[0]["evaluation"] == "report" and rows[0]["candidate"] == IDS["good"]
            return [row | {"n_charged_tokens": 1} for row in rows] if reported else list(rows)

        run = open_run(complete(tmp_path, change).paths.folder)
        rows = by_name(run.front("report", on=["tokens"]))
        assert rows.keys() == {"short"} and not rows["short"]["optimistic"]

    def test_intervals_hold_the_figures_and_are_those_of_all_measures(self, run: Run) -> None:
        for row in run.front("report", on=["accuracy.alpha", "tokens.macro", "ntr"]):
            for name in ("accuracy", "tokens", "accuracy.alpha", "tokens.macro", "ntr"):
                low, high = row[f"{name}_low"], row[f"{name}_high"]
                assert low <= row[name] + 1e-9 and row[name] <= high + 1e-9, name
        (alone, *_) = run.front("report", on=["ntr.macro"])
        assert alone["ntr.macro_low"] is None is alone["ntr.macro_high"]

    @pytest.mark.parametrize(
        ("on", "message", "hint"),
        [
            (["acuracy"], "unknown measure 'acuracy'", "did you mean 'accuracy'?"),
            (["accuracy.alhpa"], "unknown part 'alhpa' of", "did you mean 'alpha'?"),
            (["tokens."], "unknown part '' of 'tokens.'", "valid: alpha, beta, macro"),
            ([], "at least one measure", "accuracy, tokens"),
        ],
    )
    def test_an_unknown_measure_is_named(
        self, run: Run, on: list[str], message: str, hint: str
    ) -> None:
        with pytest.raises(UserError, match=message) as caught:
            run.front("search", on=on)
        assert hint in caught.value.hint

    def test_a_measure_that_nobody_knows_is_said(self, tmp_path: Path) -> None:
        small = SmallRun(tmp_path)
        small.ask(0)
        for name in ("good", "short", "beaten"):
            small.evaluate("search", name)
        small.tell(0)
        with pytest.raises(UserError, match="ntr is not known of 3 of 3 candidates"):
            open_run(tmp_path).front("search", on=["ntr"])

    def test_a_benchmark_that_is_left_out_does_not_choose(self, run: Run) -> None:
        rows = run.front("search", on=["accuracy", "tokens"], without=["alpha"])
        assert by_name(rows).keys() == {"short"} and rows[0]["n"] == 4
        assert rows[0]["tokens_low"] is None and rows[0]["accuracy_low"] is not None


class TestBounds:
    def test_the_shortest_is_chosen_on_selection_and_measured_on_report(self, run: Run) -> None:
        row = run.shortest(within=0.01)
        assert (row["candidate"], row["of_label"]) == (IDS["good"], "parent.slow")
        assert (row["chosen_on"], row["evaluation"]) == ("selection", "report")
        assert not row["optimistic"]
        assert (row["accuracy"], row["of_accuracy"], row["n"]) == (10 / 12, 10 / 12, 12)
        assert (row["tokens"], row["of_tokens"], row["tokens_saved"]) == (71.0, 101.0, 30.0)
        assert row["difference"] == 0
        assert row["difference_low"] < -0.01 < row["difference_high"]
        assert row["holds"] == "estimate"

    def test_a_wide_bound_holds_over_the_whole_interval(self, run: Run) -> None:
        row = run.shortest(within=0.8)
        assert (row["candidate"], row["holds"]) == (IDS["short"], "interval")
        assert row["difference_low"] >= -0.8 and row["picks"] == ["knee"]

    def test_a_bound_that_is_met_to_the_last_bit_is_met(self, run: Run) -> None:
        """short solves 4 of 12 fewer than slow: 10/12 - 6/12 is not .333… in binary."""
        row = run.shortest(within=4 / 12, evaluation="selection")
        assert (row["candidate"], row["holds"]) == (IDS["short"], "estimate")
        assert row["optimistic"]

    def test_what_was_chosen_may_fail_on_the_report_items(self, tmp_path: Path) -> None:
        def change(rows: Rows) -> Rows:
            reported = rows[0]["evaluation"] == "report" and rows[0]["candidate"] == IDS["good"]
            return [row | {"correct": False} for row in rows] if reported else list(rows)

        row = open_run(complete(tmp_path, change).paths.folder).shortest(within=0.01)
        assert (row["candidate"], row["holds"]) == (IDS["good"], "no")

    def test_another_model_to_compare_with(self, run: Run) -> None:
        row = run.shortest(within=0, of="fast")
        assert row["candidate"] == IDS["short"] and row["tokens_saved"] == -5.0
        assert run.shortest(of=IDS["good"], within=0.5)["of"] == IDS["good"]

    def test_nobody_qualifies(self, tmp_path: Path) -> None:
        def change(rows: Rows) -> Rows:
            slow = rows[0]["candidate"] == IDS["slow"]
            return [row | {"correct": row["correct"] or slow} for row in rows]

        run = open_run(complete(tmp_path, change).paths.folder)
        with pytest.raises(UserError, match="no candidate is within 1 points of") as e:
            run.shortest(within=0.01)
        assert f"the nearest, {IDS['good']}, is 16.7 points below its 1.000" in e.value.hint
        with pytest.raises(UserError, match="spends at most 3 tokens on 'selection'") as e:
            run.most_accurate(tokens=3)
        assert f"the shortest, {IDS['short']}, spends 25.0" in e.value.hint

    def test_the_most_accurate_within_a_budget(self, run: Run) -> None:
        row = run.most_accurate(tokens=60)
        assert (row["candidate"], row["holds"]) == (IDS["short"], "interval")
        assert row["tokens_low"] < row["tokens"] == 26.0 < row["tokens_high"]
        # On selection `good` spends 70 tokens, on report 71.
        assert run.most_accurate(tokens=70)["holds"] == "no"
        assert run.most_accurate(tokens=71)["holds"] == "estimate"

    def test_points_are_not_shares(self, run: Run) -> None:
        with pytest.raises(UserError, match=r"share from 0 to 1, not 2") as caught:
            run.shortest(within=2)
        assert ".01 is one point" in caught.value.hint

    def test_an_unknown_name_is_said(self, run: Run) -> None:
        with pytest.raises(UserError, match="'slwo'") as caught:
            run.shortest(of="slwo")
        assert "did you mean 'slow'" in caught.value.hint


class TestAttainment:
    def test_the_front_beside_each_reference(self, run: Run) -> None:
        rows = by_name(run.attainment("report"))
        slow, fast, average = (rows[name] for name in ("slow", "fast", "average"))
        assert slow["front_tokens"] == 71.0
        assert slow["share_saved"] == pytest.approx(1 - 71 / 101)
        assert (slow["front_accuracy"], slow["accuracy_gained"]) == (10 / 12, 0.0)
        assert (fast["front_tokens"], fast["front_accuracy"]) == (26.0, None)
        assert average["front_tokens"] == 71.0 and average["front_accuracy"] == 6 / 12
        assert not slow["optimistic"] and slow["n"] == 12

    def test_several_runs_by_hand(self) -> None:
        found = attainment([[(1, 5), (3, 2)], [(2, 4)], []])
        assert found.first.tolist() == [1, 2, 3]
        assert found.second.tolist() == [[5, 4, 2], [np.inf, 5, 4], [np.inf] * 3]

    def test_what_does_not_fit_is_said(self) -> None:
        with pytest.raises(UserError, match="at least one run"):
            attainment([])
        with pytest.raises(UserError, match="of two objectives, not 3"):
            attainment([[(1, 2, 3)]])


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=6)


@given(st.lists(POINTS, min_size=1, max_size=4))
def test_attainment_counts_the_runs_that_dominate_a_place(runs: list[Any]) -> None:
    found = attainment(runs)
    for column, x in enumerate(found.first):
        for y in range(7):
            reached = sum(any(a <= x and b <= y for a, b in points) for points in runs)
            assert (found.second[:, column] <= y).sum() == reached


@given(POINTS, st.integers(-1, 7))
def test_needed_is_the_least_of_those_that_reach_the_target(points: list[Any], x: int) -> None:
    expected = min((b for a, b in points if a <= x), default=np.inf)
    assert needed(points, [x]).tolist() == [expected]


def test_device_hours_add_up_by_generation_with_failed_attempts() -> None:
    def attempt(evaluation: str, generation: int, number: int, seconds: float) -> AttemptState:
        return AttemptState(evaluation, generation, "c", number, "b", "t", seconds=seconds)

    told = GenerationState(((1.0,),), ("c",), objectives=((0.0,),), violations=((0.0,),))
    state = RunState(generations=[told, told, GenerationState(((1.0,),), ("c",))])
    state.attempts = {
        ("search", "c"): [attempt("search", 0, 1, 3600), attempt("search", 0, 2, 1800)],
        ("search", "d"): [attempt("search", 1, 1, 900), attempt("search", 2, 1, 7200)],
        ("selection", "c"): [attempt("selection", 0, 1, 3600)],
    }
    assert device_hours(state) == (1.5, 1.75)


def test_the_hypervolume_has_a_cost_for_each_generation(run: Run) -> None:
    found = run.hypervolume()
    assert len(found.device_hours) == len(found.generations) == 2
