"""The executor of this machine, with workers that a test has written."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.cluster.jobs import NO_ROOM_JOB, JobState
from l2s_hpc.cluster.local import LocalExecutor
from l2s_hpc.config import SiteConfig
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import BatchState
from tests.unit.events import ENTRY

DOES = """
import sys, time
for line in sys.stdin:
    task = line.strip()
    {}
    print("done", task, flush=True)
"""


def executor(folder: Path, body: str, **site: Any) -> LocalExecutor:
    """An executor whose workers do with each task what `body` says."""
    script = folder / "worker.py"
    script.write_text(DOES.format(body), encoding="utf-8")
    # `-m l2s_hpc.task.worker RUN -` follows, and is not looked at.
    settings = {"name": "here", "executor": "local", "python": f"{sys.executable} {script}", **site}
    return LocalExecutor(RunPaths(folder), SiteConfig.model_validate(settings))


def watched(of: LocalExecutor, *tasks: str) -> dict[str, JobState]:
    job = of.find(BatchState("b1", tasks, ENTRY))
    return of.watch({"b1": BatchState("b1", tasks, ENTRY, job)})


def until(of: LocalExecutor, tasks: tuple[str, ...], done: Callable[[list[str]], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done([state.state for state in watched(of, *tasks).values()]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def all_ended(states: list[str]) -> bool:
    return set(states) == {"ended"}


def test_tasks_are_pending_then_running_then_over(tmp_path: Path) -> None:
    go = tmp_path / "go"
    body = f"import os\n    while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    tasks, of = ("x", "y", "z"), executor(tmp_path, body, parallel=1)
    of.submit("b1", tasks)
    until(of, tasks, lambda states: states == ["running", "pending", "pending"])
    go.touch()
    until(of, tasks, all_ended)
    of.close()


def test_a_worker_that_dies_takes_only_its_task_with_it(tmp_path: Path) -> None:
    body = f'open(f"{tmp_path}/{{task}}.seen", "w").close()\n    if task == "x": sys.exit(9)'
    tasks, of = ("x", "y", "z"), executor(tmp_path, body, parallel=1)
    of.submit("b1", tasks)
    until(of, tasks, all_ended)
    of.close()
    assert sorted(p.name for p in tmp_path.glob("*.seen")) == ["x.seen", "y.seen", "z.seen"]


def test_cancelling_ends_the_workers(tmp_path: Path) -> None:
    tasks, of = ("x", "y"), executor(tmp_path, "time.sleep(60)", parallel=2)
    job = of.submit("b1", tasks)
    until(of, tasks, lambda states: states == ["running", "running"])
    began = time.monotonic()
    of.cancel({"b1": BatchState("b1", tasks, ENTRY, job)})
    assert time.monotonic() - began < 9 and of.find(BatchState("b1", tasks, ENTRY)) is None


@pytest.mark.parametrize(
    ("job", "state"),
    [(None, "unknown"), ("elsewhere:1:1", "unknown"), ("{host}:1:0", "orphaned")],
)
def test_batches_of_other_controllers(tmp_path: Path, job: str | None, state: str) -> None:
    name = job.format(host=socket.gethostname()) if job else None
    batch = BatchState("b1", ("x",), ENTRY, name)
    (found,) = executor(tmp_path, "pass").watch({"b1": batch}).values()
    assert found.state == state


def test_a_worker_that_found_no_room_says_so_by_its_exit_code(tmp_path: Path) -> None:
    of = executor(tmp_path, "sys.exit(75)", parallel=1)
    of.submit("b1", ["x"])
    until(of, ("x",), all_ended)
    (state,) = watched(of, "x").values()
    of.close()
    assert state.reason == NO_ROOM_JOB
