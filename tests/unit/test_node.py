"""Where a worker runs: what Slurm calls it, its folders, and a disk that may be full."""

from __future__ import annotations

import errno
import os
import platform
import re
import stat
from pathlib import Path

import pytest

from l2s_hpc.errors import DamageError
from l2s_hpc.task import node
from l2s_hpc.task.node import TEAM_VARIABLE, Job, job, own_folder, with_room

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
SOMEBODY = 12_345


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


# A folder of our own


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def made(folder: Path, bits: int, owner: int | None = None) -> Path:
    """Make a folder with a mode, whatever this process masks."""
    folder.mkdir()
    folder.chmod(bits)
    if owner is not None:
        os.chown(folder, owner, owner)
    return folder


def refused(named: Path, message: str, below: str = "") -> None:
    with pytest.raises(DamageError, match=f"^{re.escape(message)}$"):
        own_folder(str(named), below)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_it_is_made_for_this_user_alone(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        for _ in range(2):
            assert own_folder(str(tmp_path / "a" / "b"), "ours") == tmp_path / "a" / "b" / "ours"
            assert own_folder(str(tmp_path / "c")) == tmp_path / "c"
    finally:
        os.umask(before)
    assert [mode(tmp_path / name) for name in ("a/b/ours", "a/b", "c")] == [0o700] * 3


def test_variables_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert own_folder("~/x") == tmp_path / "home" / "x"
    assert own_folder("${PLACE}/y", "z") == tmp_path / "y" / "z"


@pytest.mark.parametrize("named", ["$NOT_SET", "/x/$NOT_SET/y", "x", "", "~nobody-of-this-name"])
def test_it_must_be_a_path_of_this_node(named: str) -> None:
    shown = Path(named)  # as a path is shown: the empty one is "."
    refused(Path(named), f"{shown} is not an absolute path on this node")


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o707, 0o775, 0o757])
def test_a_place_where_others_could_rename_it(tmp_path: Path, bits: int) -> None:
    place = made(tmp_path / "place", bits)
    message = (
        f"others could rename what is in {place} (mode {bits:o}): name another place, or have "
        "their right to write there taken (chmod go-w)"
    )
    refused(place, message, "ours")
    refused(place / "cache", message)
    assert list(place.iterdir()) == []
    place.chmod(0o1000 | bits)  # as /tmp
    assert own_folder(str(place), "ours") == place / "ours"
    assert own_folder(str(place / "cache")) == place / "cache"


@pytest.mark.parametrize("bits", [0o777, 0o775, 0o757])
def test_a_folder_far_above_where_others_could_rename(tmp_path: Path, bits: int) -> None:
    """As `/proj` with mode 777, where everybody may put another `/proj/alice`."""
    above = made(tmp_path / "proj", bits)
    alice = made(made(above / "alice", 0o755) / "work", 0o755)
    message = (
        f"others could rename what is in {above} (mode {bits:o}): name another place, or have "
        "their right to write there taken (chmod go-w)"
    )
    refused(alice, message, "ours")
    refused(alice / "cache", message)
    assert list(alice.iterdir()) == []
    above.chmod(0o1000 | bits)
    assert own_folder(str(alice), "ours") == alice / "ours"


@ROOT_ONLY
def test_the_owner_of_a_folder_far_above_is_trusted(tmp_path: Path) -> None:
    """Projects of a cluster often lie in a folder of a service account."""
    alice = made(made(tmp_path / "proj", 0o755, SOMEBODY) / "alice", 0o755)
    assert own_folder(str(alice), "ours") == alice / "ours"


@pytest.mark.parametrize("usual", ["/tmp", "/home", "/"])
def test_usual_places_are_no_danger(usual: str) -> None:
    node._check_mode(Path(usual))
    node._check_owner(Path(usual))


@ROOT_ONLY
@pytest.mark.parametrize("bits", [0o755, 0o1777])
def test_the_owner_of_a_place_could_rename_it_too(tmp_path: Path, bits: int) -> None:
    place = made(tmp_path / "place", bits, SOMEBODY)
    message = (
        f"{place} belongs to user {SOMEBODY}, who could rename what is in it: name a folder of "
        "your own"
    )
    refused(place, message, "ours")


@pytest.mark.parametrize("bits", [0o777, 0o720, 0o702, 0o755, 0o710])
def test_it_is_open_to_others(tmp_path: Path, bits: int) -> None:
    ours = made(tmp_path / "ours", bits)
    message = f"{ours} is open to others (mode {bits:o}): remove it, or name another"
    refused(tmp_path, message, "ours")
    if bits & 0o022:
        refused(ours, message)
    else:
        assert own_folder(str(ours)) == ours, "the user's own choice"


@ROOT_ONLY
def test_it_is_not_ours(tmp_path: Path) -> None:
    theirs = made(tmp_path / "ours", 0o700, SOMEBODY)
    message = f"{theirs} is not a folder of this user: name another place"
    refused(tmp_path, message, "ours")
    refused(theirs, message)


def test_a_link_in_its_place(tmp_path: Path) -> None:
    made(tmp_path / "elsewhere", 0o700)
    (tmp_path / "ours").symlink_to(tmp_path / "elsewhere")
    message = f"{tmp_path / 'ours'} is not a folder of this user: name another place"
    refused(tmp_path, message, "ours")
    assert own_folder(str(tmp_path / "ours")) == tmp_path / "elsewhere", "the user's own choice"
    (tmp_path / "elsewhere").chmod(0o777)
    with pytest.raises(DamageError, match="elsewhere is open to others"):
        own_folder(str(tmp_path / "ours"))


@pytest.mark.parametrize("named", ["/dev/null/x", "/proc/x"])
def test_where_none_can_be_made(named: str) -> None:
    with pytest.raises(OSError, match=r"File exists|No such file or directory"):
        own_folder(named, "ours")


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "ours").touch()
    with pytest.raises(FileExistsError):
        own_folder(str(tmp_path), "ours")
