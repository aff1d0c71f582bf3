"""The shared disk is full or read-only, or what stands on it is damaged.

That it shows files late is simulated: see `tests/unit/test_simulated.py`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from l2s_hpc.store.layout import AttemptPaths

from .cluster import SlurmCluster
from .faults import Controller, end, ended, kill, l2s, make_lab
from .machine import SmallDisk


@pytest.fixture
def disk(allowed_to_mount: None, tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", size="48M") as disk:
        yield disk


def test_the_disk_is_full_for_a_while(slurm: SlurmCluster, tmp_path: Path, disk: SmallDisk) -> None:
    """Controller and workers wait for room, and say so; no result is thrown away."""
    lab = make_lab(slurm, tmp_path, node={"delay": 1.0}, run=disk.folder / "run")
    controller = lab.begin()
    with ended(controller):
        lab.running()
        disk.fill()
        lab.wait(lambda: waits(controller))
        time.sleep(12)  # the workers' turn
        assert waits(controller)
        disk.free()
        end(controller)
    lab.check()
    assert not lab.failures()


def test_the_disk_is_full_for_too_long(
    slurm: SlurmCluster, tmp_path: Path, disk: SmallDisk
) -> None:
    """Workers give up, and the candidates come again once there is room: it was not their fault."""
    lab = make_lab(slurm, tmp_path, node={"delay": 1.0}, run=disk.folder / "run")
    controller = lab.begin("site.disk_seconds=1")
    with ended(controller):
        lab.running()
        disk.fill()
        lab.wait(lambda: not [j for j in lab.jobs() if j.state in ("RUNNING", "COMPLETING")])
        # Now the controller has something to record, and cannot.
        time.sleep(15)
        lab.wait(lambda: waits(controller))
        disk.free()
        end(controller)
    lab.check()
    assert not any(a.counted for a in lab.failures())


def test_the_disk_is_full_from_the_start(
    slurm: SlurmCluster, tmp_path: Path, disk: SmallDisk
) -> None:
    """A clean stop; the same command begins once there is room."""
    lab = make_lab(slurm, tmp_path, run=disk.folder / "run")
    disk.fill()
    text = end(lab.begin(), code=3)
    assert "No space left on device" in text and "make room" in text
    assert "Traceback" not in text
    disk.free()
    lab.finish()
    lab.check()


def test_the_disk_becomes_read_only(slurm: SlurmCluster, tmp_path: Path, disk: SmallDisk) -> None:
    lab = make_lab(slurm, tmp_path, run=disk.folder / "run")
    controller = lab.begin()
    with ended(controller):
        lab.wait(lambda: len(lab.state().accepted) >= 4)
        # The kernel refuses while a task's log is open: it may need a moment between two arrays.
        disk.read_only()
        time.sleep(10)
        lab.wait(lambda: waits(controller, "Read-only file system"))
        disk.writable()
        end(controller)
    lab.check()


def test_damaged_tables_and_receipts(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Each kind of damage to one candidate of the first generation, while no controller looks."""
    lab = make_lab(slurm, tmp_path, node={"delay": 3.0})  # it is gone before a task ends
    controller = lab.begin()
    with ended(controller):
        lab.wait(lambda: any(batch.job for batch in lab.state().batches.values()))
        kill(controller)
    lab.set_nodes()
    attempts = [a for a in lab.state().live_attempts()]
    lab.wait(lambda: all(lab.paths(a).receipt.exists() for a in attempts))
    assert len(attempts) >= len(DAMAGES), "too few candidates for all kinds of damage"
    places = [lab.paths(a) for a in attempts]
    spare = _copied(places[0], tmp_path / "spare")
    for damage, paths in zip(DAMAGES, places, strict=False):
        damage(paths, spare)
    lab.finish()
    lab.check()
    damaged = [a for a in lab.failures() if a.kind == "damaged"]
    assert {a.candidate for a in damaged} == {a.candidate for a in attempts[: len(DAMAGES)]}
    assert not any(a.counted for a in damaged)
    assert len(list((lab.run / "quarantine").iterdir())) == len(DAMAGES)
    l2s("verify", str(lab.run), env=lab.env)


def test_accepted_tables_that_are_damaged_later(slurm: SlurmCluster, tmp_path: Path) -> None:
    """`l2s verify` finds it, moves it out of the way, and the search evaluates it again."""
    lab = make_lab(slurm, tmp_path)
    lab.finish()
    (table, *_) = sorted((lab.run / "scores" / "search").rglob("*.parquet"))
    # The attempt's own file is the same one: a copy is damaged, as on another disk.
    data = table.read_bytes()
    table.unlink()
    table.write_bytes(_flipped(data))
    assert "sha256" in l2s("verify", str(lab.run), env=lab.env, code=3)
    l2s("verify", str(lab.run), "--quarantine", env=lab.env, code=3)
    lab.finish()
    lab.check()


def waits(controller: Controller, why: str = "No space left on device") -> bool:
    """Whether a controller has said that it cannot write, and has not given up."""
    text = controller.said()
    assert controller.poll() is None, text
    return why in text and "waiting" in text


def _torn_table(paths: AttemptPaths, spare: AttemptPaths) -> None:
    paths.scores.write_bytes(paths.scores.read_bytes()[:-200])


def _flipped_bit(paths: AttemptPaths, spare: AttemptPaths) -> None:
    paths.scores.write_bytes(_flipped(paths.scores.read_bytes()))


def _missing_table(paths: AttemptPaths, spare: AttemptPaths) -> None:
    paths.scores.unlink()


def _foreign_table(paths: AttemptPaths, spare: AttemptPaths) -> None:
    shutil.copy(spare.scores, paths.scores)


def _repeated_rows(paths: AttemptPaths, spare: AttemptPaths) -> None:
    table = pq.read_table(paths.scores)
    pq.write_table(table.take([0, *range(1, len(table)), 0]), paths.scores)


def _torn_receipt(paths: AttemptPaths, spare: AttemptPaths) -> None:
    paths.receipt.write_text(paths.receipt.read_text(encoding="utf-8")[:-30], encoding="utf-8")


def _foreign_receipt(paths: AttemptPaths, spare: AttemptPaths) -> None:
    shutil.copy(spare.receipt, paths.receipt)


DAMAGES: list[Callable[[AttemptPaths, AttemptPaths], None]] = [
    _torn_table,
    _flipped_bit,
    _missing_table,
    _foreign_table,
    _repeated_rows,
    _torn_receipt,
    _foreign_receipt,
]


def _flipped(data: bytes) -> bytes:
    """Turn one bit round in the middle, where the values stand."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def _copied(paths: AttemptPaths, folder: Path) -> AttemptPaths:
    shutil.copytree(paths.folder, folder)
    return AttemptPaths(folder)
