"""The README's cluster tour, followed word by word on the test cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mini import SMALL_TOY, state_of

from .cluster import SlurmCluster

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SMALLER = (
    *SMALL_TOY,
    "site.poll_seconds=0.5",
    "site.grace_seconds=5",
)
"""What the tour adds here, where a search of minutes would take too long."""


def tour() -> list[list[str]]:
    """The commands of the tour's first block, as they stand."""
    (text,) = re.findall(r"## A tour on a cluster\n.*?```sh\n(.*?)```", README, re.DOTALL)
    return [line.partition("#")[0].split() for line in text.splitlines()]


@pytest.fixture
def slurm(
    slurm_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SlurmCluster]:
    """A cluster whose nodes have as much memory as real ones, or so it believes."""
    with SlurmCluster(tmp_path_factory.mktemp("tour"), memory=8000) as cluster:
        yield cluster


def test_the_tour(slurm: SlurmCluster, tmp_path: Path) -> None:
    verbs = [words[1] for words in tour()]
    assert verbs == ["doctor", "doctor", "plan", "run", "status", "stop", "run", "report"]
    run = tmp_path / "results" / "first"
    for words in tour():
        if words[1] == "status":
            watch(words, slurm, tmp_path)
            slurm.wait(lambda: any(b.job for b in state_of(run).batches.values()), timeout=120)
            continue
        text = follow(words, slurm, tmp_path)
        if words[1] == "plan":
            assert "#SBATCH --array" in text and "l2s_hpc.cluster.launch" in text
        if words[1] == "stop":
            slurm.wait(lambda: not [j for j in slurm.jobs() if j.state in ("PENDING", "RUNNING")])
    assert state_of(run).completed
    assert (run / "report.html").stat().st_size > 100_000


def follow(words: Sequence[str], slurm: SlurmCluster, folder: Path) -> str:
    """Do what the tour says; it must succeed."""
    smaller = [part for setting in SMALLER for part in ("--set", setting)]
    extra = smaller if words[1] in ("run", "plan", "doctor") else []
    done = subprocess.run(
        [sys.executable, "-m", "l2s_hpc.cli.main", *words[1:], *extra],
        cwd=folder,
        env=slurm.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def watch(words: Sequence[str], slurm: SlurmCluster, folder: Path) -> None:
    """Follow a run for a while, and leave it with Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "l2s_hpc.cli.main", *words[1:]],
        cwd=folder,
        env=slurm.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "generation" in process.stdout.readline()
    finally:
        process.send_signal(2)
        assert process.wait(60) == 0
