"""The search: replay, genomes, objectives and constraints."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.config import SearchConfig, validate
from l2s_hpc.errors import L2SError
from l2s_hpc.measures.tradeoff import non_dominated
from l2s_hpc.recipes.genes import Genome, Space, space
from l2s_hpc.search.evolve import Evolution, Generation, grid, snap_unit
from l2s_hpc.search.objectives import (
    constraints,
    minimised,
    objective_faults,
    objectives,
    violations,
)

WEIGHT = {"parameter": "weight", "low": 0.0, "high": 1.0, "step": 0.05}
SEARCHES: dict[str, dict[str, Any]] = {
    "nsga2": {"population": 8},
    "grid": {"population": 8, "start": "grid", "grid": 3},
    "ga": {"population": 8, "algorithm": "ga"},
    "random": {"population": 8, "algorithm": "random"},
}


def job(**changes: Any) -> SearchConfig:
    data: dict[str, Any] = {
        "name": "small",
        "seed": 4,
        "benchmarks": ["toy_easy", "toy_mid"],
        "parents": {"slow": "x", "fast": "y"},
        "merge": {"method": "linear", "groups": {"low": ["layers.0-1"], "top": ["layers.2"]}},
        "genes": [WEIGHT | {"groups": ["low", "top"]}],
        "search": SEARCHES["nsga2"],
    }
    return validate(SearchConfig, data | changes)


def told(genomes: tuple[Genome, ...], config: SearchConfig) -> Generation:
    """A generation with made-up objectives that disagree, and a violation for each constraint."""
    rows = [(-sum(g) + g[0] * g[1], sum(v * v for v in g)) for g in genomes]
    return Generation(
        genomes,
        tuple(row[: len(config.objectives)] for row in rows),
        tuple(tuple(0.3 - g[0] for _ in config.constraints) for g in genomes),
    )


def run(config: SearchConfig, generations: int, fresh: bool = False) -> list[Generation]:
    """Search; with `fresh`, every generation is asked of a new object that replays the rest."""
    history: list[Generation] = []
    evolution = Evolution(config, space(config))
    for _ in range(generations):
        if fresh:
            np.random.seed(len(history))
            random.seed(len(history))
            evolution = Evolution(config, space(config))
        history.append(told(evolution.ask(history), config))
    return history


def configured(name: str) -> SearchConfig:
    alone = {"objectives": ["tokens"]} if name == "ga" else {}
    return job(search=SEARCHES[name], **alone)


@pytest.fixture(params=SEARCHES)
def config(request: pytest.FixtureRequest) -> SearchConfig:
    return configured(request.param)


def test_restarts_change_nothing_whatever_the_global_random_state(config: SearchConfig) -> None:
    assert run(config, 5) == run(config, 5, fresh=True)


def test_a_search_without_constraints_replays_too() -> None:
    config = job(constraints=[])
    assert run(config, 3) == run(config, 3, fresh=True)


def test_asking_twice_and_going_back_changes_nothing(config: SearchConfig) -> None:
    history = run(config, 4)
    evolution = Evolution(config, space(config))
    for length in (3, 3, 1, 2, 0, 3):
        assert evolution.ask(history[:length]) == history[length].genomes


def test_numbers_that_went_through_json_replay(config: SearchConfig) -> None:
    history = run(config, 4)
    stored = json.loads(json.dumps([[g.genomes, g.objectives, g.violations] for g in history]))
    back = [Generation(*(tuple(tuple(row) for row in rows) for rows in g)) for g in stored]
    assert back == history
    assert Evolution(config, space(config)).ask(back[:3]) == history[3].genomes


def test_another_process_asks_for_the_same_genomes() -> None:
    found = [configured(name) for name in SEARCHES]
    histories = [run(config, 3) for config in found]
    program = (
        "import json, sys\n"
        "from l2s_hpc.config import SearchConfig, validate\n"
        "from l2s_hpc.recipes.genes import space\n"
        "from l2s_hpc.search.evolve import Evolution, Generation\n"
        "def ask(given, told):\n"
        "    config = validate(SearchConfig, given)\n"
        "    history = [Generation(*[tuple(map(tuple, rows)) for rows in g]) for g in told]\n"
        "    return Evolution(config, space(config)).ask(history)\n"
        "print(json.dumps([ask(*question) for question in json.load(sys.stdin)]))"
    )
    questions = [
        (config.model_dump(mode="json"), [[g.genomes, g.objectives, g.violations] for g in told])
        for config, (*told, _) in zip(found, histories, strict=True)
    ]
    answer = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(questions),
        capture_output=True,
        encoding="utf-8",
        check=True,
        cwd=Path(__file__).parents[2],
    )
    for asked, history in zip(json.loads(answer.stdout), histories, strict=True):
        assert tuple(tuple(genome) for genome in asked) == history[-1].genomes


def test_another_seed_asks_for_other_genomes() -> None:
    assert run(job(), 1) != run(job(seed=5), 1)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_changed_genome_is_refused(number: int) -> None:
    config, history = job(), run(job(), 3)
    genomes = list(history[number].genomes)
    genomes[3] = (*genomes[3][:-1], 0.05 if genomes[3][-1] != 0.05 else 0.1)
    history[number] = replace(history[number], genomes=tuple(genomes))
    with pytest.raises(L2SError, match=f"replay of generation {number} asks for other genomes"):
        Evolution(config, space(config)).ask(history)


def test_what_was_told_matters() -> None:
    config, history = job(), run(job(), 2)
    first = history[0]
    other = Generation(first.genomes, first.objectives[::-1], first.violations)
    asked = Evolution(config, space(config)).ask([other])
    assert asked != history[1].genomes
    evolution = Evolution(config, space(config))
    assert evolution.ask(history[:1]) == history[1].genomes
    assert evolution.ask([other]) == asked, "a kept replay is not mistaken for another history"


@st.composite
def spaces(draw: st.DrawFn) -> SearchConfig:
    low = draw(st.floats(-2, 2))
    entry = {
        "parameter": "weight",
        "low": low,
        "high": low + draw(st.floats(1e-5, 4)),
        "step": draw(st.none() | st.floats(1e-3, 1)),
        "log": low > 1e-3 and draw(st.booleans()),
        "groups": draw(st.sampled_from([[], ["low", "top"]])),
    }
    start = draw(st.sampled_from(["random", "grid"]))
    search = {"population": draw(st.integers(2, 6)), "start": start, "grid": 3}
    return job(genes=[entry], search=search, seed=draw(st.integers(0, 9)))


@settings(max_examples=25)
@given(spaces())
def test_genomes_are_distinct_allowed_and_inside_the_bounds(config: SearchConfig) -> None:
    genes = space(config).genes
    for generation in run(config, 3):
        assert len(set(generation.genomes)) == len(generation.genomes)
        for genome in generation.genomes:
            for gene, value in zip(genes, genome, strict=True):
                assert gene.low <= value <= gene.high and gene.snap(value) == value


@given(spaces(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_snapped_point_of_the_unit_cube_stays(config: SearchConfig, row: list[float]) -> None:
    genes = space(config).genes
    snapped = snap_unit(np.array(row[: len(genes)]), genes)
    assert snap_unit(np.array(snapped), genes) == pytest.approx(snapped, abs=1e-12)
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in snapped)


def test_a_generation_is_as_large_as_the_population() -> None:
    sizes = [len(g.genomes) for g in run(job(), 4)]
    assert sizes == [8, 8, 8, 8]


def test_the_grid_start_ties_the_groups() -> None:
    config = job(search=SEARCHES["grid"])
    first = run(config, 1)[0].genomes
    assert len(first) == 9
    assert all(genome[0] == genome[1] and genome[2] == genome[3] for genome in first)
    levels = (0.0, 0.5, 1.0)
    assert {genome[::2] for genome in first} == {(a, b) for a in levels for b in levels}
    assert grid(space(config), 3).shape == (9, 4)


def test_frozen_genes_keep_their_value_in_every_genome() -> None:
    config = job()
    frozen = Space(space(config).genes, {"weight.slow.top": 0.35})
    evolution = Evolution(config, frozen)
    first = evolution.ask([])
    second = evolution.ask([told(first, config)])
    assert {genome[1] for genome in (*first, *second)} == {0.35}
    assert len({genome[0] for genome in first}) > 1


@pytest.mark.parametrize("algorithm", ["nsga2", "ga"])
@pytest.mark.parametrize("start", ["random", "grid"])
def test_a_space_smaller_than_the_population_ends(algorithm: str, start: str) -> None:
    search = {"population": 12, "algorithm": algorithm, "start": start, "grid": 2}
    genes = [WEIGHT | {"step": 1.0}]
    names = ["tokens"] if algorithm == "ga" else ["accuracy", "tokens"]
    config = job(genes=genes, search=search, objectives=names)
    history = run(config, 4)
    asked = [genome for generation in history for genome in generation.genomes]
    assert sorted(asked) == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    assert history[-1] == Generation((), (), ())
    assert Evolution(config, space(config)).ask(history) == ()


# Objectives and constraints


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"objectives": ["accuracy.macro", "tokens.toy_mid", "ntr", "truncation"]}, []),
        ({"constraints": ["ntr<=0.1", "tokens.toy_easy >= parent.slow+3", "tokens <= .5"]}, []),
        (
            {"objectives": ["acuracy", "tokens"]},
            ["objectives: unknown measure 'acuracy': did you mean 'accuracy'?"],
        ),
        (
            {"objectives": ["accuracy", "tokens.toy_eazy"]},
            ["objectives: unknown part 'toy_eazy' of 'tokens.toy_eazy': did you mean 'toy_easy'?"],
        ),
        ({"objectives": ["tokens", "tokens"]}, ["objectives: one is named twice"]),
        (
            {"objectives": ["tokens"]},
            ["search.algorithm: nsga2 needs two objectives or more; use ga for one"],
        ),
        (
            {"search": {"algorithm": "ga"}},
            ["search.algorithm: ga has one objective, not 2"],
        ),
        (
            {"constraints": ["accuracy >= parent.fist"]},
            [
                "constraints: 'accuracy >= parent.fist': no parent 'fist': did you mean 'fast'?",
            ],
        ),
        (
            {"constraints": ["token <= 5"]},
            ["constraints: unknown measure 'token': did you mean 'tokens'?"],
        ),
        *(
            (
                {"constraints": [text]},
                [
                    f"constraints: '{text}' is not understood: "
                    "write 'accuracy >= parent.slow - 0.02' or 'ntr <= 0.1'"
                ],
            )
            for text in (
                "accuracy > 0.5",
                "ntr <= 0.1.2",
                "ntr <= .",
                "ntr <= nan",
                "accuracy >= parent.slow * 2",
                "accuracy >= parent.slow -",
                "accuracy >=",
                "",
            )
        ),
    ],
)
def test_what_cannot_be_understood_is_said(changes: dict[str, Any], lines: list[str]) -> None:
    assert objective_faults(job(**changes)) == lines


@pytest.mark.parametrize(
    ("text", "violation"),
    [
        ("accuracy >= 0.7", -0.1),
        ("accuracy <= 0.7", 0.1),
        ("accuracy >= parent.slow", 0.1),
        ("accuracy >= parent.slow - 0.02", 0.08),
        ("accuracy >= parent.slow + 0.02", 0.12),
        ("accuracy>=parent.slow-0.02", 0.08),
        ("tokens <= parent.fast", 40.0),
        ("tokens <= 60", -10.0),
        ("accuracy >= -1", -1.8),
    ],
)
def test_a_violation_is_how_far_a_constraint_is_missed(text: str, violation: float) -> None:
    found = constraints(job(constraints=[text]))
    parents = {"slow": {"accuracy": 0.9, "tokens": 90.0}, "fast": {"accuracy": 0.5, "tokens": 10.0}}
    measured = violations(found, {"accuracy": 0.8, "tokens": 50.0}, parents)
    assert measured == [pytest.approx(violation)]


def test_a_parents_measure_without_value_counts_as_nothing() -> None:
    found = constraints(job(constraints=["ntr <= parent.slow + 0.1"]))
    assert violations(found, {"ntr": 0.3}, {"slow": {"ntr": None}}) == [pytest.approx(0.2)]


NAMES = ("accuracy", "tokens", "ntr", "truncation")
TOKENS = 10_240.0
values = st.one_of(
    st.none(), st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(0, 1), st.just(0.5)
)


@st.composite
def measures(draw: st.DrawFn) -> dict[str, float | None]:
    found = {name: draw(values) for name in NAMES}
    tokens = found["tokens"]
    if tokens is not None and math.isfinite(tokens):
        found["tokens"] = tokens * TOKENS
    return found


@given(measures())
def test_objectives_are_finite_and_never_worse_than_a_failures(
    found: dict[str, float | None],
) -> None:
    wanted = objectives(job(objectives=list(NAMES)))
    point, failed = minimised(wanted, found), minimised(wanted, None)
    assert failed == [0.0, TOKENS, 1.0, 1.0]
    assert all(math.isfinite(value) for value in point)
    assert all(ours <= worst for ours, worst in zip(point, failed, strict=True))
    for name, ours, worst in zip(NAMES, point, failed, strict=True):
        value = found[name]
        if value is None or not math.isfinite(value):
            assert ours == worst


@given(st.lists(measures(), min_size=1, max_size=5))
def test_a_failed_candidate_dominates_nobody(found: list[dict[str, float | None]]) -> None:
    wanted = objectives(job(objectives=list(NAMES)))
    points = [minimised(wanted, m) for m in found]
    alone = non_dominated(points)
    with_failed = non_dominated([*points, minimised(wanted, None)])
    assert list(with_failed[:-1]) == list(alone)


BOUNDS = [
    "accuracy >= parent.slow - 0.1",
    "accuracy <= 0.9",
    "tokens <= 100",
    "tokens >= 50",
    "tokens <= parent.fast",
    "tokens.toy_easy <= 20000",
    "ntr <= 0.1",
    "truncation >= 0.5",
]


@given(measures(), st.sampled_from(BOUNDS), st.floats(0, 1), st.floats(0, TOKENS))
def test_no_candidate_violates_more_than_a_failed_one(
    found: dict[str, float | None], text: str, accuracy: float, tokens: float
) -> None:
    """Else the constraints would rank the failed one first."""
    wanted = constraints(job(constraints=[text]))
    parent = {"accuracy": accuracy, "tokens": tokens}
    parents = {"slow": parent, "fast": parent}
    everything = found | {"tokens.toy_easy": found["tokens"]}
    (ours,), (failed,) = (violations(wanted, m, parents) for m in (everything, None))
    assert math.isfinite(ours) and ours <= failed and failed > 0
