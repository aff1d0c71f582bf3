"""The controller dies, hangs, or is not alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mini import state_of

from .cluster import SlurmCluster
from .faults import Lab, end, ended, kill, l2s, make_lab

KILLED = Path(__file__).parents[1] / "crash" / "killed.py"


@pytest.fixture
def lab(slurm: SlurmCluster, tmp_path: Path) -> Lab:
    return make_lab(slurm, tmp_path)


def test_killed_at_twenty_places(lab: Lab, tmp_path: Path) -> None:
    """Around durable writes and around sbatch: every place a few steps further on."""
    log = tmp_path / "places"
    log.touch()
    arguments = lab.mini.command(lab.run)[3:]
    for round_ in range(60):
        count = 3 + 7 * round_ % 61
        command = [sys.executable, str(KILLED), str(count), str(log), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=240, env=lab.env
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    places = log.read_text(encoding="utf-8").splitlines()
    lab.finish()
    assert len(places) >= 20, places
    assert {"before _link", "after _link", "before replace", "after replace"} <= set(places)
    lab.check()


@pytest.mark.parametrize(("place", "first", "later"), [("before", 1, 3), ("after", 2, 2)])
def test_killed_around_every_sbatch(
    lab: Lab, tmp_path: Path, place: str, first: int, later: int
) -> None:
    """After sbatch and before its record: the job is found by its name, and never doubled."""
    log, script = tmp_path / "places", sbatch_alone(tmp_path / "killed.py")
    arguments = lab.mini.command(lab.run)[3:]
    codes: list[int] = []
    while not codes or codes[-1] == -signal.SIGKILL:
        assert len(codes) < 20
        count = str(later if codes else first)
        command = [sys.executable, str(script), count, str(log), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=240, env=lab.env
        )
        codes.append(done.returncode)
    assert codes[-1] == 0, done.stdout + done.stderr
    assert log.read_text(encoding="utf-8").splitlines() == [f"{place} _submit"] * (len(codes) - 1)
    assert len(codes) >= 5
    lab.check()
    abandoned = [a for a in lab.attempts() if a.outcome == "abandoned"]
    assert bool(abandoned) == (place == "before")
    assert not lab.failures()


def test_two_controllers_at_once(lab: Lab) -> None:
    first, second = lab.begin(), lab.begin()
    with ended(first, second):
        end(first)
        end(second)
    lab.check()
    tries = [(a.evaluation, a.candidate) for a in lab.attempts() if a.outcome != "abandoned"]
    assert len(set(tries)) == len(tries), "a candidate was evaluated twice"


def test_another_login_node_goes_on_while_the_first_hangs(
    slurm: SlurmCluster, tmp_path: Path, allowed_to_mount: None
) -> None:
    """The first one freezes with its jobs under way, and wakes up when all is done."""
    lab = make_lab(slurm, tmp_path, node={"chunk_delay": 2.0})
    first = lab.begin()
    with ended(first):
        with lab.frozen():
            first.send_signal(signal.SIGSTOP)
        lab.set_nodes()
        lab.finish(host="login2")
        lab.check()
        first.send_signal(signal.SIGCONT)
        end(first)
    lab.check()


def test_one_that_froze_before_sbatch_doubles_nothing(
    lab: Lab, tmp_path: Path, allowed_to_mount: None
) -> None:
    """Another one has given its submission up; when it wakes up and submits, its job is ended."""
    log, script = tmp_path / "places", sbatch_alone(tmp_path / "killed.py")
    command = [sys.executable, str(script), "1", str(log), *lab.mini.command(lab.run)[3:]]
    first = lab.start(command, PLACE_SIGNAL="SIGSTOP")
    with ended(first):
        lab.wait(log.exists)
        lab.finish(host="login2")
        first.send_signal(signal.SIGCONT)
        end(first)
    lab.check()
    assert any(batch.abandoned for batch in lab.state().batches.values())


def sbatch_alone(script: Path) -> Path:
    """Write a `killed.py` whose only places are before and after sbatch."""
    lines = KILLED.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "around(files" not in line and '"submit")' not in line]
    script.write_text("\n".join(kept), encoding="utf-8")
    return script


def test_stopped_and_gone_on_with(slurm: SlurmCluster, tmp_path: Path) -> None:
    """What `l2s stop` cancels is nobody's will: the same command goes on without being asked."""
    lab = make_lab(slurm, tmp_path, node={"chunk_delay": 2.0})
    controller = lab.begin()
    with ended(controller), lab.frozen():
        l2s("stop", str(lab.run), env=lab.env)
        lab.set_nodes()
        end(controller, code=3)
    lab.wait(lambda: not [j for j in lab.jobs() if j.state in ("PENDING", "RUNNING")])
    lab.finish()
    lab.check()
    kinds = {a.kind for a in lab.failures()}
    assert "interrupted" in kinds and "cancelled" not in kinds


def test_killed_while_tasks_run(slurm: SlurmCluster, tmp_path: Path) -> None:
    lab = make_lab(slurm, tmp_path, node={"chunk_delay": 1.0})
    for _ in range(3):
        controller = lab.begin()
        # While one of its tasks is under way, a controller begins no other batch.
        with ended(controller), lab.frozen():
            kill(controller)
    lab.set_nodes()
    lab.finish()
    lab.check()
    assert not [a for a in lab.attempts() if a.outcome != "accepted"]
    assert state_of(lab.run).looks == 1
