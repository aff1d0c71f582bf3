"""A mini job for tests: 3 generations x 4 candidates x 8 items, with the scripted engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import RunState

JOB = """
name = "mini"
seed = 3
benchmarks = ["toy_easy"]
[parents]
slow = "shipped:toy/slow"
fast = "shipped:toy/fast"
[merge]
method = "task_arithmetic"
base = "shipped:toy/base"
[[genes]]
parameter = "weight"
low = 0.0
high = 1.0
step = 0.05
[search]
population = 4
generations = 3
[protocol]
prompt = "chat"
max_tokens = 100
[references]
sweep = 3
"""

LOCAL = """
name = "mini"
executor = "local"
engine = "scripted"
parallel = 2
poll_seconds = 0.05
grace_seconds = 0
"""


SMALL_TOY = (
    "search.generations=2",
    "search.population=4",
    "search.grid=2",
    "splits.search.max_items=3",
    "splits.selection.max_items=3",
    "splits.report.max_items=3",
)
"""Settings that make a search of some seconds of the toy job."""


@dataclass(frozen=True)
class Mini:
    """The files of a mini job, and the command that runs it."""

    job: Path
    site: Path

    def command(self, run: Path, *settings: str) -> list[str]:
        options = [part for setting in settings for part in ("--set", setting)]
        base = [sys.executable, "-m", "l2s_hpc.cli.main", "run", str(self.job)]
        return [*base, "--site", str(self.site), "--run", str(run), *options]

    def run(self, run: Path, *settings: str, env: Mapping[str, str] | None = None) -> str:
        """Run to the end and return what it printed."""
        done = subprocess.run(
            self.command(run, *settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
            env=env,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def write_mini(folder: Path, site: str = LOCAL, scripted: str = "") -> Mini:
    """Write the job, the site and eight items for each split."""
    items = folder / "items.jsonl"
    rows = [
        {"question": f"{split} {n} + {n} = {2 * n}", "answer": str(2 * n), "split": split}
        for split in ("search", "selection", "report")
        for n in range(8)
    ]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job, cluster = folder / "mini.toml", folder / "site.toml"
    job.write_text(JOB, encoding="utf-8")
    benchmarks = f'[benchmarks]\ntoy_easy = "{items}"\n'
    cluster.write_text(f"{site}\n[scripted]\n{scripted}\n{benchmarks}", encoding="utf-8")
    return Mini(job, cluster)


def state_of(run: Path) -> RunState:
    """Fold a run's journal."""
    state = RunState()
    for entry in Journal(RunPaths(run).journal).refresh():
        state.apply(entry)
    return state


def outcome(run: Path) -> dict[str, object]:
    """Return all that must not depend on how often a run was disturbed."""
    state = state_of(run)
    return {
        "genomes": [generation.genomes for generation in state.generations],
        "objectives": [generation.objectives for generation in state.generations],
        "tables": {key: accepted.content_sha256 for key, accepted in state.accepted.items()},
        "penalised": dict(state.penalised),
        "front": state.front,
        "picks": state.picks,
        "completed": state.completed,
    }


def kill_at_entry(command: Sequence[str], run: Path, entry: int, seconds: float = 60) -> bool:
    """Start a command and SIGKILL it when the journal has that entry; False if it ended before."""
    path = RunPaths(run).journal / f"{entry // 1000:03d}" / f"{entry:08d}.json"
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    process.kill()
    process.wait()
    return False
