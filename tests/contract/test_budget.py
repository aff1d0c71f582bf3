"""A search that reaches its budget ends clean, with its report; a raised budget goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mini import Mini, outcome, state_of, write_mini


@pytest.fixture
def mini(tmp_path: Path) -> Mini:
    return write_mini(tmp_path)


@pytest.mark.parametrize(
    "limit",
    [
        "budget.max_candidates=6",
        "budget.max_gpu_hours=1e-9",
        "budget.deadline=2020-01-01T00:00:00Z",
    ],
)
def test_it_ends_clean_with_its_report(mini: Mini, tmp_path: Path, limit: str) -> None:
    """One generation is always made; another one does not fit."""
    said = mini.run(tmp_path / "run", limit)
    state = state_of(tmp_path / "run")
    assert state.completed and state.front
    assert len(state.generations) == 1
    assert "budget." in said and "budget." in state.spent
    assert (tmp_path / "run" / "report.html").exists()


def test_a_raised_budget_goes_on(mini: Mini, tmp_path: Path) -> None:
    limited, free = tmp_path / "limited", tmp_path / "free"
    mini.run(limited, "budget.max_candidates=6")
    mini.run(limited, "budget.max_candidates=600")
    mini.run(free)
    ours, theirs = outcome(limited), outcome(free)
    assert ours["genomes"] == theirs["genomes"]
    assert ours["front"] == theirs["front"]


def test_status_says_what_is_used_and_left(mini: Mini, tmp_path: Path) -> None:
    mini.run(tmp_path / "run", "budget.max_candidates=6", "budget.max_gpu_hours=100")
    command = [sys.executable, "-m", "l2s_hpc.cli.main", "status", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    budget = json.loads(done.stdout)["budget"]
    used = len(state_of(tmp_path / "run").genomes)
    assert (budget["candidates"], budget["candidates_left"]) == (used, 6 - used)
    assert 99 < budget["gpu_hours_left"] <= 100
