"""Does the search gain anything? `python bench/search.py FOLDER [seeds]`.

For each seed three searches with equal numbers of evaluations over the toy family: ours (NSGA-II
over per-group weights from a coarse grid), random search over the same genes, and the
one-parameter sweep between the parents with as many points. All are measured by hypervolume on
the report split's 480 items, on the points that each chose on its own from search and selection
splits; the sweep brings all of its points. Prints a Markdown table; runs in FOLDER resume.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from l2s_hpc import open_run

GENERATIONS, POPULATION, GRID = 7, 12, 4
EVALUATIONS = GRID**2 + (GENERATIONS - 1) * POPULATION
REPORT_ITEMS = 120

OURS = [f"search.generations={GENERATIONS}", f"search.population={POPULATION}"]
RANDOM = ["search.algorithm=random", "search.generations=1", f"search.population={EVALUATIONS}"]


def main(folder: Path, seeds: int) -> None:
    """Run what is not there yet, and print the table."""
    rows = []
    for seed in range(1, seeds + 1):
        ours = _run(folder / f"ours-{seed}", seed, OURS)
        random = _run(folder / f"random-{seed}", seed, RANDOM)
        rows.append((seed, ours, random))
    sweep = _run(
        folder / "sweep", 1, [*RANDOM[:2], "search.population=2", f"references.sweep={EVALUATIONS}"]
    )
    line = sweep.hypervolume("report")["sweep"]
    print(f"{EVALUATIONS} evaluations each, {4 * REPORT_ITEMS} report items\n")
    print("| seed | ours | random search | one-parameter sweep | ours first |")
    print("|---|---|---|---|---|")
    wins = 0
    for seed, ours, random in rows:
        a, b = (run.hypervolume("report")["front"] for run in (ours, random))
        wins += a > max(b, line)
        print(
            f"| {seed} | {a:.4f} | {b:.4f} | {line:.4f} | {'yes' if a > max(b, line) else 'no'} |"
        )
    print(f"\nours above both in {wins} of {len(rows)} seeds")


def _run(folder: Path, seed: int, settings: list[str]):
    common = [f"seed={seed}", f"splits.report.max_items={REPORT_ITEMS}", *settings]
    options = [part for setting in common for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "l2s_hpc.cli.main",
        "run",
        "toy",
        "--run",
        str(folder),
        *options,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return open_run(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
