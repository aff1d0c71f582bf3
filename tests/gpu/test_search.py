"""The toy search with vLLM on the GPU: the worker from end to end, and its live engine.

About seven minutes, most of it for seven starts of vLLM. Accuracy is compared with the CPU's;
everything else by ids.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.recipes.recipe import average, single_model
from l2s_hpc.records import Protocol, Receipt, Recipe
from l2s_hpc.store.scores import read_table, verify_table
from tests.contract.test_worker import IDENTITIES, Run
from tests.gpu.programs import FIRST, SECOND, protocol
from tests.helpers import ROOT, toy_items, toy_protocol

SECONDS = 400
ITEMS = toy_items(60)
HALF = average({"slow": 1, "fast": 1}, IDENTITIES)
CANDIDATES = (single_model("slow", IDENTITIES), HALF, FIRST, SECOND)
NOT_FINITE = HALF.model_copy(
    update={
        "config": {
            **HALF.config,
            "models": [
                {
                    "model": name,
                    "parameters": {
                        "weight": [{"filter": "layers.3.", "value": 1e39}, {"value": 0.5}]
                    },
                }
                for name in ("slow", "fast")
            ],
        }
    }
)
"""Goes wrong when most of the model is written already."""


def worked(folder: Path, chosen: Protocol, *recipes: Recipe) -> tuple[Run, str]:
    """Let a worker do a task; return its run directory and what it said."""
    run = Run(folder, chosen, ITEMS)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = run.start(run.task("t", *recipes), env={"PYTHONPATH": path})
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, "done t\n"), err
    return run, err


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """Four candidates, and in their midst one whose merge fails halfway."""
    folder = tmp_path_factory.mktemp("search")
    return worked(folder, protocol(), *CANDIDATES[:2], NOT_FINITE, *CANDIDATES[2:])


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same candidates with transformers on the CPU, in float32."""
    settings = {"batch_size": 50, "threads": 4}
    chosen = toy_protocol(engine_settings=settings)
    return worked(tmp_path_factory.mktemp("cpu"), chosen, *CANDIDATES)[0]


def rows(run: Run, recipe: Recipe) -> dict[str, dict[str, Any]]:
    table = read_table(run.attempt(recipe).scores).to_pylist()
    return {row["item"]: row for row in table}


def test_four_candidates_in_one_task(search: tuple[Run, str]) -> None:
    run, _ = search
    for recipe in CANDIDATES:
        receipt = run.receipt(recipe)
        assert receipt.failure is None
        verify_table(run.attempt(recipe).scores, receipt)
        assert receipt.rows == len(ITEMS)
        assert "NVIDIA" in receipt.device
        assert receipt.versions.keys() >= {"vllm", "torch", "mergekit", "transformers"}
        assert {"merge", "load", "generate", "grade", "write"} <= receipt.seconds.keys()
        assert 0 < receipt.usage["batch_occupancy"] <= 1
        assert receipt.usage["tokens_per_second"] > 0
        assert 0 <= receipt.usage["gpu_idle"] < 1
        assert 0.01 < receipt.usage["peak_gpu_gb"] < 20
    first, second = (rows(run, recipe) for recipe in CANDIDATES[:2])
    lengths = [sum(row["n_output_tokens"] for row in table.values()) for table in (first, second)]
    assert lengths[0] > lengths[1], "the slow parent thinks longer than the average"


def test_a_merge_that_is_not_finite_costs_the_engine_and_nothing_else(
    search: tuple[Run, str],
) -> None:
    run, said = search
    receipt = run.receipt(NOT_FINITE)
    assert receipt.failure is not None and receipt.failure.kind == "merge"
    assert "not finite in model.layers.3." in receipt.failure.message
    assert not run.attempt(NOT_FINITE).scores.exists()
    assert said.count("goes on in a new process") == 1


def test_the_canary_finds_the_same_after_a_restart(search: tuple[Run, str]) -> None:
    run, _ = search
    found = {run.receipt(recipe).fingerprint for recipe in CANDIDATES}
    assert len(found) == 1 and found != {""}


def test_scores_agree_with_the_cpus_within_the_noise(search: tuple[Run, str], cpu: Run) -> None:
    """Flips of 4.4 % of the items, as often up as down, are what rounding alone was seen to do."""
    run, _ = search
    spread = math.sqrt(0.044 / len(ITEMS))
    told = []
    for recipe in CANDIDATES:
        ours, theirs = rows(run, recipe), rows(cpu, recipe)
        assert ours.keys() == theirs.keys()
        flips = [ours[item]["correct"] - theirs[item]["correct"] for item in ours]
        accuracy = sum(row["correct"] for row in theirs.values()) / len(theirs)
        told.append((accuracy, sum(flips) / len(flips), sum(map(abs, flips)) / len(flips)))
    print("accuracy on the CPU, difference, share of flips:", told)
    assert told[0][0] > 0.5, "the slow parent is good at this"
    for _, difference, share in told:
        assert abs(difference) <= 3 * spread, told
        assert share <= 0.15, told


def result_of(program: str, folder: Path) -> Any:
    """Run one of `programs.py`, and return what it has written."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.programs", program, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / f"{program}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What the programs of `programs.py` have generated."""
    folder = tmp_path_factory.mktemp("ids")
    return {program: result_of(program, folder) for program in ("live", "fresh", "slow")}


def test_a_swapped_model_is_a_fresh_one(ids: Mapping[str, Any]) -> None:
    assert ids["live"]["second"] == ids["fresh"]["second"]
    assert ids["live"]["first again"] == ids["live"]["first"] != ids["live"]["second"]
    assert all(ids["live"]["second"])


def test_parents_that_come_later_than_the_engine_do_no_harm(ids: Mapping[str, Any]) -> None:
    """While vLLM captures CUDA graphs, other threads may not ask everything of CUDA."""
    slow = ids["slow"]
    assert slow["read during the start"] and slow["read after the start"]
    assert slow["second"] == ids["live"]["second"]
    assert slow["fingerprint"] == ids["live"]["fingerprint"]


def test_without_the_reset_answers_are_others(ids: Mapping[str, Any]) -> None:
    live = ids["live"]
    assert live["cached"] > 0
    pairs = zip(live["second, cache kept"], live["second"], strict=True)
    assert sum(a != b for a, b in pairs) >= 3


@pytest.mark.parametrize("place", ["device", "host", "files"])
def test_ids_do_not_depend_on_where_parents_are(place: str, ids: Mapping[str, Any]) -> None:
    assert ids["live"]["placement"] == "device"
    assert ids["live"][f"second, parents: {place}"] == ids["live"]["second"]


def test_a_cache_that_no_gpu_has_room_for(tmp_path: Path) -> None:
    """Two hundred million tokens would take 205 GB."""
    chosen = protocol(settings={"kv_cache_tokens": 200_000_000})
    run, _ = worked(tmp_path, chosen, HALF)
    receipt: Receipt = run.receipt(HALF)
    assert receipt.failure is not None and receipt.failure.kind == "engine"
    message = receipt.failure.message
    assert message.startswith("EngineStartError: vLLM does not start"), message
    assert "memory" in message.lower(), message
    assert not run.attempt(HALF).scores.exists()


def test_a_full_gpu_breaks_the_engine_and_sends_the_parents_away(tmp_path: Path) -> None:
    found = result_of("crowded", tmp_path)
    assert found["placement"] == "device"
    assert found["broken"] and "out of memory" in found["said"], found
    assert found["room"] == 0
