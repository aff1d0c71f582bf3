"""Tasks die, run out of time, are preempted, requeued, cancelled, or meet a bad node."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.mini import outcome

from .cluster import SlurmCluster
from .faults import SITE, Lab, end, ended, l2s, make_lab, sealed_chunks

CHUNKS = "chunk_items = 2"
"""Four chunks a candidate: enough to be interrupted in between."""


def chunked(slurm: SlurmCluster, folder: Path, delay: float = 1.0, site: str = SITE) -> Lab:
    """A lab whose candidates take four chunks of `delay` seconds."""
    from tests import mini

    job = mini.JOB
    try:
        mini.JOB = job.replace("max_tokens = 100", f"max_tokens = 100\n{CHUNKS}")
        return make_lab(slurm, folder, site=site, node={"chunk_delay": delay})
    finally:
        mini.JOB = job


@pytest.mark.parametrize("kind", ["kill", "error", "engine"])
def test_a_task_that_fails_once_is_retried_elsewhere(
    slurm: SlurmCluster, tmp_path: Path, kind: str
) -> None:
    """kill -9, a Python exception, a failure as CUDA gives them."""
    (tmp_path / "once").mkdir()
    faults = {"once": str(tmp_path / "once"), "faults": {kind: 0.35}}
    lab = make_lab(slurm, tmp_path, node=faults)
    lab.finish()
    lab.check()
    failed = [a for a in lab.failures() if a.counted]
    assert failed, "nothing failed"
    for attempt in failed:
        tries = lab.state().attempts[attempt.evaluation, attempt.candidate]
        assert attempt.node and tries[-1].outcome == "accepted"
        assert tries[-1].node != attempt.node


def test_out_of_memory(slurm: SlurmCluster, tmp_path: Path) -> None:
    """A limit of the shell stands for the node's memory: Python gets a MemoryError."""
    (tmp_path / "once").mkdir()
    node = {"once": str(tmp_path / "once"), "faults": {"memory": 0.35}}
    lab = make_lab(slurm, tmp_path, node=node)
    text = lab.mini.site.read_text(encoding="utf-8")
    limited = text.replace('setup = ["', 'setup = ["ulimit -v 2500000", "')
    assert limited != text
    lab.mini.site.write_text(limited, encoding="utf-8")
    lab.finish()
    lab.check()
    assert any("MemoryError" in a.message for a in lab.failures())


def test_out_of_memory_as_slurm_ends_it(slurm_installed: None, tmp_path: Path) -> None:
    """Slurm itself kills the task that takes more than site.memory, and another one does it."""
    with SlurmCluster(tmp_path / "c", memory_kill="slurm") as cluster:
        once = tmp_path / "lab" / "once"
        once.mkdir(parents=True)
        node = {"once": str(once), "faults": {"memory": 0.25}}
        lab = make_lab(cluster, tmp_path / "lab", node=node)
        lab.finish()
        lab.check()
        failed = [a for a in lab.failures() if a.counted]
        assert failed and {a.kind for a in failed} == {"lost"}


@pytest.mark.parametrize("kind", ["kill", "error"])
def test_what_fails_everywhere_is_penalised_with_its_reason(
    slurm: SlurmCluster, tmp_path: Path, kind: str
) -> None:
    lab = make_lab(slurm, tmp_path, node={"faults": {kind: 0.12}})
    lab.finish()
    state = lab.state()
    assert state.completed and state.penalised
    for (evaluation, candidate), reason in state.penalised.items():
        tries = state.attempts[evaluation, candidate]
        counted = [a for a in tries if a.counted]
        assert len(counted) == 2 and len({a.node for a in counted}) == 2
        assert ("FAILED" if kind == "kill" else "scripted failure") in reason
    lab.check_once()
    lab.check_no_jobs()
    theirs, ours = lab.expected["tables"], outcome(lab.run)["tables"]
    assert isinstance(theirs, dict) and isinstance(ours, dict)
    both = theirs.keys() & ours.keys()
    assert len(both) >= 4 and all(theirs[key] == ours[key] for key in both)


def test_the_time_limit_keeps_finished_chunks(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Slurm warns, and ends the task at its limit; the next attempt goes on at the next chunk."""
    lab = chunked(slurm, tmp_path)
    controller = lab.begin("site.candidates_per_task=4")
    with ended(controller):
        lab.wait(lambda: sealed_chunks(lab) >= 2)
        for job in lab.running():
            slurm.time_out(job.id)
        end(controller)
    lab.check()
    cut = [a for a in lab.failures() if a.kind == "timeout"]
    assert cut and not any(a.counted for a in cut if a.chunks)
    resumed = [a for a in cut if a.chunks]
    assert resumed, "no chunk was finished in time"
    assert_chunks_kept(lab, resumed[0].evaluation, resumed[0].candidate, resumed[0].chunks)


def test_the_hard_time_limit(slurm: SlurmCluster, tmp_path: Path) -> None:
    """A task that hangs is ended by Slurm at its limit, and another attempt does it."""
    once = tmp_path / "once"
    once.mkdir()
    lab = make_lab(slurm, tmp_path, node={"once": str(once), "faults": {"hang": 0.15}})
    controller = lab.begin()
    with ended(controller):
        cut: set[str] = set()
        while controller.poll() is None:
            hanging = {path.stem.removeprefix("hang-") for path in once.iterdir()}
            live = {a.candidate: a for a in lab.state().live_attempts()}
            for candidate in (hanging & live.keys()) - cut:
                for job in lab.jobs():
                    attempt = live[candidate]
                    if (job.name, job.index or 0) == (attempt.batch, lab.index(attempt)):
                        slurm.time_out(job.id)
                        cut.add(candidate)
            time.sleep(0.5)
        end(controller)
    lab.check()
    assert cut
    failed = {a.candidate: a for a in lab.failures() if a.counted}
    assert failed.keys() == cut and {a.kind for a in failed.values()} == {"timeout"}


def test_requeued_by_hand(slurm: SlurmCluster, tmp_path: Path) -> None:
    """`scontrol requeue`: the same attempt goes on, with the chunks that it had."""
    lab = chunked(slurm, tmp_path)
    controller = lab.begin()
    with ended(controller):
        lab.wait(lambda: sealed_chunks(lab) >= 1)
        (job, *_) = lab.running()
        slurm.requeue(job.id)
        end(controller)
    lab.check()
    assert not lab.failures(), "a requeued task is no failure"
    assert _restarted(lab)


def test_preempted_and_requeued(slurm: SlurmCluster, tmp_path: Path) -> None:
    lab = chunked(slurm, tmp_path)
    controller = lab.begin()
    with ended(controller):
        lab.wait(lambda: sealed_chunks(lab) >= 1)
        (job, *_) = lab.running()
        urgent = slurm.preempt(job.node)
        lab.wait(lambda: [j for j in lab.jobs() if j.restarts])
        slurm.cancel(urgent)
        end(controller)
    lab.check()
    assert not lab.failures()
    assert _restarted(lab)


def test_preempted_for_good(slurm: SlurmCluster, tmp_path: Path) -> None:
    """`--no-requeue`: Slurm ends the job, and we submit another."""
    lab = chunked(slurm, tmp_path, site=SITE + "sbatch = { no-requeue = true }\n")
    controller = lab.begin()
    with ended(controller):
        lab.wait(lambda: sealed_chunks(lab) >= 1)
        (job, *_) = lab.running()
        urgent = slurm.preempt(job.node)
        lab.wait(lambda: [j for j in lab.jobs() if j.state == "PREEMPTED"])
        slurm.cancel(urgent)
        end(controller)
    lab.check()
    assert {a.kind for a in lab.failures()} == {"interrupted"}
    assert not any(a.counted for a in lab.failures())


def test_a_node_is_lost(slurm: SlurmCluster, tmp_path: Path) -> None:
    lab = make_lab(slurm, tmp_path, node={"delay": 2.0})
    controller = lab.begin()
    with ended(controller):
        (job, *_) = lab.running()
        slurm.kill_node(job.node)
        try:
            end(controller)
        finally:
            slurm.start_node(job.node)
    lab.check()
    assert not any(a.counted for a in lab.failures())


def test_a_node_is_drained(slurm: SlurmCluster, tmp_path: Path) -> None:
    """What runs there ends in peace, and nothing new goes there."""
    lab = make_lab(slurm, tmp_path, node={"delay": 1.0})
    controller = lab.begin()
    with ended(controller):
        (job, *_) = lab.running()
        slurm.drain(job.node)
        try:
            end(controller)
        finally:
            slurm.resume(job.node)
    lab.check()
    assert not lab.failures()


def test_a_node_with_repeated_faults_is_excluded_and_named(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    """Everything fails on n1; after two candidates nothing is sent there any more."""
    lab = make_lab(slurm, tmp_path)
    broken = """export L2S_SCRIPTED='{"faults": {"engine": 1.0}}'"""
    text = lab.mini.site.read_text(encoding="utf-8")
    setup = f'''setup = ["""test $SLURMD_NODENAME != n1 || {broken}"""]\nnode_faults = 2\n'''
    lab.mini.site.write_text(setup + text, encoding="utf-8")
    lab.finish()
    lab.check()
    there = [a for a in lab.attempts() if a.node == "n1"]
    assert there and all(a.outcome == "failed" for a in there)
    assert len({a.batch for a in there}) == 1, "tasks were sent to the bad node again"
    assert "n1" in l2s("status", str(lab.run), env=lab.env)


@pytest.mark.parametrize("whole", [False, True], ids=["one task", "the whole array"])
def test_what_somebody_cancelled_is_asked_for(
    slurm: SlurmCluster, tmp_path: Path, whole: bool
) -> None:
    lab = make_lab(slurm, tmp_path, node={"delay": 1.5})
    controller = lab.begin()
    with ended(controller):
        (job, *_) = lab.running()
        slurm.cancel(job.array if whole else job.id)
        text = end(controller, code=3)
    assert "cancelled" in text and "--resubmit-cancelled" in text
    lab.check_no_jobs()
    # Whoever forgets the option is asked again, and nothing is sent.
    batches = len(lab.state().batches)
    assert "--resubmit-cancelled" in end(lab.begin(), code=3)
    assert len(lab.state().batches) == batches
    lab.finish(options=("--resubmit-cancelled",))
    lab.check()
    assert {a.kind for a in lab.failures()} == {"cancelled"}


def test_cancelled_tasks_may_be_sent_again_unasked(slurm: SlurmCluster, tmp_path: Path) -> None:
    lab = make_lab(slurm, tmp_path, node={"delay": 1.5})
    controller = lab.begin("site.resubmit_cancelled=1")
    with ended(controller):
        (job, *_) = lab.running()
        slurm.cancel(job.id)
        end(controller)
    lab.check()
    assert {a.kind for a in lab.failures()} == {"cancelled"}


def test_a_frozen_task_that_was_given_up_is_fenced_off(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Its node seems dead, another attempt counts, and then it wakes up and wants to write."""
    lab = chunked(slurm, tmp_path, delay=0.5)
    controller = lab.begin()
    with ended(controller):
        (job, *_) = lab.running()
        tasks = slurm.tasks(job.id)
        for process in tasks:
            process.send(signal.SIGSTOP)
        theirs = [lab.paths(a) for a in lab.state().live_attempts() if lab.on(a, job)]
        unfinished = [paths for paths in theirs if not paths.receipt.exists()]
        assert unfinished
        os.kill(slurm.daemons[job.node].pid, signal.SIGSTOP)
        try:
            end(controller)
            lab.check()
        finally:
            os.kill(slurm.daemons[job.node].pid, signal.SIGCONT)
            for process in tasks:
                process.send(signal.SIGCONT)
    slurm.wait(lambda: not any(process.alive() for process in tasks), timeout=60)
    lab.check()
    assert not any(paths.receipt.exists() or paths.scores.exists() for paths in unfinished)
    l2s("verify", str(lab.run), env=lab.env)


def assert_chunks_kept(lab: Lab, evaluation: str, candidate: str, chunks: int) -> None:
    """The attempt after an interrupted one generated only what was missing."""
    tries = lab.state().attempts[evaluation, candidate]
    later = lab.paths(tries[-1]).folder
    assert len(list(later.glob("chunk-*.json"))) <= 4 - chunks


def _restarted(lab: Lab) -> bool:
    """Whether an accepted attempt was begun by one incarnation of its job and ended by a later."""
    accepted = [a for a in lab.attempts() if a.outcome == "accepted"]
    return any(len(lab.paths(a).owners()) > 1 for a in accepted)
