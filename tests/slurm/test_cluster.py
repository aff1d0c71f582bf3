"""The test cluster itself: it runs jobs, it breaks as told, and it leaves nothing behind."""

from pathlib import Path

import pytest

from .cluster import ClusterError, Process, SlurmCluster


def running(slurm: SlurmCluster, job: int) -> bool:
    """Whether the job is RUNNING and its shell has written its first word."""
    return slurm.states(job) == ["RUNNING"] and (slurm.folder / "work" / f"{job}.begun").exists()


def submit_sleeper(slurm: SlurmCluster, seconds: int, *options: str) -> int:
    script = f"touch $SLURM_JOB_ID.begun; sleep {seconds}"
    return slurm.submit(*options, "--wrap", script)


def test_array_of_three_runs_and_leaves_three_files(slurm: SlurmCluster) -> None:
    script = "echo $SLURM_ARRAY_TASK_ID > three_$SLURM_ARRAY_TASK_ID.txt"
    job = slurm.submit("--array=0-2", "--job-name=three|words", "--wrap", script)
    slurm.wait(lambda: slurm.states(job) == ["COMPLETED"] * 3)
    files = sorted((slurm.folder / "work").glob("three_*.txt"))
    assert [file.read_text() for file in files] == ["0\n", "1\n", "2\n"]
    rows = [row for row in slurm.jobs() if row.array == job]
    assert {row.id for row in rows} == {f"{job}_{i}" for i in range(3)}
    assert {row.name for row in rows} == {"three|words"}
    assert {row.restarts for row in rows} == {0}


def test_job_of_a_dead_node_starts_again_elsewhere(slurm: SlurmCluster) -> None:
    job = submit_sleeper(slurm, 1000, "--requeue")
    slurm.wait(lambda: running(slurm, job))
    [before] = [row for row in slurm.jobs() if row.array == job]
    slurm.kill_node(before.node)
    assert slurm.processes([before.node]) == []
    assert slurm.states(job) == ["RUNNING"]  # nobody has told the controller

    slurm.wait(lambda: slurm.node_states()[before.node] == "down*", timeout=60)
    slurm.wait(lambda: slurm.states(job) == ["RUNNING"], timeout=60)
    [after] = [row for row in slurm.jobs() if row.array == job]
    assert after.node != before.node
    assert (before.restarts, after.restarts) == (0, 1)

    slurm.start_node(before.node)
    assert slurm.node_states()[before.node] == "idle"
    slurm.cancel(job)
    slurm.wait(lambda: slurm.states(job) == ["CANCELLED"])


def test_node_that_comes_back_at_once_takes_jobs(slurm: SlurmCluster) -> None:
    slurm.kill_node("n2")
    slurm.start_node("n2")
    job = submit_sleeper(slurm, 0, "--nodelist=n2")
    slurm.wait(lambda: slurm.states(job) == ["COMPLETED"])


def test_jobs_outlive_a_restart_of_the_controller(slurm: SlurmCluster) -> None:
    runs = submit_sleeper(slurm, 3)
    waits = submit_sleeper(slurm, 0, f"--dependency=afterok:{runs}")
    slurm.wait(lambda: running(slurm, runs))
    slurm.stop_controller()
    assert slurm.run("squeue", check=False).returncode != 0
    slurm.start_controller()
    slurm.wait(lambda: slurm.states(runs) + slurm.states(waits) == ["COMPLETED"] * 2)


def test_saved_jobs_outlive_a_kill_of_the_controller(slurm: SlurmCluster) -> None:
    runs = submit_sleeper(slurm, 10)
    waits = submit_sleeper(slurm, 0, f"--dependency=afterok:{runs}")
    slurm.wait(lambda: running(slurm, runs))
    slurm.wait_saved()
    slurm.kill_controller()
    assert slurm.processes() != []  # the job runs on
    slurm.start_controller()
    slurm.wait(lambda: slurm.states(runs) + slurm.states(waits) == ["COMPLETED"] * 2)


def test_drained_node_takes_jobs_after_resume(slurm: SlurmCluster) -> None:
    slurm.drain("n3")
    assert slurm.node_states()["n3"] == "drained"
    job = submit_sleeper(slurm, 0, "--nodelist=n3")
    slurm.wait(lambda: [row.reason for row in slurm.jobs() if row.array == job] != ["None"])
    assert slurm.states(job) == ["PENDING"]
    slurm.resume("n3")
    slurm.wait(lambda: slurm.states(job) == ["COMPLETED"])


def test_requeued_job_keeps_its_id(slurm: SlurmCluster) -> None:
    job = submit_sleeper(slurm, 1000, "--requeue")
    slurm.wait(lambda: running(slurm, job))
    slurm.requeue(job)
    slurm.wait(lambda: [row.restarts for row in slurm.jobs() if row.array == job] == [1])
    slurm.wait(lambda: slurm.states(job) == ["RUNNING"])
    slurm.cancel(job)
    slurm.wait(lambda: slurm.states(job) == ["CANCELLED"])


def test_options_reach_slurm(slurm_installed: None, tmp_path: Path) -> None:
    lines = ["PartitionName=urgent Nodes=ALL PriorityTier=100", "KillWait=2"]
    with SlurmCluster(
        tmp_path, nodes=2, cpus=16, memory=64_000, max_array_size=5, min_job_age=33, config=lines
    ) as slurm:
        config = slurm.run("scontrol", "show", "config").stdout.split("\n")
        shown = {key.strip(): value.strip() for key, _, value in (c.partition("=") for c in config)}
        assert shown["MaxArraySize"] == "5"
        assert shown["MinJobAge"] == "33 sec"
        assert shown["KillWait"] == "2 sec"
        node = slurm.run("sinfo", "--noheader", "--Node", "--format=%N %c %m %P").stdout
        assert {"n1 16 64000 main*", "n2 16 64000 urgent"} <= {
            " ".join(line.split()) for line in node.splitlines()
        }
        with pytest.raises(ClusterError, match="Invalid job array specification"):
            slurm.submit("--array=0-5", "--wrap", "true")


def test_nothing_is_left_alive(slurm_installed: None, tmp_path: Path) -> None:
    with SlurmCluster(tmp_path, nodes=1) as slurm:
        job = slurm.submit("--wrap", "touch begun; setsid sleep 1000 & trap '' TERM; sleep 1001")
        slurm.wait(lambda: slurm.states(job) == ["RUNNING"])
        slurm.wait((slurm.folder / "work" / "begun").exists)
        slurm.wait(lambda: len(slurm.processes()) == 4)  # stepd, shell and two sleeps
        assert set(slurm.daemons) == {"munged", "slurmctld", "n1"}
        daemons = [Process.find(daemon.pid) for daemon in slurm.daemons.values()]
        started = [process for process in [*daemons, *slurm.processes()] if process is not None]
        assert len(started) == 7
    assert [process for process in started if process.alive()] == []
    assert slurm.processes() == []


def test_dead_daemon_is_reported_with_its_log(slurm_installed: None, tmp_path: Path) -> None:
    with (
        pytest.raises(ClusterError, match=r"slurmctld died, exit 1:(.|\n)*select/nonsense"),
        SlurmCluster(tmp_path, nodes=1, config=["SelectType=select/nonsense"]),
    ):
        pass
