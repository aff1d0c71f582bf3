"""Several workers of one task: their GPUs, their signals, their exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.task import team

ROOT = Path(__file__).parents[2]
TEAM = """
import sys
from l2s_hpc.task.team import run_team
sys.exit(run_team([sys.executable, "-c", sys.argv[1]], int(sys.argv[2])))
"""
WORKER = """
import os, signal, sys, time
from pathlib import Path
number = int(sys.argv[1])
def leave(name, text=""):
    Path(f"{number}.{name}").write_text(str(text), encoding="utf-8")
"""


class Team:
    """A team whose workers run a few lines of Python, in a folder of their own."""

    def __init__(self, folder: Path, lines: str, workers: int, env: Mapping[str, str]) -> None:
        self.folder = folder
        clean = {
            n: v for n, v in os.environ.items() if n not in ("CUDA_VISIBLE_DEVICES", "L2S_TEAM")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", TEAM, WORKER + lines, str(workers)],
            cwd=folder,
            env={**clean, "PYTHONPATH": str(ROOT), **env},
            start_new_session=True,
        )

    def end(self) -> int:
        return self.process.wait(60)

    def left(self, name: str) -> list[str]:
        """What the workers left under a name, in the order of their numbers."""
        return [p.read_text(encoding="utf-8") for p in sorted(self.folder.glob(f"*.{name}"))]

    def until(self, name: str, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.left(name)) < count:
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)


def start(folder: Path, lines: str, workers: int = 3, **env: str) -> Team:
    return Team(folder, lines, workers, env)


def test_each_worker_has_a_number_and_a_gpu_and_all_have_one_name(tmp_path: Path) -> None:
    lines = (
        'leave("gpu", os.environ["CUDA_VISIBLE_DEVICES"])\nleave("team", os.environ["L2S_TEAM"])'
    )
    team = start(tmp_path, lines, CUDA_VISIBLE_DEVICES="4,6,7")
    assert team.end() == 0
    assert team.left("gpu") == ["4", "6", "7"]
    assert len(set(team.left("team"))) == 1 and team.left("team")[0]


def test_the_exit_code_is_the_worst_one(tmp_path: Path) -> None:
    assert start(tmp_path, "sys.exit([0, 75, 3][number])").end() == 75


def test_a_worker_that_was_killed_counts_as_a_shell_counts_it(tmp_path: Path) -> None:
    assert start(tmp_path, "number == 1 and os.kill(os.getpid(), 9)").end() == 128 + 9


def test_a_worker_that_dies_does_not_end_the_others(tmp_path: Path) -> None:
    lines = """
if number == 0:
    leave("dead")
    os.kill(os.getpid(), 9)
while not Path("0.dead").exists():
    time.sleep(0.01)
time.sleep(0.3)
leave("done")
"""
    team = start(tmp_path, lines)
    assert team.end() == 137 and len(team.left("done")) == 2


HEARS = """
def hear(signum, frame):
    leave("heard", signal.Signals(signum).name)
    sys.exit(143)
for signum in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(signum, hear)
leave("ready")
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR2])
def test_signals_reach_every_worker_and_all_are_waited_for(
    sent: signal.Signals, tmp_path: Path
) -> None:
    """Slurm sends them to the batch's first process alone."""
    team = start(tmp_path, HEARS + "time.sleep(60)")
    team.until("ready", 3)
    time.sleep(0.2)
    os.kill(team.process.pid, sent)
    assert team.end() == 143 and team.left("heard") == [sent.name] * 3


def test_signals_reach_the_workers_that_are_left(tmp_path: Path) -> None:
    team = start(tmp_path, HEARS + "if number != 1: time.sleep(60)")
    team.until("ready", 3)
    time.sleep(0.2)
    os.kill(team.process.pid, signal.SIGTERM)
    assert team.end() == 143 and team.left("heard") == ["SIGTERM"] * 2


@given(
    st.lists(st.text("0123456789abcdef-", min_size=1, max_size=4), max_size=8, unique=True),
    st.integers(1, 16),
)
def test_workers_take_the_gpus_of_their_task_in_turn(given_gpus: list[str], workers: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(given_gpus))
        devices = team._devices(workers)
    assert len(devices) == workers
    if given_gpus:
        assert set(devices) <= set(given_gpus), "no GPU of somebody else"
        assert len(set(devices)) == min(workers, len(given_gpus)), (
            "none is idle while two share one"
        )
    else:
        assert devices == [str(n) for n in range(workers)]
