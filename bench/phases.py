"""Where the seconds of a run go, by phase: `python bench/phases.py results/demo`.

Node phases are sums over all accepted candidates' receipts; the controller's is what is left of
the wall time in which no worker was busy on its behalf. Prints a Markdown table.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from l2s_hpc import open_run
from l2s_hpc.analysis.frames import Frames
from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths

PHASES = ("start", "merge", "load", "generate", "grade", "write")


def main(folder: Path) -> None:
    """Print the table of one run."""
    run = open_run(folder)
    frames = Frames(RunPaths(folder), run.state.accepted.values())
    receipts = [frames.receipt(e, c) for e, c in run.state.accepted]
    entries = Journal(RunPaths(folder).journal).refresh()
    wall = _seconds(entries[0].time, entries[-1].time)
    busy = _union([(r.started, r.ended) for r in receipts])
    total = sum(sum(r.seconds.values()) for r in receipts)
    print(
        f"{len(receipts)} candidate evaluations, {sum(r.rows for r in receipts)} answers, "
        f"{wall:.0f} s wall\n"
    )
    print("| phase | seconds, all workers | share | a candidate |")
    print("|---|---|---|---|")
    for phase in PHASES:
        spent = sum(r.seconds.get(phase, 0.0) for r in receipts)
        print(f"| {phase} | {spent:.2f} | {spent / total:.1%} | {spent / len(receipts):.4f} |")
    print(
        f"\ncontroller and worker start (no candidate under way): {wall - busy:.1f} s of wall time"
    )


def _union(spans: list[tuple[str, str]]) -> float:
    """Return the seconds that lie in any of the spans."""
    total, end = 0.0, None
    for start, stop in sorted(spans):
        begin = start if end is None or start > end else end
        if end is None or stop > end:
            total += max(_seconds(begin, stop), 0.0)
            end = stop
    return total


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
