"""Slurm itself is away, forgets, refuses, is slow, or comes back with ghosts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from .cluster import SlurmCluster
from .faults import SITE, end, ended, kill, l2s, make_lab, put_first, refused

TEN_SECONDS = 10.0


def test_slurmctld_is_down_for_a_minute_while_tasks_run(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    """Tasks run on, and what they leave is accepted; the outage is said."""
    lab = make_lab(slurm, tmp_path, node={"delay": 1.0})
    controller = lab.begin()
    with ended(controller):
        lab.running()
        slurm.stop_controller()
        time.sleep(6 * TEN_SECONDS)
        slurm.start_controller()
        text = end(controller)
    lab.check()
    assert "Unable to contact slurm controller" in text and "waiting" in text
    assert not lab.failures()


def test_slurmctld_is_down_for_a_minute_at_submission(slurm: SlurmCluster, tmp_path: Path) -> None:
    """sbatch begins, and slurmctld is gone before it gets through."""
    waiting, gone = tmp_path / "waiting", tmp_path / "gone"
    lab = make_lab(slurm, tmp_path)
    script = f'touch {waiting}; while [ ! -e {gone} ]; do sleep 0.1; done; exec $REAL "$@"'
    lab = lab.seeing(put_first(tmp_path / "bin", "sbatch", script, lab.env))
    controller = lab.begin()
    with ended(controller):
        lab.wait(waiting.exists)
        slurm.stop_controller()
        gone.touch()
        time.sleep(6 * TEN_SECONDS)
        slurm.start_controller()
        text = end(controller)
    lab.check()
    assert "sbatch failed" in text and "waiting" in text
    assert any(batch.abandoned for batch in lab.state().batches.values())


def test_the_reply_of_sbatch_is_lost_simulated(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Simulated, since no fault makes slurmctld take a job and die before it says so on demand."""
    lab = make_lab(slurm, tmp_path)
    outage = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    script = f'$REAL "$@" >/dev/null && echo "{outage}" >&2; exit 1'
    lab = lab.seeing(put_first(tmp_path / "bin", "sbatch", script, lab.env))
    lab.finish()
    lab.check()
    assert not [a for a in lab.attempts() if a.outcome != "accepted"], "a job was doubled"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("site.partition=nonsense", "invalid partition"),
        ("site.gres=gpu:9", "invalid generic resource"),
        ("site.memory=900G", "not available"),
        ("site.sbatch.qos=nonsense", "qos"),
        ("site.account=nonsense", "account"),
    ],
)
def test_sbatch_refuses(
    slurm_with_accounting: SlurmCluster, tmp_path: Path, setting: str, words: str
) -> None:
    """Slurm's own text, exit code 2, and nothing half recorded: the right setting goes on."""
    lab = make_lab(slurm_with_accounting, tmp_path)
    text = end(lab.begin(setting), code=2)
    assert "Slurm refused the job" in text and words in text.lower()
    assert not list(lab.state().live_attempts())
    lab.check_no_jobs()
    assert not lab.jobs()


def test_after_a_refusal_the_same_run_goes_on(
    slurm_with_accounting: SlurmCluster, tmp_path: Path
) -> None:
    lab = make_lab(slurm_with_accounting, tmp_path)
    end(lab.begin("site.partition=nonsense"), code=2)
    lab.finish()
    lab.check()


@pytest.mark.parametrize("by", ["qos", "user"])
def test_a_submit_limit_is_kept_to(
    slurm_with_accounting: SlurmCluster, tmp_path: Path, by: str
) -> None:
    """Six tasks, and at most two in the queue: what fits is sent, the rest later."""
    lab = make_lab(slurm_with_accounting, tmp_path)
    slurm_with_accounting.limit_submits(2, by=by)  # type: ignore[arg-type]
    try:
        text = lab.finish("site.candidates_per_task=1")
    finally:
        slurm_with_accounting.limit_submits(None, by=by)  # type: ignore[arg-type]
    lab.check()
    assert "Slurm takes no more jobs" in text
    assert max(len(b.tasks) for b in lab.state().batches.values() if b.job) <= 2


def test_our_own_limit_is_kept_to(slurm: SlurmCluster, tmp_path: Path) -> None:
    lab = make_lab(slurm, tmp_path, node={"delay": 0.5})
    counts: list[int] = []

    def count() -> None:
        jobs = [j for j in lab.jobs() if j.state in ("PENDING", "RUNNING")]
        # A task that has left its receipt may need a while to end; it is not waited for.
        undone = [a for a in lab.attempts() if not lab.paths(a).receipt.exists()]
        counts.append(sum(any(lab.on(a, job) for a in undone) for job in jobs))

    controller = lab.begin("site.candidates_per_task=1", "site.max_jobs=2")
    with ended(controller):
        end(controller, meanwhile=count)
    lab.check()
    assert 1 <= max(counts) <= 2


def test_a_task_that_can_never_run_is_said(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Slurm takes a job above the partition's limit, and lets it wait for ever."""
    lab = make_lab(slurm, tmp_path)
    controller = lab.begin("site.minutes=5000")
    with ended(controller):
        lab.wait(lambda: [j for j in lab.jobs() if j.state == "PENDING"])
        lab.wait(lambda: "will never run" in l2s("status", str(lab.run), env=lab.env))
        said = l2s("status", str(lab.run), env=lab.env)
        assert "Partition" in said and "site.minutes" in said
        l2s("stop", str(lab.run), env=lab.env)
        end(controller, code=3)
    lab.finish()
    lab.check()


def test_jobs_that_slurm_has_purged(slurm: SlurmCluster, tmp_path: Path) -> None:
    """The controller is away until squeue knows nothing: receipts decide, the rest comes again."""
    (tmp_path / "once").mkdir()
    # It is gone before a task ends.
    node = {"once": str(tmp_path / "once"), "faults": {"kill": 0.35}, "delay": 3.0}
    lab = make_lab(slurm, tmp_path, node=node)
    controller = lab.begin()
    with ended(controller):
        lab.wait(lambda: any(batch.job for batch in lab.state().batches.values()))
        kill(controller)
    lab.wait(lambda: not lab.jobs(), timeout=180)
    lab.set_nodes(**{**node, "delay": 0})
    lab.finish()
    lab.check()
    assert any("no longer knows" in a.message for a in lab.failures())
    assert not any(a.counted for a in lab.failures() if a.batch.endswith("000003"))


@pytest.mark.parametrize("fault", ["down", "slow"])
def test_accounting_is_down_or_slow(
    slurm_with_accounting: SlurmCluster, tmp_path: Path, fault: str
) -> None:
    (tmp_path / "once").mkdir()
    node = {"once": str(tmp_path / "once"), "faults": {"kill": 0.3}}
    lab = make_lab(slurm_with_accounting, tmp_path, node=node)
    if fault == "slow":
        lab = lab.seeing(put_first(tmp_path / "bin", "sacct", "sleep 60; exit 1", lab.env))
        lab.finish()
    else:
        slurm_with_accounting.stop_accounting()
        try:
            lab.finish()
        finally:
            slurm_with_accounting.start_accounting()
    lab.check()


def test_slurmctld_killed_seconds_after_sbatch(slurm_installed: None, tmp_path: Path) -> None:
    """What it had confirmed may be lost, its ids come again, finished tasks come back as ghosts."""
    with SlurmCluster(tmp_path / "c") as cluster:
        lab = make_lab(cluster, tmp_path / "lab", node={"delay": 1.0})
        controller = lab.begin()
        with ended(controller):
            for batches in (1, 2, 3):
                lab.wait(
                    lambda n=batches: len([b for b in lab.state().batches.values() if b.job]) >= n
                )
                time.sleep(2)
                cluster.kill_controller()
                time.sleep(4)
                cluster.start_controller()
            end(controller)
        lab.check()
        assert not any(a.counted for a in lab.failures())


def test_a_ghost_is_cancelled(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Slurm starts a task again that has finished long ago, and holds it: the receipt wins."""
    lab = make_lab(slurm, tmp_path, node={"chunk_delay": 1.0})
    controller = lab.begin()
    with ended(controller):
        # Another one is under way, so that the search is not over.
        lab.wait(lambda: len(lab.state().accepted) >= 7)
        with lab.frozen():
            lab.wait(lambda: [j for j in lab.jobs() if j.state == "COMPLETED"])
            (job, *_) = [j for j in lab.jobs() if j.state == "COMPLETED"]
            slurm.run("scontrol", "requeuehold", job.id)
        lab.set_nodes()
        end(controller)
    lab.check()


def test_what_the_user_holds_is_waited_for(slurm: SlurmCluster, tmp_path: Path) -> None:
    lab = make_lab(slurm, tmp_path, node={"chunk_delay": 2.0})
    controller = lab.begin()
    with ended(controller), lab.frozen() as task:
        slurm.run("scontrol", "requeuehold", task.job.id)
        lab.set_nodes()
        lab.wait(lambda: "scontrol release" in l2s("status", str(lab.run), env=lab.env))
        slurm.release(task.job.id)
        end(controller)
    lab.check()
    assert not lab.failures()


def test_an_unknown_user_of_slurm(tmp_path: Path) -> None:
    """No Slurm on this machine: said, exit code 2, and nothing is written."""
    lab_env = {**os.environ, "PATH": str(tmp_path)}
    refused(tmp_path, SITE, lab_env, "needs Slurm")
