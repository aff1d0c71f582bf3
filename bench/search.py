"""Does the search gain anything? `python bench/search.py FOLDER [SEEDS]`.

For each seed two searches over the toy family with equal numbers of evaluations: ours (NSGA-II
over per-group weights, from a coarse grid) and random search over the same genes. Beside them the
one-parameter sweep between the parents, with as many points. All are compared by hypervolume on
the 480 items of the report split: the searches on the points that they chose on the search and
selection splits, the sweep on all of its points. Prints a Markdown table; what is in FOLDER
already is not run again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from l2s_hpc import Run, open_run
from l2s_hpc.analysis.tradeoff import hypervolume_of

GRID, GENERATIONS, POPULATION = 4, 9, 10
EVALUATIONS = GRID**2 + (GENERATIONS - 1) * POPULATION
REPORT_ITEMS = 120

OURS = (f"search.generations={GENERATIONS}", f"search.population={POPULATION}")
RANDOM = ("search.algorithm=random", "search.generations=1", f"search.population={EVALUATIONS}")
# The sweep chooses nothing: all of its points are reported, whatever the other splits say of them.
SWEEP = (
    "search.algorithm=random",
    "search.generations=1",
    "search.population=2",
    "splits.search.max_items=1",
    "splits.selection.max_items=1",
    f"references.sweep={EVALUATIONS}",
)


def main(folder: Path, seeds: int) -> None:
    """Run what is not there yet, and print the table."""
    line = _run(folder / "sweep", 1, *SWEEP)
    sweep = line.hypervolume("report").sweep or 0.0
    rows = []
    for seed in range(1, seeds + 1):
        ours = _reached(_run(folder / f"ours-{seed}", seed, *OURS, "references.sweep=0"))
        drawn = _reached(_run(folder / f"random-{seed}", seed, *RANDOM, "references.sweep=0"))
        rows.append((seed, ours, drawn))
    print(f"{EVALUATIONS} evaluations each, {4 * REPORT_ITEMS} report items\n")
    print("| seed | ours | random search | one-parameter sweep |")
    print("|---|---|---|---|")
    for seed, ours, drawn in rows:
        print(f"| {seed} | {ours:.4f} | {drawn:.4f} | {sweep:.4f} |")
    wins = sum(ours > max(drawn, sweep) for _, ours, drawn in rows)
    print(f"\nours is above both in {wins} of {len(rows)} seeds")


def _run(folder: Path, seed: int, *settings: str) -> Run:
    every = [f"seed={seed}", f"splits.report.max_items={REPORT_ITEMS}", *settings]
    options = [part for setting in every for part in ("--set", setting)]
    command = [sys.executable, "-m", "l2s_hpc.cli.main", "run", "toy", "--run", str(folder)]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return open_run(folder)


def _reached(run: Run) -> float:
    """Return the hypervolume of the final front on the report split."""
    points = [(row["accuracy"], row["tokens"]) for row in run.front("report")]
    return hypervolume_of(points, run.hypervolume("report").slow_tokens)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
