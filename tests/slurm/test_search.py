"""Searches through real sbatch arrays give what the local executor gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mini import SMALL_TOY, Mini, kill_at_entry, outcome, state_of, write_mini

from .cluster import SlurmCluster
from .faults import Controller, end, ended

pytestmark = pytest.mark.usefixtures("on_cluster")
SITE = """
name = "test"
executor = "slurm"
engine = "scripted"
partition = "main"
memory = "300M"
minutes = 5
candidates_per_task = 2
poll_seconds = 0.5
grace_seconds = 10
"""

TOY_SITE = SITE.replace('"scripted"', '"transformers"').replace("300M", "1200M")


@pytest.fixture
def mini(tmp_path: Path) -> Mini:
    return write_mini(tmp_path, site=SITE)


def test_mini_search_equals_the_local_one(mini: Mini, slurm: SlurmCluster, tmp_path: Path) -> None:
    local = write_mini(_made(tmp_path / "local"))
    mini.run(tmp_path / "on-slurm")
    local.run(tmp_path / "here")
    assert outcome(tmp_path / "on-slurm") == outcome(tmp_path / "here")
    assert not _live(slurm)


def test_one_array_for_a_generation(mini: Mini, slurm: SlurmCluster, tmp_path: Path) -> None:
    mini.run(tmp_path / "run")
    batches = state_of(tmp_path / "run").batches.values()
    # Three generations, selection, noise and report.
    assert len(batches) == 6
    assert all(batch.job is not None for batch in batches)


def test_a_team_of_workers_shares_a_task(mini: Mini, slurm: SlurmCluster, tmp_path: Path) -> None:
    """Whole nodes only: one task holds all candidates, and its two workers take turns."""
    local = write_mini(_made(tmp_path / "local"))
    settings = ("site.candidates_per_task=8", "site.workers_per_task=2", "site.cpus=2")
    run = tmp_path / "run"
    mini.run(run, *settings)
    local.run(tmp_path / "here")
    assert outcome(run) == outcome(tmp_path / "here")
    batches = state_of(run).batches.values()
    assert all(len(batch.tasks) == 1 for batch in batches)
    owners = [json.loads(p.read_text(encoding="utf-8")) for p in run.rglob("owner-*.json")]
    by_job: dict[str, set[int]] = {}
    for owner in owners:
        by_job.setdefault(owner["job"], set()).add(owner["pid"])
    assert any(len(pids) == 2 for pids in by_job.values())


def test_kill_and_go_on(mini: Mini, slurm: SlurmCluster, tmp_path: Path) -> None:
    """Killed around every submission: jobs are adopted by name, never doubled."""
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    mini.run(undisturbed)
    kills = sum(kill_at_entry(mini.command(run), run, entry) for entry in (2, 3, 4, 6, 9, 12, 15))
    assert kills >= 4
    mini.run(run)
    assert outcome(run) == outcome(undisturbed)
    names = [job.name for job in slurm.jobs() if "mini" in job.name]
    of_run = {name for name in names if _id(run) in name}
    assert of_run <= set(state_of(run).batches)
    assert not _live(slurm)


def test_refused_by_slurm(mini: Mini, slurm: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        mini.command(run, "site.partition=nonsense"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Slurm refused the job" in done.stderr
    assert "invalid partition specified: nonsense" in done.stderr
    assert not list(state_of(run).live_attempts())
    mini.run(run)
    assert outcome(run)["completed"]


def test_stop_cancels_our_jobs_only(mini: Mini, slurm: SlurmCluster, tmp_path: Path) -> None:
    other = slurm.submit("--wrap", "sleep 3000", "--job-name", "somebody-else")
    run = tmp_path / "run"
    command = mini.command(run, "site.scripted.delay=1000")
    controller = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    slurm.wait(
        lambda: any(j.name.startswith("l2s-mini") and j.state == "RUNNING" for j in slurm.jobs())
    )
    stop = [sys.executable, "-m", "l2s_hpc.cli.main", "stop", str(run)]
    subprocess.run(stop, check=True, capture_output=True)
    assert controller.wait(90) == 3
    slurm.wait(lambda: not [j for j in _live(slurm) if j != "somebody-else"], timeout=60)
    assert _live(slurm) == ["somebody-else"]
    slurm.cancel(other)
    slurm.wait(lambda: not _live(slurm))


def test_array_larger_than_the_cluster_takes(
    slurm_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MaxArraySize = 3: a generation of seven goes in parts."""
    with SlurmCluster(tmp_path / "c", nodes=1, max_array_size=3) as small:
        for name, value in small.env.items():
            monkeypatch.setenv(name, value)
        mini = write_mini(_made(tmp_path / "job"), site=SITE.replace("candidates_per_task = 2", ""))
        mini.run(tmp_path / "run")
        assert outcome(tmp_path / "run")["completed"]
        assert all(len(batch.tasks) <= 3 for batch in state_of(tmp_path / "run").batches.values())


def test_outage_is_waited_for(
    slurm_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SlurmCluster(tmp_path / "c", nodes=2) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        mini = write_mini(_made(tmp_path / "job"), site=SITE)
        run = tmp_path / "run"
        controller = Controller(mini.command(run), tmp_path, cluster.env)
        with ended(controller):
            cluster.wait(
                lambda: run.exists() and any(b.job for b in state_of(run).batches.values())
            )
            cluster.stop_controller()
            cluster.wait(lambda: "waiting" in controller.said())
            cluster.start_controller()
            end(controller)
        assert outcome(run)["completed"]


def test_toy_search_equals_the_local_one(slurm: SlurmCluster, tmp_path: Path) -> None:
    """The real engine: same genomes and same score tables through sbatch as on this machine."""
    site = tmp_path / "site.toml"
    site.write_text(TOY_SITE, encoding="utf-8")
    for run, where in (("here", "local"), ("there", str(site))):
        settings = [part for setting in SMALL_TOY for part in ("--set", setting)]
        command = ["run", "toy", "--site", where, "--run", str(tmp_path / run), *settings]
        done = subprocess.run(
            [sys.executable, "-m", "l2s_hpc.cli.main", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(tmp_path / "here") == outcome(tmp_path / "there")
    assert len(state_of(tmp_path / "here").accepted) >= 20


def _live(slurm: SlurmCluster) -> list[str]:
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "COMPLETING")
    return [job.name for job in slurm.jobs() if job.state not in over]


def _id(run: Path) -> str:
    from l2s_hpc.store.run import read_run

    return read_run(run).id


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
