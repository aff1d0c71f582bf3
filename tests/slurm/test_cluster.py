"""The test cluster itself: it runs jobs, it breaks as told, and it leaves nothing behind."""

import os
import signal
import sys
from pathlib import Path
from typing import Literal

import pytest

from .cluster import ClusterError, Job, Process, SlurmCluster
from .machine import SmallDisk, on_host


def running(slurm: SlurmCluster, job: int) -> bool:
    """Whether the job is RUNNING and its shell has written its first word."""
    return slurm.states(job) == ["RUNNING"] and (slurm.folder / "work" / f"{job}.begun").exists()


def submit_sleeper(slurm: SlurmCluster, seconds: int, *options: str) -> int:
    script = f"touch $SLURM_JOB_ID.begun; sleep {seconds}"
    return slurm.submit(*options, "--wrap", script)


def rows(slurm: SlurmCluster, job: int) -> list[Job]:
    ours = [row for row in slurm.jobs() if row.array == job]
    return sorted(ours, key=lambda row: row.index or 0)


def exit_code(slurm: SlurmCluster, job: int) -> str:
    """As Slurm writes it, "code:signal"."""
    fields = slurm.run("scontrol", "--oneliner", "show", "job", str(job)).stdout.split()
    return dict(field.partition("=")[::2] for field in fields)["ExitCode"]


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
    runs = submit_sleeper(slurm, 20)
    waits = submit_sleeper(slurm, 0, f"--dependency=afterok:{runs}")
    slurm.wait(lambda: running(slurm, runs))
    slurm.wait_saved()
    slurm.kill_controller()
    assert slurm.processes() != []  # the job runs on
    slurm.start_controller()
    slurm.wait(lambda: slurm.states(runs) + slurm.states(waits) == ["COMPLETED"] * 2)


def test_drained_node_takes_jobs_after_resume(slurm: SlurmCluster) -> None:
    slurm.drain("n3")
    slurm.wait(lambda: slurm.node_states()["n3"] == "drained")
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


def test_urgent_job_takes_a_node_away(slurm: SlurmCluster) -> None:
    waits = submit_sleeper(slurm, 1000, "--nodelist=n2", "--requeue")
    ends = submit_sleeper(slurm, 1000, "--nodelist=n2", "--no-requeue")
    slurm.wait(lambda: running(slurm, waits) and running(slurm, ends))
    urgent = slurm.preempt("n2")
    assert [row.node for row in rows(slurm, urgent)] == ["n2"]
    slurm.wait(lambda: slurm.states(waits) + slurm.states(ends) == ["PENDING", "PREEMPTED"])
    slurm.cancel(urgent)
    slurm.wait(lambda: slurm.states(waits) == ["RUNNING"])
    assert [row.restarts for row in rows(slurm, waits)] == [1]
    slurm.cancel(waits)


def test_held_element_waits_and_its_time_can_be_cut(slurm: SlurmCluster) -> None:
    job = slurm.submit("--array=0-1", "--hold", "--wrap", "exec sleep 1000")
    slurm.release(f"{job}_1")
    slurm.wait(lambda: slurm.states(job) == ["PENDING", "RUNNING"])
    slurm.set_time_limit(f"{job}_0", "7")
    slurm.set_time_limit(f"{job}_1", "2:30")
    limits = slurm.run("squeue", "--noheader", f"--jobs={job}", "--format=%K %l").stdout
    assert set(limits.splitlines()) == {"0 7:00", "1 3:00"}
    slurm.time_out(f"{job}_1")
    slurm.wait(lambda: slurm.states(job) == ["PENDING", "TIMEOUT"], timeout=60)
    assert [row.reason for row in rows(slurm, job)] == ["JobHeldUser", "TimeLimit"]
    slurm.cancel(job)


def test_tasks_of_one_element_are_found(slurm: SlurmCluster) -> None:
    job = slurm.submit("--array=4-5", "--wrap", "sleep 1000; echo on")
    other = submit_sleeper(slurm, 1000)
    slurm.wait(lambda: running(slurm, other))
    slurm.wait(lambda: len(slurm.tasks(job)) == 4)
    # A process is a copy of the shell until it has become what it is to be.
    slurm.wait(
        lambda: [command(p)[:1] for p in slurm.tasks(f"{job}_4")] == [["/bin/sh"], ["sleep"]]
    )
    shell, sleep = slurm.tasks(f"{job}_4")
    assert not {shell, sleep} & {*slurm.tasks(f"{job}_5"), *slurm.tasks(other)}

    sleep.send(signal.SIGSTOP)
    slurm.wait(lambda: status(sleep) == "T")
    assert slurm.states(job) == ["RUNNING"] * 2  # Slurm does not see it
    sleep.send(signal.SIGKILL)
    slurm.wait(lambda: slurm.states(job) == ["COMPLETED", "RUNNING"])  # the shell went on
    for process in slurm.tasks(f"{job}_5"):
        process.send(signal.SIGKILL)
    slurm.wait(lambda: slurm.states(job) == ["COMPLETED", "FAILED"])
    assert slurm.tasks(job) == []
    slurm.cancel(other)


def command(process: Process) -> list[str]:
    return Path(f"/proc/{process.pid}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]


def status(process: Process) -> str:
    text = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
    return text.rpartition(")")[2].split()[0]


def test_start_that_the_dead_controller_had_not_saved_leaves_a_ghost(
    slurm_installed: None, tmp_path: Path
) -> None:
    with SlurmCluster(tmp_path, nodes=2) as slurm:
        job = slurm.submit("--wrap", "sleep 1; touch well")
        slurm.wait(lambda: slurm.states(job) == ["RUNNING"])
        slurm.kill_controller()
        slurm.wait((slurm.folder / "work" / "well").exists)
        slurm.wait(lambda: slurm.tasks(job) == [])
        slurm.start_controller()
        slurm.wait(lambda: [r.reason for r in rows(slurm, job)] == ["launch failed requeued held"])
        assert [row.restarts for row in rows(slurm, job)] == [1]
        assert slurm.states(job) == ["PENDING"]
        assert "drained" in slurm.node_states().values()


@pytest.mark.parametrize("by", ["qos", "user"])
def test_accounting_refuses_too_many_jobs(
    slurm_with_accounting: SlurmCluster, by: Literal["qos", "user"]
) -> None:
    slurm = slurm_with_accounting
    slurm.limit_submits(2, by=by)
    words = {"qos": "QOSMaxSubmitJobPerUserLimit", "user": "AssocMaxSubmitJobLimit"}
    with pytest.raises(ClusterError, match=words[by]):
        slurm.submit("--array=0-2", "--wrap", "true")
    slurm.limit_submits(None, by=by)
    slurm.cancel(slurm.submit("--array=0-2", "--hold", "--wrap", "true"))


def test_accounting_hears_later_what_it_missed(slurm_with_accounting: SlurmCluster) -> None:
    slurm = slurm_with_accounting
    ask = ("sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,ExitCode")
    slurm.stop_accounting()
    job = slurm.submit("--array=0-1", "--wrap", "exit $SLURM_ARRAY_TASK_ID")
    slurm.wait(lambda: slurm.states(job) == ["COMPLETED", "FAILED"])
    assert "Connection refused" in slurm.run(*ask, check=False).stderr
    slurm.start_accounting()
    told = [f"{job}_0|COMPLETED|0:0", f"{job}_1|FAILED|1:0"]
    slurm.wait(lambda: slurm.run(*ask, f"--jobs={job}").stdout.splitlines() == told, timeout=60)


def test_without_accounting_sacct_fails(slurm: SlurmCluster) -> None:
    assert "accounting storage is disabled" in slurm.run("sacct", check=False).stderr
    with pytest.raises(ClusterError, match="accounting=True"):
        slurm.start_accounting()


EATS_400_MB = "import time; eaten = bytearray(400 * 2**20); time.sleep(1000)"


def test_slurm_ends_a_job_that_takes_too_much_memory(slurm_installed: None, tmp_path: Path) -> None:
    with SlurmCluster(tmp_path, nodes=1, memory_kill="slurm") as slurm:
        job = submit_eater(slurm)
        slurm.wait(lambda: slurm.states(job) == ["FAILED"])
        assert [row.reason for row in rows(slurm, job)] == ["JobLaunchFailure"]
        assert exit_code(slurm, job) == "0:9"
        log = slurm.folder / "work" / f"slurm-{job}.out"
        assert "exceeded memory limit" in log.read_text(encoding="utf-8")


def test_kernel_ends_a_job_that_takes_too_much_memory(
    kernel_kills_jobs: None, tmp_path: Path
) -> None:
    with SlurmCluster(tmp_path, nodes=1, memory_kill="kernel") as slurm:
        job = submit_eater(slurm)
        slurm.wait(lambda: slurm.states(job) == ["OUT_OF_MEMORY"])
        assert [row.reason for row in rows(slurm, job)] == ["OutOfMemory"]
        assert exit_code(slurm, job) == "0:125"
    # Another cluster's n1 may be alive, for the kernel tells them not apart.
    assert not list(Path("/sys/fs/cgroup/memory").glob(f"slurm_n1/uid_*/job_{job}"))


def submit_eater(slurm: SlurmCluster) -> int:
    return slurm.submit("--mem=200", "--wrap", f'exec {sys.executable} -c "{EATS_400_MB}"')


def test_small_disk_gets_full_and_read_only(small_disk: SmallDisk) -> None:
    file = small_disk.folder / "file"
    small_disk.fill()
    assert os.statvfs(small_disk.folder).f_bavail == 0
    with pytest.raises(OSError, match="No space left on device"):
        file.write_text("word", encoding="utf-8")
    small_disk.free()
    file.write_text("word", encoding="utf-8")
    small_disk.read_only()
    with pytest.raises(OSError, match="Read-only file system"):
        file.write_text("other", encoding="utf-8")
    small_disk.writable()
    small_disk.fill()
    small_disk.fill()
    assert file.read_text(encoding="utf-8") == "word"


def test_small_disk_is_unmounted_although_a_file_is_open(
    allowed_to_mount: None, tmp_path: Path
) -> None:
    with SmallDisk(tmp_path, size="1M"):
        assert tmp_path.is_mount()
        file = (tmp_path / "open").open("w", encoding="utf-8")
    with file:
        assert not tmp_path.is_mount()
        assert list(tmp_path.iterdir()) == []


def test_jobs_see_a_full_disk(slurm: SlurmCluster, small_disk: SmallDisk) -> None:
    small_disk.fill()
    job = slurm.submit("--wrap", f"head --bytes=9 /dev/zero > {small_disk.folder}/file")
    slurm.wait(lambda: slurm.states(job) == ["FAILED"])
    log = slurm.folder / "work" / f"slurm-{job}.out"
    assert "No space left on device" in log.read_text(encoding="utf-8")


def test_another_login_node_uses_the_same_cluster(
    slurm: SlurmCluster, allowed_to_mount: None
) -> None:
    script = "hostname; sbatch --parsable --hold --job-name=elsewhere --wrap true"
    host, job = slurm.run(*on_host("login2", ["sh", "-c", script])).stdout.split()
    assert host == "login2"
    seen = slurm.run(*on_host("login3", ["squeue", "--me", "--noheader", "--format=%A %j"])).stdout
    assert f"{job} elsewhere" in seen.splitlines()
    assert slurm.run("hostname").stdout.strip() == os.uname().nodename != "login2"
    slurm.cancel(job)


def test_options_reach_slurm(slurm_installed: None, tmp_path: Path) -> None:
    lines = ["PartitionName=spare Nodes=ALL PriorityTier=100", "KillWait=2"]
    with SlurmCluster(
        tmp_path, nodes=2, cpus=16, memory=64_000, max_array_size=5, min_job_age=33, config=lines
    ) as slurm:
        config = slurm.run("scontrol", "show", "config").stdout.split("\n")
        shown = {key.strip(): value.strip() for key, _, value in (c.partition("=") for c in config)}
        assert shown["MaxArraySize"] == "5"
        assert shown["MinJobAge"] == "33 sec"
        assert shown["KillWait"] == "2 sec"
        node = slurm.run("sinfo", "--noheader", "--Node", "--format=%N %c %m %P").stdout
        assert {"n1 16 64000 main*", "n2 16 64000 spare"} <= {
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
