"""How a search went: genomes, generations, waits, genes; and what it cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from l2s_hpc import open_run
from l2s_hpc.analysis.forensics import EQUIVALENT, NEW, REFERENCE, SAME, genome_kinds, queue
from l2s_hpc.measures.ranks import rank_correlation
from l2s_hpc.store.files import read_json, write_json
from l2s_hpc.store.state import GenerationState, RunState, read_state

from .test_analysis_builder import IDS, SmallRun, complete


def test_what_each_genome_gave() -> None:
    a, b, c, d = (0.1,), (0.2,), (0.3,), (0.4,)
    state = RunState(
        generations=[
            GenerationState((a, b, a), ("x", "parent", "x")),
            GenerationState((b, c, d), ("parent", "x", "y")),
        ]
    )
    assert genome_kinds(state, ["parent"]) == [[NEW, REFERENCE, SAME], [SAME, EQUIVALENT, NEW]]


def test_the_generations_of_a_run(tmp_path: Path) -> None:
    run = open_run(complete(tmp_path / "run").paths.folder)
    first, second = run.forensics().generations
    # All that this run intends is said to be of generation 0, the two tries of the second's too.
    assert (first.asked, first.tables, first.failed, first.penalised) == (3, 7, 2, 0)
    assert (second.asked, second.tables, second.failed, second.penalised) == (3, 0, 0, 1)
    assert first.genomes == {NEW: 3, SAME: 0, EQUIVALENT: 0, REFERENCE: 0}
    assert second.genomes == {NEW: 2, SAME: 1, EQUIVALENT: 0, REFERENCE: 0}
    assert run.forensics().genomes[SAME] == 1
    assert first.seconds == {"merge": 7.0, "generate": 21.0}
    assert first.device_seconds == 28.0
    assert first.idle is None


def test_the_genes_of_a_run(tmp_path: Path) -> None:
    run = open_run(complete(tmp_path / "run").paths.folder)
    slow, fast = run.forensics().genes
    assert (slow.name, slow.n, slow.values, slow.low, slow.high) == ("weight.slow", 4, 4, 0.1, 1.0)
    assert (slow.front_low, slow.front_high) == (0.2, 1.0)
    assert slow.frozen is None
    assert slow.accuracy == pytest.approx(spearmanr([1.0, 0.2, 0.5, 0.1], [10, 6, 6, 2])[0])
    assert fast.tokens == pytest.approx(spearmanr([0.2, 1.0, 0.5, 0.1], [70, 25, 80, 5])[0])


def test_how_long_tasks_waited(tmp_path: Path) -> None:
    small = SmallRun(tmp_path / "run")
    small.search(generations=1)
    paths = small.paths
    run = open_run(paths.folder)
    assert run.forensics().queue is None
    state, _ = read_state(paths)
    receipts = run.receipts()
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    batches = [
        next(a.batch for a in state.attempts["search", receipt.candidate]) for receipt in receipts
    ]
    submitted = {
        batch: begin - timedelta(seconds=10 * number) for number, batch in enumerate(batches)
    }
    found = queue(state, receipts, submitted)
    assert found is not None
    assert (found.tasks, found.median, found.longest, found.total) == (6, 25.0, 50.0, 150.0)
    # A task that Slurm has started again waited twice; a clock may be behind.
    again = [receipts[5].model_copy(update={"restart": 1}), *receipts[:5]]
    found = queue(state, again, submitted | {batches[4]: begin + timedelta(seconds=3)})
    assert found is not None
    assert (found.tasks, found.longest, found.total) == (5, 30.0, 60.0)


def test_the_time_of_failed_attempts_is_counted_apart(tmp_path: Path) -> None:
    small = SmallRun(tmp_path / "run")
    small.search(generations=1)
    small.intend("search", IDS["broken"])
    failed = {"event": "failed", "evaluation": "search", "candidate": IDS["broken"], "attempt": 1}
    told = {"kind": "merge", "message": "no", "counted": True, "seconds": 36.0, "node": "n1"}
    small.append(failed | told)
    found = open_run(small.paths.folder).cost()
    assert found.device_hours == pytest.approx(24 / 3600)
    assert found.wasted_hours == pytest.approx(36 / 3600)
    assert found.candidates == 6
    assert found.hours_per_candidate == pytest.approx(60 / 3600 / 6)
    assert open_run(small.paths.folder).forensics().generations[0].wasted_seconds == 36.0


def test_the_idle_share_of_a_generation(tmp_path: Path) -> None:
    small = SmallRun(tmp_path / "run")
    small.search(generations=1)
    for number, path in enumerate(sorted((tmp_path / "run" / "receipts").rglob("*.json"))):
        told = {"usage": {"gpu_idle": 0.5}, "device_seconds": 3.0} if number else {"usage": {}}
        write_json(path, read_json(path) | told)
    (generation,) = open_run(small.paths.folder).forensics().generations
    assert generation.idle == 0.5


def test_a_run_without_a_search_has_no_generations(tmp_path: Path) -> None:
    found = open_run(SmallRun(tmp_path / "run").paths.folder).forensics()
    assert (found.generations, found.genes, found.queue) == ((), (), None)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array([pair[side] for pair in pairs], dtype=float) for side in (0, 1))
    found = rank_correlation(x, y)
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(x, y)[0], abs=1e-12)
