"""What do questions to a large run cost? `python bench/analysis.py [--folder DIR] [--only 100000]`.

Makes synthetic runs of 10^5, 10^6 and 10^7 rows (bench/analysis_run.py) that `l2s verify` calls
sound, and asks each before and after `l2s compact`. Every figure comes from a process of its own:
seconds from opening the run on, CPU seconds of all its threads, and peak memory, imports left out
of the seconds alone. Beside them stand DuckDB on the same files, and a loop over candidates in
torch, as published scripts do it; both draw as many resamples, and neither checks a file. Prints
Markdown tables, and the slope of the growth between the two largest runs (1 = linear).
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.analysis_run import Size, make_run

SIZES = {
    100_000: Size(50, 1000, 2),
    1_000_000: Size(200, 2500, 2),
    10_000_000: Size(1000, 5600, 2),
}
BARS = {"fitness": "2 s", "ntr": "10 s"}
PARTS = ("open", "fitness", "ntr", "front", "tensor")
RIVALS = ("duckdb fitness", "duckdb ntr", "torch fitness", "torch ntr")
NEEDS = {"duckdb": ["duckdb"], "torch": ["torch", "pandas", "pyarrow.parquet"]}
DRAWS = 1000


def main(arguments: argparse.Namespace) -> None:
    """Make the runs, measure all and print the tables."""
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = arguments.folder or Path(tempfile.mkdtemp(dir=in_memory))
    sizes = [size for rows, size in SIZES.items() if arguments.only in (None, rows)]
    found: list[dict[str, Any]] = []
    for size in sizes:
        print(f"{size.candidates} candidates x {size.items} items x {size.samples} samples = "
              f"{size.rows:,} rows", file=sys.stderr)  # fmt: skip
        found.append(_measure_size(folder / str(size.rows), size, arguments.report))
    _print_times(sizes, found)
    _print_columns(found[-1])


def _measure_size(run: Path, size: Size, report: bool) -> dict[str, Any]:
    if not run.exists():
        make_run(run, size)
    joined = run.with_name(run.name + ".joined")
    parts = (*PARTS, *(["report"] if report else []))
    found: dict[str, Any] = {"own files": {part: _measure(part, run) for part in parts}}
    found["others"] = {part: _measure(part, run) for part in RIVALS}
    if not joined.exists():
        subprocess.run(["cp", "-r", str(run), str(joined)], check=True)
        found["compact"] = _measure("compact", joined)
    found["joined"] = {part: _measure(part, joined) for part in parts}
    found["others joined"] = {part: _measure(part, joined) for part in RIVALS[:2]}
    found["sizes"] = {name: _columns(path) for name, path in (("own", run), ("joined", joined))}
    found["files"] = [sum(1 for p in path.rglob("*") if p.is_file()) for path in (run, joined)]
    return found


def _print_times(sizes: Sequence[Size], found: Sequence[dict[str, Any]]) -> None:
    heads = [f"10^{round(math.log10(size.rows))} rows" for size in sizes]
    print("| seconds (CPU seconds; MiB at the most) | " + " | ".join(heads) + " | slope | bar |")
    print("|---|" + "---|" * (len(heads) + 2))
    for group in ("own files", "joined", "others", "others joined"):
        for part in found[0][group]:
            cells = [one[group][part] for one in found]
            shown = " | ".join(
                f"{c['seconds']:.2f} ({c['cpu']:.1f}; {c['memory']:.0f})" for c in cells
            )
            slope = _slope(sizes, [c["cpu"] for c in cells])
            bar = BARS.get(part, "") if len(found) == len(SIZES) else ""
            print(f"| {part}, {group} | {shown} | {slope} | {bar} |")
    for size, one in zip(sizes, found, strict=True):
        if "compact" in one:
            seconds, cpu, memory = (one["compact"][key] for key in ("seconds", "cpu", "memory"))
            before, after = one["files"]
            print(
                f"\n`l2s compact`, {size.rows:,} rows: {seconds:.0f} s ({cpu:.0f} CPU s; "
                f"{memory:.0f} MiB); {before:,} files became {after:,}"
            )


def _slope(sizes: Sequence[Size], values: Sequence[float]) -> str:
    """Return the growth between the two largest as an exponent."""
    if len(sizes) < 2:
        return ""
    rows = math.log(sizes[-1].rows / sizes[-2].rows)
    return f"{math.log(max(values[-1], 1e-3) / max(values[-2], 1e-3)) / rows:.2f}"


def _print_columns(found: dict[str, Any]) -> None:
    own, joined = found["sizes"]["own"], found["sizes"]["joined"]
    print("\n| bytes a row | own files | joined |")
    print("|---|---|---|")
    apart = ("extracted", "gold")
    rest = [sizes["all"] - sum(sizes[name] for name in apart) for sizes in (own, joined)]
    print(f"| all but extracted and gold, with footers | {rest[0]:.2f} | {rest[1]:.2f} |")
    for name in (*apart, *(c for c in own if c not in (*apart, "all"))):
        print(f"| {name} | {own[name]:.3f} | {joined[name]:.3f} |")


def _columns(run: Path) -> dict[str, float]:
    """Return the bytes a row of each column, and of all files of scores (receipts left out)."""
    import pyarrow.parquet as pq

    found: dict[str, float] = {}
    rows = 0
    files = [path for path in (run / "scores").rglob("*") if path.is_file()]
    for path in (path for path in files if path.suffix == ".parquet"):
        metadata = pq.read_metadata(path)
        rows += metadata.num_rows
        for number in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                column = metadata.row_group(number).column(place)
                name = column.path_in_schema
                found[name] = found.get(name, 0) + column.total_compressed_size
    found["all"] = sum(path.stat().st_size for path in files if path.suffix == ".parquet")
    return {name: size / rows for name, size in found.items()}


def _measure(part: str, run: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", part, "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {part}: {found}", file=sys.stderr)
    return found


def _part(name: str, run: Path) -> dict[str, float]:
    """Do one thing, and return what it took."""
    warnings.simplefilter("ignore")
    do = _prepared(name, run)
    start, spent = time.perf_counter(), _cpu()
    do()
    return {
        "seconds": time.perf_counter() - start,
        "cpu": _cpu() - spent,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _prepared(name: str, run: Path) -> Callable[[], Any]:
    """Import what a part needs, and return what is to be measured."""
    if name.partition(" ")[0] in ("duckdb", "torch"):
        from bench import analysis_others

        kind, _, what = name.partition(" ")
        for module in NEEDS[kind]:
            importlib.import_module(module)
        rival: Callable[..., Any] = getattr(analysis_others, f"{kind}_{what}")
        return lambda: rival(run, DRAWS)
    if name == "compact":
        from l2s_hpc.controller.compact import compact

        return lambda: compact(run)
    import l2s_hpc.analysis.report
    import l2s_hpc.store.scores  # loaded by what reads a table
    from l2s_hpc import open_run

    parts: dict[str, Callable[[], Any]] = {
        "open": lambda: open_run(run).evaluations,
        "fitness": lambda: open_run(run).measures("search"),
        "ntr": lambda: open_run(run).ntr("search"),
        "front": lambda: open_run(run).front("search"),
        "tensor": lambda: open_run(run).tensor(evaluation="search"),
        "report": lambda: l2s_hpc.analysis.report.write_report(open_run(run), run / "report.html"),
    }
    return parts[name]


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to keep the runs")
    parser.add_argument("--only", type=int, choices=list(SIZES), help="one size")
    parser.add_argument("--report", action="store_true", help="the report, too: minutes")
    parser.add_argument("--part", help="do one thing in this process")
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    if given.part is None:
        main(given)
    else:
        print(json.dumps(_part(given.part, given.run)))
