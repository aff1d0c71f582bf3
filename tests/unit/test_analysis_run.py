"""A run, opened for reading: numbers against hand counts, and damage found before any number."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc import Run, open_run
from l2s_hpc.analysis.tradeoff import hypervolume_of
from l2s_hpc.controller.verify import Damage, verify
from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.store.files import read_json, sha256_file, write_json

from .test_analysis_builder import (
    ANSWERS,
    GENOMES,
    HOSTILE,
    IDS,
    SmallRun,
    accuracy,
    by_name,
    complete,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A complete run that no test changes."""
    return complete(tmp_path_factory.mktemp("analysis") / "run")


@pytest.fixture
def small(finished: SmallRun, tmp_path: Path) -> SmallRun:
    """A copy of it that a test may damage, at another place."""
    shutil.copytree(finished.paths.folder, tmp_path / "copy")
    copy = SmallRun.__new__(SmallRun)
    copy.paths = type(finished.paths)(tmp_path / "copy")
    return copy


@pytest.fixture
def run(finished: SmallRun) -> Run:
    return open_run(finished.paths.folder)


def test_a_recipe_is_told_by_id_pick_or_reference() -> None:
    sample = open_run(Path(__file__).parents[2] / "results" / "sample")
    for candidate in sample.state.genomes:
        assert sample.recipe(candidate).candidate == candidate
    knee = sample.recipe("knee")
    assert knee.candidate == sample.state.picks["knee"]
    assert knee.config["merge_method"] == "task_arithmetic"
    assert {model["model"] for model in knee.config["models"]} == {"slow", "fast"}
    assert sample.recipe("average") == sample.info.references["average"]
    with pytest.raises(UserError, match="no candidate, pick or reference 'kneee'"):
        sample.recipe("kneee")


def test_a_recipe_that_is_not_the_candidates_is_no_answer(run: Run) -> None:
    run.state.genomes[IDS["good"]] = run.state.genomes[IDS["short"]]
    with pytest.raises(DamageError, match=f"genome of {IDS['good']} gives the recipe"):
        run.recipe(IDS["good"])
    del run.state.genomes[IDS["good"]]
    with pytest.raises(UserError, match="was not merged by this run"):
        run.recipe(IDS["good"])


def test_the_final_front_is_reported_on_the_report_items(run: Run) -> None:
    short, good = run.front()
    assert run.best_evaluation() == "report"
    assert (short["candidate"], good["candidate"]) == (IDS["short"], IDS["good"])
    assert (good["accuracy"], good["tokens"], good["n"]) == (10 / 12, 71.0, 12)
    assert (short["accuracy"], short["tokens"]) == (6 / 12, 26.0)
    assert good["ntr"] == pytest.approx(1 / 11)
    assert (short["ptr"], good["ptr"]) == (1.0, 0.0)
    assert good["genome"] == list(GENOMES["good"])
    assert (short["picks"], good["picks"]) == (["knee"], ["most_accurate"])


def test_the_front_of_the_search_leaves_out_dominated_infeasible_and_failed(run: Run) -> None:
    rows = run.front("search")
    assert [row["candidate"] for row in rows] == [IDS["short"], IDS["good"]]
    assert [row["tokens"] for row in rows] == [25.0, 70.0]


def test_a_search_under_way_has_a_front_of_its_own(tmp_path: Path) -> None:
    SmallRun(tmp_path).search(generations=1)
    run = open_run(tmp_path)
    assert run.best_evaluation() == "search"
    assert by_name(run.front()).keys() == {"short", "good"}
    with pytest.raises(UserError, match="not fixed yet"):
        run.front("report")


def test_a_choice_without_its_report_is_shown_on_selection(tmp_path: Path) -> None:
    small = SmallRun(tmp_path)
    small.search()
    small.choose()
    small.evaluate("report", "good", extra_tokens=1)
    run = open_run(tmp_path)
    assert run.best_evaluation() == "selection"
    assert [row["tokens"] for row in run.front()] == [25.0, 70.0]
    assert by_name(run.front("report")).keys() == {"good"}


def test_a_run_that_has_only_begun_is_empty_and_no_error(tmp_path: Path) -> None:
    SmallRun(tmp_path)
    run = open_run(tmp_path)
    assert run.front() == run.ntr() == []
    assert run.candidates()["label"].to_list() == ["parent.slow", "parent.fast", "average"]
    with pytest.raises(UserError, match="first parent"):
        run.hypervolume()
    with pytest.raises(UserError, match="accepted yet"):
        run.scores()


def test_candidates_have_a_column_for_each_gene_in_the_order_of_the_genome(run: Run) -> None:
    frame = run.candidates()
    assert run.genes == ("weight.slow", "weight.fast")
    assert list(run.parents) == ["slow", "fast"]
    rows = by_name(frame.to_dicts())
    for name, genome in GENOMES.items():
        assert (rows[name]["weight.slow"], rows[name]["weight.fast"]) == genome
    assert rows["slow"]["label"] == "parent.slow"
    assert rows["average"]["label"] == "average"
    assert rows["average"]["generation"] is None
    assert [rows[n]["generation"] for n in ("good", "rubbish")] == [0, 1]
    assert rows["broken"]["penalised"] == HOSTILE
    assert rows["broken"]["accuracy"] is None
    assert [rows[n]["feasible"] for n in ("good", "rubbish", "broken", "slow")] == [
        True, False, False, None,
    ]  # fmt: skip


def test_candidates_of_another_evaluation_have_its_measures(run: Run) -> None:
    rows = by_name(run.candidates("report").to_dicts())
    assert rows["good"]["tokens"] == 71.0
    assert rows["beaten"]["tokens"] is None
    assert rows["broken"]["penalised"] is None


def test_transfer_rows_are_whole_and_consistent(run: Run) -> None:
    rows = run.ntr("search")
    assert len(rows) == len(ANSWERS) * 4
    assert [row["benchmark"] for row in rows[:4]] == ["all", "macro", "alpha", "beta"]
    table = {(row["candidate"], row["benchmark"]): row for row in run.table("search")}
    for row in rows:
        if row["benchmark"] == "macro":
            continue
        solved = table[row["candidate"], row["benchmark"]]["solved"]
        u = solved / row["n"]
        expected = u * (1 - row["ntr"]) + (1 - u) * (row["ptr"] or 0.0)
        assert row["accuracy"] == pytest.approx(expected)
        assert row["ntr_low"] <= row["ntr"] <= row["ntr_high"]
    short = table[IDS["short"], "all"]
    assert (short["n"], short["solved"]) == (12, 11)
    assert (short["ntr"], short["ptr"]) == (pytest.approx(6 / 11), 1.0)


def test_a_rate_without_denominator_is_none_also_in_the_macro_mean(run: Run) -> None:
    rows = {row["benchmark"]: row for row in run.ntr() if row["candidate"] == IDS["good"]}
    assert rows["alpha"]["ptr"] is rows["alpha"]["ptr_low"] is None
    assert rows["macro"]["ptr"] is None
    assert rows["macro"]["ntr"] == pytest.approx((0 / 8 + 1 / 3) / 2)
    assert rows["macro"]["accuracy"] == pytest.approx((8 / 8 + 2 / 4) / 2)


def test_the_table_gives_tokens_with_an_interval(run: Run) -> None:
    rows = {row["benchmark"]: row for row in run.table() if row["candidate"] == IDS["slow"]}
    for row in rows.values():
        assert row["tokens"] == pytest.approx(101.0)
        assert 100.0 <= row["tokens_low"] <= 101.0 <= row["tokens_high"] <= 102.0


def test_hypervolume_is_the_share_of_the_reference_area(run: Run) -> None:
    found = run.hypervolume()
    # Tokens 25 to 70 at 6/12 and 70 to 125 at 10/12; what is infeasible adds nothing.
    searched = ((70 - 25) * 6 / 12 + (125 - 70) * 10 / 12) / 125
    swept = ((60 - 20) * 5 / 12 + (100 - 60) * 7 / 12 + (125 - 100) * 10 / 12) / 125
    assert found.slow_tokens == 100.0
    assert found.generations == pytest.approx((searched, searched))
    assert found.sweep == found.average == pytest.approx(swept)
    assert len(run.hypervolume("report").generations) == 2


def test_hypervolume_of_the_ideal_is_one_and_of_nothing_is_zero() -> None:
    assert hypervolume_of([(1.0, 0.0)], 100.0) == 1.0
    assert hypervolume_of([], 100.0) == hypervolume_of([(1.0, 125.0)], 100.0) == 0.0
    assert hypervolume_of([(0.5, 62.5)], 100.0) == pytest.approx(0.25)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 200)), min_size=1, max_size=8),
    st.tuples(st.floats(0, 1), st.floats(0, 200)),
)
def test_another_point_never_lowers_the_hypervolume(
    points: list[tuple[float, float]], more: tuple[float, float]
) -> None:
    before = hypervolume_of(points, 100.0)
    assert 0.0 <= before <= hypervolume_of([*points, more], 100.0) + 1e-12 <= 1.0 + 2e-12


def test_cost_counts_seconds_attempts_and_repeats(run: Run) -> None:
    found = run.cost()
    tables = 7 + 5 + 5
    assert found.accepted == tables
    assert found.seconds == {"generate": 3.0 * tables, "merge": 1.0 * tables}
    assert found.evaluations == {"search": 28.0, "selection": 20.0, "report": 20.0}
    assert found.device_hours == pytest.approx(4.0 * tables / 3600)
    assert found.seconds_per_candidate == 4.0
    assert (found.attempts, found.failed, found.lost, found.penalised) == (tables + 2, 2, 0, 1)
    assert (found.asked, found.repeats) == (6, 1)


def test_scores_and_tensor_hold_the_accepted_rows(run: Run) -> None:
    assert run.scores("search").collect().height == 7 * 12
    assert run.scores().collect().height == 17 * 12
    tensor = run.tensor("beta")
    assert tensor.values.shape == (7, 4)
    assert tensor.items == tuple(("beta", f"b{n}") for n in range(4))
    row = tensor.candidates.index(IDS["short"])
    assert tensor.values[row].tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match="gamma"):
        run.tensor("gamma")


def test_a_table_that_was_never_accepted_is_not_seen(small: SmallRun) -> None:
    path = small.table("search", "good")
    shutil.copy(path, path.with_name("0123456789abcdef.parquet"))
    assert open_run(small.paths.folder).scores("search").collect().height == 7 * 12


def test_a_copy_without_the_original_reads_the_same(run: Run, small: SmallRun) -> None:
    shutil.rmtree(small.paths.folder / "attempts")
    copied = open_run(str(small.paths.folder))
    assert copied.front() == run.front()
    assert copied.ntr() == run.ntr()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the attempt's file is the same inode
    path.write_bytes(content)


def delete_a_row(path: Path) -> None:
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table.slice(1), path)


DAMAGE: list[Callable[[Path], None]] = [flip_a_byte, delete_a_row, Path.unlink]
READS: list[Callable[[Run], Any]] = [
    lambda run: run.front(),
    lambda run: run.ntr(),
    lambda run: run.candidates("report"),
    lambda run: run.scores("report"),
    lambda run: run.tensor(evaluation="report"),
    lambda run: run.hypervolume("report"),
    lambda run: run.cost(),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_before_any_number(small: SmallRun, damage: Callable[[Path], None]) -> None:
    path = small.table("report", "good")
    damage(path)
    run = open_run(small.paths.folder)
    for read in READS:
        with pytest.raises(DamageError) as error:
            read(run)
        assert error.value.path == path


@pytest.mark.parametrize(
    "damage", [*DAMAGE, None], ids=lambda damage: getattr(damage, "__name__", "receipt")
)
def test_damage_says_what_mends_it_here_and_in_a_copy(
    small: SmallRun, damage: Callable[[Path], None] | None
) -> None:
    if damage is None:
        small.paths.receipt("report", 0, IDS["good"]).unlink()
    else:
        damage(small.table("report", "good"))
    with pytest.raises(DamageError) as error:
        open_run(small.paths.folder).front()
    assert "`l2s verify --quarantine`, then `l2s run` makes it again" in error.value.hint
    assert "copy it anew, or `open_run(path, strict=False)` leaves it out" in error.value.hint
    with pytest.warns(UserWarning, match="left out") as said:
        assert by_name(open_run(small.paths.folder, strict=False).front()).keys() == {"short"}
    assert "Hint" not in str(said[0].message)


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_a_missing_or_damaged_description_is_to_be_copied_anew(
    small: SmallRun, text: str | None
) -> None:
    path = small.paths.evaluation("report")
    if text is not None:
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
    for read in (lambda run: run.show("slow", "1"), lambda run: run.ntr(by="level")):
        with pytest.raises(DamageError, match="description is missing or damaged") as error:
            read(open_run(small.paths.folder))
        assert error.value.path == path
        assert error.value.hint == "copy it anew from where the run was made"


def test_a_deleted_row_is_an_error_even_if_the_receipt_was_made_to_fit(small: SmallRun) -> None:
    path = small.table("report", "good")
    delete_a_row(path)
    receipt = small.paths.receipt("report", 0, IDS["good"])
    forged = read_json(receipt) | {"file_sha256": sha256_file(path), "rows": 11}
    write_json(receipt, forged)
    with pytest.raises(DamageError, match="11 rows, 12 were accepted"):
        open_run(small.paths.folder).front()


@pytest.mark.parametrize("text", [None, "{", '{"run": 1}'])
def test_a_missing_or_damaged_receipt_is_named(small: SmallRun, text: str | None) -> None:
    receipt = small.paths.receipt("report", 0, IDS["good"])
    receipt.unlink()
    if text is not None:
        receipt.write_text(text, encoding="utf-8")
    with pytest.raises(DamageError) as error:
        open_run(small.paths.folder).front()
    assert error.value.path == receipt


def test_not_strict_leaves_damage_out_with_a_warning(small: SmallRun) -> None:
    flip_a_byte(small.table("report", "good"))
    run = open_run(small.paths.folder, strict=False)
    with pytest.warns(UserWarning, match="sha256 differs"):
        assert by_name(run.front()).keys() == {"short"}
    with pytest.warns(UserWarning, match="left out"):
        assert by_name(run.ntr()).keys() == {"short", "slow", "fast", "average"}
    with pytest.warns(UserWarning, match="left out"):
        assert run.cost().accepted == 16


def test_without_a_parent_there_is_no_transfer_rate(small: SmallRun) -> None:
    small.table("report", "fast").unlink()
    run = open_run(small.paths.folder, strict=False)
    with pytest.warns(UserWarning, match="left out"):
        rows = run.ntr()
    assert {row["ntr"] for row in rows} == {row["ptr_high"] for row in rows} == {None}
    with pytest.warns(UserWarning, match="left out"):
        assert [row["accuracy"] for row in run.front()] == [accuracy("short"), accuracy("good")]


def test_a_gap_in_the_journal_is_damage(small: SmallRun) -> None:
    (small.paths.journal / "000" / "00000010.json").unlink()
    with pytest.raises(DamageError, match="entry 10 is missing"):
        open_run(small.paths.folder)


def test_tables_without_a_journal_are_no_empty_run(small: SmallRun) -> None:
    journal = small.paths.journal
    shutil.rmtree(journal)
    with pytest.raises(DamageError, match="the journal is missing, though there are") as error:
        open_run(small.paths.folder)
    assert error.value.path == journal
    assert verify(small.paths.folder) == (0, [Damage(journal, error.value.message)])
    shutil.rmtree(small.paths.folder / "scores")
    assert open_run(small.paths.folder).front() == []  # as a search that has just begun


def test_a_folder_that_is_no_run_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        open_run(tmp_path)


def test_a_run_json_of_another_kind_is_damage(small: SmallRun) -> None:
    write_json(small.paths.run_json, {"id": "x"})
    with pytest.raises(DamageError, match="not this version's"):
        open_run(small.paths.folder)


def test_a_run_shows_itself(run: Run) -> None:
    assert repr(run) == "<Run small-00000000: complete, 8 candidates>"
    shown = run._repr_html_()
    assert "&lt;Run small" in shown
    assert "<td>most_accurate</td>" in shown


def test_opening_a_run_loads_no_plotting_and_no_engine() -> None:
    heavy = ["altair", "vl_convert", "pyarrow", "pymoo", "torch", "l2s_hpc.config"]
    code = f"import sys, l2s_hpc.analysis.run; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
