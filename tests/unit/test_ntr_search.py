"""A search whose objective is the NTR, under a bound on it, from the command to the front."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from l2s_hpc import open_run
from l2s_hpc.measures.tradeoff import non_dominated
from l2s_hpc.store.layout import RunPaths
from tests.mini import state_of, write_mini

BOUND = 0.3


def answers(run: Path, candidate: str) -> tuple[dict[str, bool], float]:
    """Read verdicts and mean tokens of the search without the package's analysis."""
    [path] = RunPaths(run).folder.glob(f"scores/search/*/{candidate}.parquet")
    table = pq.read_table(path)
    verdicts = zip(table["item"].to_pylist(), table["correct"].to_pylist(), strict=True)
    return dict(verdicts), float(np.mean(table["n_charged_tokens"]))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ntr")
    write_mini(folder).run(
        folder / "run",
        'objectives=["accuracy", "ntr", "tokens"]',
        f'constraints=["ntr <= {BOUND}"]',
        "search.population=8",
    )
    return folder / "run"


def test_the_objectives_and_violations_that_were_told_are_those_of_the_tables(
    searched: Path,
) -> None:
    run, state = open_run(searched), state_of(searched)
    parents = [answers(searched, candidate)[0] for candidate in run.parents.values()]
    solved = [item for item in parents[0] if any(one[item] for one in parents)]
    told = {
        candidate: (objectives, violations)
        for generation in state.generations
        for candidate, objectives, violations in zip(
            generation.candidates, generation.objectives, generation.violations, strict=True
        )
    }
    assert len(told) > 4
    for candidate, (objectives, violations) in told.items():
        right, tokens = answers(searched, candidate)
        ntr = sum(not right[item] for item in solved) / len(solved)
        assert objectives == pytest.approx([-sum(right.values()) / len(right), ntr, tokens])
        assert violations == pytest.approx([ntr - BOUND])
    assert {violations[0] > 0 for _, violations in told.values()} == {True, False}


def test_the_front_is_that_of_the_feasible_candidates_by_all_objectives(searched: Path) -> None:
    run, state = open_run(searched), state_of(searched)
    points = {
        candidate: tuple(objectives)
        for generation in state.generations
        for candidate, objectives, violations in zip(
            generation.candidates, generation.objectives, generation.violations, strict=True
        )
        if max(violations) <= 0
    }
    mask = non_dominated(np.array([*points.values()]))
    best = {points[c] for c, on_front in zip(points, mask, strict=True) if on_front}
    front = run.front("search")
    assert len(front) > 1
    assert {(-row["accuracy"], row["ntr"], row["tokens"]) for row in front} == best
    assert all(row["ntr"] <= BOUND for row in front)
    final = run.front()
    assert final
    rates = {row["candidate"]: row["ntr"] for row in run.ntr() if row["benchmark"] == "all"}
    assert all(rates[row["candidate"]] == row["ntr"] for row in final)
