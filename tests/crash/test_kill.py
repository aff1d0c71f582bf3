"""kill -9 of the controller, then the same command: the same search as undisturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.mini import Mini, kill_at_entry, outcome, state_of, write_mini


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return write_mini(tmp_path_factory.mktemp("mini"), scripted="delay = 0.02")


@pytest.fixture(scope="module")
def undisturbed(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    mini.run(run)
    return outcome(run)


def test_undisturbed_run_is_complete(undisturbed: dict[str, object]) -> None:
    assert undisturbed["completed"]
    assert len(undisturbed["genomes"]) == 3  # type: ignore[arg-type]
    told = [row for generation in undisturbed["objectives"] for row in generation]  # type: ignore
    assert len({accuracy for accuracy, _ in told}) >= 3, "the search has nothing to find"


def test_killed_again_and_again(mini: Mini, undisturbed: dict[str, object], tmp_path: Path) -> None:
    """Each time a few entries further on: in asking, submitting, accepting, telling, choosing."""
    run = tmp_path / "run"
    kills = sum(kill_at_entry(mini.command(run), run, entry) for entry in range(1, 60, 4))
    assert kills >= 8
    mini.run(run)
    assert outcome(run) == undisturbed


def test_killed_in_the_middle_of_a_generation_with_its_workers(
    mini: Mini, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """A node that loses power takes controller and workers at once."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        mini.command(run, "site.scripted.delay=1.0"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for(lambda: run.exists() and len(state_of(run).accepted) >= 3)
    workers = _children(process.pid)
    for pid in [process.pid, *workers]:
        with contextlib.suppress(ProcessLookupError):  # workers end when their controller has gone
            os.kill(pid, signal.SIGKILL)
    process.wait()
    assert workers
    mini.run(run, "site.scripted.delay=1.0")
    disturbed = outcome(run)
    # The delay is a setting of the engine, so the protocol (a column) differs, and nothing else.
    for part in ("genomes", "objectives", "front", "picks", "completed"):
        assert disturbed[part] == undisturbed[part]


def test_killed_with_the_real_engine(tmp_path: Path) -> None:
    """Real merges and real answers: the same genomes and tables after a kill in a generation."""
    settings = (
        "search.start=random",
        "search.population=3",
        "search.generations=2",
        "references.sweep=0",
        "splits.search.max_items=3",
        "splits.selection.max_items=2",
        "splits.report.max_items=2",
        "site.parallel=1",
    )
    toy = Mini(Path("toy"), Path("local"))
    toy.run(tmp_path / "undisturbed", *settings)
    run = tmp_path / "run"
    process = subprocess.Popen(
        toy.command(run, *settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _wait_for(lambda: run.exists() and len(state_of(run).accepted) >= 2)
    process.kill()
    process.wait()
    toy.run(run, *settings)
    assert outcome(run) == outcome(tmp_path / "undisturbed")


def test_workers_end_with_their_controller(mini: Mini, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        mini.command(run, "site.scripted.delay=30"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for(lambda: len(_children(process.pid)) == 2)
    workers = _children(process.pid)
    process.kill()
    process.wait()
    _wait_for(lambda: not any(_alive(pid) for pid in workers))


def test_ctrl_c_leaves_a_run_that_goes_on(
    mini: Mini, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        mini.command(run),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Of the node alone, so that the tables are the undisturbed ones.
        env={**os.environ, "L2S_SCRIPTED": json.dumps({"delay": 1.0})},
    )
    _wait_for(lambda: run.exists() and len(state_of(run).accepted) >= 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "interrupted" in output and "Traceback" not in output
    mini.run(run)
    assert outcome(run) == undisturbed


def test_two_controllers_at_once(
    mini: Mini, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = [
        subprocess.Popen(
            mini.command(run), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert outcome(run) == undisturbed
    attempts = [a for tries in state_of(run).attempts.values() for a in tries]
    assert len({(a.evaluation, a.candidate) for a in attempts}) == len(attempts)


def test_same_command_on_a_complete_run(mini: Mini, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mini.run(run)
    before = outcome(run)
    assert "The run is complete" in mini.run(run)
    assert outcome(run) == before


def test_more_generations_go_on(mini: Mini, tmp_path: Path) -> None:
    """A finished run may grow, and is then the run that was long from the start."""
    grown, long = tmp_path / "grown", tmp_path / "long"
    mini.run(grown, "search.generations=2")
    mini.run(grown, "search.generations=3")
    mini.run(long, "search.generations=3")
    ours, theirs = outcome(grown), outcome(long)
    assert ours["genomes"] == theirs["genomes"]
    assert ours["front"] == theirs["front"]
    assert state_of(grown).looks == 2


def _wait_for(condition: object, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
