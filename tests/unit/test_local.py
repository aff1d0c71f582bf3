"""The executor of this machine, with workers that a test has written."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.cluster import local
from l2s_hpc.cluster.jobs import NO_ROOM_JOB, JobState
from l2s_hpc.cluster.local import LocalExecutor, visible_gpus, workers_of
from l2s_hpc.config import SiteConfig
from l2s_hpc.errors import IncompleteError, UserError
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


def test_a_worker_that_cannot_be_killed_is_an_error_and_the_others_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose disk or GPU hangs."""
    monkeypatch.setattr(local, "_POLITE_SECONDS", 0.3)
    stubborn = f"import signal\n    signal.signal(15, 1)\n    open('{tmp_path}/there', 'w')\n"
    of = executor(tmp_path, stubborn + "    time.sleep(60)", parallel=1)
    of.submit("b1", ["x"])
    of.submit("b2", ["y"])
    until(of, ("x",), lambda states: states == ["running"])
    deadline = time.monotonic() + 60
    while not (tmp_path / "there").exists() or not all(p._processes for p in of._pools.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    first, second = (pool._processes[0] for pool in of._pools.values())
    kill = subprocess.Popen.kill

    def hangs(process: subprocess.Popen[str]) -> None:
        if process is not first:
            kill(process)

    monkeypatch.setattr(subprocess.Popen, "kill", hangs)
    try:
        message = rf"a worker does not end, 0\.3 s after it was killed: process {first.pid} of"
        with pytest.raises(IncompleteError, match=message):
            of.close()
        assert second.poll() is not None
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()


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


# ---- GPUs ----------------------------------------------------------------------------------------


def cuda(**changes: Any) -> SiteConfig:
    return SiteConfig(name="here", executor="local", device="cuda", **changes)


def shows(folder: Path, monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    """A machine whose driver lists these GPUs."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n[ $1 = -L ] && printf '{listed}'\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    local._count_gpus.cache_clear()


TWO = "GPU 0: NVIDIA (UUID: GPU-1)\\n  MIG 1g (UUID: MIG-1)\\nGPU 1: NVIDIA (UUID: GPU-2)\\n"


def test_a_worker_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shows(tmp_path, monkeypatch, TWO)
    assert workers_of(cuda()) == ["0", "1"]
    assert workers_of(cuda(parallel=1)) == ["0"]
    assert workers_of(cuda(engine="scripted", parallel=3)) == ["", "", ""]
    with pytest.raises(UserError, match=r"site\.parallel = 3, and the GPUs .* are 2") as caught:
        workers_of(cuda(parallel=3))
    assert caught.value.hint == "set site.parallel to at most 2; 0 uses all"


@pytest.mark.parametrize(
    ("named", "found"),
    [("3", ["3"]), ("GPU-7, 1", ["GPU-7", "1"]), ("2,-1,0", ["2"])],
)
def test_the_environment_names_the_gpus(
    named: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(tmp_path, monkeypatch, TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert workers_of(cuda()) == found


def test_the_driver_is_asked_once_unless_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(tmp_path, monkeypatch, TWO)
    tool = tmp_path / "bin" / "nvidia-smi"
    answer = tool.read_text(encoding="utf-8")
    tool.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert visible_gpus() == []
    tool.write_text(answer, encoding="utf-8")
    assert visible_gpus() == ["0", "1"]
    tool.unlink()
    assert visible_gpus() == ["0", "1"]
    local._count_gpus.cache_clear()


def test_a_task_takes_the_gpu_that_is_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    body = (
        "import os\n"
        f'    open("{tmp_path}/" + task + os.environ["CUDA_VISIBLE_DEVICES"], "w").close()\n'
        '    while task == "x": time.sleep(0.01)'
    )
    of = executor(tmp_path, body, device="cuda", parallel=0)
    of.submit("b1", ["x"])
    until(of, ("x",), lambda states: states == ["running"])
    of.submit("b2", ["y"])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("[xy]5")) or not list(tmp_path.glob("[xy]6")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    of.close()


@pytest.mark.parametrize("named", ["", "-1", None])
def test_no_gpu_is_refused(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(tmp_path, monkeypatch, "" if named is None else TWO)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    message = "the site 'here' has device = \"cuda\", and no GPU is visible on this machine"
    with pytest.raises(UserError, match=message):
        workers_of(cuda())


def test_each_worker_has_a_gpu_for_itself_also_beside_another_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task fails where another worker of its GPU is at work, or has not ended yet."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    body = (
        "import os, atexit\n"
        f'    place = "{tmp_path}/gpu" + os.environ["CUDA_VISIBLE_DEVICES"]\n'
        "    if not os.path.exists(place + '-mine' + str(os.getpid())):\n"
        "        os.mkdir(place)\n"
        "        open(place + '-mine' + str(os.getpid()), 'w').close()\n"
        "        atexit.register(lambda: (time.sleep(0.3), os.rmdir(place)))\n"
        "    time.sleep(0.1)\n"
        f'    open(f"{tmp_path}/{{task}}.done", "w").close()'
    )
    of = executor(tmp_path, body, device="cuda", parallel=0)
    tasks = {batch: tuple(f"{batch}{n}" for n in range(4)) for batch in ("a", "b")}
    for batch, own in tasks.items():
        of.submit(batch, own)
    batches = {batch: BatchState(batch, own, ENTRY) for batch, own in tasks.items()}
    deadline = time.monotonic() + 60
    while any(pool._waiting or pool._running for pool in of._pools.values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    of.watch(batches)
    of.close()
    done = sorted(path.stem for path in tmp_path.glob("*.done"))
    assert done == sorted([*tasks["a"], *tasks["b"]])
    used = {path.name[3:].split("-")[0] for path in tmp_path.glob("gpu*-mine*")}
    assert used == {"5", "6"}
