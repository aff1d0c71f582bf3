"""What does a long search cost its controller? `python bench/scale.py`.

200 generations of 200 candidates on a simulated Slurm cluster in virtual time (tests/simulated.py),
where 5 % of the candidates meet a fault. What nodes write is written by the package's own worker
with the scripted engine, eight items a candidate, in memory if there is a folder for it. Only CPU
and sizes are measured: fsync is left out. Prints a Markdown table. Each figure comes from a process
of its own: the search but for its last generation, its status, going on with it, and one generation
of 1,000 candidates.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from l2s_hpc.controller.resolve import load
from l2s_hpc.controller.start import open_controller
from l2s_hpc.controller.step import Controller
from l2s_hpc.store.layout import RunPaths
from tests.mini import write_mini
from tests.simulated import Cluster, Seat, Settings, Simulation, prepare

GENES = """
[merge.groups]
ends = ["embeddings", "final_norm", "head"]
low = ["layers.0-1"]
mid = ["layers.2"]
top = ["layers.3"]
[[genes]]
groups = ["ends", "low", "mid", "top"]
"""
SITE = """
name = "simulated"
executor = "slurm"
engine = "scripted"
"""
SEAT = Seat("login1", 1)
LIVE = 1000


def main(arguments: argparse.Namespace) -> None:
    """Measure all, each in a process of its own, and print the table."""
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = arguments.folder or Path(tempfile.mkdtemp(dir=in_memory))
    _write_job(folder)
    options = [
        f"--generations={arguments.generations}",
        f"--population={arguments.population}",
        f"--faults={arguments.faults}",
        *(f"--set={setting}" for setting in arguments.set),
    ]
    found = {
        name: _measure(["--part", name, "--folder", str(folder), *options])
        for name in ("search", "sizes", "resume", "live")
    }
    status = [sys.executable, "-m", "l2s_hpc.cli.main", "status", str(folder / "run"), "--json"]
    found["status"] = _run(status)[1]
    print("| | measured | bar |")
    print("|---|---|---|")
    for what, value, bar in _rows(arguments, **found):
        print(f"| {what} | {value} | {bar} |")


def _rows(
    arguments: argparse.Namespace,
    search: Mapping[str, Any],
    sizes: Mapping[str, Any],
    resume: Mapping[str, Any],
    live: Mapping[str, Any],
    status: Mapping[str, Any],
) -> list[tuple[str, str, str]]:
    per = 1000 / search["candidates"]
    first, last = (1000 * part for part in search["growth"])
    return [
        (
            f"{arguments.generations} generations x {arguments.population}, faults "
            f"{arguments.faults:.0%}: candidates evaluated, attempts",
            f"{search['candidates']:,}, {search['attempts']:,}",
            "",
        ),
        ("controller CPU a candidate", f"{search['cpu'] * per:.2f} ms", ""),
        ("... in the first and in the last tenth", f"{first:.2f} ms, {last:.2f} ms", ""),
        ("controller CPU in all", f"{search['cpu']:.0f} s in {search['steps']:,} steps", ""),
        ("peak memory of controller and simulator", f"{search['memory']:.0f} MiB", ""),
        ("journal", f"{sizes['entries']:,} files, {sizes['journal']:.1f} MiB", ""),
        ("run directory", f"{sizes['files']:,} files, {sizes['bytes']:.0f} MiB", ""),
        (
            f"entries of the largest directory (`{sizes['largest']}`)",
            f"{sizes['most']:,}",
            "10,000",
        ),
        ("`l2s status`", f"{status['seconds']:.1f} s, {status['memory']:.0f} MiB", ""),
        (
            f"resume with {resume['candidates']:,} candidates: open and first step",
            f"{resume['seconds']:.1f} s, {resume['memory']:.0f} MiB",
            "30 s, 1,024 MiB",
        ),
        (f"step with {live['tasks']:,} live tasks", f"{live['idle']:.2f} s CPU", "1 s"),
        ("... in which all of them have ended well", f"{live['all']:.2f} s CPU", ""),
    ]


def search(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Drive the search but for its last generation."""
    simulation = _simulation(folder / "run", arguments)
    spent: list[float] = []
    with simulation.cluster.seams():
        controller = simulation.start(SEAT)
        state = controller.state
        while state.told < arguments.generations - 1 or any(state.live_attempts()):
            acted, seconds = _timed_step(simulation.cluster, controller)
            spent.append(seconds)
            if not acted:
                simulation.cluster.advance(30.0)
    attempts = [attempt for tries in state.attempts.values() for attempt in tries]
    tenth = max(len(spent) // 10, 1)
    a_step = len(attempts) / len(spent)
    return {
        "candidates": len(state.accepted),
        "attempts": len(attempts),
        "steps": len(spent),
        "cpu": sum(spent),
        "growth": [sum(part) / tenth / a_step for part in (spent[:tenth], spent[-tenth:])],
        "memory": _memory(),
    }


def sizes(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Count what the search left on disk; a file with two names counts once."""
    run = folder / "run"
    entries: dict[str, int] = {}
    files: dict[int, int] = {}
    for place, folders, names in os.walk(run):
        entries[os.path.relpath(place, run)] = len(folders) + len(names)
        for name in names:
            info = Path(place, name).stat()
            files[info.st_ino] = info.st_size
    journal = list((run / "journal").glob("*/*.json"))
    largest = max(entries, key=lambda place: entries[place])
    return {
        "entries": len(journal),
        "journal": sum(path.stat().st_size for path in journal) / 2**20,
        "files": len(files),
        "bytes": sum(files.values()) / 2**20,
        "largest": largest,
        "most": entries[largest],
    }


def resume(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the command again, step once, which asks for the last generation, and then go on."""
    simulation = _simulation(folder / "run", arguments)
    with (
        simulation.cluster.seams(),
        mock.patch("l2s_hpc.controller.start.check_executor"),
        mock.patch("l2s_hpc.controller.start.make_executor", lambda *_: simulation.cluster),
    ):
        start = time.perf_counter()
        config, site = load(*_files(folder), _settings(arguments))
        controller = open_controller(config, site, folder / "run", "l2s run")
        controller.step()
        seconds = time.perf_counter() - start
        found = {
            "candidates": len(controller.state.accepted),
            "seconds": seconds,
            "memory": _memory(),
        }
        simulation.finish(simulation.start(SEAT), SEAT)
    return found


def live(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure a step while one large generation is under way, and the one after its end."""
    arguments.population, arguments.faults = LIVE, 0.0
    simulation = _simulation(folder / "live", arguments)
    cluster = simulation.cluster
    with cluster.seams():
        controller = simulation.start(SEAT)
        while len(cluster.running()) < LIVE:
            if not controller.step():
                cluster.advance(5.0)
        tasks = len(cluster.running())
        idle = min(_timed_step(cluster, controller)[1] for _ in range(5))
        cluster.advance(300.0)
        ended = _timed_step(cluster, controller)[1]
    return {"tasks": tasks, "idle": idle, "all": ended}


def _timed_step(cluster: Cluster, controller: Controller) -> tuple[bool, float]:
    """Step; return whether it acted, and the CPU seconds without those of the simulated Slurm."""
    slurm: list[float] = []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return call(*values, **named)
            finally:
                slurm.append(time.process_time() - start)

        return run

    calls = {name: timed(getattr(cluster, name)) for name in ("submit", "watch", "find", "end")}
    start = time.process_time()
    with mock.patch.multiple(cluster, **calls), cluster.seat(SEAT):
        acted = controller.step()
    return acted, time.process_time() - start - sum(slurm)


def _simulation(run: Path, arguments: argparse.Namespace) -> Simulation:
    info, resolved = prepare(run, *map(Path, _files(run.parent)), *_settings(arguments))
    behaviour = Settings(faults=arguments.faults, most_faults=10, candidate=300.0, checks=False)
    return Simulation(RunPaths(run), info, resolved, random.Random(1), behaviour)


def _files(folder: Path) -> tuple[str, str]:
    return str(folder / "mini.toml"), str(folder / "site.toml")


def _settings(arguments: argparse.Namespace) -> list[str]:
    return [
        f"search.generations={arguments.generations}",
        f"search.population={arguments.population}",
        "site.resubmit_cancelled=100",
        *arguments.set,
    ]


def _write_job(folder: Path) -> None:
    """Write the mini job with eight genes of any value, so that few candidates repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    mini = write_mini(folder, SITE)
    text = mini.job.read_text(encoding="utf-8")
    text = text.replace("[[genes]]\n", GENES.lstrip()).replace("step = 0.05\n", "")
    mini.job.write_text(text, encoding="utf-8")


def _measure(options: Sequence[str]) -> dict[str, Any]:
    text, _ = _run([sys.executable, __file__, *options])
    found: dict[str, Any] = json.loads(text)
    return found


def _run(command: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Run a command; return what it printed, its seconds and its peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{' '.join(command)} failed")
    return text, {"seconds": time.perf_counter() - start, "memory": usage.ru_maxrss / 1024}


def _memory() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--population", type=int, default=200)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--set", action="append", default=[], help="a setting of job or site")
    parser.add_argument("--folder", type=Path, help="where to keep the runs")
    parser.add_argument("--part", choices=["search", "sizes", "resume", "live"])
    given = parser.parse_args()
    if given.part is None:
        main(given)
    else:
        print(json.dumps(globals()[given.part](given.folder, given)))
