"""Several runs beside each other: groups, spread, what is told apart and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from l2s_hpc import open_runs
from l2s_hpc.analysis.report_runs import RunsReport
from l2s_hpc.cli.report import report as report_verb
from l2s_hpc.errors import UserError
from l2s_hpc.store.files import read_json, write_json

from .test_analysis_builder import Rows, SmallRun, complete
from .test_report import Page


def made(
    folder: Path,
    seed: int = 0,
    algorithm: str = "nsga2",
    change: Callable[[Rows], Rows] = list,
    generations: int = 2,
) -> Path:
    """Make a run; `change` makes other rows of those of each score table."""
    if generations == 2:
        small = complete(folder, change)
    else:
        small = SmallRun(folder, change)
        small.search(generations)
    told = read_json(small.paths.run_json)
    told["science"] |= {"seed": seed, "search.algorithm": algorithm}
    told["config"]["seed"] = seed
    write_json(small.paths.run_json, told)
    return folder


def worse(rows: Rows) -> Rows:
    """Make every answer on `alpha` wrong that is no parent's."""
    return [row | {"correct": row["correct"] and row["item"] != "a0"} for row in rows]


def test_runs_that_differ_in_their_seed_are_a_group(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"seed{n}", n) for n in (1, 2)]
    paths.append(made(tmp_path / "base", 1, "random", worse))
    runs = open_runs(paths)
    assert runs.groups == {"nsga2": ["seed1", "seed2"], "random": ["base"]}
    assert runs.differences() == {
        "seed": {"seed1": 1, "seed2": 2, "base": 1},
        "search.algorithm": {"seed1": "nsga2", "seed2": "nsga2", "base": "random"},
    }
    assert runs.notes() == []
    rows = [row for row in runs.hypervolume() if row["generation"] == 1]
    ours, random = rows
    assert (ours["group"], ours["runs"], ours["sd"]) == ("nsga2", 2, 0.0)
    assert (random["runs"], random["sd"]) == (1, None)
    assert random["mean"] < ours["mean"] == ours["low"] == ours["high"]
    table = {row["run"]: row for row in runs.table()}
    assert table["seed2"]["seed"] == 2
    assert table["seed2"]["item_set"] == table["base"]["item_set"] == "A"
    assert (table["base"]["front"], table["base"]["n"], table["base"]["candidates"]) == (2, 12, 4)
    assert table["seed1"]["hypervolume"] == pytest.approx(ours["mean"])


def test_seeds_of_the_splits_are_no_other_search(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"seed{n}", n) for n in (1, 2)]
    for n, folder in enumerate(paths):
        info = read_json(folder / "run.json")
        info["science"]["splits.seed"] = n or None
        write_json(folder / "run.json", info)
    assert [*open_runs(paths).groups.values()] == [["seed1", "seed2"]]


def test_the_mean_is_over_the_runs_that_got_there(tmp_path: Path) -> None:
    paths = [made(tmp_path / "long"), made(tmp_path / "short", 1, generations=1)]
    runs = open_runs(paths)
    assert [row["runs"] for row in runs.hypervolume()] == [2, 1]
    assert runs.best_evaluation() == "search"
    assert runs.notes() == ["Not finished: short."]


def test_other_items_are_told(tmp_path: Path) -> None:
    def others(rows: Rows) -> Rows:
        return [row | {"item": f"x{row['item']}"} for row in rows]

    runs = open_runs([made(tmp_path / "a"), made(tmp_path / "b", 1, change=others)])
    assert runs.item_sets("search") == {"a": "A", "b": "B"}
    assert runs.groups == {"small": ["a", "b"]} or list(runs.groups.values()) == [["a", "b"]]
    said = runs.notes()
    assert said[0].startswith("The runs have different search items (a A, b B)")
    text = Page(RunsReport(runs).html).text
    assert "different report items (a A, b B)" in text


def test_another_grader_is_told(tmp_path: Path) -> None:
    def regraded(rows: Rows) -> Rows:
        return [row | {"grader": "h"} for row in rows]

    runs = open_runs([made(tmp_path / "a"), made(tmp_path / "b", 1, change=regraded)])
    assert runs.notes() == ["The runs have different graders (a: g, b: h)."]


def test_what_means_another_thing_is_refused(tmp_path: Path) -> None:
    def protocol(rows: Rows) -> Rows:
        return [row | {"protocol": "q"} for row in rows]

    def benchmark(rows: Rows) -> Rows:
        return [row | {"benchmark": row["benchmark"].replace("beta", "gamma")} for row in rows]

    first = made(tmp_path / "a")
    with pytest.raises(UserError, match="differ in the protocol of 'search': a: p; b: q"):
        open_runs([first, made(tmp_path / "b", change=protocol)])
    with pytest.raises(UserError, match=r"benchmarks of 'search': a: alpha, beta; c: alpha, gamma"):
        open_runs([first, made(tmp_path / "c", change=benchmark)])


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first = made(tmp_path / "a")
    with pytest.raises(UserError, match="one run cannot be compared"):
        open_runs([first])
    with pytest.raises(UserError, match="is named twice"):
        open_runs([first, tmp_path / "." / "a"])
    SmallRun(tmp_path / "empty")
    with pytest.raises(UserError, match="empty has nothing to compare"):
        open_runs([first, tmp_path / "empty"])


def test_the_report_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [made(tmp_path / f"s{n}", n, name) for n, name in enumerate(("nsga2", "random"))]
    with pytest.raises(UserError, match="where shall the report of 2 runs go"):
        report_verb(paths)
    out = tmp_path / "both.html"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report_verb(paths, out, tmp_path / "pictures", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in found["runs"]] == ["s0", "s1"]
    names = [Path(path).name for path in found["pictures"]]
    assert names == ["fronts.svg", "hypervolume.svg"]
    text = Page(out.read_text(encoding="utf-8")).text
    assert "nsga2 reaches a hypervolume of 0." in text
    assert "random (1 run)" in text
    assert "search.algorithm nsga2 random" in text
