"""Where a worker runs: what Slurm calls it, and a disk that may be full."""

from __future__ import annotations

import errno
import platform

import pytest

from l2s_hpc.task import node
from l2s_hpc.task.node import TEAM_VARIABLE, Job, job, with_room


class Disk:
    """A write that fails for a while, on a clock that sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: int) -> None:
        self.now, self.tries, self.errors = 0.0, 0, list(errors)
        monkeypatch.setattr(node.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(node.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def write(self) -> str:
        self.tries += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        return "written"


def test_what_can_be_written_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    assert with_room(disk.write, 0) == "written" and disk.tries == 1 and disk.now == 0


def test_room_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Disk(monkeypatch, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    assert with_room(disk.write, 300) == "written" and disk.tries == 4
    assert 0 < disk.now <= 300
    assert capsys.readouterr().err.count("no room, waiting") == 3, "and it is said"


def test_there_is_an_end_to_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, *[errno.ENOSPC] * 1000)
    with pytest.raises(OSError, match="ENOSPC"):
        with_room(disk.write, 300)
    assert 300 <= disk.now <= 310 and disk.tries < 100


def test_who_was_told_to_end_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="ENOSPC"):
        with_room(disk.write, 0)
    assert disk.now == 0 and disk.tries == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOENT, errno.ESTALE])
def test_other_errors_are_not_waited_for(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    disk = Disk(monkeypatch, number)
    with pytest.raises(OSError, match=errno.errorcode[number]):
        with_room(disk.write, 300)
    assert disk.tries == 1


# The job


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SLURMD_NODENAME",
                 "SLURM_RESTART_COUNT", TEAM_VARIABLE):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def found() -> Job:
    """The job, looked up as in a new process."""
    return job.__wrapped__()  # type: ignore[no-any-return]


def test_outside_slurm(outside: pytest.MonkeyPatch) -> None:
    here = found()
    assert (here.id, here.restart, here.host) == ("", 0, platform.node())


def test_an_element_of_an_array(outside: pytest.MonkeyPatch) -> None:
    outside.setenv("SLURM_ARRAY_JOB_ID", "77")
    outside.setenv("SLURM_ARRAY_TASK_ID", "4")
    outside.setenv("SLURM_JOB_ID", "81")
    outside.setenv("SLURM_RESTART_COUNT", "2")
    outside.setenv("SLURMD_NODENAME", "n1")
    there = found()
    assert (there.id, there.restart, there.host) == ("77_4", 2, "n1")


def test_a_job_that_is_no_array(outside: pytest.MonkeyPatch) -> None:
    outside.setenv("SLURM_JOB_ID", "81")
    outside.setenv("SLURM_RESTART_COUNT", "")
    assert (found().id, found().restart) == ("81", 0)


def test_every_start_is_another_one_and_a_team_is_the_same(outside: pytest.MonkeyPatch) -> None:
    assert found().key != found().key
    assert job() is job(), "but within a process it is one"
    outside.setenv(TEAM_VARIABLE, "ours")
    assert found().key == found().key == "ours"
