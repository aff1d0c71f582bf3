"""Tasks with a scratch on their node's disk: they share copies, and none fails for it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from l2s_hpc.recipes.recipe import average
from l2s_hpc.task import scratch as module
from l2s_hpc.task.worker import Worker
from tests.contract.test_worker import FAST, HALF, IDENTITIES, SLOW, Run, scripted
from tests.helpers import sums, toy_items, toy_protocol
from tests.slurm.machine import SmallDisk, may_mount

PARENTS = f"l2s-{os.geteuid()}/parents"
THIRD = average({"slow": 1, "fast": 2}, IDENTITIES)


def copying() -> bool:
    return any(thread.name == "copies" for thread in threading.enumerate())


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def said_by(run: Run, key: str) -> str:
    """Run a task to its end, and return what it wrote into its log."""
    process = run.start(key)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return err


def test_scores_of_originals_and_copies_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run", toy_protocol(max_tokens=60), toy_items(4))
    space = tmp_path / "scratch"
    found = []
    for attempt, place in enumerate(("", str(space), str(space)), 1):
        worker = Worker(run.paths.folder)
        worker.do(run.task(f"t{attempt}", HALF, attempt=attempt, scratch=place))
        until(lambda: not copying())
        worker.close()
        assert capsys.readouterr().err.count("copying '") == (3 if attempt == 2 else 0)
        receipt = run.receipt(HALF, attempt)
        assert receipt.failure is None
        found.append(receipt.content_sha256)
    assert len(set(found)) == 1
    assert len(list((space / PARENTS).glob("*/complete.json"))) == 3


def test_a_worker_that_closes_stops_copying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", scripted(), sums(4))
    monkeypatch.setattr(module.os, "fdatasync", lambda descriptor: time.sleep(0.3))
    worker = Worker(run.paths.folder)
    worker.do(run.task("t", HALF, scratch=str(tmp_path / "scratch")))
    assert copying() and run.receipt(HALF).failure is None
    start = time.monotonic()
    worker.close()
    assert time.monotonic() - start < 1.5 and not copying()
    parents = tmp_path / "scratch" / PARENTS
    assert all((copy / "complete.json").exists() for copy in parents.glob("*-*"))


def test_a_signal_does_not_wait_for_copies(tmp_path: Path) -> None:
    """Not even where the disk hangs."""
    run = Run(tmp_path / "run", scripted(engine_settings={"delay": 60}), sums(4))
    hang = tmp_path / "sitecustomize.py"
    hang.write_text("import os, time\nos.fdatasync = lambda file: time.sleep(60)\n", "utf-8")
    root = Path(__file__).parents[2]
    process = run.start(
        run.task("t", HALF, scratch=str(tmp_path / "scratch")),
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
    )
    assert process.stderr is not None and "copying '" in process.stderr.readline()
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - start < 4


@pytest.mark.skipif(not may_mount(), reason="needs root with the right to mount a small disk")
def test_a_full_scratch_fails_no_candidate(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", scripted(), sums(4))
    with SmallDisk(tmp_path / "disk", "64M") as disk:
        small = said_by(run, run.task("small", SLOW, scratch=str(disk.folder)))
        assert small.count("no room for 0.0 GB and 2.0 GB beside it") == 3
        disk.fill()
        said_by(run, run.task("full", FAST, scratch=str(disk.folder)))
        shutil.rmtree(disk.folder / f"l2s-{os.geteuid()}")
        disk.read_only()
        said = said_by(run, run.task("read-only", HALF, scratch=str(disk.folder)))
        assert f"no copies of the parents in {disk.folder}: Read-only file system" in said
    for recipe in (SLOW, FAST, HALF):
        assert run.receipt(recipe).failure is None


def test_a_scratch_that_is_unsafe_or_nowhere(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", scripted(), sums(4))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    said = said_by(run, run.task("open", HALF, scratch=str(tmp_path / "open")))
    assert "others could rename what is in" in said
    said = said_by(run, run.task("unset", THIRD, scratch="$NOT_SET/x"))
    assert "no copies of the parents in $NOT_SET/x: $NOT_SET/x is not an absolute path" in said
    assert run.receipt(HALF).failure is None and run.receipt(THIRD).failure is None
