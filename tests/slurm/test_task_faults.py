"""Tasks die, run out of time, are preempted, requeued, cancelled, or meet a bad node."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from l2s_hpc.store.state import AttemptState
from tests.mini import outcome

from .cluster import SlurmCluster
from .faults import CHUNKS, NO_REQUEUE, SITE, Frozen, Lab, end, ended, l2s, make_lab

CHUNKED = {"chunk_delay": 2.0}
"""A candidate takes some seconds, and can be disturbed between two chunks."""


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
    # Longer than Slurm takes from waking the task up to warning it.
    lab = make_lab(slurm, tmp_path, node={"chunk_delay": 4.0})
    controller = lab.begin()
    # The first chunk is done with when the second one is seen.
    with ended(controller), lab.frozen(chunks=2) as task:
        slurm.time_out(task.job.id)
        lab.set_nodes()
        end(controller)
    lab.check()
    cut, *_, last = tries(lab, task)
    assert (cut.outcome, cut.kind, cut.counted) == ("failed", "timeout", False)
    assert cut.chunks >= 1
    # What was finished is not generated again.
    assert last.outcome == "accepted" and lab.paths(last).chunks() <= CHUNKS - cut.chunks
    assert not any(a.counted for a in lab.failures())


def test_the_hard_time_limit(slurm: SlurmCluster, tmp_path: Path) -> None:
    """A task that hangs is ended by Slurm at its limit, and another attempt does it."""
    once = tmp_path / "once"
    once.mkdir()
    lab = make_lab(slurm, tmp_path, node={"once": str(once), "faults": {"hang": 0.15}})
    cut: set[str] = set()

    def time_out() -> None:
        hanging = {path.stem.removeprefix("hang-") for path in once.iterdir()}
        for attempt in lab.state().live_attempts():
            if attempt.candidate in hanging - cut:
                for job in (job for job in lab.jobs() if lab.on(attempt, job)):
                    slurm.time_out(job.id)
                    cut.add(attempt.candidate)

    controller = lab.begin()
    with ended(controller):
        end(controller, meanwhile=time_out)
    lab.check()
    hung = [a for a in lab.failures() if a.kind == "timeout"]
    assert sorted(a.candidate for a in hung) == sorted(cut)
    # Who comes after another candidate in its task had not all of the time, and is not to blame.
    done = {a.task for a in lab.attempts() if a.outcome == "accepted"}
    assert [a.counted for a in hung] == [a.task not in done for a in hung]
    assert any(a.counted for a in hung)
    assert not any(a.counted for a in lab.failures() if a not in hung)


def test_requeued_by_hand(slurm: SlurmCluster, tmp_path: Path) -> None:
    """`scontrol requeue`: the same attempt goes on, with the chunks that it had."""
    lab = make_lab(slurm, tmp_path, node=CHUNKED)
    controller = lab.begin()
    with ended(controller), lab.frozen() as task:
        first = lab.paths(task.attempt).chunk(0)
        made = first.stat()
        slurm.requeue(task.job.id)
        lab.set_nodes()
        end(controller)
    lab.check()
    assert not lab.failures(), "a requeued task is no failure"
    assert gone_on_with(lab, task)
    assert first.stat().st_mtime_ns == made.st_mtime_ns, "a chunk was made again"


def test_preempted_and_requeued(slurm: SlurmCluster, tmp_path: Path) -> None:
    lab = make_lab(slurm, tmp_path, node=CHUNKED)
    controller = lab.begin()
    with ended(controller), lab.frozen() as task:
        urgent = slurm.preempt(task.job.node)
        lab.wait(lambda: [j for j in lab.jobs() if j.restarts])
        slurm.cancel(urgent)
        lab.set_nodes()
        end(controller)
    lab.check()
    assert not lab.failures()
    assert gone_on_with(lab, task)


def test_preempted_for_good(slurm: SlurmCluster, tmp_path: Path) -> None:
    """`--no-requeue`: Slurm ends the job, and we submit another."""
    lab = make_lab(slurm, tmp_path, site=SITE + NO_REQUEUE, node=CHUNKED)
    controller = lab.begin()
    with ended(controller), lab.frozen() as task:
        urgent = slurm.preempt(task.job.node)
        slurm.cancel(urgent)
        lab.set_nodes()
        end(controller)
    lab.check()
    assert {a.kind for a in lab.failures()} == {"interrupted"}
    assert not any(a.counted for a in lab.failures())
    assert [a.outcome for a in tries(lab, task)] == ["failed", "accepted"]


def test_a_node_is_lost(slurm: SlurmCluster, tmp_path: Path) -> None:
    lab = make_lab(slurm, tmp_path, node=CHUNKED)
    controller = lab.begin()
    with ended(controller), lab.frozen() as task:
        slurm.kill_node(task.job.node)
        lab.set_nodes()
        try:
            end(controller)
        finally:
            slurm.start_node(task.job.node)
    lab.check()
    assert not any(a.counted for a in lab.failures())
    assert gone_on_with(lab, task)


def test_a_node_is_drained(slurm: SlurmCluster, tmp_path: Path) -> None:
    """What runs there ends in peace, and nothing new goes there."""
    lab = make_lab(slurm, tmp_path, node=CHUNKED)
    controller = lab.begin()
    with ended(controller), lab.frozen() as task:
        slurm.drain(task.job.node)
        task.go_on()
        lab.set_nodes()
        try:
            end(controller)
        finally:
            slurm.resume(task.job.node)
    lab.check()
    assert not lab.failures()
    assert [(a.outcome, a.node) for a in tries(lab, task)] == [("accepted", task.job.node)]
    later = [a for a in lab.attempts() if a.batch != task.attempt.batch]
    assert later and task.job.node not in {a.node for a in later}


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
    lab = make_lab(slurm, tmp_path, node=CHUNKED)
    controller = lab.begin()
    with ended(controller), lab.frozen() as task:
        slurm.cancel(task.job.array if whole else task.job.id)
        lab.set_nodes()
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
    lab = make_lab(slurm, tmp_path, node=CHUNKED)
    controller = lab.begin("site.resubmit_cancelled=1")
    with ended(controller), lab.frozen() as task:
        slurm.cancel(task.job.id)
        lab.set_nodes()
        end(controller)
    lab.check()
    assert {a.kind for a in lab.failures()} == {"cancelled"}


@pytest.mark.parametrize("requeue", [True, False], ids=["same attempt", "next attempt"])
def test_a_frozen_task_that_was_given_up_is_fenced_off(
    slurm: SlurmCluster, tmp_path: Path, requeue: bool
) -> None:
    """Its node seems dead, another one takes its place, and then it wakes up and wants to write.

    Slurm starts its job again elsewhere, and the same attempt goes on there; or, where it does not,
    the controller makes another attempt.
    """
    lab = make_lab(slurm, tmp_path, site=SITE + ("" if requeue else NO_REQUEUE), node=CHUNKED)
    controller = lab.begin()
    with ended(controller), lab.frozen() as task:
        daemon = slurm.daemons[task.job.node].pid
        os.kill(daemon, signal.SIGSTOP)
        try:
            lab.set_nodes()
            end(controller)
            lab.check()
            left = results(lab, task)
            # As long as its node's daemon stands still, nobody but the fence ends it.
            task.go_on()
            lab.wait(lambda: not any(process.alive() for process in task.processes))
        finally:
            os.kill(daemon, signal.SIGCONT)
            slurm.wait_up(task.job.node)
    lab.check()
    assert results(lab, task) == left and bool(left) == requeue
    assert "is another's now" in lab.logs(task.attempt.batch)
    if requeue:
        assert gone_on_with(lab, task)
    else:
        assert [a.outcome for a in tries(lab, task)] == ["failed", "accepted"]
    l2s("verify", str(lab.run), env=lab.env)


def tries(lab: Lab, task: Frozen) -> list[AttemptState]:
    """All attempts of the candidate that a task was frozen at, in order."""
    return lab.state().attempts[task.attempt.evaluation, task.attempt.candidate]


def gone_on_with(lab: Lab, task: Frozen) -> bool:
    """Whether the attempt was begun by one incarnation of its job and ended well by a later."""
    (attempt,) = tries(lab, task)
    return attempt.outcome == "accepted" and len(lab.paths(attempt).owners()) > 1


def results(lab: Lab, task: Frozen) -> dict[str, bytes]:
    """What has come of the attempt, by file name; nothing where it has not come to its end."""
    paths = lab.paths(task.attempt)
    files = (paths.receipt, paths.scores, paths.outputs)
    return {file.name: file.read_bytes() for file in files if file.exists()}
